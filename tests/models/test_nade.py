"""NADE: against the plain loop over dimensions, sums over all states, and numerical integrals."""

import itertools
import math
import time

import pytest
import torch

from simulacra.games import Batch, Clock
from simulacra.models.autoregressive.nade import NADE, Config
from simulacra.probability.noise import row_noise
from simulacra.refusals import Refusal
from simulacra.spaces import Column, Images, Labels, Table, Tokens, Vectors

TABLE = Table((Column("a"), Column("b", "category", ("x", "y", "z")), Column("c")))
SPACES = [
    Images(1, 5, 8, 2),
    Images(3, 2, 2, 5),
    Images(1, 2, 3, 256),
    Tokens(7, 6),
    Vectors(5),
    TABLE,
]
ORDERS = [{}, {"order": "random"}, {"orderless": True, "orders": 3}]
EVERY_SPACE = pytest.mark.parametrize("space", SPACES, ids=str)
EVERY_ORDER = pytest.mark.parametrize("orders", ORDERS, ids=["raster", "random", "ensemble"])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rough(space, *, condition=None, spread=0.5, **settings):
    """Weights large enough for every dimension to matter."""
    model = NADE(space, Config(**({"hidden": 12} | settings)), condition=condition).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn(parameter.shape))
    return model


def plain_factors(model, x, order, condition=None):
    """The tutorial's loop: a dimension at a time, the hidden layer from scratch."""
    values = model.columns.values(x)
    start = model._start(condition, len(x))
    found = torch.zeros_like(values)
    for place, dimension in enumerate(order.tolist()):
        entering = start
        for before in order[:place].tolist():
            read = model.columns.read(values[:, before], torch.tensor(before))
            entering = entering + read @ model.read[before]
        raw = torch.sigmoid(entering) @ model.write[dimension].T + model.bias[dimension]
        one = torch.tensor(dimension)
        found[:, dimension] = model.columns.log_prob(values[:, dimension], raw, one)
    return found


def log_prob_plain(model, x, condition=None):
    each = [plain_factors(model, x, order, condition).sum(1) for order in model.orders]
    return torch.stack(each).logsumexp(0) - math.log(len(each))


@EVERY_SPACE
@EVERY_ORDER
def test_chunks_equal_the_plain_loop(space, orders):
    model = rough(space, condition=Labels(3), **orders).double()
    x, labels = space.random(9, seeded()), torch.arange(9) % 3
    expected = log_prob_plain(model, x, labels)
    torch.testing.assert_close(model.log_prob(x, condition=labels), expected, atol=1e-9, rtol=1e-9)


@EVERY_SPACE
@pytest.mark.parametrize("order", ["raster", "random"])
def test_loss_and_gradients_equal_those_of_the_plain_loop(space, order):
    model = rough(space, order=order, condition=Labels(3))
    x, labels = space.random(9, seeded()), torch.arange(9) % 3
    loss = model.negative_log_likelihood(Batch(x, labels), row_noise(9, seeded()), Clock()).value
    loss.backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    plain = -plain_factors(model, x, model.orders[0], labels).mean()
    plain.backward()
    assert float(loss) == pytest.approx(float(plain), rel=1e-6, abs=1e-6)
    for one, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, atol=1e-5, rtol=1e-4)


def test_only_states_that_differ_are_worked_out():
    from simulacra.models.autoregressive.nade import _Chunk

    x = torch.tensor([[0.0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]).unsqueeze(2)
    chunk = _Chunk.of(x, slice(0, 4))
    assert chunk.row.tolist() == [0, 1, 1, 1, 2]
    assert chunk.state.tolist() == [[0, 0, 0, 0], [1, 2, 2, 3], [4, 4, 4, 4]]
    assert chunk.seen.tolist() == [[0, 0, 0, 0], [0] * 4, [1, 0, 0, 0], [1, 0, 1, 0], [0] * 4]


@EVERY_ORDER
@pytest.mark.parametrize("condition", [None, Labels(2)], ids=["free", "conditional"])
def test_all_states_together_have_probability_one(orders, condition):
    model = rough(Images(1, 3, 4, 2), condition=condition, **orders).double()
    states = torch.tensor(list(itertools.product(range(2), repeat=12))).reshape(-1, 1, 3, 4)
    labels = None if condition is None else torch.ones(len(states))
    with torch.no_grad():
        total = model.log_prob(states, condition=labels).exp().sum()
    assert float(total) == pytest.approx(1, abs=1e-9)


@EVERY_ORDER
def test_rnade_integrates_to_one(orders):
    model = rough(Vectors(2), components=3, spread=0.3, **orders).double()
    model.columns.scale.copy_(torch.tensor([0.5, 2.0]))
    x = torch.linspace(-12, 12, 401, dtype=torch.float64)
    with torch.no_grad():
        log_prob = model.log_prob(torch.cartesian_prod(0.5 * x, 2 * x))
    assert float(log_prob.exp().sum()) * float(x[1] - x[0]) ** 2 == pytest.approx(1, abs=1e-4)


def one_pass_a_dimension(model, rows, seed):
    """The naive way to draw: all conditionals again for every dimension, from the same noise."""
    noise = row_noise(rows, seeded(seed))
    labels = model._labels(noise, None)
    uniform = noise.uniform(model.columns.dimensions, 2)
    values, order = torch.zeros(uniform.shape[:2]), model.orders[0]
    with torch.no_grad():
        for dimension in order:
            raw = model.raw(model.columns.elements(values), labels)
            place = int((order == dimension).nonzero())
            values[:, dimension] = model.columns.draw(raw[:, place], uniform[:, place], dimension)
    return model.columns.elements(values)


@EVERY_SPACE
@pytest.mark.parametrize("order", ["raster", "random"])
@pytest.mark.parametrize("condition", [None, Labels(3)], ids=["free", "conditional"])
def test_cached_drawing_equals_the_naive_way(space, order, condition):
    model = rough(space, order=order, condition=condition)
    fast = model.sample(16, generator=seeded(3))
    assert space.contains(fast)
    torch.testing.assert_close(fast, one_pass_a_dimension(model, 16, 3), atol=1e-4, rtol=1e-5)


def test_cached_drawing_is_fifty_times_as_fast():
    model = rough(Images(1, 28, 28, 2), hidden=500, spread=0.02)
    times = []
    for _ in range(3):
        begun = time.thread_time()
        model.sample(64, generator=seeded())
        times.append(time.thread_time() - begun)
    x = model.sample(64, generator=seeded())
    passes = []
    with torch.no_grad():
        for _ in range(3):
            begun = time.thread_time()
            model.raw(x)
            passes.append(time.thread_time() - begun)
    assert 784 * min(passes) > 50 * min(times)


def test_the_ensemble_is_drawn_from_all_its_orders():
    model = rough(Images(1, 1, 3, 2), orderless=True, orders=3, spread=1.5)
    states = torch.tensor(list(itertools.product(range(2), repeat=3))).reshape(-1, 1, 1, 3)
    probability = model.log_prob(states).exp()
    x = model.sample(20_000, generator=seeded()).flatten(1).long()
    observed = torch.bincount(x @ torch.tensor([4, 2, 1]), minlength=8) / len(x)
    torch.testing.assert_close(observed, probability.detach(), atol=0.015, rtol=0)


@EVERY_SPACE
@EVERY_ORDER
def test_completion_keeps_the_known(space, orders):
    model = rough(space, particles=4, **orders)
    x = space.random(8, seeded(1))
    known = torch.rand(x.shape, generator=seeded(2)) < 0.5
    filled = model.complete(x, known, generator=seeded(4))
    assert torch.equal(filled[known], x[known])
    assert space.contains(filled)
    assert not torch.equal(filled, model.complete(x, known, generator=seeded(5)))


@pytest.mark.parametrize("orders", [{"particles": 60}, {"orderless": True}], ids=["one", "any"])
def test_completion_follows_the_conditional_distribution(orders):
    """p(x_0, x_1 | x_2, x_3): of the joint, or for any order of the one that has x_2, x_3 first."""
    model = rough(Images(1, 1, 4, 2), spread=1.5, **orders)
    known = torch.tensor([False, False, True, True])
    states = torch.tensor([[a, b, 1, 0] for a in (0, 1) for b in (0, 1)])
    order = torch.tensor([2, 3, 0, 1]) if model.config.orderless else model.orders[0]
    log_prob = plain_factors(model, states.reshape(-1, 1, 1, 4), order).sum(1)
    x = torch.tensor([0, 0, 1, 0]).expand(8000, 4).reshape(-1, 1, 1, 4).to(torch.uint8)
    filled = model.complete(x, known.expand(x.shape), generator=seeded()).flatten(1).long()
    observed = torch.bincount(2 * filled[:, 0] + filled[:, 1], minlength=4) / len(x)
    torch.testing.assert_close(observed, log_prob.softmax(0).detach(), atol=0.03, rtol=0)


def test_the_loss_of_any_order_is_unbiased():
    model = rough(Images(1, 1, 3, 2), orderless=True).double()
    x = torch.tensor([[0, 1, 1]]).reshape(1, 1, 1, 3)
    every = [torch.tensor(order) for order in itertools.permutations(range(3))]
    expected = -sum(plain_factors(model, x, order).mean() for order in every) / len(every)
    many = x.expand(40_000, 1, 1, 3)
    noise = row_noise(40_000, seeded())
    loss = model.negative_log_likelihood_of_any_order(Batch(many), noise, Clock()).value
    assert float(loss) == pytest.approx(float(expected), rel=0.02)


def trained(model, x, labels=None, steps=150, rate=0.02):
    optimiser = torch.optim.Adam(model.parameters(), rate)
    (turn,) = model.game().stages[-1].turns
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimiser.zero_grad()
        turn.loss(Batch(x, labels), row_noise(len(x), seeded(step)), Clock()).value.backward()
        optimiser.step()
    return model.eval()


@pytest.mark.parametrize("orders", [{}, {"orderless": True}], ids=["one", "any"])
def test_a_class_is_learned(orders):
    space = Images(1, 3, 3, 2)
    model = NADE(space, Config(hidden=16, **orders), condition=Labels(2))
    labels = torch.arange(64) % 2
    x = labels.reshape(-1, 1, 1, 1).expand(-1, 1, 3, 3)
    trained(model, x, labels, 100, 0.05)
    drawn = model.sample(64, condition=labels, generator=seeded())
    assert float((drawn == x).float().mean()) > 0.95


def moons(count, seed):
    """Two half circles with noise, in a corner far from the origin."""
    draw = seeded(seed)
    angle, side = torch.pi * torch.rand(count, generator=draw), torch.arange(count) % 2
    x = torch.where(side == 0, angle.cos(), 1 - angle.cos())
    y = torch.where(side == 0, angle.sin(), 0.5 - angle.sin())
    points = torch.stack([x, y], 1) + 0.1 * torch.randn(count, 2, generator=draw)
    return 50 + torch.tensor([10.0, 0.1]) * points


def test_rnade_beats_a_gaussian_on_two_moons():
    x, test = moons(600, 0), moons(600, 1)
    model = NADE(Vectors(2), Config(hidden=32, components=8))
    model.columns.fit(iter([x]))
    trained(model, x)
    gaussian = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T))
    with torch.no_grad():
        gained = model.log_prob(test).mean() - gaussian.log_prob(test).mean()
    assert float(gained) > 0.5


def test_an_ensemble_needs_training_for_any_order():
    with pytest.raises(Refusal) as refusal:
        NADE(Images(1, 2, 2, 2), Config(orders=4))
    assert refusal.value.code == "CFG-090"
    model = rough(Images(1, 2, 2, 2), orderless=True, orders=2)
    with pytest.raises(Refusal) as refusal:
        model.log_factors(model.space.random(2, seeded()))
    assert refusal.value.code == "CAN-020"
