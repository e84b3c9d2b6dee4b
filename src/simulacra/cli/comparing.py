"""``simulacra compare``: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Put this module's verb on the command line."""
    app.command()(compare)


def compare(
    data: Annotated[
        str, typer.Argument(help="digits, mnist, fashion-mnist, or a path.")
    ] = "digits",
    models: Annotated[str, typer.Option(help="all, or names with commas between.")] = "all",
    budget: Annotated[str, typer.Option(help="Of each model: 3m, 90s, 5000steps.")] = "3m",
    seed: Annotated[int, typer.Option(help="Same seed, same comparison.")] = 0,
    out: Annotated[Path, typer.Option(help="Where it is kept, and gone on with.")] = Path(
        "comparison"
    ),
    view: Annotated[str, typer.Option(help="8bit, binary or dynamic.")] = "8bit",
    size: Annotated[int | None, typer.Option(help="Resize images to this square.")] = None,
    conditional: Annotated[
        bool, typer.Option(help="Condition the models that can be on the labels.")
    ] = False,
    num_samples: Annotated[int, typer.Option(help="Samples of each model to judge.")] = 1000,
    skip_bad: Annotated[int, typer.Option(help="Leave out at most so many broken files.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
) -> None:
    """Train several models on the same data and budget, and put them side by side on one page."""
    from simulacra.cli.terminal import say
    from simulacra.runs import comparison
    from simulacra.runs.show import Show

    page = comparison.compare(
        models,
        out,
        device=device,
        show=Show(line=say),
        data=data,
        view=view,
        size=size,
        conditional=conditional,
        budget=budget,
        seed=seed,
        num_samples=num_samples,
        skip_bad=skip_bad,
    )
    typer.echo(page)
