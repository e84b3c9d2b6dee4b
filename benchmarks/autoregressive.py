"""Autoregressive models: drawing with what is kept, and training, against the plain ways.

    python benchmarks/autoregressive.py sampling nade made > benchmarks/results/nade-made-sampling.json
    python benchmarks/autoregressive.py training nade made > benchmarks/results/nade-made-training.json

``sampling``: 64 images of 28 x 28 with what a model keeps between dimensions, against the whole network
again for every dimension. Both draw with the same noise, and the images have to be identical.

``training``: images a second of our game, with its weight average, and of the same network written the
plain way: eager float32, autograd through the loop over dimensions (NADE) or masks worked out in every
pass (MADE), torch's DataLoader and AdamW. Both are timed in turns, and the best of each is told.

Times are those of the processor (of one thread: OMP_NUM_THREADS=1), as other work may run beside it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from simulacra import build
from simulacra.data.dataset import Part, Stream
from simulacra.games import Play
from simulacra.probability.noise import row_noise
from simulacra.spaces import Images

IMAGES, SPACE = 64, Images(1, 28, 28, levels=2)
Model = Any


@torch.no_grad()
def all_again(model: Model) -> Tensor:
    """The naive way to draw: the raw numbers of all dimensions again for every single one."""
    noise = row_noise(IMAGES, torch.Generator().manual_seed(0))
    noise.uniform()
    if hasattr(model, "network"):
        noise.uniform()  # which mask
    uniform = noise.uniform(SPACE.dimensions, 2)
    x = torch.zeros(IMAGES, *SPACE.shape)
    flat = x.view(IMAGES, -1)
    for place in range(SPACE.dimensions):
        one = torch.tensor(place)
        flat[:, place] = model.columns.draw(model.raw(x)[:, place], uniform[:, place], one)
    return x.to(SPACE.dtype)


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


@dataclass(frozen=True)
class Case:
    """Settings of a model of the shelf, and its plain twin."""

    settings: dict[str, Any]
    plain: Callable[[int], nn.Module]
    bf16: bool = False


CASES = {
    "nade": Case({"hidden": 500, "batch_size": 100}, PlainNADE),
    "made": Case({"hidden": 2000, "batch_size": 200}, PlainMADE, bf16=True),
}


def sampling(name: str) -> dict[str, Any]:
    """Seconds for 64 images both ways, and whether they are the same."""
    model = build(name, SPACE, settings=CASES[name].settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    times = []
    for _ in range(3):
        begun = time.process_time()
        kept = model.sample(IMAGES, generator=torch.Generator().manual_seed(0))
        times.append(time.process_time() - begun)
    begun = time.process_time()
    naive = all_again(model)
    naive_time = time.process_time() - begun
    return {
        "kept (s)": min(times),
        "all again (s)": naive_time,
        "times as fast": naive_time / min(times),
        "identical": bool(torch.equal(kept, naive)),
        "share of ones": float(kept.float().mean()),
    }


def ours(name: str, x: Tensor) -> Iterator[None]:
    """Rounds of our game."""
    case = CASES[name]
    model = build(name, SPACE, settings=case.settings)
    game = model.game()
    stream = Stream(Part(x, torch.arange(len(x)), SPACE, None), game.batch_size, seed=0)
    bf16 = case.bf16 and torch.backends.mkldnn.is_available()
    for _ in Play(model, game, bf16=bf16).rounds(stream, lambda clock: 0.5):
        yield


def plain(name: str, x: Tensor) -> Iterator[None]:
    """Steps of the plain twin."""
    case = CASES[name]
    model = case.plain(case.settings["hidden"])
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    loader = DataLoader(TensorDataset(x), case.settings["batch_size"], shuffle=True)
    while True:
        for (batch,) in loader:
            optimiser.zero_grad()
            target = batch.float()
            logits = model(target)
            loss = functional.binary_cross_entropy_with_logits(logits, target.flatten(1))
            loss.backward()
            optimiser.step()
            yield


def training(name: str) -> dict[str, Any]:
    """Images a second, ours and the plain twin's, by turns of a few rounds."""
    generator = torch.Generator().manual_seed(0)
    # The share of ones of MNIST.
    x = (torch.rand(10_000, *SPACE.shape, generator=generator) < 0.13).to(torch.uint8)
    steps = {"ours": ours(name, x), "plain": plain(name, x)}
    rounds = {"ours": 10, "plain": 10 if name == "made" else 2}
    best: dict[str, float] = {}
    for turn in range(6):
        for way, step in steps.items():
            begun = time.process_time()
            for _ in range(rounds[way]):
                next(step)
            speed = rounds[way] * CASES[name].settings["batch_size"] / (time.process_time() - begun)
            if turn:
                best[way] = max(best.get(way, 0.0), speed)
    return {
        "ours (images/s)": best["ours"],
        "plain (images/s)": best["plain"],
        "times as fast": best["ours"] / best["plain"],
    }


def main() -> None:
    """Measure the models named, and print one JSON object."""
    part, names = sys.argv[1], sys.argv[2:] or list(CASES)
    measure = {"sampling": sampling, "training": training}[part]
    told = {name: measure(name) for name in names}
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps({"machine": machine, "part": part, **told}, indent=2))


if __name__ == "__main__":
    main()
