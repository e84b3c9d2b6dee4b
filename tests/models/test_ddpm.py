"""DDPM: the process against its chain, the posterior against Bayes, samplers against the known."""

import math

import pytest
import torch

from simulacra.games import Batch, Clock
from simulacra.models.diffusion.ddpm import DDPM, Config
from simulacra.probability.diffusion import (
    Diffusion,
    discretised_gaussian_log_prob,
    level_mean,
)
from simulacra.probability.noise import row_noise
from simulacra.spaces import Images, Labels

SCHEDULES = pytest.mark.parametrize("schedule", ["linear", "cosine"])
KINDS = pytest.mark.parametrize("kind", ["epsilon", "x0", "v"])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def column(values):
    return torch.as_tensor(values, dtype=torch.float64)[:, None]


@SCHEDULES
def test_jumps_are_what_the_single_steps_come_to(schedule):
    diffusion = Diffusion(schedule, 50)
    mean, variance = 1.0, 0.0
    for t in range(1, 51):
        alpha = float(diffusion.alpha_bar[t] / diffusion.alpha_bar[t - 1])
        mean, variance = alpha**0.5 * mean, alpha * variance + 1 - alpha
        signal, spread = diffusion.scales(torch.tensor([t]), column([0.0]))
        assert float(signal) == pytest.approx(mean, rel=1e-10)
        assert float(spread) == pytest.approx(variance**0.5, rel=1e-10)


def test_the_linear_schedule_is_the_papers():
    betas = 1 - Diffusion("linear", 1000).alpha_bar[1:] / Diffusion("linear", 1000).alpha_bar[:-1]
    assert float(betas[0]) == pytest.approx(1e-4)
    assert float(betas[-1]) == pytest.approx(0.02)
    assert float(Diffusion("linear", 1000).alpha_bar[-1]) == pytest.approx(4.0e-5, rel=0.02)
    ends = [float(Diffusion("linear", steps).alpha_bar[-1]) for steps in (100, 1000)]
    assert ends[0] == pytest.approx(ends[1], rel=0.7)


@SCHEDULES
@KINDS
def test_what_is_predicted_gives_the_origin_back(schedule, kind):
    diffusion = Diffusion(schedule, 100)
    x0, epsilon = torch.randn(2, 99, 3, dtype=torch.float64, generator=seeded())
    t = torch.arange(1, 100)
    x_t = diffusion.noised(x0, t, epsilon)
    told = diffusion.target(x0, epsilon, t, kind)
    torch.testing.assert_close(diffusion.origin(x_t, told, t, kind), x0, atol=1e-7, rtol=1e-7)


@SCHEDULES
def test_the_ancestral_step_is_bayes_rule(schedule):
    """q(x_{t-1} | x_t, x_0) from the product of two Gaussians (Ho et al. 2020, eq. 6 and 7)."""
    diffusion = Diffusion(schedule, 20)
    bar = diffusion.alpha_bar
    for t in range(2, 21):
        alpha = float(bar[t] / bar[t - 1])
        prior = 1 - float(bar[t - 1])
        precision = 1 / prior + alpha / (1 - alpha)
        x0, x_t = 0.3, -1.1
        mean = (float(bar[t - 1]) ** 0.5 * x0 / prior + alpha**0.5 * x_t / (1 - alpha)) / precision
        step = diffusion.between(
            column([x_t]), column([x0]), torch.tensor([t]), torch.tensor([t - 1]), 1.0
        )
        assert float(step.mean) == pytest.approx(mean, rel=1e-9)
        assert float(step.deviation) == pytest.approx(precision**-0.5, rel=1e-9)
        gap = diffusion.posterior_mean_gap(torch.tensor([t]))
        moved = diffusion.between(
            column([x_t]), column([x0 + 1]), torch.tensor([t]), torch.tensor([t - 1]), 1.0
        )
        expected = 0.5 * float((moved.mean - step.mean) ** 2 / step.deviation**2)
        assert float(gap) == pytest.approx(expected, rel=1e-8)


@SCHEDULES
def test_a_perfect_denoiser_of_a_gaussian_samples_that_gaussian(schedule):
    """With x_0 ~ N(m, s^2) the best prediction is known; ancestral and DDIM steps keep its moments."""
    diffusion, centre, deviation = Diffusion(schedule, 1000), 0.4, 0.3
    for eta in (0.0, 1.0):
        stream = seeded(1)
        x = torch.randn(20_000, 1, dtype=torch.float64, generator=stream)
        for t in range(1000, 0, -4):
            now, then = torch.full((len(x),), t), torch.full((len(x),), max(t - 4, 0))
            bar = float(diffusion.alpha_bar[t])
            gain = deviation**2 * bar**0.5 / (deviation**2 * bar + 1 - bar)
            x0 = centre + gain * (x - bar**0.5 * centre)
            step = diffusion.between(x, x0, now, then, eta)
            fresh = torch.randn(x.shape, dtype=torch.float64, generator=stream)
            x = step.mean + step.deviation * fresh
        assert float(x.mean()) == pytest.approx(centre, abs=0.015)
        assert float(x.std()) == pytest.approx(deviation, abs=0.015)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_a_discretised_gaussian_sums_to_one(levels):
    x = torch.arange(levels)[:, None]
    for mean in (-1.0, -0.3, 0.99, 4.0):
        for deviation in (1e-3, 0.05, 2.0):
            told = discretised_gaussian_log_prob(
                x, torch.tensor(mean).double(), torch.tensor(deviation), levels
            )
            assert float(told.exp().sum()) == pytest.approx(1, abs=1e-5)


def test_the_nearest_level_is_read_by_bayes_rule():
    levels, deviation = 5, torch.tensor(0.08, dtype=torch.float64)
    grid = torch.linspace(-1, 1, levels, dtype=torch.float64)
    y = torch.linspace(-0.9, 0.9, 41, dtype=torch.float64)
    weights = torch.softmax(-0.5 * ((y[:, None] - grid) / deviation) ** 2, 1)
    torch.testing.assert_close(level_mean(y, deviation, levels), weights @ grid, atol=1e-8, rtol=0)


@KINDS
def test_the_bounds_terms_agree_with_one_long_sum(kind):
    """All t one after the other, many times, against the estimate that ``log_prob`` makes."""
    space = Images(1, 2, 3, 3)
    config = Config(8, 1, 0.0, 12, "cosine", kind, bound_steps=3, batch_size=16)
    model = DDPM(space, config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        x = space.random(1, seeded()).expand(400, -1, -1, -1)
        estimates = [model.log_prob(x, generator=seeded(seed)).mean() for seed in range(8)]
        diffusion, x0 = model.diffusion, x.double() - 1
        total = torch.zeros(400, dtype=torch.float64)
        for t in range(2, 13):
            now = torch.full((400,), t)
            epsilon = torch.randn(x0.shape, dtype=torch.float64, generator=seeded(t))
            guess = model._origin(diffusion.noised(x0, now, epsilon), now, None)
            before = now - 1
            x_t = diffusion.noised(x0, now, epsilon)
            true, told = (diffusion.between(x_t, one, now, before, 1.0) for one in (x0, guess))
            total += (0.5 * ((true.mean - told.mean) / true.deviation) ** 2).flatten(1).sum(1)
        terms = model._terms(x, None, row_noise(400, seeded(99), "cpu"))
    expected = -float((total + terms.prior + terms.data).mean())
    found = torch.stack(estimates)
    assert float(found.mean()) == pytest.approx(expected, abs=5 * float(found.std()) + 0.3)


def test_few_steps_are_a_subset_of_many():
    model = DDPM(Images(1, 4, 4, 4), Config(8, 1, steps=100))
    for count in (1, 7, 100, 1000):
        path = model._path(count)
        assert path[0] == 100
        assert path[-1] == 0
        assert len(path) == min(count, 100) + 1
        assert path == sorted(set(path), reverse=True)


def test_the_loss_of_an_untrained_network_is_the_targets_variance():
    model = DDPM(Images(1, 8, 8, 2), Config(8, 1, prediction="epsilon"))
    with torch.no_grad():
        for parameter in model.network.leave.parameters():
            parameter.zero_()
    x = model.space.random(256, seeded())
    loss = model.denoising_error(Batch(x), row_noise(256, seeded(1), "cpu"), Clock()).value
    assert loss.item() == pytest.approx(1, abs=5 * math.sqrt(2 / (256 * 64)))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 5), (1, 28, 28)])
def test_sizes_of_all_kinds_pass(shape):
    space = Images(*shape, levels=4)
    model = DDPM(space, Config(8, 1, steps=20), condition=Labels(2)).eval()
    x = model.sample(2, condition=torch.tensor([0, 1]), generator=seeded(), num_inference_steps=3)
    assert space.contains(x)
