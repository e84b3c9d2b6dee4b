"""PixelRNN: 64 images of 28 x 28 with kept states, against one full forward pass for every pixel.

    python benchmarks/pixelrnn_sampling.py 28 row diagonal > benchmarks/results/pixelrnn-sampling.json

The first argument says how many rows the plain way draws: a pass costs the same for every pixel, so
that its time for a part of an image gives that for a whole one. The scans are named: row, diagonal.
Both ways draw with the same noise, and the rows have to be identical. Times are of the processor.
"""

from __future__ import annotations

import json
import sys
import time

import torch

from simulacra import build
from simulacra.models.autoregressive.pixelrnn import PixelRNN
from simulacra.probability.distributions import categorical_draw
from simulacra.probability.noise import row_noise
from simulacra.spaces import Images

IMAGES = 64


@torch.no_grad()
def one_pass_a_pixel(model: PixelRNN, seed: int, rows: int) -> torch.Tensor:
    """The plain way: the whole network again for every pixel of the first rows."""
    noise = row_noise(IMAGES, torch.Generator().manual_seed(seed))
    noise.uniform()
    uniform = noise.uniform(*model.space.shape)
    x = torch.zeros(IMAGES, *model.space.shape, dtype=torch.long)
    for row in range(rows):
        for column in range(model.space.width):
            logits = model.logits(x)[:, :, 0, row, column]
            x[:, 0, row, column] = categorical_draw(logits, uniform[:, 0, row, column])
    return x.to(model.space.dtype)


def main() -> None:
    """Time both scans, and print one JSON object."""
    rows, told = int(sys.argv[1]), {}
    for scan in sys.argv[2:]:
        settings = {"scan": scan, "channels": 16, "layers": 7, "head": 32}
        model = build("pixelrnn", Images(1, 28, 28, levels=2), settings=settings).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape))
        begun = time.process_time()
        fast = model.sample(IMAGES, generator=torch.Generator().manual_seed(0))
        middle = time.process_time()
        plain = one_pass_a_pixel(model, 0, rows)
        full = (time.process_time() - middle) * model.space.height / rows
        told[scan] = {
            "kept states (s)": middle - begun,
            "one pass a pixel (s)": full,
            "times as fast": full / (middle - begun),
            "rows drawn by both": rows,
            "identical": bool(torch.equal(fast[:, :, :rows], plain[:, :, :rows])),
            "share of ones": float(fast.float().mean()),
        }
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps({"machine": machine, "images": IMAGES, **told}, indent=2))


if __name__ == "__main__":
    main()
