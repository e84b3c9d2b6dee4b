"""DINOv2 as published Fréchet distances use it, from a user's own copy of its weights.

The vision transformer of Oquab et al. (2023) with patches of 14 pixels, small, base or large; its width,
depth and patch are read off the tensors' shapes, heads are 64 wide. An image is seen as dgm-eval sees it
(Stein et al. 2023): grey as three equal channels, 8 bits a pixel, resized to 224 x 224 whatever its
proportions by Pillow's bicubic rule to 8 bits again, then standardised by ImageNet's mean and
deviation. The feature is the class token behind the last normalisation. Position embeddings come from
a checkpoint's grid (37 x 37) to that of 224 pixels (16 x 16) bicubically, by the published code's factor
(16 + 0.1) / 37; Hugging Face's port leaves the 0.1 out, which moves features a little.

The tensors have Hugging Face's names (``embeddings.cls_token``, …); those of the published code
(``blocks.0.attn.qkv.weight``, …) are translated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from simulacra.evaluation.networks import as_bytes
from simulacra.refusals import Refusal
from simulacra.spaces import Images

SIDE = 224
OFFSET = 0.1
HEAD = 64
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

CLASS, POSITIONS = "embeddings.cls_token", "embeddings.position_embeddings"
PATCHES = "embeddings.patch_embeddings.projection.weight"
PUBLISHED = "pos_embed"
LEFT_OUT = ("embeddings.mask_token", "mask_token")

_START = {
    "cls_token": CLASS,
    "pos_embed": POSITIONS,
    "patch_embed.proj.weight": PATCHES,
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_BLOCK = {
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}


@dataclass(frozen=True)
class Sizes:
    """What the shapes of the tensors say of the network."""

    width: int
    depth: int
    hidden: int
    patch: int
    grid: int

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Sizes:
        """The sizes of the network that these tensors, by Hugging Face's names, are the weights of.

        Raises:
            ValueError: naming the tensor that is missing or has an impossible shape.
        """
        if any(".mlp.weights_in." in name for name in state):
            raise ValueError("these are the giant's, whose SwiGLU is not built here")
        for name in (CLASS, POSITIONS, PATCHES, "encoder.layer.0.mlp.fc1.weight"):
            if name not in state:
                raise ValueError(f"{name} is missing")
        width = state[CLASS].shape[-1]
        layers = {
            int(one[1]) for name in state if (one := re.match(r"encoder\.layer\.(\d+)\.", name))
        }
        grid = math.isqrt(state[POSITIONS].shape[1] - 1)
        if grid < 1 or grid**2 + 1 != state[POSITIONS].shape[1]:
            raise ValueError(
                f"{POSITIONS} of shape {tuple(state[POSITIONS].shape)} is no square grid"
            )
        if width % HEAD:
            raise ValueError(f"its width {width} is no multiple of {HEAD}, which heads are wide")
        hidden = state["encoder.layer.0.mlp.fc1.weight"].shape[0]
        return cls(width, len(layers), hidden, state[PATCHES].shape[-1], grid)


def hugging_face_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by Hugging Face's names, in float32; those by the published code's are translated."""
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        block = re.match(r"blocks\.(\d+)\.(.+)", name)
        if block is None:
            named[_START.get(name, name)] = tensor
            continue
        layer, rest = f"encoder.layer.{block[1]}", block[2]
        if rest.startswith("attn.qkv."):
            ending = rest.removeprefix("attn.qkv.")
            for part, own in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                named[f"{layer}.attention.attention.{part}.{ending}"] = own
            continue
        for theirs, ours in _BLOCK.items():
            rest = rest.replace(theirs, ours)
        named[f"{layer}.{rest.replace('mlp.w12.', 'mlp.weights_in.')}"] = tensor
    return {name: one.float() for name, one in named.items() if name not in LEFT_OUT}


def positions(table: Tensor, grid: int, *, offset: float = OFFSET) -> Tensor:
    """Position embeddings, (1, 1 + g^2, d), of a grid of ``grid`` x ``grid`` patches."""
    own = math.isqrt(table.shape[1] - 1)
    if own == grid:
        return table
    square = table[:, 1:].unflatten(1, (own, own)).permute(0, 3, 1, 2)
    factor = (grid + offset) / own
    moved = functional.interpolate(square, scale_factor=(factor, factor), mode="bicubic")
    return torch.cat([table[:, :1], moved.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def resized(x: Tensor) -> Tensor:
    """Bytes (n, 3, H, W) to bytes (n, 3, 224, 224), by Pillow itself."""
    if x.shape[2:] == (SIDE, SIDE):
        return x
    # PyTorch's own bicubic kernels differ from Pillow's by up to seven levels.
    pictures = (Image.fromarray(one) for one in x.permute(0, 2, 3, 1).contiguous().numpy())
    moved = [np.asarray(one.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for one in pictures]
    return torch.from_numpy(np.stack(moved)).permute(0, 3, 1, 2)


class _Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.lambda1


class _Attention(nn.Module):
    """Softmax attention of heads 64 wide, over all tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        names = ("query", "key", "value")
        self.attention = nn.ModuleDict({name: nn.Linear(width, width) for name in names})
        self.output = nn.ModuleDict({"dense": nn.Linear(width, width)})

    def forward(self, x: Tensor) -> Tensor:
        heads = [
            part(x).unflatten(2, (-1, HEAD)).transpose(1, 2) for part in self.attention.values()
        ]
        mixed = functional.scaled_dot_product_attention(*heads)
        out: Tensor = self.output["dense"](mixed.transpose(1, 2).flatten(2))
        return out


class _Layer(nn.Module):
    """x + scale(attention(norm(x))), then x + scale(mlp(norm(x)))."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attention = _Attention(width)
        self.layer_scale1, self.layer_scale2 = _Scale(width), _Scale(width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer_scale1(self.attention(self.norm1(x)))
        inner = functional.gelu(self.mlp["fc1"](self.norm2(x)))
        out: Tensor = x + self.layer_scale2(self.mlp["fc2"](inner))
        return out


class _Encoder(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        layers = (_Layer(sizes.width, sizes.hidden) for _ in range(sizes.depth))
        self.layer = nn.Sequential(*layers)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.layer(tokens)
        return out


class _Embeddings(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, patch = sizes.width, sizes.patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + sizes.grid**2, width))
        self.patch_embeddings = nn.ModuleDict(
            {"projection": nn.Conv2d(3, width, patch, stride=patch)}
        )

    def forward(self, pixels: Tensor, offset: float) -> Tensor:
        patches = self.patch_embeddings["projection"](pixels)
        tokens = torch.cat(
            [self.cls_token.expand(len(pixels), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1
        )
        return tokens + positions(self.position_embeddings, patches.shape[-1], offset=offset)


class DINOv2(nn.Module):
    """Images of integers, (n, C, H, W), to (n, width); grey ones are seen as three equal channels.

    ``offset``: what the published code adds to the new grid's side; 0 is Hugging Face's.
    """

    at_once = 32

    def __init__(self, space: Images, sizes: Sizes, *, offset: float = OFFSET) -> None:
        super().__init__()
        if space.channels not in (1, 3):
            reason = f"DINOv2 sees images of 1 or 3 channels, and these are {space}"
            raise Refusal("DATA-060", reason, way_out="leave --features out")
        self.space, self.dimension, self.offset = space, sizes.width, offset
        self.embeddings = _Embeddings(sizes)
        self.encoder = _Encoder(sizes)
        self.layernorm = nn.LayerNorm(sizes.width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.class_token(self.pixels(x))

    def pixels(self, x: Tensor) -> Tensor:
        """Resized and standardised, shape (n, 3, 224, 224)."""
        shares = resized(as_bytes(x, self.space)).float() / 255
        mean, deviation = (torch.tensor(one)[:, None, None] for one in (MEAN, DEVIATION))
        return (shares - mean) / deviation

    def class_token(self, pixels: Tensor) -> Tensor:
        """The features of standardised pixels, shape (n, 3, side, side)."""
        tokens = self.encoder(self.embeddings(pixels, self.offset))
        out: Tensor = self.layernorm(tokens[:, 0])
        return out


def dinov2_of(state: Mapping[str, Tensor], space: Images) -> DINOv2:
    """The network with these weights, by either of the two namings.

    Raises:
        ValueError: saying what the tensors lack.
        RuntimeError: from PyTorch, naming tensors that are missing, left over, or of a wrong shape.
    """
    named = hugging_face_names(state)
    net = DINOv2(space, Sizes.of(named))
    net.load_state_dict(named, strict=True)
    return net.eval()
