"""Whole training steps against the libraries that users have today, on the same machine in one run.

    pip install -e .[bench]
    python benchmarks/peers.py vae  > benchmarks/results/vae-against-pythae.json
    python benchmarks/peers.py vq-vae > benchmarks/results/vq-vae-against-pythae.json
    python benchmarks/peers.py ddpm > benchmarks/results/ddpm-against-diffusers.json
    python benchmarks/peers.py ddim > benchmarks/results/ddim-against-diffusers.json
    python benchmarks/peers.py dcgan > benchmarks/results/dcgan-against-torchgan.json
    python benchmarks/peers.py stylegan2 > benchmarks/results/stylegan2-against-plain.json
    python benchmarks/peers.py dcgan --device cuda

Each system trains in a process of its own, one after the other and several times over; the figures
are medians over the repetitions. 'as users run it' is the peer's own loop with its defaults (fp32);
'best switches' adds bfloat16, channels-last and torch.compile to it. Both sides see the same data,
batch size, number of steps and learning rate, and end with the same held-out metric. MNIST is read
from the folder that SIMULACRA_DATA names, or fetched.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peer_gans import (
    dcgan_ours,
    dcgan_plain,
    dcgan_torchgan,
    stylegan2_ours,
    stylegan2_plain,
    stylegan2_pytorch,
)
from peer_runs import AT_ONCE, HELD_OUT, mnist, stand_in_for_torchvision, told

VAE = {"latent": 16, "hidden": 512, "batch": 128, "epochs": 10}
# Our five blocks at the lowest resolution make about the parameters of the peer's two layers at each.
DDPM = {"channels": 32, "batch": 64, "steps": 100, "side": 32}
DDIM = {"steps": 50, "batch": 64, "batches": 2}
VQ_VAE = {"codes": 512, "width": 32, "hidden": 64, "batch": 64, "steps": 400}
RATE = 1e-3


# VAE: two hidden layers of 512, 16 latent dimensions, pixels binarised by a threshold.


def vae_ours() -> dict[str, Any]:
    from simulacra import build, open_data
    from simulacra.runs.conductor import Run
    from simulacra.runs.recipe import Recipe

    data = open_data("mnist", view="binary")
    settings = {
        "hidden": VAE["hidden"],
        "layers": 1,
        "latent": VAE["latent"],
        "learning_rate": RATE,
    }
    model = build("vae", data.space, settings=settings, num_examples=len(data.train))
    steps = len(data.train) // VAE["batch"] * VAE["epochs"]
    recipe = Recipe(
        "vae",
        "mnist",
        "binary",
        batch_size=VAE["batch"],
        budget=f"{steps}steps",
        optimiser={"schedule": "constant"},
    )
    with tempfile.TemporaryDirectory() as folder:
        run = Run(model, data, recipe, Path(folder) / "run")
        begun = time.perf_counter()
        run.go()
        seconds = time.perf_counter() - begun
    x = data.test.first(HELD_OUT).x
    with torch.no_grad():
        bound = model.log_prob(x, generator=torch.Generator().manual_seed(0)).mean()
    return told(steps * VAE["batch"], seconds, model, -bound.item(), "held-out bound (nats)")


def vae_pythae(best: bool) -> dict[str, Any]:
    stand_in_for_torchvision()
    from pythae import models as peer
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    train, test = (part.gt(127 / 255).float() for part in mnist())
    train = train[: len(train) // VAE["batch"] * VAE["batch"]]
    config = peer.VAEConfig((1, 28, 28), VAE["latent"], reconstruction_loss="bce")
    model = peer.VAE(config)
    if best:
        seconds, images = _plain_loop(model, train, _vae_loss, VAE["batch"], VAE["epochs"])
    else:
        with tempfile.TemporaryDirectory() as folder:
            settings = BaseTrainerConfig(
                folder,
                per_device_train_batch_size=VAE["batch"],
                per_device_eval_batch_size=VAE["batch"],
                num_epochs=VAE["epochs"],
                learning_rate=RATE,
                no_cuda=True,
            )
            trainer = BaseTrainer(model, _Rows(train), _Rows(test), settings)
            begun = time.perf_counter()
            trainer.train()
            seconds, images = time.perf_counter() - begun, VAE["epochs"] * len(train)
    model.eval()
    with torch.no_grad():
        bound = model(_Record(data=test))["loss"]
    return told(images, seconds, model, float(bound), "held-out bound (nats)")


class _Record(dict[str, Any]):
    """What the peer's models are called with: entries that are also attributes."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class _Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __init__(self, rows: Tensor) -> None:
        self.data = rows

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        from pythae.data.datasets import DatasetOutput

        row: dict[str, Tensor] = DatasetOutput(data=self.data[index])
        return row


def _vae_loss(model: nn.Module, x: Tensor) -> Tensor:
    loss: Tensor = model(_Record(data=x))["loss"]
    return loss


def _plain_loop(
    model: nn.Module,
    train: Tensor,
    loss: Callable[[nn.Module, Tensor], Tensor],
    batch: int,
    epochs: int,
    *,
    whole: bool = True,
) -> tuple[float, int]:
    """The peer's model with every switch on, in a loop without any overhead.

    Not ``whole``: the caller compiled the parts that can be compiled.
    """
    optimiser = torch.optim.AdamW(model.parameters(), RATE, fused=True)
    compiled = torch.compile(loss) if whole else loss

    def steps(order: Iterator[Tensor]) -> int:
        seen = 0
        for index in order:
            optimiser.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                value = compiled(model, train[index])
            value.backward()
            optimiser.step()
            seen += len(index)
        return seen

    batches = list(torch.randperm(len(train)).split(batch))
    steps(iter(batches[:3]))
    begun = time.perf_counter()
    seen = steps(iter(batches * epochs))
    return time.perf_counter() - begun, seen


# VQ-VAE: the strided networks of ours on both sides, 49 codes of 512 for 28 x 28 pixels of 8 bits.


def vq_vae_ours() -> dict[str, Any]:
    from simulacra import build, open_data
    from simulacra.data.dataset import Stream
    from simulacra.play import Play
    from simulacra.runs.machine import has_bf16, keep_freed_memory
    from simulacra.runs.recipe import with_optimiser

    data = open_data("mnist")
    settings = {"prior": "own", "learning_rate": RATE, "batch_size": VQ_VAE["batch"]}
    settings |= {"codes": VQ_VAE["codes"], "width": VQ_VAE["width"], "hidden": VQ_VAE["hidden"]}
    model = build("vq-vae", data.space, settings=settings, num_examples=len(data.train))
    game = with_optimiser(model.game(), {"schedule": "constant", "warmup": 0})
    play = Play(model, game, bf16=game.bf16 and has_bf16(torch.device("cpu")))
    keep_freed_memory()
    # The codes' first half of the game only: the peer has no prior.
    rounds = play.rounds(
        Stream(data.train, VQ_VAE["batch"], seed=0),
        lambda clock: 0.4 * clock.rounds / VQ_VAE["steps"],
    )
    for _ in range(3):
        next(rounds)
    begun = time.perf_counter()
    for _ in range(VQ_VAE["steps"] - 3):
        next(rounds)
    seconds = time.perf_counter() - begun
    model.eval()
    x = data.test.first(HELD_OUT).x
    with torch.no_grad():
        back = torch.cat([model.decode(model.encode(part)) for part in x.split(AT_ONCE)])
    error = ((x.float() - back.float()) / 255).square().flatten(1).sum(1).mean()
    count = (VQ_VAE["steps"] - 3) * VQ_VAE["batch"]
    return told(count, seconds, model, float(error), "held-out squared error of an image")


def _with_torch_s(decoder: nn.Module) -> nn.Module:
    """With the transposed convolutions that a user of the peer would take."""
    from simulacra.layers.transposed import TransposedConvolution

    for name, one in list(decoder.named_modules()):
        if isinstance(one, TransposedConvolution):
            sizes = one.in_channels, one.out_channels, one.kernel, one.step, one.cut
            plain = nn.utils.skip_init(nn.ConvTranspose2d, *sizes)
            plain.load_state_dict(one.state_dict())
            decoder.set_submodule(name, plain)
    decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return decoder


def vq_vae_pythae(best: bool) -> dict[str, Any]:
    stand_in_for_torchvision()
    from pythae import models as peer
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    from simulacra.layers.strided import StridedDecoder, StridedEncoder, Strides

    strides, sizes = Strides((28, 28), 2), (VQ_VAE["hidden"], 2)

    class Encoder(BaseEncoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = StridedEncoder(strides, 1, *sizes, VQ_VAE["width"])

        def forward(self, x: Tensor) -> Any:
            return ModelOutput(embedding=self.inner(x).contiguous())

    class Decoder(BaseDecoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = _with_torch_s(StridedDecoder(strides, VQ_VAE["width"], *sizes, 1))

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.inner(z).contiguous())

    train, test = mnist()
    count = VQ_VAE["steps"] * VQ_VAE["batch"]
    config = peer.VQVAEConfig(
        input_dim=(1, 28, 28),
        latent_dim=VQ_VAE["width"],
        num_embeddings=VQ_VAE["codes"],
        use_ema=True,
    )
    model = peer.VQVAE(config, Encoder(), Decoder())
    if not best:
        for part in (model.encoder, model.decoder):
            part.to(memory_format=torch.contiguous_format)
        with tempfile.TemporaryDirectory() as folder:
            settings = BaseTrainerConfig(
                folder,
                per_device_train_batch_size=VQ_VAE["batch"],
                per_device_eval_batch_size=VQ_VAE["batch"],
                num_epochs=1,
                learning_rate=RATE,
                no_cuda=True,
            )
            trainer = BaseTrainer(model, _Rows(train[:count]), None, settings)
            begun = time.perf_counter()
            trainer.train()
            seconds, images = time.perf_counter() - begun, count
    else:
        model.train()
        # Of the whole, the peer's dictionaries come out of torch.compile without their entries.
        for part in (model.encoder.inner, model.decoder.inner):
            part.compile()
        seconds, images = _plain_loop(
            model, train[:count], _vae_loss, VQ_VAE["batch"], 1, whole=False
        )
    model.eval()
    with torch.no_grad():
        back = torch.cat([model(_Record(data=part))["recon_x"] for part in test.split(AT_ONCE)])
    error = (test - back).square().flatten(1).sum(1).mean()
    return told(images, seconds, model, float(error), "held-out squared error of an image")


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


SYSTEMS: dict[str, dict[str, Callable[[], dict[str, Any]]]] = {
    "vae": {
        "simulacra": vae_ours,
        "pythae, as users run it": lambda: vae_pythae(False),
        "pythae, best switches": lambda: vae_pythae(True),
    },
    "vq-vae": {
        "simulacra": vq_vae_ours,
        "pythae, as users run it": lambda: vq_vae_pythae(False),
        "pythae, best switches": lambda: vq_vae_pythae(True),
    },
    "ddpm": {
        "simulacra": ddpm_ours,
        "diffusers, as users run it": lambda: ddpm_diffusers(False),
        "diffusers, best switches": lambda: ddpm_diffusers(True),
    },
    "ddim": {
        "simulacra": ddim_ours,
        "diffusers, as users run it": lambda: ddim_diffusers(False),
        "diffusers, best switches": lambda: ddim_diffusers(True),
    },
}

GANS: dict[str, dict[str, Callable[[str], dict[str, Any]]]] = {
    "dcgan": {
        "simulacra": dcgan_ours,
        "torchgan, as users run it": dcgan_torchgan,
        "plain loop with a DataLoader": lambda device: dcgan_plain(False, device),
        "plain loop, best switches": lambda device: dcgan_plain(True, device),
    },
    "stylegan2": {
        "simulacra": stylegan2_ours,
        "plain loop with grouped convolutions": stylegan2_plain,
        "stylegan2-pytorch, as users run it": stylegan2_pytorch,
    },
}
"""Compared on any device; the others on the CPU."""

CUDA_ONLY = "stylegan2-pytorch, as users run it"


def measured(family: str, system: str, options: argparse.Namespace) -> dict[str, Any]:
    """One system in a process of its own."""
    command = [sys.executable, __file__, family, "--system", system]
    command += ["--steps", str(options.steps), "--device", options.device]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{system}: {found}", file=sys.stderr)
    return found


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", choices=[*SYSTEMS, *GANS])
    parser.add_argument("--system")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--steps", type=int, default=DDPM["steps"], help="of the DDPM")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of a GAN")
    options = parser.parse_args()
    DDPM["steps"] = options.steps
    of_gans = options.family in GANS
    if options.device != "cpu" and not of_gans:
        parser.error(f"{options.family} is compared on the CPU only")
    systems = [*(GANS if of_gans else SYSTEMS)[options.family]]
    if options.system:
        torch.manual_seed(0)
        if of_gans:
            told_of = GANS[options.family][options.system](options.device)
        else:
            told_of = SYSTEMS[options.family][options.system]()
        print(json.dumps(told_of))
        return
    if options.device == "cpu" and CUDA_ONLY in systems:
        systems.remove(CUDA_ONLY)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in systems}
    for _ in range(options.repeat):
        for name in systems:
            runs[name].append(measured(options.family, name, options))
    medians = {
        name: {key: statistics.median(one[key] for one in several) for key in several[0]}
        for name, several in runs.items()
    }
    speed = {name: one["images per second"] for name, one in medians.items()}
    ratios = {name: speed["simulacra"] / value for name, value in speed.items()}
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    if options.device == "cuda":
        machine["device"] = torch.cuda.get_device_name()
    result = {"machine": machine, "repetitions": options.repeat, "medians": medians}
    print(json.dumps(result | {"simulacra is so many times as fast": ratios}, indent=2))


if __name__ == "__main__":
    main()
