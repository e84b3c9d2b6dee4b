"""Elements as the numbers that an autoencoder reads and gives back, and the error between the two.

Pixels are numbers in [0, 1]; real columns are (x - shift) / scale; a category, or a token, is zeros and a
one; a number that may be missing has a second number beside it, which says that it is. Given back are a
logistic function of what the network says for pixels and for missing, a softmax for categories, and its
plain numbers for the rest; so the error of any space is one sum over numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.layers.heads import column_levels, missing_columns
from simulacra.spaces import Images, Space, Table

Error = Literal["squared", "absolute"]


class Rebuilding(nn.Module):
    """The door of an autoencoder: ``reads`` numbers a datum, ``owner`` (reads,) is whose each one is."""

    shift: Tensor
    scale: Tensor
    real: Tensor
    may_miss: Tensor
    kept: Tensor
    owner: Tensor

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.space = space
        images = isinstance(space, Images)
        levels = torch.tensor([1] * space.dimensions if images else column_levels(space))
        real, places = levels == 0, torch.arange(len(levels))
        missing = torch.zeros_like(real) if images else missing_columns(space)
        most = max(int(levels.max()), 1)
        kept = torch.arange(most) < levels[~real].unsqueeze(1)
        owners = [places[real], places[missing], places[~real].repeat_interleave(levels[~real])]
        owner = torch.cat(owners)
        buffers = {"real": real, "may_miss": missing[real], "kept": kept, "owner": owner}
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("shift", torch.zeros(int(real.sum())))
        self.register_buffer("scale", torch.ones(int(real.sum())))
        self.reads = len(owner)
        self.sizes = [len(one) for one in owners]

    def numbers(self, x: Tensor) -> Tensor:
        """Elements (n, *shape) as numbers (n, reads)."""
        flat = x.flatten(1)
        if isinstance(self.space, Images):
            return flat.to(self.shift.dtype) / (self.space.levels - 1)
        z = (flat[:, self.real].to(self.shift.dtype) - self.shift) / self.scale
        ones = functional.one_hot(flat[:, ~self.real].long(), self.kept.shape[1])[:, self.kept]
        return torch.cat([z.nan_to_num(), z.isnan().to(z)[:, self.may_miss], ones.to(z)], dim=1)

    def rebuilt(self, raw: Tensor) -> Tensor:
        """What a network says, (n, reads), as numbers (n, reads)."""
        raw = raw.to(self.shift.dtype)
        if isinstance(self.space, Images):
            return torch.sigmoid(raw)
        plain, missing, category = raw.split(self.sizes, dim=1)
        logits = raw.new_full((len(raw), *self.kept.shape), -torch.inf)
        logits[:, self.kept] = category
        chances = torch.softmax(logits, dim=2)[:, self.kept] if len(self.kept) else category
        return torch.cat([plain, torch.sigmoid(missing), chances], dim=1)

    def errors(self, numbers: Tensor, rebuilt: Tensor, error: Error) -> Tensor:
        """The error of each datum, summed over its numbers, shape (n,); what is missing has no value
        that could be missed."""
        each = rebuilt - numbers
        if self.sizes[1]:
            gone = numbers[:, self.sizes[0] : self.sizes[0] + self.sizes[1]].bool()
            known = torch.ones_like(numbers)
            known[:, : self.sizes[0]][:, self.may_miss] = (~gone).to(numbers)
            each = each * known
        return (each.square() if error == "squared" else each.abs()).sum(1)

    def elements(self, rebuilt: Tensor) -> Tensor:
        """The elements nearest to numbers (n, reads)."""
        space = self.space
        if isinstance(space, Images):
            levels = (rebuilt * (space.levels - 1)).round().clamp(0, space.levels - 1)
            return levels.to(space.dtype).reshape(-1, *space.shape)
        z, missing, category = rebuilt.split(self.sizes, dim=1)
        x = rebuilt.new_zeros(len(rebuilt), len(self.real))
        values = z * self.scale + self.shift
        values[:, self.may_miss] = values[:, self.may_miss].masked_fill(missing > 0.5, torch.nan)
        x[:, self.real] = values
        if len(self.kept):
            chances = rebuilt.new_full((len(rebuilt), *self.kept.shape), -1.0)
            chances[:, self.kept] = category
            x[:, ~self.real] = chances.argmax(2).to(x)
        return x.to(space.dtype).reshape(-1, *space.shape)

    def fit(self, rows: Iterator[Tensor]) -> None:
        """Shift and scale of real columns, of what is not missing, from batches of elements.

        Entries of a vector share their unit, and so their scale; the columns of a table do not.
        """
        total, square, count = torch.zeros(()), torch.zeros(()), torch.zeros(())
        for x in rows:
            z = x.flatten(1)[:, self.real].double()
            count, z = count + (~z.isnan()).sum(0), z.nan_to_num()
            total, square = total + z.sum(0), square + z.square().sum(0)
        count = count.clamp(min=1)
        mean = total / count
        variance = (square / count - mean.square()).clamp(min=1e-12)
        if not isinstance(self.space, Table):
            variance = variance.mean().expand_as(variance)
        self.shift.copy_(mean)
        self.scale.copy_(variance.sqrt())
