"""The channels of pyramids: large sizes are no dearer than small ones."""

import pytest
import torch

from simulacra.layers.pyramid import PyramidDecoder, PyramidEncoder
from simulacra.spaces import Images


def _widths(encoder):
    return [part.in_channels for part in encoder.body if hasattr(part, "stride")][1:]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 28, 28), [32, 64]),
        ((3, 32, 32), [32, 64, 128]),
        ((1, 112, 92), [8, 16, 32, 64]),
        ((3, 256, 256), [8, 8, 16, 32, 64, 128]),
    ],
)
def test_channels_double_from_sides_of_32_down_and_halve_above(shape, expected):
    space = Images(*shape, levels=256)
    encoder = PyramidEncoder(space, 32, 0, 5)
    assert _widths(encoder)[: len(expected)] == expected
    x = torch.zeros(2, *shape)
    code = encoder(x, None)
    assert code.shape == (2, 5)
    decoder = PyramidDecoder(space, 32, 5, space.channels)
    assert decoder(code).shape == x.shape


def test_few_channels_stay_few():
    assert _widths(PyramidEncoder(Images(1, 64, 64, levels=2), 2, 0, 1))[:3] == [2, 2, 4]
