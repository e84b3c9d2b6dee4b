"""Annealed importance sampling on a Gaussian path whose every Z is known."""

import math

import pytest
import torch

from simulacra.contract import Annealed
from simulacra.probability.annealing import Partition, anneal_down, anneal_up, sigmoid_betas
from simulacra.probability.noise import BatchNoise

MEAN, PRECISION, LOG_HEIGHT = 2.0, 1.5, 1.5


class Hill(Annealed):
    """From N(0, 1) to e^1.5 exp(-3/4 (x - 2)^2), geometrically, by moves that forget a part."""

    partition = None
    start_log_partition = torch.tensor(0.5 * math.log(2 * math.pi), dtype=torch.float64)

    def __init__(self, memory=0.7):
        self.memory = memory

    def start(self, noise):
        return noise.normal(1).double()

    def at(self, beta):
        precision = 1 - beta + beta * PRECISION
        return beta * PRECISION * MEAN / precision, precision**-0.5

    def step(self, x, beta, noise):
        mean, spread = self.at(beta)
        fresh = math.sqrt(1 - self.memory**2) * noise.normal(1).double()
        return mean + self.memory * (x - mean) + spread * fresh

    def log_annealed(self, x, betas):
        end = LOG_HEIGHT - 0.5 * PRECISION * (x - MEAN).square()
        return (1 - betas) * (-0.5 * x.square()) + betas * end

    def draw(self, noise):
        return MEAN + noise.normal(1).double() / math.sqrt(PRECISION)


TRUTH = LOG_HEIGHT + 0.5 * math.log(2 * math.pi / PRECISION)


def noise(rows, seed=0):
    return BatchNoise(torch.Generator().manual_seed(seed), rows)


def both_ways(steps, chains, seed=0, path=None):
    path, rows = path or Hill(), noise(chains, seed)
    betas = sigmoid_betas(steps)
    upward = anneal_up(path, rows, betas)[0]
    return Partition(upward, anneal_down(path, path.draw(rows), rows, betas), steps)


def test_betas_rise_from_nought_to_one():
    betas = sigmoid_betas(20)
    assert (len(betas), float(betas[0]), float(betas[-1])) == (21, 0.0, 1.0)
    widths = betas.diff()
    assert (widths > 0).all()
    assert float(widths[0]) < 0.2 * float(widths[10])


@pytest.mark.parametrize("steps", [3, 10])
def test_weights_are_right_on_average_at_any_number_of_steps(steps):
    """E w = Z_1 / Z_0 up, and E 1/w = Z_0 / Z_1 down."""
    found = both_ways(steps, 200_000)
    for values, sign in ((found.upward - TRUTH, 1), (found.downward - TRUTH, -1)):
        ratio = (sign * values).exp()
        error = float(ratio.std()) / len(ratio) ** 0.5
        assert error < 0.05
        assert float(ratio.mean()) == pytest.approx(1, abs=4 * error)


def test_the_truth_lies_between_both_sides():
    few = [both_ways(4, 10, seed) for seed in range(200)]
    below = sum(one.log_partition for one in few) / len(few)
    above = sum(one.from_above for one in few) / len(few)
    assert below < TRUTH - 0.05
    assert above > TRUTH + 0.05


def test_more_steps_close_the_gap():
    gaps = [sum(both_ways(steps, 20, s).gap for s in range(40)) / 40 for steps in (3, 20, 120)]
    assert gaps[0] > 1.5 * gaps[1] > 3 * gaps[2]
    fine = both_ways(300, 100)
    assert fine.log_partition == pytest.approx(TRUTH, abs=0.05)
    assert fine.from_above == pytest.approx(TRUTH, abs=0.05)
    assert fine.effective_sample_size > 80


def test_the_standard_errors_are_those_of_repeated_estimates():
    found = [both_ways(40, 100, seed) for seed in range(150)]
    for told, values in (
        ([one.standard_error for one in found], [one.log_partition for one in found]),
        ([one.gap_error for one in found], [one.gap for one in found]),
    ):
        spread = float(torch.tensor(values).std())
        assert sum(told) / len(told) == pytest.approx(spread, rel=0.2)


def test_a_path_that_never_moves_is_plain_importance_sampling():
    path, rows = Hill(memory=1.0), noise(1000)
    upward, x = anneal_up(path, rows, sigmoid_betas(7))
    ends = path.log_annealed(x, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(upward, path.start_log_partition + ends[:, 1] - ends[:, 0])


def test_equal_weights_have_no_error_and_one_chain_knows_none():
    same = Partition(torch.full((50,), 3.0), torch.full((50,), 3.0), 10)
    assert same.effective_sample_size == pytest.approx(50)
    assert (same.log_partition, same.gap) == (pytest.approx(3), pytest.approx(0, abs=1e-9))
    assert same.standard_error == pytest.approx(0, abs=1e-6)
    assert Partition(torch.zeros(1), torch.zeros(1), 10).standard_error == math.inf
