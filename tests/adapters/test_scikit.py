"""The adapter passes scikit-learn's own checks, and does its work."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from simulacra.adapters.scikit import AnomalyDetector, PyODDetector


@parametrize_with_checks([AnomalyDetector(), AnomalyDetector(settings={"components": 2})])
def test_as_scikit_learn_wants_it(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def rows():
    draw = np.random.default_rng(0)
    mix = draw.normal(size=(3, 6))
    ordinary = draw.normal(size=(600, 3)) @ mix + 0.1 * draw.normal(size=(600, 6))
    strange = draw.normal(size=(60, 6)) * ordinary.std(0)
    return train_test_split(ordinary, random_state=0, test_size=300), strange


def test_finds_what_breaks_the_columns_ties(rows):
    (train, test), strange = rows
    detector = AnomalyDetector(false_alarms=0.1).fit(train)
    scores = detector.decision_function(np.concatenate([test, strange]))
    assert roc_auc_score([1] * len(test) + [0] * len(strange), scores) > 0.98
    false_alarms = (detector.predict(test) == -1).mean()
    assert 0.02 < false_alarms < 0.2
    assert (detector.p_values(strange) < 0.1).mean() > 0.8


def test_in_a_pipeline_and_with_pyods_signs(rows):
    (train, test), strange = rows
    make_pipeline(StandardScaler(), AnomalyDetector()).fit(train).predict(test)
    detector = PyODDetector(false_alarms=0.1).fit(train)
    assert detector.decision_function(strange).mean() > detector.decision_function(test).mean()
    assert set(detector.predict(test)) <= {0, 1}
    assert detector.labels_.shape == detector.decision_scores_.shape == (len(train),)
    assert detector.predict_proba(test).sum(1) == pytest.approx(1)


def test_fit_predict_and_what_pyod_looks_for(rows):
    (train, _), strange = rows
    both = np.concatenate([train, strange[:10]])
    said = AnomalyDetector().fit_predict(both)
    assert set(said) == {1, -1}
    assert (said[-10:] == -1).mean() > 0.5 > (said[:-10] == -1).mean()
    detector = PyODDetector(false_alarms=0.05)
    labels = detector.fit_predict(both)
    assert np.array_equal(labels, detector.labels_)
    assert np.array_equal(labels, (detector.decision_scores_ > detector.threshold_).astype(int))
    assert np.array_equal(detector.decision_scores_, detector.decision_function(both))
    assert detector.contamination == 0.05


def test_several_settings_are_averaged(rows):
    (train, test), _ = rows
    each = [{"components": 1}, {"components": 4}]
    whole = AnomalyDetector(settings=each).fit(train).score_samples(test)
    parts = [AnomalyDetector(settings=one).fit(train).score_samples(test) for one in each]
    assert whole == pytest.approx((parts[0] + parts[1]) / 2)


def test_the_same_seed_gives_the_same_detector(rows):
    (train, test), _ = rows
    scores = [AnomalyDetector(random_state=5).fit(train).score_samples(test) for _ in range(2)]
    assert np.array_equal(*scores)
