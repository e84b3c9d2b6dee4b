"""PixelCNN: 64 images of 28 x 28 with kept features, against one full forward pass for every pixel.

    python benchmarks/pixelcnn_sampling.py plain > benchmarks/results/pixelcnn-sampling.json

The forms are named: plain, gated. Both ways draw with the same noise, and the images have to be
identical.
"""

from __future__ import annotations

import json
import sys
import time

import torch

from simulacra import build
from simulacra.models.autoregressive.pixelcnn import PixelCNN
from simulacra.probability.distributions import categorical_draw
from simulacra.probability.noise import row_noise
from simulacra.spaces import Images

IMAGES = 64


@torch.no_grad()
def one_pass_a_pixel(model: PixelCNN, seed: int) -> torch.Tensor:
    """The plain way: the whole network again for every pixel."""
    noise = row_noise(IMAGES, torch.Generator().manual_seed(seed))
    noise.uniform()
    uniform = noise.uniform(*model.space.shape)
    x = torch.zeros(IMAGES, *model.space.shape, dtype=torch.long)
    for row in range(model.space.height):
        for column in range(model.space.width):
            logits = model.logits(x)[:, :, 0, row, column]
            x[:, 0, row, column] = categorical_draw(logits, uniform[:, 0, row, column])
    return x.to(model.space.dtype)


def main() -> None:
    """Time both forms of the model, and print one JSON object."""
    told = {}
    for gated in (name == "gated" for name in sys.argv[1:]):
        settings = {"gated": gated, "channels": 32, "blocks": 10 if not gated else 7, "head": 64}
        model = build("pixelcnn", Images(1, 28, 28, levels=2), settings=settings).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape))
        begun = time.perf_counter()
        fast = model.sample(IMAGES, generator=torch.Generator().manual_seed(0))
        middle = time.perf_counter()
        plain = one_pass_a_pixel(model, 0)
        end = time.perf_counter()
        told["gated" if gated else "plain"] = {
            "kept features (s)": middle - begun,
            "one pass a pixel (s)": end - middle,
            "times as fast": (end - middle) / (middle - begun),
            "identical": bool(torch.equal(fast, plain)),
            "share of ones": float(fast.float().mean()),
        }
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps({"machine": machine, "images": IMAGES, **told}, indent=2))


if __name__ == "__main__":
    main()
