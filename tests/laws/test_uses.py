"""Codes, completion, anomaly scores, and conditions."""

import pytest
import torch

from simulacra.contract import (
    Completer,
    Decoder,
    Density,
    Encoder,
    Mixer,
    Predictor,
    Sampler,
    Scorer,
)
from simulacra.evaluation.scores import make_score, with_maps
from simulacra.games import Batch
from simulacra.spaces import Labels


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_codes_lie_in_their_space_and_come_back(having):
    model = having(Encoder, Decoder).trained
    x = model.space.random(6, seeded(0))
    code = model.encode(x)
    assert model.code_space.contains(code)
    again = model.decode(code)
    assert model.space.contains(again)
    if model.code_space.dimensions == model.space.dimensions and isinstance(model, Density):
        if again.is_floating_point():
            torch.testing.assert_close(again, x, rtol=1e-3, atol=1e-3)
        else:
            assert torch.equal(again, x)


def test_crossed_codes_are_the_ones_at_their_ends(having):
    model = having(Encoder, Decoder, Mixer).trained
    codes = model.encode(model.space.random(6, seeded(0)))
    coarse, fine = codes[:3], codes[3:]
    assert model.code_levels > 1
    assert torch.equal(model.mix(coarse, fine, model.code_levels), model.decode(coarse))
    assert torch.equal(model.mix(coarse, fine, 0), model.decode(fine))
    between = [model.mix(coarse, fine, level) for level in range(1, model.code_levels)]
    assert all(model.space.contains(one) for one in between)
    assert torch.equal(model.mix(coarse[:1], fine[:1], 1), between[0][:1])


def test_completion_keeps_what_is_known(having):
    model = having(Completer).trained
    x = model.space.random(6, seeded(0))
    known = torch.rand(x.shape, generator=seeded(1)) < 0.5
    known[0], known[1] = True, False
    done = model.complete(x, known, generator=seeded(2))
    assert done.dtype == model.space.dtype
    assert model.space.contains(done)
    assert torch.equal(done[known], x[known])
    assert torch.equal(done, model.complete(x, known, generator=seeded(2)))
    hidden = model.space.random(6, seeded(5))
    unseen = torch.where(known, x, hidden)
    assert torch.equal(done, model.complete(unseen, known, generator=seeded(2)))


def test_completion_draws(having):
    model = having(Completer).trained
    x = model.space.random(1, seeded(0)).expand(32, *model.space.shape)
    known = torch.zeros(x.shape, dtype=torch.bool)
    first, second = (model.complete(x, known, generator=seeded(s)) for s in (0, 1))
    assert not torch.equal(first, second)
    assert len(first.flatten(1).unique(dim=0)) > 1


def test_scores_name_their_source(having):
    model = having(Scorer).trained
    x = model.space.random(6, seeded(0))
    score = model.anomaly_score(x, generator=seeded(1))
    assert score.shape == (6,)
    assert torch.isfinite(score).all()
    assert len(score.unique()) > 1
    assert model.score_source


def test_maps_sum_to_their_scores(having):
    model = having(Sampler).trained
    names = [name for name in with_maps(model) if name != "ratio"]
    if not names:
        pytest.skip(f"{type(model).__name__} has no score with a map")
    x = model.space.random(6, seeded(0))
    for name in names:
        score = make_score(name, model).fit(Batch(x), seeded(1))
        maps = score.maps(Batch(x), seeded(1))
        assert maps.shape == x.shape
        found = score.of(Batch(x), seeded(1))
        torch.testing.assert_close(maps.flatten(1).sum(1), found, rtol=1e-5, atol=1e-5)


def conditional(toys):
    if not any(issubclass(Labels, one) for one in toys.entry.cls.conditions):
        pytest.skip(f"{toys.entry.name} takes no labels")
    return toys.conditional


def test_conditions_change_what_is_drawn(having):
    model = conditional(having(Sampler))
    zeros, ones = (torch.full((32,), label) for label in (0, 1))
    first = model.sample(32, condition=zeros, generator=seeded(0))
    again = model.sample(32, condition=zeros, generator=seeded(0))
    other = model.sample(32, condition=ones, generator=seeded(0))
    assert model.space.contains(first)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert model.space.contains(model.sample(5, generator=seeded(0)))


def test_conditions_change_densities(having):
    model = conditional(having(Density))
    x = model.space.random(8, seeded(0))
    values = [model.log_prob(x, condition=torch.full((8,), label)) for label in (0, 1)]
    assert not torch.allclose(*values)


def test_conditional_parameters_all_move(toys):
    conditional(toys)
    model = toys.new(condition=Labels(3))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    toys.play(model, 12, total=24)
    after = dict(model.named_parameters())
    assert not [name for name in before if torch.equal(before[name], after[name])]


def test_predictions_are_probabilities(having):
    model = having(Predictor).trained
    chances = model.predict(model.space.random(9, seeded(0)))
    assert chances.shape == (9, model.target_space.count)
    assert float(chances.min()) >= 0
    torch.testing.assert_close(chances.sum(1), torch.ones(9), rtol=0, atol=1e-5)
