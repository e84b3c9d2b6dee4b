"""Priors of the plane have the moments that their formulas say, and neighbours tell samples apart."""

import math

import pytest
import torch

from simulacra.probability.noise import BatchNoise
from simulacra.probability.priors import petals, swiss_roll
from simulacra.probability.two_sample import neighbour_accuracy

COUNT = 200_000


def drawn(prior, seed=0):
    noise = BatchNoise(torch.Generator().manual_seed(seed), COUNT)
    return prior(noise.uniform(), noise.normal(2)).double()


def test_petals_have_their_moments():
    """Mean 0; a variance of (1.4^2 + 0.5^2 + 0.1^2) / 2 both ways, as ten directions are all alike."""
    z = drawn(petals)
    variance = (1.4**2 + 0.5**2 + 0.1**2) / 2
    assert z.mean(0).abs().max() < 0.01
    torch.testing.assert_close(torch.cov(z.T), variance * torch.eye(2).double(), atol=0.01, rtol=0)


def test_a_petal_points_outwards():
    z = drawn(petals)
    angle = torch.atan2(z[:, 1], z[:, 0])
    petal = (angle / (2 * math.pi / 10)).round()
    turned = angle - petal * (2 * math.pi / 10)
    far = z.norm(dim=1) > 1
    across = (z.norm(dim=1) * turned.sin())[far]
    outwards = (z.norm(dim=1) * turned.cos())[far]
    assert float(across.std()) == pytest.approx(0.1, rel=0.05)
    assert float(outwards.mean()) == pytest.approx(1.4, abs=0.2)
    shares = torch.bincount((petal[far] % 10).long(), minlength=10) / far.sum()
    assert float((shares - 0.1).abs().max()) < 0.01


def test_the_swiss_roll_has_its_moments():
    """r^2 / 9 is uniform, and the means are integrals over u, here sums over a fine grid."""
    z = drawn(swiss_roll)
    u = (torch.arange(100_000).double() + 0.5) / 100_000
    r, angle = 3 * u.sqrt(), 4 * math.pi * u.sqrt()
    line = torch.stack([r * angle.cos(), r * angle.sin()], 1)
    torch.testing.assert_close(z.mean(0), line.mean(0), atol=0.02, rtol=0)
    expected = torch.cov(line.T) + 0.05**2 * torch.eye(2).double()
    torch.testing.assert_close(torch.cov(z.T), expected, atol=0.03, rtol=0)
    square = z.square().sum(1) / 9
    for share in (0.25, 0.5, 0.75):
        assert float((square < share).double().mean()) == pytest.approx(share, abs=0.01)


def test_neighbours_tell_what_differs_and_nothing_else():
    draw = torch.Generator().manual_seed(0)
    first, second, other = (torch.randn(1000, 3, generator=draw) for _ in range(3))
    assert neighbour_accuracy(first, second) == pytest.approx(0.5, abs=0.04)
    assert neighbour_accuracy(first, other + 10) == 1
    # Phi(shift / 2) is the best that any rule can do.
    best = float(torch.special.ndtr(torch.tensor(1.0)))
    moved = other + torch.tensor([2.0, 0, 0])
    assert neighbour_accuracy(first, moved) == pytest.approx(best, abs=0.04)
    narrow = neighbour_accuracy(first, 0.5 * second)
    assert narrow > 0.6


def test_two_samples_that_are_the_same_points_are_not_told_apart():
    x = torch.zeros(50, 2)
    assert neighbour_accuracy(x, x) == 0.5
