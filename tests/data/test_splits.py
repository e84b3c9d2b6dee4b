"""Splits: from content and seed alone, duplicates together, parts that the source gives kept."""

import hypothesis.strategies as st
import torch
from hypothesis import given, settings

from simulacra.data.open import assembled, open_data
from simulacra.data.raw import Raw, Survey
from simulacra.spaces import Vectors


def raw_of(rows, **more):
    return Raw(rows, Vectors(rows.shape[1]), Survey("array"), **more)


def values(part):
    return sorted(part.all().x[:, 0].tolist())


def test_the_order_of_the_rows_does_not_matter():
    rows = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    shuffled = rows[torch.randperm(200, generator=torch.Generator().manual_seed(1))]
    one, other = assembled("a", raw_of(rows)), assembled("b", raw_of(shuffled))
    assert values(one.test) == values(other.test)
    assert values(one.valid) == values(other.valid)
    assert one.fingerprint != other.fingerprint


def test_the_seed_matters_and_repeats():
    rows = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    first, again, other = (assembled("a", raw_of(rows), seed=seed) for seed in (0, 0, 1))
    assert values(first.test) == values(again.test) != values(other.test)
    assert first.fingerprint == again.fingerprint == other.fingerprint


@given(st.lists(st.integers(0, 30), min_size=1, max_size=200), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_parts_are_a_partition_and_duplicates_never_part(numbers, seed):
    rows = torch.tensor(numbers, dtype=torch.float32)[:, None]
    data = assembled("a", raw_of(rows), seed=seed)
    parts = [data.train, data.valid, data.test]
    assert sorted(torch.cat([part.index for part in parts]).tolist()) == list(range(len(numbers)))
    seen = [set(values(part)) for part in parts]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]
    assert data.source["duplicates"] == len(numbers) - len(set(numbers))


def test_a_row_keeps_its_part_when_others_come():
    rows = torch.arange(1000.0)[:, None]
    before, after = assembled("a", raw_of(rows[:900])), assembled("a", raw_of(rows))
    kept = set(values(before.test)) & set(values(after.test))
    assert len(kept) >= 80


def test_a_given_test_part_is_kept_and_the_rest_is_carved():
    rows = torch.arange(100.0)[:, None]
    given_part = torch.where(torch.arange(100) < 80, 0, 2)
    data = assembled("a", raw_of(rows, given=given_part))
    assert values(data.test) == list(range(80, 100))
    assert (len(data.train), len(data.valid)) == (72, 8)


def test_digits_are_the_embedded_set():
    data = open_data("digits")
    assert (len(data.train), len(data.valid), len(data.test)) == (1437, 180, 180)
    assert data.labels.count == 10
    assert data.space.contains(data.train.all().x)
    assert len(data.everything()) == 1797
