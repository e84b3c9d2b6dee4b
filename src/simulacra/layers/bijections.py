"""Invertible maps that know their log-determinant, and chains of them.

``forward`` gives y = f(x) and log |det df/dx| of every row, shape (n,); ``inverse`` gives x back. An
actnorm (Kingma & Dhariwal 2018, sec. 3.1) scales and shifts every channel, and starts with what
brings the first data to mean 0 and deviation 1. A linear map of the channels (sec. 3.2, eq. 10),

    W = P L (U + diag(s)),      log |det W| = sum log |s|,

has a fixed permutation P, unit triangles L and U, and s whose signs are fixed, so that it never stops
being invertible; it starts as a random rotation. On images it is the invertible 1x1 convolution.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Bijection(nn.Module, ABC):
    """An invertible map of rows; ``given`` is what it is conditioned on, one row for each."""

    @abstractmethod
    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """f(x), and log |det df/dx| of every row, shape (n,)."""

    @abstractmethod
    def inverse(self, y: Tensor, given: Tensor | None = None) -> Tensor:
        """The x that ``forward`` takes to y."""


class Chain(Bijection):
    """One bijection after the other."""

    def __init__(self, steps: Sequence[Bijection]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(len(x))
        for step in self.steps:
            x, more = step(x, given)
            log_det = log_det + more
        return x, log_det

    def inverse(self, y: Tensor, given: Tensor | None = None) -> Tensor:
        for step in reversed(self.steps):
            assert isinstance(step, Bijection)
            y = step.inverse(y, given)
        return y


class Flatten(Bijection):
    """(n, *shape) to (n, D)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.flatten(1), x.new_zeros(len(x))

    def inverse(self, y: Tensor, given: Tensor | None = None) -> Tensor:
        return y.reshape(len(y), *self.shape)


class ActNorm(Bijection):
    """y = exp(s) x + b for every channel (dimension 1); see ``starting``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))
        self.starts = False

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.starts:
            self._start(x)
        along = (-1, *[1] * (x.ndim - 2))
        y = torch.addcmul(self.shift.view(along), x, self.log_scale.exp().view(along))
        cells = x[0, 0].numel() if len(x) else 1
        return y, (cells * self.log_scale.sum()).expand(len(x))

    def inverse(self, y: Tensor, given: Tensor | None = None) -> Tensor:
        along = (-1, *[1] * (y.ndim - 2))
        return (y - self.shift.view(along)) * torch.exp(-self.log_scale).view(along)

    @torch.no_grad()
    def _start(self, x: Tensor) -> None:
        seen = x.detach().transpose(0, 1).flatten(1).double()
        mean, deviation = seen.mean(1), seen.std(1, correction=0)
        # A channel that never changes has no deviation to divide by.
        deviation = torch.where(deviation > 1e-6, deviation, 1.0)
        self.log_scale.copy_(-deviation.log())
        self.shift.copy_(-mean / deviation)


@contextmanager
def starting(module: nn.Module) -> Iterator[None]:
    """Inside, every actnorm of ``module`` that data pass takes its scale and shift from them."""
    norms = [one for one in module.modules() if isinstance(one, ActNorm)]
    for norm in norms:
        norm.starts = True
    try:
        yield
    finally:
        for norm in norms:
            norm.starts = False


class InvertibleLinear(Bijection):
    """y = W x on dimension 1, of vectors (n, C) or images (n, C, H, W), with W = P L (U + diag(s))."""

    order: Tensor
    sign: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        rotation, _ = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        self.register_buffer("order", permutation.argmax(1))
        self.register_buffer("sign", diagonal.sign().float())
        self.lower = nn.Parameter(lower.tril(-1).float())
        self.upper = nn.Parameter(upper.triu(1).float())
        self.log_scale = nn.Parameter(diagonal.abs().log().float())

    def _triangles(self) -> tuple[Tensor, Tensor]:
        """L and U + diag(s)."""
        one = torch.eye(len(self.sign)).to(self.lower)
        upper = self.upper.triu(1) + torch.diag(self.sign * self.log_scale.exp())
        return self.lower.tril(-1) + one, upper

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        lower, upper = self._triangles()
        # A bijection is as precise as the likelihood: never in bfloat16.
        with torch.autocast(x.device.type, enabled=False):
            y = _mixed((lower @ upper)[self.order], x)
        cells = x[0, 0].numel() if len(x) else 1
        return y, (cells * self.log_scale.sum()).expand(len(x))

    def inverse(self, y: Tensor, given: Tensor | None = None) -> Tensor:
        lower, upper = self._triangles()
        return _mixed(_inverse(lower, upper, self.order), y)


def _inverse(lower: Tensor, upper: Tensor, order: Tensor) -> Tensor:
    """The inverse of (L U) with its rows put into ``order``."""
    one = torch.eye(len(lower)).to(lower)
    middle = torch.linalg.solve_triangular(lower, one, upper=False, unitriangular=True)
    found: Tensor = torch.linalg.solve_triangular(upper, middle, upper=True)
    return found[:, order]


def _mixed(matrix: Tensor, x: Tensor) -> Tensor:
    if x.ndim == 2:
        return x @ matrix.T
    y: Tensor = nn.functional.conv2d(x, matrix[:, :, None, None])
    return y
