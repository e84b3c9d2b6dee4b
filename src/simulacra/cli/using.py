"""``simulacra sample, score, encode, reconstruct, interpolate, complete, evaluate``: using a run."""

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
Count = Annotated[int, typer.Option(help="How many data to use at most.")]

MOST_CODES = 2000
"""So many data at most tell how far each unit of a code varies."""


def register(app: typer.Typer) -> None:
    """Put this module's verbs on the command line."""
    for verb in (sample, score, encode, reconstruct, interpolate, complete, evaluate):
        app.command()(verb)


def sample(
    run: Run,
    num_samples: Annotated[int, typer.Option(help="How many.")] = 64,
    seed: Annotated[int, typer.Option(help="Same seed, same samples.")] = 0,
    label: Annotated[int | None, typer.Option(help="The class, for a conditional model.")] = None,
    given: Annotated[
        list[str] | None,
        typer.Option(help="Of a table, column=value: rows are drawn given these. May be repeated."),
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="Of diffusion: ddim, ancestral, heun, dpm++2m, …")
    ] = None,
    num_inference_steps: Annotated[
        int | None, typer.Option(help="Of diffusion: steps from noise to data.")
    ] = None,
    eta: Annotated[
        float | None, typer.Option(help="Of ddim: 0 is deterministic, 1 ancestral.")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="How far beyond its label a sample goes; 0 is not at all.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting that leaves the weights alone: spacing=karras."),
    ] = None,
    from_: Annotated[
        str | None, typer.Option("--from", help="Data of the same space that samples start from.")
    ] = None,
    strength: Annotated[
        float, typer.Option(help="How little of --from is left, above 0 to 1.")
    ] = 0.8,
    trajectory: Annotated[
        bool,
        typer.Option("--trajectory", help="Draw the way from noise to data, and a GIF of it."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A .png picture, .npy array, .csv table or .wav sound. [RUN/samples-SEED.…]"
        ),
    ] = None,
) -> None:
    """Draw new data from a trained run."""
    import torch

    from simulacra.cli.training import parsed_settings
    from simulacra.contract import Sampler, require_capability
    from simulacra.runs.using import sample_in_chunks

    steering = {
        "sampler": sampler,
        "num_inference_steps": num_inference_steps,
        "eta": eta,
        "guidance_scale": guidance_scale,
    }
    model = _steered(run, steering, parsed_settings(settings or []))
    require_capability(model, Sampler, to="sample")
    if num_samples < 1:
        raise Refusal("CFG-050", f"--num-samples is {num_samples}", way_out="ask for at least 1")
    generator = torch.Generator().manual_seed(seed)
    if from_ is not None:
        _vary(run, model, from_, strength, label, num_samples, generator, out, seed)
        return
    condition = _condition(model, label, num_samples)
    if trajectory:
        _trajectory(run, model, condition, num_samples, generator, out, seed)
        return
    if given:
        model = _Given(model, given)
    x = sample_in_chunks(model, num_samples, generator, condition)
    typer.echo(_keep(x, model.space, out, run / f"samples-{seed}", real=_behind(run, model, x)))


def score(
    run: Run,
    data: Source = None,
    out: Annotated[Path | None, typer.Option(help="A .csv file. [standard output]")] = None,
    count: Count = 10_000,
) -> None:
    """Print log p(x) in nats, bits/dim and the anomaly score of each datum, as CSV."""
    from simulacra import shelf
    from simulacra.contract import Density, Scorer, capabilities
    from simulacra.files import write_bytes
    from simulacra.runs.using import scores

    model = shelf.from_pretrained(run)
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
) -> None:
    """Write a code for each datum, or a picture of the codes."""
    from simulacra import shelf
    from simulacra.contract import Encoder, require_capability
    from simulacra.runs.using import in_chunks

    model = shelf.from_pretrained(run)
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
    typer.echo(_keep(codes, None, out, run / "codes"))


def reconstruct(
    run: Run,
    data: Source = None,
    out: Annotated[Path | None, typer.Option(help="A .png or .npy file.")] = None,
    count: Count = 32,
) -> None:
    """Encode and decode data; a picture shows each original above its reconstruction."""
    from simulacra import shelf
    from simulacra.contract import Decoder, Encoder, require_capability
    from simulacra.runs.pictures import columns_of
    from simulacra.runs.using import beside, rebuilt

    model = shelf.from_pretrained(run)
    require_capability(model, Encoder, to="reconstruct")
    require_capability(model, Decoder, to="reconstruct")
    batch = part_of(run, data, model).first(count)
    again = rebuilt(model, batch)
    pairs = beside(batch.x, again, columns_of(model.space))
    typer.echo(_keep(pairs, model.space, out, run / "reconstructions"))


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
) -> None:
    """Walk from code to code between data, or along one unit of a code at a time."""
    from simulacra import shelf
    from simulacra.runs.walks import interpolations, require_walks, traversals

    model = shelf.from_pretrained(run)
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
    default = run / ("traversals" if traverse else "interpolations")
    real = _behind(run, model, x)
    typer.echo(_keep(x, model.space, out, default, real=real, columns=steps))


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
) -> None:
    """Fill in the other half; a picture shows each original above its completion."""
    import torch

    from simulacra import shelf
    from simulacra.contract import Completer, require_capability
    from simulacra.runs.pictures import columns_of
    from simulacra.runs.using import beside, half_known, named_columns
    from simulacra.spaces import Table

    model = shelf.from_pretrained(run)
    completer = require_capability(model, Completer, to="complete")
    batch = part_of(run, data, model).first(count)
    if isinstance(model.space, Table) and known not in ("left", "random"):
        mask = named_columns(known, batch.x, model.space)
    else:
        mask = half_known(batch.x, known, seed)
    filled = completer.complete(
        batch.x,
        mask,
        condition=batch.condition if model.condition_space is not None else None,
        generator=torch.Generator().manual_seed(seed),
    )
    typer.echo(
        _keep(
            beside(batch.x, filled, columns_of(model.space)),
            model.space,
            out,
            run / f"completions-{known}",
        )
    )


def evaluate(
    run: Run,
    num_samples: Annotated[int, typer.Option(help="Samples that are judged.")] = 1000,
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


def part_of(run: Path, data: str | None, model: Any) -> Any:
    """The data to use: those the user names, or the test part of the run's own."""
    from simulacra import shelf
    from simulacra.runs.recipe import Recipe

    recipe = Recipe.from_json(shelf.read_card(run)["recipe"])
    if data is None:
        return recipe.open_data().test
    opened = recipe.open_as(data, like=model.space)
    if opened.space != model.space:
        raise Refusal(
            "DATA-002",
            f"{shown(data)} holds {opened.space}, and the run was trained on {model.space}",
            way_out="give data of the same kind, or train on these",
        )
    return opened.everything()


class _Given:
    """A model of table rows that samples the rest of rows of which some columns are given."""

    def __init__(self, model: Any, texts: list[str]) -> None:
        from simulacra.contract import Completer, require_capability
        from simulacra.runs.using import given_columns
        from simulacra.spaces import Table

        if not isinstance(model.space, Table):
            reason = f"--given names columns, and the run models {model.space}"
            raise Refusal("CFG-144", reason, way_out="leave it out, or use complete")
        self.completer = require_capability(model, Completer, to="draw rows with given columns")
        self.space = model.space
        self.row, self.known = given_columns(texts, model.space)

    def sample(self, num_samples: int, *, condition: Any, generator: Any) -> Any:
        rows = self.row.expand(num_samples, -1)
        known = self.known.expand(num_samples, -1)
        return self.completer.complete(rows, known, condition=condition, generator=generator)


def _steered(run: Path, steering: dict[str, Any], settings: dict[str, Any]) -> Any:
    """The run's model, with settings of sampling over its own; refused where it has none such."""
    from dataclasses import fields

    from simulacra import shelf

    model = shelf.from_pretrained(run)
    told = {name: value for name, value in steering.items() if value is not None}
    known = {field.name for field in fields(model.config)}
    missing = [name for name in told if name not in known]
    if missing:
        raise Refusal(
            "CFG-216",
            f"--{missing[0].replace('_', '-')} was given, and {shelf.name_of(model)} has no {missing[0]}",
            way_out="leave it out; it is for models that sample from noise in steps",
        )
    told = {**settings, **told}
    return shelf.from_pretrained(run, settings=told) if told else model


def _vary(
    run: Path,
    model: Any,
    data: str,
    strength: float,
    label: int | None,
    count: int,
    generator: Any,
    out: Path | None,
    seed: int,
) -> None:
    """Write data and, below each, a variation of it."""
    from simulacra.contract import Variator, require_capability
    from simulacra.runs.pictures import columns_of
    from simulacra.runs.using import beside

    variator = require_capability(model, Variator, to="start from given data")
    batch = part_of(run, data, model).first(count)
    condition = _condition(model, label, len(batch))
    if condition is None and model.condition_space is not None:
        condition = batch.condition
    made = variator.vary(batch.x, strength=strength, condition=condition, generator=generator)
    pairs = beside(batch.x, made.cpu(), columns_of(model.space))
    typer.echo(_keep(pairs, model.space, out, run / f"variations-{seed}"))


def _trajectory(
    run: Path,
    model: Any,
    condition: Any,
    count: int,
    generator: Any,
    out: Path | None,
    seed: int,
) -> None:
    """Write samples from noise on as a strip of pictures and as an animation; or all states."""
    from simulacra.contract import Gradual, require_capability
    from simulacra.files import write_bytes
    from simulacra.runs.pictures import has_picture, png
    from simulacra.runs.trajectories import gif, strip, way
    from simulacra.spaces import Images

    gradual = require_capability(model, Gradual, to="draw the way from noise")
    states = way(gradual, count, generator, condition)
    space, default = model.space, run / f"trajectory-{seed}.png"
    paths = [out] if out else [default, default.with_suffix(".gif")]
    for path in paths:
        if path.suffix == ".npy":
            content = array_bytes(states)
        elif path.suffix == ".gif" and has_picture(space):
            content = gif(states, space, _behind(run, model, states[-1]))
        elif path.suffix == ".png" and isinstance(space, Images):
            content = png(strip(states, space))
        elif out is None:
            continue
        else:
            reason = f"{shown(path)} cannot hold a trajectory in {space}"
            raise Refusal("CFG-217", reason, way_out="give a name that ends in .gif or .npy")
        write_bytes(path, content)
        typer.echo(path)


def _condition(model: Any, label: int | None, count: int) -> Any:
    import torch

    if label is None:
        return None
    labels = model.condition_space
    if labels is None:
        reason = "--label was given, and the run is not conditional"
        raise Refusal("CFG-051", reason, way_out="leave --label out, or train with --conditional")
    if not 0 <= label < labels.count:
        reason = f"--label is {label}"
        raise Refusal("CFG-052", reason, way_out=f"give one from 0 to {labels.count - 1}")
    return torch.full((count,), label)


def _behind(run: Path, model: Any, x: Any) -> Any:
    """Real points that samples of the plane are drawn over, or x where the run's data have gone."""
    from simulacra.runs.pictures import POINTS, on_plane

    if not on_plane(model.space):
        return None
    with contextlib.suppress(Refusal):
        return part_of(run, None, model).first(POINTS).x
    return x


def _keep(
    x: Any, space: Any, out: Path | None, default: Path, *, real: Any = None, columns: int = 8
) -> Path:
    """Write elements as a picture, an array, a table or sounds, by the file's ending.

    Without ``out``, signals of a known rate become a folder of sounds with a picture in it.
    """
    from simulacra.files import write_bytes
    from simulacra.spaces import Images, Series, Table

    audible = isinstance(space, Series) and space.rate > 0
    if out is None and audible:
        return _sounds(x, space, default)
    endings: dict[Any, str] = {Images: ".png", Table: ".csv", Series: ".wav" if audible else ".png"}
    ending = endings.get(type(space), ".npy")
    path = out or default.with_suffix(ending)
    content = _content(x, space, path.suffix, real, columns)
    if content is None:
        other = ".png" if real is not None else ending
        reason = f"{shown(path)} cannot hold {'codes' if space is None else space}"
        raise Refusal("CFG-053", reason, way_out=f"give --out a name that ends in {other} or .npy")
    write_bytes(path, content)
    return path


def _content(x: Any, space: Any, ending: str, real: Any, columns: int) -> bytes | None:
    """Elements as the bytes of a file with this ending; None where it cannot hold them."""
    from simulacra.runs.pictures import has_picture, on_plane, picture, png
    from simulacra.runs.signals import one_after_another, wav
    from simulacra.runs.using import table_lines
    from simulacra.spaces import Series, Table

    if ending == ".npy":
        return array_bytes(x)
    if space is None:
        return None
    if ending == ".png" and has_picture(space) and (real is not None or not on_plane(space)):
        return png(picture(x, space, real, columns=columns))
    if ending == ".csv" and isinstance(space, Table):
        return ("\n".join(table_lines(x, space)) + "\n").encode()
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
