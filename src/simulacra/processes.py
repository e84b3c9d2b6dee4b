"""Several processes that train one model: who they are, and what they know together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_reduce


def world_and_rank() -> tuple[int, int]:
    """How many processes train together, and which one this is."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size(), dist.get_rank()
    return 1, 0


def mean_over_processes(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over all processes, in one exchange."""
    world, _ = world_and_rank()
    if world == 1 or not tensors:
        return
    flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])
    dist.all_reduce(flat)
    offset = 0
    for tensor in tensors:
        part = flat[offset : offset + tensor.numel()]
        tensor.copy_((part / world).reshape(tensor.shape))
        offset += tensor.numel()


def of_all_processes(x: Tensor, dim: int) -> Tensor:
    """The parts of a batch that all processes hold, one after the other along ``dim``.

    Gradients pass through: where every process lowers the same loss of the whole, the mean of their
    gradients is the loss's.
    """
    world, rank = world_and_rank()
    if world == 1:
        return x
    mine = [x if other == rank else torch.zeros_like(x) for other in range(world)]
    whole: Tensor = all_reduce(torch.cat(mine, dim))
    return whole


def shared_mean(x: Tensor) -> Tensor:
    """The mean of what all processes hold; gradients pass through, as of ``of_all_processes``."""
    world, _ = world_and_rank()
    if world == 1:
        return x
    whole: Tensor = all_reduce(x)
    return whole / world


def own_rows(x: Tensor, rows: int) -> Tensor:
    """Of rows of all processes, as ``of_all_processes`` joins them, the ``rows`` of this one."""
    _, rank = world_and_rank()
    return x[rank * rows : (rank + 1) * rows]
