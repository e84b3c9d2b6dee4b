"""``simulacra sample``: new data from a run, steered, from given data, or on their way from noise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from simulacra.cli.exchange import (
    Run,
    Steering,
    array_bytes,
    behind,
    keep,
    keep_pairs,
    part_of,
    steered,
)
from simulacra.refusals import Refusal, shown

STRENGTH = 0.8
"""How little is left of what a sample starts from, where nobody says."""


def register(app: typer.Typer) -> None:
    """Put this module's verb on the command line."""
    app.command()(sample)


def sample(
    run: Run,
    num_samples: Annotated[int, typer.Option(help="How many.")] = 64,
    seed: Annotated[int, typer.Option(help="Same seed, same samples.")] = 0,
    condition: Annotated[
        str | None,
        typer.Option(
            "--condition",
            "--label",
            help="What a conditional model is asked for: a class by name or number, a caption, "
            "column=value,column=value, or an image's path.",
        ),
    ] = None,
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
    truncation: Annotated[
        float | None,
        typer.Option(help="Of StyleGAN2: 1 is all there is, nearer 0 safer and more alike."),
    ] = None,
    mean: Annotated[
        bool,
        typer.Option(
            "--mean", help="The means of p(x|z): autoencoders' samples without grain or hiss."
        ),
    ] = False,
    settings: Steering = None,
    from_: Annotated[
        str | None, typer.Option("--from", help="Data of the same space that samples start from.")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="How little of --from is left, above 0 to 1. [0.8]")
    ] = None,
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

    from simulacra.contract import MeanSampler, Sampler, require_capability
    from simulacra.runs.asking import asked_for
    from simulacra.runs.using import looks_better_as_means, sample_in_chunks

    steering = {
        "sampler": sampler,
        "num_inference_steps": num_inference_steps,
        "eta": eta,
        "guidance_scale": guidance_scale,
        "truncation": truncation,
    }
    model = steered(run, settings, steering)
    require_capability(model, Sampler, to="sample")
    if mean:
        require_capability(model, MeanSampler, to="sample means")
        if from_ is not None or trajectory or given:
            reason = "--mean was given with --from, --trajectory or --given, which have no means"
            raise Refusal("CFG-229", reason, way_out="leave --mean out")
    if num_samples < 1:
        raise Refusal("CFG-050", f"--num-samples is {num_samples}", way_out="ask for at least 1")
    generator = torch.Generator().manual_seed(seed)
    if strength is not None and from_ is None:
        reason = f"--strength is {strength:g}, and there is nothing to start from"
        raise Refusal("CFG-271", reason, way_out="name data with --from, or leave it out")
    if from_ is not None:
        strength = STRENGTH if strength is None else strength
        _vary(run, model, from_, strength, condition, num_samples, generator, out, seed)
        return
    asked = asked_for(run, model, condition, num_samples)
    if trajectory:
        _trajectory(run, model, asked, num_samples, generator, out, seed)
        return
    if given:
        asking = _Given(model, given)
        # What was given stays as it was, whatever its decimals.
        x = asking.kept(sample_in_chunks(asking, num_samples, generator, asked))
    else:
        x = sample_in_chunks(model, num_samples, generator, asked, mean=mean)
    name = f"means-{seed}" if mean else f"samples-{seed}"
    typer.echo(keep(x, model.space, out, run / name, real=behind(run, model, x)))
    if looks_better_as_means(model) and not mean:
        words = "drawn from p(x), every pixel or instant by itself; --mean leaves that noise out"
        typer.echo(words, err=True)


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

    def kept(self, x: Any) -> Any:
        """Rows with the given values in their places."""
        return x.where(~self.known, self.row)


def _vary(
    run: Path,
    model: Any,
    data: str,
    strength: float,
    condition: str | None,
    count: int,
    generator: Any,
    out: Path | None,
    seed: int,
) -> None:
    """Write data and, below each, a variation of it."""
    from simulacra.contract import Variator, require_capability
    from simulacra.runs.asking import asked_for

    variator = require_capability(model, Variator, to="start from given data")
    batch = part_of(run, data, model, told=condition is None).first(count)
    asked = asked_for(run, model, condition, len(batch))
    if condition is None and model.condition_space is not None:
        asked = batch.condition
    made = variator.vary(batch.x, strength=strength, condition=asked, generator=generator)
    made = model.space.rounded(made.cpu())
    default = run / f"variations-{seed}"
    typer.echo(keep_pairs(batch.x, made, model.space, out, default))


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
            content = gif(states, space, behind(run, model, states[-1]))
        elif path.suffix == ".png" and isinstance(space, Images):
            content = png(strip(states, space))
        elif out is None:
            continue
        else:
            reason = f"{shown(path)} cannot hold a trajectory in {space}"
            raise Refusal("CFG-217", reason, way_out="give a name that ends in .gif or .npy")
        write_bytes(path, content)
        typer.echo(path)
