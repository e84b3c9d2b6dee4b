"""Linear autoregression against the full Gaussian, least squares, and a process that was planted."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from simulacra.data.dataset import Part, Stream
from simulacra.models.autoregressive.linear_autoregressive import Config, LinearAutoregressive
from simulacra.play import Play
from simulacra.refusals import Refusal
from simulacra.spaces import Column, Series, Table, Vectors


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def fitted(space, x, **settings):
    model = LinearAutoregressive(space, Config(**settings))
    play = Play(model, model.game(), seed=0)
    source = Stream(Part(x, torch.arange(len(x)), space, None), 50, seed=0)
    list(play.rounds(source, lambda clock: 0.0))
    return model.eval()


def correlated(count, size, seed=0):
    mixing = torch.randn((size, size), generator=seeded(seed))
    return 100 + torch.randn((count, size), generator=seeded(seed + 1)) @ mixing


def test_of_highest_order_it_is_the_full_gaussian():
    x = correlated(2000, 5)
    model = fitted(Vectors(5), x, order=4, ridge=0.0)
    covariance = torch.cov(x.T.double(), correction=0)
    wanted = MultivariateNormal(x.double().mean(0), covariance).log_prob(x.double())
    torch.testing.assert_close(model.double().log_prob(x.double()), wanted, atol=2e-3, rtol=1e-4)


def test_of_order_nought_it_is_independence():
    x = correlated(2000, 3)
    model = fitted(Vectors(3), x, order=0)
    torch.testing.assert_close(model.intercept, x.mean(0), atol=1e-3, rtol=0)
    torch.testing.assert_close(model.log_scale.exp(), x.std(0, correction=0), atol=1e-3, rtol=0)


def test_a_stationary_process_is_found_along_a_signal():
    x = torch.zeros(300, 200)
    noise = 0.5 * torch.randn(300, 200, generator=seeded(2))
    for t in range(200):
        past = (x[:, t - 1] if t > 0 else 0), (x[:, t - 2] if t > 1 else 0)
        x[:, t] = 1.2 * past[0] - 0.6 * past[1] + noise[:, t]
    model = fitted(Series(1, 200), x.unsqueeze(1), order=2, shared=True)
    assert model.weights.shape == (3, 2)
    torch.testing.assert_close(model.weights[-1], torch.tensor([1.2, -0.6]), atol=0.02, rtol=0)
    assert float(model.log_scale[-1].exp()) == pytest.approx(0.5, abs=0.01)
    drawn = model.sample(500, generator=seeded(0))
    assert float(drawn[..., 50:].std()) == pytest.approx(float(x[:, 50:].std()), rel=0.05)


def test_completion_is_the_conditional_gaussian():
    x = correlated(3000, 4)
    model = fitted(Vectors(4), x, order=3)
    mean, precision = model._joint()
    covariance = torch.linalg.inv(precision)
    torch.testing.assert_close(
        covariance, torch.cov(x.T.double(), correction=0), rtol=1e-2, atol=1e-2
    )
    known = torch.tensor([False, True, False, True])
    gain = covariance[~known][:, known] @ torch.linalg.inv(covariance[known][:, known])
    centre = mean[~known] + gain @ (x[0, known].double() - mean[known])
    spread = covariance[~known][:, ~known] - gain @ covariance[known][:, ~known]
    rows = x[:1].expand(20_000, -1)
    drawn = model.complete(rows, known.expand(20_000, -1), generator=seeded(0))[:, ~known].double()
    scale = spread.diagonal().sqrt()
    assert float(((drawn.mean(0) - centre) / scale).abs().max()) < 0.04
    gap = (torch.cov(drawn.T) - spread) / scale.outer(scale)
    assert float(gap.abs().max()) < 0.04


def test_a_constant_column_does_no_harm():
    x = correlated(500, 3)
    x[:, 1] = 7.0
    model = fitted(Vectors(3), x, order=2)
    assert torch.isfinite(model.log_prob(x)).all()
    assert float((model.sample(100, generator=seeded(0))[:, 1] - 7).abs().max()) < 0.1


def test_categories_are_refused():
    with pytest.raises(Refusal, match="real numbers"):
        LinearAutoregressive(Table((Column("a", "category", ("x", "y")), Column("b"))))
