"""What a conditional model is asked for, from what a person writes."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simulacra import shelf
from simulacra.data.images import read_images
from simulacra.data.text import encoded, texts
from simulacra.data.views import resized
from simulacra.refusals import Refusal, shown
from simulacra.runs.recipe import Recipe
from simulacra.runs.using import given_columns, table_lines
from simulacra.spaces import Images, Labels, Space, Table, Tokens


def asked_for(run: Path, model: Any, text: str | None, count: int) -> Tensor | None:
    """``count`` conditions of a model, (count, *shape), all as ``text`` says.

    Without a text None for a model of classes, which draws them alike, and for one that has no
    conditions; of others what the run's test data go with, each in its turn.
    """
    space = model.condition_space
    if space is None and text is not None:
        reason = "--condition was given, and the run is not conditional"
        raise Refusal("CFG-051", reason, way_out="leave it out, or train with --conditional")
    if text is not None:
        one = parsed(text, space)
        return one.expand(count, *one.shape[1:])
    if space is None or isinstance(space, Labels):
        return None
    told = Recipe.from_json(shelf.read_card(run)["recipe"]).open_data().test.first(count).condition
    assert told is not None
    return told[torch.arange(count) % len(told)]


def parsed(text: str, space: Space) -> Tensor:
    """One condition as a batch of one, (1, *shape): a class by its name or number, a caption, the
    columns of attributes as column=value with commas between, or the path of an image."""
    if isinstance(space, Labels):
        return torch.tensor([_label(text, space)])
    if isinstance(space, Tokens):
        return encoded([text], space, "--condition")
    if isinstance(space, Table):
        return _attributes(text, space)
    assert isinstance(space, Images)
    return _image(Path(text), space)


def worded(condition: Tensor, space: Space) -> str:
    """A batch of one condition, no image, as a person would write it."""
    if isinstance(space, Labels):
        return space.name(int(condition))
    if isinstance(space, Tokens):
        return texts(condition, space)[0].rstrip()
    assert isinstance(space, Table)
    _, line = table_lines(condition, space)
    cells = next(csv.reader([line]))
    return ", ".join(
        f"{column.name}={cell}" for column, cell in zip(space.columns, cells, strict=True)
    )


def _label(text: str, space: Labels) -> int:
    names = [space.name(index) for index in range(space.count)]
    if text in names:
        return names.index(text)
    if text.isdigit() and int(text) < space.count:
        return int(text)
    listed = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    reason = f"--condition is {shown(text)}"
    raise Refusal("CFG-052", reason, way_out=f"give one of {listed}")


def _attributes(text: str, space: Table) -> Tensor:
    row, known = given_columns(text.split(","), space)
    missing = [column.name for column, told in zip(space.columns, known, strict=True) if not told]
    if missing:
        reason = f"--condition says nothing of {shown(missing[0])}"
        names = ",".join(f"{column.name}=…" for column in space.columns)
        raise Refusal("CFG-258", reason, way_out=f"write {names}")
    return row[None]


def _image(path: Path, space: Images) -> Tensor:
    if not path.is_file():
        reason = f"--condition is {shown(path)}, and there is no such file"
        raise Refusal("CFG-259", reason, way_out="give the path of an image")
    raw = read_images(path)
    if (space.height, space.width) != raw.space.shape[1:] and space.height == space.width:
        raw = resized(raw, space.height)
    if raw.space != space:
        reason = f"{shown(path)} is one of {raw.space}, and the run goes by {space}"
        raise Refusal("CFG-259", reason, way_out="give an image of the same size and channels")
    return torch.as_tensor(raw.rows)
