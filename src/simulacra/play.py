"""The one loop that plays all games.

``Play.rounds`` yields the clock and the tally after every round; whoever iterates is in charge, and
there are no callbacks. All randomness is a pure function of (seed, round, turn), and the data are a
pure function of their index, so a resume needs weights, optimisers, averages and the clock, nothing
else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from simulacra.games import Batch, Clock, Descent, Game, Loss, Player, Rewrite, Source, Stage
from simulacra.probability.noise import BatchNoise, Noise, global_noise, mixed
from simulacra.probability.weight_averages import SecondAverage, second_half_life
from simulacra.processes import mean_over_processes, world_and_rank
from simulacra.refusals import Refusal
from simulacra.replay import Replay, Room


class _NoClock:
    """What a turn that replays is given for a clock: its time would stand still in the graph."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"a turn that replays looks at the clock's {name}")


NO_CLOCK: Any = _NoClock()


@dataclass(frozen=True)
class Report:
    """What one round came to: the clock after it, numbers by name, and updates that were skipped."""

    clock: Clock
    numbers: Mapping[str, float]
    skipped: int = 0
    wants_best: bool = False


class Play:
    """A game being played: its optimisers, its weight average, and its clock."""

    MOST_SKIPS = 3
    """So many non-finite updates in a row end the play."""

    def __init__(
        self,
        model: nn.Module,
        game: Game,
        *,
        seed: int = 0,
        bf16: bool = False,
        second: bool = False,
        replays: bool = True,
    ) -> None:
        self.model = model
        self.game = game
        self.seed = seed
        self.bf16 = bf16
        self.clock = Clock()
        held = [*model.parameters(), *model.buffers()]
        self.device = held[0].device if held else torch.device("cpu")
        self.players = game.players()
        self.optimisers = {n: p.optimiser.build(p.parameters) for n, p in self.players.items()}
        self._floating = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
        self.shadow = self._copy() if game.average else {}
        self.second: SecondAverage | None = None
        """Another average, of another length, where one is to be chosen after the training."""
        if second and game.average:
            self.second = SecondAverage(self._copy(), second_half_life(game.average))
        self.skips = 0
        self.began: dict[str, int] = {}
        """The examples before each player's first stage, which its warm-up is counted from."""
        self._last: Batch | None = None
        self._replays: dict[int, Replay] = {}
        graphs = replays and self.device.type == "cuda"
        self._room = Room.on(self.device) if graphs else None

    def rounds(self, source: Source, progress: Callable[[Clock], float]) -> Iterator[Report]:
        """Play on from the clock; ``progress`` says how much of the whole budget is used, in [0, 1].

        Before a stage ``from_best`` an empty report asks whoever iterates for these weights.
        """
        while self.clock.stage < len(self.game.stages):
            used = progress(self.clock)
            stage = self.game.stages[self.clock.stage]
            start, end = self._span(self.clock.stage)
            over = used >= end if stage.rounds is None else self.clock.stage_rounds >= stage.rounds
            if over:
                self._next_stage()
                continue
            if stage.rounds is None:
                within = (used - start) / max(end - start, 1e-12)
                self.clock = replace(self.clock, progress=min(max(within, 0.0), 1.0))
            if stage.from_best and self.clock.stage_rounds == 0:
                yield Report(self.clock, {}, wants_best=True)
            yield self._round(stage, source)

    def _next_stage(self) -> None:
        self._replays.clear()
        self.clock = replace(self.clock, stage=self.clock.stage + 1, stage_rounds=0, progress=0.0)

    def skip_to_best(self) -> bool:
        """Go on to the next stage that begins at the best weights; False where there is none."""
        later = range(self.clock.stage + 1, len(self.game.stages))
        stage = next((index for index in later if self.game.stages[index].from_best), None)
        if stage is not None:
            self.clock = replace(self.clock, stage=stage, stage_rounds=0, progress=0.0)
        return stage is not None

    def reopen(self) -> bool:
        """After the end, stand in the last stage that a budget limits: the budget has grown.

        True where a later stage will begin at the best weights: those are to be found anew.
        """
        limited = [i for i, stage in enumerate(self.game.stages) if stage.rounds is None]
        if self.clock.stage < len(self.game.stages) or not limited:
            return False
        self.clock = replace(self.clock, stage=limited[-1])
        return any(stage.from_best for stage in self.game.stages[limited[-1] + 1 :])

    def _span(self, stage: int) -> tuple[float, float]:
        """The part of the budget that a stage plays in; stages of fixed length take none."""
        shares = [0.0 if s.rounds is not None else s.share for s in self.game.stages]
        total = sum(shares) or 1.0
        return sum(shares[:stage]) / total, sum(shares[: stage + 1]) / total

    def _round(self, stage: Stage, source: Source) -> Report:
        numbers: dict[str, float] = {}
        skipped, finished, batches = 0, False, self.clock.batches
        for turn in stage.turns:
            for player in turn.players if isinstance(turn, Descent) else ():
                self.began.setdefault(player.name, self.clock.examples)
        self.model.train()
        for index, turn in enumerate(stage.turns):
            if self.clock.stage_rounds % turn.every:
                continue
            swept = isinstance(turn, Rewrite) and turn.sweep
            noise = self._noise(source.batch_size, index, shared=swept)
            # Dropout can only use the global generator: it gets this turn's seed, and is put back.
            with global_noise(mixed(self.seed, self.clock.rounds, index, 1), self.device):
                if isinstance(turn, Descent):
                    skipped += not self._descend(turn, source, noise, numbers)
                else:
                    told = self._rewrite(turn, source, noise)
                    finished = finished or bool(told.get("finished"))
                    numbers |= {k: float(v) for k, v in told.items() if k != "finished"}
        self._average(max(1, self.clock.batches - batches) * source.batch_size)
        self.clock = replace(
            self.clock, rounds=self.clock.rounds + 1, stage_rounds=self.clock.stage_rounds + 1
        )
        if finished:
            self._next_stage()
        return Report(self.clock, numbers, skipped)

    def _noise(self, rows: int, turn: int, *, shared: bool) -> BatchNoise:
        """``shared``: every process sees all the data, and draws the same numbers for it."""
        world, rank = (1, 0) if shared else world_and_rank()
        stream = torch.Generator().manual_seed(mixed(self.seed, self.clock.rounds, turn))
        return BatchNoise(stream, rows // world, self.device, rank, world)

    def _fresh(self, source: Source, count: int) -> Iterator[Batch]:
        if count == 0 and self._last is not None:
            yield self._last
        for _ in range(count):
            self._last = source.batch(self.clock.batches)
            self.clock = replace(
                self.clock,
                batches=self.clock.batches + 1,
                examples=self.clock.examples + source.batch_size,
            )
            yield self._last

    def _all(self, source: Source) -> Iterator[Batch]:
        for batch in source.sweep():
            self.clock = replace(self.clock, examples=self.clock.examples + len(batch))
            yield batch

    def _rewrite(self, turn: Rewrite, source: Source, noise: Noise) -> Mapping[str, float]:
        """What a formula over all the data has written is exact, and what has got another meaning cannot
        be averaged with what it was: averages take both as they are."""
        before = self._copy() if (turn.sweep or turn.renames) and self.shadow else {}
        batches = self._all(source) if turn.sweep else self._fresh(source, turn.batches)
        told = turn.formula(batches, noise, self.clock)
        for name, value in before.items():
            if not torch.equal(value, self._floating[name]):
                self.shadow[name].copy_(self._floating[name])
                if self.second is not None:
                    self.second.write(name, self._floating[name])
        return told

    def _descend(
        self, turn: Descent, source: Source, noise: BatchNoise, numbers: dict[str, float]
    ) -> bool:
        """One descent; returns False when a non-finite loss or gradient was caught before the step."""
        moved = list({id(p): p for player in turn.players for p in player.parameters}.values())
        told = self._slopes(turn, moved, source, noise)
        mean_over_processes([p.grad for p in moved if p.grad is not None])
        mean_over_processes(list(told.values()))
        norms = {player.name: self._norm(player) for player in turn.players}
        # One look at all numbers: each would wait for an accelerator to have done its work.
        told_and_norms = [one.to(self.device) for one in (*told.values(), *norms.values())]
        seen = torch.stack(told_and_norms).tolist()
        alone = len(self.players) == 1
        prefix = "" if alone else "+".join(norms) + "/"
        values = dict(zip(told, seen, strict=False))
        numbers |= {prefix + name: value for name, value in values.items()}
        lengths = dict(zip(norms, seen[len(told) :], strict=True))
        if not all(map(math.isfinite, (values["loss"], *lengths.values()))):
            self._skip(turn)
            return False
        for name, length in lengths.items():
            numbers[("" if alone else f"{name}/") + "gradient norm"] = length
        self.skips = 0
        for player in turn.players:
            self._step(player)
        return True

    def _slopes(
        self, turn: Descent, moved: Sequence[nn.Parameter], source: Source, noise: BatchNoise
    ) -> dict[str, Tensor]:
        """Gradients of the turn's loss, in ``grad`` of all that moves, and what there is to tell."""
        if turn.replays and turn.batches <= 1 and self._room is not None:
            (batch,) = self._fresh(source, turn.batches)
            replay = self._replays.get(id(turn))
            if replay is None:
                replay = self._replays[id(turn)] = self._replay(turn, moved, self._room)
            return dict(replay((batch.x, batch.condition), noise))
        for parameter in moved:
            parameter.grad = None
        told: dict[str, Tensor] = {}
        parts = max(turn.batches, 1)
        for batch in self._fresh(source, turn.batches):
            here = self.device.type, self.bf16, parts
            found = _slope(turn.loss, moved, batch, noise, self.clock, *here)
            for name, value in found.items():
                told[name] = told.get(name, 0) + value / parts
        return told

    def _replay(self, turn: Descent, moved: Sequence[nn.Parameter], room: Room) -> Replay:
        loss, kind, bf16 = turn.loss, self.device.type, self.bf16

        def work(given: Sequence[Tensor | None], noise: Noise) -> dict[str, Tensor]:
            x, condition = given
            assert x is not None
            return _slope(loss, moved, Batch(x, condition), noise, NO_CLOCK, kind, bf16)

        name = "+".join(player.name for player in turn.players)
        return Replay(name, work, moved, room)

    @staticmethod
    def _norm(player: Player) -> Tensor:
        """The gradient's norm, which is also cut to the player's largest."""
        held = [p for p in player.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in held if p.grad is not None])
        # Only a norm that is too large costs a pass over all gradients.
        if player.clip is not None and not norm <= player.clip - 1e-6:
            nn.utils.clip_grads_with_norm_(held, player.clip, norm)
        return norm

    def _step(self, player: Player) -> None:
        moved = self.clock.examples - self.began.get(player.name, 0)
        factor = player.optimiser.factor(moved, self.clock.progress)
        for group in self.optimisers[player.name].param_groups:
            group["lr"] = player.optimiser.learning_rate * factor
        self.optimisers[player.name].step()

    def _skip(self, turn: Descent) -> None:
        self.skips += 1
        if self.skips >= self.MOST_SKIPS:
            names = " and ".join(player.name for player in turn.players)
            raise Refusal(
                "NUM-002",
                f"the loss or gradient of {names} was not finite {self.skips} times in a row, "
                f"last in round {self.clock.rounds}; none of those updates was made",
                way_out="lower --learning-rate; the last good checkpoint is kept",
            )

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self._floating.items()}

    def _average(self, fresh: int) -> None:
        """Move the averages by a round of so many examples; one without batches counts as one of them."""
        if not self.shadow or not self.clock.examples:
            return
        half_life = self.game.average * self.clock.examples
        weight = 1 - 0.5 ** (fresh / half_life)
        shadows = list(self.shadow.values())
        torch._foreach_lerp_(shadows, [self._floating[name] for name in self.shadow], weight)
        if self.second is not None:
            self.second.follow(self._floating, fresh / self.clock.examples)

    def stand_at(self, weights: Mapping[str, Tensor]) -> None:
        """Go on from these weights, which are the average from now on."""
        self.model.load_state_dict(weights)
        for name, value in self.shadow.items():
            value.copy_(self._floating[name])
            if self.second is not None:
                self.second.write(name, self._floating[name])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model stands with its averaged weights, ready to be used rather than trained."""
        training, state = self.model.training, self._copy() if self.shadow else {}
        self.model.load_state_dict(self.shadow, strict=False)
        self.model.eval()
        try:
            yield
        finally:
            self.model.load_state_dict(state, strict=False)
            self.model.train(training)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything a resume needs: tensors by name, and plain numbers."""
        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"average/{name}": value for name, value in self.shadow.items()}
        for name, optimiser in self.optimisers.items():
            for index, entry in optimiser.state_dict()["state"].items():
                for key, value in entry.items():
                    tensors[f"optimiser/{name}/{index}/{key}"] = torch.as_tensor(value)
        plain = {"clock": asdict(self.clock), "seed": self.seed, "skips": self.skips}
        if self.second is not None:
            tensors |= {f"second/{name}": value for name, value in self.second.weights.items()}
            plain["second"] = self.second.plain()
        return tensors, plain | {"began": dict(self.began)}

    def load_state(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Stand exactly where ``state`` was taken."""

        def under(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(under("model/"))
        average = under("average/")
        self.shadow = {name: _laid_out(average[name], self._floating[name]) for name in average}
        if "second" in plain:
            second = under("second/")
            held = {name: _laid_out(second[name], self._floating[name]) for name in second}
            self.second = SecondAverage(held, **plain["second"])
        for name, optimiser in self.optimisers.items():
            entries: dict[int, dict[str, Tensor]] = {}
            for path, value in under(f"optimiser/{name}/").items():
                index, key = path.split("/")
                parameter = self.players[name].parameters[int(index)]
                entries.setdefault(int(index), {})[key] = _laid_out(value, parameter)
            groups = optimiser.state_dict()["param_groups"]
            optimiser.load_state_dict({"state": entries, "param_groups": groups})
        self.clock = Clock(**plain["clock"])
        self.seed = int(plain["seed"])
        self.skips = int(plain["skips"])
        # Checkpoints of runs that were begun before this was noted have counted from the start.
        self.began = dict(plain.get("began", dict.fromkeys(self.players, 0)))


def _slope(
    loss_of: Callable[[Batch, Noise, Clock], Loss],
    moved: Sequence[nn.Parameter],
    batch: Batch,
    noise: Noise,
    clock: Clock,
    device: str,
    bf16: bool,
    parts: int = 1,
) -> dict[str, Tensor]:
    """One of ``parts`` batches' share of the gradients of all that moves, and its own numbers."""
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        loss = loss_of(batch, noise, clock)
    torch.autograd.backward(loss.value / parts, inputs=list(moved))
    told = {"loss": loss.value} | dict(loss.numbers)
    return {name: value.detach().float() for name, value in told.items()}


def _laid_out(value: Tensor, like: Tensor) -> Tensor:
    """A copy in the memory layout of ``like``: another layout adds up in another order."""
    return torch.empty_like(like).copy_(value) if value.shape == like.shape else value.clone()
