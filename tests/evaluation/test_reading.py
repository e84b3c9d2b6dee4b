"""A reading says what it is, goes to JSON and comes back the same."""

import json
import math
from dataclasses import replace

import pytest

from simulacra.contract import Kind
from simulacra.evaluation.intervals import student_interval
from simulacra.evaluation.reading import Reading, over_seeds, possible
from simulacra.refusals import Refusal

BITS = Reading(
    name="bits per dimension",
    value=1.23456,
    unit="bits/dim",
    kind=Kind.LOWER,
    better="lower",
    low=1.2,
    high=1.27,
    count=360,
    split="test",
    seed=3,
    how="a mean",
)


def test_text_leaves_nothing_bare():
    text = "bits per dimension: ≤ 1.235 bits/dim (95 % 1.2 to 1.27, n = 360, test, seed 3)"
    assert BITS.text() == text
    other = Reading.from_json(
        BITS.to_json() | {"kind": None, "floor": 0.5, "count": {"samples": 1000, "real": 360}}
    )
    assert "real against real 0.5, n = 1,000 samples + 360 real" in other.text()


@pytest.mark.parametrize("value", [1.5, math.inf, -math.inf, math.nan])
def test_json_keeps_every_entry(value):
    reading = Reading.from_json(BITS.to_json() | {"value": value})
    packed = json.dumps(reading.to_json(), allow_nan=False)
    assert repr(Reading.from_json(json.loads(packed))) == repr(reading)


def test_what_is_no_reading_is_refused():
    with pytest.raises(Refusal, match="not the entries of a reading"):
        Reading.from_json(BITS.to_json() | {"surprise": 1})
    with pytest.raises(Refusal, match="not the entries of a reading"):
        Reading.from_json({"value": 1})


@pytest.mark.parametrize(
    ("unit", "bounds"),
    [
        ("share", (0, 1)),
        ("of 1,000", (0, 1000)),
        ("of the real data's", (-math.inf, math.inf)),
        ("MiB", (0, math.inf)),
        ("nats", (-math.inf, math.inf)),
    ],
)
def test_an_interval_of_two_seeds_ends_where_values_do(unit, bounds):
    assert possible(unit) == bounds
    one = Reading(
        name="r", value=0.0, unit=unit, better="higher", count=5, split="test", seed=0, how="h"
    )
    (found,) = over_seeds([[one], [replace(one, value=1.0)]])
    low, high = student_interval([0.0, 1.0])
    assert (found.low, found.high) == (max(low, bounds[0]), min(high, bounds[1]))
    assert Reading.from_json(json.loads(json.dumps(found.to_json()))) == found
