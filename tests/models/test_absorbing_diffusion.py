"""Absorbing diffusion: the bound and the samples against all orders of the chain rule, one by one."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from simulacra.models.diffusion.absorbing_diffusion import AbsorbingDiffusion, Config
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels, Tokens

SPACE = Tokens(4, 3)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def disturbed(space=SPACE, condition=None, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AbsorbingDiffusion(space, Config(16, 1, 2, **settings), condition=condition)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.5 * torch.randn(parameter.shape))
    return model.double().eval()


def every(space):
    return torch.tensor(list(itertools.product(range(space.vocabulary), repeat=space.length)))


@torch.no_grad()
def along(model, x, order):
    """sum_t log p(x_sigma(t) | x_sigma(<t)) for one order, shape (n,)."""
    masked, total = torch.ones(x.shape, dtype=torch.bool), 0.0
    for place in order:
        log_p = model.logits(x, masked).log_softmax(-1)
        total = total + log_p[:, place].gather(1, x[:, place : place + 1])[:, 0]
        masked[:, place] = False
    return total


def test_the_bound_is_the_mean_over_all_orders():
    model = disturbed(bound_draws=4)
    x = every(SPACE)[::7]
    orders = torch.stack([along(model, x, o) for o in itertools.permutations(range(4))])
    assert float(orders.std(0).max()) > 0.1, "orders do not differ"
    wanted = orders.mean(0)
    # The same sum by the number of masked entries: D / k of each mask, all masks of k alike.
    total = torch.zeros(len(x), dtype=torch.float64)
    with torch.no_grad():
        for masked in itertools.product((False, True), repeat=4):
            k = sum(masked)
            if k:
                mask = torch.tensor(masked).expand(x.shape)
                each = model.logits(x, mask).log_softmax(-1).gather(2, x[:, :, None])[:, :, 0]
                total += (each * mask).sum(1) / k / math.comb(4, k)
    torch.testing.assert_close(total, wanted)
    many = torch.stack([model.log_prob(x, generator=seeded(s)).detach() for s in range(100)])
    error = many.std(0) / 100**0.5
    assert float(((many.mean(0) - wanted).abs() / error).max()) < 4.5
    true = torch.logsumexp(orders, 0) - math.log(24)
    assert float((true - wanted).min()) > 0


def test_one_draw_is_unbiased_too():
    model = disturbed(bound_draws=1)
    x = every(SPACE)[:1].expand(4000, 4)
    orders = torch.stack([along(model, x[:1], o) for o in itertools.permutations(range(4))])
    drawn = model.log_prob(x, generator=seeded()).detach()
    assert float((drawn.mean() - orders.mean()).abs() / drawn.std() * 4000**0.5) < 4


def test_samples_are_those_of_random_orders():
    model = disturbed()
    x = every(SPACE)
    orders = torch.stack([along(model, x, o) for o in itertools.permutations(range(4))])
    probability = orders.exp().mean(0).numpy()
    assert probability.sum() == pytest.approx(1, abs=1e-9)
    drawn = model.sample(4000, generator=seeded()) @ torch.tensor([27, 9, 3, 1])
    observed = np.bincount(drawn.numpy(), minlength=81)
    common = probability * 4000 >= 5
    observed = np.append(observed[common], observed[~common].sum())
    expected = 4000 * np.append(probability[common], probability[~common].sum() + 1e-9)
    statistic = ((observed - expected) ** 2 / expected)[expected > 1].sum()
    assert chi2.sf(statistic, (expected > 1).sum() - 1) > 1e-4


def test_all_at_once_is_independent_and_the_last_entry_knows_the_rest():
    model = disturbed()
    nothing = torch.ones(1, 4, dtype=torch.bool)
    alone = model.logits(torch.zeros(1, 4, dtype=torch.long), nothing).softmax(-1)[0].detach()
    x = model.sample(4000, generator=seeded(), num_inference_steps=1)
    frequencies = torch.nn.functional.one_hot(x, 3).double().mean(0)
    torch.testing.assert_close(frequencies, alone, rtol=0, atol=0.03)
    given = torch.tensor([[2, 0, 1, 1]]).expand(4000, 4)
    known = torch.tensor([[True, True, False, True]]).expand(4000, 4)
    done = model.complete(given, known, generator=seeded())
    last = model.logits(given[:1], ~known[:1]).softmax(-1)[0, 2].detach()
    frequencies = torch.nn.functional.one_hot(done[:, 2], 3).double().mean(0)
    torch.testing.assert_close(frequencies, last, rtol=0, atol=0.03)


def test_few_steps_draw_whole_images_and_labels_are_heard():
    model = disturbed(Images(2, 3, 3, 4), Labels(2))
    x = model.sample(5, generator=seeded(), num_inference_steps=3)
    assert model.space.contains(x)
    values = [model.log_prob(x, condition=torch.full((5,), label)) for label in (0, 1)]
    assert not torch.allclose(*values)
    with pytest.raises(Refusal) as refusal:
        AbsorbingDiffusion(SPACE, Config(width=10, heads=4))
    assert refusal.value.code == "CFG-226"
