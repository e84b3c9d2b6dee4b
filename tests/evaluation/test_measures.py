"""Anomaly detection, probes, likelihoods and costs, each against what is known."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from simulacra.evaluation.anomaly import area_under_curve, spliced
from simulacra.evaluation.case import scored
from simulacra.evaluation.cost import median_interval
from simulacra.evaluation.intervals import mean_interval, wilson
from simulacra.evaluation.networks import flat
from simulacra.evaluation.representation import linear_hits, nearest_hits
from simulacra.games import Batch

from .conftest import DIGITS


def test_wilson_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    for hits, count in ((0, 10), (7, 10), (10, 10), (431, 1000)):
        known = stats.binomtest(hits, count).proportion_ci(method="wilson")
        assert wilson(hits, count) == pytest.approx((known.low, known.high), abs=1e-9)


def test_the_mean_lies_in_its_interval_as_often_as_promised():
    draw = torch.Generator().manual_seed(0)
    intervals = [mean_interval(torch.randn(100, generator=draw)) for _ in range(400)]
    assert sum(low <= 0 <= high for low, high in intervals) == pytest.approx(380, abs=12)


def test_the_median_lies_in_its_interval_as_often_as_promised():
    assert median_interval([1.0] * 5) is None
    assert median_interval([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]) == (1.0, 6.0)
    draw = torch.Generator().manual_seed(0)
    found = [median_interval(torch.randn(20, generator=draw).tolist()) for _ in range(300)]
    assert sum(low <= 0 <= high for low, high in found) >= 0.93 * 300


def test_area_under_curve_agrees_with_scikit_learn():
    draw = torch.Generator().manual_seed(0)
    ordinary = torch.randint(6, (80,), generator=draw)
    stranger = torch.randint(8, (80,), generator=draw)
    truth = [0] * 80 + [1] * 80
    known = roc_auc_score(truth, torch.cat([ordinary, stranger]).tolist())
    value, variance = area_under_curve(stranger, ordinary)
    assert value == pytest.approx(known, abs=1e-12)
    assert 0 < variance < 0.01


def test_the_area_spreads_as_its_variance_says():
    draw, found = torch.Generator().manual_seed(1), []
    for _ in range(300):
        common = torch.randn(100, generator=draw)
        ordinary = common + torch.randn(100, generator=draw)
        stranger = common + 1 + torch.randn(100, generator=draw)
        found.append(area_under_curve(stranger, ordinary, paired=True))
    values, variances = torch.tensor(found, dtype=torch.float64).unbind(1)
    assert float(variances.mean().sqrt() / values.std()) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (6,), (2, 10)])
def test_half_of_every_element_is_another_rows(shape):
    x = torch.arange(1, 41).reshape(-1, *[1] * len(shape)).expand(40, *shape)
    planted = spliced(x, torch.Generator().manual_seed(0))
    changed = (planted != x).flatten(1).double().mean(1)
    assert ((changed > 0.3) & (changed < 0.7)).all()
    assert all(len(row.unique()) == 2 for row in planted)


def test_probes_agree_with_scikit_learn(digits):
    train, test = (Batch(flat(one.x, DIGITS), one.condition) for one in (digits[0], digits[2]))
    neighbours = KNeighborsClassifier(5).fit(train.x, train.condition)
    known = neighbours.score(test.x, test.condition) * len(test)
    assert nearest_hits(train, test) == pytest.approx(known, abs=2)
    regression = LogisticRegression(C=1 / (2e-3 * len(train)), max_iter=2000)
    known = regression.fit(train.x, train.condition).score(test.x, test.condition) * len(test)
    assert linear_hits(train, test) == pytest.approx(known, abs=2)


def test_time_decides_how_many_are_scored_and_never_their_scores():
    batch = Batch(torch.arange(500.0)[:, None])

    def noisy(x, condition, generator):
        return x[:, 0] + torch.rand(len(x), generator=generator)

    every = scored(noisy, batch, conditional=False, seed=0, seconds=math.inf)
    few = scored(noisy, batch, conditional=False, seed=0, seconds=0.0)
    assert len(every) == 500
    assert len(few) == 20
    assert torch.equal(every[:20], few)
