"""MADE: exact zeros in the Jacobian, sums over all states, and sampling against the naive way."""

import itertools
import time

import pytest
import torch

from simulacra.games import Batch, Clock
from simulacra.models.autoregressive.made import MADE, Config
from simulacra.probability.noise import row_noise
from simulacra.refusals import Refusal
from simulacra.spaces import Column, Images, Labels, Table, Tokens, Vectors

TABLE = Table((Column("a"), Column("b", "category", ("x", "y", "z")), Column("c")))
SPACES = [
    Images(1, 3, 4, 2),
    Images(3, 2, 2, 5),
    Images(1, 2, 3, 256),
    Tokens(7, 6),
    Vectors(5),
    TABLE,
]
MASKS = [
    {},
    {"layers": 2, "order": "random"},
    {"layers": 3, "masks": 4, "ensemble": 3},
    {"layers": 2, "masks": 3, "ensemble": 3, "orderless": True},
]
EVERY_SPACE = pytest.mark.parametrize("space", SPACES, ids=str)
EVERY_MASK = pytest.mark.parametrize("masks", MASKS, ids=["one", "deep", "many", "orderless"])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rough(space, *, condition=None, spread=0.3, **settings):
    """Weights large enough for every dimension to matter."""
    model = MADE(space, Config(**({"hidden": 40} | settings)), condition=condition).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn(parameter.shape))
    return model


@EVERY_MASK
@pytest.mark.parametrize("space", [Images(1, 3, 4, 2), Vectors(6), Tokens(5, 3)], ids=str)
def test_the_jacobian_has_exact_zeros_and_nothing_else_is_lost(masks, space):
    model = rough(space, **masks).double()
    network = model.network
    dimensions = space.dimensions
    for mask in range(model.config.masks):
        reads = torch.randn(32, dimensions, network.inputs, dtype=torch.float64)
        reads.requires_grad_()
        raw = network(reads, mask)
        place = network.places[mask]
        for dimension in range(dimensions):
            weights = torch.randn(raw[:, dimension].shape, dtype=torch.float64)
            total = (raw[:, dimension] * weights).sum()
            (gradient,) = torch.autograd.grad(total, reads, retain_graph=True)
            seen = (gradient != 0).any(0).any(1)
            assert torch.equal(seen, place < place[dimension])


def test_masks_and_orders_differ_as_they_should():
    connected = rough(Vectors(6), masks=3).network
    assert torch.equal(connected.orders[0], connected.orders[1])
    assert not torch.equal(connected.degrees0[0], connected.degrees0[1])
    assert torch.equal(connected.degrees0.sort(1).values, connected.degrees0[:1].expand(3, -1))
    orderless = rough(Vectors(6), masks=3, orderless=True).network
    assert len(orderless.orders.unique(dim=0)) == 3


def test_masks_are_kept_until_another_is_asked_for():
    network = rough(Vectors(6), masks=2).network
    first, again = network.masks(0), network.masks(0)
    assert first[1] is again[1]
    assert network.masks(1)[0][0] is not first[0][0]
    assert network.double().masks(1)[1].dtype is torch.float64


@EVERY_MASK
@pytest.mark.parametrize("condition", [None, Labels(2)], ids=["free", "conditional"])
def test_all_states_together_have_probability_one(masks, condition):
    model = rough(Images(1, 3, 4, 2), condition=condition, **masks).double()
    states = torch.tensor(list(itertools.product(range(2), repeat=12))).reshape(-1, 1, 3, 4)
    labels = None if condition is None else torch.ones(len(states))
    with torch.no_grad():
        total = model.log_prob(states, condition=labels).exp().sum()
    assert float(total) == pytest.approx(1, abs=1e-9)


def test_an_ensemble_is_the_mean_of_its_probabilities():
    model = rough(Images(1, 2, 2, 2), masks=3, ensemble=3, orderless=True).double()
    x = model.space.random(5, seeded())
    with torch.no_grad():
        each = [model._factors(x, None, mask).sum(1).exp() for mask in range(3)]
        mean = sum(each) / 3
        torch.testing.assert_close(model.log_prob(x).exp(), mean, rtol=1e-12, atol=0)
    assert not torch.allclose(each[0], each[1])


@EVERY_MASK
def test_real_vectors_integrate_to_one(masks):
    model = rough(Vectors(2), components=3, spread=0.05, **masks).double()
    model.columns.scale.copy_(torch.tensor([0.5, 2.0]))
    x = torch.linspace(-15, 15, 401, dtype=torch.float64)
    with torch.no_grad():
        log_prob = model.log_prob(torch.cartesian_prod(0.5 * x, 2 * x))
    assert float(log_prob.exp().sum()) * float(x[1] - x[0]) ** 2 == pytest.approx(1, abs=1e-3)


def one_pass_a_dimension(model, rows, seed):
    """The naive way to draw: the whole network again for every dimension, from the same noise."""
    noise = row_noise(rows, seeded(seed))
    labels = model._labels(noise, None)
    mask = (noise.uniform() * model.config.ensemble).long()
    uniform = noise.uniform(model.columns.dimensions, 2)
    values = torch.zeros(uniform.shape[:2])
    with torch.no_grad():
        for one in range(model.config.ensemble):
            for place, dimension in enumerate(model.network.orders[one]):
                reads = model.columns.read(values, model.every)
                raw = model.network(reads, one, model._classes(labels, rows))[:, dimension]
                new = model.columns.draw(raw, uniform[:, place], dimension)
                values[:, dimension] = torch.where(mask == one, new, values[:, dimension])
    return model.columns.elements(values)


@EVERY_SPACE
@EVERY_MASK
@pytest.mark.parametrize("condition", [None, Labels(3)], ids=["free", "conditional"])
def test_drawing_unit_by_unit_equals_the_naive_way(space, masks, condition):
    model = rough(space, condition=condition, **masks)
    fast = model.sample(9, generator=seeded(3))
    assert space.contains(fast)
    torch.testing.assert_close(fast, one_pass_a_dimension(model, 9, 3), atol=1e-4, rtol=1e-4)


def test_drawing_is_many_times_as_fast():
    model = rough(Images(1, 28, 28, 2), hidden=2000, spread=0.01)
    begun = time.thread_time()
    x = model.sample(64, generator=seeded())
    fast = time.thread_time() - begun
    passes = []
    with torch.no_grad():
        for _ in range(5):
            begun = time.thread_time()
            model.raw(x)
            passes.append(time.thread_time() - begun)
    assert 784 * min(passes) > 20 * fast


@EVERY_SPACE
@EVERY_MASK
def test_completion_keeps_the_known(space, masks):
    model = rough(space, particles=4, **masks)
    x = space.random(8, seeded(1))
    known = torch.rand(x.shape, generator=seeded(2)) < 0.5
    filled = model.complete(x, known, generator=seeded(4))
    assert torch.equal(filled[known], x[known])
    assert space.contains(filled)


def test_completion_follows_the_conditional_distribution():
    model = rough(Images(1, 1, 4, 2), particles=60)
    states = torch.tensor([[a, b, 1, 0] for a in (0, 1) for b in (0, 1)]).reshape(-1, 1, 1, 4)
    x = states[:1].expand(8000, 1, 1, 4).to(torch.uint8)
    known = torch.tensor([False, False, True, True]).expand(x.shape)
    filled = model.complete(x, known, generator=seeded()).flatten(1).long()
    observed = torch.bincount(2 * filled[:, 0] + filled[:, 1], minlength=4) / len(x)
    expected = model.log_prob(states).softmax(0).detach()
    torch.testing.assert_close(observed, expected, atol=0.03, rtol=0)


def trained(model, x, labels=None, steps=150, rate=0.01):
    optimiser = torch.optim.Adam(model.parameters(), rate)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimiser.zero_grad()
        model.negative_log_likelihood(Batch(x, labels), None, Clock(rounds=step)).value.backward()
        optimiser.step()
    return model.eval()


@pytest.mark.parametrize("masks", [{}, {"masks": 2, "ensemble": 2, "orderless": True}])
def test_a_class_is_learned(masks):
    model = MADE(Images(1, 3, 3, 2), Config(hidden=32, **masks), condition=Labels(2))
    labels = torch.arange(64) % 2
    x = labels.reshape(-1, 1, 1, 1).expand(-1, 1, 3, 3)
    trained(model, x, labels, 150, 0.03)
    drawn = model.sample(64, condition=labels, generator=seeded())
    assert float((drawn == x).float().mean()) > 0.95


def test_mixtures_beat_a_gaussian_on_clusters():
    draw = seeded()
    centres = 4 * torch.randn(5, 3, generator=draw)
    x, test = (
        centres[torch.randint(5, (600,), generator=draw)] + torch.randn(600, 3, generator=draw) / 3
        for _ in range(2)
    )
    model = MADE(Vectors(3), Config(hidden=64, components=5))
    model.columns.fit(iter([x]))
    trained(model, x)
    gaussian = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T))
    with torch.no_grad():
        assert float((model.log_prob(test) - gaussian.log_prob(test)).mean()) > 1


def test_more_cannot_be_averaged_than_are_trained():
    with pytest.raises(Refusal) as refusal:
        MADE(Images(1, 2, 2, 2), Config(masks=2, ensemble=4))
    assert refusal.value.code == "CFG-091"
    model = rough(Images(1, 2, 2, 2), masks=2, ensemble=2)
    with pytest.raises(Refusal) as refusal:
        model.log_factors(model.space.random(2, seeded()))
    assert refusal.value.code == "CAN-021"
