"""Precision, recall, density, coverage: against the definitions, one pair at a time."""

import pytest
import torch

from simulacra.evaluation import manifold
from simulacra.evaluation.manifold import COVERAGE_NEIGHBOURS, PRECISION_NEIGHBOURS, compare
from simulacra.refusals import Refusal


def naive(fake, real):
    """The four numbers, from the definitions."""

    def distance(a, b):
        return float((a - b).norm())

    def radius(rows, index, k):
        others = [distance(rows[index], b) for j, b in enumerate(rows) if j != index]
        return sorted(others)[k - 1]

    k, many = PRECISION_NEIGHBOURS, COVERAGE_NEIGHBOURS
    near = [radius(real, i, k) for i in range(len(real))]
    far = [radius(real, i, many) for i in range(len(real))]
    own = [radius(fake, j, k) for j in range(len(fake))]
    pairs = [[distance(y, x) for x in real] for y in fake]
    precise = [any(d <= r for d, r in zip(row, near, strict=True)) for row in pairs]
    recalled = [any(pairs[j][i] <= own[j] for j in range(len(fake))) for i in range(len(real))]
    inside = [sum(d <= r for d, r in zip(row, far, strict=True)) for row in pairs]
    covered = [any(pairs[j][i] <= far[i] for j in range(len(fake))) for i in range(len(real))]
    return (
        sum(precise) / len(fake),
        sum(recalled) / len(real),
        sum(inside) / (many * len(fake)),
        sum(covered) / len(real),
    )


def four(found):
    return tuple(
        float(one.double().mean())
        for one in (found.precise, found.recalled, found.density, found.covered)
    )


def test_agrees_with_the_definitions(clouds):
    fake, real = clouds[1][:60], clouds[0][:50]
    assert four(compare(fake, real)) == pytest.approx(naive(fake, real), abs=1e-12)
    near = clouds[0][50:110]
    assert four(compare(near, real)) == pytest.approx(naive(near, real), abs=1e-12)


def test_blind_to_order_and_chunks(clouds, monkeypatch):
    whole = four(compare(*clouds))
    monkeypatch.setattr(manifold, "CHUNK", 7)
    mixed = [one[torch.randperm(len(one))] for one in clouds]
    assert four(compare(*mixed)) == pytest.approx(whole, abs=1e-6)


def test_a_set_against_itself_and_against_one_far_away(clouds):
    x, y = clouds
    precision, recall, density, coverage = four(compare(x, x))
    assert (precision, recall, coverage) == (1, 1, 1)
    # Everyone lies in its own ball, and in those of about five others.
    assert density == pytest.approx(1.2, abs=1e-6)
    assert four(compare(y + 1000, x)) == (0, 0, 0, 0)


def test_duplicates_count_as_near():
    rows = torch.arange(5.0)[:, None].repeat_interleave(8, 0).repeat(1, 3)
    assert four(compare(rows[::2], rows))[3] == 1


def test_same_distribution_is_covered_as_theory_says():
    draw = torch.Generator().manual_seed(5)
    x, y = torch.randn((2, 1500, 3), generator=draw, dtype=torch.float64)
    found = compare(x, y)
    assert float(found.covered.double().mean()) == pytest.approx(1 - 2**-5, abs=0.015)
    assert float(found.density.mean()) == pytest.approx(1, abs=0.05)


def test_noise_costs_precision_and_half_the_classes_cost_coverage(ladder, digits, eyes):
    real, rungs = ladder
    found = [four(compare(rung, real)) for rung in rungs]
    for which in (0, 2, 3):
        values = [one[which] for one in found]
        assert values[0] > values[2] > values[4] > values[6] - 1e-12
    train = digits[0]
    few = eyes.features(train.x[train.condition < 5][:360]).double()
    precision, recall, _, coverage = four(compare(few, real))
    assert precision > 0.85
    assert recall < 0.6
    assert coverage < 0.6


def test_too_few_data_are_refused(clouds):
    with pytest.raises(Refusal, match="neighbours"):
        compare(clouds[0], clouds[1][:5])
