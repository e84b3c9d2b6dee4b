"""The two distances: laws, references, intervals, and the noise ladder."""

import numpy as np
import pytest
import scipy.linalg
import torch

from simulacra.evaluation import frechet, kernel_distance
from simulacra.evaluation.frechet import Moments, frechet_distance
from simulacra.refusals import Refusal

BOTH = (frechet_distance, kernel_distance.kernel_distance)


def by_square_root(x, y):
    """As published, with a matrix square root."""
    x, y = x.numpy(), y.numpy()
    one, two = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(one @ two).real
    shift = x.mean(0) - y.mean(0)
    return shift @ shift + np.trace(one + two - 2 * root)


def by_loops(x, y):
    """The unbiased estimate, pair by pair."""

    def kernel(a, b):
        return float((a @ b / len(a) + 1) ** 3)

    def among(rows):
        pairs = [kernel(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
        return sum(pairs) / len(pairs)

    across = [kernel(a, b) for a in x for b in y]
    return among(x) + among(y) - 2 * sum(across) / len(across)


def test_agrees_with_the_matrix_square_root(clouds, ladder):
    real, rungs = ladder
    for x, y in (clouds, (rungs[0], real), (rungs[3], real)):
        assert frechet_distance(x, y) == pytest.approx(by_square_root(x, y), rel=1e-6, abs=1e-6)


def test_a_set_is_at_no_distance_from_itself(clouds):
    assert frechet_distance(clouds[0], clouds[0]) == pytest.approx(0, abs=1e-9)
    # Unbiased, so a set against itself lies below nought by what its diagonal holds.
    assert kernel_distance.kernel_distance(clouds[0], clouds[0]) <= 0


@pytest.mark.parametrize("distance", BOTH)
def test_symmetric_and_blind_to_order(distance, clouds):
    x, y = clouds
    value = distance(x, y)
    assert distance(y, x) == pytest.approx(value, rel=1e-6)
    mixed = x[torch.randperm(len(x))], y[torch.randperm(len(y))]
    assert distance(*mixed) == pytest.approx(value, rel=1e-6)


def test_blind_to_batches(clouds, monkeypatch):
    x, y = clouds
    whole, kernels = frechet_distance(x, y), kernel_distance.with_variance(x, y)
    for size in (1, 7, 64):
        moments = Moments(12)
        for part in (x + 100).split(size):
            moments.update(part)
        value = frechet.distance(moments, Moments(12).update(y + 100))
        assert value == pytest.approx(whole, rel=1e-6)
        monkeypatch.setattr(kernel_distance, "CHUNK", size)
        assert kernel_distance.with_variance(x, y) == pytest.approx(kernels, rel=1e-6)


def test_agrees_with_the_pairs_one_by_one(clouds):
    x, y = clouds[0][:30], clouds[1][:20]
    assert kernel_distance.kernel_distance(x, y) == pytest.approx(by_loops(x, y), rel=1e-9)


def test_too_few_data_are_refused_with_a_way_out(clouds):
    with pytest.raises(Refusal, match="KID"):
        frechet_distance(clouds[0][:12], clouds[1])
    with pytest.raises(Refusal, match="at least two"):
        kernel_distance.kernel_distance(clouds[0][:1], clouds[1])


def with_variance(x, y):
    return frechet_distance(x, y), frechet.variance(x, y)


@pytest.mark.parametrize(
    ("both", "shift"),
    [
        (with_variance, 0.7),
        (kernel_distance.with_variance, 0.7),
        (kernel_distance.with_variance, 0),
    ],
)
def test_the_interval_is_as_wide_as_repetitions_spread(both, shift):
    """Where the sets do not differ, FD's first order is no guide; KID's second order is."""
    draw = torch.Generator().manual_seed(4)
    scales = torch.linspace(0.5, 1.5, 4, dtype=torch.float64)
    found = []
    for _ in range(200):
        x = torch.randn((150, 4), generator=draw, dtype=torch.float64) * (scales if shift else 1)
        y = torch.randn((100, 4), generator=draw, dtype=torch.float64) + shift
        found.append(both(x, y))
    values, variances = torch.tensor(found, dtype=torch.float64).unbind(1)
    assert float(variances.mean().sqrt() / values.std()) == pytest.approx(1, abs=0.25)


def test_subsets_agree_with_the_whole(clouds):
    whole = kernel_distance.kernel_distance(*clouds)
    mean, spread = kernel_distance.in_subsets(*clouds, subsets=40, size=50)
    assert abs(mean - whole) < 3 * spread / 40**0.5
    assert spread > 0


@pytest.mark.parametrize("distance", BOTH)
def test_rises_with_every_step_of_noise(distance, ladder):
    real, rungs = ladder
    values = [distance(rung, real) for rung in rungs]
    assert values == sorted(values)
    # The floor; at 360 data finite counts alone bring FD to a fortieth of pure noise's.
    assert values[0] < 0.03 * values[-1]
