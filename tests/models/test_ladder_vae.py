"""Ladder VAE: its bound against sums over a grid, its shared path down, its levels, what it fills in."""

import itertools
import math

import pytest
import torch
from scipy.stats import chi2
from torch.distributions import Bernoulli, Normal, kl_divergence

from simulacra.data.dataset import Part, Stream
from simulacra.games import Batch, Clock
from simulacra.models.latent.ladder_vae import Config, LadderVAE
from simulacra.play import Play
from simulacra.probability.noise import BatchNoise
from simulacra.refusals import Refusal
from simulacra.runs.flight import FlightRecorder
from simulacra.spaces import Column, Images, Labels, Table, Tokens, Vectors

SPACES = [
    Images(1, 3, 3, 2),
    Images(3, 2, 2, 256),
    Vectors(3),
    Tokens(4, 6),
    Table((Column("a", missing=True), Column("b", "category", ("x", "y", "z")))),
]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny(**settings):
    return LadderVAE(Images(1, 2, 2, 2), Config((1, 1), hidden=12, **settings)).eval()


def rough(module, spread):
    """Weights large enough for the levels to matter."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(spread * torch.randn(parameter.shape))
    return module


def felt(module, factor):
    """Weights with which both levels are felt in x, and a grid is fine enough."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(factor)
        module.start.weight.zero_()
        for level in module.levels:
            level.down[0].weight[:, -1] *= 4.0
            level.posterior[-1].weight *= 0.3
    return module


def every():
    return torch.tensor(list(itertools.product([0, 1], repeat=4))).reshape(-1, 1, 2, 2)


def prior_of_second(model, first):
    """z_2 given z_1's u, by the definition: the state below the top, and the prior's net."""
    top, second = model.levels
    state = model.start(torch.ones(len(first), 1).to(first)).expand(len(first), -1)
    state = state + top.down(torch.cat([state, first], 1))
    mean, log_scale = second.prior(state).chunk(2, 1)
    return state, mean, log_scale.exp()


def exact_log_prob(model, x, points=121, reach=6.0):
    """log p(x) by a sum of p(z_2) p(z_1|z_2) p(x|z_1, z_2) over a grid of z_2 and z_1 themselves."""
    side = torch.linspace(-reach, reach, points, dtype=torch.float64)
    z = torch.cartesian_prod(side, side)
    with torch.no_grad():
        state, mean, scale = prior_of_second(model, z[:, :1])
        low = mean + scale * z[:, 1:]
        prior = Normal(0.0, 1.0).log_prob(z[:, 0]) + Normal(mean, scale).log_prob(low)[:, 0]
        # The grid of z_1 stretches with its prior.
        area = scale[:, 0].log() + 2 * math.log(float(side[1] - side[0]))
        state = state + model.levels[1].down(torch.cat([state, low], 1))
        told = model.decoder(torch.nn.functional.silu(state))
        given = torch.stack(
            [Bernoulli(logits=told).log_prob(row.flatten().double()).sum(1) for row in x]
        )
    return torch.logsumexp(given + prior + area, 1)


def test_the_bounds_rise_to_the_true_likelihood():
    model = felt(tiny(), 1.6).double()
    truth = exact_log_prob(model, every())
    assert float(truth.exp().sum()) == pytest.approx(1, abs=1e-6)
    means = []
    for count in (1, 5, 50, 2000):
        bound = tiny(importance_samples=count).double()
        bound.load_state_dict(model.state_dict())
        with torch.no_grad():
            draws = [bound.log_prob(every(), generator=seeded(seed)) for seed in range(20)]
        means.append(torch.stack(draws).mean(0).mean())
    assert means == sorted(means)
    assert float(means[0]) < float(truth.mean()) - 1e-3
    assert float(means[-1]) == pytest.approx(float(truth.mean()), abs=0.01)


def test_the_loss_is_the_papers_sum_over_levels():
    """In z itself: KL of q(z_l|z_>l, x) against p(z_l|z_>l) by torch's own distributions."""
    model = rough(tiny(warm_up=0.0, free_bits=0.0), 0.2).double()
    x = every()
    loss = model.negative_bound(Batch(x), BatchNoise(seeded(3), 16), Clock())
    u = torch.randn((16, 2), generator=seeded(3)).double()
    below, top = [], []
    read = 2.0 * x.double().flatten(1) - 1
    first = model.encoder(read)
    second = first + model.up[0](first)
    start = model.start(torch.ones(16, 1).double())
    mean, log_scale = model.levels[0].posterior(torch.cat([start, second], 1)).chunk(2, 1)
    q_top = Normal(mean, log_scale.exp())
    top = kl_divergence(q_top, Normal(torch.zeros_like(mean), 1.0)).sum(1)
    z_top = mean + log_scale.exp() * u[:, :1]
    state, prior_mean, prior_scale = prior_of_second(model, z_top)
    mean, log_scale = model.levels[1].posterior(torch.cat([state, first], 1)).chunk(2, 1)
    q_low = Normal(prior_mean + prior_scale * mean, prior_scale * log_scale.exp())
    below = kl_divergence(q_low, Normal(prior_mean, prior_scale)).sum(1)
    z_low = q_low.mean + q_low.stddev * u[:, 1:]
    state = state + model.levels[1].down(torch.cat([state, z_low], 1))
    logits = model.decoder(torch.nn.functional.silu(state))
    likelihood = Bernoulli(logits=logits).log_prob(x.double().flatten(1)).sum(1)
    expected = (likelihood - top - below).mean()
    assert float(-loss.value * 4) == pytest.approx(float(expected), abs=1e-9)
    assert float(loss.numbers["divergence 2 (nats)"]) == pytest.approx(float(top.mean()), abs=1e-9)
    assert float(loss.numbers["divergence 1 (nats)"]) == pytest.approx(float(below.mean()))


def test_the_generator_is_the_path_that_inference_takes():
    model = rough(tiny(), 0.3)
    x = every()
    way = model._down(model._seen(x, None), None, lambda mean, log_scale, place: mean + 0.3)
    torch.testing.assert_close(model._raw(way.state), model._decoded(way.u, None))


def test_the_posterior_below_knows_what_was_drawn_above():
    model = rough(tiny(), 0.3)
    seen = model._seen(every(), None)
    means = []
    for value in (-1.0, 1.0):
        u = torch.full((16, 2), value)
        means.append(model._down(seen, None, lambda m, s, place, u=u: u[:, place]).mean)
    assert torch.equal(means[0][:, 0], means[1][:, 0])
    assert (means[0][:, 1] - means[1][:, 1]).abs().min() > 1e-3


def test_free_bits_spare_a_level():
    plain, free = (tiny(warm_up=0.0, free_bits=bits) for bits in (0.0, 50.0))
    free.load_state_dict(plain.state_dict())
    losses = []
    for model in (plain, free):
        loss = model.negative_bound(Batch(every()), BatchNoise(seeded(1), 16), Clock())
        losses.append(float(loss.value) * 4)
        divergence = float(loss.numbers["divergence (nats)"])
    assert losses[1] - losses[0] == pytest.approx(100 - divergence, rel=1e-4)


def test_the_divergence_gains_weight_during_the_warm_up():
    model = rough(tiny(warm_up=0.5, free_bits=0.0), 0.2)
    values = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        clock = Clock(progress=progress)
        told = model.negative_bound(Batch(every()), BatchNoise(seeded(1), 16), clock)
        values.append(float(told.value) * 4)
    divergence = float(told.numbers["divergence (nats)"])
    assert values[1] - values[0] == pytest.approx(divergence / 2, rel=1e-3)
    assert values[2] - values[0] == pytest.approx(divergence, rel=1e-3)
    assert values[3] == values[2]


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("condition", [None, Labels(3)], ids=["free", "conditional"])
def test_every_space_has_a_head(space, condition):
    model = LadderVAE(space, Config((2, 3, 2), hidden=8), condition=condition).eval()
    labels = None if condition is None else condition.random(6, seeded())
    x = model.sample(6, condition=labels, generator=seeded())
    assert space.contains(x)
    assert torch.isfinite(model.log_prob(x, condition=labels)).all()
    code = model.encode(x, condition=labels)
    assert model.code_space == Vectors(7)
    assert space.contains(model.decode(code, condition=labels))


def test_convolutions_fit_images():
    space = Images(3, 33, 28, 256)
    model = LadderVAE(space, Config((2, 3), network="convolutional", hidden=64)).eval()
    x = space.random(2, seeded())
    assert space.contains(model.decode(model.encode(x)))


def test_both_levels_carry_something_and_the_recorder_is_content():
    """With free bits no level falls asleep (Kingma et al. 2016)."""
    draw = seeded(5)
    space = Images(1, 4, 4, 2)
    prototypes = torch.rand((6, 16), generator=draw)
    which = torch.randint(6, (3000,), generator=draw)
    chance = (prototypes[which] * 8 - 4 + 3 * torch.randn((3000, 1), generator=draw)).sigmoid()
    x = (torch.rand((3000, 16), generator=draw) < chance).to(torch.uint8).reshape(-1, 1, 4, 4)
    model = LadderVAE(space, Config((2, 2), hidden=32, free_bits=1.0, learning_rate=1e-2))
    source = Stream(Part(x, torch.arange(3000), space), 100, seed=0)
    for _ in Play(model, model.game(), seed=0).rounds(source, lambda clock: clock.rounds / 150):
        pass
    told = model.eval().diagnose(x[:500])
    names = [name for name in told if name.startswith("divergence of level")]
    assert names == ["divergence of level 2, top (nats)", "divergence of level 1, next to x (nats)"]
    assert sum(told[name] for name in names) == pytest.approx(told["divergence (nats)"], rel=1e-5)
    assert min(told[name] for name in names) > 0.5
    assert not FlightRecorder(space, x).diagnoses(told, 500, 1.0)
    asleep = tiny()
    for level in asleep.levels:
        torch.nn.init.zeros_(level.posterior[-1].weight)
    dead = asleep.diagnose(every())
    assert [one.detector for one in FlightRecorder(space, x).diagnoses(dead, 500, 1.0)] == [
        "KL collapse"
    ]


def test_completions_are_draws_of_the_conditional():
    model = tiny(completion_rounds=40)
    felt(model, 1.6)
    joint = exact_log_prob(model.double(), every()).exp().reshape(2, 2, 2, 2)
    model = model.float()
    known = torch.tensor([[[True, False], [False, True]]]).expand(2000, 1, 2, 2)
    x = torch.tensor([[[1, 0], [0, 0]]], dtype=torch.uint8).expand(2000, 1, 2, 2)
    wanted = joint[1, :, :, 0].flatten()
    wanted = (wanted / wanted.sum()).float()
    done = model.complete(x, known, generator=seeded()).flatten(1).long()
    counts = torch.bincount(2 * done[:, 1] + done[:, 2], minlength=4)

    def p_value(share):
        return chi2.sf(float(((counts - 2000 * share).square() / (2000 * share)).sum()), 3)

    assert p_value(wanted) > 1e-3
    assert p_value((joint.sum((0, 3)) / joint.sum()).flatten().float()) < 1e-6


@pytest.mark.parametrize("latents", [(), (3,), (3, 0)])
def test_one_level_is_no_ladder(latents):
    with pytest.raises(Refusal, match="no ladder"):
        LadderVAE(Vectors(2), Config(latents))
