"""GANs' training steps: ours, a plain loop's and torchgan's trainer's, on the same networks.

28 x 28 MNIST padded to 32 x 32, non-saturating loss, one critic step a round; a DCGAN without a
regulariser, StyleGAN2 with a lazy R1. All end with the same metric: the Frechet distance of Gaussians in
the first principal components of pixels. stylegan2-pytorch, which runs on CUDA only, has networks, losses
and colours of its own.
"""

from __future__ import annotations

import copy
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from peer_runs import (
    AT_ONCE,
    HELD_OUT,
    mnist,
    peak_mib,
    stand_in_for_torchvision,
    stand_in_for_what_it_never_calls,
    told,
)

SIDE, BATCH, LATENT, CHANNELS = 32, 64, 64, 32
STEPS = {"cpu": 300, "cuda": 450}
RATE, BETAS = 2e-4, (0.5, 0.99)
WARM, COMPONENTS = {"cpu": 3, "cuda": 50}, 50
SLOW = 200
"""Steps of stylegan2-pytorch, which is slow; its metric is after these."""

MIDST = 30_001
"""A step of stylegan2-pytorch's after which it neither draws samples nor starts averages anew."""

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


def _drawn(generator: nn.Module, device: str) -> Tensor:
    """Held-out many images."""
    with torch.no_grad():
        z = [torch.randn(AT_ONCE, LATENT, device=device) for _ in range(HELD_OUT // AT_ONCE)]
        return torch.cat([generator(one) for one in z]).cpu()


@dataclass(frozen=True)
class Pace:
    """Seconds a step, of how many, and the most memory until their end, MiB."""

    seconds: float
    steps: int
    peak: float


def _paced(work: Callable[[], object], steps: int, device: str) -> Pace:
    """The pace of ``work`` that makes so many steps, with what it has left to the device."""
    _finished(device)
    begun = time.perf_counter()
    work()
    _finished(device)
    return Pace((time.perf_counter() - begun) / steps, steps, peak_mib())


def _pace(step: Callable[[], object], device: str, most: int | None = None) -> Pace:
    """The pace of ``most`` steps, but the first."""

    def several(count: int) -> None:
        for _ in range(count):
            step()

    several(WARM[device])
    count = (most or STEPS[device]) - WARM[device]
    return _paced(lambda: several(count), count, device)


def _finished(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _result(pace: Pace, model: nn.Module, metric: float) -> dict[str, Any]:
    found = told(BATCH, pace.seconds, model, metric, METRIC, pace.peak)
    return found | {"timed steps": pace.steps}


def dcgan_ours(device: str) -> dict[str, Any]:
    settings = {"regulariser": "none", "learning_rate": RATE, "channels": CHANNELS}
    return _ours("dcgan", settings, device)


def stylegan2_ours(device: str) -> dict[str, Any]:
    return _ours("stylegan2", {}, device)


def _ours(name: str, settings: dict[str, Any], device: str) -> dict[str, Any]:
    from simulacra import build
    from simulacra.data.dataset import Part, Stream
    from simulacra.play import Play
    from simulacra.runs.machine import has_bf16, keep_freed_memory
    from simulacra.spaces import Images

    train, test = ((255 * part).round().to(torch.uint8) for part in mnist(SIDE))
    model = build(name, Images(1, SIDE, SIDE), settings=settings, num_examples=len(train))
    model, where = model.to(device), torch.device(device)
    game = model.game()
    play = Play(model, game, bf16=game.bf16 and has_bf16(where))
    part = Part(train, torch.arange(len(train)), model.space)
    keep_freed_memory()
    rounds = play.rounds(
        Stream(part, BATCH, seed=0, device=where),
        lambda clock: 0.5 * clock.rounds / STEPS[device],
    )
    pace = _pace(lambda: next(rounds), device)
    draws = torch.Generator().manual_seed(0)
    made = torch.cat([model.sample(AT_ONCE, generator=draws) for _ in range(HELD_OUT // AT_ONCE)])
    found = apart(made.cpu().float() / 127.5 - 1, test.float() / 127.5 - 1)
    return _result(pace, model, found)


def _batches(train: Tensor, count: int, device: str) -> torch.utils.data.DataLoader[Any]:
    """As tutorials feed images: a dataset of single ones, put together by a loader, with two workers
    beside a GPU."""
    rows = torch.utils.data.TensorDataset(train[: count * BATCH], torch.zeros(count * BATCH))
    beside = {"num_workers": 2, "persistent_workers": True, "pin_memory": True}
    options: dict[str, Any] = beside if device == "cuda" else {}
    loader = torch.utils.data.DataLoader(rows, BATCH, shuffle=True, drop_last=True, **options)
    iter(loader)  # Workers that persist begin here, and not while time is taken.
    return loader


@dataclass(frozen=True)
class DeviceNoise:
    """Noise as public loops draw it, where it is used."""

    rows: int
    device: str

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.rows, *shape, device=self.device)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(self.rows, *shape, device=self.device)


def dcgan_plain(best: bool, device: str) -> dict[str, Any]:
    """PyTorch's own DCGAN tutorial, its steps and its order; at its best with every switch on."""
    train, test = (2 * part - 1 for part in mnist(SIDE))
    generator, critic = Generator().to(device), Critic().to(device)
    both = nn.ModuleList([generator, critic])
    if best:
        for one in (generator, critic):
            one.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    # On a GPU with its own graphs, too, and its search for the fastest kernels.
    mode = "reduce-overhead" if device == "cuda" else "default"
    torch.backends.cudnn.benchmark = best
    make: Callable[[Tensor], Tensor] = torch.compile(generator, mode=mode) if best else generator
    judge: Callable[[Tensor], Tensor] = torch.compile(critic, mode=mode) if best else critic
    first, second = (
        torch.optim.Adam(one.parameters(), RATE, betas=BETAS, fused=best)
        for one in (generator, critic)
    )

    def loss(x: Tensor, label: float) -> Tensor:
        logit = judge(x).float()
        return functional.binary_cross_entropy_with_logits(logit, torch.full_like(logit, label))

    count = STEPS[device]
    if best:
        train = train.to(device)
        order = torch.randperm(len(train), device=device)[: count * BATCH].split(BATCH)
        feed = (train[one] for one in order)
    else:
        feed = (x for x, _ in _batches(train, count, device))

    def step() -> None:
        x = next(feed).to(device, non_blocking=True)
        if best:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16, enabled=best):
            second.zero_grad()
            loss(x, 1.0).backward()
            made = make(torch.randn(len(x), LATENT, device=device))
            loss(made.detach(), 0.0).backward()
            second.step()
            first.zero_grad()
            loss(made, 1.0).backward()
            first.step()

    pace = _pace(step, device)
    generator.eval()
    return _result(pace, both, apart(_drawn(generator, device), test))


def dcgan_torchgan(device: str) -> dict[str, Any]:
    """Its trainer with its defaults, on the same two networks."""
    stand_in_for_torchvision()
    os.environ["TENSORBOARD_LOGGING"] = "0"
    os.environ["CONSOLE_LOGGING"] = "0"
    import torchvision
    from torchgan import losses, models, trainer

    grid = torchvision.utils.make_grid

    def old_grid(*images: Any, range: Any = None, **rest: Any) -> Any:
        """It was written for a torchvision that called this argument by another name."""
        return grid(*images, value_range=range, **rest)

    torchvision.utils.make_grid = old_grid

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
            device=torch.device(device),
            epochs=1,
            checkpoints=str(Path(folder) / "gan"),
            recon=str(Path(folder) / "images"),
        )
        run(_batches(train, WARM[device], device))
        run.epochs, run.start_epoch = 2, 1
        count = STEPS[device] - WARM[device]
        batches = _batches(train, count, device)
        pace = _paced(lambda: run(batches), count, device)
    run.generator.eval()
    made = _drawn(run.generator, device)
    both = nn.ModuleList([run.generator, run.discriminator])
    return _result(pace, both, apart(made, test))


class Grouped(nn.Module):
    """A modulated convolution as it is usually written: a weight a datum, a group a datum."""

    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        self.like = like

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        like: Any = self.like
        weight = like.weight * like.scale * like.affine(w)[:, None, :, None, None]
        if like.demodulates:
            weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        count, outputs, inputs, kernel, _ = weight.shape
        grouped = weight.reshape(count * outputs, inputs, kernel, kernel)
        x = x.reshape(1, count * inputs, *x.shape[2:])
        out = functional.conv2d(x, grouped, padding=kernel // 2, groups=count)
        return out.reshape(count, outputs, *out.shape[2:])


def stylegan2_plain(device: str) -> dict[str, Any]:
    """Our networks with grouped convolutions, in a loop as public implementations have it: fp32, a
    DataLoader, R1 every 16 steps, an average of the generator after each step."""
    from simulacra import build
    from simulacra.spaces import Images

    train, test = (2 * part - 1 for part in mnist(SIDE))
    model: Any = build("stylegan2", Images(1, SIDE, SIDE), settings={}, num_examples=len(train))
    config, critic = model.config, model.critic
    for layer in (model.generator.synthesis.first, *model.generator.synthesis.layers):
        layer.convolve = Grouped(layer.convolve)
    pictures = model.generator.synthesis.pictures
    for place in range(len(pictures)):
        pictures[place] = Grouped(pictures[place])
    model.to(device)
    average = copy.deepcopy(model.generator)
    first, second = (
        torch.optim.Adam(one.parameters(), config.learning_rate, betas=(0.0, 0.99))
        for one in (model.generator, critic)
    )

    def made(generator: Any, count: int) -> Tensor:
        noise = DeviceNoise(count, device)
        w = generator.mapping(torch.randn(count, config.latent, device=device), None)
        x: Tensor = generator.synthesis(w[:, None].expand(-1, generator.synthesis.depth, -1), noise)
        return x

    feed = enumerate(x for x, _ in _batches(train, STEPS[device], device))

    def step() -> None:
        number, x = next(feed)
        x = x.to(device, non_blocking=True)
        with torch.no_grad():
            false = made(model.generator, len(x))
        real, unreal = critic(x, None).logit, critic(false, None).logit
        second.zero_grad()
        (functional.softplus(-real).mean() + functional.softplus(unreal).mean()).backward()
        second.step()
        if number % config.penalty_every == 0:
            x = x.requires_grad_()
            (slope,) = torch.autograd.grad(critic(x, None).logit.sum(), x, create_graph=True)
            second.zero_grad()
            weight = config.penalty * config.penalty_every / 2
            (weight * slope.square().flatten(1).sum(1).mean()).backward()
            second.step()
        critic.requires_grad_(False)
        first.zero_grad()
        functional.softplus(-critic(made(model.generator, len(x)), None).logit).mean().backward()
        first.step()
        critic.requires_grad_(True)
        with torch.no_grad():
            pairs = zip(average.parameters(), model.generator.parameters(), strict=True)
            for kept, new in pairs:
                kept.mul_(0.999).add_(new, alpha=0.001)

    pace = _pace(step, device)
    with torch.no_grad():
        drawn = torch.cat([made(model.generator, AT_ONCE) for _ in range(HELD_OUT // AT_ONCE)])
    return _result(pace, model, apart(drawn.cpu().clamp(-1, 1), test))


def stylegan2_pytorch(device: str) -> dict[str, Any]:
    """Its trainer's steps with its defaults, on images as its loader gives them, in three channels."""
    stand_in_for_what_it_never_calls()
    from stylegan2_pytorch.stylegan2_pytorch import Trainer

    train, test = mnist(SIDE)

    class Pictures(torch.utils.data.Dataset[Tensor]):
        def __len__(self) -> int:
            return len(train)

        def __getitem__(self, index: int) -> Tensor:
            return train[index].expand(3, -1, -1)

    loader = torch.utils.data.DataLoader(
        Pictures(), BATCH, shuffle=True, drop_last=True, pin_memory=True, num_workers=2
    )
    with tempfile.TemporaryDirectory() as folder:
        seldom = {"save_every": 10**9, "evaluate_every": 10**9}
        # Ours has no path lengths at this size either.
        plain = {"image_size": SIDE, "batch_size": BATCH, "aug_prob": 0.0, "no_pl_reg": True}
        run = Trainer(base_dir=folder, **plain, **seldom)
        run.dataset, run.loader = Pictures(), (x for _ in range(1000) for x in loader)
        run.init_GAN()
        run.steps = MIDST
        pace = _pace(run.train, device, SLOW)
    made = run.GAN
    with torch.no_grad():
        drawn = []
        for _ in range(HELD_OUT // AT_ONCE):
            w = made.S(torch.randn(AT_ONCE, made.G.latent_dim, device=device))
            styles = w[:, None].expand(-1, made.G.num_layers, -1)
            drawn.append(made.G(styles, torch.rand(AT_ONCE, SIDE, SIDE, 1, device=device)).mean(1))
    x = 2 * torch.cat(drawn)[:, None].cpu().clamp(0, 1) - 1
    both = nn.ModuleList([made.S, made.G, made.D])
    return _result(pace, both, apart(x, 2 * test - 1))
