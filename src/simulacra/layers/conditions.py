"""What a network is told beside x: a class, attributes, a caption or an image.

A condition enters as numbers that are all zero where nothing is told, which is what guidance without a
classifier leaves out (Ho & Salimans 2022): a class as zeros and a one; a row of a table as its columns,
categories as zeros and a one, numbers standardised, one for each number that is missing, and a one; a
caption as zeros and a one for each character; an image in [-1, 1], and a channel of ones.

Inside a network a class and attributes are a linear layer beside the noise level's, and what convolutions
and attention read of a caption's characters stands in its place (after Reed et al. 2016, sec. 4, and
Nichol et al. 2022, sec. 4). An image stands beside x, as more channels (Saharia et al. 2022b, sec. 2).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.layers.attention import AttentionLayer, attended, heads_of
from simulacra.layers.front_door import UNTOLD, as_device, centred, drawn_labels, one_hot_labels
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels, Space, Table, Tokens

CONDITIONS = (Labels, Table, Tokens, Images)
"""What conditions may be."""


class ConditionDoor(nn.Module):
    """Conditions (n, *shape) as numbers (n, ...), and None where the model is told nothing."""

    shift: Tensor
    scale: Tensor

    def __init__(self, space: Space | None) -> None:
        super().__init__()
        self.space = space
        if isinstance(space, Table):
            self.register_buffer("shift", torch.zeros(len(space.columns)))
            self.register_buffer("scale", torch.ones(len(space.columns)))

    def forward(self, condition: Tensor | None, rows: int) -> Tensor | None:
        """Zeros and ones of classes, and so on; every row has to have its condition."""
        space = self.space
        if space is None:
            return None
        if isinstance(space, Labels):
            return one_hot_labels(condition, space, rows)
        condition = _required(condition, space, rows)
        if isinstance(space, Tokens):
            told = torch.zeros(*condition.shape, space.vocabulary, device=condition.device)
            return told.scatter_(2, condition.long().unsqueeze(2), 1.0)
        if isinstance(space, Images):
            return functional.pad(centred(condition, space.levels), (0, 0, 0, 0, 0, 1), value=1.0)
        assert isinstance(space, Table)
        return self._attributes(as_device(condition, self), space)

    def drawn(self, condition: Tensor | None, uniform: Tensor) -> Tensor | None:
        """The given conditions; of classes one for each uniform number, where none are given."""
        if self.space is None or isinstance(self.space, Labels):
            return drawn_labels(condition, self.space, uniform)
        return _required(condition, self.space, len(uniform))

    def _attributes(self, x: Tensor, space: Table) -> Tensor:
        parts = [x.new_ones(len(x), 1)]
        numbers = (x - self.shift) / self.scale
        for index, column in enumerate(space.columns):
            if column.kind == "category":
                parts.append(functional.one_hot(x[:, index].long(), len(column.categories)).to(x))
            else:
                parts.append(numbers[:, index : index + 1].nan_to_num())
            if column.missing:
                parts.append(x[:, index : index + 1].isnan().to(x))
        return torch.cat(parts, dim=1)

    @property
    def learns(self) -> bool:
        """Whether numbers stand among the attributes, whose spread has to be known."""
        table = self.space if isinstance(self.space, Table) else Table(())
        return any(column.kind == "real" for column in table.columns)

    @torch.no_grad()
    def fit(self, conditions: Tensor) -> None:
        """Mean and deviation of every number among the attributes (n, columns)."""
        assert isinstance(self.space, Table)
        rows = conditions.double()
        there = ~rows.isnan()
        count = there.sum(0).clamp(min=1)
        mean = rows.nan_to_num().sum(0) / count
        deviation = (torch.where(there, rows - mean, 0.0).square().sum(0) / count).sqrt()
        for index, column in enumerate(self.space.columns):
            # Categories are no numbers, and a number that is always the same has no deviation.
            if column.kind == "real" and deviation[index] > 1e-6 * (1 + mean[index].abs()):
                self.shift[index], self.scale[index] = mean[index], deviation[index]


def _required(condition: Tensor | None, space: Space, rows: int) -> Tensor:
    """The conditions, if there is one for each row."""
    if condition is None:
        reason = f"the model goes by {space}, and was given none"
        raise Refusal("CFG-237", reason, way_out=UNTOLD)
    if len(condition) != rows:
        raise ValueError(f"{rows} rows need {rows} conditions, got {len(condition)}")
    return condition


def numbers_of(space: Space) -> int:
    """How many numbers a row of attributes or a class becomes."""
    if isinstance(space, Labels):
        return space.count
    assert isinstance(space, Table)
    each = (
        (len(column.categories) if column.kind == "category" else 1) + column.missing
        for column in space.columns
    )
    return 1 + sum(each)


def channels_beside(space: Space | None) -> int:
    """How many channels stand beside those of x."""
    return space.channels + 1 if isinstance(space, Images) else 0


def with_beside(x: Tensor, told: Tensor | None, channels: int) -> Tensor:
    """x (n, C, H, W) with an image that it goes with as ``channels`` more; zeros where there is none."""
    if not channels:
        return x
    if told is None:
        return functional.pad(x, (0, 0, 0, 0, 0, channels))
    told = functional.interpolate(told.to(x.dtype), size=x.shape[2:], mode="bilinear")
    return torch.cat([x, told], dim=1)


def condition_reader(space: Space | None, width: int) -> nn.Module | None:
    """From a condition's numbers to (n, width), zeros to zeros; None where nothing is read so."""
    if space is None or isinstance(space, Images):
        return None
    if isinstance(space, Tokens):
        return CaptionReader(space, width)
    return nn.Linear(numbers_of(space), width, bias=False)


class CaptionReader(nn.Module):
    """Captions (n, length, vocabulary) as one vector each, (n, width); of no caption zeros.

    Convolutions make pieces of words of characters, a quarter as many, and each piece keeps its place in
    the layer that ends them: a mean over places would hardly differ from caption to caption at first.
    """

    def __init__(self, space: Tokens, width: int) -> None:
        super().__init__()
        self.enter = nn.Conv1d(space.vocabulary, width, 5, stride=2, padding=2)
        self.shorten = nn.Conv1d(width, width, 5, stride=2, padding=2)
        pieces = -(-space.length // 4)
        self.places = nn.Parameter(0.02 * torch.randn(pieces, width))
        self.layer = AttentionLayer(width, heads_of(width), 1, 0.0)
        self.norm, self.leave = nn.LayerNorm(width), nn.Linear(pieces * width, width)

    def forward(self, told: Tensor) -> Tensor:
        h = functional.gelu(self.enter(told.transpose(1, 2)))
        h = functional.gelu(self.shorten(h)).transpose(1, 2) + self.places
        h = self.norm(self.layer(h, attended))
        out: Tensor = self.leave(h.flatten(1))
        return out * told.flatten(1).amax(1, keepdim=True).to(out)


def require_readable(space: Space | None, data: Space) -> None:
    """Refuse an image as the condition of data that it cannot stand beside."""
    if isinstance(space, Images) and not isinstance(data, Images):
        reason = f"an image stands beside the pixels of another, and the data are {data}"
        raise Refusal("CFG-238", reason, way_out="condition on labels, attributes or captions")
