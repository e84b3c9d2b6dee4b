"""RBM: energies and Z against sums over all states, gradients against the papers, chains against p."""

import copy
import itertools
import math

import pytest
import torch
from scipy.stats import chi2
from sklearn.datasets import load_digits
from sklearn.neural_network import BernoulliRBM

from simulacra.contract import Kind
from simulacra.data.dataset import Part, Stream
from simulacra.games import Batch, Clock
from simulacra.models.energy.rbm import RBM, Config
from simulacra.play import Play
from simulacra.probability.annealing import Partition, anneal_down, anneal_up, sigmoid_betas
from simulacra.probability.noise import BatchNoise
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Tokens


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(rows, seed=0):
    return BatchNoise(seeded(seed), rows)


def rough(space, spread=1.0, **settings):
    """A model whose units depend on one another, with offsets that matter, in float64."""
    model = RBM(space, Config(**settings)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, spread)
        model.visible_mean.uniform_(0.1, 0.9)
        model.hidden_mean.uniform_(0.1, 0.9)
    return model.eval()


def binary(width):
    return torch.tensor(list(itertools.product([0, 1], repeat=width)))


def energies(model):
    """E(v, h) of every pair of states from the definition, shape (2^D, 2^H)."""
    v, h = (binary(width).double() for width in model.weight.shape)
    if model.config.centred:
        v, h = v - model.visible_mean, h - model.hidden_mean
    pairs = v @ model.weight @ h.T
    return -(v @ model.visible).unsqueeze(1) - h @ model.hidden - pairs


def chi_square_p(counts, probability):
    expected = probability * counts.sum()
    common = expected >= 5
    assert common.sum() > 3
    distance = ((counts - expected)[common].square() / expected[common]).sum()
    return chi2.sf(float(distance), int(common.sum()) - 1)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(("length", "hidden"), [(6, 3), (3, 6)], ids=["wide", "tall"])
def test_probabilities_are_sums_over_the_hidden_states(centred, length, hidden):
    model = rough(Tokens(length, 2), hidden=hidden, centred=centred)
    joint = torch.softmax(-energies(model).flatten(), 0).reshape(2**length, 2**hidden)
    found = model.log_prob(binary(length))
    assert model.kind is Kind.EXACT
    torch.testing.assert_close(found.exp(), joint.sum(1), rtol=1e-10, atol=1e-12)


def test_a_peer_has_the_same_codes_and_free_energies():
    model = rough(Tokens(12, 2), hidden=5)
    energy, x = model._energy(), model.space.random(40, seeded())
    peer = BernoulliRBM(5)
    peer.components_ = energy.weight.T.detach().numpy()
    peer.intercept_hidden_, peer.intercept_visible_ = (
        one.detach().numpy() for one in (energy.hidden, energy.visible)
    )
    rows = x.double().numpy()
    torch.testing.assert_close(model.encode(x), torch.from_numpy(peer.transform(rows)))
    free = torch.from_numpy(peer._free_energy(rows))
    torch.testing.assert_close(-model.log_annealed(x, torch.ones(1))[:, 0], free)


@pytest.mark.parametrize("centred", [True, False])
def test_the_gradient_is_the_papers(centred):
    """Hinton 2002; centred: Melchior et al. 2016."""
    model = rough(Tokens(6, 2), hidden=4, centred=centred, chains=9)
    model.fantasies.copy_(model.space.random(9, seeded(1)))
    x = model.space.random(7, seeded())
    loss = model.contrast(Batch(x), noise(7), Clock()).value
    found = torch.autograd.grad(loss, [model.weight, model.visible, model.hidden])
    sides = []
    for v in (x, model.fantasies):
        h, v = model.encode(v), v.double()
        if centred:
            v, h = v - model.visible_mean, h - model.hidden_mean
        sides.append((v.T @ h / len(v), v.mean(0), h.mean(0)))
    for slope, data, fantasy in zip(found, *sides, strict=True):
        torch.testing.assert_close(slope, fantasy - data)


def test_contrastive_chains_start_from_the_data():
    model = rough(Tokens(6, 2), hidden=4, method="contrastive", steps=0)
    x = model.space.random(8, seeded())
    assert model.contrast(Batch(x), noise(8), Clock()).value.item() == 0
    assert len(model.fantasies) == 0


def test_persistent_chains_go_on_from_where_they_stood():
    model = rough(Tokens(6, 2), hidden=4, chains=5, spread=0.0)
    model.fantasies.fill_(1)
    before = model.fantasies.clone()
    x = model.space.random(2, seeded())
    model.contrast(Batch(x), noise(2), Clock())
    assert model.fantasies.shape == (5, 6)
    assert not torch.equal(before, model.fantasies)


def test_a_new_centre_leaves_the_distribution_alone():
    model = rough(Tokens(5, 2), hidden=4)
    before = model.log_prob(binary(5))
    moved = model.hidden_mean.clone()
    model.recentre(iter([Batch(model.space.random(9, seeded()))]), noise(9), Clock())
    assert not torch.equal(moved, model.hidden_mean)
    torch.testing.assert_close(model.log_prob(binary(5)), before)


def test_the_first_turn_makes_the_model_of_independent_pixels():
    space = Tokens(4, 2)
    model = RBM(space, Config(hidden=3))
    with torch.no_grad():
        model.weight.zero_()
    x = (torch.rand(5000, 4, generator=seeded()) < torch.tensor([0.1, 0.3, 0.6, 0.0])).long()
    model.begin(iter(Batch(part) for part in x.split(700)), noise(700), Clock())
    share = (x.double().sum(0) + 0.5) / 5001
    expected = torch.where(binary(4) == 1, share, 1 - share).log().sum(1)
    torch.testing.assert_close(model.log_prob(binary(4)).double(), expected, rtol=1e-4, atol=1e-4)
    model.visible_mean.copy_(share)
    start = model.log_annealed(binary(4), torch.zeros(1))[:, 0] - model.start_log_partition
    torch.testing.assert_close(start.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_a_step_leaves_its_distribution_alone_and_has_no_direction(beta):
    model, count = rough(Tokens(3, 2), hidden=2), 100_000
    beta = torch.tensor(beta)
    probability = torch.softmax(model.log_annealed(binary(3), beta[None])[:, 0], 0).detach()
    which = torch.multinomial(probability, count, replacement=True, generator=seeded())
    after = model.step(binary(3)[which], beta, noise(count))
    to = (after * torch.tensor([4, 2, 1])).sum(1)
    assert chi_square_p(torch.bincount(to, minlength=8), probability) > 1e-4
    moves = torch.bincount(which * 8 + to, minlength=64).reshape(8, 8).double()
    there, back = moves.triu(1), moves.T.triu(1)
    seen = (there + back) >= 20
    distance = ((there - back).square() / (there + back))[seen].sum()
    assert chi2.sf(float(distance), int(seen.sum())) > 1e-4


def test_completions_follow_the_conditional_distribution():
    model = rough(Tokens(6, 2), hidden=3, spread=0.7, sampling_steps=60)
    known = torch.tensor([True, False, True, False, False, True])
    x = torch.tensor([1, 0, 0, 1, 1, 1]).expand(20_000, 6)
    done = model.complete(x, known.expand_as(x), generator=seeded())
    every = binary(6)
    fits = (every == x[0])[:, known].all(1)
    probability = torch.softmax(model.log_prob(every[fits]), 0).detach()
    code = (done[:, ~known] * torch.tensor([4, 2, 1])).sum(1)
    assert chi_square_p(torch.bincount(code, minlength=8), probability) > 1e-4


@pytest.fixture(scope="module")
def learned():
    """16 hidden units that have learned binary digits, and digits."""
    images = torch.from_numpy(load_digits().images)[:, None]
    x = (images > 7).to(torch.uint8)
    model = RBM(Images(1, 8, 8, 2), Config(hidden=16, learning_rate=0.5))
    stream = Stream(Part(x, torch.arange(len(x)), model.space, None), 100, seed=0)
    play = Play(model, model.game())
    for _ in play.rounds(stream, lambda clock: clock.rounds / 600):
        pass
    return model.eval(), x


def exact_draws(model, count):
    """Draws of p by way of p(h) = exp(c'h) prod_i (1 + exp(b_i + W_i h)) / Z."""
    energy, states = model._energy(torch.float64), binary(model.config.hidden).double()
    field = energy.visible + states @ energy.weight.T
    log_weight = states @ energy.hidden + torch.nn.functional.softplus(field).sum(1)
    chosen = torch.multinomial(log_weight.softmax(0), count, replacement=True, generator=seeded())
    chance = torch.sigmoid(field[chosen])
    drawn = torch.rand(chance.shape, generator=seeded(1)) < chance
    return drawn.to(torch.uint8).reshape(count, *model.space.shape)


@torch.no_grad()
def test_annealing_meets_the_exact_constant_from_both_sides(learned):
    model, _ = learned
    exact = float(model._energy(torch.float64).log_partition())
    assert float(model.log_partition) == pytest.approx(exact, abs=1e-9)
    independent = float(torch.nn.functional.softplus(model._energy().base).sum())
    assert exact > independent + 16 * math.log(2) + 3, "the weights do hardly anything"
    rows, betas = noise(100), sigmoid_betas(500)
    upward = anneal_up(model, rows, betas)[0]
    found = Partition(upward, anneal_down(model, exact_draws(model, 100), rows, betas), 500)
    assert found.log_partition == pytest.approx(exact, abs=0.1)
    assert found.from_above == pytest.approx(exact, abs=0.1)
    assert found.log_partition <= exact + 3 * found.standard_error
    assert found.from_above >= exact - 3 * found.gap_error
    # Single chains of few temperatures are wrong, each side in its own direction.
    upward = anneal_up(model, rows, sigmoid_betas(8))[0]
    downward = anneal_down(model, exact_draws(model, 100), rows, sigmoid_betas(8))
    assert float(upward.mean()) < exact - 0.5
    assert float(downward.mean()) > exact + 0.5


@torch.no_grad()
def test_samples_are_as_likely_as_exact_draws(learned):
    model, _ = learned
    drawn = model.log_prob(model.sample(400, generator=seeded())).double()
    exact = model.log_prob(exact_draws(model, 4000)).double()
    error = math.hypot(float(drawn.std()) / 20, float(exact.std()) / 4000**0.5)
    assert float(drawn.mean()) == pytest.approx(float(exact.mean()), abs=4 * error)


def test_training_beats_independent_pixels(learned):
    model, x = learned
    share = model.visible_mean
    independent = torch.where(x.flatten(1) == 1, share, 1 - share).log().sum(1).mean()
    assert float(model.log_prob(x).mean()) > float(independent) + 5


def test_the_pseudo_likelihood_is_the_product_of_conditionals(learned):
    model, x = learned
    model = copy.deepcopy(model).double()
    some = x[:3]
    turned = torch.stack([some] * 64, 1).flatten(2)
    turned[:, torch.arange(64), torch.arange(64)] ^= 1
    other = model.log_prob(turned.reshape(-1, *model.space.shape)).reshape(3, 64)
    own = model.log_prob(some).unsqueeze(1)
    expected = float((own - torch.logaddexp(own, other)).sum(1).mean())
    told = model.diagnose(some)
    assert told["pseudo-likelihood (nats)"] == pytest.approx(expected, rel=1e-6)
    assert told["log Z (nats)"] == pytest.approx(float(model.log_partition))


def test_many_units_are_an_estimate_once_measured_and_no_longer_when_moved():
    space = Images(1, 3, 7, 2)
    model = RBM(space, Config(hidden=24, annealing_steps=300, sampling_steps=50, batch_size=50))
    x = (torch.rand(500, *space.shape, generator=seeded()) < 0.3).to(torch.uint8)
    x[:, :, 1] = x[:, :, 0]
    stream = Stream(Part(x, torch.arange(500), space, None), 50, seed=0)
    play = Play(model, model.game())
    kinds, reports = [], []
    for report in play.rounds(stream, lambda clock: clock.rounds / 150):
        kinds.append(model.kind)
        reports.append(report)
    assert set(kinds[:-1]) == {Kind.UNNORMALISED}
    assert kinds[-1] is Kind.ESTIMATE
    assert reports[-1].numbers["log Z (nats)"] == float(model.log_partition)
    exact = float(model._energy(torch.float64).log_partition().detach())
    found = model.partition
    assert found.log_partition == pytest.approx(exact, abs=0.1)
    assert found.steps == 300
    unnormalised = model.log_annealed(x[:5], torch.ones(1))[:, 0]
    torch.testing.assert_close(model.log_prob(x[:5]), unnormalised - float(model.log_partition))
    assert "log Z, reverse over forward (nats)" in model.diagnose(x[:5])
    model.contrast(stream.batch(0), noise(50), Clock())
    assert model.kind is Kind.UNNORMALISED
    assert model.partition is None
    torch.testing.assert_close(model.log_prob(x[:5]), unnormalised)


@pytest.mark.parametrize("space", [Images(1, 2, 2, 256), Tokens(4, 3)], ids=str)
def test_data_that_are_not_binary_are_refused(space):
    with pytest.raises(Refusal, match="binary") as refusal:
        RBM(space)
    assert refusal.value.code == "CFG-055"


def test_enumeration_has_an_end():
    assert RBM(Images(1, 28, 28, 2), Config(hidden=16)).enumerable
    assert RBM(Tokens(20, 2), Config(hidden=100)).enumerable
    assert not RBM(Images(1, 28, 28, 2), Config(hidden=20)).enumerable
    assert not RBM(Tokens(30, 2), Config(hidden=21)).enumerable
