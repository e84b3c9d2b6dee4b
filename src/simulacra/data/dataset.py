"""A data set: a space, three parts, and a stream of batches that is a pure function of its index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from simulacra.games import Batch
from simulacra.probability.mixtures import RoundMixture
from simulacra.probability.noise import mixed
from simulacra.refusals import Refusal
from simulacra.spaces import Labels, Space


class Gathered(Protocol):
    """Elements that are put together when they are asked for; it is indexed as an array is."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...

    def __getitem__(self, which: slice | np.ndarray) -> np.ndarray: ...


Rows = Tensor | np.ndarray | Gathered
"""Stored elements: one integer tensor where it fits in memory, else a memory-mapped array or the like."""

View = Callable[[Tensor, torch.Generator], Tensor]
"""A random view of stored rows, such as dynamic binarisation: (rows, generator) to elements."""


@dataclass(frozen=True)
class Part:
    """Elements and what they go with, where it is known: a label, attributes, a caption, an image;
    ``index`` picks this part's stored rows."""

    rows: Rows
    index: Tensor
    space: Space
    conditions: Tensor | None = None
    view: View | None = None

    def __len__(self) -> int:
        return len(self.index)

    def take(self, which: Tensor, seed: int) -> Tensor:
        """Elements of the space at positions ``which`` of this part; a view draws from ``seed``."""
        stored = self.index[which]
        if isinstance(self.rows, Tensor):
            # Whole rows are copied at once, where indexing would look up each entry by itself.
            picked = self.rows.index_select(0, stored.to(self.rows.device))
        else:
            picked = torch.from_numpy(np.ascontiguousarray(self.rows[stored.numpy()]))
        if self.view is not None:
            picked = self.view(picked, torch.Generator().manual_seed(mixed(seed)))
        return picked

    def condition(self, which: Tensor) -> Tensor | None:
        """What the elements at these positions go with."""
        return None if self.conditions is None else self.conditions[self.index[which]]

    def first(self, count: int) -> Batch:
        """The first ``count`` elements with their conditions, always the same ones."""
        which = torch.arange(min(count, len(self)))
        return Batch(self.take(which, 0), self.condition(which))

    def all(self) -> Batch:
        """Every element; for parts that fit in memory."""
        return self.first(len(self))


@dataclass(frozen=True)
class Dataset:
    """A space and the three parts of one set of data; ``source`` says in words where it came from.

    ``condition`` is the space of what each datum goes with. ``truth``: the distribution that the data are
    drawn from, where it is known. ``options``: what ``open_data`` was told, to open them again.
    """

    name: str
    space: Space
    train: Part
    valid: Part
    test: Part
    condition: Space | None = None
    fingerprint: str = ""
    source: dict[str, Any] = field(default_factory=dict)
    truth: RoundMixture | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> Labels | None:
        """The classes, where it is these that data go with."""
        return self.condition if isinstance(self.condition, Labels) else None

    def everything(self) -> Part:
        """All elements in the order of their source, for scoring rather than training.

        Parts that share their stored rows are joined; a set that comes with a test part of its own
        (canonical MNIST) gives that one.
        """
        parts = (self.train, self.valid, self.test)
        if any(part.rows is not self.train.rows for part in parts):
            return self.test
        index = torch.cat([part.index for part in parts]).sort().values
        return replace(self.test, index=index)

    def describe(self) -> dict[str, Any]:
        """What a run's card says about the data."""
        return {
            "name": self.name,
            "space": self.space.to_json(),
            "labels": None if self.labels is None else self.labels.to_json(),
            "train": len(self.train),
            "valid": len(self.valid),
            "test": len(self.test),
            "fingerprint": self.fingerprint,
            "source": self.source,
        }


class Stream:
    """The endless, shuffled stream of a part: batch ``index`` depends on (seed, index) only.

    Every epoch is a permutation drawn from (seed, epoch); the last, ragged batch of an epoch is left
    out. With several processes, each takes its own equal part of every batch, which is a multiple of
    the data that are judged ``together``.
    """

    def __init__(
        self,
        part: Part,
        batch_size: int,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        conditional: bool = False,
        world: int = 1,
        rank: int = 0,
        together: int = 1,
    ) -> None:
        self.part = part
        if batch_size < 1:
            reason = f"the batch size is {batch_size}"
            raise Refusal("CFG-020", reason, way_out="give at least 1")
        unit = world * together
        self.batch_size = min(batch_size, len(part) // unit * unit)
        if self.batch_size < 1 or self.batch_size % unit:
            size = self.batch_size or len(part)
            parts = [f"by {world} processes"] * (world > 1) + [f"in packs of {together}"] * (
                together > 1
            )
            raise Refusal(
                "CFG-020",
                f"a batch of {size} cannot be shared {' and '.join(parts)}",
                way_out=f"choose a batch size that is a multiple of {unit}, of at least as many data",
            )
        self.seed = seed
        self.device = device
        self.conditional = conditional
        self.world, self.rank = world, rank
        self._epoch = -1
        self._order = torch.empty(0)

    @property
    def batches_per_epoch(self) -> int:
        return len(self.part) // self.batch_size

    def batch(self, index: int) -> Batch:
        epoch, within = divmod(index, self.batches_per_epoch)
        if epoch != self._epoch:
            stream = torch.Generator().manual_seed(mixed(self.seed, epoch))
            self._order = torch.randperm(len(self.part), generator=stream)
            self._epoch = epoch
        which = self._order[within * self.batch_size : (within + 1) * self.batch_size]
        return self._deliver(which, mixed(self.seed, index, 2), share=True)

    def sweep(self) -> Iterator[Batch]:
        for start in range(0, len(self.part), self.batch_size):
            which = torch.arange(start, min(start + self.batch_size, len(self.part)))
            yield self._deliver(which, mixed(self.seed, start, 3), share=False)

    def _deliver(self, which: Tensor, seed: int, *, share: bool) -> Batch:
        x = self.part.take(which, seed)
        y = self.part.condition(which) if self.conditional else None
        if share and self.world > 1:
            own = len(which) // self.world
            mine = slice(self.rank * own, (self.rank + 1) * own)
            x, y = x[mine], None if y is None else y[mine]
        return Batch(x.to(self.device), None if y is None else y.to(self.device))
