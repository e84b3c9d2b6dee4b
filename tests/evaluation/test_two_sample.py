"""The classifier two-sample test: half right between equals, and more where something differs."""

import torch

from simulacra.evaluation.measure import Provenance
from simulacra.evaluation.two_sample import TwoSample
from simulacra.spaces import Vectors


def accuracy(samples, real, **settings):
    measure = TwoSample(Vectors(4), Provenance(seed=3), **settings)
    return measure.update(samples=samples, real=real).compute()[0]


def normal(rows, seed):
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))


def test_a_shift_is_seen():
    reading = accuracy(normal(150, 0) + 2.0, normal(150, 1))
    assert reading.value > 0.9


def test_few_data_are_halved_several_times_and_count_once():
    one, several = normal(100, 2), normal(100, 3)
    average = accuracy(one, several).value
    single = accuracy(one, several, halvings=1)
    assert abs(average * 800 - round(average * 800)) < 1e-9
    assert average != single.value
    reading = accuracy(one, several)
    assert reading.high - reading.low > 0.12, "an interval of 200 judgements, not of 800"


def test_equals_average_to_one_half():
    values = [
        accuracy(normal(100, 10 + i), normal(100, 50 + i), halvings=1).value for i in range(8)
    ]
    assert abs(sum(values) / 8 - 0.5) < 3 * 0.6 / 1600**0.5
