"""VDM: the bound does not depend on the schedule, and what is learnt makes its estimate steadier."""

import math

import pytest
import torch

from simulacra.games import Batch, Clock
from simulacra.models.diffusion.vdm import BINS, LOWEST, VDM, Config
from simulacra.probability.diffusion import levels_log_prob
from simulacra.probability.noise import BatchNoise
from simulacra.spaces import Images

SPACE = Images(1, 3, 3, 4)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def made(**more):
    """A model of weights that mean nothing, but none of them nought."""
    model = VDM(SPACE, Config(channels=8, blocks=1, bound_steps=40, **more)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded(parameter.numel())))
    return model


def test_the_schedule_goes_from_end_to_end_at_the_rate_it_says():
    model = made()
    model.fourth.copy_(torch.rand(BINS, generator=seeded()) ** 3)
    places = torch.linspace(0, 1, 4001, dtype=torch.float64)
    log_snr, rate = model._drawn(places)
    assert [float(log_snr[0]), float(log_snr[-1])] == pytest.approx([model.highest, LOWEST])
    assert bool((log_snr.diff() < 0).all())
    slope = -log_snr.diff() / places.diff()
    inner = (rate[1:] == rate[:-1]).nonzero().squeeze(1)
    torch.testing.assert_close(slope[inner], rate[:-1][inner], rtol=1e-6, atol=1e-6)
    # Bins are visited as the square roots of the fourth moments, but for the tenth that is even.
    root = model.fourth.sqrt()
    spent = torch.histc((model.highest - log_snr).float(), BINS, 0, model.highest - LOWEST) / 4001
    torch.testing.assert_close(
        spent.double(), 0.9 * root / root.sum() + 0.1 / BINS, atol=1e-3, rtol=0
    )


def test_the_bound_is_one_and_the_learned_schedule_makes_it_steadier():
    learned, linear = made(), made(schedule="linear")
    linear.load_state_dict(learned.state_dict())
    x = SPACE.random(1, seeded()).expand(150, -1, -1, -1)
    for index in range(25):
        learned.look(iter([Batch(x)]), BatchNoise(seeded(index), 150), Clock())
    with torch.no_grad():
        found, plain = (one.log_prob(x, generator=seeded(9)) for one in (learned, linear))
        losses = [
            one.diffusion_loss(Batch(x), BatchNoise(seeded(5), 150), Clock())
            for one in (learned, linear)
        ]
    error = math.sqrt(float(found.var() + plain.var()) / 150)
    assert float(found.mean()) == pytest.approx(float(plain.mean()), abs=5 * error)
    assert error < 0.02 * abs(float(plain.mean()))
    assert float(losses[0].numbers["deviation"]) < 0.8 * float(losses[1].numbers["deviation"])


def test_levels_are_told_by_bayes_rule():
    y = torch.tensor([-1.2, 0.1, 0.7], dtype=torch.float64)
    told = torch.stack([levels_log_prob(torch.full((3,), k), y, 0.3, 4) for k in range(4)])
    grid = torch.tensor([-1, -1 / 3, 1 / 3, 1], dtype=torch.float64)
    weights = torch.distributions.Normal(grid[:, None], 0.3).log_prob(y).exp()
    torch.testing.assert_close(told.exp(), weights / weights.sum(0))
