"""Spaces: what one datum may be.

A space is a frozen value without state, files or generators. It knows the shape and the type of an
element, how many dimensions bits are divided by, and which measure a density is taken against.
Every tensor that crosses a room's border is a batch of elements of a space.
"""

from __future__ import annotations

import math
import struct
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, Literal

import torch
from torch import Tensor

from simulacra.refusals import Refusal, shown


class Measure(StrEnum):
    """What a density is a density of: a count of states, or a volume."""

    COUNTING = "counting"
    LEBESGUE = "lebesgue"
    MIXED = "mixed"


class Space(ABC):
    """What one datum may be; subclasses are frozen dataclasses."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of one element."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The type that elements are stored and sampled in."""

    @property
    @abstractmethod
    def measure(self) -> Measure:
        """The measure that ``log_prob`` is taken against."""

    @abstractmethod
    def random(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` elements, shape (count, *shape), covering the space without any meaning."""

    @abstractmethod
    def holds(self, x: Tensor) -> bool:
        """Whether the entries of ``x`` have this space's type and range (its shape is checked)."""

    @property
    def dimensions(self) -> int:
        """D, the number that total bits are divided by to give bits per dimension."""
        return math.prod(self.shape)

    def contains(self, x: Tensor) -> bool:
        """Whether ``x``, shape (batch, *shape), is a batch of elements of this space."""
        return tuple(x.shape[1:]) == self.shape and self.holds(x)

    def rounded(self, x: Tensor) -> Tensor:
        """Elements that a model made as people are handed them: of a table, numbers with as many decimals
        as its data have."""
        return x

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary that ``space_from_json`` turns back into an equal space."""
        return {"space": type(self).__name__, **asdict(self)}  # type: ignore[call-overload]

    def require(self, x: Tensor, *, who: str) -> Tensor:
        """``x`` itself when it belongs to this space, else a refusal that says what came."""
        if not self.contains(x):
            raise Refusal(
                "DATA-001",
                f"{who} got a tensor of shape {tuple(x.shape)} and type {x.dtype}",
                way_out=f"give a batch of {self}",
            )
        return x


def _integers_within(x: Tensor, levels: int) -> bool:
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        return False
    return x.numel() == 0 or (int(x.min()) >= 0 and int(x.max()) < levels)


def _finite_reals(x: Tensor) -> bool:
    return x.is_floating_point() and bool(torch.isfinite(x).all())


@dataclass(frozen=True)
class Images(Space):
    """Images of integers 0..levels-1, shape (channels, height, width); gray has one channel."""

    channels: int
    height: int
    width: int
    levels: int = 256

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels, self.height, self.width)

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8 if self.levels <= 256 else torch.int32

    @property
    def measure(self) -> Measure:
        return Measure.COUNTING

    def random(self, count: int, generator: torch.Generator) -> Tensor:
        values = torch.randint(self.levels, (count, *self.shape), generator=generator)
        return values.to(self.dtype)

    def holds(self, x: Tensor) -> bool:
        return _integers_within(x, self.levels)

    def __str__(self) -> str:
        return (
            f"images {self.channels}x{self.height}x{self.width} with integers 0..{self.levels - 1}"
        )


@dataclass(frozen=True)
class Tokens(Space):
    """Sequences of ``length`` integers 0..vocabulary-1.

    ``alphabet``: of text, the character that each of them stands for; ``utf8``: they are its bytes.
    """

    length: int
    vocabulary: int
    alphabet: str = ""
    utf8: bool = False

    def __post_init__(self) -> None:
        if self.alphabet and len(self.alphabet) != self.vocabulary:
            reason = f"an alphabet of {len(self.alphabet)} for {self.vocabulary} tokens"
            raise Refusal("CFG-230", reason, way_out="give one character for each token")

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def dtype(self) -> torch.dtype:
        return torch.int64

    @property
    def measure(self) -> Measure:
        return Measure.COUNTING

    def random(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(self.vocabulary, (count, self.length), generator=generator)

    def holds(self, x: Tensor) -> bool:
        return _integers_within(x, self.vocabulary)

    def __str__(self) -> str:
        if self.alphabet:
            return f"texts of {self.length} characters from {shown(self.alphabet)}"
        if self.utf8:
            return f"texts of {self.length} bytes in UTF-8"
        return f"sequences of {self.length} tokens 0..{self.vocabulary - 1}"


@dataclass(frozen=True)
class Labels(Space):
    """One of ``count`` classes, as an integer; ``names`` are for people.

    ``channel_classes``: where each channel of an image shows one of so many classes by itself, and a
    class is their combination, read as a number whose first digit is the first channel's.
    """

    count: int
    names: tuple[str, ...] = ()
    channel_classes: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    @property
    def dtype(self) -> torch.dtype:
        return torch.int64

    @property
    def measure(self) -> Measure:
        return Measure.COUNTING

    def random(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(self.count, (count,), generator=generator)

    def holds(self, x: Tensor) -> bool:
        return _integers_within(x, self.count)

    def name(self, label: int) -> str:
        width = len(str(self.count - 1)) if self.channel_classes else 0
        return self.names[label] if self.names else str(label).zfill(width)

    def combined(self, per_channel: Tensor) -> Tensor:
        """One class from those of the channels, shape (n, channels) to (n,)."""
        powers = self.channel_classes ** torch.arange(per_channel.shape[1] - 1, -1, -1)
        return (per_channel.long() * powers).sum(1)

    def separated(self, labels: Tensor, channels: int) -> Tensor:
        """The class of each channel, shape (n,) to (n, channels)."""
        powers = self.channel_classes ** torch.arange(channels - 1, -1, -1)
        return labels.long()[:, None] // powers % self.channel_classes

    def __str__(self) -> str:
        return f"labels 0..{self.count - 1}"


@dataclass(frozen=True)
class Vectors(Space):
    """Real vectors of ``size`` entries, against Lebesgue measure."""

    size: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size,)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def measure(self) -> Measure:
        return Measure.LEBESGUE

    def random(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randn((count, self.size), generator=generator)

    def holds(self, x: Tensor) -> bool:
        return _finite_reals(x)

    def __str__(self) -> str:
        return f"real vectors of {self.size} entries"


@dataclass(frozen=True)
class Series(Space):
    """Real signals, shape (channels, length); ``rate`` in samples a second, 0 when unknown."""

    channels: int
    length: int
    rate: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels, self.length)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def measure(self) -> Measure:
        return Measure.LEBESGUE

    def random(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randn((count, *self.shape), generator=generator)

    def holds(self, x: Tensor) -> bool:
        return _finite_reals(x)

    def __str__(self) -> str:
        return f"signals of {self.channels} channels and {self.length} samples"


@dataclass(frozen=True)
class Column:
    """One column of a table: real numbers, or one of the named ``categories``.

    ``missing``: whether a real one may be missing, which then is a state of its own, NaN.
    ``decimals``: how many the data's numbers are written with, 0 for whole ones; None of many, or where
    nobody looked. They say how numbers are handed out, and not which there may be: columns that differ
    in nothing else are equal.
    """

    name: str
    kind: Literal["real", "category"] = "real"
    categories: tuple[str, ...] = ()
    missing: bool = False
    decimals: int | None = field(default=None, compare=False)

    def text(self, value: float) -> str:
        """A value of the column as people write it; a number that is stored in 32 bits stays the same."""
        if self.kind == "category":
            return self.categories[int(value)]
        if self.decimals is not None and math.isfinite(value):
            # Adding nothing makes a zero without a sign.
            short = round(value, self.decimals) + 0.0
            if struct.unpack("f", struct.pack("f", short)) == (value,):
                text = f"{short:.{self.decimals}f}"
                return text.rstrip("0").rstrip(".") if self.decimals else text
        return f"{value:.9g}"


@dataclass(frozen=True)
class Table(Space):
    """Rows of a table, (columns,) reals; a category stands as its index, a missing number as NaN."""

    columns: tuple[Column, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.columns),)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def measure(self) -> Measure:
        if self.may_miss:
            return Measure.MIXED
        kinds = {column.kind for column in self.columns}
        if kinds == {"real"}:
            return Measure.LEBESGUE
        return Measure.COUNTING if kinds == {"category"} else Measure.MIXED

    @property
    def may_miss(self) -> tuple[str, ...]:
        """The names of the columns in which numbers may be missing."""
        return tuple(column.name for column in self.columns if column.missing)

    def rounded(self, x: Tensor) -> Tensor:
        told = [one.decimals if one.kind == "real" else None for one in self.columns]
        columns = [
            column if decimals is None else (column.double().round(decimals=decimals) + 0.0)
            for column, decimals in zip(x.unbind(-1), told, strict=True)
        ]
        return torch.stack([column.to(x.dtype) for column in columns], dim=-1)

    def random(self, count: int, generator: torch.Generator) -> Tensor:
        drawn = [self._random_column(column, count, generator) for column in self.columns]
        return torch.stack(drawn, dim=1)

    @staticmethod
    def _random_column(column: Column, count: int, generator: torch.Generator) -> Tensor:
        if column.kind == "category":
            return torch.randint(len(column.categories), (count,), generator=generator).float()
        numbers = torch.randn(count, generator=generator)
        if not column.missing:
            return numbers
        return torch.where(torch.rand(count, generator=generator) < 0.25, torch.nan, numbers)

    def holds(self, x: Tensor) -> bool:
        may_miss = torch.tensor([column.missing for column in self.columns], device=x.device)
        if not x.is_floating_point() or not bool((x.isfinite() | (x.isnan() & may_miss)).all()):
            return False
        for index, column in enumerate(self.columns):
            if column.kind == "category":
                codes = x[:, index]
                whole = bool((codes == codes.round()).all())
                if not whole or not _integers_within(codes.long(), len(column.categories)):
                    return False
        return True

    def __str__(self) -> str:
        categories = sum(column.kind == "category" for column in self.columns)
        missing = f", numbers missing in {len(self.may_miss)}" if self.may_miss else ""
        return (
            f"table rows of {len(self.columns)} columns, {categories} of them categories{missing}"
        )


@dataclass(frozen=True)
class Pair(Space):
    """Two data that belong together; travels as two tensors, one of each space."""

    left: Space
    right: Space

    @property
    def shape(self) -> tuple[int, ...]:
        raise TypeError("a Pair travels as two tensors; ask pair.left or pair.right for a shape")

    @property
    def dtype(self) -> torch.dtype:
        raise TypeError("a Pair travels as two tensors; ask pair.left or pair.right for a type")

    @property
    def measure(self) -> Measure:
        same = self.left.measure == self.right.measure
        return self.left.measure if same else Measure.MIXED

    @property
    def dimensions(self) -> int:
        return self.left.dimensions + self.right.dimensions

    def random(self, count: int, generator: torch.Generator) -> Tensor:
        raise TypeError("a Pair travels as two tensors; draw from pair.left and pair.right")

    def holds(self, x: Tensor) -> bool:
        return False

    def to_json(self) -> dict[str, Any]:
        return {"space": "Pair", "left": self.left.to_json(), "right": self.right.to_json()}

    def __str__(self) -> str:
        return f"pairs of ({self.left}) and ({self.right})"


_KNOWN: dict[str, type[Space]] = {
    kind.__name__: kind for kind in (Images, Tokens, Labels, Vectors, Series, Table, Pair)
}


def space_from_json(data: dict[str, Any]) -> Space:
    """The space that ``to_json`` described; anything unknown in ``data`` is refused."""
    values = dict(data)
    name = values.pop("space", None)
    kind = _KNOWN.get(str(name))
    if kind is None:
        raise Refusal(
            "CFG-001", f"unknown space {shown(name)}", way_out=f"use one of {', '.join(_KNOWN)}"
        )
    if set(values) - {field.name for field in fields(kind)}:  # type: ignore[arg-type]
        raise Refusal(
            "CFG-002",
            f"{name} got unknown entries {shown(sorted(values))}",
            way_out="write the space with to_json()",
        )
    if kind is Pair:
        return Pair(space_from_json(values["left"]), space_from_json(values["right"]))
    if kind is Table:
        columns = (
            Column(**one | {"categories": tuple(one["categories"])}) for one in values["columns"]
        )
        return Table(tuple(columns))
    if kind is Labels:
        names = tuple(values.get("names", ()))
        return Labels(values["count"], names, values.get("channel_classes", 0))
    return kind(**values)
