"""A DCGAN's training steps: ours, a plain loop's and torchgan's trainer's, on the same two networks.

28 x 28 MNIST padded to 32 x 32, non-saturating loss without a regulariser, one critic step a round. All
end with the same metric: the Frechet distance of Gaussians in the first principal components of pixels.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from peer_runs import HELD_OUT, mnist, stand_in_for_torchvision, told

SIDE, BATCH, LATENT, CHANNELS, STEPS = 32, 64, 64, 32, 300
RATE, BETAS = 2e-4, (0.5, 0.99)
WARM, COMPONENTS = 3, 50
METRIC = "Frechet distance in 50 principal components of pixels"


class Generator(nn.Module):
    """Radford et al. 2016 as a tutorial writes it, of the sizes of ours."""

    def __init__(self) -> None:
        super().__init__()
        widths = [8 * CHANNELS, 4 * CHANNELS, 2 * CHANNELS, CHANNELS]
        self.start = nn.Linear(LATENT, 16 * widths[0], bias=False)
        parts: list[nn.Module] = [nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)]
        for width in widths[:-1]:
            parts += [
                nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(width // 2),
                nn.ReLU(inplace=True),
            ]
        self.body = nn.Sequential(*parts, nn.Conv2d(CHANNELS, 1, 3, padding=1), nn.Tanh())
        _small(self)

    def forward(self, z: Tensor) -> Tensor:
        made: Tensor = self.body(self.start(z).reshape(len(z), -1, 4, 4))
        return made


class Critic(nn.Module):
    """Its counterpart, of the sizes of ours."""

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(1, CHANNELS, 3, padding=1), nn.LeakyReLU(0.2)]
        for level in range(3):
            width = CHANNELS * 2**level
            parts += [nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = 8 * CHANNELS
        parts += [nn.Conv2d(width, width, 3, padding=1), nn.LeakyReLU(0.2), nn.Flatten()]
        self.body = nn.Sequential(*parts, nn.Linear(16 * width, 1))
        _small(self)

    def forward(self, x: Tensor) -> Tensor:
        logit: Tensor = self.body(x)
        return logit.squeeze(1)


def _small(module: nn.Module) -> None:
    for one in module.modules():
        if isinstance(one, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(one.weight, 0.0, 0.02)


def apart(made: Tensor, test: Tensor) -> float:
    """The metric, of images in [-1, 1]."""
    from simulacra.evaluation.frechet import frechet_distance

    rows, real = (x.float().flatten(1).double() for x in (made, test))
    mean = real.mean(0)
    _, _, axes = torch.linalg.svd(real - mean, full_matrices=False)
    axes = axes[:COMPONENTS].T
    return frechet_distance((rows - mean) @ axes, (real - mean) @ axes)


def dcgan_ours() -> dict[str, Any]:
    from simulacra import build
    from simulacra.data.dataset import Part, Stream
    from simulacra.games import Play
    from simulacra.runs.machine import has_bf16, keep_freed_memory
    from simulacra.spaces import Images

    train, test = ((255 * part).round().to(torch.uint8) for part in mnist(SIDE))
    settings = {"regulariser": "none", "learning_rate": RATE, "channels": CHANNELS}
    model = build("dcgan", Images(1, SIDE, SIDE), settings=settings, num_examples=len(train))
    game = model.game()
    play = Play(model, game, bf16=game.bf16 and has_bf16(torch.device("cpu")))
    stream = Stream(Part(train, torch.arange(len(train)), model.space), BATCH, seed=0)
    keep_freed_memory()
    rounds = play.rounds(stream, lambda clock: 0.5 * clock.rounds / STEPS)
    for _ in range(WARM):
        next(rounds)
    begun = time.perf_counter()
    for _ in range(STEPS - WARM):
        next(rounds)
    seconds = time.perf_counter() - begun
    made = model.sample(HELD_OUT, generator=torch.Generator().manual_seed(0))
    found = apart(made.float() / 127.5 - 1, test.float() / 127.5 - 1)
    return told((STEPS - WARM) * BATCH, seconds, model, found, METRIC)


def _batches(train: Tensor, count: int) -> torch.utils.data.DataLoader[Any]:
    """As tutorials feed images: a dataset of single ones, put together by a loader."""
    rows = torch.utils.data.TensorDataset(train[: count * BATCH], torch.zeros(count * BATCH))
    return torch.utils.data.DataLoader(rows, BATCH, shuffle=True, drop_last=True)


def dcgan_plain(best: bool) -> dict[str, Any]:
    """PyTorch's own DCGAN tutorial, its steps and its order; at its best with every switch on."""
    train, test = (2 * part - 1 for part in mnist(SIDE))
    generator, critic = Generator(), Critic()
    both = nn.ModuleList([generator, critic])
    if best:
        for one in (generator, critic):
            one.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    make: Callable[[Tensor], Tensor] = torch.compile(generator) if best else generator
    judge: Callable[[Tensor], Tensor] = torch.compile(critic) if best else critic
    first, second = (
        torch.optim.Adam(one.parameters(), RATE, betas=BETAS, fused=best)
        for one in (generator, critic)
    )

    def loss(x: Tensor, label: float) -> Tensor:
        logit = judge(x).float()
        return functional.binary_cross_entropy_with_logits(logit, torch.full_like(logit, label))

    def step(x: Tensor) -> None:
        if best:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=best):
            second.zero_grad()
            loss(x, 1.0).backward()
            made = make(torch.randn(len(x), LATENT))
            loss(made.detach(), 0.0).backward()
            second.step()
            first.zero_grad()
            loss(made, 1.0).backward()
            first.step()

    if best:
        order = torch.randperm(len(train))[: STEPS * BATCH].split(BATCH)
        feed = iter([train[one] for one in order])
    else:
        feed = (x for x, _ in _batches(train, STEPS))
    for _ in range(WARM):
        step(next(feed))
    begun = time.perf_counter()
    for x in feed:
        step(x)
    seconds = time.perf_counter() - begun
    generator.eval()
    with torch.no_grad():
        made = generator(torch.randn(HELD_OUT, LATENT))
    return told((STEPS - WARM) * BATCH, seconds, both, apart(made, test), METRIC)


def dcgan_torchgan() -> dict[str, Any]:
    """Its trainer with its defaults, on the same two networks."""
    stand_in_for_torchvision()
    os.environ["TENSORBOARD_LOGGING"] = "0"
    os.environ["CONSOLE_LOGGING"] = "0"
    from torchgan import losses, models, trainer

    class TheirGenerator(models.Generator):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(LATENT)
            self.inner = Generator()

        def forward(self, z: Tensor) -> Tensor:
            made: Tensor = self.inner(z)
            return made

    class TheirCritic(models.Discriminator):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(1)
            self.inner = Critic()

        def forward(self, x: Tensor) -> Tensor:
            logit: Tensor = self.inner(x)
            return logit

    train, test = (2 * part - 1 for part in mnist(SIDE))
    adam = {"name": torch.optim.Adam, "args": {"lr": RATE, "betas": BETAS}}
    with tempfile.TemporaryDirectory() as folder:
        run = trainer.Trainer(
            {
                "generator": {"name": TheirGenerator, "optimizer": adam},
                "discriminator": {"name": TheirCritic, "optimizer": adam},
            },
            [losses.MinimaxGeneratorLoss(), losses.MinimaxDiscriminatorLoss()],
            device=torch.device("cpu"),
            epochs=1,
            checkpoints=str(Path(folder) / "gan"),
            recon=str(Path(folder) / "images"),
        )
        run(_batches(train, WARM))
        run.epochs, run.start_epoch = 2, 1
        begun = time.perf_counter()
        run(_batches(train, STEPS - WARM))
        seconds = time.perf_counter() - begun
    run.generator.eval()
    with torch.no_grad():
        made = run.generator(torch.randn(HELD_OUT, LATENT))
    both = nn.ModuleList([run.generator, run.discriminator])
    return told((STEPS - WARM) * BATCH, seconds, both, apart(made, test), METRIC)
