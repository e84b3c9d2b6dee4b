"""Replays: the same numbers in the same order, and on a GPU the same round as without a graph."""

import copy

import pytest
import torch

from simulacra import build
from simulacra.data.dataset import Part, Stream
from simulacra.play import NO_CLOCK, Play
from simulacra.probability.noise import BatchNoise
from simulacra.replay import ALIGNED, FIRST, Drawn, HandedOut, Replay, Room, Watched
from simulacra.runs.recipe import with_optimiser
from simulacra.spaces import Images, Labels

CPU = torch.device("cpu")
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def stream(seed=0, rank=0, world=1):
    return BatchNoise(torch.Generator().manual_seed(seed), 6 // world, CPU, rank, world)


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 2)])
def test_numbers_are_those_of_the_stream(rank, world):
    watched = Watched(stream(3, rank, world))
    expected = [watched.normal(4, 5), watched.uniform(), watched.normal(2, 3, 3)]
    room = Drawn(watched.drawn, watched.rows, CPU)
    for _ in range(2):
        room.draw(stream(3, rank, world))
        given = room.handed_out()
        found = [given.normal(4, 5), given.uniform(), given.normal(2, 3, 3)]
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)
            assert one.storage_offset() % ALIGNED == 0


def test_other_numbers_than_before_are_noticed():
    watched = Watched(stream())
    numbers = [watched.normal(2)]
    for asked in ("uniform", "normal"):
        given = HandedOut(6, watched.drawn, numbers)
        with pytest.raises(RuntimeError, match="other numbers"):
            getattr(given, asked)(3)
    given = HandedOut(6, watched.drawn, numbers)
    given.normal(2)
    with pytest.raises(RuntimeError, match="other numbers"):
        given.normal(2)


def test_a_turn_that_replays_cannot_look_at_the_clock():
    with pytest.raises(RuntimeError, match="progress"):
        _ = NO_CLOCK.progress


class Recorded:
    """A graph's stand-in: what it was recorded from, done again on what stands where it stood."""

    def __init__(self, replay):
        self.replay_of = replay
        self.played = 0

    def replay(self):
        self.played += 1
        one = self.replay_of
        found = one._as_it_stands(one._given, one._noise.handed_out())
        one._told, one._slopes = found, [p.grad for p in one.parameters]


def test_new_data_and_new_numbers_stand_where_the_old_ones_stood(monkeypatch):
    weight = torch.nn.Parameter(torch.ones(3))

    def work(given, noise):
        x, condition = given
        value = (weight * x * noise.normal(3)).sum() + (0 if condition is None else condition.sum())
        value.backward()
        return {"value": value.detach()}

    def record(self, device):
        self._graph = Recorded(self)

    monkeypatch.setattr(Replay, "_record", record)
    replay, ours, theirs = Replay("turn", work, [weight], Room(None, None)), stream(5), stream(5)
    for count in range(FIRST + 4):
        x = torch.randn(6, 3, generator=torch.Generator().manual_seed(count))
        told = replay((x, None), ours)["value"], weight.grad.clone()
        weight.grad = None
        expected = work((x, None), theirs)["value"], weight.grad.clone()
        assert all(map(torch.equal, told, expected))
    assert replay._graph.played == 4
    # Neither a batch of another size nor one with labels is what was recorded.
    for given, noise in (
        ((torch.ones(4, 3), None), BatchNoise(torch.Generator().manual_seed(0), 4, CPU)),
        ((torch.ones(6, 3), torch.ones(6)), stream()),
        ((torch.ones(6, 3, dtype=torch.float64), None), stream()),
    ):
        replay(given, noise)
    assert replay._graph.played == 4


@on_a_gpu
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gan", {}),
        ("dcgan", {}),
        ("dcgan", {"shift": 0.2, "cut": 0.3, "colour": 0.5, "adaptive": 0.6}),
        ("dcgan", {"loss": "hinge", "spectral": True, "pack": 2, "critic_steps": 2}),
        ("dcgan", {"loss": "relativistic", "regulariser": "r1+r2", "minibatch": "deviation"}),
        ("dcgan", {"unrolled": 2, "regulariser": "none"}),
        ("dcgan", {"conditioning": "projection"}),
        ("stylegan2", {"mixing": 0.5, "path_length": 2.0}),
        ("infogan", {}),
    ],
)
def test_a_replayed_round_is_the_round_that_it_stands_for(name, settings, bf16):
    space = Images(1, 16, 16)
    x = torch.randint(0, 256, (256, 1, 16, 16), generator=torch.Generator().manual_seed(0))
    part = Part(x.to(torch.uint8), torch.arange(256), space, torch.arange(256) % 3)
    labels = Labels(3) if "conditioning" in settings else None
    options = {"settings": settings, "condition": labels, "num_examples": 60_000}
    first = build(name, space, **options).to("cuda")
    second = copy.deepcopy(first)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        numbers = []
        for model, replays in ((first, False), (second, True)):
            # Adam's first steps are as long for a slope that is all rounding as for any other.
            game = with_optimiser(model.game(), {"name": "sgd", "learning_rate": 1e-3})
            play = Play(model, game, bf16=bf16, replays=replays)
            stream = Stream(part, 64, seed=0, device="cuda", conditional=labels is not None)
            rounds = play.rounds(stream, lambda clock: 0.0)
            # Three as they stand and four from graphs: later, sums in another order have grown.
            numbers.append([dict(next(rounds).numbers) for _ in range(7)])
    near = {"rel": 2e-2 if bf16 else 5e-3, "abs": 1e-2 if bf16 else 2e-3}
    for one, other in zip(*numbers, strict=True):
        # A share of a batch moves by a whole datum.
        smooth = [name for name in one if not name.endswith(("accuracy", "classes read"))]
        assert {name: one[name] for name in smooth} == pytest.approx(
            {name: other[name] for name in smooth}, **near
        )
    # Data and noise are new in every round.
    losses = [one["critic/loss"] for one in numbers[1]]
    assert len(set(losses)) == len(losses)
