"""Modes of stacked digits and of known mixtures, and what a perfect model gets of them by chance."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from simulacra.contract import Encoder
from simulacra.data.open import open_data
from simulacra.evaluation.case import Case
from simulacra.evaluation.features import FeatureNet, learn_judge
from simulacra.evaluation.measure import Provenance
from simulacra.evaluation.modes import (
    COUNT,
    DIVERGENCE,
    QUALITY,
    Modes,
    expected_divergence,
    expected_reached,
    reverse_divergence,
)
from simulacra.evaluation.networks import ChannelClassifier
from simulacra.evaluation.representation import Representation
from simulacra.probability.mixtures import RoundMixture
from simulacra.spaces import Images, Labels, Vectors


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("count", [5, 40, 400])
def test_chance_is_what_a_perfect_model_gets(count):
    shares = torch.tensor([0.5, 0.2, 0.2, 0.06, 0.04, 0.0]).double()
    reached, divergence = [], []
    for seed in range(2000):
        drawn = torch.multinomial(shares, count, replacement=True, generator=stream(seed))
        counts = torch.bincount(drawn, minlength=6)
        reached.append(float((counts > 0).sum()))
        divergence.append(reverse_divergence(counts, shares))
    for values, expected in (
        (torch.tensor(reached), expected_reached(shares, count)),
        (torch.tensor(divergence), expected_divergence(shares, count)),
    ):
        assert float(values.mean()) == pytest.approx(
            expected, abs=5 * float(values.std()) / 2000**0.5 + 1e-6
        )


def test_chance_of_many_samples_is_the_published_formula():
    uniform = torch.full((1000,), 1e-3)
    assert expected_divergence(uniform, 26_000) == pytest.approx(999 / 52_000, rel=0.01)
    assert expected_divergence(torch.ones(1), 50) == pytest.approx(0, abs=1e-12)


def test_samples_of_a_known_mixture():
    centres = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    truth = RoundMixture.equal(centres, 0.05)
    x = torch.cat([centres[:1].repeat(30, 1), centres[1:2].repeat(60, 1), torch.full((10, 2), 9.0)])
    found = {one.name: one for one in Modes.of_truth(truth, x, Provenance())}
    assert found[COUNT].value == 2
    assert found[COUNT].unit == "of 3"
    assert found[QUALITY].value == pytest.approx(0.9)
    assert found[QUALITY].floor == pytest.approx(1 - math.exp(-4.5))
    third = math.log(3)
    assert found[DIVERGENCE].value == pytest.approx(
        third + (math.log(1 / 3) + 2 * math.log(2 / 3)) / 3
    )
    perfect = {
        one.name: one for one in Modes.of_truth(truth, truth.sample(500, stream()), Provenance())
    }
    assert perfect[QUALITY].low < perfect[QUALITY].floor < perfect[QUALITY].high
    assert perfect[DIVERGENCE].value < 5 * perfect[DIVERGENCE].floor


def test_a_combination_is_as_likely_as_its_channels_together():
    space, labels = Images(2, 4, 4, levels=4), Labels(9, channel_classes=3)
    net = FeatureNet(space, "classifier", ChannelClassifier(space, labels).eval(), labels)
    x = space.random(5, stream())
    with torch.no_grad():
        one, two = (
            torch.softmax(net.network.single(x[:, channel : channel + 1]), 1) for channel in (0, 1)
        )
    expected = torch.einsum("ni,nj->nij", one, two).flatten(1)
    assert torch.allclose(net.probabilities(x), expected, atol=1e-6)
    swapped = net.probabilities(x.flip(1)).reshape(5, 3, 3).transpose(1, 2).flatten(1)
    assert torch.allclose(swapped, expected, atol=1e-6)
    assert net.features(x).shape == (5, net.dimension) == (5, 128)


def test_the_judge_of_stacks_knows_all_thousand_from_few_digits(tmp_path):
    """More modes than it saw digits: what it knows of a channel serves every combination."""
    data = open_data("stacked-digits")
    judge = learn_judge(
        data.space, valid=data.valid.first(700), test=data.test.first(500), labels=data.labels
    )
    assert judge.accuracy > 0.9
    judge.save(tmp_path / "judge")
    again = FeatureNet.load(tmp_path / "judge")
    x = data.test.first(20).x
    assert torch.equal(again.probabilities(x), judge.probabilities(x))
    real, other = (
        judge.probabilities(part.first(2000).x).argmax(1) for part in (data.test, data.valid)
    )
    shares = torch.full((1000,), 1e-3)
    found = {
        one.name: one
        for one in Modes(1000, shares=shares).update(samples=real, real=other).compute()
    }
    assert found[COUNT].value == pytest.approx(found[COUNT].floor, rel=0.03)
    assert found[DIVERGENCE].value == pytest.approx(found[DIVERGENCE].floor, rel=0.25)


def test_codes_of_stacks_are_asked_for_the_first_channel():
    """Codes that hold the first digit alone are perfect; a thousand combinations cannot be read."""
    data = open_data("stacked-digits")

    class FirstDigit(nn.Module, Encoder):
        condition_space, code_space = None, Vectors(10)

        def __init__(self):
            super().__init__()
            self.seen = {}

        def encode(self, x, *, condition=None):
            first = [self.seen[row.numpy().tobytes()] for row in x]
            return functional.one_hot(torch.tensor(first), 10).float()

    model, parts = FirstDigit(), {}
    for name in ("train", "valid", "test"):
        parts[name] = getattr(data, name).first(300)
        for x, label in zip(parts[name].x, parts[name].condition, strict=True):
            model.seen[x.numpy().tobytes()] = int(label) // 100
    case = Case(
        model=model,
        space=data.space,
        features=None,
        seed=0,
        seconds=9.0,
        labels=data.labels,
        **parts,
    )
    found = {one.name: one for one in Representation.read(case)}
    assert found["linear probe"].value == 1
    assert found["clusters, Rand index"].value > 0.9
    assert "first channel" in found["linear probe"].how
