"""What models along straight paths do alike: the door, and filling in and varying by a velocity field.

The path x_t = (1 - t) x_0 + t x_1 is a Gaussian diffusion of signal t and spread 1 - t, whose guess of
data is E[x_1 | x_t] = x_t + (1 - t) v, so that a velocity can take the walks of
``probability/editing.py``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from simulacra.games import Batch, Clock
from simulacra.layers.conditions import ConditionDoor
from simulacra.layers.front_door import as_device
from simulacra.layers.velocity import UnitDoor
from simulacra.probability.editing import conditioned, noised, remaining
from simulacra.probability.noise import Noise, row_noise
from simulacra.probability.samplers import descended, last, make_step
from simulacra.probability.straight_paths import Field, Solver, denoiser, level, solved, times
from simulacra.spaces import Space

LEAST_STEPS = 100
"""Steps of a completion at least."""


class StandardDoor(nn.Module):
    """A model behind a ``door`` that brings all but images to unit variance."""

    door: UnitDoor

    def standardise(
        self, batches: Iterator[Batch], noise: Noise, clock: Clock
    ) -> Mapping[str, float]:
        """Mean and deviation of every column, from the first batches."""
        self.door.fit([batch.x for batch in batches], noise)
        return {"finished": 1.0}


class FlowConfig(Protocol):
    """What a config says of the walk along the ODE."""

    @property
    def num_inference_steps(self) -> int: ...
    @property
    def sampler(self) -> Solver: ...


class StraightFlow(StandardDoor):
    """A velocity field; a model names its capabilities on its own class line."""

    config: FlowConfig
    condition_space: Space | None
    condition_door: ConditionDoor

    @property
    @abstractmethod
    def _weight(self) -> Tensor:
        """A weight of the network, whose device and type it works in."""

    @abstractmethod
    def _field(self, condition: Tensor | None, rows: int) -> Field:
        """The velocity, with the guidance of the config."""

    @torch.no_grad()
    def vary(
        self,
        x: Tensor,
        *,
        strength: float = 0.8,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """From x, noised to the time that has ``strength`` of the steps to go (Meng et al. 2022)."""
        path = remaining(times(self.config.num_inference_steps), strength)
        noise = row_noise(len(x), generator, self._weight.device)
        condition = self.condition_door.drawn(condition, noise.uniform())
        real, _ = self.door.enter(as_device(x, self), noise)
        start, field = noised(real, level(path[0]), noise), self._field(condition, len(x))
        return self.door.leave(solved(field, start, path, self.config.sampler))

    # Guesses are asked for slopes, which nothing from inference mode may carry.
    @torch.inference_mode(False)
    @torch.no_grad()
    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """In at least a hundred ancestral steps, each of which heeds what is known."""
        noise = row_noise(len(x), generator, self._weight.device)
        condition = self.condition_door.drawn(condition, noise.uniform())
        x, known = (as_device(one, self) for one in (x, known))
        given, _ = self.door.enter(x, noise)
        start = noise.normal(*self.door.real_shape).to(given)
        denoise = denoiser(self._field(condition, len(x)))
        denoise = conditioned(denoise, given, self.door.known(x, known))
        steps = max(LEAST_STEPS, self.config.num_inference_steps)
        path = [level(t) for t in times(steps, "cosine")]
        filled = last(descended(make_step("ancestral"), denoise, start, path, noise))
        return torch.where(known, x, self.door.leave(filled))
