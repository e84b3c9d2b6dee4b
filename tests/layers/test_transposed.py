"""Transposed convolutions are torch's, in value, in gradients and in the names of their weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from simulacra.layers.transposed import FEW, TransposedConvolution

SHAPES = [
    ((4, 4), (2, 2), (1, 1)),
    ((1, 8), (1, 4), (0, 2)),
    ((6, 6), (3, 3), (1, 1)),
    ((2, 2), (2, 2), (0, 0)),
]


@pytest.mark.parametrize("outputs", [1, FEW, FEW + 1])
@pytest.mark.parametrize(("kernel", "stride", "padding"), SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_numbers_and_gradients_are_torch_s(outputs, kernel, stride, padding, bias):
    generator = torch.Generator().manual_seed(0)
    layer = TransposedConvolution(3, outputs, kernel, stride, padding, bias=bias).double()
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64, generator=generator, requires_grad=True)
    theirs = functional.conv_transpose2d(x, layer.weight, layer.bias, stride, padding)
    ours = layer(x)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn(ours.shape, dtype=torch.float64, generator=generator)
    wanted = [x, *layer.parameters()]
    for one, other in zip(
        torch.autograd.grad((ours * weight).sum(), wanted),
        torch.autograd.grad((theirs * weight).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("outputs", [1, FEW + 1])
def test_gradients_of_gradients_hold(outputs):
    layer = TransposedConvolution(2, outputs, (4, 4), (2, 2), (1, 1)).double()
    x = torch.randn(1, 2, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradgradcheck(layer, x.requires_grad_())


def test_weights_bear_torch_s_names_and_shapes():
    ours = TransposedConvolution(3, 5, (4, 4), (2, 2), (1, 1)).state_dict()
    theirs = nn.ConvTranspose2d(3, 5, 4, stride=2, padding=1).state_dict()
    assert {name: one.shape for name, one in ours.items()} == {
        name: one.shape for name, one in theirs.items()
    }


def test_a_kernel_of_another_size_is_an_error():
    with pytest.raises(AssertionError):
        TransposedConvolution(3, 5, (3, 3), (2, 2), (1, 1))


@pytest.mark.parametrize("outputs", [1, FEW + 1])
def test_half_precision_stays_half(outputs):
    layer = TransposedConvolution(3, outputs, (4, 4), (2, 2), (1, 1))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.zeros(1, 3, 2, 2)).dtype == torch.bfloat16
