"""Spectral normalisation: weights divided by their largest singular value (Miyato et al. 2018).

W / sigma(W), sigma by power iteration (their eq. 7 to 9, algorithm 1): v = W^T u / |W^T u|, u = W v / |W
v|, sigma = u^T W v. The vector u is a buffer that only ``iterate`` moves, so that a network which is
merely run, such as a critic in the generator's turn, stays bit-identical.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

AT_FIRST, EACH = 50, 2
"""Iterations before training, and in a round."""


class SpectralNorm(nn.Module):
    """A parametrisation: W (rows, …), seen as a matrix (rows, columns), to W / sigma(W)."""

    u: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("u", functional.normalize(torch.randn(len(weight)), dim=0))
        self.iterate(weight, AT_FIRST)

    def forward(self, weight: Tensor) -> Tensor:
        matrix = weight.reshape(len(weight), -1)
        with torch.no_grad():
            v = functional.normalize(matrix.T @ self.u, dim=0)
            u = functional.normalize(matrix @ v, dim=0)
        return weight / torch.dot(u, matrix @ v)

    @torch.no_grad()
    def iterate(self, weight: Tensor, times: int = EACH) -> None:
        """Turn u towards the first left singular vector."""
        matrix = weight.reshape(len(weight), -1)
        for _ in range(times):
            v = functional.normalize(matrix.T @ self.u, dim=0)
            self.u.copy_(functional.normalize(matrix @ v, dim=0))


def normalise_spectrally(module: nn.Module) -> None:
    """Divide the weights of all linear and convolutional layers in ``module`` by their norms."""
    for layer in list(module.modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            rule = SpectralNorm(layer.weight.detach())
            parametrize.register_parametrization(layer, "weight", rule, unsafe=True)


def iterate_all(module: nn.Module) -> None:
    """A round's power iterations of every weight that is normalised."""
    for layer in module.modules():
        if isinstance(layer, parametrize.ParametrizationList) and isinstance(
            layer[0], SpectralNorm
        ):
            layer[0].iterate(layer.original)
