"""``simulacra models``, ``data check`` and ``doctor``: looking before doing."""

from __future__ import annotations

from typing import Annotated

import typer

from simulacra.cli.exchange import LabelColumn

GOES_BY = {"Labels": "labels", "Table": "attributes", "Tokens": "captions", "Images": "images"}
"""What conditions of a space are called."""


def register(app: typer.Typer) -> None:
    """Put this module's verbs on the command line."""
    app.command()(models)
    app.command()(doctor)
    data = typer.Typer(help="Look at data.", no_args_is_help=True)
    data.command("check")(check)
    app.add_typer(data, name="data")


def models() -> None:
    """Print the map of families: what each model can do, and what its likelihood is."""
    from rich.console import Console
    from rich.table import Table

    from simulacra import shelf
    from simulacra.contract import Density, Sampler

    table = Table("family", "model", "p(x)", "models", "can", "what it is", box=None)
    for column in table.columns[:3]:
        column.no_wrap = True
    for entry in shelf.entries():
        toy = entry.cls.toy()
        kind = "none"
        if isinstance(toy, Density):
            kind = toy.kind.value
        elif isinstance(toy, Sampler):
            kind = "implicit"
        spaces = " ".join(space.__name__ for space in entry.cls.spaces)
        able = " ".join(name.lower() for name in entry.capabilities)
        told = " ".join(GOES_BY[space.__name__] for space in entry.cls.conditions)
        given = f" | {told}" if told else ""
        table.add_row(entry.family, entry.name, kind, spaces + given, able, entry.summary)
    console = Console()
    if not console.is_terminal:
        console.width = 160
    console.print(table)


def check(
    what: Annotated[str, typer.Argument(help="A named set or a path.")],
    size: Annotated[
        int | None,
        typer.Option(help="The side of images, cut to squares, or the length of windows."),
    ] = None,
    label: LabelColumn = None,
) -> None:
    """Say what is in there, what is broken, and what would be done with it."""
    from simulacra.data.check import check as look

    for line in look(what, size=size, label=label).lines():
        typer.echo(line)


def doctor(
    what: Annotated[str, typer.Argument(help="machine, or ruler.")] = "machine",
    data: Annotated[
        str, typer.Option(help="On which data the ruler is tested: a named set or a path.")
    ] = "digits",
    size: Annotated[
        int | None,
        typer.Option(help="The side of images, cut to squares, or the length of windows."),
    ] = None,
) -> None:
    """Say whether training and resuming work here; `doctor ruler`: whether measures can be believed."""
    from simulacra.refusals import Refusal, shown

    if what == "ruler":
        _ruler(data, size)
    elif what == "machine":
        _machine()
    else:
        reason = f"there is no doctor for {shown(what)}"
        raise Refusal("CFG-084", reason, way_out="ask for machine or ruler")


def _ruler(data: str, size: int | None) -> None:
    import tempfile
    from pathlib import Path

    from simulacra.data.open import open_data, require_enough
    from simulacra.runs.judging import ladder_of, ruler_features

    opened = open_data(data, size=size)
    require_enough(opened)
    with tempfile.TemporaryDirectory() as folder:
        ruler_features(opened, Path(folder), 0)
        ladder = ladder_of(Path(folder))
    assert ladder is not None
    for line in ladder.lines():
        typer.echo(line)
    raise typer.Exit(0 if ladder.passed else 1)


def _machine() -> None:
    import tempfile
    from pathlib import Path

    from simulacra import shelf
    from simulacra.runs.machine import choose_device, describe_machine
    from simulacra.runs.selfcheck import resume_is_exact

    for name, value in describe_machine(choose_device()).items():
        typer.echo(f"{name:12} {value}")
    with tempfile.TemporaryDirectory() as folder:
        known = [entry for entry in shelf.entries() if entry.representative]
        for name, exact in resume_is_exact(Path(folder), known):
            typer.echo(f"{'resume':12} {name}: {'bit-identical' if exact else 'DIFFERS'}")
