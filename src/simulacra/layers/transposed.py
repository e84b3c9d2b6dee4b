"""Transposed convolutions whose kernels are as large as their strides, or twice as large.

Two things are left to no library. A bias inside the convolution doubles the time that the gradient of its
weights takes in bfloat16 (oneDNN, on a CPU), so it is added outside. And with as few outputs as an image
has channels the kernels of a library are nearly idle: the outputs of one stride are the channels of an
ordinary convolution of the small image then, which are put in their places after (Shi et al. 2016,
"sub-pixel"), the same numbers in a third of the time.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

FEW = 4
"""Outputs up to which a convolution of the small image is faster."""

Size = tuple[int, int]


class TransposedConvolution(nn.ConvTranspose2d):
    """``torch.nn.ConvTranspose2d`` with its weights, for kernels of once or twice the stride."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Size,
        stride: Size,
        padding: Size,
        *,
        bias: bool = True,
    ) -> None:
        assert all(k in (s, 2 * s) for k, s in zip(kernel, stride, strict=True)), (kernel, stride)
        super().__init__(inputs, outputs, kernel, stride=stride, padding=padding, bias=bias)
        self.kernel, self.step, self.cut = kernel, stride, padding

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(n, inputs, h, w) to (n, outputs, stride h, stride w), but for the padding."""
        assert output_size is None, "kernels of these sizes leave no choice"
        assert x.ndim == 4, x.shape
        if self.out_channels <= FEW:
            out = self._by_phases(x)
        else:
            out = functional.conv_transpose2d(x, self.weight, None, self.step, self.cut)
        return out if self.bias is None else out + self.bias.to(out.dtype)[:, None, None]

    def _by_phases(self, x: Tensor) -> Tensor:
        """Entry s i + a of an axis, a < s, is sum_p w[s p + a] x[i - p]: a convolution for each a."""
        (high, wide), (down, across) = self.kernel, self.step
        blocks = (high // down, wide // across)
        weight = self.weight.unflatten(3, (blocks[1], across)).unflatten(2, (blocks[0], down))
        # (inputs, outputs, p, a, q, b) to channels (a, b, outputs) of a correlation.
        weight = weight.permute(3, 5, 1, 0, 2, 4).flip(4, 5).flatten(0, 2)
        grid = functional.conv2d(x, weight, padding=(blocks[0] - 1, blocks[1] - 1))
        rows = grid.permute(0, 2, 3, 1).unflatten(3, (down, across, self.out_channels))
        whole = rows.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        (top, left), (height, width) = self.cut, whole.shape[1:3]
        out: Tensor = whole[:, top : height - top, left : width - left].permute(0, 3, 1, 2)
        return out
