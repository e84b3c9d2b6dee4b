"""Diffusion's training steps and samplers: ours, and diffusers' as users run it and at its best."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from peer_runs import AT_ONCE, mnist, stand_in_for_torchvision, told

# Our five blocks at the lowest resolution make about the parameters of the peer's two layers at each.
DDPM = {"channels": 32, "batch": 64, "steps": 100, "side": 32}
DDIM = {"steps": 50, "batch": 64, "batches": 2}
RATE = 1e-3


# DDPM: a U-Net of four resolutions, predicting the noise on the linear schedule.


def ddpm_ours() -> dict[str, Any]:
    from simulacra import build
    from simulacra.data.dataset import Part, Stream
    from simulacra.games import Batch, Clock
    from simulacra.play import Play
    from simulacra.probability.noise import row_noise
    from simulacra.runs.machine import has_bf16, keep_freed_memory
    from simulacra.runs.recipe import with_optimiser
    from simulacra.spaces import Images

    side = DDPM["side"]
    train, test = ((255 * part).to(torch.uint8) for part in mnist(side))
    settings = {"schedule": "linear", "prediction": "epsilon", "learning_rate": RATE}
    settings |= {"channels": DDPM["channels"], "blocks": 5}
    model = build("ddpm", Images(1, side, side), settings=settings, num_examples=60_000)
    game = with_optimiser(model.game(), {"schedule": "constant", "warmup": 0})
    play = Play(model, game, bf16=game.bf16 and has_bf16(torch.device("cpu")))
    stream = Stream(Part(train, torch.arange(len(train)), model.space), DDPM["batch"], seed=0)
    keep_freed_memory()
    rounds = play.rounds(stream, lambda clock: 0.5 * clock.rounds / DDPM["steps"])
    for _ in range(3):
        next(rounds)
    begun = time.perf_counter()
    for _ in range(DDPM["steps"] - 3):
        next(rounds)
    seconds = time.perf_counter() - begun
    model.eval()
    with torch.no_grad():
        errors = [
            model.denoising_error(
                Batch(part), row_noise(len(part), torch.Generator().manual_seed(seed)), Clock()
            ).value
            for seed, part in enumerate(test.split(AT_ONCE))
        ]
    error = statistics.fmean(map(float, errors))
    count = (DDPM["steps"] - 3) * DDPM["batch"]
    return told(count, seconds, model, float(error), "held-out squared error of the noise")


def _their_unet() -> Any:
    stand_in_for_torchvision()
    from diffusers import UNet2DModel

    width = DDPM["channels"]
    return UNet2DModel(
        sample_size=DDPM["side"],
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        down_block_types=("DownBlock2D",) * 4,
        up_block_types=("UpBlock2D",) * 4,
        norm_num_groups=8,
    )


def ddpm_diffusers(best: bool) -> dict[str, Any]:
    model = _their_unet()
    from diffusers import DDPMScheduler

    side = DDPM["side"]
    train, test = (2 * part - 1 for part in mnist(side))
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    if best:
        model = model.to(memory_format=torch.channels_last)
    network = torch.compile(model) if best else model
    optimiser = torch.optim.AdamW(model.parameters(), RATE)

    def error(x: Tensor) -> Tensor:
        noise = torch.randn_like(x)
        t = torch.randint(0, 1000, (len(x),))
        noised = scheduler.add_noise(x, noise, t)
        if best:
            noised = noised.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=best):
            said = network(noised, t, return_dict=False)[0]
        return nn.functional.mse_loss(said.float(), noise)

    def step() -> None:
        loss = error(train[torch.randint(0, len(train), (DDPM["batch"],))])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    for _ in range(3):
        step()
    begun = time.perf_counter()
    for _ in range(DDPM["steps"] - 3):
        step()
    seconds = time.perf_counter() - begun
    model.eval()
    with torch.no_grad():
        network = model
        found = statistics.fmean(float(error(part)) for part in test.split(AT_ONCE))
    count = (DDPM["steps"] - 3) * DDPM["batch"]
    return told(count, seconds, model, found, "held-out squared error of the noise")


# DDIM: samples of the same two networks in 50 steps, untrained, as the time does not depend on weights.


def ddim_ours() -> dict[str, Any]:
    from simulacra import build
    from simulacra.runs.machine import keep_freed_memory
    from simulacra.spaces import Images

    side = DDPM["side"]
    settings = {"channels": DDPM["channels"], "blocks": 5, "num_inference_steps": DDIM["steps"]}
    model: Any = build("ddpm", Images(1, side, side), settings=settings, num_examples=60_000)
    keep_freed_memory()
    return _sampling(model, lambda: model.sample(DDIM["batch"]))


def ddim_diffusers(best: bool) -> dict[str, Any]:
    model = _their_unet()
    from diffusers import DDIMPipeline, DDIMScheduler

    if best:
        model = torch.compile(model.to(memory_format=torch.channels_last))
    pipeline = DDIMPipeline(model, DDIMScheduler(num_train_timesteps=1000))
    pipeline.set_progress_bar_config(disable=True)

    def draw() -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=best):
            return pipeline(
                batch_size=DDIM["batch"], num_inference_steps=DDIM["steps"], output_type="np"
            )

    return _sampling(model, draw)


def _sampling(model: nn.Module, draw: Callable[[], Any]) -> dict[str, Any]:
    """Batches of samples, after one for warming up."""
    model.eval()
    draw()
    begun = time.perf_counter()
    for _ in range(DDIM["batches"]):
        draw()
    seconds = time.perf_counter() - begun
    return told(DDIM["batch"] * DDIM["batches"], seconds, model, DDIM["steps"], "steps of DDIM")
