"""Training steps of PixelCNN and gated PixelCNN, against the plain way of the tutorials.

    python benchmarks/pixelcnn_training.py > benchmarks/results/pixelcnn-training.json

The plain way: eager float32, channels first, a masked convolution that multiplies ``weight.data`` by its
mask in every forward pass and has the whole kernel, Adam, and a DataLoader that stacks images one by one.
Both sides have the same layers and widths, batches of 16 binarised 28 x 28 images, and one thread; they
take turns, and the figures are medians over the turns, in images per second of CPU time, so that other
work on the machine does not count.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from simulacra import build
from simulacra.data.dataset import Part, Stream
from simulacra.games import Play
from simulacra.spaces import Images

BATCH, STEPS, TURNS, HEAD = 16, 6, 5, 64
WIDTHS = {"plain": {"channels": 32, "blocks": 10}, "gated": {"channels": 32, "blocks": 7}}


class Masked(nn.Conv2d):
    """The tutorials' masked convolution."""

    def __init__(
        self, kind: Literal["A", "B"], inputs: int, outputs: int, size: int | tuple[int, int]
    ) -> None:
        size = (size, size) if isinstance(size, int) else size
        super().__init__(inputs, outputs, size, padding=(size[0] // 2, size[1] // 2))
        mask = torch.ones_like(self.weight)
        mask[:, :, size[0] // 2, size[1] // 2 + (kind == "B") :] = 0
        mask[:, :, size[0] // 2 + 1 :] = 0
        self.register_buffer("mask", mask)

    def forward(self, input: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super().forward(input)


class Block(nn.Module):
    """van den Oord et al. 2016a, fig. 5."""

    def __init__(self, h: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(),
            Masked("B", 2 * h, h, 1),
            nn.ReLU(),
            Masked("B", h, h, 3),
            nn.ReLU(),
            Masked("B", h, 2 * h, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Gated(nn.Module):
    """van den Oord et al. 2016b, fig. 2: the vertical kernel with its lower rows masked."""

    def __init__(self, inputs: int, h: int, size: int, kind: Literal["A", "B"]) -> None:
        super().__init__()
        self.first = kind == "A"
        self.vertical = Masked("B", inputs, 2 * h, size)
        self.vertical.mask[:, :, size // 2] = 1
        self.horizontal = Masked(kind, inputs, 2 * h, (1, size))
        self.link, self.leave = nn.Conv2d(2 * h, 2 * h, 1), nn.Conv2d(h, h, 1)

    def forward(self, both: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        vertical, x = both
        above = self.vertical(vertical)
        shifted = functional.pad(above, (0, 0, 1, 0))[:, :, :-1]
        y = self.leave(self.gate(self.horizontal(x) + self.link(shifted)))
        return self.gate(above), y if self.first else x + y

    @staticmethod
    def gate(x: Tensor) -> Tensor:
        signal, gate = x.chunk(2, dim=1)
        return torch.tanh(signal) * torch.sigmoid(gate)


class Tutorial(nn.Module):
    """One of the two forms, with a softmax over two levels."""

    def __init__(self, form: str) -> None:
        super().__init__()
        h, blocks, self.gated = WIDTHS[form]["channels"], WIDTHS[form]["blocks"], form == "gated"
        if self.gated:
            layers: list[nn.Module] = [Gated(1, h, 7, "A")]
            layers += [Gated(h, h, 3, "B") for _ in range(blocks)]
        else:
            layers = [Masked("A", 1, 2 * h, 7), *(Block(h) for _ in range(blocks))]
        self.layers = nn.Sequential(*layers)
        features = h if self.gated else 2 * h
        self.head = nn.Sequential(
            nn.ReLU(), Masked("B", features, HEAD, 1), nn.ReLU(), Masked("B", HEAD, 2, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        features = self.layers((x, x))[1] if self.gated else self.layers(x)
        logits: Tensor = self.head(features)
        return logits


def tutorial_steps(form: str, x: Tensor) -> Iterator[float]:
    """The plain way; each step gives its loss."""
    model = Tutorial(form)
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    while True:
        for (images,) in DataLoader(TensorDataset(x.float()), BATCH, shuffle=True):
            loss = functional.cross_entropy(model(2 * images - 1), images[:, 0].long())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            yield loss.item()


def our_steps(form: str, x: Tensor) -> Iterator[float]:
    """As a run trains: the loop with clipping, schedule, weight average and bf16 where it is faster."""
    space = Images(1, 28, 28, 2)
    settings = WIDTHS[form] | {"gated": form == "gated", "head": HEAD, "batch_size": BATCH}
    model = build("pixelcnn", space, settings=settings)
    source = Stream(Part(x, torch.arange(len(x)), space, None), BATCH, seed=0, conditional=False)
    game = model.game()
    for report in Play(model, game, bf16=game.bf16).rounds(source, lambda clock: 0.0):
        yield report.numbers["loss"]


def rate(steps: Iterator[float]) -> float:
    """Images per CPU second over ``STEPS`` steps."""
    begun = time.process_time()
    for _ in range(STEPS):
        next(steps)
    return STEPS * BATCH / (time.process_time() - begun)


def measured(form: str) -> dict[str, Any]:
    x = (torch.rand(640, 1, 28, 28, generator=torch.Generator().manual_seed(0)) < 0.2).byte()
    ours, plain = our_steps(form, x), tutorial_steps(form, x)
    for steps in (ours, plain):
        rate(steps)
    pairs = [(rate(ours), rate(plain)) for _ in range(TURNS)]
    first, second = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {
        "ours (images/s)": round(first, 1),
        "plain (images/s)": round(second, 1),
        "times as fast": round(first / second, 2),
        "each turn": [round(a / b, 2) for a, b in pairs],
    }


def main() -> None:
    """Print one JSON object."""
    torch.set_num_threads(1)
    told: dict[str, Any] = {"machine": {"threads": 1, "torch": torch.__version__, "batch": BATCH}}
    told |= {form: measured(form) for form in WIDTHS}
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
