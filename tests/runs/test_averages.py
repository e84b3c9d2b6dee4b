"""Runs whose weight average gets its length afterwards: against runs that were trained with it."""

import json
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from simulacra import shelf
from simulacra.data.dataset import Dataset
from simulacra.data.open import open_data
from simulacra.games import Batch, Descent, Game, Loss, Player, Rewrite, Stage
from simulacra.optimisation import Optimiser
from simulacra.play import Play
from simulacra.refusals import Refusal
from simulacra.runs import checkpoint, conductor, snapshots
from simulacra.runs.averages import Lengths, best_of, table
from simulacra.runs.recipe import Recipe
from simulacra.runs.training import resume, train


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return open_data("digits")


@pytest.fixture(scope="module")
def made(digits, tmp_path_factory):
    """A run with snapshots."""
    folder = tmp_path_factory.mktemp("averages") / "made"
    train(MADE, folder, data=digits, device="cpu", save_every=1e9)
    return folder


MADE = Recipe("made", budget="64steps", batch_size=32, snapshots=16, settings={"hidden": 32})


def state(run):
    found = checkpoint.load_newest(run, pytest.fail)
    assert found is not None
    return found


def tracked(run):
    """The average that a run was trained with, at its end."""
    tensors = state(run)[0]
    return {k.removeprefix("average/"): v for k, v in tensors.items() if k.startswith("average/")}


def flat(weights, names):
    return torch.cat([weights[name].double().flatten() for name in names])


def error(found, right, last):
    """How far from the average that was tracked, as a share of how far that is from the last weights."""
    names = sorted(right)
    distance = (flat(right, names) - flat(last, names)).norm()
    return float((flat(found, names) - flat(right, names)).norm() / distance)


def last_weights(run):
    return {k.removeprefix("model/"): v for k, v in state(run)[0].items() if k.startswith("model/")}


def kept(run):
    return {path.name: path.read_bytes() for path in sorted((run / "averages").iterdir())}


def test_snapshots_are_spread_evenly_and_say_what_they_are(made):
    found = snapshots.read(made, pytest.fail)
    assert [one.rounds for one in found] == list(range(4, 65, 4))
    assert [one.examples for one in found] == [32 * one.rounds for one in found]
    assert {one.half_lives for one in found} == {(0.05, 0.125)}
    assert found[-1].age == pytest.approx(sum(1 / k for k in range(1, 65)))


def test_the_own_length_comes_back(made):
    found = snapshots.average(snapshots.read(made, pytest.fail), 0.05)
    assert error(found.weights, tracked(made), last_weights(made)) < 1e-5
    assert found.residual < 1e-6


def test_an_average_is_that_of_a_run_trained_with_it(made, digits, tmp_path, monkeypatch):
    cls = shelf.find("made").cls
    game = cls.game
    for length, bound in ((0.1, 0.01), (0.2, 0.01), (0.03, 0.1)):
        with monkeypatch.context() as patch:
            patch.setattr(cls, "game", lambda self, to=length: replace(game(self), average=to))
            run = tmp_path / f"{length}"
            train(replace(MADE, snapshots=0), run, data=digits, device="cpu")
        assert all(torch.equal(v, last_weights(made)[k]) for k, v in last_weights(run).items())
        found = snapshots.average(snapshots.read(made, pytest.fail), length)
        right, last = tracked(run), last_weights(run)
        assert error(found.weights, right, last) < bound
        assert error(tracked(made), right, last) > 5 * bound, (
            "the run's own would have done as well"
        )


def test_an_adversarial_one_too_which_takes_more_batches_a_round(tmp_path):
    def recipe(average, count):
        settings = {"average": average, "critic_steps": 3, "hidden": 16, "critic_hidden": 16}
        return Recipe("gan", "ring", budget="60steps", snapshots=count, settings=settings)

    for average, count in ((0.05, 16), (0.1, 0)):
        train(recipe(average, count), tmp_path / str(average), device="cpu")
    found = snapshots.average(snapshots.read(tmp_path / "0.05", pytest.fail), 0.1)
    right, last = tracked(tmp_path / "0.1"), last_weights(tmp_path / "0.1")
    assert error(found.weights, right, last) < 0.02
    assert error(tracked(tmp_path / "0.05"), right, last) > 0.1


def cut(rounds, *, killed):
    """Requests to stop that come after so many rounds; ``killed``: there is no time to save."""

    @contextmanager
    def requests():
        left = [rounds]

        def asked():
            left[0] -= 1
            if killed and left[0] == 0:
                raise ZeroDivisionError
            return left[0] == 0

        yield asked

    return requests


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
def test_a_stop_in_between_changes_no_bit(made, digits, tmp_path, monkeypatch, killed):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(conductor, "stop_requests", cut(30, killed=killed))
        with pytest.raises(ZeroDivisionError if killed else Refusal):
            train(MADE, run, data=digits, device="cpu", save_every=1e9)
    before = kept(run)
    assert len(before) == 7
    written = {name: (run / "averages" / name).stat().st_mtime_ns for name in before}
    if killed:
        # Begun anew from its first checkpoint: what came after that is of no path that went on.
        (run / "averages" / "round-000000027.safetensors").write_bytes(b"another path")
    with monkeypatch.context() as patch:
        patch.setattr(Recipe, "open_data", lambda self: digits)
        resume(run, device="cpu")
    assert kept(run) == kept(made)
    assert (run / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()
    (tensors, plain), (others, other) = state(run), state(made)
    assert tensors.keys() == others.keys()
    assert any(name.startswith("second/") for name in tensors)
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)
    assert plain["second"] == other["second"]
    if not killed:
        now = {name: (run / "averages" / name).stat().st_mtime_ns for name in before}
        assert now == written, "a snapshot was written again"


def test_without_snapshots_nothing_is_other_than_before(made, digits, tmp_path):
    run = tmp_path / "run"
    train(replace(MADE, snapshots=0), run, data=digits, device="cpu", save_every=1e9)
    assert not (run / "averages").exists()
    assert (run / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()
    (tensors, plain), (others, other) = state(run), state(made)
    assert "second" not in plain
    assert {k for k in others if not k.startswith("second/")} == set(tensors)
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)
    assert plain.keys() == other.keys() - {"second"}


def test_a_budget_of_seconds_has_them_too(digits, tmp_path):
    run = tmp_path / "run"
    numbers = train(replace(MADE, budget="2s", snapshots=4), run, data=digits, device="cpu")
    found = snapshots.read(run, pytest.fail)
    assert 2 <= len(found) <= 5
    assert found[-1].rounds == numbers["rounds"]


def test_a_damaged_snapshot_is_named_and_passed_over(made, tmp_path):
    names = sorted((made / "averages").iterdir())
    (tmp_path / "averages").mkdir()
    for path in names[-3:]:
        content = bytearray(path.read_bytes())
        if path == names[-2]:
            content[-1] ^= 1
        (tmp_path / "averages" / path.name).write_bytes(content)
    (tmp_path / "averages" / "round-000000001.safetensors").write_bytes(b"{}")
    told = []
    found = snapshots.read(tmp_path, told.append)
    assert [one.path.name for one in found] == [names[-3].name, names[-1].name]
    assert [name in line for name, line in zip(("000001", names[-2].name), told, strict=True)] == [
        True,
        True,
    ]


@pytest.mark.parametrize("count", [1, -3])
def test_numbers_that_make_nothing_are_refused(count):
    with pytest.raises(Refusal, match="snapshots") as caught:
        Recipe.from_json({"model": "made", "snapshots": count})
    assert caught.value.code == "CFG-240"


def test_a_model_without_an_average_is_refused_before_it_trains(tmp_path):
    with pytest.raises(Refusal, match="keeps no average") as caught:
        train(Recipe("independent", budget="2steps", snapshots=4), tmp_path / "run")
    assert caught.value.code == "CFG-241"
    assert not (tmp_path / "run").exists()


def test_lengths_are_compared_and_the_best_is_a_run_of_its_own(made, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(Recipe, "open_data", lambda self: digits)
    lengths = Lengths(made, count=100, device="cpu")
    trials = [lengths.tried(one, measure=True) for one in (0.005, 0.02, 0.05, 0.2)]
    assert [one.possible for one in trials] == [False, True, True, True]
    best = best_of(trials)
    lines = table(lengths, trials)
    assert "bits/dim (n = 100 valid)" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["0.005", "0.02", "0.05", "0.2", "kept"]
    assert "too much" in lines[1]
    assert "the run's own" in lines[3]
    assert sum("best" in line.split() for line in lines[1:]) == 1
    assert f"= {float(lengths.told(best.measured).mean()):.4f}" in lines[1 + trials.index(best)]

    (made / "features").mkdir()
    (made / "features" / "net.json").write_text("{}")
    out = lengths.keep(trials[3], tmp_path / "new" / "run")
    card, before = shelf.read_card(out), shelf.read_card(made)
    assert card["average"]["length"] == 0.2
    assert card["average"]["trained_with"] == 0.05
    assert card["recipe"] == before["recipe"]
    assert card["numbers"]["held_out_nats"] == pytest.approx(trials[3].value)
    model = shelf.from_pretrained(out)
    again = model.log_prob(digits.valid.first(100).x).double()
    assert torch.allclose(again, trials[3].measured)
    assert (out / "ledger.jsonl").read_bytes() == (made / "ledger.jsonl").read_bytes()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["run"]
    assert (out / "features" / "net.json").read_text() == "{}"
    for one in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(Refusal) as caught:
            lengths.tried(one, measure=True)
        assert caught.value.code == "CFG-246"
    with pytest.raises(Refusal) as caught:
        lengths.keep(trials[3], out)
    assert caught.value.code == "CFG-247"
    with pytest.raises(Refusal) as caught:
        lengths.keep(trials[0], tmp_path / "other")
    assert caught.value.code == "CFG-243"
    assert not (tmp_path / "other").exists()


class Part(torch.nn.Module):
    """One weight that moves by one a round, and one that formulas write."""

    def __init__(self):
        super().__init__()
        self.moved = torch.nn.Parameter(torch.zeros(1))
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("rounds", torch.zeros((), dtype=torch.long))


class Numbers:
    batch_size = 4

    def batch(self, index):
        return Batch(torch.zeros(4, 1))

    def sweep(self):
        yield Batch(torch.zeros(4, 1))


def played(model, stages, folder, *, at, best=None, rounds):
    """Play to the end, with snapshots after the rounds ``at``."""
    play = Play(model, Game(stages, average=0.1), second=True)
    for report in play.rounds(Numbers(), lambda clock: clock.rounds / rounds):
        if report.wants_best:
            play.stand_at(best)
        elif play.clock.rounds in at:
            snapshots.keep(folder, play)
    return play


def mover(model):
    player = Player("one", [model.moved], Optimiser("sgd", 1.0, schedule="constant"))
    return Descent((player,), lambda batch, noise, clock: Loss(-model.moved.sum()))


def test_what_a_formula_has_written_is_made_of_snapshots_after_it(tmp_path):
    model = Part()

    def count(batches, noise, clock):
        model.seen.fill_(100.0 * sum(len(batch) for batch in batches))
        model.rounds += 1
        return {}

    move = mover(model)
    write = Stage([Rewrite("count", count, sweep=True), move], rounds=1)
    stages = [Stage([move], 0.5), write, Stage([move], 0.5)]
    play = played(model, stages, tmp_path, at=range(2, 41, 2), rounds=40)
    found = snapshots.average(snapshots.read(tmp_path, pytest.fail), 0.2)
    assert play.second.since.keys() == {"seen"}
    assert found.weights["seen"].tolist() == model.seen.tolist() == [400.0]
    assert found.weights["rounds"] == 1
    assert found.weights["moved"].item() < play.shadow["moved"].item()
    assert found.residual < 0.02


def test_a_stage_that_begins_at_the_best_weights_forgets_what_was_before(tmp_path):
    model = Part()
    best = {name: value.clone() + 1000 for name, value in model.state_dict().items()}
    move = mover(model)
    stages = [Stage([move], 0.5), Stage([move], 0.5, from_best=True)]
    play = played(model, stages, tmp_path, at=range(2, 41, 2), best=best, rounds=40)
    found = snapshots.average(snapshots.read(tmp_path, pytest.fail), 0.2)
    assert set(play.second.since) == set(play.shadow)
    newest = max((tmp_path / "averages").iterdir())
    written = newest.stat().st_mtime_ns
    snapshots.keep(tmp_path, play)
    assert newest.stat().st_mtime_ns == written, "what stands there already was written again"
    assert 1000 < found.weights["moved"].item() < play.shadow["moved"].item() < 1020


def test_snapshots_before_such_a_stage_are_said_to_be_of_no_use(digits, tmp_path, monkeypatch):
    """Under its learnt prior a VAE stands still, and every length gives the same."""
    monkeypatch.setattr(Recipe, "open_data", lambda self: digits)
    settings = {"prior": "gaussian-mixture", "hidden": 16, "latent": 4}
    recipe = Recipe("vae", budget="40steps", snapshots=4, settings=settings)
    run = tmp_path / "run"
    train(recipe, run, data=digits, device="cpu")
    assert "held_out_nats" in json.loads((run / "card.json").read_text())["numbers"]
    told = []
    lengths = Lengths(run, device="cpu", show=replace(conductor.QUIET, line=told.append))
    assert any("4 of 5 snapshots" in line for line in told)
    with pytest.raises(Refusal) as caught:
        lengths.tried(0.1, measure=True)
    assert caught.value.code == "CFG-245"
