"""Autoencoders' training steps: ours, and pythae's as users run it and at its best."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peer_runs import AT_ONCE, HELD_OUT, mnist, stand_in_for_torchvision, told

VAE = {"latent": 16, "hidden": 512, "batch": 128, "epochs": 10}
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
