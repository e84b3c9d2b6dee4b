"""What stands beside images in their folder: metadata.csv or metadata.jsonl, a line an image.

The column file_name says which image a line is of, counted from the file's own folder; the other columns
are what the image goes with, a caption, a class, attributes or another image. It is the form that
Hugging Face's image folders have, but for their metadata.parquet. It is read only where it is asked for.
"""

from __future__ import annotations

import csv
import io
import json
import unicodedata
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from simulacra.data import tables
from simulacra.data.raw import Survey, named_labels
from simulacra.data.sources import File, beside
from simulacra.data.text import MOST_CHARACTERS, encoded
from simulacra.refusals import Refusal, shown
from simulacra.spaces import Labels, Space, Tokens

NAMES = ("metadata.csv", "metadata.jsonl")
KEY = "file_name"
CAPTIONS = ("text", "caption")
"""Columns of these names are what is taken where nothing is asked for."""
MOST_CAPTION = 256
MOST_CLASSES = 100
"""Texts without blanks of at most so many different values are classes; all others are captions."""


@dataclass(frozen=True)
class Metadata:
    """Cells by the image's name inside the source, and by column."""

    path: Path
    columns: tuple[str, ...]
    cells: dict[str, dict[str, str]]

    def named(self, files: Sequence[File], survey: Survey) -> list[File]:
        """The images that have a line; broken are those that have none, and are in no line either."""
        own = [file for file in files if _plain(file.name) in self.cells]
        if not own:
            reason = f"the {KEY} of {shown(self.path)} names none of its {len(files)} images"
            raise Refusal("DATA-045", reason, way_out="write names as they stand beside it")
        there = {_plain(file.name) for file in files}
        for name in self.cells:
            if name not in there:
                survey.bad.append((name, f"has a line in {self.path.name}, and is not there"))
        known = {
            self._file(name, text) for name in self.cells for text in self.cells[name].values()
        }
        for file in files:
            name = _plain(file.name)
            if name not in self.cells and name not in known:
                survey.bad.append((file.name, f"has no line in {self.path.name}"))
        return own

    def chosen(self, wanted: str | None) -> tuple[str, ...]:
        """The columns that ``wanted`` lists with commas between; else the captions, or all that name no
        files, or those files."""
        if wanted is None:
            captions = [name for name in CAPTIONS if name in self.columns]
            plain = [name for name in self.columns if not self._names_files(name)]
            return tuple(captions[:1] or plain or self.columns[:1])
        names = tuple(name.strip() for name in wanted.split(",") if name.strip())
        if not names or len(set(names)) < len(names):
            reason = f"--label is {shown(wanted)}"
            raise Refusal("CFG-260", reason, way_out="name each column once, with commas between")
        for name in names:
            if name not in self.columns:
                reason = f"{shown(self.path)} has no column {shown(name)}"
                raise Refusal("DATA-037", reason, way_out=f"choose among {', '.join(self.columns)}")
        return names

    def _names_files(self, column: str) -> bool:
        """Whether every cell reads like the name of a file, as ``file_name`` does."""
        endings = {PurePosixPath(name).suffix for name in self.cells}
        cells = self.texts(column, list(self.cells))
        return all(PurePosixPath(cell).suffix in endings - {""} for cell in cells)

    def texts(self, column: str, names: Sequence[str]) -> list[str]:
        """The cells of these images."""
        return [self.cells[_plain(name)].get(column, "").strip() for name in names]

    def images(self, column: str, names: Sequence[str], files: Sequence[File]) -> list[File] | None:
        """The images that a column names, one for each of these; None where it names none."""
        known = {_plain(file.name): file for file in files}
        texts = self.texts(column, names)
        found = [
            known.get(self._file(_plain(name), text))
            for name, text in zip(names, texts, strict=True)
        ]
        if not any(found):
            return None
        for name, text, file in zip(names, texts, found, strict=True):
            if file is None:
                reason = f"{shown(name)} goes with {shown(text)} in {shown(self.path)}"
                reason += ", and there is no such image"
                raise Refusal("DATA-049", reason, way_out="mend its line, or take it out")
        return [file for file in found if file is not None]

    def _file(self, name: str, text: str) -> str:
        """The name inside the source of a file that a cell of this image's line names."""
        return _within(PurePosixPath(self.cells[name][_FOLDER]), text)


_FOLDER = "\0folder"


def metadata_of(path: Path) -> Metadata | None:
    """The metadata in a folder or a zip; None where there are none."""
    found = [file for file in beside(path, NAMES) if PurePosixPath(file.name).name in NAMES]
    if not found:
        return None
    columns: list[str] = []
    cells: dict[str, dict[str, str]] = {}
    for file in found:
        folder = PurePosixPath(file.name).parent
        for line, row in _rows(file, path):
            name = str(row.pop(KEY, "")).strip()
            if not name:
                reason = f"{shown(file.name)} in {shown(path)} has no {KEY} in line {line}"
                raise Refusal("DATA-046", reason, way_out=f"give every line a {KEY}")
            columns += [one for one in row if one not in columns]
            told = {one: "" if value is None else str(value) for one, value in row.items()}
            place = _within(folder, name)
            if place in cells:
                reason = f"{shown(name)} has more than one line in {shown(path)}"
                raise Refusal("DATA-046", reason, way_out=f"give every {KEY} one line")
            cells[place] = told | {_FOLDER: folder.as_posix()}
    if not columns:
        reason = f"{shown(found[0].name)} in {shown(path)} has no column but {KEY}"
        raise Refusal("DATA-046", reason, way_out="add a column, such as text")
    return Metadata(path / found[0].name, tuple(columns), cells)


def _within(folder: PurePosixPath, name: str) -> str:
    return _plain((folder / name.replace("\\", "/")).as_posix().removeprefix("./"))


def _plain(name: str) -> str:
    """A name in one spelling: some systems write an accent as a character of its own."""
    return unicodedata.normalize("NFC", name)


def _rows(file: File, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Lines by column, with their number."""
    try:
        text = file.read().decode("utf-8-sig")
        if file.name.endswith(".csv"):
            header = text.partition("\n")[0]
            delimiter = max(",;\t", key=lambda one: (header.count(one), one == ","))
            rows = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
            for row in rows:
                if None in row or None in row.values():
                    raise ValueError(f"line {rows.line_num} has not as many cells as columns")
                yield rows.line_num, row
        else:
            for line, content in enumerate(text.split("\n"), 1):
                if content.strip():
                    row = json.loads(content)
                    if not isinstance(row, dict):
                        raise ValueError(f"line {line} is no object")
                    yield line, row
    except (OSError, ValueError, RecursionError, csv.Error, zipfile.BadZipFile) as error:
        reason = f"{shown(file.name)} in {shown(path)} cannot be read ({error})"
        raise Refusal("DATA-046", reason, way_out="save it as UTF-8, a line an image") from error


@dataclass(frozen=True)
class Conditions:
    """What each row goes with: elements of a space."""

    rows: Tensor
    space: Space


def conditions_of(
    told: Metadata, columns: tuple[str, ...], names: Sequence[str], like: Space | None
) -> Conditions:
    """Columns of texts as classes, captions, or rows of attributes; as ``like``, where it is given."""
    for column in columns:
        if not any(told.texts(column, names)):
            reason = f"the column {shown(column)} of {shown(told.path)} is empty"
            raise Refusal("DATA-046", reason, way_out="choose another with --label")
    if isinstance(like, Labels) or (like is None and _is_of_classes(told, columns, names)):
        return _classes(told, columns[0], names, like)
    if isinstance(like, Tokens) or (like is None and _is_of_captions(told, columns, names)):
        texts = told.texts(columns[0], names)
        space = caption_space(texts, told.path) if like is None else like
        assert isinstance(space, Tokens)
        return Conditions(encoded(texts, space, told.path), space)
    each = [told.texts(column, names) for column in columns]
    lines = list(zip(names, zip(*each, strict=True), strict=True))
    raw = tables.read_rows(told.path, columns, lambda: iter(lines), like=like)
    return Conditions(torch.as_tensor(raw.rows), raw.space)


def _is_of_classes(told: Metadata, columns: tuple[str, ...], names: Sequence[str]) -> bool:
    if len(columns) > 1:
        return False
    values = set(told.texts(columns[0], names))
    kind = (
        tables.column_of(told.path, columns[0], values).kind if len(values) <= MOST_CLASSES else ""
    )
    return kind == "category" and not any(" " in one for one in values)


def _is_of_captions(told: Metadata, columns: tuple[str, ...], names: Sequence[str]) -> bool:
    return len(columns) == 1 and not tables.is_numeric(told.texts(columns[0], names))


def _classes(told: Metadata, column: str, names: Sequence[str], like: Labels | None) -> Conditions:
    texts = told.texts(column, names)
    if like is None:
        labels, order = named_labels(texts)
        return Conditions(labels, Labels(len(order), order))
    code = {like.name(index): index for index in range(like.count)}
    for text in texts:
        if text not in code:
            reason = f"{shown(told.path)} has {shown(text)}, which the run has never seen"
            raise Refusal("DATA-047", reason, way_out=f"write one of {', '.join(code)}")
    return Conditions(torch.tensor([code[text] for text in texts]), like)


def caption_space(texts: Sequence[str], what: object) -> Tokens:
    """Texts of the longest one's length, blanks at the end, in the characters that there are."""
    longest = max(texts, key=len)
    if len(longest) > MOST_CAPTION:
        reason = f"{shown(what)} has a caption of {len(longest)} characters"
        raise Refusal("DATA-048", reason, way_out=f"shorten captions to {MOST_CAPTION}")
    alphabet = "".join(sorted(set("".join(texts)) | {" "}))
    if len(alphabet) > MOST_CHARACTERS:
        reason = f"the captions of {shown(what)} have {len(alphabet)} different characters"
        raise Refusal("DATA-048", reason, way_out=f"write them in at most {MOST_CHARACTERS}")
    return Tokens(max(1, len(longest)), len(alphabet), alphabet)
