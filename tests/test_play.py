"""The loop: who moves when, on which data, and what is kept."""

import copy

import pytest
import torch
from torch import nn

from simulacra.families.composed import played_inside
from simulacra.games import Batch, Clock, Descent, Game, Loss, Player, Rewrite, Stage
from simulacra.optimisation import OPTIMISERS, AdamP, Optimiser
from simulacra.play import Play
from simulacra.refusals import Refusal


class Numbered:
    """Batch number i holds rows that depend on i alone."""

    def __init__(self, batch_size=4, size=3):
        self.batch_size, self.size = batch_size, size

    def batch(self, index):
        stream = torch.Generator().manual_seed(index)
        return Batch(torch.randn(self.batch_size, self.size, generator=stream))

    def sweep(self):
        yield from (self.batch(index) for index in range(3))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 3), nn.Linear(3, 3)
        self.register_buffer("seen", torch.zeros(()))


SGD = Optimiser("sgd", 0.1, schedule="constant")


def left(model, optimiser=SGD, **more):
    return Player("left", list(model.left.parameters()), optimiser, **more)


def right(model):
    return Player("right", list(model.right.parameters()), SGD)


def played(model, stages, rounds=None, progress=lambda clock: 0.0, source=None, **more):
    play = Play(model, Game(stages, **more))
    reports = []
    for report in play.rounds(source or Numbered(), progress):
        reports.append(report)
        if rounds is not None and len(reports) >= rounds:
            break
    return play, reports


def test_the_list_is_the_algorithm():
    model, moves = Two(), []

    def move(name, module):
        def loss(batch, noise, clock):
            moves.append((name, float(batch.x.sum())))
            return Loss(module(batch.x).square().mean())

        return loss

    critic = Descent((left(model),), move("critic", model.left))
    maker = Descent((right(model),), move("maker", model.right), batches=0)
    play, _ = played(model, [Stage([critic] * 5 + [maker])], rounds=2)
    assert [name for name, _ in moves] == (["critic"] * 5 + ["maker"]) * 2
    data = [seen for name, seen in moves if name == "critic"]
    assert len(set(data)) == 10
    assert moves[5][1] == moves[4][1]
    assert (play.clock.rounds, play.clock.batches, play.clock.examples) == (2, 10, 40)


def test_a_lazy_turn_comes_every_so_often():
    model, rounds = Two(), []

    def loss(batch, noise, clock):
        rounds.append(clock.rounds)
        return Loss(model.left(batch.x).square().mean())

    played(model, [Stage([Descent((left(model),), loss, every=3)])], rounds=8)
    assert rounds == [0, 3, 6]


def test_a_turn_moves_nobody_else():
    model = Two()
    before = copy.deepcopy(model.state_dict())
    turn = Descent(
        (left(model),), lambda b, n, c: Loss(model.right(model.left(b.x)).square().mean())
    )
    played(model, [Stage([turn])], rounds=3)
    assert torch.equal(model.right.weight, before["right.weight"])
    assert model.right.weight.grad is None
    assert not torch.equal(model.left.weight, before["left.weight"])


def test_stages_share_the_budget():
    model, stages = Two(), []

    def loss(batch, noise, clock):
        stages.append((clock.stage, round(clock.progress, 3)))
        return Loss(model.left(batch.x).square().mean())

    turn = Descent((left(model),), loss)
    wanted = [Stage([turn], rounds=2), Stage([turn], share=1.0), Stage([turn], share=3.0)]
    # The stage of two rounds takes no share; the others split the budget's eight rounds 1 : 3.
    progress = lambda clock: max(clock.rounds - 2, 0) / 8  # noqa: E731
    play, _ = played(model, wanted, progress=progress)
    assert [stage for stage, _ in stages] == [0] * 2 + [1] * 2 + [2] * 6
    assert [within for _, within in stages] == [0, 0, 0, 0.5] + [round(i / 6, 3) for i in range(6)]
    assert play.clock.stage == 3


def test_finished_ends_a_stage():
    model, told = Two(), []

    def formula(batches, noise, clock):
        told.append(len(list(batches)))
        return {"count": 2.0, "finished": float(len(told) == 4)}

    play, reports = played(model, [Stage([Rewrite("count", formula, sweep=True)], rounds=100)])
    assert told == [3] * 4
    assert play.clock.examples == 4 * 12
    assert reports[-1].numbers == {"count": 2.0}


def test_accumulation_equals_a_big_batch():
    models = [Two() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model, parts in zip(models, (3, 1), strict=True):

        class Cut(Numbered):
            def batch(self, index, parts=parts):
                whole = torch.cat([Numbered().batch(i).x for i in range(3)])
                return Batch(whole.chunk(parts)[index])

        turn = Descent((left(model),), lambda b, n, c: Loss(model.left(b.x).square().mean()), parts)  # noqa: B023
        _, reports = played(model, [Stage([turn], rounds=1)], source=Cut())
        model.told = reports[0].numbers["loss"]
    torch.testing.assert_close(models[0].left.weight, models[1].left.weight)
    assert models[0].told == pytest.approx(models[1].told)


def test_the_average_stands_only_inside():
    model = Two()
    turn = Descent((left(model),), lambda b, n, c: Loss(model.left(b.x).square().mean()))
    play, _ = played(model, [Stage([turn])], rounds=10, average=0.2)
    last = copy.deepcopy(model.state_dict())
    model.train()
    with play.averaged():
        assert not model.training
        assert not torch.equal(model.left.weight, last["left.weight"])
        torch.testing.assert_close(model.left.weight, play.shadow["left.weight"])
    assert model.training
    assert all(torch.equal(value, last[name]) for name, value in model.state_dict().items())
    with pytest.raises(ZeroDivisionError), play.averaged():
        raise ZeroDivisionError
    assert torch.equal(model.left.weight, last["left.weight"])


@pytest.mark.parametrize("others", [0, 4])
def test_the_average_lies_between_the_weights_it_saw(others):
    """However many examples other turns of a round take: a half-life is a share of them all."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    player = Player("one", [model.weight], Optimiser("sgd", 1.0, schedule="constant"))
    # A slope of minus one: the weight is the number of rounds.
    turn = Descent((player,), lambda b, n, c: Loss(-model.weight.sum()))
    idle = [Rewrite(f"look {i}", lambda b, n, c: {"seen": len(list(b))}) for i in range(others)]
    play, _ = played(model, [Stage([turn, *idle])], rounds=50, average=0.1)
    assert float(model.weight.detach()) == pytest.approx(50)
    assert play.clock.batches == 50 * (1 + others)
    # A half-life of a tenth of 50 rounds: about 5 / ln 2 rounds behind, less as it ramps up.
    assert 40 < float(play.shadow["weight"]) < 48


def test_one_name_is_one_player():
    model = Two()
    turns = [Descent((left(model),), None), Descent((left(model),), None)]
    with pytest.raises(ValueError, match="left"):
        Play(model, Game([Stage(turns)]))


def test_clipping_cuts_the_norm():
    model = Two()
    before = copy.deepcopy(model.left.state_dict())
    turn = Descent(
        (left(model, clip=0.01),), lambda b, n, c: Loss(1e3 * model.left(b.x).square().mean())
    )
    played(model, [Stage([turn])], rounds=1)
    moved = torch.cat(
        [(p.detach() - before[n]).flatten() for n, p in model.left.named_parameters()]
    )
    assert float(moved.norm()) == pytest.approx(0.01 * 0.1, rel=1e-3)


def test_not_a_number_is_skipped_and_forgiven():
    model, spoilt = Two(), {1, 2}

    def loss(batch, noise, clock):
        value = model.left(batch.x).square().mean()
        return Loss(value * float("nan") if clock.rounds in spoilt else value)

    play, reports = played(model, [Stage([Descent((left(model),), loss)])], rounds=5)
    assert [report.skipped for report in reports] == [0, 1, 1, 0, 0]
    assert play.skips == 0
    spoilt |= {5, 6, 7}
    with pytest.raises(Refusal) as refusal:
        list(play.rounds(Numbered(), lambda clock: 0.0))
    assert refusal.value.code == "NUM-002"
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_an_infinite_gradient_with_a_finite_loss_is_caught():
    model = Two()
    nn.init.zeros_(model.left.weight)
    nn.init.zeros_(model.left.bias)
    before = copy.deepcopy(model.state_dict())
    # The square root's slope at zero has no bound, its value has.
    turn = Descent((left(model),), lambda b, n, c: Loss(model.left(b.x).square().sum().sqrt()))
    _, reports = played(model, [Stage([turn])], rounds=1)
    assert reports[0].skipped == 1
    assert torch.isfinite(torch.tensor(reports[0].numbers["loss"]))
    assert torch.equal(model.left.weight, before["left.weight"])


def test_the_global_generator_is_put_back():
    model = Two()
    model.dropout = nn.Dropout(0.5)
    turn = Descent((left(model),), lambda b, n, c: Loss(model.dropout(model.left(b.x)).mean()))
    before = torch.get_rng_state()
    played(model, [Stage([turn])], rounds=2)
    assert torch.equal(before, torch.get_rng_state())


def test_autocast_works_with_chosen_inputs():
    models = [Two() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    types = []
    for model, bf16 in zip(models, (False, True), strict=True):

        def loss(batch, noise, clock, model=model):
            out = model.right(model.left(batch.x))
            types.append(out.dtype)
            return Loss(out.float().square().mean())

        play = Play(model, Game([Stage([Descent((left(model),), loss)], rounds=5)]), bf16=bf16)
        list(play.rounds(Numbered(), lambda clock: 0.0))
    assert types == [torch.float32] * 5 + [torch.bfloat16] * 5
    assert models[1].left.weight.dtype == torch.float32
    assert models[1].right.weight.grad is None
    torch.testing.assert_close(models[0].left.weight, models[1].left.weight, atol=0.02, rtol=0.02)


def test_compile_works_with_chosen_inputs():
    models = [Two() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    start = copy.deepcopy(models[0].state_dict())
    for model, run in zip(models, (lambda f: f, torch.compile), strict=True):

        def value(x, model=model):
            return model.right(model.left(x).tanh()).square().mean()

        chosen = run(value)
        turn = Descent((left(model),), lambda b, n, c, chosen=chosen: Loss(chosen(b.x)))
        played(model, [Stage([turn], rounds=3)])
    torch.testing.assert_close(models[0].left.weight, models[1].left.weight)
    assert not torch.equal(models[1].left.weight, start["left.weight"])
    assert torch.equal(models[1].right.weight, start["right.weight"])


PEERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.01),
    "momentum": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p, 0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.0),
    "radam": lambda p: torch.optim.RAdam(p, 0.01),
}


@pytest.mark.parametrize("name", PEERS)
def test_optimisers_are_torchs(name):
    ours, theirs = Two(), Two()
    theirs.load_state_dict(ours.state_dict())
    player = left(ours, Optimiser(name, 0.01, schedule="constant"))
    turn = Descent((player,), lambda b, n, c: Loss(ours.left(b.x).square().mean()))
    played(ours, [Stage([turn])], rounds=8)
    peer = PEERS[name](theirs.left.parameters())
    for index in range(8):
        peer.zero_grad()
        theirs.left(Numbered().batch(index).x).square().mean().backward()
        peer.step()
    torch.testing.assert_close(ours.left.weight, theirs.left.weight)


def test_every_optimiser_is_tested():
    assert set(OPTIMISERS) == {*PEERS, "adamp"}


def test_adamp_drops_the_radial_part_for_scale_invariant_weights():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 6))
    start, target = weight.detach().clone(), torch.randn(4, 6)
    optimiser = AdamP([weight], lr=1e-3)
    # A loss of each row's direction only: its slope is orthogonal to the row.
    (nn.functional.cosine_similarity(weight, target, dim=1)).sum().backward()
    optimiser.step()
    step = weight.detach() - start
    assert float(step.norm()) > 1e-4
    assert float((step * start).sum(1).abs().max()) < 1e-6


def test_adamp_is_adam_elsewhere():
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(5))
    theirs = nn.Parameter(ours.detach().clone())
    first, second = AdamP([ours], lr=0.01), torch.optim.Adam([theirs], lr=0.01)
    for _ in range(5):
        for p, optimiser in ((ours, first), (theirs, second)):
            optimiser.zero_grad()
            (p**4).sum().backward()
            optimiser.step()
    torch.testing.assert_close(ours, theirs)


def test_the_schedule_warms_up_and_falls():
    wanted = Optimiser(learning_rate=1.0, warmup=100)
    assert wanted.factor(0, 0.0) == pytest.approx(0.01)
    assert wanted.factor(49, 0.0) == pytest.approx(0.5)
    assert wanted.factor(1000, 0.0) == 1
    assert wanted.factor(1000, 0.5) == pytest.approx(0.5)
    assert wanted.factor(1000, 1.0) == pytest.approx(0)
    assert Optimiser(schedule="constant").factor(5, 0.9) == 1


@pytest.mark.parametrize(
    "wrong", [{"name": "adm"}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}]
)
def test_wrong_optimisers_are_refused(wrong):
    with pytest.raises(Refusal):
        Optimiser(**wrong)


def test_a_component_s_game_is_played_on_what_it_sees():
    """Its turns get other batches and a clock of their own; players and buffers have its name."""
    seen, clocks = [], []

    def loss(batch, noise, clock):
        seen.append(batch.x)
        clocks.append(clock.stage)
        return Loss(batch.x.mean() * weight)

    def formula(batches, noise, clock):
        seen.extend(batch.x for batch in batches)
        clocks.append(clock.stage)
        return {"finished": 1.0}

    weight = nn.Parameter(torch.ones(()))
    player = Player("network", [weight], Optimiser("sgd", 0.1))
    turn = Descent((player,), loss, buffers=("mean",))
    inner = Game(
        [
            Stage([turn, turn], share=3.0),
            Stage([turn]),
            Stage([Rewrite("count", formula)], rounds=1),
        ]
    )
    stages = played_inside(
        inner, "prior", lambda batch, noise: Batch(batch.x + 100), after=1, share=0.5
    )
    assert [stage.share for stage in stages[:2]] == [0.375, 0.125]
    first, again = stages[0].turns
    assert first is again is stages[1].turns[0]
    assert first.buffers == ("prior.mean",)
    assert [one.name for one in first.players] == ["prior network"]
    assert stages[2].rounds == 1
    game = Game([Stage([first], rounds=2), *stages])
    assert list(game.players()) == ["prior network"]

    noise = object()
    first.loss(Batch(torch.zeros(2)), noise, Clock(stage=2))
    told = stages[2].turns[0].formula(iter([Batch(torch.ones(2))]), noise, Clock(stage=3))
    assert told == {"finished": 1.0}
    assert [float(x[0]) for x in seen] == [100, 101]
    assert clocks == [1, 2]


def test_a_warm_up_counts_from_the_player_s_first_stage():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.early, self.late = (nn.Parameter(torch.ones(())) for _ in range(2))

        def game(self):
            wanted = Optimiser("sgd", 1.0, schedule="constant", warmup=40)
            players = [Player(n, [p], wanted) for n, p in self.named_parameters()]
            turns = [
                Descent(
                    (player,), lambda batch, noise, clock, p=player: Loss(p.parameters[0] * 1.0)
                )
                for player in players
            ]
            return Game([Stage([one], rounds=5) for one in turns], batch_size=8)

    class Ten:
        batch_size = 8

        def batch(self, index):
            return Batch(torch.zeros(8, 1))

    steps = {"early": [], "late": []}
    model = Pair()
    play = Play(model, model.game())
    before = {name: float(p) for name, p in model.named_parameters()}
    for _ in play.rounds(Ten(), lambda clock: 0.0):
        for name, p in model.named_parameters():
            if float(p) != before[name]:
                steps[name].append(before[name] - float(p))
                before[name] = float(p)
    assert len(steps["late"]) == 5
    assert steps["late"] == pytest.approx(steps["early"], abs=1e-6)
    assert steps["late"][0] < 0.5 * steps["late"][-1]
    again = Play(Pair(), Pair().game())
    again.load_state(*play.state())
    assert again.began == {"early": 0, "late": 40}


def test_a_component_remembers_what_its_first_sweep_saw():
    looks, swept = [], []

    def see(batch):
        looks.append(len(batch))
        return Batch(batch.x + len(looks), batch.condition)

    def formula(batches, noise, clock):
        swept.append(list(batches))
        return {}

    inner = Game([Stage([Rewrite("EM", formula, sweep=True)], rounds=2)], batch_size=5)
    stages = played_inside(
        inner, "prior", lambda *_: Batch(torch.zeros(1)), after=0, remembered=see
    )
    play, _ = played(Two(), stages)
    assert play.clock.examples == 24, "a sweep counts whether it is looked at or remembered"
    assert looks == [4, 4, 4], "the first sweep alone is seen"
    assert [len(batch) for batch in swept[0]] == [5, 5, 2]
    assert torch.equal(swept[0][2].x, swept[1][2].x)
    rows = torch.cat([Numbered().batch(i).x + i + 1 for i in range(3)])
    assert torch.allclose(torch.cat([batch.x for batch in swept[1]]), rows)


def test_a_sweep_moves_the_average_as_a_batch_does():
    model = Two()
    moves = Descent((left(model),), lambda batch, noise, clock: Loss(model.left(batch.x).sum()))
    look = Rewrite("look", lambda batches, noise, clock: {"seen": len(list(batches))}, sweep=True)
    play = Play(model, Game([Stage([moves], rounds=5), Stage([look], rounds=3)], average=0.5))
    averages = [
        play.shadow["left.bias"].clone() for _ in play.rounds(Numbered(), lambda clock: 0.0)
    ]
    assert len(averages) == 8
    assert play.clock.examples == 5 * 4 + 3 * 12
    weight = 1 - 0.5 ** (4 / (0.5 * (5 * 4 + 12)))
    torch.testing.assert_close(averages[5], averages[4].lerp(model.left.bias.detach(), weight))


def test_what_a_sweep_has_written_stands_in_the_average_as_it_is():
    model = Two()

    def count(batches, noise, clock):
        model.seen.fill_(sum(len(batch) for batch in batches))
        return {"finished": 1.0}

    moves = Descent((left(model),), lambda batch, noise, clock: Loss(model.left(batch.x).sum()))
    stages = [Stage([moves], rounds=5), Stage([Rewrite("count", count, sweep=True)], rounds=1)]
    play, _ = played(model, stages, average=0.5)
    assert not torch.equal(play.shadow["left.bias"], model.left.bias)
    assert play.shadow["seen"] == model.seen == 12


def test_a_stage_can_begin_at_the_best_weights():
    model = Two()
    best = {name: value.clone() for name, value in model.state_dict().items()}
    moves = Descent((left(model),), lambda batch, noise, clock: Loss(model.left(batch.x).sum()))
    still = Rewrite("look", lambda batches, noise, clock: {"bias": float(model.left.bias[0])})
    play = Play(
        model, Game([Stage([moves]), Stage([still], rounds=2, from_best=True)], average=0.5)
    )
    reports = []
    for report in play.rounds(Numbered(), lambda clock: clock.rounds / 5):
        if report.wants_best:
            assert not torch.equal(model.left.bias, best["left.bias"])
            play.stand_at(best)
        reports.append(report)
    assert [one.wants_best for one in reports] == [False] * 5 + [True, False, False]
    assert reports[-1].numbers["bias"] == float(best["left.bias"][0])
    assert torch.equal(play.shadow["left.bias"], best["left.bias"])
    assert play.reopen(), "the best are to be found anew"
    assert play.clock.stage == 0
    assert play.skip_to_best()
    assert play.clock.stage == 1
    assert not play.skip_to_best()


def test_all_processes_draw_the_same_for_a_sweep(monkeypatch):
    """Each sees all the data there, and would end with a model of its own."""
    drawn = []

    def look(batches, noise, clock):
        drawn.append(noise.normal(2))
        return {"finished": 1.0}

    stages = [Stage([Rewrite("look", look, sweep=True)], rounds=1)]
    for ranked in ((1, 0), (2, 0), (2, 1)):
        monkeypatch.setattr("simulacra.play.world_and_rank", lambda ranked=ranked: ranked)
        played(Two(), stages)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
