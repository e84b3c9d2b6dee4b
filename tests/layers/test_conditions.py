"""Conditions as numbers, and what networks read of them."""

import pytest
import torch

from simulacra.layers.conditions import (
    CaptionReader,
    ConditionDoor,
    condition_reader,
    numbers_of,
    with_beside,
)
from simulacra.layers.denoising import dropped
from simulacra.layers.dit import DiT
from simulacra.layers.level_mlp import LevelMLP
from simulacra.layers.unet import UNet
from simulacra.probability.noise import row_noise
from simulacra.refusals import Refusal
from simulacra.spaces import Column, Images, Labels, Table, Tokens

ATTRIBUTES = Table(
    (Column("a"), Column("b", "category", ("x", "y", "z")), Column("c", missing=True))
)
SPACES = [Labels(4), ATTRIBUTES, Tokens(5, 3, " ab"), Images(1, 4, 6, levels=3)]
GRAY = Images(1, 8, 8)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def shaken(network):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded()))
    return network.eval()


def test_attributes_are_standardised_and_told_apart_from_nothing():
    door = ConditionDoor(ATTRIBUTES)
    rows = torch.tensor([[1.0, 0, 5.0], [3.0, 2, torch.nan], [5.0, 1, 7.0]])
    assert door.learns
    door.fit(rows)
    told = door(rows, 3)
    assert told.shape == (3, numbers_of(ATTRIBUTES)) == (3, 7)
    # A one; a; b as zeros and a one; c, and whether it is missing.
    root = 1.5**0.5
    wanted = [[1, -root, 1, 0, 0, -1, 0], [1, 0, 0, 0, 1, 0, 1], [1, root, 0, 1, 0, 1, 0]]
    torch.testing.assert_close(told, torch.tensor(wanted))
    assert (told.abs().sum(1) > 0).all()


def test_categories_need_no_look_at_the_data():
    assert not ConditionDoor(Table((Column("b", "category", ("x", "y")),))).learns
    assert not ConditionDoor(Labels(3)).learns
    assert not ConditionDoor(None).learns


def test_a_gray_image_is_not_nothing():
    space = Images(1, 2, 2, levels=3)
    middle = torch.ones((1, 1, 2, 2), dtype=torch.uint8)
    told = ConditionDoor(space)(middle, 1)
    assert told.shape == (1, 2, 2, 2)
    assert (told[:, 0] == 0).all()
    assert (told[:, 1] == 1).all()


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_share_is_told_nothing(space):
    told = ConditionDoor(space)(space.random(400, seeded()), 400)
    kept = dropped(told, 0.25, row_noise(400, seeded(1))).flatten(1).abs().sum(1) > 0
    assert 0.65 < kept.double().mean() < 0.85
    assert torch.equal(dropped(told, 0.0, row_noise(400, seeded(1))), told)


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("kind", ["unet", "dit", "mlp"])
def test_networks_hear_of_it_and_of_nothing(space, kind):
    if kind == "mlp" and isinstance(space, Images):
        pytest.skip("there is nothing to stand beside")
    network = {
        "unet": lambda: UNet(GRAY, 8, 1, space),
        "dit": lambda: DiT(GRAY, 32, 1, space),
        "mlp": lambda: LevelMLP(3, 16, 1, space),
    }[kind]()
    shaken(network)
    x = torch.randn(2, *((3,) if kind == "mlp" else GRAY.shape), generator=seeded())
    level = torch.zeros(2)
    told = ConditionDoor(space)(space.random(4, seeded(2)), 4)
    first, second = network(x, level, told[:2]), network(x, level, told[2:])
    assert first.shape == x.shape
    assert not torch.allclose(first, second)
    nothing = network(x, level, torch.zeros_like(told[:2]))
    torch.testing.assert_close(nothing, network(x, level, None))
    assert not torch.allclose(nothing, first)


def test_captions_are_read_in_their_order():
    """The same words in another order are another vector, which a bag of characters would not give."""
    space = Tokens(4, 3, " ab")
    reader = shaken(CaptionReader(space, 16))
    door = ConditionDoor(space)
    one, other = (door(torch.tensor([row]), 1) for row in ([1, 2, 0, 0], [2, 1, 0, 0]))
    assert not torch.allclose(reader(one), reader(other))
    assert (reader(torch.zeros_like(one)) == 0).all()


def test_an_image_of_another_size_is_stretched():
    x, told = torch.zeros(1, 1, 8, 8), torch.ones(1, 2, 4, 4)
    beside = with_beside(x, told, 2)
    assert beside.shape == (1, 3, 8, 8)
    assert (beside[:, 1:] == 1).all()
    assert (with_beside(x, None, 2) == 0).all()


def test_every_row_needs_its_condition():
    for space in SPACES[1:]:
        door = ConditionDoor(space)
        with pytest.raises(Refusal, match="was given none"):
            door(None, 2)
        with pytest.raises(ValueError, match="2 rows need 2 conditions"):
            door(space.random(3, seeded()), 2)


def test_labels_are_read_as_ever():
    """The weights of runs from before captions could be conditions still fit."""
    names = set(UNet(GRAY, 8, 1, Labels(3)).state_dict())
    assert "label.weight" in names
    assert not any(name.startswith("condition") for name in names)
    assert condition_reader(Labels(3), 8).weight.shape == (8, 3)
