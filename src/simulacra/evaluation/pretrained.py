"""Pretrained eyes from a user's own copy of their weights: Inception-v3 as published Fréchet distances
use it, and DINOv2 (``dinov2.py``); which one a file holds is told by its tensors' names.

Inception is the network of the 2015 TensorFlow graph that TTUR, pytorch-fid and torch-fidelity share:
pooling does not count its padding, one maximum where later versions average, 299 x 299 pixels resized as
TensorFlow 1 did, values (x - 128) / 128; the 2,048 numbers of the last pooling are the features (Szegedy
et al. 2016; Heusel et al. 2017). Weights are a safetensors file, Inception's with torch-fidelity's names
(``Mixed_5b.branch1x1.conv.weight``, …); nothing is downloaded, and no pickle is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.evaluation import dinov2
from simulacra.evaluation.dinov2 import DINOv2
from simulacra.evaluation.networks import as_bytes
from simulacra.refusals import Refusal, shown
from simulacra.spaces import Images

SIDE = 299
DIMENSION = 2048
LEFT_OUT = ("fc.", "AuxLogits.")
INCEPTION = "Conv2d_1a_3x3.conv.weight"
CONVERT = "convert a whole state_dict with safetensors.torch.save_file(state_dict, path)"


class _Convolution(nn.Module):
    """Convolution without bias, normalisation, ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


def _averaged(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class _A(nn.Module):
    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Convolution(inputs, 64, 1)
        self.branch5x5_1 = _Convolution(inputs, 48, 1)
        self.branch5x5_2 = _Convolution(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = _Convolution(inputs, 64, 1)
        self.branch3x3dbl_2 = _Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Convolution(96, 96, 3, padding=1)
        self.branch_pool = _Convolution(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(_averaged(x))], 1)


class _B(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = _Convolution(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1 = _Convolution(inputs, 64, 1)
        self.branch3x3dbl_2 = _Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Convolution(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, functional.max_pool2d(x, 3, stride=2)], 1)


class _C(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        wide, tall = {"size": (1, 7), "padding": (0, 3)}, {"size": (7, 1), "padding": (3, 0)}
        self.branch1x1 = _Convolution(inputs, 192, 1)
        self.branch7x7_1 = _Convolution(inputs, width, 1)
        self.branch7x7_2 = _Convolution(width, width, **wide)  # type: ignore[arg-type]
        self.branch7x7_3 = _Convolution(width, 192, **tall)  # type: ignore[arg-type]
        self.branch7x7dbl_1 = _Convolution(inputs, width, 1)
        self.branch7x7dbl_2 = _Convolution(width, width, **tall)  # type: ignore[arg-type]
        self.branch7x7dbl_3 = _Convolution(width, width, **wide)  # type: ignore[arg-type]
        self.branch7x7dbl_4 = _Convolution(width, width, **tall)  # type: ignore[arg-type]
        self.branch7x7dbl_5 = _Convolution(width, 192, **wide)  # type: ignore[arg-type]
        self.branch_pool = _Convolution(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_averaged(x))], 1)


class _D(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3_1 = _Convolution(inputs, 192, 1)
        self.branch3x3_2 = _Convolution(192, 320, 3, stride=2)
        self.branch7x7x3_1 = _Convolution(inputs, 192, 1)
        self.branch7x7x3_2 = _Convolution(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = _Convolution(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = _Convolution(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        seven = self.branch7x7x3_4(seven)
        return torch.cat([three, seven, functional.max_pool2d(x, 3, stride=2)], 1)


class _E(nn.Module):
    def __init__(self, inputs: int, *, largest: bool) -> None:
        super().__init__()
        self.largest = largest
        self.branch1x1 = _Convolution(inputs, 320, 1)
        self.branch3x3_1 = _Convolution(inputs, 384, 1)
        self.branch3x3_2a = _Convolution(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = _Convolution(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = _Convolution(inputs, 448, 1)
        self.branch3x3dbl_2 = _Convolution(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _Convolution(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = _Convolution(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = _Convolution(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        # The last block of the 2015 graph takes the maximum; it was never mended.
        pooled = functional.max_pool2d(x, 3, stride=1, padding=1) if self.largest else _averaged(x)
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch3x3_2a(three),
                self.branch3x3_2b(three),
                self.branch3x3dbl_3a(double),
                self.branch3x3dbl_3b(double),
                self.branch_pool(pooled),
            ],
            1,
        )


class Inception(nn.Module):
    """Images of integers, (n, C, H, W), to (n, 2048); grey ones are seen as three equal channels."""

    dimension = DIMENSION
    at_once = 50

    def __init__(self, space: Images) -> None:
        super().__init__()
        if space.channels not in (1, 3):
            reason = f"Inception sees images of 1 or 3 channels, and these are {space}"
            raise Refusal("DATA-060", reason, way_out="leave --features out")
        self.space = space
        self.Conv2d_1a_3x3 = _Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _A(192, 32), _A(256, 64), _A(288, 64)
        self.Mixed_6a = _B(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d = _C(768, 128), _C(768, 160), _C(768, 160)
        self.Mixed_6e = _C(768, 192)
        self.Mixed_7a = _D(768)
        self.Mixed_7b, self.Mixed_7c = _E(1280, largest=False), _E(2048, largest=True)

    def forward(self, x: Tensor) -> Tensor:
        x = (as_in_tensorflow(as_bytes(x, self.space).float(), SIDE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = functional.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = functional.max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean((2, 3))


def as_in_tensorflow(x: Tensor, side: int) -> Tensor:
    """Bilinear resizing as TensorFlow 1 had it, without half-pixel centres or smoothing."""
    height, width = x.shape[2:]

    def places(length: int) -> tuple[Tensor, Tensor, Tensor]:
        where = torch.arange(side, dtype=torch.float32) * (length / side)
        first = where.floor().long()
        return first, (first + 1).clamp(max=length - 1), where - first

    top, bottom, down = places(height)
    left, right, along = places(width)
    rows = x[:, :, top] * (1 - down[:, None]) + x[:, :, bottom] * down[:, None]
    return rows[..., left] * (1 - along) + rows[..., right] * along


def open_pretrained(path: Path, space: Images) -> Inception | DINOv2:
    """The network with the weights in ``path``; anything but exactly its tensors is refused."""
    if not path.is_file():
        reason = f"{shown(path)} is not there"
        raise Refusal("FILE-061", reason, way_out="give the path of a .safetensors file")
    state: Mapping[str, Tensor] = {}
    try:
        state = safetensors.torch.load_file(path)
        if INCEPTION in state:
            return inception_of(state, space)
        if dinov2.CLASS in state or dinov2.PUBLISHED in state:
            return dinov2.dinov2_of(state, space)
    except (safetensors.SafetensorError, RuntimeError, ValueError) as error:
        whose = "Inception's" if INCEPTION in state else "DINOv2's" if state else "any"
        first = str(error).strip().splitlines()[-1].strip()[:120]
        reason = f"{shown(path)} does not hold {whose} weights, whole ({first})"
        raise Refusal("FILE-062", reason, way_out=CONVERT) from error
    raise Refusal(
        "FILE-062",
        f"{shown(path)} holds neither Inception's weights with torch-fidelity's names ({INCEPTION}, …) "
        f"nor DINOv2's ({dinov2.CLASS} or {dinov2.PUBLISHED}, …)",
        way_out=CONVERT,
    )


def inception_of(state: Mapping[str, Tensor], space: Images) -> Inception:
    """Inception with these weights; its classifier's are left out."""
    net = Inception(space)
    net.load_state_dict({k: v for k, v in state.items() if not k.startswith(LEFT_OUT)}, strict=True)
    return net.eval()
