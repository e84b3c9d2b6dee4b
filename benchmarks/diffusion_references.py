"""Samplers of diffusion against diffusers' schedulers, on the same outputs of the same network.

    pip install -e .[bench]
    python benchmarks/diffusion_references.py > benchmarks/results/diffusion-references.json

The network is a smooth function of x and the noise level in float64, the noise of both sides is drawn
from equal generators, and the largest difference on the way from x_T to x_0 is printed. Then the
microseconds of one step without the network, for 16 x 1 x 32 x 32 numbers in float32 on one thread.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Iterator
from typing import Any

import diffusers
import torch
from torch import Tensor

from simulacra.probability.diffusion import Diffusion
from simulacra.probability.noise import BatchNoise
from simulacra.probability.samplers import (
    Guess,
    Level,
    SamplerName,
    descended,
    make_step,
    spaced,
)

SHAPE, TIMED = (4, 1, 8, 8), (16, 1, 32, 32)
STEPS, TOTAL, WAYS = 20, 1000, 30
ENDS = 50.0, 0.01
SOLVERS: dict[SamplerName, str] = {"dpm++2m": "dpmsolver++", "dpm++2m-sde": "sde-dpmsolver++"}
BETAS = {"num_train_timesteps": TOTAL, "beta_start": 1e-4, "beta_end": 0.02}
TRAILING = {"timestep_spacing": "trailing", "clip_sample": False}


def network(x: Tensor, level: Level) -> Tensor:
    """epsilon: bounded, not linear, and unlike any that would make a sampler's error vanish."""
    return torch.tanh(1.3 * x + 0.2 * level.log_snr) * 0.8 + 0.1 * x.roll(1, -1)


def denoise(x: Tensor, level: Level) -> Guess:
    return Guess((x - level.spread * network(x, level)) / level.signal)


def source(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def start() -> Tensor:
    return torch.randn(SHAPE, generator=source(0), dtype=torch.float64)


class DoubleNoise(BatchNoise):
    """Draws float64, as the schedulers do for float64 data."""

    def normal(self, *shape: int) -> Tensor:
        return torch.randn((self.rows, *shape), generator=self.generator, dtype=torch.float64)


def ours(name: SamplerName, path: list[Level], eta: float = 0.0) -> list[Tensor]:
    # The schedulers draw in the type of their data, but for one that always draws float32.
    noise = (BatchNoise if name == "dpm++2m-sde" else DoubleNoise)(source(1), SHAPE[0])
    return list(descended(make_step(name, eta), denoise, start(), path, noise))


def theirs(scheduler: Any, **options: Any) -> Iterator[Tensor]:
    """Each state as a variance-preserving x; the network is called at the scheduler's level."""
    scheduler.set_timesteps(STEPS)
    sigmas: list[float] = getattr(scheduler, "sigmas", torch.empty(0)).tolist()
    explodes = "dpm" not in type(scheduler).__name__.lower() and bool(sigmas)
    x = start() * (math.hypot(1.0, sigmas[0]) if explodes else 1.0)
    for index, t in enumerate(scheduler.timesteps):
        bar, following = float(scheduler.alphas_cumprod[int(t)]), 0.0
        now = Level(bar**0.5, (1 - bar) ** 0.5)
        if sigmas:
            now, following = Level.preserving(sigmas[index]), sigmas[index + 1]
        seen = scheduler.scale_model_input(x, t)
        x = scheduler.step(network(seen, now), t, x, **options).prev_sample
        yield x / math.hypot(1.0, following) if explodes else x


def path_of(scheduler: Any) -> list[Level]:
    """The scheduler's own noise levels, which it keeps in float32, each once."""
    scheduler.set_timesteps(STEPS)
    return [Level.preserving(float(sigma)) for sigma in scheduler.sigmas.unique().flip(0)]


def gap(first: list[Tensor], second: Iterator[Tensor]) -> float:
    """The largest difference on the way, as a share of the largest number there."""
    return max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(first, second, strict=True)
    )


def parity() -> dict[str, float]:
    """The largest difference to each scheduler."""
    diffusion = Diffusion("linear", TOTAL)
    timed, told = [diffusion.level(t) for t in diffusion.times(STEPS)], dict[str, float]()
    for eta in (0.0, 0.5, 1.0):
        peer = diffusers.DDIMScheduler(**BETAS, **TRAILING)
        way = theirs(peer, eta=eta, generator=source(1))
        told[f"DDIM, eta {eta}"] = gap(ours("ddim", timed, eta), way)
    peer = diffusers.DDPMScheduler(**BETAS, **TRAILING)
    told["DDPM"] = gap(ours("ancestral", timed), theirs(peer, generator=source(1)))
    shared = {**BETAS, "use_karras_sigmas": True}
    peer = diffusers.EulerDiscreteScheduler(**shared)
    told["Euler"] = gap(ours("euler", path_of(peer)), theirs(peer))
    for name, kind in SOLVERS.items():
        peer = diffusers.DPMSolverMultistepScheduler(**shared, algorithm_type=kind)
        way = theirs(peer, generator=source(1))
        told[f"DPM-Solver++, {name}"] = gap(ours(name, path_of(peer)), way)
    peer = diffusers.HeunDiscreteScheduler(**shared)
    # Heun's scheduler is called twice a step, and has moved after the second call.
    heun = list(theirs(peer))
    told["Heun"] = gap(ours("heun", path_of(peer)), iter([*heun[1:-1:2], heun[-1]]))
    # Ours spends no step above sigma = 80, so the path is compared below that.
    own = torch.tensor([one.sigma for one in spaced(*ENDS, STEPS, "karras")[:-1]])
    other = torch.as_tensor(peer._convert_to_karras(torch.tensor(ENDS), STEPS))
    told["Karras path"] = float(((own - other).abs() / other).max())
    return told


def speed() -> dict[str, dict[str, float]]:
    """Microseconds of one step without the network, ours and the peer's."""
    torch.set_num_threads(1)
    peers: dict[SamplerName, Any] = {
        "ddim": diffusers.DDIMScheduler(**BETAS),
        "ancestral": diffusers.DDPMScheduler(**BETAS),
        "heun": diffusers.HeunDiscreteScheduler(**BETAS),
        "dpm++2m": diffusers.DPMSolverMultistepScheduler(**BETAS),
    }
    return {
        name: {"ours (us)": our_time(name) * 1e6, "diffusers (us)": peer_time(peer) * 1e6}
        for name, peer in peers.items()
    }


def our_time(name: SamplerName) -> float:
    """The median seconds of a step, over whole ways of 20 steps."""
    diffusion = Diffusion("linear", TOTAL)
    path = [diffusion.level(t) for t in diffusion.times(STEPS)]
    x, guess = torch.randn(TIMED), torch.randn(TIMED)
    taken, noise = [], BatchNoise(source(0), TIMED[0])
    for _ in range(WAYS):
        begun = time.perf_counter()
        for _ in descended(make_step(name), lambda *_: Guess(guess), x, path, noise):
            taken.append(time.perf_counter() - begun)
            begun = time.perf_counter()
    return statistics.median(taken)


def peer_time(peer: Any) -> float:
    """The same of a scheduler; Heun's takes two calls a step."""
    said, x, taken, calls = torch.randn(TIMED), torch.randn(TIMED), [], getattr(peer, "order", 1)
    for _ in range(WAYS):
        peer.set_timesteps(STEPS)
        for t in peer.timesteps:
            seen = peer.scale_model_input(x, t)
            begun = time.perf_counter()
            peer.step(said, t, seen)
            taken.append(time.perf_counter() - begun)
    return statistics.median(taken) * (calls if "Heun" in type(peer).__name__ else 1)


def main() -> None:
    """Print one JSON object."""
    told = {"diffusers": diffusers.__version__, "torch": torch.__version__}
    print(json.dumps({**told, "largest difference": parity(), "one step": speed()}, indent=2))


if __name__ == "__main__":
    main()
