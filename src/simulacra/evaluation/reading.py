"""A reading: one number that says what it is, how it was made, and how far to trust it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from simulacra.contract import Kind
from simulacra.refusals import Refusal, shown

NUMBERS = ("value", "low", "high", "floor", "control")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One measured number; nothing in this room returns a bare one.

    ``kind`` is set for (negative) log-likelihoods only, and its sign reads for the printed value:
    LOWER is a lower bound of log p, so '≤' stands before nats and bits. ``low`` and ``high`` are a
    95 % interval. ``count``: how many data, or how many of each sort ('real', 'samples').
    ``how``: one sentence. ``floor``: the same measure between real data and other real data, at
    the same counts; ``control``: the same measure for what needs no model at all.
    """

    name: str
    value: float
    unit: str
    better: Literal["lower", "higher"]
    count: int | dict[str, int]
    split: str
    seed: int
    how: str
    kind: Kind | None = None
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    control: float | None = None

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
        return f"{notes[0]} ({', '.join([*notes[1:], self.counted, self.split])}, seed {self.seed})"

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
            if number is not None and not math.isfinite(number):
                values[name] = str(number)
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
        if values.get("kind") is not None:
            values["kind"] = Kind(values["kind"])
        return cls(**values)
