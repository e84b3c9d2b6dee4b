"""A reading says what it is, goes to JSON and comes back the same."""

import json
import math

import pytest

from simulacra.contract import Kind
from simulacra.evaluation.reading import Reading
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
