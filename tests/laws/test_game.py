"""The rules of play: who moves, who does not, and that a stop leaves no trace."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from simulacra.games import Descent, Game, Loss, Stage
from simulacra.play import NO_CLOCK, Play
from simulacra.probability.noise import row_noise
from simulacra.refusals import Refusal
from simulacra.replay import HandedOut, Watched


def kept(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def differing(first, second):
    return {name for name in first if not torch.equal(first[name], second[name])}


def descents(game):
    found = {}
    for stage in game.stages:
        for turn in stage.turns:
            if isinstance(turn, Descent):
                found.setdefault(id(turn), turn)
    return list(found.values())


def belongings(model, players):
    """Names of the players' parameters, and of the buffers of the modules that hold them."""
    own = {id(p) for player in players for p in player.parameters}
    names = set()
    for path, module in model.named_modules():
        prefix = path + "." if path else ""
        held = [name for name, p in module.named_parameters(recurse=False) if id(p) in own]
        buffers = [name for name, _ in module.named_buffers(recurse=False)] if held else []
        names |= {prefix + name for name in held + buffers}
    return names


def test_every_parameter_has_a_player(toys):
    model = toys.new()
    held = {id(p) for player in model.game().players().values() for p in player.parameters}
    nobodys = [name for name, p in model.named_parameters() if id(p) not in held]
    assert not nobodys
    assert held <= {id(p) for p in model.parameters()}


def test_every_parameter_moves(toys):
    model = toys.new()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    toys.play(model, 12, total=24)
    after = dict(model.named_parameters())
    assert not [name for name in before if torch.equal(before[name], after[name])]
    if not before:
        assert differing(kept(toys.new()), kept(model)), "nothing was learned"


def test_weights_stay_finite(toys):
    assert all(torch.isfinite(v).all() for v in toys.trained.state_dict().values())


def test_a_turn_moves_its_players_only(toys):
    model = toys.new()
    toys.play(model, 3, total=20)
    model.train()
    for turn in descents(model.game()):
        before = kept(model)
        game = Game([Stage([toys.alone(turn)], rounds=1)])
        list(Play(model, game).rounds(toys.source(model), lambda clock: 0.0))
        changed = differing(before, kept(model))
        allowed = belongings(model, turn.players) | set(turn.buffers)
        assert changed, "the turn changed nothing"
        assert not changed - allowed


def test_ten_and_ten_rounds_are_twenty(toys):
    whole, half, rest = (toys.new() for _ in range(3))
    toys.play(whole, 20)
    first = toys.play(half, 10, total=20)
    tensors, plain = copy.deepcopy(first.state())
    with torch.no_grad():
        for value in rest.state_dict().values():
            value.mul_(0)
    second = Play(rest, rest.game(), seed=99)
    second.load_state(tensors, plain)
    torch.manual_seed(1234)
    second = toys.play(rest, 20, play=second)
    assert not differing(kept(whole), kept(rest))


def test_the_average_is_resumed_too(toys):
    if not toys.new().game().average:
        pytest.skip("no average")
    whole, half, rest = (toys.new() for _ in range(3))
    once = toys.play(whole, 20)
    tensors, plain = copy.deepcopy(toys.play(half, 10, total=20).state())
    second = Play(rest, rest.game())
    second.load_state(tensors, plain)
    toys.play(rest, 20, play=second)
    assert not differing(once.shadow, second.shadow)
    assert differing(once.shadow, kept(whole)), "the average is only the last weights"


def test_another_seed_is_another_play(toys):
    model, other = toys.new(), toys.new()
    if not model.game().players():
        pytest.skip("a closed form needs no seed")
    toys.play(model, 5, seed=0)
    toys.play(other, 5, seed=1)
    if not differing(kept(model), kept(other)):
        # Exact maximum likelihood draws nothing: then the order of the data and the weights decide.
        assert differing(kept(toys.new(seed=0)), kept(toys.new(seed=1)))


def test_a_gradient_that_is_no_number_moves_nobody(toys):
    model = toys.new()
    turns = descents(model.game())
    if not turns:
        pytest.skip("nobody descends")
    toys.play(model, 3, total=20)
    for turn in turns:

        def spoilt(batch, noise, clock, loss=turn.loss):
            told = loss(batch, noise, clock)
            return Loss(told.value * float("nan"), told.numbers)

        play = Play(model, Game([Stage([replace(toys.alone(turn), loss=spoilt)])]))
        rounds = play.rounds(toys.source(model), lambda clock: 0.0)
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        assert next(rounds).skipped == 1
        assert next(rounds).skipped == 1
        with pytest.raises(Refusal) as refusal:
            next(rounds)
        assert refusal.value.code == "NUM-002"
        assert not differing(before, dict(model.named_parameters()))
        assert not any(play.optimisers[player.name].state for player in turn.players)


class NoLook(TorchDispatchMode):
    """Python may not look at a number: what it does then would stand in a graph for good. Nor may sizes
    depend on numbers, or a factorisation be made, which looks at whether it has succeeded."""

    LOOKS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "linalg_", "_linalg_")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::")
        assert not name.startswith(self.LOOKS) or name.startswith("linalg_vector_norm"), name
        return func(*args, **(kwargs or {}))


def one_hot(classes, count):
    """As torch's, which looks at its numbers, on a CPU alone."""
    return (classes[..., None] == torch.arange(count)).long()


def test_a_turn_that_replays_is_the_same_work_each_time(toys, monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "one_hot", one_hot)
    model = toys.new()
    turns = [turn for turn in descents(model.game()) if turn.replays]
    if not turns:
        pytest.skip("no turn replays")
    toys.play(model, 12)
    model.train()
    source = toys.source(model)
    for turn in turns:
        places = {name: value.data_ptr() for name, value in model.state_dict().items()}
        told, notes = [], []
        for seed in (0, 1):
            batch, start = source.batch(seed), kept(model)
            watched = Watched(row_noise(len(batch), torch.Generator().manual_seed(seed)))
            with NoLook():
                told.append(turn.loss(batch, watched, NO_CLOCK).value)
            notes.append(watched.drawn)
            model.load_state_dict(start)
            # Handed the same numbers, it comes to the same value.
            numbers = row_noise(len(batch), torch.Generator().manual_seed(seed))
            drawn = [getattr(numbers, kind)(*shape) for kind, shape in watched.drawn]
            again = turn.loss(batch, HandedOut(len(batch), watched.drawn, drawn), NO_CLOCK)
            assert torch.equal(again.value, told[-1])
            model.load_state_dict(start)
        assert notes[0] == notes[1]
        assert not torch.equal(*told)
        # What it changes is changed in place: a graph knows where things stand, not what they are called.
        assert places == {name: value.data_ptr() for name, value in model.state_dict().items()}
