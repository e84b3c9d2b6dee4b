"""``simulacra anomalies``: which data are strange, with an alarm that holds its promise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulacra.cli.using import Count, Run, Source, part_of


def register(app: typer.Typer) -> None:
    """Put this module's verb on the command line."""
    app.command()(anomalies)


def anomalies(
    run: Run,
    data: Source = None,
    score: Annotated[
        str,
        typer.Option(
            help="likelihood, typicality, ratio, complexity, reconstruction, latent or own. "
            "[auto: what suits the model]"
        ),
    ] = "auto",
    false_alarms: Annotated[
        float, typer.Option(help="The share of ordinary data that may raise an alarm.")
    ] = 0.05,
    background: Annotated[
        Path | None, typer.Option(help="The run that a likelihood ratio compares with.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A .csv file. [standard output]")] = None,
    all_strange: Annotated[
        bool,
        typer.Option(
            "--all-strange", help="DATA are known to be strange: say how well they are found."
        ),
    ] = False,
    count: Count = 10_000,
    seed: Annotated[int, typer.Option(help="Of what a score draws.")] = 0,
) -> None:
    """Score data, and raise an alarm where ordinary data rarely would; calibrated on clean data."""
    from simulacra.cli.terminal import say
    from simulacra.files import write_bytes
    from simulacra.runs.detecting import Detector

    detector = Detector.of(run, score=score, background=background, seed=seed)
    part = part_of(run, data, detector.score.model)
    threshold = detector.calibration.threshold(false_alarms)
    scores = detector.scores(part.first(min(count, len(part))))
    alarms = detector.calibration.alarms(scores, false_alarms)
    if all_strange:
        for reading in detector.told_apart(scores):
            typer.echo(reading.text())
    else:
        text = "\n".join(detector.lines(scores, false_alarms)) + "\n"
        if out is None:
            typer.echo(text, nl=False)
        else:
            write_bytes(out, text.encode())
            typer.echo(out)
    say(
        f"{int(alarms.sum()):,} of {len(scores):,} raise an alarm above {threshold:.6g} by "
        f"{detector.score.source}; of ordinary data at most {false_alarms:.3g} would (calibrated on "
        f"{len(detector.calibration.clean):,} validation data)"
    )
