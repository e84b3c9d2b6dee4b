"""Samplers of Gaussian diffusion: from noise to data along a path of noise levels; no networks.

All that a sampler needs of a model is a denoiser, x_0 as guessed from x_t = signal x_0 + spread epsilon;
what was predicted in training, on which schedule and with which weights, is not its affair. It works on
variance-preserving processes (signal^2 + spread^2 = 1) and on exploding ones (signal = 1) alike, as only
these enter:

    sigma = spread / signal,        log-SNR = -2 log sigma,        lambda = -log sigma.

A step takes x from one level to a less noisy one, and ``descended`` walks a path. The probability-flow
equation in y = x / signal is dy/dsigma = (y - x_0(y, sigma)) / sigma (Karras et al. 2022, eq. 1 and 3):
Euler's step on it is DDIM's at eta = 0, whatever the process, and Heun's corrects its slope. DPM-Solver++
solves the part that is linear in x exactly, and goes on the line through the last two guesses.

Papers: Ho, Jain & Abbeel 2020 (ancestral); Song, Meng & Ermon 2021 (DDIM, inversion); Karras, Aittala,
Aila & Laine 2022 (Heun, path); Lu et al. 2022 (DPM-Solver++).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from simulacra.probability.noise import Noise
from simulacra.refusals import Refusal

SamplerName = Literal["ddim", "ancestral", "euler", "heun", "dpm++2m", "dpm++2m-sde"]
Spacing = Literal["time", "quadratic", "karras", "log-snr"]
TimelessSpacing = Literal["time", "karras", "log-snr"]
"""Those that need no whole times."""

SPACINGS: dict[SamplerName, Spacing] = {
    "ddim": "time",
    "ancestral": "time",
    "euler": "karras",
    "heun": "karras",
    "dpm++2m": "karras",
    "dpm++2m-sde": "karras",
}
"""The path that each sampler takes where none is named."""


@dataclass(frozen=True)
class Level:
    """A noise level: x_t = signal x_0 + spread epsilon."""

    signal: float
    spread: float

    @classmethod
    def preserving(cls, sigma: float) -> Level:
        """The variance-preserving level with that ratio of spread to signal."""
        length = math.hypot(1.0, sigma)
        return cls(1 / length, sigma / length)

    @property
    def sigma(self) -> float:
        return self.spread / self.signal

    @property
    def log_snr(self) -> float:
        return 2 * math.log(self.signal / self.spread)

    def variance_from(self, noisier: Level) -> float:
        """Of x at the noisier level given x at this one: beta, where they are neighbours."""
        return noisier.spread**2 - (noisier.signal / self.signal * self.spread) ** 2

    def variance_given(self, noisier: Level) -> float:
        """Of x at this level given x at the noisier one and x_0: beta-tilde (Ho et al. 2020, eq. 7)."""
        return (self.spread / noisier.spread) ** 2 * self.variance_from(noisier)


CLEAN = Level(1.0, 0.0)
MOST_SIGMA = 80.0


@dataclass(frozen=True, eq=False)
class Guess:
    """x_0 as guessed from x_t and, of a model that learnt its variances, where the logarithm of the
    step's variance lies between those of beta-tilde (0) and beta (1); both like x_t."""

    x0: Tensor
    share: Tensor | None = None


Denoiser = Callable[[Tensor, Level], Guess]


class Step(Protocol):
    """From x at level ``now`` to x at the less noisy level ``then``; it may remember earlier steps."""

    def __call__(
        self, denoise: Denoiser, x: Tensor, now: Level, then: Level, noise: Noise
    ) -> Tensor: ...


def descended(
    step: Step,
    denoise: Denoiser,
    x: Tensor,
    path: Sequence[Level],
    noise: Noise,
) -> Iterator[Tensor]:
    """x at every level of the path after its first."""
    for now, then in itertools.pairwise(path):
        x = step(denoise, x, now, then, noise)
        yield x


def last(walk: Iterator[Tensor]) -> Tensor:
    """Where a walk ends."""
    *_, x = walk
    return x


def implicit(x: Tensor, x0: Tensor, now: Level, then: Level, variance: float = 0.0) -> Tensor:
    """The mean of x at ``then``, of which ``variance`` is yet to be added as noise (Song et al. 2021,
    eq. 12): signal x_0 + sqrt(spread^2 - variance) epsilon, epsilon that of x and x_0."""
    gain = math.sqrt(max(then.spread**2 - variance, 0.0)) / now.spread
    return torch.add(x * gain, x0, alpha=then.signal - gain * now.signal)


@dataclass(frozen=True)
class DDIM:
    """Deterministic at eta = 0, ancestral with the variance beta-tilde at eta = 1."""

    eta: float = 0.0

    def __call__(
        self, denoise: Denoiser, x: Tensor, now: Level, then: Level, noise: Noise
    ) -> Tensor:
        variance = self.eta**2 * then.variance_given(now)
        mean = implicit(x, denoise(x, now).x0, now, then, variance)
        return mean if variance == 0 else _spread(mean, math.sqrt(variance), noise)


@dataclass(frozen=True)
class Ancestral:
    """A draw of p(x_s | x_t), its variance beta-tilde or, where it was learnt, the model's (Ho et al.
    2020, algorithm 2; Nichol & Dhariwal 2021, eq. 15, for any sub-sequence as in their sec. 4)."""

    def __call__(
        self, denoise: Denoiser, x: Tensor, now: Level, then: Level, noise: Noise
    ) -> Tensor:
        guess, narrow = denoise(x, now), then.variance_given(now)
        mean = implicit(x, guess.x0, now, then, narrow)
        if then.spread == 0:
            return mean
        if guess.share is None:
            return _spread(mean, math.sqrt(narrow), noise)
        return _spread(mean, between(narrow, then.variance_from(now), guess.share), noise)


def between(narrow: float, wide: float, share: Tensor) -> Tensor:
    """A deviation whose variance is exp(v log wide + (1 - v) log narrow), v the share
    (Nichol & Dhariwal 2021, eq. 15)."""
    return (0.5 * math.log(narrow) + 0.5 * math.log(wide / narrow) * share).exp()


def heun(denoise: Denoiser, x: Tensor, now: Level, then: Level, noise: Noise) -> Tensor:
    """Euler's step, then half of its slope and half of that where it leads (Karras et al. 2022,
    algorithm 1); the step to no noise is Euler's."""
    x0 = denoise(x, now).x0
    guess = implicit(x, x0, now, then)
    if then.spread == 0:
        return guess
    # In y = x / signal: y' = y + (sigma' - sigma) (d + d') / 2, d = (y - x_0) / sigma.
    slope = (x / now.signal - x0) / now.sigma
    slope = slope + (guess / then.signal - denoise(guess, then).x0) / then.sigma
    change = 0.5 * (then.sigma - now.sigma) * then.signal
    return torch.add(x * (then.signal / now.signal), slope, alpha=change)


@dataclass
class DPMSolver:
    """DPM-Solver++ (2M), or its stochastic form (Lu et al. 2022, algorithm 2 and eq. 19).

    With h the step in lambda and r the one before over it, D = x_0 + (x_0 - x_0 before) / (2 r):

        x' = spread' / spread x + signal' (1 - e^-h) D,                                          (2M)
        x' = spread' / spread e^-h x + signal' (1 - e^-2h) D + spread' sqrt(1 - e^-2h) z.    (2M SDE)

    The first step, and that to no noise, have no line to go on: D = x_0. A solver is for one walk.
    """

    stochastic: bool = False
    before: tuple[Level, Tensor] | None = field(default=None, repr=False)

    def __call__(
        self, denoise: Denoiser, x: Tensor, now: Level, then: Level, noise: Noise
    ) -> Tensor:
        x0 = denoise(x, now).x0
        if then.spread == 0:
            return x0 * then.signal
        step = math.log(now.sigma / then.sigma)
        aim = x0
        if self.before is not None:
            earlier, older = self.before
            weight = 0.5 * step / math.log(earlier.sigma / now.sigma)
            aim = torch.add(x0 * (1 + weight), older, alpha=-weight)
        self.before = (now, x0)
        ratio = then.spread / now.spread
        if not self.stochastic:
            return torch.add(x * ratio, aim, alpha=-then.signal * math.expm1(-step))
        gone = -math.expm1(-2 * step)
        mean = torch.add(x * (ratio * math.exp(-step)), aim, alpha=then.signal * gone)
        return _spread(mean, then.spread * math.sqrt(gone), noise)


def _spread(mean: Tensor, deviation: float | Tensor, noise: Noise) -> Tensor:
    fresh = noise.normal(*mean.shape[1:]).to(mean)
    if isinstance(deviation, float):
        return torch.add(mean, fresh, alpha=deviation)
    return mean + deviation * fresh


def make_step(name: SamplerName, eta: float = 0.0) -> Step:
    """A sampler's step by its name, for one walk; eta is DDIM's alone."""
    if name not in get_args(SamplerName):
        raise Refusal(
            "CFG-210",
            f"there is no sampler {name!r}",
            way_out=f"choose one of {', '.join(get_args(SamplerName))}",
        )
    if not 0 <= eta <= 1 or (eta and name != "ddim"):
        raise Refusal(
            "CFG-211",
            f"eta is {eta:g} with the sampler {name}",
            way_out="eta goes from 0 (deterministic) to 1 (ancestral), and is ddim's alone",
        )
    if name == "ddim":
        return DDIM(eta)
    if name in ("dpm++2m", "dpm++2m-sde"):
        return DPMSolver(stochastic=name == "dpm++2m-sde")
    steps: dict[str, Step] = {"ancestral": Ancestral(), "euler": DDIM(), "heun": heun}
    return steps[name]


def climbed(
    denoise: Denoiser, x: Tensor, path: Sequence[Level], *, iterations: int = 1
) -> Iterator[Tensor]:
    """DDIM inversion: x at every level of the path, from its last but for one to its first.

    The path is the sampler's own and ends above no noise, or where ``x`` is so near its data that it
    does not matter. Each x_t is what DDIM's step leads to x_s from,

        x_t = signal_t / signal_s (x_s - spread_s epsilon) + spread_t epsilon,   epsilon that of x_t,

    by so many fixed-point iterations from x_s: one is the usual inversion (Song et al. 2021, sec. 4.3),
    a few make the way back exact (Pan et al. 2023).
    """
    for then, now in itertools.pairwise(reversed(path)):
        guess = x
        for _ in range(iterations):
            epsilon = (guess - now.signal * denoise(guess, now).x0) / now.spread
            ratio = now.signal / then.signal
            guess = torch.add(x * ratio, epsilon, alpha=now.spread - ratio * then.spread)
        x = guess
        yield x


def spaced(high: float, low: float, count: int, spacing: Spacing, rho: float = 7.0) -> list[Level]:
    """``count`` variance-preserving levels of sigma from high to low, and none: evenly in
    sigma^(1 / rho) (Karras et al. 2022, eq. 5), or in log-SNR (Lu et al. 2022, sec. 3).

    Noise beyond sigma = 80 tells nothing of data in [-1, 1], and no step is spent on it.
    """
    high = min(high, MOST_SIGMA)
    shares = [index / max(count - 1, 1) for index in range(count)]
    if spacing == "log-snr":
        sigmas = [high * (low / high) ** share for share in shares]
    else:
        top, bottom = high ** (1 / rho), low ** (1 / rho)
        sigmas = [(top + share * (bottom - top)) ** rho for share in shares]
    return [*map(Level.preserving, sigmas), CLEAN]
