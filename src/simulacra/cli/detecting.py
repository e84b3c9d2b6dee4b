"""``simulacra anomalies``: which data are strange, with an alarm that holds its promise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from simulacra.cli.exchange import Count, Run, Source, part_of
from simulacra.refusals import Refusal, shown


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
    maps: Annotated[
        Path | None,
        typer.Option(
            help="Which entries are strange: a .png of the strangest images above their maps, a .csv "
            "of a table's columns, or .npy."
        ),
    ] = None,
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

    if maps is not None:
        _require_ending(maps, run)
    detector = Detector.of(
        run, score=score, maps=maps is not None, background=background, seed=seed
    )
    part = part_of(run, data, detector.score.model)
    threshold = detector.calibration.threshold(false_alarms)
    batch = part.first(min(count, len(part)))
    scores = detector.scores(batch)
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
    if maps is not None:
        say(_keep_maps(maps, detector, batch, scores))
    say(
        f"{int(alarms.sum()):,} of {len(scores):,} raise an alarm above {threshold:.6g} by "
        f"{detector.score.source}; of ordinary data at most {false_alarms:.3g} would (calibrated on "
        f"{len(detector.calibration.clean):,} validation data)"
    )


def _require_ending(path: Path, run: Path) -> None:
    """Refuse a file of maps that cannot hold those of a run's data, before anything is scored."""
    from simulacra import shelf
    from simulacra.spaces import Images, Table, space_from_json

    space = space_from_json(shelf.read_card(run)["space"])
    fitting = (
        ".png" if isinstance(space, Images) else ".csv" if isinstance(space, Table) else ".npy"
    )
    if path.suffix not in (fitting, ".npy"):
        reason = f"{shown(path)} cannot hold maps of {space}"
        way_out = f"give --maps a name that ends in {' or '.join(dict.fromkeys((fitting, '.npy')))}"
        raise Refusal("CFG-085", reason, way_out=way_out)


def _keep_maps(path: Path, detector: Any, batch: Any, scores: Any) -> str:
    """Write maps by the file's ending; returns what is in it, in words."""
    from simulacra.cli.exchange import array_bytes
    from simulacra.files import write_bytes
    from simulacra.runs.maps import Scale, by_pixel, lines, picture, strangest
    from simulacra.runs.pictures import png

    score, space = detector.score, detector.score.model.space
    made = detector.maps(batch)
    whole = f"each sums to its datum's score, {score.source}"
    if path.suffix == ".npy":
        write_bytes(path, array_bytes(made.float()))
        return f"{path} holds {len(made):,} maps in {score.unit} an entry; {whole}"
    if path.suffix == ".csv":
        told = lines(scores, made, space, source=score.source, unit=score.unit)
        write_bytes(path, ("\n".join(told) + "\n").encode())
        return f"{path} says of {len(made):,} rows what each column adds in {score.unit}; {whole}"
    which = strangest(scores)
    scale = Scale.of(by_pixel(made), f"{score.unit} a pixel")
    write_bytes(path, png(picture(batch.x[which], made[which], scale, space)))
    shown_of = f"the {len(which)} strangest of {len(made):,}"
    return f"{path} shows {shown_of}, each above its map: {scale}; {whole}"
