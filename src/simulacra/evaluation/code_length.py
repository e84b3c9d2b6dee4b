"""The length of a lossless code of one element: how simple it is, whatever any model thinks of it."""

from __future__ import annotations

import io
import math
import zlib
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from simulacra.spaces import Images


def code_length(x: Tensor, space: Any) -> float:
    """Nats of a lossless code of one element."""
    content = x.numpy().tobytes()
    if isinstance(space, Images) and space.levels <= 256:
        content = x.to(torch.uint8).numpy().tobytes()
    sizes = [len(zlib.compress(content, 9))]
    if isinstance(space, Images) and space.channels in (1, 3) and space.levels <= 256:
        pixels = x.to(torch.uint8).permute(1, 2, 0).squeeze(-1).numpy()
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png", optimize=True)
        sizes.append(len(file.getvalue()) - PNG_FRAME)
    return min(sizes) * 8 * math.log(2)


PNG_FRAME = 57
"""Bytes of a PNG file that do not depend on its pixels."""
