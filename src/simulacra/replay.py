"""Work that is done again from a CUDA graph: one launch instead of a thousand.

A round of a small network on a GPU is mostly the time that Python and the driver take to ask for its
kernels. What is asked for is the same in every round but for the data and the random numbers, so it is
recorded once, and then played again on tensors that stay where they are (Ng et al. 2021, "Accelerating
PyTorch with CUDA Graphs"). Numbers are drawn by the same streams, on the CPU, in the same order, so that
a replayed round is the round that it stands for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from simulacra.probability.noise import BatchNoise, Noise
from simulacra.refusals import Refusal

Work = Callable[[Sequence[Tensor | None], Noise], dict[str, Tensor]]
"""Tensors and noise to numbers by name, each a scalar, and to gradients of the parameters that move."""

FIRST = 3
"""So many times work is done as it stands: libraries set themselves up, and what is drawn is noted."""

ALIGNED = 128
"""Numbers begin at multiples of so many, as kernels that read several at once like it."""

Draw = tuple[str, tuple[int, ...]]


class Watched:
    """Noise, and a note of what is drawn of it."""

    def __init__(self, noise: Noise) -> None:
        self.noise, self.rows = noise, noise.rows
        self.drawn: list[Draw] = []

    def normal(self, *shape: int) -> Tensor:
        self.drawn.append(("normal", shape))
        return self.noise.normal(*shape)

    def uniform(self, *shape: int) -> Tensor:
        self.drawn.append(("uniform", shape))
        return self.noise.uniform(*shape)


class HandedOut:
    """Numbers that have been drawn already, in the order in which they were asked for before."""

    def __init__(self, rows: int, drawn: Sequence[Draw], numbers: Sequence[Tensor]) -> None:
        self.rows = rows
        self._left = list(zip(drawn, numbers, strict=True))

    def normal(self, *shape: int) -> Tensor:
        return self._next("normal", shape)

    def uniform(self, *shape: int) -> Tensor:
        return self._next("uniform", shape)

    def _next(self, kind: str, shape: tuple[int, ...]) -> Tensor:
        asked = (kind, shape)
        if not self._left or self._left[0][0] != asked:
            raise RuntimeError(f"other numbers are drawn than before: {asked}")
        return self._left.pop(0)[1]


class Drawn:
    """Room for the numbers of one turn, on the CPU and on the device."""

    def __init__(self, drawn: Sequence[Draw], rows: int, device: torch.device) -> None:
        self.drawn, self.rows = drawn, rows
        sizes = [rows * math.prod(shape) for _, shape in drawn]
        starts = [0]
        for size in sizes:
            starts.append(starts[-1] + -(-size // ALIGNED) * ALIGNED)
        pinned = device.type == "cuda"
        self._here = torch.empty(starts[-1], pin_memory=pinned)
        self._there = torch.empty(starts[-1], device=device)

        def rooms(whole: Tensor) -> list[Tensor]:
            parts = zip(drawn, sizes, starts, strict=False)
            return [whole[at : at + size].view(rows, *shape) for (_, shape), size, at in parts]

        self._rooms, self._on_device = rooms(self._here), rooms(self._there)

    def draw(self, noise: BatchNoise) -> None:
        """New numbers in the same places. What was drawn before has to have been used."""
        here = replace(noise, device="cpu")
        for (kind, shape), room in zip(self.drawn, self._rooms, strict=True):
            room.copy_(here.normal(*shape) if kind == "normal" else here.uniform(*shape))
        self._there.copy_(self._here, non_blocking=True)

    def handed_out(self) -> HandedOut:
        return HandedOut(self.rows, self.drawn, self._on_device)


@dataclass(frozen=True)
class Room:
    """Where the graphs of one play stand: a pool of memory, which they can share as what one gives is
    used before the next is played, and the stream that they are recorded on."""

    pool: Any
    stream: Any

    @classmethod
    def on(cls, device: torch.device) -> Room:
        return cls(torch.cuda.graph_pool_handle(), torch.cuda.Stream(device))


class Replay:
    """``work`` that moves ``parameters``, by a graph from its fourth time on.

    What is given in another form than before, such as a batch of another size, is worked on as it stands.
    Sums may be added up in another order than without a graph, as a library chooses.
    """

    def __init__(
        self, name: str, work: Work, parameters: Sequence[nn.Parameter], room: Room
    ) -> None:
        self.name, self.work, self.parameters, self.room = name, work, parameters, room
        self._done = 0
        self._drawn: list[Draw] = []
        self._given: list[Tensor | None] = []
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, given: Sequence[Tensor | None], noise: BatchNoise) -> Mapping[str, Tensor]:
        """The numbers; parameters' ``grad`` are their gradients."""
        if self._done < FIRST:
            self._done += 1
            watched = Watched(noise)
            told = self._as_it_stands(given, watched)
            self._drawn = watched.drawn
            return told
        if self._graph is None:
            self._given = [None if one is None else one.clone() for one in given]
            self._noise = Drawn(self._drawn, noise.rows, _device_of(given))
            self._noise.draw(noise)
            self._record(_device_of(given))
        elif self._noise.rows != noise.rows or not _alike(given, self._given):
            return self._as_it_stands(given, noise)
        else:
            self._noise.draw(noise)
            for kept, new in zip(self._given, given, strict=True):
                if kept is not None and new is not None:
                    kept.copy_(new)
        assert self._graph is not None
        self._graph.replay()
        for parameter, slope in zip(self.parameters, self._slopes, strict=True):
            parameter.grad = slope
        return self._told

    def _as_it_stands(self, given: Sequence[Tensor | None], noise: Noise) -> dict[str, Tensor]:
        for parameter in self.parameters:
            parameter.grad = None
        return self.work(given, noise)

    def _record(self, device: torch.device) -> None:
        graph, room = torch.cuda.CUDAGraph(), self.room
        try:
            with torch.cuda.device(device), torch.cuda.graph(graph, room.pool, room.stream):
                self._told = self._as_it_stands(self._given, self._noise.handed_out())
        except RuntimeError as error:
            # CUDA cannot be relied on after a recording that was broken off.
            reason = f"the turn of {self.name} could not be recorded as a CUDA graph"
            said = str(error.__context__ or error).strip().splitlines()[0][:160]
            way_out = "go on with --device cpu, or begin with --compile, which goes without graphs"
            raise Refusal("NUM-027", f"{reason} ({said})", way_out=way_out) from error
        self._slopes = [parameter.grad for parameter in self.parameters]
        self._graph = graph


def _alike(given: Sequence[Tensor | None], kept: Sequence[Tensor | None]) -> bool:
    """Whether the same things are given, of the same shapes and kinds."""

    def form(one: Tensor | None) -> object:
        return None if one is None else (one.shape, one.dtype, one.device)

    return list(map(form, given)) == list(map(form, kept))


def _device_of(given: Sequence[Tensor | None]) -> torch.device:
    return next(one.device for one in given if one is not None)
