"""A density is one: it sums to one, its samples agree with it, and a bound lies below."""

import copy
import itertools

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from simulacra.contract import Density, Factorised, Kind, Sampler
from simulacra.spaces import Images, Measure, Table, Tokens

MOST_STATES = 2**15


def states(space):
    """Every element of a small counting space."""
    if isinstance(space, Images):
        sizes = [space.levels] * space.dimensions
    elif isinstance(space, Tokens):
        sizes = [space.vocabulary] * space.length
    elif isinstance(space, Table) and space.measure is Measure.COUNTING:
        sizes = [len(column.categories) for column in space.columns]
    else:
        pytest.skip(f"{space} has no finite number of elements")
    if np.prod([float(size) for size in sizes]) > MOST_STATES:
        pytest.skip(f"{space} has more than {MOST_STATES} elements")
    rows = torch.tensor(list(itertools.product(*(range(size) for size in sizes))))
    return rows.reshape(-1, *space.shape).to(space.dtype)


def of_kind(toys, *kinds):
    if toys.new().kind not in kinds:
        pytest.skip(f"{toys.entry.name} is {toys.new().kind}")
    return toys


def in_parts(model, x, **more):
    with torch.no_grad():
        return torch.cat([model.log_prob(part, **more) for part in x.split(4096)])


def chi_square_p(observed, probability):
    """The p-value of counts against probabilities; rare cells are pooled into one."""
    count = observed.sum()
    common = probability * count >= 10
    cells = np.append(observed[common], observed[~common].sum())
    expected = np.append(probability[common], max(1 - probability[common].sum(), 0.0)) * count
    if expected[-1] < 5:
        assert cells[-1] < 40
        cells, expected = cells[:-1], expected[:-1]
    assert len(cells) > 3, "the toy has hardly any state worth counting"
    return chi2.sf(((cells - expected) ** 2 / expected).sum(), len(cells) - 1)


def plane(model):
    """Points on a fine grid of the plane, their log-density in float64, and a cell's area."""
    if model.space.measure is not Measure.LEBESGUE or model.space.shape != (2,):
        pytest.skip(f"{model.space} is not a plane")
    model = copy.deepcopy(model).double()
    side = torch.linspace(-15, 15, 601, dtype=torch.float64)
    points = torch.cartesian_prod(side, side)
    return side, in_parts(model, points), float(side[1] - side[0]) ** 2


def test_log_prob_is_a_finite_number_for_every_row(having):
    model = having(Density).trained
    x = model.space.random(7, torch.Generator().manual_seed(0))
    value = model.log_prob(x)
    assert value.shape == (7,)
    assert value.is_floating_point()
    assert torch.isfinite(value).all()
    assert len(model.log_prob(x[:0])) == 0


def test_exact_sums_to_one(having):
    toys = of_kind(having(Density), Kind.EXACT)
    every = states(toys.new().space)
    for model in (toys.new(), toys.trained):
        total = in_parts(copy.deepcopy(model).double().eval(), every).double().exp().sum()
        assert float(total) == pytest.approx(1, abs=1e-9)


def test_exact_integrates_to_one(having):
    toys = of_kind(having(Density), Kind.EXACT)
    _, log_prob, area = plane(toys.trained)
    assert float(log_prob.exp().sum() * area) == pytest.approx(1, abs=2e-3)


def test_samples_agree_with_exact_probabilities(having):
    toys = of_kind(having(Density, Sampler), Kind.EXACT)
    model = toys.practised
    every = states(model.space)
    probability = in_parts(model, every).double().exp().numpy()
    assert probability.max() > 3 / len(probability), "training left the toy uniform"
    x = model.sample(20_000, generator=torch.Generator().manual_seed(0))
    index = {tuple(state): i for i, state in enumerate(every.flatten(1).tolist())}
    drawn = [index[tuple(row)] for row in x.flatten(1).tolist()]
    observed = np.bincount(drawn, minlength=len(every))
    assert chi_square_p(observed, probability) > 1e-4


def test_samples_agree_with_exact_densities(having):
    toys = of_kind(having(Density, Sampler), Kind.EXACT)
    side, log_prob, area = plane(toys.trained)
    mass = (log_prob.exp() * area).reshape(len(side), len(side)).numpy()
    # Edges half-way between two points of the grid: each point stands for the cell around it.
    edges = np.linspace(-6, 6, 13) + float(side[1] - side[0]) / 2
    place = np.digitize(side.numpy(), edges)
    cells = np.zeros((len(edges) + 1,) * 2)
    np.add.at(cells, (place[:, None], place[None]), mass)
    x = toys.trained.sample(20_000, generator=torch.Generator().manual_seed(0)).numpy()
    place = np.digitize(x, edges)
    observed = np.zeros_like(cells)
    np.add.at(observed, (place[:, 0], place[:, 1]), 1)
    assert chi_square_p(observed.ravel(), cells.ravel() / cells.sum()) > 1e-4


def test_a_lower_bound_leaves_room_for_the_truth(having):
    """exp of the mean bound is at most the probability (Jensen), and those sum to one."""
    toys = of_kind(having(Density), Kind.LOWER)
    model = toys.practised
    every = states(model.space)
    draws = 8 if len(every) > 2**10 else 64
    stream = torch.Generator().manual_seed(0)
    bounds = torch.stack([in_parts(model, every, generator=stream).double() for _ in range(draws)])
    assert float(bounds.mean(0).exp().sum()) <= 1.02


def test_training_raises_the_density_of_the_data(having):
    toys = having(Density)
    x = toys.source(toys.trained).batch(0).x
    before, after = (
        float(in_parts(model, x).mean()) for model in (toys.new().eval(), toys.practised)
    )
    assert after > before + 0.1


def test_factors_multiply_to_the_density(having):
    model = having(Density, Factorised).trained
    x = model.space.random(7, torch.Generator().manual_seed(1))
    factors = model.log_factors(x)
    assert factors.shape == x.shape
    torch.testing.assert_close(factors.flatten(1).sum(1), model.log_prob(x), rtol=1e-5, atol=1e-5)


def test_rows_are_independent(having):
    model = having(Density).trained
    x = model.space.random(9, torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model.log_prob(x, generator=torch.Generator().manual_seed(2))
        part = model.log_prob(x[:4], generator=torch.Generator().manual_seed(2))
        other = model.space.random(9, torch.Generator().manual_seed(3))
        mixed = torch.cat([x[:4], other[4:]])
        beside = model.log_prob(mixed, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(part, whole[:4], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(beside[:4], whole[:4], rtol=1e-4, atol=1e-4)


def test_a_score_can_be_computed_again(having):
    model = having(Density).trained
    x = model.space.random(5, torch.Generator().manual_seed(1))
    assert torch.equal(model.log_prob(x), model.log_prob(x))
