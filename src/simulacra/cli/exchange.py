"""What verbs that use a run are given, and what they leave: data in, files by their ending."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Annotated, Any

import typer

from simulacra.refusals import Refusal, shown

Run = Annotated[Path, typer.Argument(help="The folder of a run.")]
Source = Annotated[
    str | None, typer.Argument(help="Data of the same space. [the run's own test part]")
]
Count = Annotated[int, typer.Option(min=1, help="How many data to use at most.")]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        help="The column of a table with the labels; of metadata.csv, what images go with."
    ),
]
Steering = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting that leaves the weights alone, as NAME=VALUE."),
]


def steered(
    run: Path, pairs: list[str] | None = None, steering: dict[str, Any] | None = None
) -> Any:
    """The run's model, with settings that leave its weights alone over its own; refused where it has none
    such."""
    from dataclasses import fields

    from simulacra import shelf
    from simulacra.cli.training import parsed_settings

    model = shelf.from_pretrained(run)
    told = {name: value for name, value in (steering or {}).items() if value is not None}
    known = {field.name for field in fields(model.config)}
    missing = [name for name in told if name not in known]
    if missing:
        toys = {entry.name: entry.cls.toy() for entry in shelf.entries()}
        able = [name for name, toy in toys.items() if hasattr(toy.config, missing[0])]
        raise Refusal(
            "CFG-216",
            f"--{missing[0].replace('_', '-')} was given, and {shelf.name_of(model)} has no {missing[0]}",
            way_out=f"leave it out, or sample a run of {', '.join(able)}",
        )
    told = {**parsed_settings(pairs or []), **told}
    return shelf.from_pretrained(run, settings=told) if told else model


def part_of(run: Path, data: str | None, model: Any, *, told: bool = True) -> Any:
    """The data to use: those the user names, or the test part of the run's own.

    ``told``: whether a conditional model needs to hear what each datum goes with.
    """
    from simulacra import shelf
    from simulacra.runs.recipe import Recipe, own_data

    if data is None:
        return own_data(run).test
    recipe = Recipe.from_json(shelf.read_card(run)["recipe"])
    opened = recipe.open_as(data, like=model.space, like_condition=model.condition_space)
    if opened.space != model.space:
        raise Refusal(
            "DATA-002",
            f"{shown(data)} holds {opened.space}, and the run was trained on {model.space}",
            way_out="give data of the same kind, or train on these",
        )
    wanted = model.condition_space
    if told and wanted is not None and opened.condition != wanted:
        found = "nothing" if opened.condition is None else str(opened.condition)
        raise Refusal(
            "DATA-002",
            f"the data of {shown(data)} go with {found}, and those of the run with {wanted}",
            way_out="say what each goes with as the run's own data do: by folder, or in metadata.csv",
        )
    return opened.everything()


def behind(run: Path, model: Any, x: Any) -> Any:
    """Real points that samples of the plane are drawn over, or x where the run's data have gone."""
    from simulacra.runs.pictures import POINTS, on_plane

    if not on_plane(model.space):
        return None
    with contextlib.suppress(Refusal):
        return part_of(run, None, model).first(POINTS).x
    return x


def keep(
    x: Any, space: Any, out: Path | None, default: Path, *, real: Any = None, columns: int = 8
) -> Path:
    """Write elements as a picture, an array, a table, sounds or text, by the file's ending.

    Without ``out``, signals of a known rate become a folder of sounds with a picture in it.
    """
    from simulacra.data.text import is_readable
    from simulacra.files import write_bytes
    from simulacra.spaces import Images, Series, Table, Tokens

    audible, readable = isinstance(space, Series) and space.rate > 0, is_readable(space)
    if out is None and audible:
        return _sounds(x, space, default)
    endings: dict[Any, str] = {
        Images: ".png",
        Table: ".csv",
        Series: ".wav" if audible else ".png",
        Tokens: ".txt" if readable else ".npy",
    }
    ending = endings.get(type(space), ".npy")
    path = out or default.with_suffix(ending)
    content = _content(x, space, path.suffix, real, columns)
    if content is None:
        endings_told = dict.fromkeys((".png" if real is not None else ending, ".npy"))
        reason = f"{shown(path)} cannot hold {'codes' if space is None else space}"
        way_out = f"give --out a name that ends in {' or '.join(endings_told)}"
        raise Refusal("CFG-053", reason, way_out=way_out)
    write_bytes(path, content)
    return path


def keep_pairs(originals: Any, others: Any, space: Any, out: Path | None, default: Path) -> Path:
    """Write originals, each above what was made of it in a picture, in rows of as many elsewhere."""
    from simulacra.runs.pictures import columns_of
    from simulacra.runs.using import beside
    from simulacra.spaces import Images

    columns = min(columns_of(space), len(originals))
    drawn = isinstance(space, Images) and (out is None or out.suffix == ".png")
    pairs = beside(originals, others, columns, blanks=drawn)
    return keep(pairs, space, out, default, columns=columns)


def _content(x: Any, space: Any, ending: str, real: Any, columns: int) -> bytes | None:
    """Elements as the bytes of a file with this ending; None where it cannot hold them."""
    from simulacra.data.text import is_readable, texts
    from simulacra.runs.pictures import has_picture, on_plane, picture, png
    from simulacra.runs.signals import one_after_another, wav
    from simulacra.runs.using import numbered, table_lines
    from simulacra.spaces import Series, Table

    if ending == ".npy":
        return array_bytes(x)
    if space is None:
        return None
    if ending == ".png" and has_picture(space) and (real is not None or not on_plane(space)):
        return png(picture(x, space, real, columns=columns))
    if ending == ".csv" and isinstance(space, Table):
        return ("\n".join(table_lines(x, space)) + "\n").encode()
    if ending == ".txt" and is_readable(space):
        return numbered(texts(x, space)).encode()
    if ending == ".wav" and isinstance(space, Series) and space.rate:
        return wav(one_after_another(x, space.rate), space.rate)
    return None


def _sounds(x: Any, space: Any, folder: Path) -> Path:
    """A WAV file for each signal, and a picture of all."""
    from simulacra.files import write_bytes
    from simulacra.runs.pictures import picture, png
    from simulacra.runs.signals import wav

    width = len(str(max(len(x) - 1, 1)))
    for index, signal in enumerate(x):
        write_bytes(folder / f"{index:0{width}}.wav", wav(signal, space.rate))
    write_bytes(folder / "picture.png", png(picture(x, space, None)))
    return folder


def array_bytes(x: Any) -> bytes:
    """A tensor as the content of a .npy file."""
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, x.cpu().numpy(), allow_pickle=False)
    return buffer.getvalue()
