"""Games: training as players who take turns. The one loop that plays them all is ``play.py``.

Maximum likelihood is the one-player game; five critic steps before a generator's are written
``[critic] * 5 + [generator]``: the list is the algorithm. A ``Descent`` turn lowers a loss and moves
only its players; a ``Rewrite`` turn changes state by a formula (a count, an EM step, a codebook).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor, nn

from simulacra.optimisation import Optimiser
from simulacra.probability.noise import Noise


@dataclass(frozen=True)
class Batch:
    """Data on their way into a loss: ``x`` (batch, *shape), and a row of ``condition`` for each."""

    x: Tensor
    condition: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)


class Source(Protocol):
    """Where batches come from: a pure function of the batch's index."""

    batch_size: int

    def batch(self, index: int) -> Batch:
        """Batch number ``index`` of the endless, shuffled stream (this process's part of it)."""
        ...

    def sweep(self) -> Iterator[Batch]:
        """Every example exactly once, in order."""
        ...


@dataclass(frozen=True)
class Loss:
    """A scalar to lower, and numbers worth a line in the ledger."""

    value: Tensor
    numbers: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Clock:
    """Where a play stands. ``progress`` of the current stage is in [0, 1]."""

    stage: int = 0
    rounds: int = 0
    stage_rounds: int = 0
    batches: int = 0
    examples: int = 0
    progress: float = 0.0


@dataclass(frozen=True)
class Player:
    """Whoever moves in a turn: a name, parameters, an optimiser, and a largest gradient norm."""

    name: str
    parameters: Sequence[nn.Parameter]
    optimiser: Optimiser = field(default_factory=Optimiser)
    clip: float | None = None


@dataclass(frozen=True)
class Descent:
    """A turn in which ``players``, and nobody else, lower ``loss``.

    ``batches`` fresh batches are averaged over (gradient accumulation); 0 uses the round's last one
    again. The turn comes in every ``every``-th round. ``buffers`` names the shared buffers that the
    turn may change, for the law that a turn leaves everything else bit-identical. A turn ``replays``
    whose loss is the same work each time, on a GPU from a graph (``replay.py``): it does not look at the
    clock, nor at any number, what it changes stays where it is, and it has one batch.
    """

    players: tuple[Player, ...]
    loss: Callable[[Batch, Noise, Clock], Loss]
    batches: int = 1
    every: int = 1
    buffers: tuple[str, ...] = ()
    replays: bool = False


@dataclass(frozen=True)
class Rewrite:
    """A turn that changes state by a formula; ``sweep`` gives it every example once.

    The formula returns numbers for the ledger; a true ``finished`` among them ends the stage. What it
    writes after a sweep, or where ``renames``, is no step on the way of an average: averages begin there.
    """

    name: str
    formula: Callable[[Iterator[Batch], Noise, Clock], Mapping[str, float]]
    sweep: bool = False
    renames: bool = False
    batches: int = 1
    every: int = 1


Turn = Descent | Rewrite


@dataclass(frozen=True)
class Stage:
    """A list of turns and its length: a ``share`` of the budget, or at most ``rounds`` rounds.

    A stage ``from_best`` builds on what those before it have learnt: it begins at their best weights by
    the run's held-out measure.
    """

    turns: Sequence[Turn]
    share: float = 1.0
    rounds: int | None = None
    from_best: bool = False


@dataclass(frozen=True)
class Game:
    """Stages to play one after the other, and how the model wants to be played.

    ``average``: the half-life of the weight average as a share of the examples seen (Karras et al.
    2022, their ramp-up), 0 for none. ``bf16``: whether the networks gain by bfloat16 where the
    machine has units for it. ``keep``: the weights that a run ends with, the best by held-out
    log-likelihood (by the held-out anomaly score of a model that has none) or the last ones.
    ``eager``: parts whose gradients are differentiated again, which torch.compile has no way to.
    ``together``: so many data are judged at once; a process's part of a batch is a multiple of it.
    """

    stages: Sequence[Stage]
    batch_size: int = 128
    average: float = 0.0
    bf16: bool = False
    keep: Literal["best", "last"] = "best"
    eager: Sequence[nn.Module] = ()
    together: int = 1

    def players(self) -> dict[str, Player]:
        """All players by name; one name is one player."""
        found: dict[str, Player] = {}
        for stage in self.stages:
            for turn in stage.turns:
                for player in turn.players if isinstance(turn, Descent) else ():
                    if found.setdefault(player.name, player) is not player:
                        raise ValueError(f"two different players are called {player.name!r}")
        return found


class Learner(Protocol):
    """What the loop can play: a module that knows its game."""

    def game(self) -> Game: ...
