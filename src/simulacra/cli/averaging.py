"""``simulacra average``: choosing the length of a run's weight average afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulacra.cli.exchange import Run
from simulacra.refusals import Refusal


def register(app: typer.Typer) -> None:
    """Put this module's verbs on the command line."""
    app.command()(average)


def average(
    run: Run,
    length: Annotated[
        list[float] | None,
        typer.Option(
            help="A half-life as a share of the examples seen. [0.01 to 0.2, and its own]"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A new run folder for the best of these lengths.")
    ] = None,
    count: Annotated[int, typer.Option(help="Held-out data that lengths are compared on.")] = 512,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
) -> None:
    """Compare lengths of the weight average of a run trained with --snapshots, and keep the best."""
    from simulacra import shelf
    from simulacra.cli.terminal import say, showing
    from simulacra.runs.averages import LENGTHS, Lengths, best_of, require_new, table

    if count < 1:
        raise Refusal("CFG-248", f"--count is {count}", way_out="give a count of 1 or more")
    if out is not None:
        require_new(out)
    with showing("average") as show:
        lengths = Lengths(run, count=count, device=device, show=show)
        asked = sorted({*(length or (*LENGTHS, lengths.own))})
        if not lengths.measurable and (out is None or not length or len(asked) > 1):
            raise Refusal(
                "CFG-244",
                f"{shelf.name_of(lengths.model)} has no held-out measure to compare lengths by",
                way_out="give one --length and --out, and `simulacra evaluate` what it writes",
            )
        trials = []
        for index, one in enumerate(asked):
            trials.append(lengths.tried(one, measure=lengths.measurable))
            if length:
                lengths.require(trials[-1])
            show.progress((index + 1) / len(asked), f"length {one:g}")
        for line in table(lengths, trials) if lengths.measurable else ():
            typer.echo(line)
    if out is None:
        say("lengths are chosen on validation data; --out keeps the best as a run")
        return
    chosen = best_of(trials) or trials[0]
    typer.echo(lengths.keep(chosen, out))
    say(f"length {chosen.length:g}, {chosen.residual:.1%} of its profile is missing")
