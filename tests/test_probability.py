"""Formulas against brute force, autograd and Monte Carlo."""

import math

import pytest
import torch

from simulacra.probability.bounds import importance_weighted
from simulacra.probability.dequantisation import dequantised, from_logits, quantised, to_logits
from simulacra.probability.distributions import (
    bernoulli_draw,
    categorical_draw,
    discretised_logistic_draw,
    discretised_logistic_log_prob,
    gaussian_kl,
    gaussian_log_prob,
    held_log_scale,
    logistic_mixture_draw,
    logistic_mixture_log_factors,
)
from simulacra.probability.noise import BatchNoise, RowNoise, mixed, row_noise, scoring_noise
from simulacra.probability.quantiles import from_normal_scores, to_normal_scores
from simulacra.probability.units import bits_per_dimension
from simulacra.spaces import Images


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("levels", [2, 3, 17, 256])
@pytest.mark.parametrize("log_scale", [-7.0, -3.0, 0.0, 2.0])
def test_a_discretised_logistic_sums_to_one(levels, log_scale):
    x = torch.arange(levels)
    for mean in (-1.3, -1.0, 0.0, 0.11, 1.0):
        value = discretised_logistic_log_prob(
            x, torch.tensor(mean).double(), torch.tensor(log_scale).double(), levels
        )
        assert float(value.exp().sum()) == pytest.approx(1, abs=1e-9)


def test_discretised_logistic_draws_agree():
    mean, log_scale = torch.tensor(0.2), torch.tensor(-1.0)
    draws = discretised_logistic_draw(mean, log_scale, torch.rand(100_000, generator=seeded()), 5)
    shares = torch.bincount(draws, minlength=5) / 100_000
    expected = discretised_logistic_log_prob(torch.arange(5), mean, log_scale, 5).exp()
    torch.testing.assert_close(shares, expected, atol=6e-3, rtol=0)


def mixture_of_three(channels, seed=0):
    """logits (3,), means and log-scales (channels, 3) of a mixture that all channels share."""
    draw = seeded(seed)
    logits = torch.randn(3, generator=draw, dtype=torch.float64)
    mean = torch.randn(channels, 3, generator=draw, dtype=torch.float64)
    return logits, mean, torch.randn(channels, 3, generator=draw, dtype=torch.float64) - 2


@pytest.mark.parametrize("seed", range(5))
def test_a_logistic_mixture_sums_to_one(seed):
    logits, mean, log_scale = mixture_of_three(1, seed)
    factors = logistic_mixture_log_factors(
        torch.arange(256).unsqueeze(1), logits, mean, log_scale, 256
    )
    assert float(factors.exp().sum()) == pytest.approx(1, abs=1e-9)


def test_the_factors_of_a_shared_mixture_are_ratios_of_its_sums():
    logits, mean, log_scale = mixture_of_three(3)
    weights = torch.softmax(logits, 0)
    x = torch.cartesian_prod(*[torch.arange(4)] * 3)
    parts = [
        [discretised_logistic_log_prob(x[:, c], mean[c, k], log_scale[c, k], 4) for k in range(3)]
        for c in range(3)
    ]
    before = torch.ones(len(x), dtype=torch.float64)
    factors = logistic_mixture_log_factors(x, logits, mean, log_scale, 4)
    for c in range(3):
        up_to = sum(
            weights[k] * torch.stack([parts[i][k] for i in range(c + 1)]).sum(0).exp()
            for k in range(3)
        )
        torch.testing.assert_close(factors[:, c], (up_to / before).log())
        before = up_to
    assert float(factors.sum(1).exp().sum()) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_a_logistic_mixture_are_finite_far_from_it(dtype):
    x = torch.tensor([0, 1, 128, 254, 255]).unsqueeze(1)
    for far in (-1e3, -50.0, 0.0, 50.0, 1e3):
        for spread in (-7.0, 0.0, 30.0):
            given = [torch.zeros(3), torch.full((1, 3), far), torch.full((1, 3), spread)]
            given = [one.to(dtype).requires_grad_() for one in given]
            factors = logistic_mixture_log_factors(x, *given, 256)
            slopes = torch.autograd.grad(factors.sum(), given)
            assert all(torch.isfinite(one).all() for one in (factors, *slopes)), (far, spread)


def test_draws_of_a_logistic_mixture_agree():
    logits, mean, log_scale = (one.float() for one in mixture_of_three(1, seed=3))
    rows, uniform = 100_000, torch.rand(100_000, 2, generator=seeded())
    own = (logits.expand(rows, 3), mean.expand(rows, 3), log_scale.expand(rows, 3))
    shares = torch.bincount(logistic_mixture_draw(*own, uniform, 6), minlength=6) / rows
    x = torch.arange(6).unsqueeze(1)
    expected = logistic_mixture_log_factors(x, logits, mean, log_scale, 6).exp()[:, 0]
    torch.testing.assert_close(shares, expected, atol=6e-3, rtol=0)


def test_dequantised_values_come_back():
    space = Images(1, 4, 4, levels=256)
    x = space.random(50, seeded())
    y = dequantised(x, BatchNoise(seeded(1), 50))
    assert torch.equal(quantised(y, space), x)
    assert float((y - x).max()) > 0.9
    z, _ = to_logits(y, 256)
    torch.testing.assert_close(from_logits(z, 256), y, rtol=1e-4, atol=1e-3)


def test_the_logits_log_determinant_is_autograds():
    y = torch.rand(3, 5, generator=seeded()).double() * 16
    _, told = to_logits(y, 16)
    for row in range(3):
        one = y[row : row + 1]
        jacobian = torch.autograd.functional.jacobian(lambda v: to_logits(v, 16)[0], one)
        expected = torch.linalg.slogdet(jacobian.reshape(5, 5)).logabsdet
        assert float(told[row]) == pytest.approx(float(expected))


def test_normal_scores_come_back_and_are_normal():
    frequencies = torch.tensor([[0.7, 0.1, 0.15, 0.05], [0.25, 0.25, 0.25, 0.25]])
    x = torch.multinomial(frequencies, 40_000, replacement=True, generator=seeded()).T
    uniform = torch.rand(x.shape, generator=seeded(1))
    z, slope = to_normal_scores(x, uniform, frequencies.log())
    assert torch.equal(from_normal_scores(z, frequencies.log()), x)
    assert float(z.mean(0).abs().max()) < 0.02
    assert float((z.std(0) - 1).abs().max()) < 0.02
    # Independent standard normal scores are independent dimensions, whatever u is.
    normal = torch.distributions.Normal(0, 1).log_prob(z).sum(1)
    own = frequencies.log()[torch.arange(2), x].sum(1)
    torch.testing.assert_close(normal + slope, own.double(), rtol=1e-4, atol=1e-5)


def test_a_gaussian_divergence_is_its_expectation():
    mean, log_scale = torch.tensor([0.5, -1.0]), torch.tensor([0.3, -0.7])
    z = mean + log_scale.exp() * torch.randn(400_000, 2, generator=seeded())
    zero = torch.zeros(2)
    sampled = (gaussian_log_prob(z, mean, log_scale) - gaussian_log_prob(z, zero, zero)).mean(0)
    torch.testing.assert_close(gaussian_kl(mean, log_scale), sampled, atol=5e-3, rtol=0)
    assert torch.equal(gaussian_kl(zero, zero), zero)


def test_more_importance_samples_bound_more_tightly():
    # log w ~ N(-1/2, 1): E w = 1, so every bound lies below log 1 = 0.
    log_weights = torch.randn(4000, 64, generator=seeded()) - 0.5
    bounds = [float(importance_weighted(log_weights[:, :k]).mean()) for k in (1, 4, 16, 64)]
    assert bounds[0] == pytest.approx(-0.5, abs=0.05)
    assert bounds == sorted(bounds)
    assert -0.05 < bounds[-1] < 0


def test_draws_keep_their_probabilities():
    uniform = torch.rand(100_000, generator=seeded())
    logits = torch.tensor([0.1, 0.6, 0.3]).log()
    shares = torch.bincount(categorical_draw(logits.expand(100_000, 3), uniform)) / 100_000
    torch.testing.assert_close(shares, logits.exp(), atol=6e-3, rtol=0)
    assert int(categorical_draw(logits, torch.tensor(1 - 2**-24))) == 2
    share = bernoulli_draw(torch.tensor(1.0), uniform).float().mean()
    assert float(share) == pytest.approx(1 / (1 + math.exp(-1)), abs=6e-3)


def test_row_noise_is_a_prefix_of_itself():
    many, few = (row_noise(rows, seeded(3)) for rows in (10, 4))
    for _ in range(2):
        assert torch.equal(many.normal(2, 3)[:4], few.normal(2, 3))
        assert torch.equal(many.uniform()[:4], few.uniform())
    rows = row_noise(500, seeded(3)).uniform()
    assert len(rows.unique()) > 490


def test_scoring_noise_is_seed_zero():
    assert torch.equal(scoring_noise(3, None).normal(2), scoring_noise(3, None).normal(2))
    assert torch.equal(scoring_noise(3, None).normal(2), row_noise(3, seeded(0)).normal(2))
    assert not torch.equal(row_noise(3, None).normal(2), row_noise(3, None).normal(2))


def test_the_parts_of_a_batch_have_the_noise_of_the_whole():
    whole = BatchNoise(seeded(5), 6)
    parts = [BatchNoise(seeded(5), 2, rank=rank, world=3) for rank in range(3)]
    for draw in ("normal", "uniform"):
        joined = torch.cat([getattr(part, draw)(2) for part in parts])
        assert torch.equal(getattr(whole, draw)(2), joined)


def test_seeds_are_well_mixed():
    seeds = {mixed(a, b) for a in range(50) for b in range(50)}
    assert len(seeds) == 2500
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert mixed(1, 2) != mixed(2, 1)
    assert RowNoise([]).normal(3).shape == (0, 3)


def test_bits_are_nats_over_dimensions():
    space = Images(1, 2, 2, levels=2)
    uniform = torch.tensor([-4 * math.log(2)])
    assert float(bits_per_dimension(uniform, space)) == pytest.approx(1)


def test_a_log_scale_beyond_its_bounds_can_come_back():
    raw = torch.tensor([-20.0, -8.0, 0.3, 4.0, 30.0], requires_grad=True)
    held = held_log_scale(raw)
    assert torch.allclose(held, torch.tensor([-8.0, -8.0, 0.3, 4.0, 4.0]))
    gaussian_kl(torch.zeros(5), held).sum().backward()
    # Upwards where it is too small, down where it is too large.
    assert raw.grad[0] < 0 < raw.grad[4]
