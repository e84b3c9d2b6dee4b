"""Spaces know their elements, refuse others, and survive JSON."""

import json

import pytest
import torch

from simulacra.refusals import Refusal
from simulacra.spaces import (
    Column,
    Images,
    Labels,
    Measure,
    Pair,
    Series,
    Table,
    Tokens,
    Vectors,
    space_from_json,
)

MIXED = Table((Column("size"), Column("colour", "category", ("red", "green"))))
SPACES = [
    Images(3, 4, 5),
    Images(1, 2, 2, levels=65536),
    Tokens(7, 30),
    Labels(3, ("a", "b", "c")),
    Labels(1000, channel_classes=10),
    Vectors(4),
    Series(2, 9, rate=100),
    MIXED,
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_random_elements_belong(space):
    x = space.random(50, torch.Generator().manual_seed(0))
    assert x.shape == (50, *space.shape)
    assert x.dtype == space.dtype
    assert space.contains(x)
    assert space.require(x, who="it") is x
    assert torch.equal(x, space.random(50, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("space", [*SPACES, Pair(Images(1, 2, 2), Labels(3))], ids=str)
def test_json_gives_an_equal_space(space):
    assert space_from_json(json.loads(json.dumps(space.to_json()))) == space


@pytest.mark.parametrize(
    ("space", "x"),
    [
        (Images(1, 2, 2, levels=4), torch.full((1, 1, 2, 2), 4)),
        (Images(1, 2, 2, levels=4), torch.full((1, 1, 2, 2), -1)),
        (Images(1, 2, 2, levels=4), torch.zeros(1, 1, 2, 2)),
        (Images(1, 2, 2, levels=4), torch.zeros(1, 1, 2, 2, dtype=torch.bool)),
        (Images(1, 2, 2), torch.zeros(1, 2, 2, 1, dtype=torch.uint8)),
        (Tokens(3, 5), torch.tensor([[0, 1, 5]])),
        (Vectors(2), torch.tensor([[0.0, float("nan")]])),
        (Vectors(2), torch.tensor([[0.0, float("inf")]])),
        (Vectors(2), torch.tensor([[0, 1]])),
        (MIXED, torch.tensor([[0.3, 2.0]])),
        (MIXED, torch.tensor([[0.3, 0.5]])),
    ],
)
def test_strangers_are_refused(space, x):
    assert not space.contains(x)
    with pytest.raises(Refusal, match="tensor of shape"):
        space.require(x, who="it")


def test_measures_and_dimensions():
    assert Images(3, 4, 5).dimensions == 60
    assert Images(3, 4, 5).measure is Measure.COUNTING
    assert Vectors(4).measure is Measure.LEBESGUE
    assert MIXED.measure is Measure.MIXED
    assert Table((Column("a"),)).measure is Measure.LEBESGUE
    assert Labels(3).dimensions == 1
    assert Pair(Images(1, 2, 2), Vectors(3)).dimensions == 7
    assert Pair(Images(1, 2, 2), Vectors(3)).measure is Measure.MIXED


@pytest.mark.parametrize(
    "data", [{"space": "Nowhere"}, {}, {"space": "Vectors", "size": 2, "eval": "x"}]
)
def test_unknown_json_is_refused(data):
    with pytest.raises(Refusal):
        space_from_json(data)


def test_classes_of_channels_are_the_digits_of_a_class():
    labels = Labels(1000, channel_classes=10)
    assert labels.separated(torch.tensor([407, 7]), 3).tolist() == [[4, 0, 7], [0, 0, 7]]
    assert labels.name(7) == "007"
    every = torch.arange(1000)
    assert torch.equal(labels.combined(labels.separated(every, 3)), every)
