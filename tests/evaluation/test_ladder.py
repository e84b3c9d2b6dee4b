"""The ruler's test of itself: passed on digits, and failed by a ruler that is broken."""

import dataclasses

import pytest
import torch

from simulacra.evaluation.ladder import Ladder, climb, corrupted
from simulacra.games import Batch
from simulacra.spaces import Column, Table, Vectors

from .conftest import DIGITS


@pytest.fixture(scope="module")
def passed(digits, eyes):
    train, valid, test = digits
    return climb(DIGITS, train=train, valid=valid, test=test, features=eyes)


def test_digits_come_out_in_order(passed):
    assert passed.passed, "\n".join(passed.lines())
    assert len(passed.checks) == 6
    assert all(line.startswith("ok") for line in passed.lines()[1:])


def test_kept_and_read_again(passed):
    assert Ladder.from_json(passed.to_json()) == passed


class _Blind:
    """Eyes that see as good as noise: remainders of a checksum."""

    dimension = 2
    identity = "blind"

    def features(self, x):
        weights = torch.arange(1, 65).square().reshape(1, 8, 8)
        checksum = (x.long() * weights).sum((1, 2, 3))
        return torch.stack([(checksum * 7919) % 101, (checksum * 104729) % 97], 1) / 30


def test_eyes_that_see_little_fail(digits, eyes):
    train, valid, test = digits
    found = climb(DIGITS, train=train, valid=valid, test=test, features=_Blind())
    assert not found.passed
    assert any(line.startswith("FAILED") for line in found.lines())


def test_a_test_split_of_other_data_is_noticed(digits, eyes):
    train, valid, test = digits
    inverted = dataclasses.replace(test, x=16 - test.x)
    found = climb(DIGITS, train=train, valid=valid, test=inverted, features=eyes)
    assert any("Fréchet" in one.name and not one.passed for one in found.checks)


def test_too_few_data_test_nothing(digits, eyes):
    train, valid, test = digits
    few = Batch(valid.x[:20], valid.condition[:20])
    found = climb(DIGITS, train=train, valid=few, test=test, features=eyes)
    assert found.passed
    assert "not tested" in found.lines()[0]


def test_faults_of_real_columns_are_in_the_columns_own_unit():
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 2, generator=stream) * torch.tensor([1e-3, 1e3]) + 5
    faulty = corrupted(x, 1.0, Vectors(2), stream)
    assert torch.allclose(faulty.mean(0), x.mean(0), atol=0.1 * 1e3)
    assert ((faulty.std(0) / x.std(0) - 2).abs() < 0.2).all()
    mixed = Table((Column("size", missing=True), Column("kind", "category", ("a", "b"))))
    rows = mixed.random(200, stream)
    assert mixed.contains(corrupted(rows, 0.5, mixed, stream))
