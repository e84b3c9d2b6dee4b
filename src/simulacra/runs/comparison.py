"""A comparison: several models on the same data and budget, side by side on one ruler.

Each model is a run in a folder of its own, trained in a process of its own (so that its memory is its
own); what is finished is never done twice, so the same command goes on where it was interrupted.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simulacra import shelf
from simulacra.contract import Sampler
from simulacra.data.dataset import Dataset
from simulacra.data.open import open_data, require_enough
from simulacra.data.text import is_readable, texts
from simulacra.evaluation.reading import over_seeds
from simulacra.evaluation.verdict import verdicts
from simulacra.files import read_json, write_bytes, write_json
from simulacra.refusals import KEPT_IN, Refusal, shown
from simulacra.runs import checkpoint
from simulacra.runs.budget import Budget
from simulacra.runs.exhibits import exhibits
from simulacra.runs.judging import READINGS, Judgement, judge, ladder_of, ruler_features
from simulacra.runs.machine import choose_device, describe_machine
from simulacra.runs.pictures import POINTS, has_picture, on_plane, picture, png
from simulacra.runs.recipe import Recipe, own_data
from simulacra.runs.report import DRAWS, PICTURE, REBUILT, write_report, write_run_report
from simulacra.runs.show import QUIET, Show
from simulacra.runs.stopping import stop_requests
from simulacra.runs.using import (
    asked_of,
    beside,
    looks_better_as_means,
    numbered,
    rebuilds,
    rebuilt,
    sample_in_chunks,
)
from simulacra.spaces import Images, Space, Tokens

PLAN = "comparison.json"
REAL = "real.png"
NUMBERS = "report.json"
PICTURED = 40
WRITTEN = 8


@dataclass(frozen=True)
class Plan:
    """What is compared: the same data, budget and seed for every model.

    ``features``: the file with the weights of the ruler's eyes, where one was given.
    """

    models: tuple[str, ...]
    data: str = "digits"
    view: str = "8bit"
    size: int | None = None
    conditional: bool = False
    budget: str = "3m"
    seed: int = 0
    num_samples: int = 1000
    skip_bad: int = 0
    label: str | None = None
    features: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"models": list(self.models)}

    def recipe(self, model: str, data: Dataset | None = None) -> Recipe:
        """The recipe of one model: conditional where it is wanted, and where the model can go by what the
        ``data`` go with; all read the same rows in any case."""
        conditions = shelf.find(model).cls.conditions
        able, label = bool(conditions), self.label
        if data is not None and data.condition is not None:
            able = isinstance(data.condition, conditions)
            label = label or data.source.get("columns")
        values = {"data": self.data, "view": self.view, "size": self.size, "budget": self.budget}
        values |= {"seed": self.seed, "skip_bad": self.skip_bad, "model": model}
        values |= {"label": label}
        return Recipe.from_json(values | {"conditional": self.conditional and able})


def chosen_models(names: str, data: Dataset, show: Show = QUIET) -> tuple[str, ...]:
    """The models that 'families', 'all', or a list with commas, names; each has to fit the space.

    'families' are the representatives; where none of them fits, all that do. Those of 'families' and
    'all' that refuse these data, such as binary models 8-bit images, are left out, and said so.
    """
    if names in ("families", "all"):
        fitting = [
            entry
            for entry in shelf.entries()
            if entry.fits(data.space) and (data.labels is not None or not entry.supervised)
        ]
        first = [entry for entry in fitting if entry.representative]
        chosen = first if names == "families" and first else fitting
        found = tuple(entry.name for entry in chosen if _accepts(entry.name, data, show))
        if not found:
            reason = f"no model on the shelf can model {data.space}"
            raise Refusal("CFG-031", reason, way_out="`simulacra models` shows what each can")
        return found
    wanted = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    for name in wanted:
        shelf.build(name, data.space, num_examples=len(data.train))
    if not wanted:
        raise Refusal(
            "CFG-060", "--models names none", way_out="write families, all, or names with commas"
        )
    return wanted


def _accepts(name: str, data: Dataset, show: Show) -> bool:
    """Whether a model of these data can be built; else the reason is shown."""
    try:
        shelf.build(name, data.space, num_examples=len(data.train))
    except Refusal as reason:
        show.line(f"left out: {reason}")
        return False
    return True


def compare_seeds(
    names: str,
    out: Path,
    seeds: Sequence[int],
    *,
    device: str = "auto",
    show: Show = QUIET,
    **choices: Any,
) -> Path:
    """The same comparison with several seeds, each in a folder of its own, and one page of all.

    Readings are means over the seeds, with an interval from their spread; the split and the ruler's
    eyes are the same for all.
    """
    if len(set(seeds)) < 2:
        reason = f"{len(set(seeds))} seeds have no spread"
        raise Refusal("CFG-062", reason, way_out="give at least two, such as --seeds 0-2")
    for seed in seeds:
        show.line(f"seed {seed}")
        folder = out / f"seed-{seed}"
        _compared(names, folder, ruler=out, device=device, show=show, **choices, seed=seed)
    first = out / f"seed-{seeds[0]}"
    plan = Plan(**{**read_json(first / PLAN), "models": tuple(read_json(first / PLAN)["models"])})
    data = plan.recipe(plan.models[0]).open_data()
    whole, failures = dict[str, Judgement](), dict[str, str]()
    for name in plan.models:
        folders = [out / f"seed-{seed}" / name for seed in seeds]
        missing = [str(folder) for folder in folders if not (folder / READINGS).is_file()]
        if missing:
            reasons = [
                read_json(folder.parent / NUMBERS)["failures"].get(name) for folder in folders
            ]
            told = "; ".join(dict.fromkeys(filter(None, reasons)))
            failures[name] = f"not judged with every seed ({', '.join(missing)})"
            failures[name] += f": {told}" if told else ""
            continue
        judged = [Judgement.read(folder) for folder in folders]
        refused = tuple(dict.fromkeys(line for one in judged for line in one.refused))
        whole[name] = Judgement(over_seeds([one.readings for one in judged]), {}, refused)
    told = f"{','.join(map(str, seeds))}"
    page = finish(out, plan, data, failures, device, home=first, judgements=whole, seeds=told)
    _tell(failures, plan, page, show)
    return page


def compare(
    names: str,
    out: Path,
    *,
    ruler: Path | None = None,
    weights: Path | None = None,
    device: str = "auto",
    show: Show = QUIET,
    **choices: Any,
) -> Path:
    """Train, judge and report; returns the path of the page. ``choices`` are those of ``Plan``.

    ``ruler``: the folder with the ruler's nets, else ``out``. ``weights``: a file with Inception's or
    DINOv2's. A model that fails is told of, on the page too, and leaves the others; where all do, that
    is refused.
    """
    plan, failures, page = _compared(
        names, out, ruler=ruler, weights=weights, device=device, show=show, **choices
    )
    _tell(failures, plan, page, show)
    return page


def _compared(
    names: str,
    out: Path,
    *,
    ruler: Path | None = None,
    weights: Path | None = None,
    device: str = "auto",
    show: Show = QUIET,
    **choices: Any,
) -> tuple[Plan, dict[str, str], Path]:
    """The plan, why which models failed, and the path of the page."""
    ruler = ruler or out
    draft = Plan(models=(), features=None if weights is None else str(weights), **choices)
    Budget.parse(draft.budget)
    data = open_data(
        draft.data,
        view=draft.view,
        size=draft.size,
        skip_bad=draft.skip_bad,
        conditional=draft.conditional,
        label=draft.label,
    )
    require_enough(data)
    plan = _claim(out, replace(draft, models=chosen_models(names, data, show)))
    eyes_seed = 0 if ruler != out else plan.seed
    ruler_features(data, ruler, eyes_seed, show, weights=weights)
    failures: dict[str, str] = {}
    for number, model in enumerate(plan.models, 1):
        folder = out / model
        if (folder / READINGS).is_file():
            show.line(f"[{number}/{len(plan.models)}] {model}: done before")
            continue
        show.line(f"[{number}/{len(plan.models)}] {model}: training for {plan.budget}")
        problem = _train(plan, model, data, out, device)
        if problem is not None:
            failures[model] = problem
            show.line(f"[{number}/{len(plan.models)}] {model}: {problem}")
            continue
        _picture(folder, data)
        judge(
            folder, num_samples=plan.num_samples, seed=plan.seed, data=data, ruler=ruler, show=show
        )
    return plan, failures, finish(out, plan, data, failures, device)


def _tell(failures: Mapping[str, str], plan: Plan, page: Path, show: Show) -> None:
    """Name the models that failed and why; with none left that is a refusal, with a failure's code."""
    told = [f"{name} failed: {why}" for name, why in failures.items()]
    if len(failures) < len(plan.models):
        for line in told:
            show.line(line)
        return
    code = re.search(r"error\[([A-Z]+-\d+)\]", told[0])
    raise Refusal(
        code[1] if code else "CFG-267",
        f"there is no model to compare, {'; '.join(told)}",
        way_out=f"what can be told stands in {shown(page)}",
    )


def _claim(out: Path, plan: Plan) -> Plan:
    """Make ``out`` this comparison's, or see that it already is; returns the plan as it is kept.

    Eyes once given are kept in the folder, so whoever goes on need not name their file again.
    """
    if (out / PLAN).is_file():
        before = read_json(out / PLAN)
        plan = replace(plan, features=plan.features or before.get("features"))
        described = plan.to_json()
        others = [key for key in described if key != "features"]
        changed = [key for key in others if before.get(key) != described[key]]
        if changed:
            raise Refusal(
                "CFG-061",
                f"{shown(out)} holds a comparison with another {' and '.join(changed)}",
                way_out="give another --out, or the same choices to go on with it",
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        reason = f"{shown(out)} is not an empty folder"
        raise Refusal("FILE-012", reason, way_out="give another --out")
    write_json(out / PLAN, plan.to_json())
    return plan


def _train(plan: Plan, model: str, data: Dataset, out: Path, device: str) -> str | None:
    """Train one model in a process of its own; returns what went wrong, or None."""
    folder = out / model
    if (folder / shelf.CARD).is_file() and shelf.read_card(folder).get("status") == "finished":
        return None
    command = [sys.executable, "-m", "simulacra", "train", "--device", device]
    if (folder / checkpoint.FOLDER).is_dir() and any((folder / checkpoint.FOLDER).glob("step-*")):
        command += ["--resume", str(folder)]
    else:
        write_json(out / "recipes" / f"{model}.json", plan.recipe(model, data).to_json())
        for left in folder.rglob("*") if folder.is_dir() else ():
            left.unlink(missing_ok=True) if not left.is_dir() else None
        command += ["--recipe", str(out / "recipes" / f"{model}.json"), "--out", str(folder)]
    code, line = _wait_for(command)
    if code in (75, 130, -15):
        raise Refusal(
            "STOP-002",
            f"the comparison was stopped while it trained {model}",
            way_out="give the same command again to go on, nothing is lost",
        )
    return None if code == 0 else line or f"training ended with exit code {code}"


def _wait_for(command: list[str]) -> tuple[int, str]:
    """The exit code of a child that hears of a stop only through us, and then once; and the line of its
    refusal, if any."""
    with (
        stop_requests() as asked_to_stop,
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            env=_environment() | {KEPT_IN: f"{folder}/line"},
            start_new_session=True,
        ) as child,
    ):
        told = False
        while child.poll() is None:
            if asked_to_stop() and not told:
                child.terminate()
                told = True
            time.sleep(0.05)
        kept = Path(folder, "line")
        line = kept.read_text(encoding="utf-8") if kept.is_file() else ""
        return (75 if told else child.returncode), line


def _environment() -> dict[str, str]:
    """The child's environment: it has to find this very package."""
    home = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def show_run(folder: Path, judgement: Judgement, *, seed: int = 0) -> Path:
    """Write the page of one judged run, with pictures of its samples, its data and its codes."""
    data = own_data(folder)
    _picture(folder, data)
    _picture_real(folder, data)
    shows = exhibits(shelf.from_pretrained(folder), data, seed)
    return write_run_report(folder, judgement, folder, shows)


def _picture(folder: Path, data: Dataset) -> None:
    """Samples, or of a model that draws none, what comes back of test data from their codes."""
    model = shelf.from_pretrained(folder)
    if is_readable(data.space) and isinstance(model, Sampler):
        asked = asked_of(model, data.test.first(WRITTEN))
        count = _count(WRITTEN, asked)
        x = sample_in_chunks(model, count, torch.Generator().manual_seed(0), asked)
        _write(folder / PICTURE, x, data.space)
    if not has_picture(data.space):
        return
    real, shown = data.test.first(POINTS).x, _pictured(data.space)
    if isinstance(model, Sampler):
        asked = asked_of(model, data.test.first(shown))
        shown, stream = _count(shown, asked), torch.Generator().manual_seed(0)
        x, name = sample_in_chunks(model, shown, stream, asked), PICTURE
        if looks_better_as_means(model):
            write_bytes(folder / DRAWS, png(picture(x, data.space, real, pixels=360)))
            stream = torch.Generator().manual_seed(0)
            x = sample_in_chunks(model, shown, stream, asked, mean=True)
    elif rebuilds(model):
        batch = data.test.first(shown)
        x, name = rebuilt(model, batch), REBUILT
        x = beside(batch.x, x) if isinstance(data.space, Images) else x
    else:
        return
    write_bytes(folder / name, png(picture(x, data.space, real, pixels=360)))


def _count(shown: int, asked: Tensor | None) -> int:
    return shown if asked is None else len(asked)


def _write(picture: Path, x: Tensor, space: Tokens) -> None:
    """Texts in the place of a picture."""
    write_bytes(picture.with_suffix(".txt"), numbered(texts(x, space)).encode())


def _picture_real(folder: Path, data: Dataset) -> None:
    if is_readable(data.space):
        _write(folder / REAL, data.test.first(WRITTEN).x, data.space)
    if has_picture(data.space):
        x = data.test.first(_pictured(data.space)).x
        write_bytes(folder / REAL, png(picture(x, data.space, x, pixels=360)))


def _pictured(space: Space) -> int:
    return POINTS if on_plane(space) else PICTURED


def finish(
    out: Path,
    plan: Plan,
    data: Dataset,
    failures: Mapping[str, str],
    device: str,
    *,
    home: Path | None = None,
    judgements: Mapping[str, Judgement] | None = None,
    seeds: str = "",
) -> Path:
    """Write the page, and its numbers as JSON, from what the folders hold.

    ``home`` holds the models' folders, else ``out``; ``judgements`` stand in for their own.
    """
    _picture_real(out, data)
    facts: dict[str, Any] = {
        "plan": asdict(plan) | ({"seed": seeds} if seeds else {}),
        "data": data.describe(),
        "machine": describe_machine(choose_device(device)),
        "failures": dict(failures),
        "command": _command(plan, out, seeds, device),
    }
    folders = {name: (home or out) / name for name in plan.models if name not in failures}
    if plan.conditional:
        facts["without the condition"] = unconditional(folders)
    judged = judgements or {name: Judgement.read(folder) for name, folder in folders.items()}
    ladder = ladder_of(out)
    trusted = ladder is None or ladder.passed
    readings = {name: list(one.readings) for name, one in judged.items()}
    refused = {name: one.refused for name, one in judged.items()}
    found = verdicts(readings, trusted=trusted, refused=refused)
    write_json(
        out / NUMBERS,
        {
            **facts,
            "models": {name: one.to_json() for name, one in judged.items()},
            "verdicts": [asdict(one) for one in found],
            "ruler": None if ladder is None else ladder.to_json(),
        },
    )
    return write_report(out, folders, facts, judged, found)


def unconditional(folders: Mapping[str, Path]) -> list[str]:
    """The models whose runs were told nothing of what the data go with."""
    cards = {name: shelf.read_card(folder) for name, folder in folders.items()}
    return [name for name, card in cards.items() if card["condition"] is None]


def _command(plan: Plan, out: Path, seeds: str = "", device: str = "auto") -> str:
    """The command that goes on with this very comparison, quoted as a shell needs it."""
    words = ["simulacra", "compare", plan.data]
    words += ["--models", ",".join(plan.models), "--budget", plan.budget]
    words += ["--seeds", seeds] if seeds else ["--seed", str(plan.seed)]
    words += ["--num-samples", str(plan.num_samples)]
    words += [] if plan.view == "8bit" else ["--view", plan.view]
    words += [] if plan.size is None else ["--size", str(plan.size)]
    words += ["--conditional"] if plan.conditional else []
    words += ["--label", plan.label] if plan.label else []
    words += ["--skip-bad", str(plan.skip_bad)] if plan.skip_bad else []
    words += ["--features", plan.features] if plan.features else []
    words += [] if device == "auto" else ["--device", device]
    return shlex.join([*words, "--out", str(out)])
