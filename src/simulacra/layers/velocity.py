"""The network of a flow along straight paths, and its loss: shared by all that learn or distil one.

``probability/straight_paths.py`` has the equations; here F is a U-Net, a DiT, or for vectors a residual
perceptron, all with the same call.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from simulacra.layers.backbone import Backbone, denoising_network
from simulacra.layers.conditions import require_readable
from simulacra.layers.flow import RealDoor
from simulacra.layers.level_mlp import LevelMLP
from simulacra.layers.table_reals import real_shape, real_size
from simulacra.probability import straight_paths
from simulacra.probability.straight_paths import Field, Spacing, log_snr, placed, scale
from simulacra.spaces import Images, Space


class UnitDoor(RealDoor):
    """Elements as reals of about unit variance: images with u uniform in [0, 1) as 2 (x + u) / levels -
    1, others standardised by their columns."""

    def __init__(self, space: Space) -> None:
        super().__init__(space, None)
        self.size = real_size(space)
        self.real_shape = real_shape(space)
        if isinstance(space, Images):
            self.shift.fill_(0.5)
            self.scale.fill_(0.5)

    def known(self, x: Tensor, known: Tensor) -> Tensor:
        """Which reals the known entries of x determine."""
        return known if self.table is None else self.table.known(x, known)


class VelocityNet(nn.Module):
    """F, and what follows from it: the velocity v(x_t, t) and E[x_1 | x_t]."""

    def __init__(
        self,
        space: Space,
        channels: int,
        blocks: int,
        condition: Space | None = None,
        *,
        dropout: float = 0.0,
        backbone: Backbone = "unet",
    ) -> None:
        super().__init__()
        require_readable(condition, space)
        self.backbone: nn.Module
        if isinstance(space, Images):
            self.backbone = denoising_network(backbone, space, channels, blocks, condition, dropout)
        else:
            self.backbone = LevelMLP(real_size(space), channels, blocks, condition, dropout)

    def told(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """F(x_t / sqrt(S), log-SNR), at least in float32; t has a time for each row."""
        raw: Tensor = self.backbone(x / scale(x, t), log_snr(t), context)
        return raw.to(x.dtype)

    def velocity(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        return straight_paths.velocity(self.told(x, t, context), x, t)

    def origin(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """E[x_1 | x_t], which is x_1 itself at t = 1."""
        return straight_paths.origin(self.told(x, t, context), x, t)

    def field(self, context: Tensor | None = None, guidance: float = 0.0) -> Field:
        """v as a function of x and one time; ``guidance`` w goes beyond the velocity given a condition,
        v(x|y) + w (v(x|y) - v(x)) (Ho & Salimans 2022, eq. 6)."""

        def at(x: Tensor, time: float) -> Tensor:
            t = torch.full((len(x),), time, dtype=x.dtype, device=x.device)
            v = self.velocity(x, t, context)
            if context is None or not guidance:
                return v
            return v + guidance * (v - self.velocity(x, t, torch.zeros_like(context)))

        return at

    def matching_error(
        self, x0: Tensor, x1: Tensor, t: Tensor, context: Tensor | None = None
    ) -> Tensor:
        """|F - F*|^2 a dimension, the squared error of v times S (Lipman et al. 2023, eq. 23)."""
        x = placed(x0, x1, t)
        s = scale(x, t)
        wanted = s * (x1 - x0 - straight_paths.velocity(torch.zeros_like(x), x, t))
        return (self.told(x, t, context).float() - wanted.float()).square().mean()


def stratified_times(uniform: Tensor, spacing: Spacing) -> Tensor:
    """A time for each row, one in each of n equal parts of [0, 1]; ``uniform`` has n numbers."""
    place = (uniform + torch.arange(len(uniform), device=uniform.device)) / len(uniform)
    return straight_paths.spaced(place, spacing)


class Frozen(nn.Module):
    """The weights that a network had when it was ``taken``: buffers, which nobody trains."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.names = [name for name, _ in network.named_parameters()]
        for name, value in network.named_parameters():
            self.register_buffer(name.replace(".", "-"), value.detach().clone())

    @torch.no_grad()
    def take(self, network: nn.Module) -> None:
        for name, value in network.named_parameters():
            self.get_buffer(name.replace(".", "-")).copy_(value)

    def weights(self) -> dict[str, Tensor]:
        return {name: self.get_buffer(name.replace(".", "-")) for name in self.names}

    def field(self, network: VelocityNet, context: Tensor | None) -> Field:
        """The velocity under these weights; ``network`` lends its structure."""

        def at(x: Tensor, time: float) -> Tensor:
            t = torch.full((len(x),), time, dtype=x.dtype, device=x.device)
            told: Tensor = functional_call(
                network.backbone,
                {name.removeprefix("backbone."): value for name, value in self.weights().items()},
                (x / scale(x, t), log_snr(t), context),
            )
            return straight_paths.velocity(told.to(x.dtype), x, t)

        return at
