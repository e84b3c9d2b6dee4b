"""Columns: families that are normalised, draws that follow them, values that come back as elements."""

import math

import pytest
import torch

from simulacra.layers.ancestral import completed, drawn
from simulacra.layers.columns import Bernoulli, Categorical, Columns, Gaussians, Logistics
from simulacra.layers.orders import orders, random_order
from simulacra.spaces import Column, Images, Table, Tokens, Vectors

TABLE = Table(
    (
        Column("a"),
        Column("b", "category", ("x", "y", "z")),
        Column("c", "category", ("u", "v")),
        Column("d"),
    )
)
SPACES = [Images(1, 2, 3, 2), Images(3, 2, 1, 5), Images(1, 2, 2, 256), Tokens(4, 6), TABLE]
DISCRETE = [(Bernoulli(), 2), (Categorical(5), 5), (Logistics(40, 3), 40)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("family", "levels"), DISCRETE)
def test_masses_of_all_levels_are_one(family, levels):
    raw = 2 * torch.randn(7, 1, family.outputs, dtype=torch.float64)
    every = torch.arange(levels, dtype=torch.float64).expand(7, -1)
    total = family.log_prob(every, raw.expand(7, levels, -1)).exp().sum(1)
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("family", "levels"), DISCRETE)
def test_draws_have_their_probabilities(family, levels):
    raw = torch.randn(family.outputs, generator=seeded(3))
    uniform = torch.rand(40_000, 2, generator=seeded(1))
    x = family.draw(raw.expand(len(uniform), -1), uniform)
    probability = family.log_prob(torch.arange(float(levels)), raw.expand(levels, -1)).exp()
    observed = torch.bincount(x.long(), minlength=levels) / len(x)
    assert float((observed - probability).abs().max()) < 4 * math.sqrt(0.25 / len(x))


def test_a_mixture_integrates_to_one_and_is_drawn_from():
    family = Gaussians(4)
    raw = torch.randn(family.outputs, dtype=torch.float64, generator=seeded(5))
    x = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    density = family.log_prob(x, raw.expand(len(x), -1)).exp()
    assert float(torch.trapezoid(density, x)) == pytest.approx(1, abs=1e-9)
    drawn = family.draw(raw.expand(40_000, -1), torch.rand(40_000, 2, generator=seeded(2)))
    mean = torch.trapezoid(density * x, x)
    spread = torch.trapezoid(density * (x - mean).square(), x).sqrt()
    assert float(drawn.mean()) == pytest.approx(float(mean), abs=5 * float(spread) / 200)
    assert float(drawn.std()) == pytest.approx(float(spread), rel=0.03)
    assert torch.isfinite(
        family.draw(raw.expand(2, -1), torch.tensor([[0.0, 0.0], [1 - 2**-24, 1 - 2**-24]]))
    ).all()


@pytest.mark.parametrize("space", [*SPACES, Vectors(3)], ids=str)
def test_values_come_back_and_draws_are_elements(space):
    columns = Columns(space, 3)
    x = space.random(50, seeded())
    columns.fit(iter([x[:20], x[20:]]))
    torch.testing.assert_close(columns.elements(columns.values(x)), x)
    raw = torch.randn(50, space.dimensions, columns.outputs)
    uniform = torch.rand(50, space.dimensions, 2)
    every = torch.arange(space.dimensions)
    new = columns.draw(raw, uniform, every)
    assert space.contains(columns.elements(new))
    one_by_one = [columns.draw(raw[:, i], uniform[:, i], every[i]) for i in every]
    torch.testing.assert_close(new, torch.stack(one_by_one, 1))
    assert columns.read(new, every).shape == (50, space.dimensions, columns.inputs)


def test_real_columns_are_standardised_and_their_density_pays_for_it():
    columns, plain = Columns(TABLE, 2), Columns(TABLE, 2)
    x = TABLE.random(500, seeded())
    x[:, 3] = 100 + 7 * x[:, 3]
    columns.fit(iter([x]))
    values = columns.values(x)
    torch.testing.assert_close(values[:, 3].mean(), torch.tensor(0.0), atol=1e-4, rtol=0)
    assert torch.equal(values[:, 1:3], x[:, 1:3])
    raw = torch.randn(500, 4, columns.outputs)
    every = torch.arange(4)
    gained = plain.log_prob(values, raw, every) - columns.log_prob(values, raw, every)
    expected = torch.where(columns.real, columns.scale.log(), 0).expand(500, 4)
    torch.testing.assert_close(gained, expected, atol=1e-5, rtol=1e-5)


def test_categories_that_a_column_lacks_have_no_mass():
    columns = Columns(TABLE, 2)
    raw = torch.randn(3, columns.outputs)
    raw[:, 2] = 50  # category z, which column c does not have
    masses = [columns.log_prob(torch.full((3,), v), raw, torch.tensor(2)).exp() for v in (0.0, 1.0)]
    torch.testing.assert_close(sum(masses), torch.ones(3))
    drawn = columns.draw(raw, torch.rand(3, 2), torch.tensor(2))
    assert float(drawn.max()) <= 1


def test_orders_are_permutations_that_do_not_change():
    assert random_order(6, 0).tolist() == [5, 1, 4, 2, 0, 3]
    told = orders(50, 3, "raster")
    assert torch.equal(told[0], torch.arange(50))
    assert torch.equal(told.sort(1).values, torch.arange(50).expand(3, -1))
    assert not torch.equal(told[1], told[2])


class _Chain:
    """x_0 is 1 with probability 1/2, and x_1, …, x_4 equal it with probability 0.9."""

    def __init__(self, rows):
        self.order = torch.arange(5)
        self.first = torch.zeros(rows)

    def at(self, place):
        logit = math.log(9) * (2 * self.first - 1)
        return torch.zeros(len(self.first), 1) if place == 0 else logit.unsqueeze(1)

    def put(self, place, values):
        self.first = values.clone() if place == 0 else self.first

    def take(self, rows):
        self.first = self.first[rows]


@pytest.mark.parametrize(("particles", "close"), [(1, False), (30, True)])
def test_particles_let_later_values_speak_for_earlier_ones(particles, close):
    # Given x_1 = x_2 = 1: p(x_0 = 1) = 0.81 / (0.81 + 0.01).
    columns, rows = Columns(Images(1, 1, 5, 2)), 4000
    given = torch.ones(rows, 5)
    known = torch.tensor([False, True, True, False, False]).expand(rows, -1)
    uniform = torch.rand(rows, particles, 6, 3, generator=seeded(1))
    filled = completed(columns, _Chain(rows * particles), uniform, given, known)
    assert torch.equal(filled[known], given[known])
    assert (abs(float(filled[:, 0].mean()) - 0.81 / 0.82) < 0.02) == close
    assert float((filled[:, 3] == filled[:, 0]).float().mean()) == pytest.approx(0.9, abs=0.03)


def test_ancestral_draws_follow_the_chain():
    columns = Columns(Images(1, 1, 5, 2))
    x = drawn(columns, _Chain(20_000), torch.rand(20_000, 5, 2, generator=seeded()))
    assert float(x[:, 0].mean()) == pytest.approx(0.5, abs=0.02)
    assert float((x[:, 4] == x[:, 0]).float().mean()) == pytest.approx(0.9, abs=0.02)
