"""Means of image heads against sums over all levels."""

import pytest
import torch

from simulacra.layers.heads import ImageHead
from simulacra.probability.distributions import (
    discretised_logistic_log_prob,
    discretised_logistic_mean,
)
from simulacra.spaces import Images

CASES = [("bernoulli", 2), ("categorical", 17), ("discretised-logistic", 17)]


@pytest.mark.parametrize(("kind", "levels"), CASES)
def test_a_mean_is_the_sum_over_levels_to_the_nearest(kind, levels):
    space = Images(1, 1, 1, levels=levels)
    head = ImageHead(space, kind)
    raw = 2 * torch.randn(200, head.outputs, generator=torch.Generator().manual_seed(0))
    every = [torch.full((200, 1, 1, 1), level) for level in range(levels)]
    with torch.no_grad():
        masses = torch.stack([head.log_prob(x, raw).exp() for x in every])
        means = head.mean(raw)
    exact = torch.arange(levels, dtype=masses.dtype) @ masses
    assert torch.allclose(masses.sum(0), torch.ones(200), atol=1e-4)
    assert space.contains(means)
    # To the nearest level, and the little that an integral in place of a sum is off.
    assert ((means.flatten() - exact).abs() < 0.52).all()


def test_a_discretised_logistic_mean_is_near_the_sum():
    levels, mean = 256, torch.linspace(-1.5, 1.5, 301, dtype=torch.float64)
    for log_scale in (-7.0, -4.0, -2.0, 0.0):
        scale = torch.full_like(mean, log_scale)
        masses = torch.stack(
            [
                discretised_logistic_log_prob(torch.tensor(x), mean, scale, levels).exp()
                for x in range(levels)
            ]
        )
        exact = (torch.arange(levels, dtype=torch.float64) @ masses).squeeze()
        near = discretised_logistic_mean(mean, scale, levels)
        assert (near - exact).abs().max() < 0.5
        if log_scale > -5:
            assert (near - exact).abs().max() < 0.02
