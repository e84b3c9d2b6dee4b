"""Energy-based model: log Z against quadrature, steps against p, the gradient, and the buffer."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from simulacra.contract import Kind
from simulacra.data.dataset import Part, Stream
from simulacra.games import Batch, Clock
from simulacra.models.energy.energy_model import Config, EnergyModel
from simulacra.play import Play
from simulacra.probability.annealing import anneal_down, anneal_up, sigmoid_betas
from simulacra.probability.noise import BatchNoise
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Vectors

SIDE = torch.linspace(-7, 7, 281, dtype=torch.float64)
AREA = float(SIDE[1] - SIDE[0]) ** 2


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(rows, seed=0):
    return BatchNoise(seeded(seed), rows)


def rough(spread=0.8, **settings):
    """A model of the plane with hills, seen through a shift and a scale, in float64."""
    settings = {"hidden": 12, "layers": 2, "chains": 20, "smallest": 0.1, "largest": 1.5} | settings
    model = EnergyModel(Vectors(2), Config(**settings)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, spread, generator=seeded(3))
        model.shift.copy_(torch.tensor([1.0, -2.0]))
        model.scale.copy_(torch.tensor([0.5, 2.0]))
    return model.eval()


def on_grid(model):
    """Points x of the plane, and log p*(x) by its definition, with the area that a point stands for."""
    z = torch.cartesian_prod(SIDE, SIDE)
    with torch.no_grad():
        f = model.net(z)[:, 0]
    log_normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    x = z * model.scale + model.shift
    return x, log_normal + f - model.scale.log().sum(), AREA * float(model.scale.prod())


def trained(rounds=250, **settings):
    """Two narrow hills, learned."""
    draw = seeded(1)
    side = torch.randint(2, (2000, 1), generator=draw) * 4.0 - 2.0
    x = torch.cat([side, torch.zeros(2000, 1)], 1) + 0.3 * torch.randn(2000, 2, generator=draw)
    config = Config(
        hidden=32,
        layers=2,
        chains=500,
        steps=10,
        smallest=0.05,
        largest=0.5,
        restart=0.3,
        restraint=0.01,
        sampling_steps=100,
        annealing_chains=200,
        annealing_steps=150,
        batch_size=100,
        learning_rate=1e-2,
        **settings,
    )
    model = EnergyModel(Vectors(2), config)
    source = Stream(Part(x, torch.arange(2000), Vectors(2)), 100, seed=0)
    for _ in Play(model, model.game(), seed=0).rounds(source, lambda c: c.rounds / rounds):
        pass
    return model.eval(), x


def test_the_unnormalised_density_is_the_definition():
    model = rough()
    x, expected, _ = on_grid(model)
    torch.testing.assert_close(model.log_prob(x), expected)
    assert model.kind is Kind.UNNORMALISED
    between = model.log_annealed(x[:50], torch.tensor([0.0, 0.3]))
    start = torch.distributions.Normal(model.shift, model.scale).log_prob(x[:50]).sum(1)
    torch.testing.assert_close(between[:, 0], start)
    torch.testing.assert_close(between[:, 1], 0.7 * start + 0.3 * expected[:50])


def test_annealing_finds_log_z_from_both_sides():
    model = rough()
    x, log_density, area = on_grid(model)
    truth = float(torch.logsumexp(log_density, 0)) + np.log(area)
    assert abs(truth) > 1, "the constant is hardly worth finding"
    betas = sigmoid_betas(300)
    upward, _ = anneal_up(model, noise(300), betas)
    chosen = torch.multinomial(torch.softmax(log_density, 0), 300, generator=seeded(4))
    downward = anneal_down(model, x[chosen], noise(300, 5), betas)
    assert float(torch.logsumexp(upward, 0)) - np.log(300) == pytest.approx(truth, abs=0.1)
    assert np.log(300) - float(torch.logsumexp(-downward, 0)) == pytest.approx(truth, abs=0.1)


@pytest.mark.parametrize("beta", [0.4, 1.0])
def test_a_step_leaves_its_distribution_as_it_is(beta):
    """Exact draws are still draws of p_beta after ten steps, and steps without the test are not."""
    model = rough(smallest=0.8, largest=1.5)
    x, log_density, _ = on_grid(model)
    start = torch.distributions.Normal(model.shift, model.scale).log_prob(x).sum(1)
    share = torch.softmax((1 - beta) * start + beta * log_density, 0)
    drawn = x[torch.multinomial(share, 4000, replacement=True, generator=seeded(1))]
    begun, stream = drawn.clone(), noise(4000, 2)
    for _ in range(10):
        drawn = model.step(drawn, torch.tensor(beta), stream)
    assert (drawn != begun).any(1).double().mean() > 0.9

    def cells(points):
        # No point of the grid lies on an edge, so each cell has its points' area.
        place = ((points - model.shift) / model.scale + 2.025).clamp(0, 3.99).div(0.5).long()
        return 8 * place[:, 0] + place[:, 1]

    expected = 4000 * torch.bincount(cells(x), share, minlength=64)
    found = torch.bincount(cells(drawn), minlength=64)
    common = expected > 5
    distance = ((found - expected).square() / expected)[common].sum()
    assert chi2.sf(float(distance), int(common.sum()) - 1) > 1e-3
    other = 4000 * torch.bincount(cells(x), torch.softmax(start, 0), minlength=64)
    apart = ((found - other).square() / other)[common].sum()
    assert chi2.sf(float(apart), int(common.sum()) - 1) < 1e-6


def test_the_gradient_is_that_of_data_less_chains():
    model = rough(restraint=0.01)
    x = torch.randn((7, 2), generator=seeded(2)).double()
    loss = model.contrast(Batch(x), noise(7), Clock()).value
    found = torch.autograd.grad(loss, list(model.parameters()))
    # The first number says where the block of chains that moved begins.
    first = int(float(noise(7).uniform(2)[0, 0]) * 20)
    made = model.chains[(first + torch.arange(7)) % 20]
    real = (x - model.shift) / model.scale
    sides = [model.net(z)[:, 0] for z in (made, real)]
    value = sides[0].mean() - sides[1].mean()
    value = value + 0.01 * sum(one.square().mean() for one in sides)
    expected = torch.autograd.grad(value, list(model.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-6)


def test_a_block_of_the_buffer_moves_and_the_rest_waits():
    model = rough(chains=50, restart=0.0, smallest=0.01, largest=0.02)
    model.chains.normal_(generator=seeded(1))
    before = model.chains.clone()
    model.contrast(Batch(torch.randn(8, 2, generator=seeded()).double()), noise(8), Clock())
    moved = (model.chains != before).any(1)
    assert 1 <= int(moved.sum()) <= 8
    assert float((model.chains - before).abs().max()) < 0.5
    fresh = rough(chains=50, restart=1.0, smallest=1e-6, largest=2e-6)
    fresh.chains.fill_(100.0)
    fresh.contrast(Batch(torch.randn(8, 2, generator=seeded()).double()), noise(8), Clock())
    assert int((fresh.chains.abs().amax(1) < 10).sum()) == 8


def test_two_hills_are_learned_in_nats():
    model, x = trained()
    assert model.kind is Kind.ESTIMATE
    side = torch.linspace(-5, 5, 401)
    points = torch.cartesian_prod(side, side)
    with torch.no_grad():
        total = float(model.log_prob(points).double().exp().sum() * (side[1] - side[0]) ** 2)
        own = float(model.log_prob(x).mean())
    error = model.partition.standard_error
    assert 0 < error < 0.15
    assert abs(np.log(total)) < 4 * error
    truth = -np.log(2) - np.log(2 * np.pi * 0.09) - 1
    gaussian = -np.log(2 * np.pi) - 0.5 * np.log(4.09 * 0.09) - 1
    assert gaussian + 0.25 < own - np.log(total) < truth
    drawn = model.sample(400, generator=seeded())
    near = (drawn[:, :1] - torch.tensor([-2.0, 2.0])).abs().min(1).values < 0.9
    assert float(near.float().mean()) > 0.9
    assert 0.3 < float((drawn[:, 0] > 0).float().mean()) < 0.7
    far = torch.tensor([[0.0, 3.0]])
    assert float(model.anomaly_score(far)) > float(model.anomaly_score(x).max()) - 3
    told = model.diagnose(x[:100])
    assert abs(told["f of data (nats)"] - told["f of the chains (nats)"]) < 1.0


def test_log_z_is_of_the_weights_that_it_was_made_with():
    model, x = trained(rounds=4)
    assert model.kind is Kind.ESTIMATE
    model.contrast(Batch(x[:10]), noise(10), Clock())
    assert model.kind is Kind.UNNORMALISED
    assert model.partition is None


def test_a_single_sample_is_the_same_in_any_company():
    model = copy.deepcopy(rough(sampling_steps=200)).float()
    many = model.sample(12, generator=seeded(7))
    torch.testing.assert_close(model.sample(2, generator=seeded(7)), many[:2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("network", ["mlp", "convolutional"])
def test_images_are_dequantised_and_come_back_as_integers(network):
    space = Images(1, 8, 8, 17)
    config = Config(network=network, hidden=8, chains=16, steps=2, sampling_steps=10, batch_size=8)
    model = EnergyModel(space, config)
    x = space.random(32, seeded())
    source = Stream(Part(x, torch.arange(32), space), 8, seed=0)
    small = model.game().stages[:2]
    game = replace(model.game(), stages=small)
    for _ in Play(model, game, seed=0).rounds(source, lambda c: c.rounds / 3):
        pass
    assert space.contains(model.eval().sample(3, generator=seeded()))
    assert torch.isfinite(model.log_prob(x)).all()


@pytest.mark.parametrize(
    "settings", [{"smallest": 0.5, "largest": 0.1}, {"chains": 0}, {"steps": 0}], ids=str
)
def test_what_cannot_move_is_refused(settings):
    with pytest.raises(Refusal, match=r"are no range|contrast nothing"):
        EnergyModel(Vectors(2), Config(**settings))
