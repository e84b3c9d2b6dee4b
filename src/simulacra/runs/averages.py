"""Trying weight averages of other lengths on held-out data, and keeping one as a run of its own."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simulacra import shelf
from simulacra.contract import Density
from simulacra.evaluation.intervals import mean_interval
from simulacra.files import sync_folder, writing
from simulacra.games import Batch
from simulacra.probability.units import bits_per_dimension
from simulacra.refusals import Refusal, shown
from simulacra.runs import snapshots
from simulacra.runs.judging import FEATURES, JUDGE, LADDER
from simulacra.runs.ledger import LEDGER
from simulacra.runs.machine import choose_device
from simulacra.runs.recipe import SEEN, own_data, seen_from
from simulacra.runs.show import QUIET, Show
from simulacra.runs.snapshots import Made, Snapshot
from simulacra.runs.watching import MEASURED, is_measured, watched

LENGTHS = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Half-lives that are tried where none is named, beside the run's own."""
MOST_RESIDUAL = 0.1
"""Beyond this share of the wanted profile that the snapshots cannot give, an average is no longer the
one that was asked for: a random walk's would be some hundredths of its own spread off."""
TAKEN = (LEDGER, FEATURES, JUDGE, LADDER)
"""What other verbs read of a run besides its card and weights, and what holds for any weights of it."""


@dataclass(frozen=True)
class Trial:
    """One length: the residual of its profile, and the measure of each held-out datum, (n,), in nats or
    as minus an anomaly score, higher is better; None where nothing was measured."""

    length: float
    residual: float
    measured: Tensor | None = None

    @property
    def possible(self) -> bool:
        return self.residual <= MOST_RESIDUAL

    @property
    def value(self) -> float:
        return -math.inf if self.measured is None else float(self.measured.mean())


@dataclass(frozen=True)
class Watch:
    """What the lengths are compared by: the name and unit, the kind's sign, the number of data."""

    name: str
    sign: str
    count: int


class Lengths:
    """A run with snapshots, whose weight average may still have any length."""

    def __init__(
        self, run: Path, *, count: int = MEASURED, device: str = "auto", show: Show = QUIET
    ):
        self.run, self.card, self.show = run, shelf.read_card(run), show
        self.kept = snapshots.read(run, show.line)
        self.device = choose_device(device)
        self.model: Any = shelf.from_pretrained(run).to(self.device)
        self.measurable = is_measured(self.model, self.model.game())
        self.count = count
        self._held_out: Batch | None = None
        self._say_what_is_left_out()

    @property
    def last(self) -> Snapshot:
        return self.kept[-1]

    @property
    def own(self) -> float:
        """The length that the run was trained with."""
        return self.last.half_lives[0]

    def _say_what_is_left_out(self) -> None:
        """Snapshots from before the stage that began at the best weights are of another path."""
        since = self.last.since
        floating = [k for k, v in self.model.state_dict().items() if v.is_floating_point()]
        begun = min((since.get(name, -1.0) for name in floating), default=-1.0)
        older = sum(one.age <= begun for one in self.kept)
        if older:
            self.show.line(
                f"{older} of {len(self.kept)} snapshots are from before the last stage, which began at "
                "the best weights, and are not used"
            )

    def held_out(self) -> Batch:
        if self._held_out is None:
            self._held_out = own_data(self.run).valid.first(self.count)
        return self._held_out

    def watch(self) -> Watch:
        """What a run's best weights are chosen by, in words."""
        count = len(self.held_out())
        if isinstance(self.model, Density):
            return Watch("bits/dim", self.model.kind.sign, count)
        return Watch(self.model.score_source, "", count)

    def told(self, measured: Tensor) -> Tensor:
        """Measures as they are printed: bits/dim, or scores."""
        if isinstance(self.model, Density):
            return bits_per_dimension(measured, self.model.space)  # type: ignore[attr-defined]
        return -measured

    def as_kept(self) -> Tensor:
        """The measure of the weights that the run ended with."""
        shelf.load_weights(self.model, self.run / shelf.WEIGHTS)
        return self._measure()

    def made(self, length: float) -> Made:
        """The average of half-life ``length``, whatever its residual."""
        if not 0 < length <= 1:
            reason = f"the length of an average is {length:g}"
            way_out = "give a half-life as a share of the examples seen: 0.05, say"
            raise Refusal("CFG-246", reason, way_out=way_out)
        return snapshots.average(self.kept, length)

    def tried(self, length: float, *, measure: bool) -> Trial:
        """A length with its residual, and where that is small enough and asked for, its measure."""
        made = self.made(length)
        if not made.moved:
            raise Refusal(
                "CFG-245",
                f"no weights of {shown(self.run)} moved since its last stage began, so that every "
                "length gives the same average",
                way_out="use the run as it is",
            )
        if made.residual > MOST_RESIDUAL or not measure:
            return Trial(length, made.residual)
        self.model.load_state_dict(made.weights)
        return Trial(length, made.residual, self._measure())

    def _measure(self) -> Tensor:
        with torch.no_grad():
            return watched(self.model.eval(), self.held_out(), self.device).cpu()

    def require(self, trial: Trial) -> None:
        """Refuse a length that the snapshots do not give."""
        if not trial.possible:
            raise Refusal(
                "CFG-243",
                f"{len(self.kept)} snapshots of averages of {self.own:g} and "
                f"{self.last.half_lives[1]:g} cannot give one of {trial.length:g}: "
                f"{trial.residual:.0%} of its profile would be missing",
                way_out=f"give a --length nearer to {self.own:g}, or train with more --snapshots",
            )

    def keep(self, trial: Trial, out: Path) -> Path:
        """Write the run with this average as a folder of its own, whole or not at all."""
        require_new(out)
        self.require(trial)
        self.model.load_state_dict(self.made(trial.length).weights)
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            unfinished = out.parent / f".writing-{out.name}"
            shutil.rmtree(unfinished, ignore_errors=True)
            try:
                for name in TAKEN:
                    _copy(self.run / name, unfinished / name)
                shelf.save_pretrained(self.model, unfinished, card=self._card(trial, out))
                if out.is_dir():
                    out.rmdir()
                os.rename(unfinished, out)
                sync_folder(out.parent)
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
        return out

    def _card(self, trial: Trial, out: Path) -> Mapping[str, Any]:
        """The run's card, with numbers that hold for these weights, and where they are from."""
        is_density = trial.measured is not None and isinstance(self.model, Density)
        numbers = {
            **self.card.get("numbers", {}),
            "rounds": self.last.rounds,
            "examples": self.last.examples,
            "held_out_nats": trial.value if is_density else None,
        }
        average = {
            "length": trial.length,
            "trained_with": self.own,
            "residual": trial.residual,
            "snapshots": len(self.kept),
        }
        kept = {key: value for key, value in self.card.items() if key != SEEN}
        kept |= seen_from(out, str(self.card["recipe"]["data"]), known=self.run)
        return {**kept, "status": "finished", "numbers": numbers, "average": average}


def require_new(out: Path) -> None:
    """Refuse a place that is taken."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "is not empty" if out.is_dir() else "is a file"
        raise Refusal("CFG-247", f"{shown(out)} {what}", way_out="give --out a new folder")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.is_file():
        shutil.copyfile(source, target)


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The measured one with the highest mean."""
    measured = [one for one in trials if one.measured is not None]
    return max(measured, key=lambda one: one.value, default=None)


def table(lengths: Lengths, trials: Sequence[Trial]) -> list[str]:
    """A line a length, and last the weights that the run ended with; behind the best, datum by datum."""
    watch, best, own = lengths.watch(), best_of(trials), lengths.own
    head = f"{watch.name} (n = {watch.count:,} valid)"
    lines = [f"{'length':<8}{head:<34}{'behind the best, 95 %':<26}profile missing"]
    kept = lengths.as_kept()
    for one in [*trials, None]:
        measured = kept if one is None else one.measured
        name, left = ("kept", "") if one is None else (f"{one.length:g}", f"{one.residual:.1%}")
        notes = "  the run's own" if one is not None and one.length == own else ""
        if measured is None:
            lines.append(f"{name:<8}{'':<34}{'':<26}{left}  too much{notes}")
            continue
        value = f"{watch.sign} {float(lengths.told(measured).mean()):.4f}".strip()
        behind = "best" if one is best else _behind(lengths, measured, best)
        lines.append(f"{name:<8}{value:<34}{behind:<26}{left}{notes}".rstrip())
    return lines


def _behind(lengths: Lengths, measured: Tensor, best: Trial | None) -> str:
    """How much worse than the best length, with the interval of a paired difference."""
    if best is None or best.measured is None or len(measured) < 2:
        return ""
    behind = lengths.told(measured) - lengths.told(best.measured)
    low, high = mean_interval(behind)
    return f"{low:+.4f} to {high:+.4f}"
