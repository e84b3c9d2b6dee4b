"""What every comparison with a peer needs: data, a measurement, and what peers import."""

from __future__ import annotations

import resource
import sys
import types
from typing import Any

import torch
from torch import Tensor, nn

HELD_OUT, AT_ONCE = 2000, 500


def peak_mib() -> float:
    """The most memory that this process has had, MiB: of the GPU, where it has used one, with what is
    kept for later and what graphs keep for themselves."""
    if torch.cuda.is_available() and torch.cuda.max_memory_reserved():
        return torch.cuda.max_memory_reserved() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def told(
    images: int, seconds: float, model: nn.Module, metric: float, name: str, peak: float = 0.0
) -> dict[str, Any]:
    """One measurement; ``peak``: MiB, of all until now unless it was read before."""
    return {
        "images per second": images / seconds,
        "peak memory (MiB)": peak or peak_mib(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        name: metric,
    }


def mnist(side: int = 28) -> tuple[Tensor, Tensor]:
    """Training and test images in [0, 1], shape (n, 1, side, side), padded to larger sides."""
    from simulacra import open_data

    data = open_data("mnist")
    pad = (side - 28) // 2
    parts = [part.all().x.float() / 255 for part in (data.train, data.test)]
    padded = [nn.functional.pad(part, (pad, pad, pad, pad)) for part in parts]
    return padded[0], padded[1][:HELD_OUT]


def stand_in_for_torchvision() -> None:
    """The peers import torchvision, whose CPU build lacks two operators that are never called."""
    if not torch.cuda.is_available():
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        stand_in_for_torchvision.__dict__["kept"] = library


def stand_in_for_what_it_never_calls() -> None:
    """stylegan2-pytorch imports a logger and a quantiser that it uses when asked to."""
    for name in ("aim", "vector_quantize_pytorch"):
        module = types.ModuleType(name)
        module.__dict__["VectorQuantize"] = None
        sys.modules.setdefault(name, module)
