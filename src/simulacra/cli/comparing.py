"""``simulacra compare``: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from simulacra.cli.exchange import LabelColumn
from simulacra.refusals import Refusal, shown


def register(app: typer.Typer) -> None:
    """Put this module's verb on the command line."""
    app.command()(compare)


def compare(
    data: Annotated[
        str,
        typer.Argument(help="digits, mnist, fashion-mnist, stacked-…, ring, grid, or a path."),
    ] = "digits",
    models: Annotated[
        str,
        typer.Option(help="families (the best known of each), all, or names with commas between."),
    ] = "families",
    budget: Annotated[str, typer.Option(help="Of each model: 3m, 90s, 5000steps.")] = "3m",
    seed: Annotated[int, typer.Option(help="Same seed, same comparison.")] = 0,
    seeds: Annotated[
        str | None, typer.Option(help="Several, to show spread: 0-2, or 0,1,2.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where it is kept, and gone on with.")] = Path(
        "comparison"
    ),
    view: Annotated[str, typer.Option(help="8bit, binary or dynamic.")] = "8bit",
    size: Annotated[int | None, typer.Option(help="Resize images to this square.")] = None,
    conditional: Annotated[
        bool, typer.Option(help="Condition the models that can be on what the data go with.")
    ] = False,
    num_samples: Annotated[int, typer.Option(min=2, help="Samples of each model to judge.")] = 1000,
    skip_bad: Annotated[int, typer.Option(help="Leave out at most so many broken files.")] = 0,
    label: LabelColumn = None,
    features: Annotated[
        Path | None,
        typer.Option(
            help="Weights of Inception or DINOv2 (.safetensors), to see images as published distances do."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Train several models on the same data and budget, and put them side by side on one page."""
    from simulacra.cli.terminal import say
    from simulacra.runs import comparison
    from simulacra.runs.show import Show

    choices: dict[str, Any] = {
        "data": data,
        "view": view,
        "size": size,
        "conditional": conditional,
        "budget": budget,
        "num_samples": num_samples,
        "skip_bad": skip_bad,
        "label": label,
        "weights": features,
    }
    show = Show(line=say)
    if seeds is None:
        page = comparison.compare(models, out, device=device, show=show, seed=seed, **choices)
    else:
        wanted = parsed_seeds(seeds)
        page = comparison.compare_seeds(models, out, wanted, device=device, show=show, **choices)
    if as_json:
        typer.echo((out / comparison.NUMBERS).read_text(encoding="utf-8"), nl=False)
        say(str(page))
    else:
        typer.echo(page)


def parsed_seeds(text: str) -> list[int]:
    """Seeds from '0-2' or '0,1,2'."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise Refusal("CFG-063", f"--seeds is {shown(text)}", way_out="write 0-2, or 0,1,2")
        found += range(int(first), int(last if dash else first) + 1)
    return list(dict.fromkeys(found))
