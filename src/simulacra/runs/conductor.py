"""The conductor: one run from a recipe to a folder, as a loop with four plain questions.

Measure? Save? Picture? Stop? None of them changes the state of the play, so they may be asked by the
clock on the wall; a resumed run with a budget in steps or examples is bit-identical to one that was
never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from simulacra import shelf
from simulacra.contract import Density, Diagnosable, Sampler
from simulacra.data.dataset import Dataset, Stream
from simulacra.files import write_bytes
from simulacra.games import Clock, Game
from simulacra.play import Play, Report
from simulacra.probability.units import bits_per_dimension
from simulacra.processes import world_and_rank
from simulacra.refusals import Refusal, shown
from simulacra.runs import checkpoint, snapshots
from simulacra.runs.budget import Budget
from simulacra.runs.flight import Finding, FlightRecorder
from simulacra.runs.ledger import Ledger
from simulacra.runs.machine import (
    choose_device,
    describe_machine,
    has_bf16,
    keep_freed_memory,
    peak_memory_mib,
)
from simulacra.runs.pictures import POINTS, has_picture, on_plane, picture, png
from simulacra.runs.recipe import Recipe, seen_from, with_optimiser
from simulacra.runs.show import QUIET, Show
from simulacra.runs.stopping import stop_requests
from simulacra.runs.using import asked_of, beside, looks_better_as_means, rebuilds, rebuilt
from simulacra.runs.watching import MEASURED, is_measured, watched
from simulacra.spaces import Images

LEDGER_LINES = 200
MEASURES = 20
PICTURES = 4
PICTURED, COLUMNS, DIAGNOSED = 36, 6, 64
WATCHED = 2000
"""Training data among which copies are looked for while a run goes on."""


@dataclass
class _Best:
    """The best weights so far by a measure on held-out data, and for how many measures they stood."""

    value: float | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)
    age: int = 0

    def see(self, value: float, model: torch.nn.Module) -> None:
        if self.value is None or value > self.value:
            self.value, self.age = value, 0
            self.weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
        else:
            self.age += 1


class Run:
    """One model being trained on one data set, in a folder or only in memory."""

    def __init__(
        self,
        model: Any,
        data: Dataset,
        recipe: Recipe,
        folder: Path | None,
        *,
        device: str = "auto",
        save_every: float = 60.0,
        show: Show = QUIET,
    ) -> None:
        self.data, self.recipe, self.folder, self.show = data, recipe, folder, show
        self.device = choose_device(device)
        self.model: Any = model.to(self.device)
        self.world, self.rank = world_and_rank()
        self.budget = Budget.parse(recipe.budget)
        self.save_every = save_every
        base = getattr(getattr(model, "config", None), "learning_rate", None)
        game: Game = with_optimiser(model.game(), recipe.optimiser, base)
        self.game = game
        self.stream = Stream(
            data.train,
            game.batch_size if recipe.batch_size is None else recipe.batch_size,
            seed=recipe.seed,
            device=self.device,
            conditional=model.condition_space is not None,
            world=self.world,
            rank=self.rank,
            together=game.together,
        )
        wanted = {"auto": game.bf16 and has_bf16(self.device), "fp32": False, "bf16": True}
        self.bf16 = wanted[recipe.precision]
        snapshots.require_average(recipe.snapshots, recipe.model, game)
        second = bool(recipe.snapshots)
        # Compiled parts may be compiled anew at any time, which a graph has no room for.
        replays = not recipe.compile
        self.play = Play(
            model, game, seed=recipe.seed, bf16=self.bf16, second=second, replays=replays
        )
        self.conditional = model.condition_space is not None
        self.best = _Best()
        self.seconds = self.agreed = 0.0
        self.warnings: list[str] = []
        self.ledger = Ledger(None)
        self.flight = FlightRecorder(data.space, data.train.first(WATCHED).x)
        if recipe.patience and not is_measured(model, game):
            self._warn(f"patience has no effect: {recipe.model} has no held-out measure to stop by")
        if recipe.compile:
            self._compile(game)

    def _compile(self, game: Game) -> None:
        left = [name for name, part in self.model.named_children() if part in game.eager]
        for name, part in self.model.named_children():
            if name not in left:
                part.compile()
        if left:
            because = "slopes of it are in a loss, which torch.compile has no gradients of"
            self._warn(f"not compiled: {' and '.join(left)}; {because}")

    @property
    def writes(self) -> bool:
        return self.folder is not None and self.rank == 0

    def restore(self) -> None:
        """Stand where the newest good checkpoint was taken."""
        assert self.folder is not None
        found = checkpoint.load_newest(self.folder, self._warn)
        if found is None:
            raise Refusal(
                "CKPT-011",
                f"{shown(self.folder)} has no checkpoint to go on from",
                way_out="train without --resume",
            )
        tensors, plain = found
        try:
            self.play.load_state(tensors, plain)
        except RuntimeError as error:
            first = str(error).strip().splitlines()[-1].strip()
            raise Refusal(
                "CKPT-012",
                f"the checkpoints in {shown(self.folder)} are of another model ({first[:120]})",
                way_out="go on with the version that began it, or train anew",
            ) from error
        self.seconds = float(plain["seconds"])
        self.agreed = self.budget.used(self.play.clock, self.seconds)
        self.warnings = list(dict.fromkeys([*plain["warnings"], *self.warnings]))
        kept = {k.removeprefix("best/"): v for k, v in tensors.items() if k.startswith("best/")}
        self.best = _Best(plain["best"], kept, plain["age"])
        self.flight.load_state(plain.get("flight", {}))

    def go(self) -> dict[str, Any]:
        """Train to the end of the budget; returns the numbers that the card keeps."""
        keep_freed_memory()
        self.ledger = Ledger(
            self.folder if self.writes else None, upto_round=self.play.clock.rounds
        )
        if self.writes and self.recipe.snapshots:
            assert self.folder is not None
            snapshots.forget_after(self.folder, self.play.clock.rounds)
        if self.play.clock.rounds == 0:
            self.save()
        with stop_requests() as asked_to_stop:
            self._rounds(asked_to_stop)
        self._finish()
        return self._numbers()

    def _rounds(self, asked_to_stop: Any) -> None:
        pending: list[Report] = []
        saved_at = time.monotonic()
        marks = {"line": self._mark(LEDGER_LINES), "measure": self._mark(MEASURES)}
        marks["picture"] = self._mark(PICTURES)
        marks["snapshot"] = self._mark(self.recipe.snapshots)
        rounds = self.play.rounds(self.stream, self.used)
        while True:
            started = time.monotonic()
            report = next(rounds, None)
            self.seconds += time.monotonic() - started
            if report is None:
                break
            if report.wants_best:
                self._back_to_best()
                continue
            pending.append(report)
            if self._passed("line", marks, LEDGER_LINES):
                pending = self._line(pending)
            if self._passed("measure", marks, MEASURES):
                self._measure()
            if self._passed("picture", marks, PICTURES):
                self._picture()
                self._diagnose()
            if self._passed("snapshot", marks, self.recipe.snapshots):
                self._snapshot()
            if self.recipe.patience and self.best.age >= self.recipe.patience:
                self._warn(f"stopped early: no better measure in {self.best.age} measures")
                if not self.play.skip_to_best():
                    break
            if time.monotonic() - saved_at > self.save_every:
                pending = self._line(pending)
                self._try_to_save()
                saved_at = time.monotonic()
            if asked_to_stop():
                self._line(pending)
                self._stopped()
        self._line(pending)

    def _back_to_best(self) -> None:
        """What follows builds on the best weights so far, and has as long as they had to be better."""
        if self.best.weights:
            self.play.stand_at(self.best.weights)
        self.best.age = 0

    def forget_best(self) -> None:
        """Look for the best weights anew, now that there is more to come."""
        self.best = _Best()

    def _stopped(self) -> None:
        if self.folder is None:
            raise KeyboardInterrupt
        self.save()
        raise Refusal(
            "STOP-001",
            f"stopped on request in round {self.play.clock.rounds}, {self._share():.0%} done",
            way_out=f"nothing is lost, go on with `simulacra train --resume {self.folder}`",
        )

    def used(self, clock: Clock) -> float:
        used = self.budget.used(clock, self.seconds)
        if self.world > 1 and self.budget.unit == "seconds":
            shared = torch.tensor(used)
            dist.broadcast(shared, src=0)
            used = self.agreed = float(shared)
        return used

    def _share(self) -> float:
        """The part of the budget that is used; of seconds, the one that the processes last agreed on."""
        if self.world > 1 and self.budget.unit == "seconds":
            return min(1.0, self.agreed)
        return min(1.0, self.budget.used(self.play.clock, self.seconds))

    def _mark(self, count: int) -> int:
        return int(self._share() * count)

    def _passed(self, name: str, marks: dict[str, int], count: int) -> bool:
        now = self._mark(count)
        passed = now > marks[name]
        marks[name] = now
        return passed

    def _line(self, pending: list[Report]) -> list[Report]:
        """One ledger line with the means of the reports since the last one."""
        if not pending:
            return []
        names = {name for report in pending for name in report.numbers}
        means = {}
        for name in sorted(names):
            values = [report.numbers[name] for report in pending if name in report.numbers]
            means[name] = sum(values) / len(values)
        clock, skipped = pending[-1].clock, sum(report.skipped for report in pending)
        if skipped:
            means["skipped"] = skipped
        self._heard(self.flight.numbers(means, clock.rounds, self._share()))
        self._add_line(means)
        told = [name for name in means if not name.endswith("gradient norm")][:3]
        words = "  ".join(f"{name} {means[name]:.4g}" for name in told)
        self.show.progress(self._share(), f"round {clock.rounds}  {words}")
        return []

    def _add_line(self, numbers: Mapping[str, float]) -> None:
        clock = self.play.clock
        position = {"round": clock.rounds, "stage": clock.stage, "examples": clock.examples}
        finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
        self.ledger.add({**position, "seconds": round(self.seconds, 3), **finite})

    def _heard(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self._warn(finding.text())

    def _diagnose(self) -> None:
        if not isinstance(self.model, Diagnosable):
            return
        held_out = self.data.valid.first(DIAGNOSED)
        model: Any = self.model
        with self.play.averaged(), torch.no_grad():
            told = model.diagnose(
                held_out.x.to(self.device),
                condition=held_out.condition if self.conditional else None,
            )
        self._heard(self.flight.diagnoses(told, self.play.clock.rounds, self._share()))

    def _measure(self) -> None:
        """Log-likelihood of held-out data; of a model without one that keeps its best weights, its score.

        A likelihood whose constant moves with the weights says nothing of progress.
        """
        model: Any = self.model
        if not is_measured(model, self.game):
            return
        held_out = self.data.valid.first(MEASURED)
        with self.play.averaged(), torch.no_grad():
            value = float(watched(model, held_out, self.device).mean())
            if math.isfinite(value):
                self.best.see(value, model)
        if isinstance(self.model, Density):
            bits = float(bits_per_dimension(torch.tensor(value), self.data.space))
            self._add_line({"held-out bits/dim": bits})
        else:
            self._add_line({f"held-out {model.score_source}": -value})

    def _picture(self) -> None:
        """Samples from fixed seeds, and a look at each of them; of a model that draws none, what comes
        back of the first held-out data. A picture where elements have one."""
        drawn = isinstance(self.model, Sampler)
        if self.rank != 0 or not (drawn or rebuilds(self.model)):
            return
        space = self.data.space
        shown = POINTS if on_plane(space) and self.folder is not None else PICTURED
        held_out = self.data.valid.first(shown)
        with self.play.averaged(), torch.no_grad():
            if drawn:
                asked = asked_of(self.model, held_out)
                shown = shown if asked is None else len(asked)
                x = seen = self.model.sample(
                    shown, condition=asked, generator=torch.Generator().manual_seed(0)
                ).cpu()
                if looks_better_as_means(self.model):
                    seen = self.model.sample_mean(
                        shown, generator=torch.Generator().manual_seed(0)
                    ).cpu()
            elif self.folder is not None and has_picture(space):
                seen = rebuilt(self.model, held_out)
            else:
                return
        if drawn:
            some = slice(PICTURED)
            round_, share = self.play.clock.rounds, self._share()
            self._heard(self.flight.samples(x[some], held_out.x[some], round_, share))
        elif isinstance(space, Images):
            seen = beside(held_out.x, seen, columns=COLUMNS)
        if self.folder is not None and has_picture(space):
            name = f"round-{self.play.clock.rounds:09d}.png"
            content = png(picture(seen, space, held_out.x, columns=COLUMNS))
            write_bytes(self.folder / "pictures" / name, content)

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, plain = self.play.state()
        tensors |= {f"best/{name}": value for name, value in self.best.weights.items()}
        plain |= {"seconds": self.seconds, "best": self.best.value, "age": self.best.age}
        return tensors, plain | {"warnings": self.warnings, "flight": self.flight.state()}

    def save(self) -> None:
        """A checkpoint, and beside it the model as it stands, so that a running run can be used."""
        if self.writes:
            assert self.folder is not None
            checkpoint.save(self.folder, self.play.clock.rounds, *self._state())
            with self.play.averaged():
                self._card("running")

    def _snapshot(self) -> None:
        """Both averages as they are now; a full disk costs this one, and not the training."""
        if self.writes and self.recipe.snapshots:
            assert self.folder is not None
            try:
                snapshots.keep(self.folder, self.play)
            except Refusal as refusal:
                self._warn(f"{refusal.reason}; training goes on without this snapshot")

    def _try_to_save(self) -> None:
        """A full disk does not end the training while an older checkpoint is good."""
        try:
            self.save()
        except Refusal as refusal:
            self._warn(f"{refusal.reason}; training goes on with the last good checkpoint")

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        self.show.line(f"warning: {text}")

    def _finish(self) -> None:
        """Leave the model with the weights that the game wants kept, and the folder whole."""
        self._measure()
        self._snapshot()
        self.save()
        with self.play.averaged():
            weights = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        if self.game.keep == "best" and self.best.weights:
            weights = self.best.weights
        self.model.load_state_dict(weights)
        self.model.eval()
        self._card("finished")
        self.show.progress(1.0, f"round {self.play.clock.rounds}, {self.seconds:.0f} s")

    def _numbers(self) -> dict[str, Any]:
        clock = self.play.clock
        return {
            "rounds": clock.rounds,
            "examples": clock.examples,
            "training_seconds": round(self.seconds, 3),
            "peak_memory_mib": round(peak_memory_mib(), 1),
            "precision": "bf16" if self.bf16 else "fp32",
            "held_out_nats": self.best.value if isinstance(self.model, Density) else None,
            "warnings": self.warnings,
        }

    def _card(self, status: str) -> None:
        if self.writes:
            assert self.folder is not None
            card = {
                "status": status,
                "numbers": self._numbers(),
                "recipe": self.recipe.to_json(),
                **seen_from(self.folder, self.recipe.data, known=self.folder),
                "data": self.data.describe(),
                "machine": describe_machine(self.device),
            }
            shelf.save_pretrained(self.model, self.folder, card=card)
