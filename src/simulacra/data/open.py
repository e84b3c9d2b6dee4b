"""Open data by name or path: a reader finds the rows, a view shows them, and content splits them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from simulacra.data import arrays, images, named, sounds, tables, text, views
from simulacra.data.dataset import Dataset, Part, View
from simulacra.data.raw import Raw
from simulacra.data.splits import split
from simulacra.refusals import Refusal, shown
from simulacra.spaces import Images, Space, Table

FEWEST = 10
"""So many data can be split into three parts; fewer can only be scored or encoded."""


def open_data(
    what: str | Path,
    *,
    view: str = views.ALL,
    size: int | None = None,
    skip_bad: int = 0,
    seed: int = 0,
    conditional: bool = False,
    label: str | None = None,
    like: Space | None = None,
    like_condition: Space | None = None,
) -> Dataset:
    """The data that ``what`` names, split by content and ``seed``.

    ``what``: digits, mnist, fashion-mnist, stacked-digits, stacked-mnist, captioned-digits,
    captioned-mnist, ring, grid, tones; or a path to
    images or WAV sounds (folder, zip, file), an IDX, .npy or .npz file, a CSV or Parquet table, or plain
    text. ``view`` of images: '8bit' as they are, 'binary' by a threshold, 'dynamic' with a new draw of
    each pixel at every epoch. ``size``: the side of images, or the length of pieces of text and of
    windows of sound. ``skip_bad``: leave out at most so many broken data.
    ``label``: the column of a table that holds the labels, or the columns of metadata.csv, with commas
    between, that images go with; ``conditional`` takes its captions, or all columns. ``like``: the
    space of a trained model, whose columns a table is read as, and whose characters a text;
    ``like_condition``: that of its conditions.
    """
    raw = read(
        what,
        size=size,
        skip_bad=skip_bad,
        conditional=conditional,
        label=label,
        like=like,
        like_condition=like_condition,
    )
    views.require_view(view, raw)
    options = {"data": str(what), "view": view, "size": size, "skip_bad": skip_bad, "label": label}
    return replace(assembled(_name(what), raw, view=view, seed=seed), options=options)


def read(
    what: str | Path,
    *,
    size: int | None = None,
    skip_bad: int = 0,
    conditional: bool = False,
    label: str | None = None,
    like: Space | None = None,
    like_condition: Space | None = None,
) -> Raw:
    """The rows that ``what`` names, by the reader that its kind needs."""
    if size is not None and size < 1:
        raise Refusal("CFG-073", f"--size is {size}", way_out="give a positive number")
    path = Path(what)
    columned = str(what) not in named.NAMES and (tables.is_table(path) or images.is_images(path))
    if label is not None and not columned:
        reason = f"--label names a column, and {shown(what)} has none"
        raise Refusal(
            "CFG-074", reason, way_out="leave it out; folders of images are their classes"
        )
    if str(what) in named.NAMES:
        return named.read_named(str(what), size)
    if not path.exists():
        raise Refusal(
            "DATA-009",
            f"{shown(what)} is not there",
            way_out=f"check the path, or name one of {', '.join(named.NAMES)}",
        )
    if sounds.is_sounds(path):
        return sounds.read_sounds(path, length=size, skip_bad=skip_bad)
    if images.is_images(path):
        return images.read_images(
            path,
            size=size,
            skip_bad=skip_bad,
            conditional=conditional,
            label=label,
            like=like_condition,
        )
    if arrays.is_array(path):
        raw = arrays.read_array(path)
        return raw if size is None else views.resized(raw, size)
    if tables.is_table(path):
        columns = like if isinstance(like, Table) else None
        return tables.read_table(path, label=label, like=columns, skip_bad=skip_bad)
    if text.is_text(path):
        return text.read_text(path, length=size, like=like if text.is_readable(like) else None)
    raise Refusal(
        "DATA-008",
        f"{shown(what)} is of no kind that can be read",
        way_out="give a folder or zip of images or of .wav, .npy, .npz, IDX, .csv, .parquet or .txt",
    )


def assembled(name: str, raw: Raw, *, view: str = views.ALL, seed: int = 0) -> Dataset:
    """A data set of ``raw`` rows: three parts, their labels, and the view of each."""
    (train, valid, test), fingerprint, duplicates = split(raw, seed)
    space, (conditions, condition_space) = raw.space, raw.told
    held_out = raw.rows
    seen: View | None = None
    kept: View | None = None
    if view != views.ALL and isinstance(space, Images):
        levels, space = space.levels, replace(space, levels=2)

        def changing(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            return views.binarised(x, levels, generator)

        def fixed(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            return views.thresholded(x, levels)

        if view == "dynamic":
            seen, held_out = changing, views.binarised_once(raw, levels)
        else:
            seen = kept = fixed
    source = dict(raw.source) | {"view": view, "duplicates": duplicates}
    if view == "dynamic" and isinstance(raw.space, Images):
        source["grey_levels"] = raw.space.levels
    source |= {"left out": len(raw.survey.bad)} if raw.survey.bad else {}
    return Dataset(
        name,
        space,
        Part(raw.rows, train, space, conditions, seen),
        Part(held_out, valid, space, conditions, kept),
        Part(held_out, test, space, conditions, kept),
        condition=condition_space,
        fingerprint=fingerprint,
        source=source,
        truth=raw.truth,
    )


def _name(what: str | Path) -> str:
    return str(what) if str(what) in named.NAMES else Path(what).name


def require_enough(data: Dataset) -> None:
    """Refuse to learn from data that cannot be split into three parts."""
    count = len(data.train) + len(data.valid) + len(data.test)
    if min(map(len, (data.train, data.valid, data.test))) < 1:
        raise Refusal(
            "DATA-011",
            f"{shown(data.name)} holds {count} {'datum' if count == 1 else 'data'}",
            way_out=f"give at least {FEWEST} different ones, to learn from, to validate and to test",
        )
