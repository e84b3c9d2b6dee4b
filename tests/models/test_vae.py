"""VAE: bounds in order, gradients of L_k, heads that sum to one, against closed forms."""

import itertools
import math

import pytest
import torch

from simulacra.games import Batch, Clock
from simulacra.models.latent.vae import VAE, Config
from simulacra.probability.noise import row_noise
from simulacra.spaces import Column, Images, Labels, Table, Tokens, Vectors

SPACES = [
    Images(1, 3, 3, 2),
    Images(3, 2, 2, 5),
    Images(1, 2, 2, 256),
    Vectors(3),
    Tokens(4, 6),
    Table((Column("a"), Column("b", "category", ("x", "y", "z")))),
]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny(**settings):
    return VAE(Images(1, 2, 2, 2), Config(latent=2, hidden=16, **settings)).eval()


def rough(model, spread=0.5):
    """Weights large enough for the latent variable to matter."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn(parameter.shape))
    return model


def exact_log_prob(model, x, points=161, reach=7.0):
    """log p(x) by a sum over a fine grid of the two latent dimensions."""
    side = torch.linspace(-reach, reach, points, dtype=torch.float64)
    z = torch.cartesian_prod(side, side)
    prior = -0.5 * z.square().sum(1) - math.log(2 * math.pi)
    with torch.no_grad():
        told = model._decoded(z, None)
        rows = [model.head.log_prob(row.expand(len(z), *row.shape), told) for row in x]
    log_area = 2 * math.log(float(side[1] - side[0]))
    return torch.stack([torch.logsumexp(prior + row, 0) + log_area for row in rows])


def test_the_bounds_rise_to_the_true_likelihood():
    model = rough(tiny(), 0.15).double()
    x = torch.tensor(list(itertools.product([0, 1], repeat=4))).reshape(-1, 1, 2, 2)
    truth = exact_log_prob(model, x)
    assert float(truth.exp().sum()) == pytest.approx(1, abs=1e-6)
    means = []
    for count in (1, 5, 50, 2000):
        bound = tiny(importance_samples=count)
        bound.load_state_dict(model.state_dict())
        bound = bound.double().eval()
        with torch.no_grad():
            draws = [bound.log_prob(x, generator=seeded(seed)) for seed in range(40)]
        means.append(torch.stack(draws).mean(0).mean())
    assert means == sorted(means)
    assert float(means[0]) < float(truth.mean()) - 1e-3
    assert float(means[-1]) == pytest.approx(float(truth.mean()), abs=0.01)


def test_the_loss_is_minus_the_bound_that_log_prob_gives():
    model = rough(tiny())
    x = model.space.random(4000, seeded())
    loss = model.negative_bound(Batch(x), row_noise(4000, seeded(1), "cpu"), Clock())
    bound = model.log_prob(x, generator=seeded(2))
    per_datum = -loss.value.item() * model.space.dimensions
    spread = bound.std().item() / 4000**0.5
    assert per_datum == pytest.approx(bound.mean().item(), abs=6 * spread)


def test_the_gradient_of_many_draws_weighs_each_by_its_importance():
    """grad L_k = E sum_i w~_i grad log w_i (Burda et al. 2016, eq. 13), w~ the normalised weights."""
    model = rough(tiny(training_samples=7))
    x = model.space.random(5, seeded())
    loss = model.negative_bound(Batch(x), row_noise(5, seeded(1), "cpu"), Clock()).value
    found = torch.autograd.grad(loss, list(model.parameters()))
    log_weights = model._log_weights(x, None, row_noise(5, seeded(1), "cpu"), 7)
    share = torch.softmax(log_weights, 1).detach()
    expected = -(share * log_weights).sum(1).mean() / model.space.dimensions
    for one, other in zip(
        found, torch.autograd.grad(expected, list(model.parameters())), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("condition", [None, Labels(3)], ids=["free", "conditional"])
def test_every_space_has_a_head(space, condition):
    model = VAE(space, Config(latent=2, hidden=8), condition=condition).eval()
    labels = None if condition is None else condition.random(6, seeded())
    x = model.sample(6, condition=labels, generator=seeded())
    assert space.contains(x)
    assert torch.isfinite(model.log_prob(x, condition=labels)).all()
    code = model.encode(x, condition=labels)
    assert space.contains(model.decode(code, condition=labels))


@pytest.mark.parametrize("head", ["categorical", "discretised-logistic"])
def test_image_heads_sum_to_one_over_the_levels(head):
    space = Images(1, 1, 2, 7)
    model = rough(VAE(space, Config(head=head, latent=2, hidden=8)))
    every = torch.tensor(list(itertools.product(range(7), repeat=2))).reshape(-1, 1, 1, 2)
    told = model._decoded(torch.zeros(len(every), 2), None)
    assert model.head.log_prob(every, told).exp().sum().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("side", [8, 12, 28, 33])
def test_convolutions_fit_all_sides(side):
    space = Images(2, side, side + 1, 4)
    model = VAE(space, Config(network="convolutional", latent=3, hidden=8)).eval()
    x = space.random(2, seeded())
    assert model.decode(model.encode(x)).shape == x.shape


def test_free_bits_leave_small_divergences_alone():
    plain, free = tiny(), tiny(free_bits=100.0)
    free.load_state_dict(plain.state_dict())
    x = plain.space.random(8, seeded())
    losses = []
    for model in (plain, free):
        loss = model.negative_bound(Batch(x), row_noise(8, seeded(1), "cpu"), Clock())
        losses.append(loss.value.item() * 4)
        divergence = loss.numbers["divergence (nats)"].item()
    assert losses[1] - losses[0] == pytest.approx(200 - divergence, rel=1e-4)
