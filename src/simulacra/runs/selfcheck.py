"""A machine's own proof that a stopped run goes on as if it had never been stopped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch

from simulacra import shelf
from simulacra.data.dataset import Dataset, Part
from simulacra.probability.noise import global_noise
from simulacra.runs.conductor import Run
from simulacra.runs.recipe import Recipe
from simulacra.spaces import Labels, Space


def toy_data(space: Space, rows: int = 64) -> Dataset:
    """Random elements of a space as a data set, for proofs about training rather than learning."""
    stream = torch.Generator().manual_seed(1)
    x, y = space.random(rows, stream), torch.randint(3, (rows,), generator=stream)
    part = Part(x, torch.arange(rows), space, y)
    return Dataset("random", space, part, part, part, condition=Labels(3))


def resume_is_exact(
    folder: Path, entries: Sequence[shelf.Entry], rounds: int = 5
) -> Iterator[tuple[str, bool]]:
    """For each of these models: rounds + rounds with a stop between, against twice as many."""
    for entry in entries:
        data = toy_data(entry.cls.toy().space)

        def start(where: Path, entry: shelf.Entry = entry, data: Dataset = data) -> Run:
            recipe = Recipe(entry.name, budget=f"{2 * rounds}steps", batch_size=16)
            with global_noise(0):
                return Run(entry.cls.toy(), data, recipe, where, device="cpu")

        cut = start(folder / f"{entry.name}-cut")
        for _ in islice(cut.play.rounds(cut.stream, cut.used), rounds):
            pass
        cut.save()
        resumed, whole = start(folder / f"{entry.name}-cut"), start(folder / f"{entry.name}-whole")
        resumed.restore()
        for run in (resumed, whole):
            run.go()
        state, other = resumed.play.state()[0], whole.play.state()[0]
        same = state.keys() == other.keys()
        yield entry.name, same and all(torch.equal(state[name], other[name]) for name in state)
