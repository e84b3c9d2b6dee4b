"""Equalised and modulated layers and resampling, against what they are defined by."""

import pytest
import torch
from torch.nn import functional

from simulacra.layers.adversarial_rules import Rules
from simulacra.layers.equalised import (
    EqualisedConv2d,
    EqualisedLinear,
    leaky,
    pixel_norm,
    require_no_norm,
    with_deviation,
)
from simulacra.layers.modulated import ModulatedConv2d, StyledLayer
from simulacra.layers.resampling import Resampling
from simulacra.refusals import Refusal


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("demodulates", [True, False])
def test_a_modulated_convolution_is_one_with_a_weight_of_its_own_for_each_datum(demodulates):
    layer = ModulatedConv2d(5, 4, 3, demodulates=demodulates).double()
    x, w = drawn(6, 5, 7, 6), drawn(6, 3, seed=1)
    told = layer(x, w)
    for row in range(6):
        style = layer.affine(w[row : row + 1])[0]
        weight = layer.weight * layer.scale * style[None, :, None, None]
        if demodulates:
            weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        naive = functional.conv2d(x[row : row + 1], weight, padding=1)[0]
        torch.testing.assert_close(told[row], naive, rtol=0, atol=1e-10)
    single = layer.float()(x.float(), w.float())
    torch.testing.assert_close(single.double(), told.double(), rtol=0, atol=1e-5)


@torch.no_grad()
def test_what_is_demodulated_keeps_size_one_and_noise_starts_at_nought():
    torch.manual_seed(0)
    layer = StyledLayer(16, 16, 8)
    x, w = torch.randn(64, 16, 9, 9), 3 * torch.randn(64, 8)
    inside = layer.convolve(x, w)[:, :, 1:-1, 1:-1]
    assert inside.std() == pytest.approx(1, abs=0.1)
    noise = torch.randn(64, 1, 9, 9)
    assert torch.equal(layer(x, w, noise), layer(x, w, None))
    layer.strength.fill_(0.5)
    moved = layer.convolve(x, w) + 0.5 * noise
    torch.testing.assert_close(layer(x, w, noise), functional.leaky_relu(moved, 0.2) * 2**0.5)


@torch.no_grad()
def test_equalised_layers_start_at_size_one_and_learn_at_their_rate():
    torch.manual_seed(0)
    x = torch.randn(4000, 64)
    for rate in (1.0, 0.01):
        layer = EqualisedLinear(64, 32, rate=rate, start=2.0)
        assert layer.bias.mul(rate).allclose(torch.tensor(2.0))
        assert (layer(x) - 2).std() == pytest.approx(1, abs=0.05)
        # A step of Adam's size moves what comes out by the rate.
        before = layer(x)
        layer.bias += 1
        torch.testing.assert_close(
            layer(x) - before, torch.full((4000, 32), rate), atol=1e-4, rtol=0
        )
    seen = EqualisedConv2d(8, 16)(torch.randn(50, 8, 12, 12))[:, :, 1:-1, 1:-1]
    assert seen.std() == pytest.approx(1, abs=0.1)
    assert leaky(torch.randn(100_000)).square().mean() == pytest.approx(1.04, abs=0.03)


def test_pixels_lie_on_a_sphere():
    x = pixel_norm(drawn(3, 6, 4, 5))
    torch.testing.assert_close(x.square().mean(1), torch.ones(3, 4, 5).double())


def test_the_deviation_is_that_of_groups_across_the_batch():
    x = drawn(8, 3, 2, 2)
    told = with_deviation(x)
    assert torch.equal(told[:, :3], x)
    for row in range(8):
        group = x[[at for at in range(8) if at % 2 == row % 2]].numpy()
        wanted = group.std(axis=0).mean()
        assert told[row, 3].numpy() == pytest.approx(wanted, abs=1e-6)
    assert with_deviation(x[:7]).shape == (7, 4, 2, 2)
    assert with_deviation(x[:1])[0, 3].max() < 1e-3


@pytest.mark.parametrize("size", [(8, 6), (7, 5)])
def test_resampling_is_the_blur_of_what_zeros_stand_between(size):
    """Away from the edges; at them a constant stays what it is."""
    kernel = torch.outer(*[torch.tensor([1.0, 3.0, 3.0, 1.0]).double() / 8] * 2)[None, None]
    twice = (2 * size[0], 2 * size[1])
    x = drawn(2, 1, *size)
    wide = torch.zeros(2, 1, *twice, dtype=torch.float64)
    wide[:, :, ::2, ::2] = 4 * x
    wanted = functional.conv2d(functional.pad(wide, (2, 1, 2, 1)), kernel)
    grown = Resampling(size, twice).double()(x)
    torch.testing.assert_close(grown[:, :, 1:-1, 1:-1], wanted[:, :, 1:-1, 1:-1])
    large = drawn(2, 1, *twice, seed=1)
    wanted = functional.conv2d(functional.pad(large, (1, 1, 1, 1)), kernel, stride=2)
    halved = Resampling(twice, size).double()(large)
    torch.testing.assert_close(halved[:, :, 1:-1, 1:-1], wanted[:, :, 1:-1, 1:-1])
    odd = (twice[0] - 1, twice[1])
    for old, new in ((size, odd), (odd, size)):
        flat = Resampling(old, new)(torch.full((3, 2, *old), 0.7))
        torch.testing.assert_close(flat, torch.full((3, 2, *new), 0.7))


def test_spectral_norms_are_refused():
    with pytest.raises(Refusal) as refusal:
        require_no_norm(Rules(spectral=True))
    assert refusal.value.code == "CFG-185"


def test_without_a_blur_a_pixel_is_doubled_and_a_mean_of_four():
    x = drawn(2, 3, 4, 3)
    twice = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(Resampling((4, 3), (8, 6), blur=False).double()(x), twice)
    torch.testing.assert_close(Resampling((8, 6), (4, 3), blur=False).double()(twice), x)
    # The last row of an odd side is by itself.
    odd = Resampling((7, 5), (4, 3), blur=False).double()(twice[:, :, :7, :5])
    torch.testing.assert_close(odd, x)
