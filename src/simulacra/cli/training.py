"""``simulacra train``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from simulacra.cli.exchange import LabelColumn
from simulacra.refusals import Refusal, shown


def register(app: typer.Typer) -> None:
    """Put this module's verbs on the command line."""
    app.command()(train)


def train(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(help="A name that `simulacra models` lists.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Argument(
            help="digits, mnist, fashion-mnist, stacked-…, ring, grid, tones, or a path. [digits]"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder. [runs/NUMBER-model-data]")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="3m, 90s, 5000steps, 1e6examples. [3m]")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="A recipe file; other options add to it.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder.")] = None,
    view: Annotated[str | None, typer.Option(help="8bit, binary or dynamic. [8bit]")] = None,
    size: Annotated[
        int | None,
        typer.Option(help="The side of images, cut to squares, or the length of windows."),
    ] = None,
    conditional: Annotated[
        bool, typer.Option(help="Condition the model on labels, captions, attributes or images.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Same seed, same run. [0]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples a batch.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16. [auto]")] = None,
    optimiser: Annotated[str | None, typer.Option(help="adamw, sgd, radam, adamp, …")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="The model's; a critic keeps its multiple of it.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many measures without a better one.")
    ] = None,
    snapshots: Annotated[
        int | None,
        typer.Option(
            help="How often to keep two weight averages, for `simulacra average`: 16, say. [0]"
        ),
    ] = None,
    skip_bad: Annotated[
        int | None, typer.Option(help="Leave out at most so many broken files.")
    ] = None,
    label: LabelColumn = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the model: name=value.")
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    save_every: Annotated[float, typer.Option(help="Seconds between checkpoints.")] = 60.0,
    dry_run: Annotated[bool, typer.Option(help="Print the recipe and stop.")] = False,
) -> None:
    """Train one model on one data set, into a folder that every other verb can use."""
    from simulacra.cli.terminal import say, showing
    from simulacra.runs import training

    if resume is not None:
        _require_alone(context)
        with showing(resume.name) as show:
            training.resume(resume, budget=budget, device=device, save_every=save_every, show=show)
        say(f"finished: {resume}")
        return
    flags: dict[str, Any] = {
        "model": model,
        "data": data,
        "budget": budget,
        "view": view,
        "size": size,
        "conditional": conditional or None,
        "seed": seed,
        "batch_size": batch_size,
        "precision": precision,
        "patience": patience,
        "snapshots": snapshots,
        "skip_bad": skip_bad,
        "label": label,
        "compile": compiled or None,
    }
    wanted = combined_recipe(recipe, flags, settings or [], optimiser, learning_rate)
    if dry_run:
        typer.echo(json.dumps(wanted.to_json(), indent=2))
        return
    folder = out or next_folder(f"{wanted.model}-{Path(wanted.data).stem}")
    with showing(wanted.model) as show:
        numbers = training.train(wanted, folder, device=device, save_every=save_every, show=show)
    say(
        f"{numbers['rounds']} rounds in {numbers['training_seconds']:.1f} s, {numbers['precision']}"
    )
    typer.echo(folder)


RESUMED = ("resume", "budget", "device", "save_every")
"""What can be said of a run that goes on."""


def _require_alone(context: typer.Context) -> None:
    """Refuse options beside --resume that the run, which goes on as it began, could not heed."""
    words = []
    for one in context.command.params:
        source = context.get_parameter_source(one.name or "")
        if one.name not in RESUMED and source is not None and source.name == "COMMANDLINE":
            words.append(one.opts[0] if one.opts[0].startswith("-") else one.opts[0].upper())
    if words:
        reason = f"{' and '.join(words)} given with --resume, which goes on as the run began"
        way_out = (
            "leave out all but --budget, --device and --save-every, or train anew without --resume"
        )
        raise Refusal("CFG-270", reason, way_out=way_out)


def combined_recipe(
    file: Path | None,
    flags: dict[str, Any],
    settings: list[str],
    optimiser: str | None,
    learning_rate: float | None,
) -> Any:
    """The recipe of ``file`` with what the options say on top."""
    from simulacra.runs.recipe import Recipe

    values = Recipe.read(file).to_json() if file else {}
    values |= {name: value for name, value in flags.items() if value is not None}
    if "model" not in values:
        raise Refusal("CFG-041", "no model was named", way_out="`simulacra models` lists them")
    recipe = Recipe.from_json(values)
    changes = {"name": optimiser, "learning_rate": learning_rate}
    given = {name: value for name, value in changes.items() if value is not None}
    return replace(
        recipe,
        settings={**recipe.settings, **parsed_settings(settings)},
        optimiser={**recipe.optimiser, **given},
    )


def parsed_settings(pairs: list[str]) -> dict[str, Any]:
    """``name=value`` texts as a dictionary; values are read as JSON, and as plain text otherwise."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise Refusal(
                "CFG-044", f"--set got {shown(pair)}", way_out="write it as --set name=value"
            )
        try:
            found[name.strip()] = json.loads(text)
        except ValueError:
            found[name.strip()] = text
    return found


def next_folder(label: str) -> Path:
    """runs/NUMBER-label with the first free number."""
    runs = Path("runs")
    taken = [int(one.name[:5]) for one in runs.glob("[0-9][0-9][0-9][0-9][0-9]-*")]
    return runs / f"{max(taken, default=-1) + 1:05d}-{label}"
