"""What a reader finds: rows as they are stored, and what a person should know about them."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simulacra.data.dataset import Rows
from simulacra.probability.mixtures import RoundMixture
from simulacra.refusals import Refusal, shown
from simulacra.spaces import Images, Labels, Space

SHARE_OF_MEMORY = 0.25
"""Rows that take more than this share of the machine's memory stay on the disk."""

TRAIN, VALID, TEST = 0, 1, 2


@dataclass
class Survey:
    """What was met on the way; ``bad`` are data that cannot be read, by name, with the reason."""

    kind: str
    sizes: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    bad: list[tuple[str, str]] = field(default_factory=list)
    ignored: int = 0
    notes: list[str] = field(default_factory=list)

    def require_few_bad(self, what: object, skip_bad: int | None, *, one: str = "file") -> None:
        """Refuse when more data are broken than the user said may be left out; None: nothing may be."""
        if len(self.bad) <= (skip_bad or 0):
            return
        name, reason = self.bad[0]
        more = f" (and {len(self.bad) - 1} more)" if len(self.bad) > 1 else ""
        way_out = f"mend or remove the {one}"
        if skip_bad is not None:
            way_out += f", or leave such out with --skip-bad {len(self.bad)}"
        raise Refusal("DATA-010", f"{shown(name)} in {shown(what)} {reason}{more}", way_out=way_out)


@dataclass
class Raw:
    """Rows of ``space``, with labels and given parts where the source has any.

    ``given``: 0 train, 1 validation, 2 test for every row, where the source says so itself.
    ``channel_classes``: see ``Labels``. ``truth``: what the rows are drawn from, where it is known.
    ``conditions``: what each row goes with, elements of ``condition_space``, where that is no class: a
    caption, attributes, an image.
    """

    rows: Rows
    space: Space
    survey: Survey
    labels: Tensor | None = None
    label_names: tuple[str, ...] = ()
    given: Tensor | None = None
    source: dict[str, Any] = field(default_factory=dict)
    channel_classes: int = 0
    truth: RoundMixture | None = None
    conditions: Tensor | None = None
    condition_space: Space | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def classes(self) -> Labels | None:
        """The space of the labels, where there are any."""
        if self.labels is None:
            return None
        if self.channel_classes and isinstance(self.space, Images):
            count = self.channel_classes**self.space.channels
            return Labels(count, channel_classes=self.channel_classes)
        return Labels(len(self.label_names), self.label_names)

    @property
    def told(self) -> tuple[Tensor | None, Space | None]:
        """What each row goes with, be it a class or something else, and its space."""
        if self.conditions is not None:
            return self.conditions, self.condition_space
        return self.labels, self.classes

    def digests(self) -> Iterator[bytes]:
        """Sixteen bytes that name the content of each row."""
        for start in range(0, len(self), 1024):
            part = self.rows[start : start + 1024]
            block = np.ascontiguousarray(part.numpy() if isinstance(part, Tensor) else part)
            for row in block:
                yield hashlib.blake2b(row.tobytes(), digest_size=16).digest()


def memory_limit() -> int:
    """Bytes of rows that are kept in memory."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        total = 8 * 2**30
    return int(SHARE_OF_MEMORY * total)


def cache_folder() -> Path:
    """Where downloads and decoded large data are kept: SIMULACRA_CACHE, or the user's own cache."""
    told = os.environ.get("SIMULACRA_CACHE") or os.environ.get("XDG_CACHE_HOME")
    home = Path(told) if told else Path.home() / ".cache"
    return home if "SIMULACRA_CACHE" in os.environ else home / "simulacra"


def room(count: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """An array to fill with rows: in memory, or in a file that goes when nobody uses it any more."""
    size = count * int(np.prod(shape)) * dtype.itemsize
    if size <= memory_limit():
        return np.empty((count, *shape), dtype)
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix="rows-") as file:
        # The mapping keeps the file's content alive after its name has gone.
        file.truncate(size)
        return np.memmap(file.name, dtype, "r+", shape=(count, *shape))


def kept(rows: np.ndarray) -> Rows:
    """Rows that fit in memory as one tensor, larger ones as the array on the disk."""
    on_disk = isinstance(rows, np.memmap) or isinstance(rows.base, np.memmap)
    if on_disk and rows.nbytes > memory_limit():
        return rows
    return torch.from_numpy(np.array(rows) if on_disk or not rows.flags.writeable else rows)


def named_labels(names: Iterable[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Classes by name, as numbers in the order of their names; numbers sort as numbers."""
    listed = list(names)
    whole = all(name.lstrip("-").isdigit() for name in set(listed))
    order = tuple(sorted(set(listed), key=(lambda n: (int(n), n)) if whole else str.casefold))
    number = {name: index for index, name in enumerate(order)}
    return torch.tensor([number[name] for name in listed], dtype=torch.int64), order
