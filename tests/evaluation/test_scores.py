"""Anomaly scores against what they must be, and alarms that hold their promise."""

import math

import pytest
import torch
from torch import nn

from simulacra.contract import Decoder, Density, Encoder, Kind, Sampler
from simulacra.evaluation.code_length import code_length
from simulacra.evaluation.conformal import Calibration
from simulacra.evaluation.scores import (
    SCORES,
    able,
    default_score,
    make_score,
)
from simulacra.games import Batch
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Vectors


class Gaussian(nn.Module, Density, Encoder, Decoder):
    """A Gaussian of known width whose code leaves out every second entry."""

    kind = Kind.EXACT
    condition_space = None
    code_space = Vectors(2)

    def __init__(self, scale=1.0):
        super().__init__()
        self.space, self.scale = Vectors(4), scale

    def log_prob(self, x, *, condition=None, generator=None):
        return torch.distributions.Normal(0.0, self.scale).log_prob(x).sum(1)

    def encode(self, x, *, condition=None):
        return x[:, ::2]

    def decode(self, code, *, condition=None):
        return torch.stack([code, torch.zeros_like(code)], 2).flatten(1)


class Silent(nn.Module, Sampler):
    """Draws, and says nothing."""

    def sample(self, num_samples, *, condition=None, generator=None):
        return torch.zeros(num_samples, 4)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def clean(count=4000, seed=0):
    return Batch(torch.randn((count, 4), generator=draw(seed)))


def test_scores_are_what_they_are_defined_as():
    model, x = Gaussian(), clean(50, 1).x
    log_prob = model.log_prob(x).double()
    entropy = 2 * math.log(2 * math.pi * math.e)
    scored = {
        name: make_score(name, model, background=Gaussian(scale=3.0)).fit(clean(), draw())
        for name in able(model)
        if name != "complexity"
    }
    found = {name: score.of(Batch(x), draw()) for name, score in scored.items()}
    torch.testing.assert_close(found["likelihood"], -log_prob)
    torch.testing.assert_close(
        found["typicality"], (-log_prob - entropy).abs(), atol=0.1, rtol=0.05
    )
    wide = Gaussian(scale=3.0).log_prob(x).double()
    torch.testing.assert_close(found["ratio"], wide - log_prob)
    torch.testing.assert_close(found["reconstruction"], x[:, 1::2].double().square().sum(1))
    torch.testing.assert_close(
        found["latent"], x[:, ::2].double().square().sum(1), atol=0.1, rtol=0.1
    )


def test_noise_is_longer_to_write_down_than_a_blank():
    space = Images(1, 28, 28)
    noise = space.random(1, draw())[0]
    blank, half = torch.zeros_like(noise), noise.clone()
    half[:, 14:] = 0
    lengths = [code_length(one, space) for one in (blank, half, noise)]
    assert lengths[0] < lengths[1] < lengths[2]
    # Noise cannot be written shorter than its entropy, and a good code comes near it.
    assert 28 * 28 * math.log(256) <= lengths[2] < 1.05 * 28 * 28 * math.log(256)


def test_what_a_model_cannot_say_is_refused():
    assert able(Silent()) == []
    with pytest.raises(Refusal, match="no likelihood"):
        default_score(Silent())
    with pytest.raises(Refusal, match="allows no own score"):
        make_score("own", Gaussian())
    with pytest.raises(Refusal, match="there is no score"):
        make_score("magic", Gaussian())
    with pytest.raises(Refusal, match="second model"):
        make_score("ratio", Gaussian())
    assert default_score(Gaussian()) == "likelihood"
    assert set(able(Gaussian())) < set(SCORES)


def test_alarms_hold_their_share():
    """Over many calibrations, the share of false alarms is the one that was asked for, or less."""
    shares = {0.01: [], 0.05: [], 0.2: []}
    for seed in range(400):
        stream = draw(seed)
        calibration = Calibration(torch.randn(150, generator=stream).exp())
        new = torch.randn(200, generator=stream).exp()
        for share, seen in shares.items():
            alarms = calibration.alarms(new, share)
            seen.append(float(alarms.double().mean()))
            assert torch.equal(alarms, calibration.p_values(new) <= share)
    for share, seen in shares.items():
        mean = sum(seen) / len(seen)
        # k / (n + 1) with k = floor(share (n + 1)), and its own Monte Carlo error.
        exact = math.floor(share * 151) / 151
        assert mean == pytest.approx(
            exact, abs=4 * math.sqrt(share * (1 - share) / 151 / 400) * 1.5
        )
        assert mean <= share + 4 * math.sqrt(share / 151 / 400) * 1.5


def test_a_promise_that_cannot_be_held_is_refused():
    with pytest.raises(Refusal, match="at least 99 clean data"):
        Calibration(torch.rand(50)).threshold(0.01)
    with pytest.raises(Refusal, match="false alarms"):
        Calibration(torch.rand(50)).threshold(1.5)
