"""Memory layouts: convolutions are faster when the channels of a pixel lie side by side."""

from __future__ import annotations

import torch
from torch import nn


def channels_last(module: nn.Module) -> None:
    """Lay the weights of all convolutions of ``module`` out channels last, in place."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
