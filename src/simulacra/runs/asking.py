"""What a conditional model is asked for, from what a person writes."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simulacra.data.images import read_one
from simulacra.data.text import encoded, texts
from simulacra.refusals import Refusal, shown
from simulacra.runs.recipe import own_data
from simulacra.runs.using import given_columns
from simulacra.spaces import Column, Images, Labels, Space, Table, Tokens


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
    try:
        told = own_data(run).test.first(count).condition
    except Refusal as gone:
        reason = f"the run goes by {space}, and its own data cannot be read ({gone.reason})"
        raise Refusal("CFG-237", reason, way_out="say what to draw with --condition") from gone
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
    return read_one(Path(text), space)


def worded(condition: Tensor, space: Space) -> str:
    """A batch of one condition, no image, as a person would write it."""
    if isinstance(space, Labels):
        return space.name(int(condition))
    if isinstance(space, Tokens):
        return texts(condition, space)[0].rstrip()
    assert isinstance(space, Table)
    return ", ".join(
        f"{column.name}={_cell(value, column)}"
        for column, value in zip(space.columns, condition[0].tolist(), strict=True)
    )


def _cell(value: float, column: Column) -> str:
    return "" if math.isnan(value) else column.text(value)


def _label(text: str, space: Labels) -> int:
    names = [space.name(index) for index in range(space.count)]
    if text in names:
        return names.index(text)
    # Where names are numbers, a number is a name, and not a place.
    if text.isdigit() and int(text) < space.count and not all(map(str.isdigit, names)):
        return int(text)
    listed = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    reason = f"--condition is {shown(text)}"
    raise Refusal("CFG-052", reason, way_out=f"give one of {listed}")


def _attributes(text: str, space: Table) -> Tensor:
    names = "|".join(re.escape(column.name) for column in space.columns)
    parts = re.split(rf",\s*(?=(?:{names})\s*=)", text)
    row, known = given_columns(parts, space, option="--condition")
    missing = [column.name for column, told in zip(space.columns, known, strict=True) if not told]
    if missing:
        reason = f"--condition says nothing of {shown(missing[0])}"
        names = ",".join(f"{column.name}=…" for column in space.columns)
        raise Refusal("CFG-258", reason, way_out=f"write {names}")
    return row[None]
