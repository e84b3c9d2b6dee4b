"""Random numbers with one row a datum, always from an explicit source.

While training, a batch draws its rows from one stream; with several processes every process draws
the rows of the whole batch and keeps its own, so that the noise does not depend on how the batch is
split. While sampling, each row has a stream of its own, so that sample 17 is the same alone, in a
grid of 20 and in a batch of 500. Numbers are drawn on the CPU and then moved, so that every device
starts from the same noise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Noise(Protocol):
    """A source of random rows; ``rows`` is the number of data that it serves."""

    rows: int

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, shape (rows, *shape), float32."""
        ...

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), shape (rows, *shape), float32."""
        ...


@dataclass
class BatchNoise:
    """Rows of one stream; of ``world`` equal parts of the batch, this process keeps part ``rank``."""

    generator: torch.Generator
    rows: int
    device: torch.device | str = "cpu"
    rank: int = 0
    world: int = 1

    def normal(self, *shape: int) -> Tensor:
        return self._own(torch.randn((self.rows * self.world, *shape), generator=self.generator))

    def uniform(self, *shape: int) -> Tensor:
        return self._own(torch.rand((self.rows * self.world, *shape), generator=self.generator))

    def _own(self, drawn: Tensor) -> Tensor:
        start = self.rank * self.rows
        return drawn[start : start + self.rows].to(self.device)


class RowNoise:
    """A stream for each row: row i depends on its own seed only."""

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.rows = len(seeds)
        self.device = device
        self._streams = [torch.Generator().manual_seed(seed) for seed in seeds]

    def normal(self, *shape: int) -> Tensor:
        return self._stack([torch.randn(shape, generator=one) for one in self._streams], shape)

    def uniform(self, *shape: int) -> Tensor:
        return self._stack([torch.rand(shape, generator=one) for one in self._streams], shape)

    def _stack(self, rows: list[Tensor], shape: tuple[int, ...]) -> Tensor:
        return torch.stack(rows).to(self.device) if rows else torch.empty((0, *shape))


@contextlib.contextmanager
def global_noise(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """For what can draw from torch's global streams only (first weights, dropout): they start at
    ``seed`` inside, and go on outside as if nothing had been drawn.

    Only the streams of the CPU and of ``device`` are touched: ``torch.manual_seed`` also notes a
    call, with the caller's stack, for every kind of accelerator that has not been started, each
    time (a tenth of a small model's round, and memory that grows for good).
    """
    where = torch.device(device)
    kind = where.type
    with torch.random.fork_rng(devices=[] if kind == "cpu" else [where], device_type=kind):
        torch.default_generator.manual_seed(seed)
        if kind != "cpu":
            torch.get_device_module(kind).manual_seed(seed)
        yield


_MASK = (1 << 64) - 1


def mixed(*values: int) -> int:
    """A well-mixed 63-bit seed from whole numbers (SplitMix64, Steele et al. 2014)."""
    state = 0
    for value in values:
        state = (state + (value & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def row_noise(
    rows: int, generator: torch.Generator | None, device: torch.device | str = "cpu"
) -> RowNoise:
    """One stream a row from one generator; without a generator, from the system's entropy."""
    if generator is None:
        base = torch.Generator().seed() & (_MASK >> 1)
    else:
        base = int(torch.randint(1 << 62, (), generator=generator, device=generator.device))
    return RowNoise([mixed(base, row) for row in range(rows)], device)


def scoring_noise(
    rows: int, generator: torch.Generator | None, device: torch.device | str = "cpu"
) -> RowNoise:
    """As ``row_noise``, but seed 0 without a generator: a score can be computed again."""
    return row_noise(rows, generator or torch.Generator().manual_seed(0), device)
