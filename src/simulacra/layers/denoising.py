"""What all Gaussian diffusions of images do alike once a network guesses x_0: walk from noise to data.

A model gives its guess of x_0 at any noise level and the paths it knows; here are the sampler's settings,
guidance, completion, variation of given data, inversion, and the error that tells strange data. With
classifier-free guidance the guess is

    x_0(x, y) + w (x_0(x, y) - x_0(x)),                                    (Ho & Salimans 2022, eq. 6)

as epsilon and x_0 are linear in one another; w = 0 is the plain conditional model. The network without a
label is the network that is given no class, all zeros, as it was in a share of its training. A classifier
that was trained on noised data guides by x_0 + w spread^2 / signal grad log p(y | x_t) (Dhariwal & Nichol
2021, algorithm 2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from simulacra.layers.conditions import ConditionDoor
from simulacra.layers.front_door import centred, levels_of
from simulacra.probability.diffusion import Scales
from simulacra.probability.editing import conditioned, noised, remaining
from simulacra.probability.noise import Noise, row_noise
from simulacra.probability.samplers import (
    SPACINGS,
    Denoiser,
    Guess,
    Level,
    SamplerName,
    Spacing,
    climbed,
    descended,
    last,
    make_step,
)
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Space

INVERTING = 4
"""Fixed-point iterations of a step of DDIM inversion."""


STRANGE = (0.2, 1.0)
"""The sigmas that an anomaly score looks between."""


class Settings(Protocol):
    """What a config says of sampling; none of it touches weights."""

    @property
    def sampler(self) -> SamplerName: ...
    @property
    def spacing(self) -> Spacing | None: ...
    @property
    def num_inference_steps(self) -> int: ...
    @property
    def eta(self) -> float: ...
    @property
    def guidance_scale(self) -> float: ...


@dataclass(frozen=True)
class Way:
    """How to walk: settings of a config, or what a caller says instead."""

    sampler: SamplerName
    spacing: Spacing
    num_inference_steps: int
    eta: float
    guidance_scale: float

    @classmethod
    def of(cls, config: Settings, **instead: Any) -> Way:
        """The config's, each replaced by what is not None of ``instead``."""
        told = {name: value for name, value in instead.items() if value is not None}
        name = told.get("sampler", config.sampler)
        # A config's eta is for the sampler it stands beside.
        eta = told.get("eta", config.eta if name == config.sampler else 0.0)
        count = told.get("num_inference_steps", config.num_inference_steps)
        make_step(name, eta)
        if count < 1:
            reason = f"num_inference_steps is {count}"
            raise Refusal("CFG-212", reason, way_out="give at least 1")
        spacing = told.get("spacing", config.spacing) or SPACINGS[name]
        return cls(name, spacing, count, eta, told.get("guidance_scale", config.guidance_scale))


class Origin(Protocol):
    """A model's own guess of x_0, not cut to the data's range; ``context`` is what a ``ConditionDoor``
    tells, or None."""

    def __call__(self, x: Tensor, at: Scales, context: Tensor | None) -> Guess: ...


@dataclass(frozen=True, eq=False)
class Reverse:
    """The way back from noise: a guess of x_0, paths of levels by count and spacing, and the doors.

    ``weight`` gives the type and the device that the network works in; ``classifier``, log p(y | x_t) of
    noised x (n, context), is there where one guides.
    """

    space: Images
    door: ConditionDoor
    origin: Origin
    path: Callable[[int, Spacing], list[Level]]
    weight: Callable[[], Tensor]
    classifier: Callable[[Tensor, Tensor], Tensor] | None = None

    def context(self, condition: Tensor | None, rows: int) -> Tensor | None:
        """Conditions as the network reads them, (rows, ...)."""
        context = self.door(condition, rows)
        return None if context is None else context.to(self.weight())

    def centred(self, x: Tensor) -> Tensor:
        """Elements as numbers in [-1, 1], on the network's device and in its type."""
        return centred(x.to(self.weight().device), self.space.levels).to(self.weight().dtype)

    def guess(self, x: Tensor, at: Scales, context: Tensor | None) -> Guess:
        """The model's guess, cut to the data's range; the nearest level where noise cannot hide it."""
        raw = self.origin(x, at, context)
        return replace(raw, x0=at.legible(x, raw.x0, self.space.levels))

    def denoiser(self, context: Tensor | None, scale: float, *, legible: bool = True) -> Denoiser:
        """The guess at one level, guided; ``legible``: cut to the data's range."""

        def denoise(x: Tensor, level: Level) -> Guess:
            at = Scales.of(level, x)
            raw = self.origin(x, at, context)
            x0 = raw.x0
            if scale and context is not None:
                x0 = x0 + scale * self._pull(x, x0, at, context)
            return replace(raw, x0=x0)

        return self._cut(denoise) if legible else denoise

    def _cut(self, denoise: Denoiser) -> Denoiser:
        """The same guesses, cut to the data's range."""

        def cut(x: Tensor, level: Level) -> Guess:
            raw = denoise(x, level)
            return replace(raw, x0=Scales.of(level, x).legible(x, raw.x0, self.space.levels))

        return cut

    def _pull(self, x: Tensor, x0: Tensor, at: Scales, context: Tensor) -> Tensor:
        """Where guidance pulls x_0 to, at a scale of one."""
        if self.classifier is None:
            return x0 - self.origin(x, at, torch.zeros_like(context)).x0
        with torch.enable_grad():
            moved = x.detach().requires_grad_()
            log_chance = (self.classifier(moved, at.log_snr) * context).sum()
            (slope,) = torch.autograd.grad(log_chance, moved)
        return at.spread.square() / at.signal * slope

    def walk(
        self, x: Tensor, context: Tensor | None, noise: Noise, way: Way, *, share: float = 1.0
    ) -> Iterator[Tensor]:
        """From x, which stands at a level with ``share`` of the path still to go, to data."""
        path = self.steps(way, share)
        denoise = self.denoiser(context, way.guidance_scale)
        return descended(make_step(way.sampler, way.eta), denoise, x, path, noise)

    def steps(self, way: Way, share: float = 1.0) -> list[Level]:
        """The levels of the last ``share`` of a path, at least one step."""
        return [*remaining(self.path(way.num_inference_steps, way.spacing), share)]

    @torch.no_grad()
    def trajectory(
        self,
        rows: int,
        condition: Tensor | None,
        generator: torch.Generator | None,
        way: Way,
    ) -> Iterator[Tensor]:
        """x_T, and x after every step, as elements of the space; the last ones are samples."""
        noise = row_noise(rows, generator, self.weight().device)
        condition = self.door.drawn(condition, noise.uniform())
        context = self.context(condition, rows)
        x = noise.normal(*self.space.shape).to(self.weight().dtype)
        yield levels_of(x, self.space)
        for state in self.walk(x, context, noise, way):
            yield levels_of(state, self.space)

    def sample(
        self, rows: int, condition: Tensor | None, generator: torch.Generator | None, way: Way
    ) -> Tensor:
        """Where trajectories end."""
        return last(self.trajectory(rows, condition, generator, way))

    # Guesses are asked for slopes, which nothing from inference mode may carry.
    @torch.inference_mode(False)
    @torch.no_grad()
    def complete(
        self,
        x: Tensor,
        known: Tensor,
        condition: Tensor | None,
        generator: torch.Generator | None,
        way: Way,
    ) -> Tensor:
        """Every guess of x_0 heeds the known pixels (``probability/editing.py``)."""
        noise = row_noise(len(x), generator, self.weight().device)
        condition = self.door.drawn(condition, noise.uniform())
        given, known = self.centred(x), known.to(self.weight().device)
        start = noise.normal(*self.space.shape).to(given)
        context = self.context(condition, len(x))
        denoise = self.denoiser(context, way.guidance_scale, legible=False)
        denoise = self._cut(conditioned(denoise, given, known))
        step, path = make_step(way.sampler, way.eta), self.steps(way)
        filled = last(descended(step, denoise, start, path, noise))
        return torch.where(known, x.to(known.device), levels_of(filled, self.space))

    @torch.no_grad()
    def vary(
        self,
        x: Tensor,
        strength: float,
        condition: Tensor | None,
        generator: torch.Generator | None,
        way: Way,
    ) -> Tensor:
        """From x, noised to the level that has ``strength`` of the path to go (Meng et al. 2022); where a
        path begins with a trace of the data, so does this."""
        noise = row_noise(len(x), generator, self.weight().device)
        condition = self.door.drawn(condition, noise.uniform())
        start = noised(self.centred(x), self.steps(way, strength)[0], noise)
        walk = self.walk(start, self.context(condition, len(x)), noise, way, share=strength)
        return levels_of(last(walk), self.space)

    @torch.no_grad()
    def inverted(self, x: Tensor, condition: Tensor | None, way: Way) -> Tensor:
        """The noise that DDIM leads to x from, (n, *shape); x is taken to stand at the least noise, to
        which all paths but those in time reach down."""
        denoise = self.denoiser(self.context(condition, len(x)), 0.0, legible=False)
        path = self.path(way.num_inference_steps, way.spacing)[:-1]
        return last(climbed(denoise, self.centred(x), path, iterations=INVERTING))

    @torch.no_grad()
    def strangeness(self, x: Tensor, count: int, noise: Noise) -> Tensor:
        """The squared error of x_0 as guessed from x_t, a dimension, over ``count`` noise levels (after
        Graham et al. 2023): data of another sort come back as what was learnt. Under noise stronger
        than the data all come back as the mean, and what lies near it would seem ordinary."""
        low, high = STRANGE
        sigmas = [low * (high / low) ** ((index + 0.5) / count) for index in range(count)]
        x0 = self.centred(x)
        total = x0.new_zeros(len(x0))
        for sigma in sigmas:
            at = Scales.of(Level.preserving(sigma), x0)
            x_t = at.noised(x0, noise.normal(*self.space.shape).to(x0))
            total += (x0 - self.guess(x_t, at, None).x0).square().flatten(1).mean(1)
        return total / len(sigmas)


def dropped(context: Tensor | None, share: float, noise: Noise) -> Tensor | None:
    """What is told of n data, nothing in a share of the rows, as guidance needs it."""
    if context is None or not share:
        return context
    kept = (noise.uniform(1) >= share).reshape(-1, *[1] * (context.ndim - 1))
    return context * kept.to(context)


def require_guidance(scale: float, condition: Space | None, *, able: bool, way_out: str) -> None:
    """Refuse a guidance that there is nothing for: no condition, or no way to leave it out."""
    if scale and condition is None:
        reason = f"guidance_scale is {scale:g}, and the model is not conditional"
        raise Refusal("CFG-214", reason, way_out="leave it at 0, or train with --conditional")
    if scale and not able:
        reason = f"guidance_scale is {scale:g}, and the model has never seen data without their condition"
        raise Refusal("CFG-215", reason, way_out=way_out)
