"""Rows of a table as reals and back, and the bound that the noise makes."""

import math

import pytest
import torch

from simulacra.data.dataset import Part, Stream
from simulacra.games import Batch, Clock
from simulacra.layers.table_reals import TableReals, real_size
from simulacra.play import Play
from simulacra.probability.noise import BatchNoise
from simulacra.shelf import build
from simulacra.spaces import Column, Table

MIXED = Table(
    (
        Column("width"),
        Column("colour", "category", ("red", "green", "blue")),
        Column("age", missing=True),
        Column("answer", "category", ("no", "yes")),
    )
)


def rows(count, seed=0):
    return MIXED.random(count, torch.Generator().manual_seed(seed)) * torch.tensor([3.0, 1, 2, 1])


def noise(count, seed=1):
    return BatchNoise(torch.Generator().manual_seed(seed), count)


@pytest.fixture
def fitted():
    part = TableReals(MIXED)
    part.fit([rows(500), rows(500, 2)])
    return part


def test_there_and_back(fitted):
    x = rows(300, 5)
    z, _ = fitted.enter(x, noise(300))
    assert z.shape == (300, real_size(MIXED)) == (300, 5)
    assert torch.allclose(fitted.leave(z), x, atol=1e-5, equal_nan=True)


def test_every_number_is_about_standard_normal(fitted):
    z, _ = fitted.enter(rows(1000), noise(1000))
    assert z.mean(0).abs().max() < 0.15
    assert (z.std(0) - 1).abs().max() < 0.15


def test_independent_standard_normals_are_the_model_of_independent_columns(fitted):
    """With N(0, I) for z, the bound is exact: frequencies, and normal densities of what is there."""
    x = rows(200, 7)
    z, slope = fitted.enter(x, noise(200))
    bound = slope - 0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
    known = torch.cat([rows(500), rows(500, 2)]).double()
    expected = torch.zeros(200, dtype=torch.float64)
    for column, values in ((0, known[:, 0]), (2, known[~known[:, 2].isnan(), 2])):
        normal = torch.distributions.Normal(values.mean(), values.std(correction=0))
        there = ~x[:, column].isnan()
        expected[there] += normal.log_prob(x[there, column].double())
    absent = known[:, 2].isnan().double().sum()
    missing = (absent + 0.25) / 1000.5
    expected += torch.where(x[:, 2].isnan(), missing.log(), (1 - missing).log())
    for column, count in ((1, 3), (3, 2)):
        counts = known[:, column].long().bincount(minlength=count) + 0.5 / count
        expected += (counts / counts.sum()).log()[x[:, column].long()]
    assert torch.allclose(bound.double(), expected, atol=1e-4)


def test_a_missing_number_is_known_to_be_missing_and_no_more(fitted):
    x = torch.tensor([[1.0, 2, math.nan, 0]])
    known = fitted.known(x, torch.tensor([[True, False, True, True]]))
    assert known.tolist() == [[True, False, False, True, True]]


def test_a_table_of_reals_has_no_noise():
    part = TableReals(Table((Column("a"), Column("b"))))
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) * 4 + 1
    part.fit([x])
    one, other = part.enter(x, noise(50, 1)), part.enter(x, noise(50, 2))
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])
    assert torch.allclose(one[1], -x.std(0, correction=0).log().sum().expand(50))


@pytest.mark.parametrize("name", ["gaussian-mixture", "maf", "spline-flow", "nice", "realnvp"])
def test_what_models_average_sums_to_one(name):
    """exp of one draw's bound has the mean p(x), and p sums to one over all states."""
    space = Table(MIXED.columns[1::2])
    model = build(name, space, num_examples=500).double().eval()
    states = torch.cartesian_prod(torch.arange(3.0), torch.arange(2.0))
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        draws = [model.log_prob(states, generator=stream).exp().sum() for _ in range(300)]
    total = torch.stack(draws)
    assert (total.mean() - 1).abs() < 4 * total.std() / 300**0.5
    assert total.std() / 300**0.5 < 0.05, "or the line above could not fail"
    assert space.contains(model.sample(30, generator=stream))


def test_given_columns_stand_and_draw_the_others():
    """Width decides the colour; the mixture draws colours that go with the widths it was given."""
    space = Table(MIXED.columns[:2])
    stream = torch.Generator().manual_seed(0)
    colour = torch.randint(3, (600,), generator=stream).float()
    width = colour * 10 + torch.randn(600, generator=stream)
    model = build("gaussian-mixture", space, settings={"components": 3}, num_examples=600)
    batches = [Batch(torch.stack([width, colour], 1))]
    model.start(iter(batches), noise(600), Clock())
    for _ in range(20):
        model.expect_maximise(iter(batches), noise(600), Clock())
    asked = torch.stack([torch.tensor([0.0, 10.0, 20.0]).repeat(20), torch.zeros(60)], 1)
    known = torch.tensor([True, False]).expand(60, 2)
    drawn = model.complete(asked, known, generator=torch.Generator().manual_seed(3))
    assert torch.equal(drawn[:, 0], asked[:, 0])
    assert (drawn[:, 1] == asked[:, 0] / 10).double().mean() > 0.7


def test_averaged_weights_are_numbers_where_columns_have_different_numbers_of_categories():
    data = Part(rows(200), torch.arange(200), MIXED, None)
    model = build("maf", MIXED, settings={"hidden": 8, "batch_size": 32}, num_examples=200)
    play = Play(model, model.game(), seed=0)
    for _ in play.rounds(Stream(data, 32, seed=0), lambda clock: clock.rounds / 6):
        if play.clock.rounds >= 6:
            break
    for weights in (model.state_dict(), play.state()[0]):
        assert all(value.isfinite().all() for value in weights.values())
    assert model.eval().log_prob(rows(20, 3)).isfinite().all()
