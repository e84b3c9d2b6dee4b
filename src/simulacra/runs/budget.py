"""Budgets: how long to train, in steps, examples or minutes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from simulacra.games import Clock
from simulacra.refusals import Refusal, shown

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Budget:
    """An amount of ``steps``, ``examples`` or ``seconds`` of training (measuring is not counted)."""

    amount: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> Budget:
        """'3m', '90s', '2h', '5000 steps' or '1e6 examples'."""
        match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([a-z]+)\s*", text.lower())
        amount = _number(match[1]) if match else 0.0
        if match and amount > 0:
            if match[2] in _SECONDS:
                return cls(amount * _SECONDS[match[2]], "seconds")
            for unit in ("steps", "examples"):
                if match[2] in (unit, unit[:-1]):
                    return cls(amount, unit)
        raise Refusal(
            "CFG-040",
            f"the budget {shown(text)} is not understood",
            way_out="write it as 3m, 90s, 5000steps or 1e6examples",
        )

    def used(self, clock: Clock, seconds: float) -> float:
        """The share of the budget that is used, 0 at the start and 1 or more at the end."""
        spent = {"steps": clock.rounds, "examples": clock.examples, "seconds": seconds}
        return spent[self.unit] / self.amount

    def __str__(self) -> str:
        if self.unit != "seconds":
            return f"{self.amount:g} {self.unit}"
        return f"{self.amount / 60:g} min" if self.amount >= 60 else f"{self.amount:g} s"


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if math.isfinite(value) else 0.0
