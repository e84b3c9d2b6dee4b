"""Learned noise: a proper density on every cell, the same masses as uniform noise, a tighter bound."""

import math

import pytest
import torch

from simulacra.layers.dequantiser import VariationalNoise
from simulacra.layers.flow import Flow
from simulacra.models.flows.glow import Config as GlowConfig
from simulacra.models.flows.glow import Glow
from simulacra.models.flows.realnvp import Config, RealNVP
from simulacra.probability.noise import BatchNoise
from simulacra.spaces import Images


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch_noise(rows):
    return BatchNoise(seeded(1), rows)


def rough(space):
    part = VariationalNoise(space, hidden=8).double()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=seeded(3)))
    return part


@pytest.mark.parametrize("space", [Images(1, 2, 2, 5), Images(2, 1, 3, 3)], ids=str)
def test_noise_stays_inside_its_cell_and_its_density_is_that_of_its_histogram(space):
    part = rough(space)
    x = space.random(1, seeded()).expand(40_000, *space.shape)
    y, minus_log_q = part(x, batch_noise(40_000))
    u = (y - x).flatten(1)
    assert u.min() >= 0
    assert u.max() <= 1
    # The mean of 1 / q over draws from q is the volume of the cell: 1.
    each = minus_log_q.exp()
    assert float(each.mean()) == pytest.approx(1.0, abs=4 * float(each.std()) / 200)
    assert (u.mean(0) - 0.5).abs().max() > 0.02, "this noise has been moved away from uniform"


def test_it_starts_nearly_uniform():
    part = VariationalNoise(Images(1, 4, 4))
    x = part(Images(1, 4, 4).random(4000, seeded()), batch_noise(4000))
    # The mean of log q is the divergence from a uniform, in nats: 16 entries together.
    assert 0 < float(-x[1].mean()) < 16 * 0.02


def test_masses_do_not_depend_on_the_noise():
    """p(x) = E[p(x + u) / q(u | x)] for any q: both estimates come to the same numbers."""
    space = Images(1, 2, 2, levels=3)
    torch.manual_seed(0)
    model = RealNVP(space, Config(couplings=2, hidden=8, blocks=1, dequantisation="variational"))
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    plain = Flow(space, None, model.flow.bijection).double()
    assert plain.door.noise is None
    x = space.random(1, seeded()).expand(20_000, *space.shape)
    with torch.no_grad():
        learned = model.flow.log_prob(x, None, seeded(1)).exp()
        uniform = plain.log_prob(x, None, seeded(2)).exp()
    error = float((learned.var() + uniform.var()).sqrt()) / math.sqrt(len(x))
    assert float(learned.mean()) == pytest.approx(float(uniform.mean()), abs=4 * error)
    assert 4 * error < 0.2 * float(uniform.mean()), "a test that could not fail"


def test_on_a_constant_background_it_saves_what_a_gaussian_pays_for_a_box():
    """A Gaussian of every entry, on one level: uniform noise costs 0.5 ln(2 pi e / 12)."""
    box = 0.5 * math.log(2 * math.pi * math.e / 12)
    space = Images(1, 2, 2, levels=4)
    x = torch.full((256, 1, 2, 2), 2, dtype=torch.uint8)
    cost = {}
    for kind in ("uniform", "variational"):
        torch.manual_seed(0)
        config = GlowConfig(
            scales=1, steps=1, hidden=4, dequantisation=kind, alpha=0.05, least_scale=1e-3
        )
        model = Glow(space, config)
        noise = batch_noise(256)
        model.flow.start([x], [None], noise)
        if kind == "variational":
            optimiser = torch.optim.Adam(model.parameters(), 0.02)
            for _ in range(250):
                optimiser.zero_grad()
                model.flow.loss(x, None, noise).backward()
                optimiser.step()
        cost[kind] = float(model.flow.loss(x, None, noise))
    assert cost["uniform"] == pytest.approx(box, abs=0.03)
    assert cost["variational"] < 0.25 * box
