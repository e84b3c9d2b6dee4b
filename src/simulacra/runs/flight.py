"""The flight recorder: what goes wrong in training, said while it can still be mended.

Each detector says what it saw, since which round, and the one setting to change. A detector speaks once;
it may speak again after what it saw has gone away. Limits are set so that a healthy run is not disturbed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from simulacra.evaluation.diversity import mean_distances
from simulacra.evaluation.memorisation import Memorisation, standardiser
from simulacra.evaluation.networks import flat
from simulacra.spaces import Images, Space

SETTLED = 0.2
"""Share of the budget before which samples and critics are not judged."""

LEARNT = 0.5
"""Share of the budget before which codes are not judged: a prior's weight rises, units wake up."""

EXPLODING, LARGEST = 100.0, 10.0
"""Times the median gradient norm so far, and times the largest."""

ALIKE = 0.3
"""Share of the real data's pairwise distance under which samples count as all alike."""

SATURATED = 0.995
IDLE, DEAD = 0.1, 0.5
COPIED = 0.1
BEFORE = 5


@dataclass(frozen=True)
class Finding:
    """What was seen, since which round, and what to change."""

    detector: str
    seen: str
    since: int
    change: str

    def text(self) -> str:
        """One line."""
        return f"{self.detector}: {self.seen}, since round {self.since}; {self.change}"


@dataclass
class FlightRecorder:
    """Detectors that are fed while a run goes on; each feeding returns what is new."""

    space: Space
    trained: Tensor
    _norms: dict[str, list[float]] = field(default_factory=dict)
    _active: set[str] = field(default_factory=set)
    _saturated: int | None = None

    def state(self) -> dict[str, Any]:
        """What has been seen so far, as plain data."""
        return {
            "norms": self._norms,
            "active": sorted(self._active),
            "saturated": self._saturated,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` told."""
        self._norms = {name: list(values) for name, values in state.get("norms", {}).items()}
        self._active = set(state.get("active", ()))
        self._saturated = state.get("saturated")

    def numbers(self, told: Mapping[str, float], round_: int, share: float) -> list[Finding]:
        """A ledger line: the means of losses, gradient norms and accuracies since the last one."""
        found = [self._skipped(told, round_)]
        found += [
            self._exploding(name, value, round_)
            for name, value in told.items()
            if name.endswith("gradient norm")
        ]
        found += [
            self._saturation(value, round_, share)
            for name, value in told.items()
            if name.endswith("critic/accuracy")
        ]
        return [one for one in found if one is not None]

    def diagnoses(self, told: Mapping[str, float], round_: int, share: float) -> list[Finding]:
        """What the model says of itself on held-out data."""
        if share < LEARNT:
            return []
        found = [self._idle_units(told, round_), self._dead_codes(told, round_)]
        return [one for one in found if one is not None]

    def samples(self, x: Tensor, real: Tensor, round_: int, share: float) -> list[Finding]:
        """A few samples beside as many real data."""
        if share < SETTLED or min(len(x), len(real)) < 2:
            return []
        found = [self._alike(x, real, round_), self._copies(x, real, round_)]
        return [one for one in found if one is not None]

    def _say(self, name: str, wrong: bool, seen: str, since: int, change: str) -> Finding | None:
        """A finding where it is wrong and was not before."""
        if not wrong:
            self._active.discard(name)
            return None
        if name in self._active:
            return None
        self._active.add(name)
        return Finding(name, seen, since, change)

    def _skipped(self, told: Mapping[str, float], round_: int) -> Finding | None:
        count = int(told.get("skipped", 0))
        return self._say(
            "not finite",
            count > 0,
            f"{count} updates had a loss or gradient that is not finite, and were left out",
            round_,
            "lower learning_rate",
        )

    def _exploding(self, name: str, value: float, round_: int) -> Finding | None:
        before = self._norms.setdefault(name, [])
        usual = statistics.median(before) if len(before) >= BEFORE else math.inf
        # Where nearly all were nought, the median says nothing, and the largest says enough.
        wrong = value > EXPLODING * usual and value > LARGEST * max(before)
        if not wrong:
            before.append(value)
        return self._say(
            "exploding gradients",
            wrong,
            f"{name} {value:.3g} where {usual:.3g} was usual",
            round_,
            "lower learning_rate",
        )

    def _saturation(self, accuracy: float, round_: int, share: float) -> Finding | None:
        """Two ledger lines in a row, since a critic may be ahead for a moment."""
        if accuracy < SATURATED or share < SETTLED / 2:
            self._saturated = None
            return self._say("saturated critic", False, "", round_, "")
        since, self._saturated = self._saturated, self._saturated or round_
        return self._say(
            "saturated critic",
            since is not None,
            f"the critic tells {accuracy:.1%} of real from made, and teaches the generator nothing",
            since or round_,
            "raise penalty",
        )

    def _idle_units(self, told: Mapping[str, float], round_: int) -> Finding | None:
        active = told.get("active units (of the latent dimensions)")
        idle = told.get("idle units (of the latent dimensions)")
        if active is None or idle is None:
            return None
        return self._say(
            "KL collapse",
            active <= IDLE * (active + idle),
            f"{idle:.0f} of {active + idle:.0f} latent units carry nothing (variance of the mean < 0.01)",
            round_,
            "lower beta, or raise warm_up",
        )

    def _dead_codes(self, told: Mapping[str, float], round_: int) -> Finding | None:
        used = told.get("codes used (share)")
        if used is None:
            return None
        return self._say(
            "dead codes",
            used < DEAD,
            f"only {used:.0%} of the codebook is used",
            round_,
            "lower codes, or revive dead ones",
        )

    def _alike(self, x: Tensor, real: Tensor, round_: int) -> Finding | None:
        own, usual = (
            float(mean_distances(flat(one.cpu(), self.space)).mean()) for one in (x, real)
        )
        return self._say(
            "collapse of diversity",
            own < ALIKE * usual,
            f"samples are {own / usual:.0%} as far from one another as real data",
            round_,
            "lower learning_rate, or raise penalty",
        )

    def _copies(self, x: Tensor, real: Tensor, round_: int) -> Finding | None:
        if not isinstance(self.space, Images):
            return None
        scaled = standardiser(self.trained, self.space)
        shares = [
            float(Memorisation.copied(scaled(one), scaled(self.trained)).double().mean())
            for one in (x, real)
        ]
        return self._say(
            "memorisation",
            shares[0] > COPIED + 2 * shares[1],
            f"{shares[0]:.0%} of samples are copies of training data, of held-out data {shares[1]:.0%}",
            round_,
            "raise dropout, or stop earlier with --patience",
        )
