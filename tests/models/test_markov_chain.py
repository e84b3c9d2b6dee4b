"""The Markov chain against counting by hand, all states, and the chain that data were drawn from."""

import itertools
import math

import pytest
import torch

from simulacra.data.dataset import Part, Stream
from simulacra.models.autoregressive.markov_chain import Config, MarkovChain
from simulacra.play import Play
from simulacra.refusals import Refusal
from simulacra.spaces import Column, Images, Table, Tokens


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def fitted(space, x, **settings):
    model = MarkovChain(space, Config(**settings))
    play = Play(model, model.game(), seed=0)
    source = Stream(Part(x, torch.arange(len(x)), space, None), 100, seed=0)
    list(play.rounds(source, lambda clock: 0.0))
    return model.eval()


def test_frequencies_are_those_of_a_count():
    x = Tokens(4, 3).random(300, seeded(0))
    model = fitted(Tokens(4, 3), x, order=1, prior_weight=1e-9)
    for here, before in itertools.product(range(3), repeat=2):
        rows = x[x[:, 1] == before]
        share = float((rows[:, 2] == here).double().mean())
        assert math.exp(model.log_table[2, before, here]) == pytest.approx(share, abs=1e-5)


def test_a_rare_context_leans_on_the_shorter_one():
    x = torch.tensor([[0, 0], [0, 1], [0, 1], [1, 1]])
    model = fitted(Tokens(2, 2), x, order=1, prior_weight=2.0)
    alone = (3 + 2 * 0.5) / (4 + 2)
    after_one = (1 + 2 * alone) / (1 + 2)
    assert math.exp(model.log_table[1, 1, 1]) == pytest.approx(after_one, rel=1e-6)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_free_parameters_of_a_binary_chain(order):
    n, space = 6, Images(1, 2, 3, levels=2)
    told = MarkovChain(space, Config(order=order)).diagnose(space.random(2, seeded(0)))
    wanted = {0: n, 1: 2 * n - 1, 3: 1 + 2 + 4 + 8 * (n - 3)}
    assert told["free parameters"] == wanted[order]


@pytest.mark.parametrize("shared", [False, True])
def test_order_two_is_found_and_every_state_counts(shared):
    draws = torch.rand((4000, 7), generator=seeded(1))
    x = torch.zeros((4000, 7), dtype=torch.long)
    for i in range(7):
        same = x[:, i - 1] == x[:, i - 2] if i > 1 else torch.ones(4000, dtype=torch.bool)
        x[:, i] = (draws[:, i] < torch.where(same, 0.8, 0.1)).long()
    held = {
        order: fitted(Tokens(7, 2), x[:3000], order=order, shared=shared).log_prob(x[3000:]).mean()
        for order in (0, 1, 2)
    }
    assert held[2] > held[1] + 0.1
    assert held[2] > held[0] + 0.1
    every = torch.tensor(list(itertools.product(range(2), repeat=7)))
    model = fitted(Tokens(7, 2), x, order=2, shared=shared).double()
    assert float(model.log_prob(every).exp().sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("shared", [False, True])
def test_completion_is_the_conditional_distribution(shared):
    space = Tokens(5, 2)
    model = fitted(space, space.random(60, seeded(2)), order=2, shared=shared)
    every = torch.tensor(list(itertools.product(range(2), repeat=5)))
    joint = model.log_prob(every).exp()
    known = torch.tensor([False, True, False, False, True])
    x = torch.tensor([0, 1, 0, 0, 1])
    fits = ((every == x) | ~known).all(1)
    wanted = joint * fits / (joint * fits).sum()
    drawn = model.complete(x.expand(40_000, -1), known.expand(40_000, -1), generator=seeded(0))
    place = (drawn * 2 ** torch.arange(4, -1, -1)).sum(1)
    share = torch.bincount(place, minlength=32) / 40_000
    torch.testing.assert_close(share, wanted, atol=0.01, rtol=0)


def test_columns_may_have_different_categories():
    space = Table(
        (Column("a", "category", ("x", "y")), Column("b", "category", ("p", "q", "r", "s")))
    )
    x = space.random(200, seeded(3))
    model = fitted(space, x, order=1)
    assert space.contains(model.sample(200, generator=seeded(0)))
    every = torch.tensor(list(itertools.product(range(2), range(4)))).float()
    assert float(model.double().log_prob(every).exp().sum()) == pytest.approx(1, abs=1e-12)


def test_colours_are_written_pixel_by_pixel():
    space = Images(3, 1, 2, levels=2)
    x = space.random(500, seeded(4))
    x[:, 1] = x[:, 0]  # green copies red, which stands just before it
    model = fitted(space, x, order=1)
    factors = model.log_factors(x).exp()
    assert float(factors[:, 1].mean()) > 0.98
    assert float(factors[:, 2].mean()) < 0.6


def test_what_a_chain_cannot_do_is_refused():
    with pytest.raises(Refusal, match="real column"):
        MarkovChain(Table((Column("a"),)))
    with pytest.raises(Refusal, match="entries"):
        MarkovChain(Images(1, 28, 28), Config(order=2))
    with pytest.raises(Refusal, match="order 9"):
        MarkovChain(Tokens(9, 2), Config(order=9))
