"""Toys of every model on the shelf, skewed data for them, and plays of a few rounds."""

import functools
from dataclasses import replace

import pytest
import torch

from simulacra import shelf
from simulacra.data.dataset import Part, Stream
from simulacra.play import Play
from simulacra.spaces import Images, Labels, Table, Tokens

ROUNDS, LONG = 20, 100


def clusters(space, count, classes=3, seed=0):
    """``count`` elements around three prototypes, and the number of their prototype."""
    draw = torch.Generator().manual_seed(seed)
    which = torch.randint(classes, (count,), generator=draw)
    prototypes, noise = space.random(classes, draw), space.random(count, draw)
    kept = torch.rand((count, *space.shape), generator=draw) < 0.85
    discrete = torch.where(kept, prototypes[which], noise)
    if isinstance(space, Images | Tokens):
        return discrete, which
    real = 2.0 * prototypes[which] + 0.5 * noise
    if isinstance(space, Table):
        category = torch.tensor([column.kind == "category" for column in space.columns])
        real = torch.where(category, discrete, real)
    return real, which


class Toys:
    """What the laws need to do with one entry of the shelf."""

    def __init__(self, entry):
        self.entry = entry

    def new(self, seed=0, condition=None):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = self.entry.cls.toy()
            if condition is not None:
                model = self.entry.cls(model.space, model.config, condition=condition)
        return model

    def source(self, model, count=256):
        x, which = clusters(model.space, count)
        part = Part(x, torch.arange(count), model.space, which)
        size = min(model.game().batch_size, 64)
        return Stream(part, size, seed=0, conditional=model.condition_space is not None)

    def play(self, model, rounds=ROUNDS, seed=0, play=None, total=None):
        """Play until the clock shows ``rounds`` (or the game is over)."""
        play = play or Play(model, model.game(), seed=seed)
        total = total or rounds
        if play.clock.rounds < rounds:
            for _ in play.rounds(self.source(model), lambda clock: clock.rounds / total):
                if play.clock.rounds >= rounds:
                    break
        return play

    @functools.cached_property
    def trained(self):
        model = self.new()
        self.play(model)
        return model.eval()

    @functools.cached_property
    def practised(self):
        model = self.new()
        self.play(model, LONG)
        return model.eval()

    @functools.cached_property
    def conditional(self):
        model = self.new(condition=Labels(3))
        self.play(model, LONG)
        return model.eval()

    def alone(self, turn):
        """The turn as a game of its own needs a fresh batch, in every round."""
        changes = {"every": 1}
        return replace(turn, **(changes if turn.batches else changes | {"batches": 1}))


_toys = {entry.name: Toys(entry) for entry in shelf.entries()}


@pytest.fixture(params=sorted(_toys))
def toys(request):
    return _toys[request.param]


@pytest.fixture
def all_toys():
    return _toys


@pytest.fixture
def having(toys):
    """``having(Density)`` skips the models without that capability."""

    def check(*capabilities):
        for one in capabilities:
            if not issubclass(toys.entry.cls, one):
                pytest.skip(f"{toys.entry.name} is no {one.__name__}")
        return toys

    return check
