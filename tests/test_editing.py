"""Filling in: on Gaussians and mixtures against their conditional distributions in closed form."""

import pytest
import torch

from simulacra import shelf
from simulacra.probability import editing
from simulacra.probability.diffusion import Diffusion
from simulacra.probability.editing import conditioned, noised, remaining
from simulacra.probability.noise import BatchNoise, RowNoise
from simulacra.probability.samplers import Guess, Level, descended, last, make_step, spaced
from simulacra.probability.straight_paths import denoiser, level, times
from simulacra.refusals import Refusal

ROWS = 4000
PATHS = {
    "cosine": Diffusion("cosine", 1000).path(100, "time"),
    "karras": spaced(80.0, 0.002, 100, "karras"),
    "straight": [level(t) for t in times(100, "cosine")],
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def double(values):
    return torch.as_tensor(values, dtype=torch.float64)


class Mixture:
    """Gaussians of one covariance: E[x_0 | x_t], and the moments of some entries given the first."""

    def __init__(self, means, covariance):
        self.means, self.covariance = double(means), double(covariance)

    def __call__(self, x, at):
        size = self.means.shape[1]
        total = at.signal**2 * self.covariance + at.spread**2 * torch.eye(size).double()
        away = x[:, None] - at.signal * self.means
        solved = away @ torch.linalg.inv(total)
        weights = torch.softmax(-0.5 * (away * solved).sum(-1), 1)
        means = self.means + at.signal * solved @ self.covariance
        return Guess((weights[..., None] * means).sum(1))

    def given(self, first):
        """Weights (k,), means (k, d) and covariance (d, d) of the other entries."""
        count, c = len(first), self.covariance
        gain = c[count:, :count] @ torch.linalg.inv(c[:count, :count])
        away = first - self.means[:, :count]
        solved = away @ torch.linalg.inv(c[:count, :count])
        weights = torch.softmax(-0.5 * (away * solved).sum(1), 0)
        return (
            weights,
            self.means[:, count:] + away @ gain.T,
            c[count:, count:] - gain @ c[:count, count:],
        )


def filled(mixture, first, path, sampler="ancestral"):
    size = mixture.means.shape[1]
    given, known = torch.zeros(ROWS, size).double(), torch.arange(size) < len(first)
    given[:, : len(first)] = first
    noise = BatchNoise(seeded(1), ROWS)
    start = noise.normal(size).double()
    fill = conditioned(mixture, given, known.expand(ROWS, -1))
    x = last(descended(make_step(sampler), fill, start, path, noise))
    torch.testing.assert_close(x[:, : len(first)], given[:, : len(first)])
    return x[:, len(first) :]


def off(x, mean, covariance):
    """How far the means are off in deviations at most, and the deviations in shares."""
    deviation = covariance.diagonal().sqrt()
    means = (x.mean(0) - mean) / deviation
    return float(means.abs().max()), float((x.std(0) / deviation - 1).abs().max())


PAIR = Mixture([[0.3, -0.2]], [[1.0, 0.95], [0.95, 1.0]])
FACTORS = torch.randn(12, 2, generator=seeded(5), dtype=torch.float64)
MANY = Mixture(torch.zeros(1, 12), FACTORS @ FACTORS.T / 2 + 0.1 * torch.eye(12).double())


@pytest.mark.parametrize("name", PATHS)
def test_one_of_two_entries_is_filled_in_given_the_other(name, monkeypatch):
    """The error of the mean of 4,000 is 0.016 deviations."""
    first = double([1.3])
    (_, (mean,), covariance) = PAIR.given(first)
    by_mean, by_deviation = off(filled(PAIR, first, PATHS[name]), mean, covariance)
    assert by_mean < 0.08
    assert by_deviation < 0.08
    # Without the covariance what is known is put back, and no more.
    monkeypatch.setattr(editing, "ROUNDS", 0)
    by_mean, by_deviation = off(filled(PAIR, first, PATHS[name]), mean, covariance)
    assert by_mean > 0.5
    assert by_deviation > 0.3


@pytest.mark.parametrize("name", PATHS)
def test_many_entries_are_filled_in_given_many(name):
    first = torch.linalg.cholesky(MANY.covariance) @ torch.randn(12, generator=seeded(7)).double()
    (_, (mean,), covariance) = MANY.given(first[:6])
    by_mean, by_deviation = off(filled(MANY, first[:6], PATHS[name]), mean, covariance)
    assert by_mean < 0.12
    assert by_deviation < 0.12


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpm++2m"])
def test_any_sampler_fills_in(sampler):
    first = double([1.3])
    (_, (mean,), covariance) = PAIR.given(first)
    by_mean, by_deviation = off(filled(PAIR, first, PATHS["karras"], sampler), mean, covariance)
    assert by_mean < 0.08
    assert by_deviation < 0.08


def test_peaks_get_nearly_their_shares(monkeypatch):
    """x_0 given x_t is no Gaussian here, and the shares are nearer the truth than without C."""
    mixture, first = Mixture([[-0.2, -1.0], [0.2, 1.0]], [[0.05, 0.0], [0.0, 0.02]]), double([0.1])
    weights, _, _ = mixture.given(first)
    found = {}
    for rounds in (0, 3):
        monkeypatch.setattr(editing, "ROUNDS", rounds)
        x = filled(mixture, first, PATHS["straight"])
        found[rounds] = abs(float((x > 0).double().mean()) - float(weights[1]))
    assert found[3] < 0.1
    assert found[0] > 0.15


def test_the_guess_of_a_gaussian_is_its_conditional_mean():
    at, rows = Level(0.6, 0.8), 5
    x = torch.randn(rows, 12, generator=seeded()).double()
    given = torch.randn(rows, 12, generator=seeded(1)).double()
    known = torch.rand(rows, 12, generator=seeded(2)) < 0.4
    known[0], known[1] = False, True
    told = conditioned(MANY, given, known)(x, at).x0
    assert torch.equal(told[known], given[known])
    torch.testing.assert_close(told[0], MANY(x, at).x0[0])
    precision = torch.linalg.inv(MANY.covariance) + (at.signal / at.spread) ** 2 * torch.eye(12)
    covariance = torch.linalg.inv(precision)
    for row in range(2, rows):
        k = known[row]
        missed = (given - MANY(x, at).x0)[row, k]
        gain = covariance[~k][:, k] @ torch.linalg.inv(covariance[k][:, k])
        exact = MANY(x, at).x0[row, ~k] + gain @ missed
        plain = MANY(x, at).x0[row, ~k]
        assert float((told[row, ~k] - exact).norm()) < 0.15 * float((plain - exact).norm())


def test_a_denoiser_that_no_covariance_fits_is_heeded_without_it():
    def odd(x, at):
        return Guess(torch.stack([-x[:, 0], x[:, 0]], 1) + 0 * x)

    given, known = torch.ones(3, 2), torch.tensor([True, False]).expand(3, 2)
    x = torch.randn(3, 2, generator=seeded())
    told = conditioned(odd, given, known)(x, Level(0.1, 1.0)).x0
    torch.testing.assert_close(told, torch.stack([torch.ones(3), x[:, 0]], 1))


def test_a_step_that_leads_away_from_what_is_known_is_not_taken():
    turn = torch.tensor([[0.01, 5.0, 1.0], [-5.0, 0.01, 1.0], [1.0, 1.0, 1.0]])
    given, known = torch.ones(3, 3), torch.tensor([True, True, False]).expand(3, 3)
    x = torch.randn(3, 3, generator=seeded())
    told = conditioned(lambda x, at: Guess(x @ turn), given, known)(x, Level(0.7, 0.7)).x0
    torch.testing.assert_close(told[:, 2], (x @ turn)[:, 2])


def test_a_velocity_gives_the_guess_of_data():
    x0, x1 = torch.randn(2, 4, 3, generator=seeded())
    at = level(0.3)
    guess = denoiser(lambda x, t: x1 - x0)(at.signal * x1 + at.spread * x0, at)
    torch.testing.assert_close(guess.x0, x1)


def test_variation_has_its_share_of_the_steps_to_go():
    path = [*range(11)]
    assert remaining(path, 0.3) == [7, 8, 9, 10]
    assert remaining(path, 0.001) == [9, 10]
    assert remaining(path, 1.0) == path
    for strength in (0.0, 1.1):
        with pytest.raises(Refusal) as refusal:
            remaining(path, strength)
        assert refusal.value.code == "CFG-213"
    x = torch.ones(1, 2)
    torch.testing.assert_close(
        noised(x, Level(0.6, 0.8), RowNoise([3])), 0.6 * x + 0.8 * RowNoise([3]).normal(2)
    )


@pytest.mark.parametrize("name", ["ddpm", "flow-matching"])
def test_completion_works_in_inference_mode(name):
    """Slopes are taken inside, which inference mode forbids to its own tensors."""
    model = shelf.find(name).cls.toy().eval()
    x = model.space.random(3, seeded())
    known = torch.zeros_like(x, dtype=torch.bool)
    known[..., 0] = True
    plain = model.complete(x, known, generator=seeded())
    with torch.inference_mode():
        inside = model.complete(model.space.random(3, seeded()), known.clone(), generator=seeded())
    assert torch.equal(plain, inside)
