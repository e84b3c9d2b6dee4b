"""Samplers: on a Gaussian against its moments, on a mixture against the solution of its equation."""

import itertools
import math
from typing import get_args

import pytest
import torch

from simulacra.probability import flow_likelihood
from simulacra.probability.diffusion import Diffusion
from simulacra.probability.noise import BatchNoise, RowNoise
from simulacra.probability.samplers import (
    CLEAN,
    DDIM,
    Guess,
    Level,
    SamplerName,
    between,
    climbed,
    descended,
    last,
    make_step,
    spaced,
)
from simulacra.refusals import Refusal

NAMES = get_args(SamplerName)
CENTRE = torch.tensor([0.4, -0.2], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.25, 0.12], [0.12, 0.16]], dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(x, level):
    """E[x_0 | x_t] of a Gaussian: m + signal C (signal^2 C + spread^2)^-1 (x_t - signal m)."""
    marginal = level.signal**2 * COVARIANCE + level.spread**2 * torch.eye(2, dtype=torch.float64)
    gain = level.signal * COVARIANCE @ torch.linalg.inv(marginal)
    return Guess(CENTRE + (x - level.signal * CENTRE) @ gain.T)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_gaussian_is_sampled_with_its_moments(name, schedule):
    rows, steps = 10_000, 250
    spacing = "time" if name in ("ddim", "ancestral") else "karras"
    path = Diffusion(schedule, 1000).path(steps, spacing)
    noise = BatchNoise(seeded(1), rows)
    x = last(descended(make_step(name), gaussian, noise.normal(2).double(), path, noise))
    torch.testing.assert_close(x.mean(0), CENTRE, atol=0.02, rtol=0)
    torch.testing.assert_close(torch.cov(x.T), COVARIANCE, atol=0.015, rtol=0)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_samples_it_at_any_eta_and_sub_sequence(eta):
    """The path is uneven; eta = 1 is the ancestral step."""
    rows, diffusion = 10_000, Diffusion("cosine", 1000)
    times = [t for t in range(1000, 0, -1) if t % 7 in (0, 1, 3)]
    path = [diffusion.level(t) for t in (*times, 0)]
    noise = BatchNoise(seeded(2), rows)
    x = last(descended(DDIM(eta), gaussian, noise.normal(2).double(), path, noise))
    torch.testing.assert_close(torch.cov(x.T), COVARIANCE, atol=0.015, rtol=0)
    one, other = (
        last(descended(step, gaussian, x[:9], path[300:], BatchNoise(seeded(3), 9)))
        for step in (DDIM(1.0), make_step("ancestral"))
    )
    torch.testing.assert_close(one, other)


def test_times_are_even_or_even_in_their_root():
    diffusion = Diffusion("linear", 1000)
    assert diffusion.times(5) == [1000, 800, 600, 400, 200, 0]
    assert diffusion.drowned == pytest.approx(800, abs=5)
    top = diffusion.drowned
    squares = [round(top * index**2 / 25) for index in range(5, -1, -1)]
    assert diffusion.times(5, quadratic=True) == squares
    for count in (1, 2, 37, 400, 799, 1000, 2000):
        times = diffusion.times(count, quadratic=True)
        assert times[0] == top
        assert times[-1] == 0
        assert len(times) == min(count, top) + 1
        assert all(then > now for then, now in itertools.pairwise(times))
    assert diffusion.path(5, "quadratic")[1] == diffusion.level(squares[1])
    assert Diffusion("cosine", 1000).drowned > 970
    assert Diffusion("linear", 1).drowned == 1


PEAKS = torch.tensor([-0.8, 0.1, 0.7], dtype=torch.float64)
WIDTH = 0.15


def mixture(x, level):
    """E[x_0 | x_t] of three Gaussians of one width."""
    variance = level.signal**2 * WIDTH**2 + level.spread**2
    away = x.unsqueeze(-1) - level.signal * PEAKS
    weights = torch.softmax(-0.5 * away**2 / variance, -1)
    means = PEAKS + level.signal * WIDTH**2 / variance * away
    return Guess((weights * means).sum(-1))


def transported(x, level):
    """The exact solution at no noise: the flow of one dimension keeps quantiles."""
    one = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1)

    def share(y, signal, spread):
        variance = signal**2 * WIDTH**2 + spread**2
        return one.cdf((y.unsqueeze(-1) - signal * PEAKS) / math.sqrt(variance)).mean(-1)

    wanted = share(x, level.signal, level.spread)
    low, high = torch.full_like(x, -5), torch.full_like(x, 5)
    for _ in range(80):
        middle = (low + high) / 2
        below = share(middle, 1.0, 0.0) < wanted
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low


def error(name, steps):
    """The mean distance to the exact end of the walk; uniform in log-SNR, where orders are defined."""
    start = Level.preserving(8.0)
    x = torch.linspace(-1.6, 1.6, 41, dtype=torch.float64)[:, None]
    path = [*spaced(start.sigma, 1e-4, steps + 1, "log-snr")]
    end = last(descended(make_step(name), mixture, x, path, RowNoise([0] * 41)))
    return float((end - transported(x, path[0])).abs().mean())


@pytest.mark.parametrize(
    ("name", "order"), [("euler", 0.9), ("ddim", 0.9), ("heun", 1.8), ("dpm++2m", 1.8)]
)
def test_orders_of_convergence_on_a_mixture(name, order):
    """The slope of log error over log steps, and no better than its order either."""
    counts = [80, 160, 320]
    errors = torch.tensor([error(name, count) for count in counts]).log()
    slope = float((errors[0] - errors[-1]) / math.log(counts[-1] / counts[0]))
    assert order <= slope <= 1.45 * order + 0.2
    if order > 1:
        assert error(name, 40) < 0.5 * error("euler", 40)


@pytest.mark.parametrize("name", NAMES)
def test_exploding_levels_make_the_same_walk(name):
    """x / signal is the same whether the variance is preserved or explodes; the noise, too."""
    sigmas = [level.sigma for level in spaced(20.0, 0.05, 12, "karras")]
    start = torch.randn(7, 2, dtype=torch.float64, generator=seeded())

    def walk(path):
        noise = BatchNoise(seeded(4), 7)
        return last(descended(make_step(name), gaussian, start * path[0].signal, path, noise))

    preserving = [*map(Level.preserving, sigmas[:-1]), CLEAN]
    exploding = [Level(1.0, sigma) for sigma in sigmas]
    torch.testing.assert_close(walk(preserving), walk(exploding))


def test_inversion_is_undone():
    path = Diffusion("cosine", 1000).path(60, "karras")[:-1]
    x = 0.5 * torch.randn(50, 1, dtype=torch.float64, generator=seeded())
    noise = RowNoise([0] * 50)
    gaps = []
    for iterations in (1, 20):
        top = last(climbed(mixture, x, path, iterations=iterations))
        gaps.append(float((last(descended(DDIM(), mixture, top, path, noise)) - x).abs().max()))
    assert gaps[1] < 1e-3
    assert gaps[1] < gaps[0] / 20


def test_the_flow_carries_a_gaussians_density():
    """Against the exact density at a low noise; the trace by probes is unbiased."""
    low, rows = 0.05, 40
    y = CENTRE + 0.4 * torch.randn(rows, 2, dtype=torch.float64, generator=seeded())
    covariance = COVARIANCE + low**2 * torch.eye(2, dtype=torch.float64)
    expected = torch.distributions.MultivariateNormal(CENTRE, covariance).log_prob(y)
    noise = RowNoise(range(rows))
    gaps = []
    for steps in (60, 120):
        found = flow_likelihood.flow_log_prob(gaussian, y, low, 80.0, steps, noise)
        gaps.append(float((found - expected).abs().mean()))
    assert gaps[1] < 0.02
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.4)


def test_probes_of_the_trace_are_unbiased(monkeypatch):
    y = (CENTRE + 0.3).expand(4000, -1)
    exact = flow_likelihood.flow_log_prob(gaussian, y[:1], 0.05, 80.0, 20, RowNoise([0]))
    monkeypatch.setattr(flow_likelihood, "EXACT", 1)
    noise = BatchNoise(seeded(), 4000)
    probed = flow_likelihood.flow_log_prob(gaussian, y, 0.05, 80.0, 20, noise)
    assert float(probed.std()) > 0.01
    error = float(probed.std()) / 4000**0.5
    assert float(probed.mean()) == pytest.approx(float(exact), abs=4 * error)


def test_a_learned_deviation_lies_between_in_the_logarithm():
    told = between(0.01, 0.09, torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(told, torch.tensor([0.1, math.sqrt(0.03), 0.3]))


def test_what_there_is_not_is_refused():
    with pytest.raises(Refusal, match="sampler"):
        make_step("plms")
    for name, eta in (("heun", 0.5), ("ddim", 1.5)):
        with pytest.raises(Refusal, match="eta"):
            make_step(name, eta)
