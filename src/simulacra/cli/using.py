"""``simulacra score, encode, reconstruct, interpolate, mix, complete, evaluate``: using a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from simulacra.cli.exchange import (
    Count,
    Run,
    Source,
    Steering,
    behind,
    keep,
    keep_pairs,
    part_of,
    steered,
)
from simulacra.refusals import Refusal, shown

MOST_CODES = 2000
"""So many data at most tell how far each unit of a code varies."""


def register(app: typer.Typer) -> None:
    """Put this module's verbs on the command line."""
    for verb in (score, encode, reconstruct, interpolate, mix, complete, evaluate):
        app.command()(verb)


def score(
    run: Run,
    data: Source = None,
    out: Annotated[Path | None, typer.Option(help="A .csv file. [standard output]")] = None,
    count: Count = 10_000,
    settings: Steering = None,
) -> None:
    """Print log p(x) in nats, bits/dim and the anomaly score of each datum, as CSV."""
    from simulacra import shelf
    from simulacra.contract import Density, Scorer, capabilities
    from simulacra.files import write_bytes
    from simulacra.runs.using import scores

    model = steered(run, settings)
    if not isinstance(model, Density | Scorer):
        raise Refusal(
            "CAN-001",
            f"cannot score with {shown(run)}: {shelf.name_of(model)} has no likelihood and no "
            "anomaly score",
            way_out=f"it is {', '.join(capabilities(model))}; `simulacra models` shows who scores",
        )
    part = part_of(run, data, model)
    text = "\n".join(scores(model, part.first(min(count, len(part))))) + "\n"
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_bytes(out, text.encode())
        typer.echo(out)


def encode(
    run: Run,
    data: Source = None,
    out: Annotated[Path | None, typer.Option(help="A .npy file. [RUN/codes.npy]")] = None,
    project: Annotated[
        Path | None,
        typer.Option(help="An .svg picture of the codes in the plane, by PCA and t-SNE."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of t-SNE.")] = 0,
    count: Count = 10_000,
    settings: Steering = None,
) -> None:
    """Write a code for each datum, or a picture of the codes."""
    from simulacra.contract import Encoder, require_capability
    from simulacra.runs.using import in_chunks

    model = steered(run, settings)
    encoder = require_capability(model, Encoder, to="encode")
    if project is not None and project.suffix != ".svg":
        reason = f"{shown(project)} cannot hold a projection"
        raise Refusal("CFG-086", reason, way_out="give --project a name that ends in .svg")
    part = part_of(run, data, model)
    if project is not None:
        _project(run, model, part, project, seed)
        if out is None:
            return
    codes = in_chunks(encoder.encode, model, part.first(min(count, len(part))))
    typer.echo(keep(codes, None, out, run / "codes"))


def reconstruct(
    run: Run,
    data: Source = None,
    out: Annotated[Path | None, typer.Option(help="A .png or .npy file.")] = None,
    count: Count = 32,
    settings: Steering = None,
) -> None:
    """Encode and decode data; a picture shows each original above its reconstruction."""
    from simulacra.contract import Decoder, Encoder, require_capability
    from simulacra.runs.using import rebuilt

    model = steered(run, settings)
    require_capability(model, Encoder, to="reconstruct")
    require_capability(model, Decoder, to="reconstruct")
    batch = part_of(run, data, model).first(count)
    again = rebuilt(model, batch)
    typer.echo(keep_pairs(batch.x, again, model.space, out, run / "reconstructions"))


def interpolate(
    run: Run,
    data: Source = None,
    traverse: Annotated[
        bool,
        typer.Option("--traverse", help="Move the most active units of one datum's code instead."),
    ] = False,
    steps: Annotated[int, typer.Option(help="Pictures on each way, both ends included.")] = 9,
    count: Annotated[int, typer.Option(help="How many ways, or units.")] = 8,
    datum: Annotated[int, typer.Option(help="Whose code is traversed, by its place.")] = 0,
    out: Annotated[Path | None, typer.Option(help="A .png, .npy or .csv file.")] = None,
    settings: Steering = None,
) -> None:
    """Walk from code to code between data, or along one unit of a code at a time."""
    from simulacra.runs.walks import interpolations, require_walks, traversals

    model = steered(run, settings)
    require_walks(model, to="traverse" if traverse else "interpolate")
    if steps < 2 or count < 1:
        reason = f"--steps is {steps} and --count {count}"
        raise Refusal("CFG-133", reason, way_out="give at least 2 steps and a count of 1")
    part = part_of(run, data, model)
    if len(part) < 2:
        reason = f"there is only {len(part)} datum, and it takes two"
        raise Refusal("CFG-134", reason, way_out="give more data")
    if traverse:
        batch = part.first(MOST_CODES)
        if not 0 <= datum < len(batch):
            reason = f"--datum is {datum}"
            raise Refusal("CFG-135", reason, way_out=f"give one from 0 to {len(batch) - 1}")
        x = traversals(model, batch, datum, steps=steps, count=count)
    else:
        x = interpolations(model, part.first(2 * count), steps)
    x = model.space.rounded(x)
    default = run / ("traversals" if traverse else "interpolations")
    real = behind(run, model, x)
    typer.echo(keep(x, model.space, out, default, real=real, columns=steps))


def mix(
    run: Run,
    data: Source = None,
    level: Annotated[
        int | None, typer.Option(help="How many levels of a code count as coarse. [half]")
    ] = None,
    count: Annotated[int, typer.Option(help="How many data give coarse features, and fine.")] = 6,
    out: Annotated[Path | None, typer.Option(help="A .png or .npy file.")] = None,
    settings: Steering = None,
) -> None:
    """Cross data: coarse features of some (the left column) with fine ones of others (the first row)."""
    from simulacra.runs.walks import coarse_levels, crossings
    from simulacra.spaces import Images

    model = steered(run, settings)
    chosen = coarse_levels(model, level)
    if not isinstance(model.space, Images):
        reason = f"crossings are a sheet of images, and the run models {model.space}"
        raise Refusal("CFG-236", reason, way_out="cross images, or interpolate")
    part = part_of(run, data, model)
    if not 1 <= count <= len(part) // 2:
        reason = f"--count is {count}, and there are {len(part)} data to take twice as many from"
        raise Refusal("CFG-234", reason, way_out="give a count of 1 or more, or more data")
    x = crossings(model, part.first(2 * count), chosen, count)
    typer.echo(keep(x, model.space, out, run / "crossings", columns=count + 1))


def complete(
    run: Run,
    data: Source = None,
    known: Annotated[
        str,
        typer.Option(
            help="top, left or random: the half that is kept; of a table also its columns: age,sex."
        ),
    ] = "top",
    seed: Annotated[int, typer.Option(help="Same seed, same completions.")] = 0,
    out: Annotated[Path | None, typer.Option(help="A .png or .npy file.")] = None,
    count: Count = 32,
    settings: Steering = None,
) -> None:
    """Fill in the other half; a picture shows each original above its completion."""
    import torch

    from simulacra.contract import Completer, require_capability
    from simulacra.evaluation.rebuilding import completed
    from simulacra.runs.using import half_known, named_columns
    from simulacra.spaces import Table

    model = steered(run, settings)
    completer = require_capability(model, Completer, to="complete")
    batch = part_of(run, data, model).first(count)
    if isinstance(model.space, Table) and known not in ("left", "random"):
        mask = named_columns(known, batch.x, model.space)
    else:
        mask = half_known(batch.x, known, seed)
    given = batch.condition if model.condition_space is not None else None
    stream = torch.Generator().manual_seed(seed)
    filled = completed(completer, batch.x, mask, given, stream)
    if isinstance(model.space, Table):
        # What is known stays as it is, whatever its decimals.
        filled = model.space.rounded(filled).where(~mask, batch.x)
    typer.echo(keep_pairs(batch.x, filled, model.space, out, run / f"completions-{known}"))


def evaluate(
    run: Run,
    num_samples: Annotated[int, typer.Option(min=2, help="Samples that are judged.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    budget: Annotated[
        str, typer.Option(help="What sampling and scoring may take; beyond, on fewer data.")
    ] = "60s",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A setting that leaves the weights alone: importance_samples=1000."
        ),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            help="Weights of Inception or DINOv2 (.safetensors), to see images as published distances do."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a run on held-out data: every number with its unit, kind, count and interval."""
    import json

    from simulacra.cli.terminal import say, showing
    from simulacra.cli.training import parsed_settings
    from simulacra.runs.comparison import show_run
    from simulacra.runs.judging import READINGS, judge

    with showing("evaluate") as show:
        judgement = judge(
            run,
            num_samples=num_samples,
            seed=seed,
            budget=budget,
            settings=parsed_settings(settings or []),
            weights=features,
            show=show,
        )
    page = show_run(run, judgement, seed=seed)
    if as_json:
        typer.echo(json.dumps(judgement.to_json(), indent=2))
        return
    for reading in judgement.readings:
        typer.echo(reading.text())
    for name, value in judgement.diagnoses.items():
        typer.echo(f"{name}: {value:.4g}")
    say(f"kept in {run / READINGS}; the page is {page}")


def _project(run: Path, model: Any, part: Any, path: Path, seed: int) -> None:
    """Write a picture of codes in the plane, and say how it was made."""
    from simulacra import shelf
    from simulacra.cli.terminal import say
    from simulacra.files import write_bytes
    from simulacra.runs.exhibits import Plane
    from simulacra.spaces import Labels, space_from_json

    known = shelf.read_card(run)["data"]["labels"]
    labels = None if known is None else space_from_json(known)
    assert labels is None or isinstance(labels, Labels)
    plane = Plane.of(model, part, labels, model.space, seed)
    write_bytes(path, plane.svg(alone=True).encode())
    typer.echo(path)
    say(plane.words)
