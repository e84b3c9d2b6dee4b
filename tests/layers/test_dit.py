"""DiT: blocks start as the identity, and patches come back."""

import pytest
import torch

from simulacra.layers.dit import DiT, DiTBlock
from simulacra.spaces import Images, Labels


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_block_starts_as_the_identity():
    block = DiTBlock(64, 2, 0.0)
    h, c = torch.randn(3, 5, 64, generator=seeded()), torch.randn(3, 64, generator=seeded(1))
    assert torch.equal(block(h, c), h)
    with torch.no_grad():
        block.tell.bias.fill_(0.1)
    assert not torch.allclose(block(h, c), h)


@pytest.mark.parametrize("space", [Images(1, 8, 8, 17), Images(3, 32, 32), Images(2, 9, 14, 4)])
def test_patches_come_back_and_the_whole_starts_at_zero(space):
    network = DiT(space, 32, 1)
    x = torch.randn(2, *space.shape, generator=seeded())
    assert network.patches(x).shape[1] == network.rows * network.columns <= 64
    assert torch.equal(network.image(network.patches(x)), x)
    assert torch.equal(network(x, torch.zeros(2)), torch.zeros_like(x))


def test_level_and_class_are_heard():
    network = DiT(Images(1, 6, 6, 2), 32, 2, Labels(3))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded()))
    x, level, one = torch.randn(2, 1, 6, 6, generator=seeded()), torch.zeros(2), torch.eye(3)
    base = network(x, level, one[:2])
    assert not torch.allclose(network(x, level + 3, one[:2]), base)
    assert not torch.allclose(network(x, level, one[1:]), base)
    assert torch.allclose(network(x, level, torch.zeros(2, 3)), network(x, level))
