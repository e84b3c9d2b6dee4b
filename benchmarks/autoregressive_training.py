"""Training steps of autoregressive models against the same networks written the plain way.

    python benchmarks/autoregressive_training.py > benchmarks/results/autoregressive-training.json
    python benchmarks/autoregressive_training.py nade made

Ours: rounds of the game with clipping, schedule, weight average, and bf16 where it is faster. The plain
way: eager float32, channels first, torch's DataLoader and Adam, autograd through the loop over dimensions
(NADE), masks multiplied in every pass (MADE, PixelCNN). Both have the same layers, widths and batches of
binarised 28 x 28 images; they take turns, and the figures are medians over the turns, in images a
second of CPU time on one thread, as other work may run beside it.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from simulacra import build
from simulacra.data.dataset import Part, Stream
from simulacra.play import Play
from simulacra.spaces import Images

SPACE = Images(1, 28, 28, levels=2)
TURNS, HEAD = 5, 64
WIDTHS = {"plain": {"channels": 32, "blocks": 10}, "gated": {"channels": 32, "blocks": 7}}


class PlainNADE(nn.Module):
    """The tutorial's NADE."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        size = SPACE.dimensions
        self.read = nn.Parameter(0.03 * torch.randn(size, hidden))
        self.write = nn.Parameter(0.03 * torch.randn(size, hidden))
        self.bias = nn.Parameter(torch.zeros(size))
        self.start = nn.Parameter(torch.zeros(hidden))

    def forward(self, x: Tensor) -> Tensor:
        running, logits = self.start.expand(len(x), -1), []
        for place, value in enumerate(x.flatten(1).unbind(1)):
            logits.append(torch.sigmoid(running) @ self.write[place] + self.bias[place])
            running = running + value.unsqueeze(1) * self.read[place]
        return torch.stack(logits, 1)


class PlainMADE(nn.Module):
    """The tutorial's MADE with one hidden layer and direct connections."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        size = SPACE.dimensions
        self.enter, self.leave = nn.Linear(size, hidden), nn.Linear(hidden, size)
        self.direct = nn.Linear(size, size, bias=False)
        self.degrees = torch.randint(size - 1, (hidden,))

    def forward(self, x: Tensor) -> Tensor:
        place = torch.arange(SPACE.dimensions)
        x = x.flatten(1)
        enter = self.enter.weight * (self.degrees[:, None] >= place).float()
        leave = self.leave.weight * (place[:, None] > self.degrees).float()
        direct = self.direct.weight * (place[:, None] > place).float()
        hidden = functional.relu(functional.linear(x, enter, self.enter.bias))
        return functional.linear(hidden, leave, self.leave.bias) + functional.linear(x, direct)


class Masked(nn.Conv2d):
    """The tutorials' masked convolution."""

    mask: Tensor

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
        features: Tensor = self.body(x)
        return x + features


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


@dataclass(frozen=True)
class Case:
    """Settings of a model of the shelf, its plain twin, and how many steps of each are a turn."""

    model: str
    settings: dict[str, int]
    plain: Callable[[], nn.Module]
    steps: int = 6


CASES = {
    "nade": Case("nade", {"hidden": 500, "batch_size": 100}, lambda: PlainNADE(500), 2),
    "made": Case("made", {"hidden": 2000, "batch_size": 200}, lambda: PlainMADE(2000), 10),
    "pixelcnn": Case(
        "pixelcnn",
        WIDTHS["plain"] | {"head": HEAD, "batch_size": 16},
        lambda: Tutorial("plain"),
    ),
    "gated": Case(
        "pixelcnn",
        WIDTHS["gated"] | {"gated": True, "head": HEAD, "batch_size": 16},
        lambda: Tutorial("gated"),
    ),
}


def our_steps(case: Case, x: Tensor) -> Iterator[None]:
    model = build(case.model, SPACE, settings=case.settings)
    game = model.game()
    stream = Stream(Part(x, torch.arange(len(x)), SPACE, None), game.batch_size, seed=0)
    for _ in Play(model, game, bf16=game.bf16).rounds(stream, lambda clock: 0.5):
        yield


def plain_steps(case: Case, x: Tensor) -> Iterator[None]:
    model = case.plain()
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    loader = DataLoader(TensorDataset(x), case.settings["batch_size"], shuffle=True)
    while True:
        for (batch,) in loader:
            images = batch.float()
            logits = model(images)
            if logits.ndim == 4:
                loss = functional.cross_entropy(logits, batch[:, 0].long())
            else:
                loss = functional.binary_cross_entropy_with_logits(logits, images.flatten(1))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            loss.item()
            yield


def rate(case: Case, steps: Iterator[None]) -> float:
    """Images per CPU second over a turn."""
    begun = time.process_time()
    for _ in range(case.steps):
        next(steps)
    return case.steps * case.settings["batch_size"] / (time.process_time() - begun)


def measured(name: str) -> dict[str, Any]:
    """Images a second, ours and the plain twin's, by turns."""
    case, generator = CASES[name], torch.Generator().manual_seed(0)
    # The share of ones of MNIST.
    x = (torch.rand(10_000, *SPACE.shape, generator=generator) < 0.13).to(torch.uint8)
    ours, plain = our_steps(case, x), plain_steps(case, x)
    for steps in (ours, plain):
        rate(case, steps)
    pairs = [(rate(case, ours), rate(case, plain)) for _ in range(TURNS)]
    first, second = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {
        "ours (images/s)": round(first, 1),
        "plain (images/s)": round(second, 1),
        "times as fast": round(first / second, 2),
        "each turn": [round(a / b, 2) for a, b in pairs],
    }


def main() -> None:
    """Measure the models named, or all, and print one JSON object."""
    torch.set_num_threads(1)
    told: dict[str, Any] = {"machine": {"threads": 1, "torch": torch.__version__}}
    told |= {name: measured(name) for name in sys.argv[1:] or CASES}
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
