"""CTGAN: what is told stands in the row, rare categories are evened out, and columns depend."""

import pytest
import torch

from simulacra.data.dataset import Part, Stream
from simulacra.games import Batch
from simulacra.models.adversarial.ctgan import CTGAN, Config
from simulacra.play import Play
from simulacra.probability.noise import BatchNoise
from simulacra.refusals import Refusal
from simulacra.spaces import Column, Table

KINDS = ("common", "rare")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def table(count=2000):
    """A number whose place and a gap whose frequency depend on a category; every tenth row is rare."""
    g = seeded()
    kind = (torch.rand(count, generator=g) < 0.1).float()
    number = torch.where(kind > 0, 5.0, -5.0) + torch.randn(count, generator=g)
    gap = torch.randn(count, generator=g)
    gap[(torch.rand(count, generator=g) < 0.5) & (kind > 0)] = torch.nan
    space = Table(
        (Column("kind", "category", KINDS), Column("number"), Column("gap", missing=True))
    )
    return space, torch.stack([kind, number, gap], dim=1)


def small(space):
    torch.manual_seed(0)
    config = Config(
        latent=8,
        hidden=32,
        layers=1,
        batch_size=100,
        learning_rate=2e-3,
        loss="relativistic",
        regulariser="r1+r2",
        penalty=0.1,
        pack=1,
    )
    return CTGAN(space, config)


def test_a_classifier_of_columns_is_refused():
    space, _ = table(10)
    with pytest.raises(Refusal, match="tells one class"):
        CTGAN(space, Config(conditioning="auxiliary", pack=1))


def test_a_critic_without_a_hidden_layer_is_refused():
    space, _ = table(10)
    with pytest.raises(Refusal, match="hidden layer"):
        CTGAN(space, Config(layers=0))


def test_a_rare_category_is_told_as_often_as_its_logarithm_says():
    space, x = table()
    model = small(space)
    model.door.fit([x])
    row = model.door.enter(x[:1000], BatchNoise(seeded(), 1000))
    column = torch.zeros(1000, dtype=torch.long)
    chosen = model._evened(row, column, torch.rand(1000, generator=seeded(1)))
    count = torch.bincount(x[:1000, 0].long()).float()
    expected = float((count.log1p() / count.log1p().sum())[1])
    assert float(x[chosen, 0].mean()) == pytest.approx(expected, abs=0.05)
    assert expected > 3 * float(x[:, 0].mean())


def test_what_is_told_stands_in_both_rows_and_the_rest_does_not():
    space, x = table()
    model = small(space)
    model.door.fit([x])
    sides = model._sides(Batch(x[:1000]), BatchNoise(seeded(), 1000))
    known = sides.classes[:, model.door.size :].bool()
    assert 0.2 < known.float().mean() < 0.8
    spread = known[:, model.door.column_of]
    assert torch.equal(sides.real[spread], sides.made[spread])
    assert (sides.real[~spread] - sides.made[~spread]).abs().mean() > 0.1
    told = sides.classes[:, : model.door.size]
    assert torch.equal(told[spread], sides.real[spread])
    assert told[~spread].abs().max() == 0


def test_given_columns_decide_the_others():
    space, x = table()
    model = small(space)
    stream = Stream(Part(x, torch.arange(len(x)), space), 100, seed=0, conditional=False)
    play = Play(model, model.game(), seed=0)
    for report in play.rounds(stream, lambda clock: clock.rounds / 250):
        assert not report.skipped
    with play.averaged():
        drawn = model.sample(2000, generator=seeded(3))
        rows = torch.zeros(400, 3)
        rows[:200, 0] = 1.0
        known = torch.tensor([True, False, False]).expand(400, 3)
        given = model.complete(rows, known, generator=seeded(4))
    assert float(drawn[:, 0].mean()) == pytest.approx(0.1, abs=0.05)
    assert given[:200, 1].median() > 2
    assert given[200:, 1].median() < -2
    gaps = given[:, 2].isnan().float()
    assert gaps[:200].mean() > gaps[200:].mean() + 0.2


def test_rows_do_not_depend_on_their_neighbours_while_it_trains():
    """The generator normalises over batches in training, and must not where rows are drawn."""
    space, x = table()
    model = small(space)
    model.door.fit([x])
    model.train()
    many, few = (model.sample(n, generator=seeded(5)) for n in (40, 7))
    torch.testing.assert_close(few, many[:7], equal_nan=True)
    known = torch.tensor([True, False, False]).expand(40, 3)
    many = model.complete(x[:40], known, generator=seeded(6))
    few = model.complete(x[:7], known[:7], generator=seeded(6))
    torch.testing.assert_close(few, many[:7], equal_nan=True)
    assert model.generator.training
