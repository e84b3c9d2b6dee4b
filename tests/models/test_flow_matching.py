"""Flow matching: its density sums to one, its codes come back, and reflow learns the ODE's own pairs."""

import copy
import itertools

import pytest
import torch

from simulacra.games import Batch, Clock
from simulacra.models.diffusion import flow_matching
from simulacra.models.diffusion.flow_matching import Config, FlowMatching
from simulacra.play import Play
from simulacra.probability.noise import BatchNoise
from simulacra.probability.straight_paths import cheapest, solved, times
from simulacra.refusals import Refusal
from simulacra.spaces import Column, Images, Labels, Table, Vectors


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def disturbed(space, config, condition=None, size=0.2):
    """A model whose last layers, which start at zero, say something."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FlowMatching(space, config, condition=condition)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(size * torch.randn(parameter.shape) / parameter[0].numel() ** 0.5)
    return model.double().eval()


class Rings:
    """Points at two distances from the origin, a batch by its index."""

    batch_size = 64

    def batch(self, index):
        draw = seeded(index)
        angle = 6.2832 * torch.rand(64, generator=draw)
        far = 1.0 + (torch.rand(64, generator=draw) < 0.5)
        return Batch(torch.stack([angle.cos(), angle.sin()], 1) * far[:, None])

    def sweep(self):
        yield self.batch(0)


def test_the_density_of_the_plane_integrates_to_one():
    model = disturbed(Vectors(2), Config(channels=16, blocks=1, likelihood_steps=20))
    model.network.backbone.waves.mul_(1 / 16)  # What is left is wider than the grid's cells.
    side = torch.linspace(-8, 8, 81, dtype=torch.float64)
    log_prob = model.log_prob(torch.cartesian_prod(side, side))
    assert float(log_prob.exp().sum() * 0.04) == pytest.approx(1, abs=2e-3)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(torch.cartesian_prod(side, side)).sum(1)
    assert float((log_prob - normal).abs().max()) > 0.1, "the network said nothing"


def test_probes_agree_with_the_whole_trace(monkeypatch):
    model = disturbed(Vectors(3), Config(channels=16, blocks=1, likelihood_steps=12))
    x = torch.randn(5, 3, generator=seeded())
    exact = model.log_prob(x)
    monkeypatch.setattr(flow_matching, "EXACT_TRACE", 2)
    many = torch.stack([model.log_prob(x, generator=seeded(s)) for s in range(40)])
    error = many.std(0) / 40**0.5
    assert float(error.min()) > 0
    assert float(((many.mean(0) - exact).abs() / error).max()) < 4.5


def test_guidance_goes_beyond_the_class():
    model = disturbed(Vectors(2), Config(channels=16, blocks=1), Labels(3))
    x, one = torch.randn(4, 2, generator=seeded()).double(), torch.eye(3)[:1].expand(4, 3).double()
    network = model.network
    own, plain = network.field(one)(x, 0.3), network.field(None)(x, 0.3)
    assert not torch.allclose(own, plain)
    assert torch.equal(network.field(one, 0.0)(x, 0.3), own)
    torch.testing.assert_close(network.field(one, 3.0)(x, 0.3), own + 3 * (own - plain))
    with pytest.raises(Refusal) as refusal:
        FlowMatching(Vectors(2), Config(guidance_scale=1.0))
    assert refusal.value.code == "CFG-214"


def test_images_and_tables_go_through_and_back():
    images = disturbed(Images(1, 4, 5, 3), Config(channels=8, blocks=1, likelihood_steps=30))
    x = images.space.random(6, seeded())
    assert torch.equal(images.decode(images.encode(x)), x)
    assert float((images.log_prob(x) - images.log_prob(x, likelihood_steps=60)).abs().max()) < 0.05
    columns = (Column("a", missing=True), Column("b", "category", ("x", "y", "z")))
    table = disturbed(Table(columns), Config(channels=16, blocks=1))
    x = table.sample(200, generator=seeded())
    assert table.space.contains(x)
    assert x[:, 0].isnan().any()
    assert table.log_prob(x).isfinite().all()


def test_a_dit_takes_the_place_of_the_unet():
    model = disturbed(Images(1, 4, 4, 3), Config(backbone="dit", channels=32, blocks=1), Labels(2))
    x = model.sample(3, condition=torch.tensor([0, 1, 1]), generator=seeded())
    assert model.space.contains(x)
    with pytest.raises(Refusal) as refusal:
        FlowMatching(Vectors(3), Config(backbone="dit"))
    assert refusal.value.code == "CFG-228"


def test_noise_is_paired_at_least_cost():
    x0, x1 = torch.randn(2, 6, 2, generator=seeded())
    chosen = cheapest(x0, x1)
    costs = {
        order: float((x0[list(order)] - x1).square().sum())
        for order in itertools.permutations(range(6))
    }
    assert tuple(chosen.tolist()) == min(costs, key=costs.get)


def played(model, rounds, total, play=None):
    play = play or Play(model, model.game(), seed=0)
    for _ in play.rounds(Rings(), lambda clock: clock.rounds / total):
        if play.clock.rounds >= rounds:
            break
    return play


def test_reflow_learns_the_pairs_of_the_weights_it_began_with():
    config = Config(channels=32, blocks=1, batch_size=64, learning_rate=5e-3, reflow=1)
    model = FlowMatching(Vectors(2), config)
    play = played(model, 122, 240)
    assert play.clock.stage == 3
    before = model.curvature(256)
    teacher = copy.deepcopy(model.network)
    weights = {name: value.clone() for name, value in model.teacher.weights().items()}
    pairs = model.pool_data.clone()
    torch.testing.assert_close(
        solved(model.teacher.field(teacher, None), model.pool_noise, times(10), "heun"), pairs
    )
    played(model, 240, 240, play)
    after = model.teacher.weights()
    assert all(torch.equal(weights[name], after[name]) for name in weights)
    assert not torch.equal(pairs, model.pool_data), "no pair was drawn anew"
    assert model.curvature(256) < 0.5 * before


def test_reflow_can_be_stopped_and_resumed():
    config = Config(channels=8, blocks=1, batch_size=64, reflow=2, dropout=0.1)
    whole, half, rest = (copy.deepcopy(FlowMatching(Vectors(2), config)) for _ in range(3))
    half.load_state_dict(whole.state_dict())
    played(whole, 30, 30)
    first = played(half, 17, 30)
    tensors, plain = copy.deepcopy(first.state())
    second = Play(rest, rest.game(), seed=9)
    second.load_state(tensors, plain)
    played(rest, 30, 30, second)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, rest.state_dict()[name]), name


def test_labels_are_left_out_of_a_share():
    model = disturbed(Vectors(2), Config(channels=8, blocks=1, label_dropout=1.0), Labels(3))
    batch = Batch(torch.randn(16, 2, generator=seeded()), torch.arange(16) % 3)
    other = Batch(batch.x, (batch.condition + 1) % 3)
    losses = [model.matching(b, BatchNoise(seeded(1), 16), Clock()).value for b in (batch, other)]
    assert torch.equal(*losses)


def gaussian(covariance):
    """The velocity of N(0, C): v = (E[x_1 | x_t] - x_t) / (1 - t), (t C - (1 - t) I) S^-1 x_t."""
    unit = torch.eye(len(covariance), dtype=torch.float64)

    def field(x, t):
        total = t**2 * covariance + (1 - t) ** 2 * unit
        return x @ torch.linalg.inv(total) @ (t * covariance - (1 - t) * unit)

    return field


def test_a_known_velocity_fills_in_and_varies(monkeypatch):
    """Against the conditional of a Gaussian; the error of a mean of 4,000 is 0.016 deviations."""
    model, rows = FlowMatching(Vectors(2), Config(channels=8, blocks=1)).double(), 4000
    covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
    monkeypatch.setattr(model.network, "field", lambda *_: gaussian(covariance))
    x = torch.tensor([[0.8, 99.0]]).expand(rows, 2)
    known = torch.tensor([True, False]).expand(rows, 2)
    done = model.complete(x, known, generator=seeded())
    assert torch.equal(done[:, 0], x[:, 0])
    deviation = 0.19**0.5
    assert float(done[:, 1].mean()) == pytest.approx(0.72, abs=0.08 * deviation)
    assert float(done[:, 1].std()) == pytest.approx(deviation, rel=0.08)
    near, far = (
        model.vary(torch.tensor([[2.0, 2.0]]).expand(rows, 2), strength=s, generator=seeded())
        for s in (0.1, 1.0)
    )
    assert float((near - 2).square().mean()) < 0.1
    torch.testing.assert_close(torch.cov(far.T).float(), covariance.float(), atol=0.1, rtol=0)
    other = model.vary(torch.zeros(rows, 2), strength=1.0, generator=seeded())
    assert torch.equal(far, other), "nothing should be left of what was given"


def test_tables_fill_in_from_categories_and_from_what_is_missing(monkeypatch):
    """A category of two and whether a number is missing are known halves of normal numbers."""
    columns = (
        Column("kind", "category", ("a", "b")),
        Column("price", "number", missing=True),
        Column("size", "number"),
    )
    model = FlowMatching(Table(columns), Config(channels=8, blocks=1)).double()
    # Of kind, price, size, and whether the price is missing.
    covariance = torch.eye(4, dtype=torch.float64)
    covariance[0, 2] = covariance[2, 0] = 0.6
    covariance[3, 2] = covariance[2, 3] = 0.6
    monkeypatch.setattr(model.network, "field", lambda *_: gaussian(covariance))
    rows = 3000
    x = torch.tensor([[1.0, float("nan"), 0.123456789]]).expand(rows, 3)
    known = torch.tensor([[True, True, False]]).expand(rows, 3)
    done = model.complete(x, known, generator=seeded())
    assert model.space.contains(done)
    assert torch.equal(done[:, 0], x[:, 0])
    assert bool(done[:, 1].isnan().all())
    # Upper halves of two independent normals: means of sqrt(2 / pi), variances of 1 - 2 / pi.
    variance = 1 - 2 * 0.36 * 2 / torch.pi
    assert float(done[:, 2].mean()) == pytest.approx(1.2 * (2 / torch.pi) ** 0.5, abs=0.06)
    assert float(done[:, 2].var()) == pytest.approx(variance, rel=0.1)
    # The other way about, a size of 1.2 says both: P(z > 0) with z ~ N(0.72, 0.64).
    x = torch.tensor([[0.0, 3.0, 1.2]]).expand(rows, 3)
    done = model.complete(x, known.logical_not(), generator=seeded())
    assert torch.equal(done[:, 2], x[:, 2].to(done.dtype))
    share = float(torch.special.ndtr(torch.tensor(0.72 / 0.8)))
    assert float(done[:, 0].mean()) == pytest.approx(share, abs=0.035)
    assert float(done[:, 1].isnan().double().mean()) == pytest.approx(share, abs=0.035)
    # Nothing is asked of what is hidden, and what is known comes back bit for bit.
    x = model.space.random(50, seeded(1))
    known = torch.rand(50, 3, generator=seeded(2)) < 0.5
    done = model.complete(x, known, generator=seeded(3))
    torch.testing.assert_close(done[known], x[known], rtol=0, atol=0, equal_nan=True)
    hidden = torch.where(known, x, model.space.random(50, seeded(4)))
    again = model.complete(hidden, known, generator=seeded(3))
    torch.testing.assert_close(done, again, rtol=0, atol=0, equal_nan=True)
    varied = model.vary(x, strength=0.5, generator=seeded(5))
    assert model.space.contains(varied)


def test_guidance_and_labels_enter_what_is_filled_in():
    config = Config(channels=16, blocks=1)
    model = disturbed(Images(1, 4, 4, 8), config, Labels(2), size=0.5)
    x = model.space.random(4, seeded())
    known = torch.zeros_like(x, dtype=torch.bool)
    known[:, :, :2] = True
    one, other = torch.zeros(4).long(), torch.ones(4).long()
    for edit in (lambda **how: model.complete(x, known, **how), lambda **how: model.vary(x, **how)):
        done = edit(condition=one, generator=seeded(1))
        assert not torch.equal(done, edit(condition=other, generator=seeded(1)))
        assert model.space.contains(edit(generator=seeded(1)))
        model.config = Config(channels=16, blocks=1, guidance_scale=3.0)
        assert not torch.equal(done, edit(condition=one, generator=seeded(1)))
        model.config = config
