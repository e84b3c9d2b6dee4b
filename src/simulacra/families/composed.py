"""Models that are made of others: a component's game, played as stages of the whole's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from simulacra.games import Batch, Clock, Game, Loss, Player, Rewrite, Stage, Turn
from simulacra.probability.noise import Noise

LEAST_SHARE = 0.3
"""A prior's least part of the training: in less, averages would still remember other codes."""


def played_inside(
    game: Game,
    name: str,
    see: Callable[[Batch, Noise], Batch],
    *,
    after: int,
    share: float = 1.0,
    remembered: Callable[[Batch], Batch] | None = None,
) -> list[Stage]:
    """The stages of a component's game, as those of the game of the model that is made of it.

    Its turns get ``see(batch, noise)`` (codes of data, for a prior over codes) and a clock whose first
    stage is the one after ``after`` others; its players and buffers are named after ``name``, the
    attribute that holds it. Those of its stages that a budget limits have ``share`` of it together. What
    ``remembered`` gives of batches in a sweep is kept: later sweeps go over it, in ``game``'s sizes.
    """
    memory: list[Batch] = []
    players: dict[int, Player] = {}
    turns: dict[int, Turn] = {}

    def own(clock: Clock) -> Clock:
        return replace(clock, stage=max(clock.stage - after, 0))

    def player(old: Player) -> Player:
        return players.setdefault(id(old), replace(old, name=f"{name} {old.name}"))

    def recalled(batches: Iterator[Batch], look: Callable[[Batch], Batch]) -> Iterator[Batch]:
        if not memory:
            memory.extend(_joined(list(map(look, batches)), game.batch_size))
        # The clock counts what is swept over, whether it is looked at or remembered.
        for _ in batches:
            pass
        return iter(memory)

    def turn(old: Turn) -> Turn:
        if isinstance(old, Rewrite):
            formula = old.formula

            def rewrite(
                batches: Iterator[Batch], noise: Noise, clock: Clock
            ) -> Mapping[str, float]:
                if remembered is not None and old.sweep:
                    return formula(recalled(batches, remembered), noise, own(clock))
                return formula((see(batch, noise) for batch in batches), noise, own(clock))

            return replace(old, formula=rewrite)
        lowered = old.loss

        def loss(batch: Batch, noise: Noise, clock: Clock) -> Loss:
            return lowered(see(batch, noise), noise, own(clock))

        buffers = tuple(f"{name}.{one}" for one in old.buffers)
        return replace(old, players=tuple(map(player, old.players)), loss=loss, buffers=buffers)

    def once(old: Turn) -> Turn:
        # One turn may stand in the list several times and has to stay one turn.
        return turns.setdefault(id(old), turn(old))

    total = sum(stage.share for stage in game.stages if stage.rounds is None) or 1.0
    return [
        replace(stage, turns=[once(one) for one in stage.turns], share=share * stage.share / total)
        for stage in game.stages
    ]


def _joined(batches: Sequence[Batch], size: int) -> list[Batch]:
    """The same rows in batches of ``size``."""
    x = torch.cat([batch.x for batch in batches])
    conditions = [batch.condition for batch in batches if batch.condition is not None]
    given = torch.cat(conditions).split(size) if conditions else itertools.repeat(None)
    return [Batch(part, labels) for part, labels in zip(x.split(size), given, strict=False)]
