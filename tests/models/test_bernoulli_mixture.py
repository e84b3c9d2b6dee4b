"""The Bernoulli mixture against formulas written out, and against sorts that were planted."""

import itertools

import pytest
import torch

from simulacra.data.dataset import Part, Stream
from simulacra.models.mixtures.bernoulli_mixture import BernoulliMixture, Config
from simulacra.play import Play
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels, Tokens


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def fitted(model, x, labels=None):
    part = Part(x, torch.arange(len(x)), model.space, labels)
    conditional = model.condition_space is not None
    play = Play(model, model.game(), seed=0)
    reports = list(
        play.rounds(Stream(part, 200, seed=0, conditional=conditional), lambda clock: 0.0)
    )
    told = [one.numbers["log-likelihood (nats)"] for one in reports[1:]]
    return model.eval(), told


def brute(model, x, label=0):
    """log p(x) by the definition, in float64."""
    theta = model.log_theta.double().exp()
    theta = theta / theta.sum(2, keepdim=True)
    weights = model.log_weights[label].double().exp()
    flat = x.flatten(1).long()
    each = torch.stack(
        [theta[:, i, flat[:, i]].T for i in range(flat.shape[1])], dim=2
    )  # (n, K, D)
    return (each.prod(2) * weights).sum(1).log() - weights.sum().log()


@pytest.mark.parametrize("space", [Images(1, 2, 3, levels=2), Tokens(5, vocabulary=4)])
def test_the_density_is_the_definition(space):
    model = BernoulliMixture(space, Config(components=3)).double()
    x = space.random(50, seeded(0))
    torch.testing.assert_close(model.log_prob(x), brute(model, x))
    factors = model.log_factors(x).flatten(1)
    torch.testing.assert_close(factors.sum(1), model.log_prob(x))
    first = model.log_theta[:, 0, :].double().exp() * model.log_weights[0].exp()[:, None]
    wanted = first.sum(0).log()[x.flatten(1)[:, 0].long()]
    torch.testing.assert_close(factors[:, 0], wanted)


def test_planted_sorts_are_found_and_em_climbs():
    truth = torch.tensor([[0.9] * 8, [0.1] * 4 + [0.9] * 4, [0.1] * 8])
    which = torch.randint(3, (3000,), generator=seeded(0))
    x = (torch.rand((3000, 8), generator=seeded(1)) < truth[which]).to(torch.uint8)
    model = BernoulliMixture(Images(1, 2, 4, levels=2), Config(components=3, tolerance=1e-6))
    model, told = fitted(model, x.reshape(-1, 1, 2, 4))
    assert all(after >= before - 1e-6 for before, after in itertools.pairwise(told))
    theta = model.log_theta.exp()[:, :, 1]
    distance = (theta[:, None] - truth[None]).abs().amax(2).amin(0)
    assert float(distance.max()) < 0.05


def test_one_sort_is_independence():
    x = Tokens(4, 3).random(500, seeded(2))
    model, _ = fitted(BernoulliMixture(Tokens(4, 3), Config(components=1, prior_weight=1e-6)), x)
    counts = torch.nn.functional.one_hot(x, 3).double().mean(0)
    torch.testing.assert_close(model.log_theta[0].double().exp(), counts, atol=1e-4, rtol=0)


def test_completion_is_the_conditional_distribution():
    space = Images(1, 2, 2, levels=2)
    model = BernoulliMixture(space, Config(components=3)).eval()
    every = torch.tensor(list(itertools.product(range(2), repeat=4))).reshape(-1, 1, 2, 2)
    joint = model.log_prob(every).exp()
    x = torch.tensor([1, 0, 0, 0]).reshape(1, 1, 2, 2).to(torch.uint8).expand(20_000, -1, -1, -1)
    known = torch.tensor([True, False, False, True]).reshape(1, 1, 2, 2).expand(20_000, -1, -1, -1)
    drawn = model.complete(x, known, generator=seeded(0)).flatten(1).long()
    fits = (every.flatten(1)[:, 0] == 1) & (every.flatten(1)[:, 3] == 0)
    wanted = (joint * fits / (joint * fits).sum()).reshape(2, 2, 2, 2)
    for a, b in itertools.product(range(2), repeat=2):
        share = float(((drawn[:, 1] == a) & (drawn[:, 2] == b)).float().mean())
        assert share == pytest.approx(float(wanted[1, a, b, 0]), abs=0.015)


def test_labels_choose_among_shared_sorts():
    labels = torch.randint(2, (2000,), generator=seeded(3))
    chance = torch.where(labels[:, None] == 1, 0.9, 0.1).expand(-1, 6)
    x = (torch.rand((2000, 6), generator=seeded(4)) < chance).to(torch.uint8).reshape(-1, 1, 2, 3)
    space = Images(1, 2, 3, levels=2)
    model, _ = fitted(BernoulliMixture(space, Config(2), condition=Labels(2)), x, labels)
    drawn = [model.sample(500, condition=torch.full((500,), y)).float().mean() for y in (0, 1)]
    assert float(drawn[0]) < 0.2 < 0.8 < float(drawn[1])
    told = model.diagnose(x, condition=labels)
    assert told["free parameters"] == 2 * 1 + 2 * 6 * 1


def test_too_many_levels_are_refused():
    with pytest.raises(Refusal, match="1000 levels"):
        BernoulliMixture(Tokens(3, 1000))
