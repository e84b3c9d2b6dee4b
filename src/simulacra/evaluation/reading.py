"""A reading: one number that says what it is, how it was made, and how far to trust it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from statistics import fmean
from typing import Any, Literal

from simulacra.contract import Kind
from simulacra.evaluation.intervals import student_interval
from simulacra.refusals import Refusal, shown

NUMBERS = ("value", "low", "high", "floor", "control")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One measured number; nothing in this room returns a bare one.

    ``kind`` of a (negative) log-likelihood is that of log p, and its sign reads for the printed value:
    LOWER is a lower bound of log p, so '≤' stands before nats and bits. Other readings are EXACT where
    they are plain facts of the run (its parameters, the modes that its samples reached), else an
    ESTIMATE; None is found in files of before only. ``low`` and ``high`` are a 95 % interval.
    ``count``: how many data, or how many of each sort ('real', 'samples'). ``how``: one sentence.
    ``floor``: the same measure between real data and other real data, at the same counts; ``control``:
    the same measure for what needs no model at all. 'nearer' is better where the best value is the
    floor itself. ``features``: the kind of the net that saw the data, and the start of its weights'
    SHA-256; empty where none did. ``each``: the values of the training seeds that this one is the mean
    of.
    """

    name: str
    value: float
    unit: str
    better: Literal["lower", "higher", "nearer"]
    count: int | dict[str, int]
    split: str
    seed: int
    how: str
    kind: Kind | None = None
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    control: float | None = None
    features: str = ""
    each: tuple[float, ...] = ()

    def text(self) -> str:
        """The whole reading on one line."""
        sign = "" if self.kind is None else f"{self.kind.sign} "
        unit = f" {self.unit}" if self.unit else ""
        notes = [f"{self.name}: {sign}{self.value:.4g}{unit}"]
        if self.low is not None and self.high is not None:
            notes.append(f"95 % {self.low:.4g} to {self.high:.4g}")
        if self.floor is not None:
            notes.append(f"real against real {self.floor:.4g}")
        if self.control is not None:
            notes.append(f"without a model {self.control:.4g}")
        notes += [self.counted, self.split, f"seed {self.seed}"]
        if self.features:
            notes.append(f"features {self.features}")
        return f"{notes[0]} ({', '.join(notes[1:])})"

    @property
    def counted(self) -> str:
        """The count in words."""
        if isinstance(self.count, int):
            return f"n = {self.count:,}"
        return "n = " + " + ".join(f"{number:,} {what}" for what, number in self.count.items())

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary that ``from_json`` turns back; numbers that JSON lacks become words."""
        values = asdict(self)
        values["kind"] = None if self.kind is None else self.kind.value
        for name in NUMBERS:
            number = values[name]
            if number is not None:
                values[name] = _plain(number)
        values["each"] = [_plain(number) for number in self.each]
        return values

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Reading:
        """The reading that ``to_json`` described."""
        known = {field.name for field in fields(cls)}
        if set(data) - known or not {"name", "value", "unit", "count", "how"} <= set(data):
            reason = f"{shown(sorted(data))} are not the entries of a reading"
            raise Refusal("FILE-020", reason, way_out="measure the run again")
        values = dict(data)
        for name in NUMBERS:
            if values.get(name) is not None:
                values[name] = float(values[name])
        values["each"] = tuple(float(one) for one in values.get("each", ()))
        if values.get("kind") is not None:
            values["kind"] = Kind(values["kind"])
        return cls(**values)


def _plain(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)


def possible(unit: str) -> tuple[float, float]:
    """The values that a reading in this unit may have."""
    if unit in ("share", "accuracy", "area under ROC", "average precision", "(0 to 1)"):
        return 0.0, 1.0
    if unit == "(0 by chance, 1 at most)":
        return -1.0, 1.0
    if unit.startswith("of ") and unit[3:].replace(",", "").isdecimal():
        return 0.0, float(unit[3:].replace(",", ""))
    known = (
        "s",
        "s/sample",
        "MiB",
        "numbers",
        "neighbourhoods",
        "classes",
        "squared error a datum",
    )
    return (0.0 if unit in known else -math.inf), math.inf


def _of_several(kind: Kind | None) -> Kind | None:
    """What the mean over trainings is where each told an exact number of itself: an estimate."""
    return Kind.ESTIMATE if kind is Kind.EXACT else kind


def over_seeds(runs: Sequence[Sequence[Reading]]) -> tuple[Reading, ...]:
    """Readings of the same model trained with several seeds, as means with Student's 95 % interval.

    A reading that one run lacks is left out: a mean over fewer runs would not compare. Intervals of two
    or three values are wide, and end where values do.
    """
    by_name = [{one.name: one for one in readings} for readings in runs]
    means = []
    for first in runs[0]:
        if not all(first.name in one for one in by_name):
            continue
        same = [one[first.name] for one in by_name]
        values = [one.value for one in same]
        low, high = student_interval(values)
        least, most = possible(first.unit)
        floors = [one.floor for one in same if one.floor is not None]
        controls = [one.control for one in same if one.control is not None]
        spread = f"{min(values):.4g} to {max(values):.4g}"
        means.append(
            replace(
                first,
                value=fmean(values),
                kind=first.kind if min(values) == max(values) else _of_several(first.kind),
                low=max(low, least),
                high=min(high, most),
                each=tuple(values),
                floor=fmean(floors) if floors else None,
                control=fmean(controls) if controls else None,
                how=f"{first.how}; mean of {len(values)} training seeds, which lie from {spread}",
            )
        )
    return tuple(means)
