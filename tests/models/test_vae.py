"""VAE: bounds in order, gradients of L_k, heads that sum to one, against closed forms."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import chi2
from torch import nn
from torch.distributions import Bernoulli, Normal

from simulacra import shelf
from simulacra.contract import Kind
from simulacra.data.dataset import Stream
from simulacra.data.open import open_data
from simulacra.games import Batch, Clock, Game, Rewrite, Stage
from simulacra.layers.heads import ColumnHead
from simulacra.models.latent.vae import VAE, Config
from simulacra.play import Play
from simulacra.probability.noise import BatchNoise, row_noise
from simulacra.refusals import Refusal
from simulacra.runs.recipe import Recipe
from simulacra.runs.training import train
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


class Halves(nn.Module):
    """A prior that can be written down: half N((-2, 0), I / 4), half N((2, 0), I / 4)."""

    kind = Kind.EXACT

    def log_prob(self, z):
        centres = torch.tensor([[-2.0, 0.0], [2.0, 0.0]], dtype=z.dtype)
        square = (z.unsqueeze(1) - centres).square().sum(2)
        return torch.logsumexp(-2 * square, 1) - math.log(2) + math.log(2 / math.pi)

    def sample(self, num_samples, *, generator=None):
        z = torch.randn(num_samples, 2, generator=generator) / 2
        z[:, 0] += 4 * (torch.rand(num_samples, generator=generator) < 0.5) - 2
        return z


def exact_log_prob(model, x, points=161, reach=7.0):
    """log p(x) by a sum over a fine grid of the two latent dimensions."""
    side = torch.linspace(-reach, reach, points, dtype=torch.float64)
    z = torch.cartesian_prod(side, side)
    prior = -0.5 * z.square().sum(1) - math.log(2 * math.pi)
    if model.prior is not None:
        prior = model.prior.log_prob(z)
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


def peer_log_weights(model, x, u, mean, scale):
    """log p(x, z_i) / q(z_i|x) by torch's own distributions, and z; ``mean`` and ``scale`` are of q."""
    raw_mean, log_scale = model.encoder(2.0 * x.double().flatten(1) - 1).chunk(2, 1)
    z = (raw_mean + log_scale.exp() * u.movedim(1, 0)).movedim(0, 1)
    likelihood = Bernoulli(logits=model.decoder(z)).log_prob(x.double().flatten(1).unsqueeze(1))
    prior = Normal(0.0, 1.0).log_prob(z)
    posterior = Normal(
        (raw_mean if mean is None else mean).unsqueeze(1),
        (log_scale.exp() if scale is None else scale).unsqueeze(1),
    ).log_prob(z)
    return likelihood.sum(2) + (prior - posterior).sum(2), z


def gradient_of(model, x, seed=1):
    loss = model.negative_bound(Batch(x), BatchNoise(seeded(seed), len(x)), Clock()).value
    return torch.autograd.grad(loss * -model.space.dimensions, list(model.parameters()))


def test_the_gradient_of_many_draws_weighs_each_by_its_importance():
    """grad L_k = E sum_i w~_i grad log w_i (Burda et al. 2016, eq. 13), w~ the normalised weights."""
    model = rough(tiny(training_samples=7), 0.2).double()
    x = model.space.random(5, seeded())
    u = torch.randn((5, 7, 2), generator=seeded(1)).double()
    log_weights, _ = peer_log_weights(model, x, u, None, None)
    weights = log_weights.detach().exp()
    share = weights / weights.sum(1, keepdim=True)
    expected = torch.autograd.grad((share * log_weights).sum(1).mean(), list(model.parameters()))
    assert float(share.max()) > 0.25, "all draws count alike, and nothing is tested"
    for one, other in zip(gradient_of(model, x), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    wrong = torch.autograd.grad(
        peer_log_weights(model, x, u, None, None)[0].mean(), list(model.parameters())
    )
    assert any((one - other).abs().max() > 1e-3 for one, other in zip(wrong, expected, strict=True))


def test_the_doubly_reparameterised_gradient_is_the_papers():
    """sum_i w~_i^2 (d log w_i / d z_i) (d z_i / d phi) for the encoder (Tucker et al. 2019, eq. 8)."""
    model = rough(tiny(training_samples=6, gradient="doubly-reparameterised"), 0.2).double()
    x = model.space.random(5, seeded())
    u = torch.randn((5, 6, 2), generator=seeded(1)).double()
    with torch.no_grad():
        mean, log_scale = model._posterior(x, None)
    log_weights, z = peer_log_weights(model, x, u, mean, log_scale.exp())
    share = torch.softmax(log_weights.detach(), 1)
    slopes = torch.autograd.grad(log_weights.sum(), z, retain_graph=True)[0]
    inside = list(model.encoder.parameters())
    along = (share.square().unsqueeze(2) * slopes).detach()
    expected = torch.autograd.grad(z, inside, along / len(x), retain_graph=True)
    decoder = list(model.decoder.parameters())
    expected += torch.autograd.grad((share * log_weights).sum(1).mean(), decoder)
    for one, other in zip(gradient_of(model, x), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_both_gradients_agree_on_average_and_one_is_quieter():
    x = tiny().space.random(3000, seeded())
    told = {}
    for name in ("reparameterised", "doubly-reparameterised"):
        torch.manual_seed(3)
        model = rough(tiny(training_samples=20, gradient=name), 0.3)
        every = [torch.cat([g.flatten() for g in gradient_of(model, x, s)[:2]]) for s in range(8)]
        told[name] = torch.stack(every)
    plain, doubly = told.values()
    error = (plain.var(0) / 8 + doubly.var(0) / 8).sqrt()
    assert float(((plain.mean(0) - doubly.mean(0)).abs() / error.clamp(min=1e-7)).mean()) < 1.6
    assert float(doubly.var(0).sum()) < 0.6 * float(plain.var(0).sum())


@pytest.mark.parametrize(
    "settings",
    [{"training_samples": 5, "beta": 4.0}, {"training_samples": 5, "free_bits": 0.1}],
    ids=str,
)
def test_many_draws_leave_nothing_to_weigh(settings):
    with pytest.raises(Refusal, match="no divergence"):
        tiny(**settings)


def test_beta_trades_reconstruction_for_divergence():
    """Higgins et al. 2017: the divergence falls, and what reconstruction costs rises."""
    data = open_data("digits")
    told = []
    for beta in (1.0, 4.0, 16.0):
        torch.manual_seed(0)
        config = Config(head="discretised-logistic", latent=4, hidden=64, beta=beta)
        model = VAE(data.space, replace(config, learning_rate=5e-3, warm_up=0.5))
        play = Play(model, model.game(), seed=0)
        source = Stream(data.train, 64, seed=0)
        for _ in play.rounds(source, lambda clock: clock.rounds / 200):
            pass
        told.append(model.eval().diagnose(data.test.all().x))
    divergences = [one["divergence (nats)"] for one in told]
    reconstructions = [one["reconstruction (nats)"] for one in told]
    assert divergences[0] > divergences[1] + 1 > divergences[2] + 2
    assert reconstructions[0] + 1 < reconstructions[1] < reconstructions[2] - 1


def test_categories_are_read_as_zeros_and_a_one():
    """So that no two of them are nearer to one another than any others."""
    columns = (Column("a", missing=True), Column("b", "category", ("x", "y")))
    space = Table((*columns, Column("c", "category", ("u", "v", "w"))))
    head = ColumnHead(space)
    head.shift[0], head.scale[0] = 1.0, 2.0
    x = torch.tensor([[5.0, 1.0, 0.0], [torch.nan, 0.0, 2.0]])
    expected = torch.tensor([[2, 0, 0, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0, 1]])
    assert torch.equal(head.read(x), expected.float())
    assert head.reads == 7
    tokens = ColumnHead(Tokens(2, 3))
    read = tokens.read(torch.tensor([[2, 0]]).float())
    assert torch.equal(read, torch.tensor([[0, 0, 1, 1, 0, 0]]).float())


def test_an_encoder_of_tokens_tells_neighbours_apart():
    """One-hot codes separate the middle one of three tokens linearly, which its number would not."""
    model = VAE(Tokens(1, 3), Config(latent=1, layers=0))
    with torch.no_grad():
        model.encoder[0].weight.copy_(torch.tensor([[0.0, 1, 0], [0, 0, 0]]))
        model.encoder[0].bias.zero_()
    assert model.encode(torch.tensor([[0], [1], [2]])).flatten().tolist() == [0, 1, 0]


def test_completions_are_draws_of_the_conditional():
    """Against p(x_missing|x_known) by sums over a grid of z and all states."""
    model = tiny(completion_rounds=40)
    rough(model.decoder, 0.8)
    every = torch.tensor(list(itertools.product([0, 1], repeat=4))).reshape(-1, 1, 2, 2)
    joint = exact_log_prob(model.double(), every).exp().reshape(2, 2, 2, 2)
    model = model.float()
    known = torch.tensor([[[True, False], [False, True]]]).expand(2000, 1, 2, 2)
    x = torch.tensor([[[1, 0], [0, 0]]], dtype=torch.uint8).expand(2000, 1, 2, 2)
    wanted = joint[1, :, :, 0].flatten()
    wanted = (wanted / wanted.sum()).float()
    assert float(wanted.max() / wanted.min()) > 3, "there is hardly anything to see"
    independent = (joint.sum((0, 3)) / joint.sum()).flatten().float()
    done = model.complete(x, known, generator=seeded()).flatten(1).long()
    counts = torch.bincount(2 * done[:, 1] + done[:, 2], minlength=4)

    def p_value(share):
        return chi2.sf(float(((counts - 2000 * share).square() / (2000 * share)).sum()), 3)

    assert p_value(wanted) > 1e-3
    assert p_value(independent) < 1e-6


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


def test_a_learnt_prior_is_that_of_samples_bounds_and_completions():
    """Each against sums over a grid of z, and all states."""
    config = Config(latent=2, hidden=16, prior="halves", importance_samples=20_000)
    model = VAE(Images(1, 2, 2, 2), replace(config, completion_rounds=100), prior=Halves()).eval()
    rough(model.decoder, 0.8)
    with torch.no_grad():
        # q(z|x) = N(0, 4 I) misses no part of either prior.
        model.encoder[-1].weight.zero_()
        model.encoder[-1].bias.copy_(torch.tensor([0.0, 0.0, math.log(2), math.log(2)]))
    every = torch.tensor(list(itertools.product([0, 1], repeat=4))).reshape(-1, 1, 2, 2)
    normal = VAE(Images(1, 2, 2, 2), Config(latent=2, hidden=16))
    normal.load_state_dict({k: v for k, v in model.state_dict().items() if k != "fitted"})
    before, truth = (exact_log_prob(one.double(), every).exp() for one in (normal, model))
    model = model.float()
    assert not model.normal_codes
    for stands, wanted in ((False, before), (True, truth)):
        model.fitted.fill_(stands)
        assert float(wanted.sum()) == pytest.approx(1, abs=1e-4)
        with torch.no_grad():
            bound = model.log_prob(every, generator=seeded())
        assert torch.allclose(bound.exp().double(), wanted, rtol=0.1, atol=2e-3)
        drawn = model.sample(4000, generator=seeded()).flatten(1).long()
        counts = torch.bincount((drawn * torch.tensor([8, 4, 2, 1])).sum(1), minlength=16)
        share = counts / 4000
        assert float((share - wanted).abs().sum()) < 0.08
        # The other prior would be seen.
        other = before if stands else truth
        assert float((share - other).abs().sum()) > 0.2

    known = torch.tensor([[[True, False], [False, True]]]).expand(2000, 1, 2, 2)
    x = torch.tensor([[[1, 0], [0, 0]]], dtype=torch.uint8).expand(2000, 1, 2, 2)
    done = model.complete(x, known, generator=seeded()).flatten(1).long()
    share = torch.bincount(2 * done[:, 1] + done[:, 2], minlength=4) / 2000
    wanted = truth.reshape(2, 2, 2, 2)[1, :, :, 0].flatten()
    assert float((share - wanted / wanted.sum()).abs().sum()) < 0.08


def test_a_prior_is_learnt_from_codes_once_the_rest_stands(tmp_path):
    """The mixture's mean and spread are those of draws of q(z|x); held-out data gain by it."""
    settings = {"prior": "gaussian-mixture", "warm_up": 0.0, "dropout": 0.0, "latent": 4}
    settings |= {"prior.components": 6}
    train(Recipe(model="vae", budget="600steps", settings=settings), tmp_path / "run")
    model = shelf.from_pretrained(tmp_path / "run")
    assert all(value.isfinite().all() for value in model.state_dict().values())
    data = open_data("digits")
    codes = model.coded_often(data.train.all()).x
    drawn = model.prior.sample(4000, generator=seeded())
    assert torch.allclose(drawn.mean(0), codes.mean(0), atol=0.1)
    assert torch.allclose(drawn.std(0), codes.std(0), atol=0.1)
    held_out = data.valid.all().x
    learnt = model.log_prob(held_out).mean()
    told = model.diagnose(held_out)
    model.fitted.fill_(False)
    assert learnt > model.log_prob(held_out).mean() + 0.2
    assert told["divergence (nats)"] < model.diagnose(held_out)["divergence (nats)"] - 0.2


def test_training_goes_on_towards_the_normal_prior():
    """Codes of a run that goes on move again, and what was learnt from the old ones is put aside."""
    model = VAE(Images(1, 2, 2, 2), Config(latent=2, hidden=16, prior="halves"), prior=Halves())
    model.prior.game = lambda: Game([Stage([Rewrite("none", lambda *_: {}, sweep=True)], rounds=1)])
    climb, *_ = model.game().stages
    model.fitted.fill_(True)
    binary = replace(open_data("digits", view="binary").train, space=model.space)
    crop = replace(binary, view=lambda x, _: (x[:, :, :2, :2] > 7).to(torch.uint8))
    list(
        Play(model, Game([replace(climb, rounds=1)])).rounds(Stream(crop, 8, seed=0), lambda _: 0.0)
    )
    assert not model.fitted


@pytest.mark.parametrize(("kind", "code"), [(None, "CFG-223"), (Kind.LOWER, "CFG-231")])
def test_a_prior_that_is_not_there_or_only_bounds_is_refused(kind, code):
    prior = None
    if kind is not None:
        prior = Halves()
        prior.kind = kind
    with pytest.raises(Refusal) as refusal:
        VAE(Images(1, 2, 2, 2), Config(prior="halves"), prior=prior)
    assert refusal.value.code == code


def test_a_prior_that_draws_noise_for_each_row_learns_from_codes(tmp_path):
    settings = {"prior": "nade", "latent": 4, "prior.hidden": 16}
    train(Recipe(model="vae", budget="60steps", settings=settings), tmp_path / "run")
    assert shelf.read_card(tmp_path / "run")["status"] == "finished"


def test_a_prior_with_little_time_is_refused():
    with pytest.raises(Refusal) as refusal:
        VAE(Images(1, 2, 2, 2), Config(prior="halves", prior_share=0.05), prior=Halves())
    assert refusal.value.code == "CFG-232"


def test_few_images_get_few_codes():
    space = Images(3, 32, 32, levels=256)
    few, some, many = (VAE.recommend(space, count) for count in (320, 3500, 60_000))
    assert few.latent < some.latent < many.latent
    assert few.batch_size < some.batch_size < many.batch_size
    assert {one.network for one in (few, some, many)} == {"convolutional"}
    assert few.prior == some.prior == "gaussian-mixture"
    assert many.prior == VAE.recommend(space, 40).prior == "normal"
