"""Straight paths: the ODE of a Gaussian is known, and so are its solution and its density."""

import math

import pytest
import torch

from simulacra.probability import straight_paths
from simulacra.probability.straight_paths import log_density, solved, times

ROOT = torch.tensor([[0.5, 0.0, 0.0], [0.4, 0.3, 0.0], [-0.6, 0.2, 1.5]], dtype=torch.float64)
MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


def field(x, t):
    """E[x_1 - x_0 | x_t] for x_1 ~ N(MEAN, ROOT ROOT^T), by the rule for jointly normal variables."""
    covariance = ROOT @ ROOT.T
    here = t * t * covariance + (1 - t) ** 2 * torch.eye(3, dtype=torch.float64)
    gain = torch.linalg.solve(here, t * covariance - (1 - t) * torch.eye(3, dtype=torch.float64))
    return MEAN + (x - t * MEAN) @ gain


def test_what_the_network_says_gives_the_path_back():
    x0, x1 = normal(2, 50, 3)
    t = torch.rand(50, dtype=torch.float64, generator=seeded(1))
    x = straight_paths.placed(x0, x1, t)
    s = straight_paths.scale(x, t)
    told = s * (x1 - x0 - (2 * t - 1)[:, None] / s.square() * x)
    torch.testing.assert_close(straight_paths.velocity(told, x, t), x1 - x0)
    torch.testing.assert_close(straight_paths.origin(told, x, t), x1)
    torch.testing.assert_close(x + (1 - t)[:, None] * (x1 - x0), x1)


@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_network_reads_and_says_numbers_of_variance_one(t):
    x0, x1 = normal(2, 100_000, 1)
    at = torch.full((100_000,), t, dtype=torch.float64)
    x = straight_paths.placed(x0, x1, at)
    s = straight_paths.scale(x, at)
    told = s * (x1 - x0 - (2 * t - 1) / s.square() * x)
    for number in (x / s, told):
        assert float(number.var()) == pytest.approx(1, abs=0.02)
    assert float((told * x).mean()) == pytest.approx(0, abs=0.02)


def test_at_the_end_the_origin_is_the_datum_whatever_the_network_says():
    x = normal(9, 3)
    assert torch.equal(straight_paths.origin(1e6 * normal(9, 3, seed=1), x, torch.ones(9)), x)


@pytest.mark.parametrize(
    ("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)]
)
def test_solvers_have_their_order(solver, order):
    def bent(x, t):
        return torch.sin(3 * x) + t * t

    x0 = normal(20, 3)
    exact = solved(bent, x0, times(400), "rk4")
    errors = [
        float((solved(bent, x0, times(steps), solver) - exact).abs().max()) for steps in (20, 40)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.35)
    back = solved(bent, exact, times(400)[::-1], "rk4")
    torch.testing.assert_close(back, x0, rtol=0, atol=1e-6)


def test_the_ode_has_the_targets_mean_and_covariance():
    x0 = normal(20_000, 3)
    x1 = solved(field, x0, times(50, "cosine"), "rk4")
    torch.testing.assert_close(x1.mean(0), MEAN, rtol=0, atol=0.04)
    torch.testing.assert_close(torch.cov(x1.T), ROOT @ ROOT.T, rtol=0.05, atol=0.03)


def test_the_density_is_the_targets():
    target = torch.distributions.MultivariateNormal(MEAN, scale_tril=ROOT)
    x = MEAN + normal(30, 3) @ ROOT.T
    path = times(60, "cosine")[::-1]
    found = log_density(field, x, path, "rk4", None)
    torch.testing.assert_close(found, target.log_prob(x), rtol=0, atol=1e-4)
    signs = [log_density(field, x, path, "heun", normal(30, 3, seed=s).sign()) for s in range(60)]
    mean, spread = torch.stack(signs).mean(0), torch.stack(signs).std(0) / 60**0.5
    assert float(spread.max()) > 1e-3, "the probes did nothing"
    assert float(((mean - found).abs() - 4.5 * spread).max()) < 0.01


def test_images_keep_their_shape_on_the_way_to_a_density():
    x = normal(4, 1, 2, 3)
    told = log_density(
        lambda y, t: (2 * t - 1) / (t * t + (1 - t) ** 2) * y, x, times(40)[::-1], "rk4", None
    )
    wanted = -0.5 * (x.square() + math.log(2 * math.pi)).flatten(1).sum(1)
    torch.testing.assert_close(told, wanted, rtol=0, atol=1e-5)
