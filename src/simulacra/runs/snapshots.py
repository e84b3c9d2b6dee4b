"""Snapshots of two weight averages, taken while a run goes on, and an average of any length from them.

RUN/averages/round-N.safetensors holds both averages after round N (``first/…``, ``second/…``), the whole
numbers and truth values beside them (``other/…``), and in its notes the examples seen, the averages'
half-lives and age, and since when each entry counts (``probability/weight_averages.py``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from simulacra.files import sha256, write_bytes
from simulacra.games import Game
from simulacra.play import Play
from simulacra.probability.weight_averages import Profile, fit
from simulacra.refusals import Refusal, shown
from simulacra.shelf import CHECKSUM

FOLDER = "averages"
NOTES = "snapshot"
LEAST = 2
FIRST, SECOND, OTHER = "first/", "second/", "other/"


def require_count(count: int) -> None:
    """Refuse a number of snapshots that nothing can be made of."""
    if count != 0 and count < LEAST:
        reason = f"the number of snapshots is {count}"
        raise Refusal("CFG-240", reason, way_out=f"give 16, or at least {LEAST}, or 0 for none")


def require_average(count: int, model: str, game: Game) -> None:
    """Refuse snapshots of a model that keeps no weight average."""
    require_count(count)
    if count and not game.average:
        reason = f"snapshots of weight averages were asked for, and {model} keeps no average"
        raise Refusal("CFG-241", reason, way_out="leave --snapshots out, or choose another model")


def keep(run: Path, play: Play) -> None:
    """Write both averages of ``play`` as they are, unless this round's stand there already."""
    path = run / FOLDER / f"round-{play.clock.rounds:09d}.safetensors"
    if play.second is None or path.is_file():
        return
    state = play.model.state_dict()
    tensors = {FIRST + name: value for name, value in play.shadow.items()}
    tensors |= {SECOND + name: value for name, value in play.second.weights.items()}
    tensors |= {OTHER + name: state[name] for name in state if name not in play.shadow}
    plain = play.second.plain()
    notes = {
        "rounds": play.clock.rounds,
        "examples": play.clock.examples,
        "half_lives": [play.game.average, plain["half_life"]],
        "age": plain["age"],
        "since": plain["since"],
    }
    write_bytes(path, _packed(tensors, notes))


def _packed(tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> bytes:
    """A safetensors file; its notes are one entry, since the order of several is not always the same."""
    state = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    plain: bytes = safetensors.torch.save(state)
    checksum = sha256(plain[8 + int.from_bytes(plain[:8], "little") :])
    told = json.dumps({CHECKSUM: checksum, **notes})
    content: bytes = safetensors.torch.save(state, metadata={NOTES: told})
    return content


def forget_after(run: Path, rounds: int) -> None:
    """Remove what was kept after ``rounds``: a run that goes on from there will come to it again."""
    for path in _all(run):
        if _round_of(path) > rounds:
            path.unlink()


def _all(run: Path) -> list[Path]:
    return sorted((run / FOLDER).glob("round-*.safetensors"))


def _round_of(path: Path) -> int:
    return int(path.stem.removeprefix("round-"))


@dataclass(frozen=True)
class Snapshot:
    """One file, and what its notes say."""

    path: Path
    rounds: int
    examples: int
    half_lives: tuple[float, float]
    age: float
    since: Mapping[str, float]

    @property
    def profiles(self) -> list[Profile]:
        return [Profile(half_life, self.age) for half_life in self.half_lives]


def read(run: Path, warn: Callable[[str], None]) -> list[Snapshot]:
    """A run's whole snapshots, oldest first; a damaged one is named through ``warn``."""
    found = []
    for path in _all(run):
        snapshot = _opened(path)
        if snapshot is None:
            warn(f"the snapshot {shown(path)} is damaged, and is passed over")
        else:
            found.append(snapshot)
    if not found:
        raise Refusal(
            "CFG-242",
            f"{shown(run)} has no snapshots of its weight averages",
            way_out="train with --snapshots 16 to be able to choose their length afterwards",
        )
    return found


def _opened(path: Path) -> Snapshot | None:
    with path.open("rb") as file, contextlib.suppress(ValueError, KeyError, TypeError):
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        notes: dict[str, Any] = json.loads(header["__metadata__"][NOTES])
        if hashlib.file_digest(file, "sha256").hexdigest() == notes.pop(CHECKSUM):
            first, second = map(float, notes.pop("half_lives"))
            return Snapshot(path, half_lives=(first, second), **notes)
    return None


@dataclass(frozen=True)
class Made:
    """The weights of an average, how far its profile is from the one wanted, as a share of it, and
    whether any weight has moved between the snapshots."""

    weights: dict[str, Tensor]
    residual: float
    moved: bool


def average(snapshots: Sequence[Snapshot], length: float) -> Made:
    """The average of half-life ``length`` at the last snapshot, one tensor at a time.

    What a formula has written, or a stage begun with, is made of the snapshots after that alone.
    """
    last = snapshots[-1]
    fits: dict[int, tuple[np.ndarray, float]] = {}
    weights: dict[str, Tensor] = {}
    residual, moved = 0.0, False
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(one.path, "pt")) for one in snapshots]
        for key in files[-1].keys():  # noqa: SIM118 (no mapping)
            name = key.partition("/")[2]
            if key.startswith(OTHER):
                weights[name] = files[-1].get_tensor(key)
            if not key.startswith(FIRST):
                continue
            used = [i for i, one in enumerate(snapshots) if one.age > last.since.get(name, -1.0)]
            if len(used) not in fits:
                profiles = [profile for i in used for profile in snapshots[i].profiles]
                fits[len(used)] = fit(profiles, Profile(length, last.age))
            x, left = fits[len(used)]
            kept = _tensors([files[i] for i in used], name)
            weights[name], stood = _mixed(kept, x)
            residual, moved = (residual, moved) if stood else (max(residual, left), True)
    return Made(weights, residual, moved)


def _tensors(files: Sequence[Any], name: str) -> Iterator[Tensor]:
    for file in files:
        yield file.get_tensor(FIRST + name)
        yield file.get_tensor(SECOND + name)


def _mixed(tensors: Iterator[Tensor], x: np.ndarray) -> tuple[Tensor, bool]:
    """sum_i x_i theta_i, and whether all theta_i are the same."""
    first = next(tensors)
    total, stood = float(x[0]) * first.double(), True
    for share, value in zip(x[1:], tensors, strict=True):
        stood = stood and torch.equal(first, value)
        total += float(share) * value.double()
    return (first if stood else total.to(first.dtype)), stood
