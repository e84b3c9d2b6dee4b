"""64 images of 28 x 28 drawn with what is kept, against one full forward pass for every dimension.

    python benchmarks/sampling.py > benchmarks/results/sampling.json
    python benchmarks/sampling.py gated transformer --passes 784

One thread, seconds of CPU time, so that other work on the machine does not count. The plain way costs
as many passes as there are pixels, all alike: ``--passes`` of them are timed, spread over the image, and
multiplied. That both ways draw the same is checked for all pixels: a pass over the finished images gives
every pixel's distribution given those before it, and a draw from it with the same noise has to come out
as the pixel that stands there. (Where rounding moves a draw over the edge of a level, the two differ: the
share of equal pixels is told.)
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from simulacra import build
from simulacra.models.autoregressive.made import MADE
from simulacra.models.autoregressive.nade import NADE
from simulacra.models.autoregressive.pixelcnn import PixelCNN
from simulacra.models.autoregressive.pixelcnn_plus_plus import Mixture, PixelCNNPlusPlus
from simulacra.models.autoregressive.pixelrnn import PixelRNN
from simulacra.models.autoregressive.transformer import Transformer
from simulacra.probability.distributions import categorical_draw
from simulacra.probability.noise import RowNoise, row_noise
from simulacra.spaces import Images

IMAGES, SIDE = 64, 28
# The settings of the recipes.
MODELS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "pixelcnn": ("pixelcnn", 2, {"channels": 32, "blocks": 10, "head": 64}),
    "gated": ("pixelcnn", 2, {"gated": True, "channels": 32, "blocks": 7, "head": 64}),
    "pixelcnn-plus-plus": ("pixelcnn-plus-plus", 256, {"channels": 32, "scales": 3, "blocks": 4}),
    "row": ("pixelrnn", 2, {"scan": "row", "channels": 16, "layers": 7, "head": 32}),
    "diagonal": ("pixelrnn", 2, {"scan": "diagonal", "channels": 16, "layers": 7, "head": 32}),
    "nade": ("nade", 2, {"hidden": 500}),
    "made": ("made", 2, {"hidden": 2000}),
    "transformer": ("transformer", 2, {"width": 96, "layers": 4, "heads": 2}),
}


def redrawn_pixelcnn(model: PixelCNN, x: Tensor, noise: RowNoise) -> Tensor:
    uniform = noise.uniform(*model.space.shape)
    return categorical_draw(model.logits(x).movedim(1, -1), uniform)


def redrawn_pixelrnn(model: PixelRNN, x: Tensor, noise: RowNoise) -> Tensor:
    uniform = noise.uniform(*model.space.shape)
    return categorical_draw(model.logits(x).movedim(1, -1), uniform)


def redrawn_columns(model: NADE | MADE, x: Tensor, noise: RowNoise) -> Tensor:
    every = torch.arange(model.space.dimensions)
    if isinstance(model, MADE):
        noise.uniform()  # which mask
        every = model.network.orders[0]  # the noise is that of places, not of dimensions
    uniform = noise.uniform(model.space.dimensions, 2)[:, every.argsort()]
    return model.columns.draw(model.raw(x), uniform, every.sort().values).reshape(x.shape)


def redrawn_plus_plus(model: PixelCNNPlusPlus, x: Tensor, noise: RowNoise) -> Tensor:
    uniform = noise.uniform(*model.space.shape, 2).movedim(1, 3)
    all_pixels = model.mixture(x)
    parts = (all_pixels.logits, all_pixels.mean, all_pixels.log_scale, all_pixels.coupling)
    mixture = Mixture(*(part.flatten(0, 2) for part in parts))
    drawn = model.pixel(mixture, uniform.flatten(0, 2), None)
    return drawn.reshape(len(x), *model.space.shape[1:], -1).movedim(-1, 1)


def redrawn_transformer(model: Transformer, x: Tensor, noise: RowNoise) -> Tensor:
    uniform = noise.uniform(model.space.dimensions)
    return categorical_draw(model.logits(x.flatten(1)), uniform).reshape(x.shape)


REDRAWN: dict[type, Callable[[Any, Tensor, RowNoise], Tensor]] = {
    PixelCNN: redrawn_pixelcnn,
    PixelRNN: redrawn_pixelrnn,
    NADE: redrawn_columns,
    MADE: redrawn_columns,
    PixelCNNPlusPlus: redrawn_plus_plus,
    Transformer: redrawn_transformer,
}


def seconds(work: Callable[[], Any]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@torch.no_grad()
def measured(name: str, passes: int, repetitions: int) -> dict[str, Any]:
    """Both ways for one model, each timing the best of its repetitions."""
    shelf_name, levels, settings = MODELS[name]
    model = build(shelf_name, Images(1, SIDE, SIDE, levels), settings=settings).eval()
    for parameter in model.parameters():
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=seeded()))
    kept = min(
        seconds(lambda: model.sample(IMAGES, generator=seeded())) for _ in range(repetitions)
    )
    x = model.sample(IMAGES, generator=seeded())

    noise = row_noise(IMAGES, seeded())
    noise.uniform()
    same = REDRAWN[type(model)](model, x, noise).eq(x).float().mean()

    steps = torch.linspace(0, SIDE * SIDE - 1, passes).long().tolist()
    places = torch.arange(SIDE * SIDE).reshape(x.shape[1:])
    each = [seconds(partial(model.log_factors, x.masked_fill(places >= step, 0))) for step in steps]
    plain = sorted(each)[len(each) // 2] * SIDE * SIDE
    return {
        "kept (s)": round(kept, 3),
        "one pass a dimension (s)": round(plain, 1),
        "times as fast": round(plain / kept, 1),
        "passes timed": passes,
        "share of equal pixels": float(same),
        "levels drawn": len(x.unique()),
    }


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", choices=[*MODELS, []], default=[])
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=2)
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    told: dict[str, Any] = {
        "machine": {"threads": 1, "torch": torch.__version__, "time": "CPU seconds"},
        "images": IMAGES,
    }
    for name in wanted.models or MODELS:
        told[name] = measured(name, wanted.passes, wanted.repetitions)
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
