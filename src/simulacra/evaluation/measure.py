"""A measure: rows come in batches of any size and in any order, readings come out.

    distance = FrechetDistance(Provenance(split="test", seed=0, features="classifier 3fa9c1d2e4b5"))
    for batch in batches:
        distance.update(samples=batch)
    distance.update(real=real)
    readings = distance.compute()

Roles name what rows are (``samples``, ``real``, …); each measure says which it takes. ``read`` feeds a
measure from a case, which is how the ruler uses all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from simulacra.contract import Kind
from simulacra.evaluation.case import Case
from simulacra.evaluation.reading import Reading
from simulacra.refusals import Refusal


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where rows come from: the split of the real ones, the seed of the drawn ones, and the net whose
    features they are, by kind and the start of its SHA-256 (empty where none is used)."""

    split: str = "test"
    seed: int = 0
    features: str = ""
    about: str = ""

    @classmethod
    def of(cls, case: Case, *, features: bool = True) -> Provenance:
        """That of a case's rows."""
        return cls(
            seed=case.seed,
            features=case.features.identity if features else "",
            about=case.eyes if features else "",
        )


class Measure(ABC):
    """One file of this room holds one."""

    NEEDS: ClassVar[tuple[type, ...]] = ()
    """The capabilities of which a model needs one; empty where every model is measured."""
    ROLES: ClassVar[tuple[str, ...]] = ()
    """What rows may be."""
    REQUIRED: ClassVar[tuple[str, ...]] = ()
    """The roles without which nothing can be read."""

    def __init__(self, provenance: Provenance | None = None) -> None:
        self.provenance = provenance or Provenance()
        self._rows: dict[str, list[Tensor]] = {}

    def update(self, **rows: Tensor | None) -> Self:
        """Take in rows by role, each of shape (n, …); None stands for no rows."""
        for role, batch in rows.items():
            if role not in self.ROLES:
                raise TypeError(f"{type(self).__name__} takes {', '.join(self.ROLES)}, not {role}")
            if batch is not None and len(batch):
                self._rows.setdefault(role, []).append(batch.detach().cpu())
        return self

    def rows(self, role: str) -> Tensor:
        """All rows of a role; refused where there are none."""
        if role not in self._rows:
            raise Refusal(
                "NUM-023",
                f"{type(self).__name__} got no {role.replace('_', ' ')}",
                way_out=f"give it {', '.join(self.REQUIRED)} before it computes",
            )
        parts = self._rows[role]
        if len(parts) > 1:
            self._rows[role] = parts = [torch.cat(parts)]
        return parts[0]

    def has(self, role: str) -> bool:
        """Whether there are rows of a role."""
        return role in self._rows

    @abstractmethod
    def compute(self) -> list[Reading]:
        """The readings; an empty list where the question does not arise."""

    @classmethod
    @abstractmethod
    def read(cls, case: Case) -> list[Reading]:
        """The readings of a case."""

    def reading(
        self,
        name: str,
        value: float,
        *,
        better: Literal["lower", "higher", "nearer"],
        count: int | dict[str, int],
        how: str,
        unit: str,
        kind: Kind = Kind.ESTIMATE,
        interval: tuple[float, float] | None = None,
        **more: Any,
    ) -> Reading:
        """A reading that knows where its rows come from.

        What is read off finitely many data is an estimate, unless the measure says otherwise.
        """
        return Reading(
            name=name,
            value=float(value),
            unit=unit,
            kind=kind,
            better=better,
            count=count,
            how=how,
            split=more.pop("split", self.provenance.split),
            seed=self.provenance.seed,
            features=self.provenance.features,
            low=None if interval is None else interval[0],
            high=None if interval is None else interval[1],
            **more,
        )


class SetMeasure(Measure):
    """A measure of features of samples against those of real data."""

    ROLES: ClassVar[tuple[str, ...]] = ("samples", "real", "other_real", "gaussian")
    REQUIRED: ClassVar[tuple[str, ...]] = ("samples", "real")

    @classmethod
    def read(cls, case: Case) -> list[Reading]:
        """From the case's features, each role that this measure takes."""
        measure = cls(Provenance.of(case))
        return measure.update(**{role: case.rows(role) for role in cls.ROLES}).compute()

    def counts(self, roles: Sequence[str] = ("samples", "real")) -> dict[str, int]:
        """How many rows there are of each role."""
        return {role: len(self.rows(role)) for role in roles}
