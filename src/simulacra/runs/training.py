"""Beginning a run and going on with it: from a recipe, from a folder, or with a model at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simulacra import shelf
from simulacra.data.dataset import Dataset
from simulacra.data.open import require_enough
from simulacra.refusals import Refusal, shown
from simulacra.runs.conductor import Run
from simulacra.runs.machine import processes
from simulacra.runs.recipe import Recipe, own_path, require_same_data
from simulacra.runs.show import QUIET, Show


def train(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    longer: bool = False,
    device: str = "auto",
    save_every: float = 60.0,
    show: Show = QUIET,
    data: Dataset | None = None,
) -> dict[str, Any]:
    """Carry a recipe out in ``folder``; ``resume`` goes on from its newest good checkpoint.

    ``longer``: the budget is not the one that the run was begun with, so what had ended may go on.
    """
    _require_usable(folder, resume)
    with processes():
        if data is None:
            data = recipe.open_as(own_path(folder)) if resume else recipe.open_data()
        require_enough(data)
        if resume:
            require_same_data(folder, data)
        supervised = shelf.find(recipe.model).supervised
        condition = data.labels if supervised else data.condition if recipe.conditional else None
        if condition is None and (recipe.conditional or supervised):
            reason = f"the data {shown(recipe.data)} have no labels for {recipe.model} to learn"
            way_out = "choose another model" if supervised else "leave --conditional out"
            way_out += ", name their column with --label, or give each class of images a folder"
            raise Refusal("CFG-042", reason, way_out=way_out)
        if resume:
            model = shelf.untrained(folder)
        else:
            model = shelf.build(
                recipe.model,
                data.space,
                settings=recipe.settings,
                condition=condition,
                num_examples=len(data.train),
                seed=recipe.seed,
            )
        run = Run(model, data, recipe, folder, device=device, save_every=save_every, show=show)
        if resume:
            run.restore()
            if longer and run.play.reopen():
                run.forget_best()
        return run.go()


def _require_usable(folder: Path, resume: bool) -> None:
    if folder.exists() and not folder.is_dir():
        reason = f"{shown(folder)} is a file"
        raise Refusal("FILE-011", reason, way_out="give --out a folder that is new or empty")
    if not resume and folder.is_dir() and any(folder.iterdir()):
        raise Refusal(
            "FILE-012",
            f"{shown(folder)} is not empty",
            way_out="give another --out, or go on with --resume",
        )


def resume(
    folder: Path,
    *,
    budget: str | None = None,
    device: str = "auto",
    save_every: float = 60.0,
    show: Show = QUIET,
) -> dict[str, Any]:
    """Go on with the run in ``folder``; ``budget`` means the total, and may be a larger one."""
    card = shelf.read_card(folder)
    values = dict(card["recipe"]) | ({"budget": budget} if budget else {})
    recipe = Recipe.from_json(values)
    if card.get("status") == "finished" and recipe.budget == card["recipe"]["budget"]:
        reason = f"the run in {shown(folder)} has finished its budget of {recipe.budget}"
        raise Refusal("CFG-043", reason, way_out="give a larger --budget to train on")
    longer = recipe.budget != card["recipe"]["budget"]
    options: dict[str, Any] = {"device": device, "save_every": save_every, "show": show}
    return train(recipe, folder, resume=True, longer=longer, **options)


def fit(
    model: Any,
    data: Dataset,
    *,
    budget: str = "3m",
    seed: int = 0,
    folder: Path | str | None = None,
    device: str = "auto",
    show: Show = QUIET,
) -> dict[str, Any]:
    """Train ``model`` in place on ``data``, and keep the run in ``folder`` if one is given.

    Returns the run's numbers: rounds, examples, training seconds, peak memory, held-out nats.
    """
    require_enough(data)
    target = None if folder is None else Path(folder)
    if target is not None:
        _require_usable(target, resume=False)
    told = {"data": data.name} | data.options | {"model": shelf.name_of(model), "seed": seed}
    told |= {"budget": budget, "conditional": model.condition_space is not None}
    recipe = Recipe.from_json(told)
    return Run(model, data, recipe, target, device=device, show=show).go()
