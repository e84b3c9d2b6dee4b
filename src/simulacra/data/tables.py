"""Tables: CSV (also packed) and Parquet.

A column whose cells are all numbers is real; cells without one are missing, which is a state of its own.
Whole numbers of few different values are categories in their order, like marks; any other column is a
category, one code a text. Rows with another count of cells, with an infinite number or, where a trained
model's own columns are given, with what it has never seen are named by row and column, and left out
with --skip-bad.

A row of empty cells is a row of missing ones, but at the end of a file, where it is none. A line without
anything is no row either, save between those of a single column, where it is a missing cell. The survey
tells how many were left out so. In CSV a ' before what a spreadsheet would run as a formula is no part
of the text.
"""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simulacra.data.raw import Raw, Survey, kept, room
from simulacra.refusals import Refusal, shown
from simulacra.spaces import Column, Space, Table

CSV_ENDINGS = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
ENDINGS = (*CSV_ENDINGS, ".parquet")
MISSING = ("", "na", "n/a", "nan", "null", "none", "?")
MOST_ORDERED = 20
"""Whole numbers of so many different values at most are categories."""
MOST_DECIMALS = 6
"""Numbers with more decimals are as if measured without an end."""
LOOKED_AT, MOST_LOST = 2000, 0.01
"""Of so many numbers of a column this share may fall together in 32 bits."""
MOST_NAMED = 30
MOST_CATEGORIES, MOST_COLUMNS, MOST_CELL = 1000, 10_000, 1 << 20

Cells = Sequence[Any]
Read = Callable[[], Iterator[tuple[int | str, Cells | None]]]
"""Rows with their number in the file, or their name, from its start at each call; None of lines that
hold no row."""


def is_table(path: Path) -> bool:
    """Whether ``path`` is a table by its ending."""
    return path.name.lower().endswith(ENDINGS)


@dataclass
class _Seen:
    """What one column was seen to hold."""

    texts: set[str] = field(default_factory=set)
    numbers: set[float] = field(default_factory=set)
    first: array[float] = field(default_factory=lambda: array("d"))
    decimals: int = 0
    numeric: bool = True
    missing: bool = False

    def see(self, cell: Any) -> None:
        if _missing(cell):
            self.missing = True
        elif self.numeric:
            number = _number(cell)
            self.numeric = number is not None
            if number is not None:
                self._see(number)
        if len(self.texts) <= MOST_CATEGORIES:
            self.texts.add(str(cell).strip())

    def _see(self, number: float) -> None:
        if len(self.numbers) <= MOST_ORDERED:
            self.numbers.add(number)
        if len(self.first) < LOOKED_AT:
            self.first.append(number)
        if math.isfinite(number):
            while self.decimals <= MOST_DECIMALS and round(number, self.decimals) != number:
                self.decimals += 1

    @property
    def falls_together(self) -> bool:
        """Whether different numbers are often the same in 32 bits."""
        numbers = np.unique(np.array(self.first))
        with np.errstate(over="ignore"):
            left = len(np.unique(numbers.astype(np.float32)))
        return self.numeric and left < (1 - MOST_LOST) * len(numbers)

    def column(self, path: Path, name: str) -> Column:
        """What the column is taken as."""
        if self.numeric and self.numbers:
            few = len(self.numbers) <= MOST_ORDERED
            if few and not self.missing and all(one.is_integer() for one in self.numbers):
                return Column(name, "category", tuple(f"{one:.0f}" for one in sorted(self.numbers)))
            decimals = self.decimals if self.decimals <= MOST_DECIMALS else None
            return Column(name, missing=self.missing, decimals=decimals)
        if len(self.texts) > MOST_CATEGORIES:
            reason = f"the column {shown(name)} of {shown(path)} has more than {MOST_CATEGORIES} "
            raise Refusal(
                "DATA-031", reason + "different texts", way_out="leave it out, or group its values"
            )
        return Column(name, "category", tuple(sorted(self.texts)))


def read_table(
    path: Path, *, label: str | None = None, like: Table | None = None, skip_bad: int = 0
) -> Raw:
    """The rows of a table.

    ``label``: the column that holds the labels. ``like``: a trained model's columns, to read rows as;
    then a column of labels is passed over, or need not be there.
    """
    names, read = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    if label is None or (like is not None and label not in names):
        return _read(path, names, read, like, skip_bad)
    if label not in names:
        listed = ", ".join(names[:MOST_NAMED])
        reason = f"{shown(path)} has no column {shown(label)}"
        raise Refusal("DATA-037", reason, way_out=f"choose one of {listed}")
    if like is not None:
        kept_cells = [index for index, name in enumerate(names) if name != label]

        def without() -> Iterator[tuple[int | str, Cells | None]]:
            for number, cells in read():
                whole = cells is not None and len(cells) == len(names)
                if cells is not None:
                    cells = [cells[index] for index in kept_cells] if whole else ()
                yield number, cells

        others = tuple(name for name in names if name != label)
        return _read(path, others, without, like, skip_bad)
    return _labelled(path, _read(path, names, read, None, skip_bad), names.index(label))


def _labelled(path: Path, raw: Raw, at: int) -> Raw:
    """The same rows with one column taken out as their labels."""
    assert isinstance(raw.space, Table)
    columns = list(raw.space.columns)
    column = columns.pop(at)
    if column.kind != "category":
        reason = f"the column {shown(column.name)} of {shown(path)} holds numbers of many values"
        raise Refusal("DATA-038", reason, way_out="choose a column of classes for --label")
    if not columns:
        reason = f"{shown(path)} has no column but its labels"
        raise Refusal("DATA-033", reason, way_out="give a table with more columns")
    rows = torch.as_tensor(raw.rows)
    others = [index for index in range(rows.shape[1]) if index != at]
    return replace(
        raw,
        rows=rows[:, others].contiguous(),
        space=Table(tuple(columns)),
        labels=rows[:, at].long(),
        label_names=column.categories,
    )


def column_of(path: Path, name: str, cells: Iterable[Any]) -> Column:
    """What a column of these cells is taken as."""
    seen = _Seen()
    for cell in cells:
        seen.see(cell)
    return seen.column(path, name)


def is_numeric(cells: Iterable[Any]) -> bool:
    """Whether all cells are numbers or missing."""
    return all(_missing(cell) or _number(cell) is not None for cell in cells)


def read_rows(path: Path, names: tuple[str, ...], read: Read, *, like: Space | None = None) -> Raw:
    """Rows that were found elsewhere, as those of a table; ``like``: a run's own columns."""
    return _read(path, names, read, like if isinstance(like, Table) else None, None)


def _surveyed(
    path: Path, names: tuple[str, ...], read: Read, like: Table | None
) -> tuple[int, tuple[Column, ...], list[str]]:
    """How many rows there are at most, the columns, and what is to be known of them."""
    seen = [_Seen() for _ in names]
    count = 0
    for _, cells in read():
        if cells is not None and len(cells) == len(names):
            count += 1
            for one, cell in zip(seen, cells if like is None else (), strict=False):
                one.see(cell)
    if like is None:
        columns = tuple(one.column(path, name) for one, name in zip(seen, names, strict=True))
        return count, columns, _lost_numbers(columns, seen)
    if len(like.columns) != len(names):
        raise Refusal(
            "DATA-035",
            f"{shown(path)} has {len(names)} columns, and the run was trained on {len(like.columns)}",
            way_out="give the same columns in the same order",
        )
    for name, column in zip(names, like.columns, strict=True):
        if name != column.name:
            reason = (
                f"{shown(path)} has a column {shown(name)} where {shown(column.name)} should be"
            )
            raise Refusal("DATA-036", reason, way_out="give the same columns in the same order")
    return count, like.columns, []


def _lost_numbers(columns: Sequence[Column], seen: Sequence[_Seen]) -> list[str]:
    """Which columns of numbers lie so far from zero that different ones become the same, if any."""
    lost = [
        shown(column.name)
        for column, one in zip(columns, seen, strict=True)
        if column.kind == "real" and one.falls_together
    ]
    if not lost:
        return []
    others = f" and {len(lost) - MOST_NAMED} more" if len(lost) > MOST_NAMED else ""
    return [
        f"different numbers of the column{'s' * (len(lost) > 1)} {', '.join(lost[:MOST_NAMED])}{others} "
        "become the same in 32 bits: subtract a constant from them, such as the least"
    ]


def _read(
    path: Path, names: tuple[str, ...], read: Read, like: Table | None, skip_bad: int | None
) -> Raw:
    survey = Survey("table")
    width = len(names)
    count, columns, notes = _surveyed(path, names, read, like)
    survey.notes.extend(notes)
    codes = [_codes(column) for column in columns]
    rows = room(count, (width,), np.dtype(np.float32))
    filled = blank = 0
    for number, cells in read():
        if cells is None:
            blank += 1
            continue
        problem = _fill(rows, filled, cells, columns, codes)
        if problem is None:
            filled += 1
        else:
            survey.bad.append((f"row {number}", problem))
    survey.require_few_bad(path, skip_bad, one="row")
    if not filled:
        raise Refusal("DATA-030", f"{shown(path)} holds no rows", way_out="give a table with data")
    for column in columns:
        kind = "real" if column.kind == "real" else f"{len(column.categories)} categories"
        survey.modes[kind + (" or missing" if column.missing else "")] += 1
    survey.sizes[f"{width} columns"] += filled
    if blank:
        survey.notes.append(f"lines or rows without anything, which are left out: {blank}")
    return Raw(kept(rows[:filled]), Table(tuple(columns)), survey)


def _codes(column: Column) -> dict[str, int]:
    """Codes by text; whole numbers may be written in any way."""
    return {text: code for code, text in enumerate(column.categories)}


def _code(cell: Any, codes: dict[str, int]) -> int | None:
    text = str(cell).strip()
    if text in codes:
        return codes[text]
    number = _number(cell)
    whole = number is not None and math.isfinite(number) and number.is_integer()
    return codes.get(f"{number:.0f}") if whole else None


def _fill(
    rows: np.ndarray,
    at: int,
    cells: Cells,
    columns: Sequence[Column],
    codes: Sequence[dict[str, int]],
) -> str | None:
    """Write one row; returns what is wrong with it, or None."""
    if len(cells) != len(columns):
        return f"has {len(cells)} cells and not {len(columns)}"
    for index, (cell, column, code) in enumerate(zip(cells, columns, codes, strict=True)):
        if column.kind == "category":
            found = _code(cell, code)
            if found is None:
                return f"has {shown(cell)}, never seen before, in the column {shown(column.name)}"
            rows[at, index] = found
            continue
        if column.missing and _missing(cell):
            rows[at, index] = math.nan
            continue
        value = None if _missing(cell) else _number(cell)
        if value is None or not math.isfinite(value) or abs(value) > 3e38:
            what = "no number" if value is None else "a number that is not finite"
            return f"has {what} in the column {shown(column.name)}"
        rows[at, index] = value
    return None


def _missing(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and cell.strip().lower() in MISSING)


def _number(cell: Any) -> float | None:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None


def guarded(text: str) -> str:
    """A text as a cell of CSV that no spreadsheet runs as a formula: such a one gets a ' in front.

    Numbers are none. A formula that has quotes in front already gets one more, so that ``unguarded``
    gives every text back.
    """
    return "'" + text if _is_formula(text.lstrip("'")) else text


def unguarded(cell: str) -> str:
    """The text that ``guarded`` wrote as this cell."""
    return cell[1:] if cell[:1] == "'" and _is_formula(cell.lstrip("'")) else cell


def _is_formula(text: str) -> bool:
    """Whether a spreadsheet may run a cell: of a sign alone, it is a number that follows."""
    return text.startswith(("=", "@", "\t", "\r")) or (
        text.startswith(("+", "-")) and _number(text) is None
    )


def _named(found: Sequence[str]) -> tuple[str, ...]:
    """Column names, each once."""
    names: list[str] = []
    for index, name in enumerate(found):
        name = name.strip() or f"column {index}"
        while name in names:
            name += "'"
        names.append(name)
    return tuple(names)


def _csv(path: Path) -> tuple[tuple[str, ...], Read]:
    def text() -> Any:
        if path.suffix.lower() == ".gz":
            return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
        return open(path, encoding="utf-8-sig", newline="")

    def lines(delimiter: str) -> Iterator[tuple[int, list[str]]]:
        """Rows as they stand, from the first that holds anything."""
        before = csv.field_size_limit(MOST_CELL)
        try:
            with text() as file:
                reader = csv.reader(file, delimiter=delimiter)
                begun = False
                for cells in reader:
                    begun = begun or _holds(cells)
                    if begun:
                        yield reader.line_num, [unguarded(cell) for cell in cells]
        except (csv.Error, UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
            reason = f"{shown(path)} cannot be read as a table ({error})"
            raise Refusal("DATA-032", reason, way_out="save it as CSV in UTF-8") from error
        finally:
            csv.field_size_limit(before)

    first, second = _first_two(lines(","))
    if first is None:
        raise Refusal("DATA-030", f"{shown(path)} holds no rows", way_out="give a table with data")
    line = ",".join(first)
    delimiter = max(",;\t|", key=lambda one: (line.count(one), one == ","))
    first, second = _first_two(lines(delimiter))
    assert first is not None
    if len(first) > MOST_COLUMNS:
        reason = f"{shown(path)} has {len(first)} columns"
        raise Refusal("DATA-033", reason, way_out=f"give at most {MOST_COLUMNS}")
    headed = _is_header(first, second)
    names = _named(first if headed else [f"column {index}" for index in range(len(first))])

    def read() -> Iterator[tuple[int, Cells | None]]:
        every = lines(delimiter)
        if headed:
            next(every, None)
        yield from _rows(every, len(names))

    return names, read


def _holds(cells: Sequence[str]) -> bool:
    return any(cell.strip() for cell in cells)


def _rows(lines: Iterator[tuple[int, list[str]]], width: int) -> Iterator[tuple[int, Cells | None]]:
    """Rows out of lines; None of lines and last rows without anything, but those that end a file.

    Of a column alone, a line without anything is a missing cell, save at the end of the file, and a
    pair of quotes always is, for it is written on purpose.
    """
    waiting: list[tuple[int, list[str]]] = []
    for number, cells in lines:
        if not _holds(cells) and not (width == 1 and cells == [""]):
            waiting.append((number, cells))
            continue
        for before, blank in waiting:
            line = len(blank) < 2
            yield before, None if line and width > 1 else blank or [""]
        waiting.clear()
        yield number, cells
    # Lines at the end of a file are but its end; rows of empty cells are told.
    yield from ((number, None) for number, cells in waiting if len(cells) > 1)


def _first_two(
    lines: Iterator[tuple[int, list[str]]],
) -> tuple[list[str] | None, list[str] | None]:
    """The first two rows that hold anything."""
    holding = (cells for _, cells in lines if _holds(cells))
    return next(holding, None), next(holding, None)


def _is_header(first: Sequence[str], second: Sequence[str] | None) -> bool:
    """A first row without a number above a row that has one; of texts only, one of distinct names."""
    if any(_number(cell) is not None for cell in first):
        return False
    if second is None or any(_number(cell) is not None for cell in second):
        return True
    return len(set(first)) == len(first) and all(cell.strip() for cell in first)


def _parquet(path: Path) -> tuple[tuple[str, ...], Read]:
    try:
        from pyarrow import ArrowException
        from pyarrow import parquet as arrow
    except ImportError as error:
        reason = f"{shown(path)} is Parquet, and pyarrow is not installed"
        way_out = "install simulacra[parquet], or save the table as CSV"
        raise Refusal("DEP-010", reason, way_out=way_out) from error
    try:
        names = _named(arrow.read_schema(path).names)
    except (ArrowException, OSError) as error:
        reason = f"{shown(path)} cannot be read as Parquet ({error})"
        raise Refusal("DATA-034", reason, way_out="write it again") from error

    def read() -> Iterator[tuple[int, Cells]]:
        number = 0
        with arrow.ParquetFile(path) as file:
            for batch in file.iter_batches(4096):
                for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    number += 1
                    yield number, cells

    return names, read
