"""AAE: who moves when, what hidden labels cannot do, losses of a coin, priors, and what it learns."""

import math
from dataclasses import replace

import pytest
import torch

from simulacra.data.dataset import Part, Stream
from simulacra.games import Batch, Clock, Descent, Game, Stage
from simulacra.models.latent.aae import AAE, Config
from simulacra.play import Play
from simulacra.probability.contents import content_numbers
from simulacra.probability.noise import BatchNoise
from simulacra.refusals import Refusal
from simulacra.spaces import Column, Images, Labels, Table, Tokens, Vectors

MIXED = Table((Column("a"), Column("b", "category", ("x", "y", "z")), Column("c", missing=True)))
SPACES = [Images(1, 3, 3, 2), Images(3, 4, 5, 256), Vectors(3), Tokens(4, 6), MIXED]
SMALL = {"hidden": 16, "critic_hidden": 8, "batch_size": 16}
SEMI = {"prior": "categorical-gaussian", "code": 2, "labelled": 30, **SMALL}
FORMS = {
    "gaussian": (SMALL | {"code": 3}, None),
    "gaussian posterior": (SMALL | {"code": 3, "posterior": "gaussian"}, None),
    "mixture": (SMALL | {"code": 2, "prior": "mixture"}, None),
    "swiss roll": (SMALL | {"code": 2, "prior": "swiss-roll"}, None),
    "clusters": (SMALL | {"prior": "categorical-gaussian", "categories": 4}, None),
    "supervised": (SMALL | {"code": 3}, Labels(3)),
    "semi-supervised": (SEMI, Labels(3)),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(rows, seed=0):
    return BatchNoise(seeded(seed), rows)


def made(form, space=None, **more):
    settings, labels = FORMS[form]
    torch.manual_seed(0)
    return AAE(space or Images(1, 4, 4, 3), Config(**settings | more), condition=labels)


def stream_of(model, x, y):
    part = Part(x, torch.arange(len(x)), model.space, y)
    size = model.config.batch_size
    return Stream(part, size, seed=0, conditional=model.condition_space is not None)


def played(model, x, y, rounds):
    play = Play(model, model.game(), seed=0)
    for report in play.rounds(stream_of(model, x, y), lambda clock: clock.rounds / rounds):
        assert not report.skipped
    return play


def some(model, count=200):
    return model.space.random(count, seeded()), torch.arange(count) % 3


@pytest.mark.parametrize("form", FORMS)
def test_the_turns_are_the_algorithm(form):
    last = made(form).game().stages[-1]
    movers = [turn.players[0].name for turn in last.turns]
    expected = ["autoencoder", "critic", "encoder"]
    assert movers == expected + (["classifier"] if form == "semi-supervised" else [])


@pytest.mark.parametrize("form", FORMS)
def test_a_turn_moves_its_players_only(form):
    model = made(form)
    x, y = some(model)
    played(model, x, y, 3)
    for turn in model.game().stages[-1].turns:
        assert isinstance(turn, Descent)
        own = {id(p) for player in turn.players for p in player.parameters}
        before = {name: value.clone() for name, value in model.state_dict().items()}
        play = Play(model, Game([Stage([replace(turn, batches=1)], rounds=1)]))
        list(play.rounds(stream_of(model, x, y), lambda clock: 0.0))
        moved = {
            name for name, value in model.named_parameters() if not torch.equal(before[name], value)
        }
        assert moved
        assert all(id(model.get_parameter(name)) in own for name in moved)
        changed = {n for n, v in model.state_dict().items() if not torch.equal(before[n], v)}
        # What the encoder normalises with stays, too, where the encoder is only looked at.
        assert turn.players[0].name != "critic" or changed == moved


@pytest.mark.parametrize("form", FORMS)
def test_every_form_samples_rebuilds_and_says_how_it_fares(form):
    model = made(form)
    x, y = some(model)
    with played(model, x, y, 5).averaged():
        labels = None if model.condition_space is None else y[:9]
        drawn = model.sample(9, condition=labels, generator=seeded())
        assert model.space.contains(drawn)
        code = model.encode(x[:9], condition=labels)
        assert model.code_space.contains(code)
        assert model.space.contains(model.decode(code, condition=labels))
        assert model.anomaly_score(x).shape == (200,)
        told = model.diagnose(x, condition=None if model.condition_space is None else y)
        assert all(math.isfinite(value) for value in told.values())
        chances = model.predict(x[:9])
        assert chances.shape == (9, 3 if form == "semi-supervised" else 1)


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("form", ["gaussian", "semi-supervised"])
def test_every_space_is_learned(space, form):
    model = made(form, space)
    x, y = some(model, 60)
    with played(model, x, y, 4).averaged():
        assert space.contains(model.sample(5, generator=seeded()))
        assert space.contains(model.decode(model.encode(x)))


def test_critics_that_cannot_tell_have_the_losses_of_a_coin():
    for form, critics in (("gaussian", 1), ("semi-supervised", 2)):
        model = made(form)
        with torch.no_grad():
            for critic in model._critics:
                critic[-1].weight.zero_()
                critic[-1].bias.zero_()
        x, y = some(model, 16)
        look = model.critic_loss(Batch(x, y), noise(16), Clock())
        assert look.value.item() == pytest.approx(critics * 2 * math.log(2), abs=1e-6)
        hide = model.hiding_loss(Batch(x, y), noise(16), Clock())
        assert hide.value.item() == pytest.approx(critics * math.log(2), abs=1e-6)


def test_the_priors_are_what_they_are_called():
    z = made("gaussian")._prior_style(noise(50_000))
    torch.testing.assert_close(torch.cov(z.T), torch.eye(3), atol=0.03, rtol=0)
    model = made("clusters")
    classes = model._prior_classes(noise(50_000))
    assert torch.equal(classes.sum(1), torch.ones(50_000))
    assert float((classes.mean(0) - 1 / 4).abs().max()) < 0.01
    # Class and style of one row must not depend on one another.
    shared = noise(50_000)
    style, classes = model._prior_style(shared), model._prior_classes(shared)
    means = (classes.T @ style) / classes.sum(0)[:, None]
    assert float(means.abs().max()) < 0.05


def test_a_gaussian_posterior_has_the_width_it_says():
    model = made("gaussian posterior").eval()
    x = model.space.random(1, seeded()).expand(20_000, -1, -1, -1)
    code = model._encoded(model.door.numbers(x))
    drawn = code.style(noise(20_000))
    torch.testing.assert_close(drawn.mean(0), code.mean[0], atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.std(0), code.log_scale[0].exp(), rtol=0.03, atol=0)


def states(model, x, y, rounds=8):
    played(model, x, y, rounds)
    return model.state_dict()


def test_hidden_labels_change_nothing():
    model = made("semi-supervised")
    x, y = some(model)
    keys = content_numbers(x, model.config.label_seed)
    shown = torch.argsort(keys)[: model.config.labelled]
    hidden = torch.ones(len(x), dtype=torch.bool)
    hidden[shown] = False
    other = torch.where(hidden, (y + 1) % 3, y)
    assert (other != y).sum() == len(x) - model.config.labelled
    first, second = states(model, x, y), states(made("semi-supervised"), x, other)
    assert all(torch.equal(first[name], second[name]) for name in first)
    one = y.clone()
    one[shown[0]] = (one[shown[0]] + 1) % 3
    third = states(made("semi-supervised"), x, one)
    assert not torch.equal(first["encoder.0.weight"], third["encoder.0.weight"])


def test_shown_rows_are_a_function_of_their_content():
    model = made("semi-supervised")
    x, y = some(model)
    order = torch.randperm(len(x), generator=seeded(1))
    kept = []
    for which in (torch.arange(len(x)), order):
        played(model, x[which], y[which], 2)
        assert torch.equal(model.shown_labels, y[_places(model, x)])
        kept.append(model.shown.clone())
    assert torch.equal(kept[0], kept[1])
    other = made("semi-supervised", label_seed=1)
    played(other, x, y, 2)
    assert not torch.equal(other.shown, kept[0])


def test_rows_that_are_alike_are_shown_once():
    model = made("semi-supervised", Images(1, 2, 2, 2), labelled=10)
    x, y = some(model)
    played(model, x, y, 2)
    assert len(model.shown.unique(dim=0)) == 10


def _places(model, x):
    """Where the shown rows stand in x."""
    same = (model.shown[:, None] == model.door.numbers(x)[None]).all(2)
    assert (same.sum(1) == 1).all()
    return same.long().argmax(1)


@pytest.mark.parametrize("space", [Images(1, 28, 28), Images(1, 4, 4, 2), Vectors(3)], ids=str)
def test_numbers_of_contents_are_spread_evenly(space):
    x = space.random(4000, seeded())
    numbers = content_numbers(x, 0)
    distinct = len(x.flatten(1).unique(dim=0))
    assert len(numbers.unique()) == distinct
    for bit in (0, 20, 40, 62):
        share = ((numbers >> bit) & 1).double().mean()
        assert float(share) == pytest.approx(0.5, abs=0.05)


def test_a_few_labels_name_all_the_data():
    """Two pictures with noise, twelve labels shown: the rest are predicted, and samples are like them."""
    space, labels = Images(1, 6, 6, 2), Labels(2)
    pictures = torch.zeros(2, 1, 6, 6, dtype=torch.uint8)
    pictures[0, :, :3], pictures[1, :, 3:] = 1, 1
    y = torch.arange(600) % 2
    flipped = torch.rand(600, 1, 6, 6, generator=seeded()) < 0.1
    x = pictures[y] ^ flipped.to(torch.uint8)
    settings = SEMI | {"labelled": 12, "hidden": 32, "batch_size": 32}
    torch.manual_seed(0)
    model = AAE(space, Config(**settings), condition=labels)
    with played(model, x, y, 200).averaged():
        right = model.predict(x).argmax(1) == y
        drawn = model.sample(100, condition=y[:100], generator=seeded())
    assert float(right.double().mean()) > 0.97
    alike = (drawn[:, None] == pictures).double().mean((2, 3, 4)).amax(1)
    assert float(alike.mean()) > 0.85


def test_codes_come_to_look_like_the_prior():
    x = torch.randn(2000, 3, generator=seeded()) * torch.tensor([3.0, 1.0, 0.3]) + 5
    settings = {"code": 2, "hidden": 32, "critic_hidden": 32, "batch_size": 100}
    torch.manual_seed(0)
    model = AAE(Vectors(3), Config(**settings, adversarial_rate=2e-3))
    key = "codes told from the prior (accuracy of neighbours)"
    before = model.diagnose(x[:1000])[key]
    with played(model, x, None, 400).averaged():
        after = model.diagnose(x[:1000])[key]
    assert before > 0.7
    assert after < 0.58


def test_a_supervised_score_is_that_of_the_best_label():
    model = made("supervised").eval()
    x, _ = some(model, 6)
    each = [model._errors_of(x, torch.full((6,), label)) for label in range(3)]
    assert torch.equal(model.anomaly_score(x), torch.stack(each).amin(0))


@pytest.mark.parametrize(
    ("settings", "labels", "code"),
    [
        ({"prior": "mixture", "code": 3}, None, "CFG-160"),
        ({"prior": "categorical-gaussian", "labelled": 10}, None, "CFG-161"),
        ({"labelled": 10}, Labels(3), "CFG-162"),
    ],
)
def test_contradictions_are_refused(settings, labels, code):
    with pytest.raises(Refusal) as refusal:
        AAE(Vectors(3), Config(**settings), condition=labels)
    assert refusal.value.code == code


def test_more_labels_than_rows_are_refused():
    model = made("semi-supervised", labelled=500)
    with pytest.raises(Refusal) as refusal:
        played(model, *some(model), 2)
    assert refusal.value.code == "CFG-163"
