"""Spectral normalisation: weights divided by their largest singular value (Miyato et al. 2018).

W / sigma(W), sigma = u^T W v, by power iteration (their eq. 7 to 9, algorithm 1) of several vectors at a
time rather than one, U <- orth(W W^T U): normalised weights come to have singular values that lie close
together, where one vector alone is percents off for thousands of steps. v = W^T u / |W^T u| of the best u
of their span, then u = W v / |W v|. U is a buffer that only ``iterate`` moves, so that a network which is
merely run, such as a critic in the generator's turn, stays bit-identical.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

AT_FIRST, EACH = 50, 2
"""Iterations before training, and in a round."""

VECTORS = 8
"""Vectors that are turned at a time."""


class SpectralNorm(nn.Module):
    """A parametrisation: W (rows, …), seen as a matrix (rows, columns), to W / sigma(W)."""

    vectors: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        count = min(VECTORS, len(weight), weight[0].numel())
        self.register_buffer("vectors", torch.linalg.qr(torch.randn(len(weight), count))[0])
        self.iterate(weight, AT_FIRST)

    def forward(self, weight: Tensor) -> Tensor:
        matrix = weight.reshape(len(weight), -1)
        with torch.autocast(weight.device.type, enabled=False):
            with torch.no_grad():
                # Weight averages are of vectors at several times, which are hardly orthonormal.
                across = matrix.T @ torch.linalg.qr(self.vectors)[0]
                best = torch.linalg.eigh(across.T @ across).eigenvectors[:, -1]
                v = functional.normalize(across @ best, dim=0)
                u = functional.normalize(matrix @ v, dim=0)
            return weight / torch.dot(u, matrix @ v)

    @torch.no_grad()
    def iterate(self, weight: Tensor, times: int = EACH) -> None:
        """Turn the vectors towards the first left singular ones."""
        matrix = weight.reshape(len(weight), -1)
        for _ in range(times):
            turned, factor = torch.linalg.qr(matrix @ (matrix.T @ self.vectors))
            # Each vector keeps its side, so that averages over rounds do not cancel.
            self.vectors.copy_(turned * torch.where(factor.diagonal() < 0, -1.0, 1.0))


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
