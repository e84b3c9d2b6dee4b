"""The Gaussian mixture against scikit-learn, its limits, and its front doors."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_iris
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture as Peer

from simulacra.data.dataset import Part, Stream
from simulacra.games import Clock
from simulacra.models.mixtures.gaussian_mixture import Config, GaussianMixture
from simulacra.play import Play
from simulacra.refusals import Refusal
from simulacra.spaces import Column, Images, Table, Vectors


def stream(x, space, batch_size=500):
    return Stream(Part(x, torch.arange(len(x)), space), batch_size, seed=0)


def fitted(model, x, batch_size=500):
    play = Play(model, model.game())
    rounds = play.rounds(stream(x, model.space, batch_size), lambda clock: 0.0)
    told = [report.numbers.get("log-likelihood (nats)") for report in rounds]
    return [value for value in told if value is not None]


def digits():
    return PCA(20).fit_transform(load_digits().data)


def planted(count=8000):
    draw = np.random.default_rng(0)
    means = draw.normal(size=(8, 3)) * 6
    which = draw.integers(8, size=count)
    return means[which] + draw.normal(size=(count, 3)) @ np.diag([0.5, 1.0, 1.5]), means


@pytest.mark.parametrize(
    "data", [load_iris().data, digits(), planted()[0]], ids=["iris", "digits", "planted"]
)
@pytest.mark.parametrize("covariance", ["full", "diagonal", "tied"])
def test_em_reaches_the_log_likelihood_of_scikit_learn(data, covariance):
    x = torch.tensor(data, dtype=torch.float32)
    space = Vectors(x.shape[1])
    torch.manual_seed(0)
    model = GaussianMixture(space, Config(3, covariance, tolerance=-1.0, rounds=25))
    play = Play(model, model.game())
    rounds = play.rounds(stream(x, space), lambda clock: 0.0)
    next(rounds)  # k-means: the start that both share
    z = ((x - model.door.shift) / model.door.scale).double().numpy()
    root = model.gaussians.precision_cholesky.double()
    precisions = {
        "full": root @ root.mT,
        "diagonal": root.square(),
        "tied": (root @ root.mT)[0],
    }[covariance]
    peer = Peer(
        3,
        covariance_type="diag" if covariance == "diagonal" else covariance,
        tol=0.0,
        max_iter=25,
        weights_init=model.log_weights.double().softmax(0).numpy(),
        means_init=model.gaussians.means.double().numpy(),
        precisions_init=precisions.numpy(),
    )
    with pytest.warns(Warning, match="converge"):
        peer.fit(z)
    list(rounds)
    expected = peer.score_samples(z) - float(model.door.scale.double().log().sum())
    assert float(model.log_prob(x).double().mean()) == pytest.approx(expected.mean(), abs=1e-4)
    np.testing.assert_allclose(model.log_prob(x).numpy(), expected, atol=0.02, rtol=2e-3)


@pytest.mark.parametrize("covariance", ["full", "diagonal", "tied"])
def test_em_climbs(covariance):
    x = torch.tensor(digits(), dtype=torch.float32)
    torch.manual_seed(0)
    told = fitted(GaussianMixture(Vectors(20), Config(8, covariance, tolerance=-1.0, rounds=30)), x)
    assert len(told) == 30
    assert all(later > earlier - 1e-4 for earlier, later in itertools.pairwise(told))
    assert told[-1] > told[0] + 0.1


def test_em_climbs_on_images():
    x = torch.tensor(load_digits().images, dtype=torch.uint8).unsqueeze(1)
    for front in ("quantile", "uniform"):
        config = Config(8, front=front, tolerance=-1.0, rounds=10)
        told = fitted(GaussianMixture(Images(1, 8, 8, levels=17), config), x)
        assert all(later > earlier - 1e-3 for earlier, later in itertools.pairwise(told))


def test_a_planted_mixture_is_found():
    data, means = planted()
    x = torch.tensor(data, dtype=torch.float32)
    model = GaussianMixture(Vectors(3), Config(8))
    fitted(model, x)
    deviations = torch.tensor([0.5, 1.0, 1.5])
    inside = -0.5 * ((x[:, None] - torch.tensor(means)) / deviations).square().sum(2)
    constant = 1.5 * math.log(2 * math.pi) + float(deviations.log().sum()) + math.log(8)
    truth = torch.logsumexp(inside, dim=1) - constant
    assert float((truth - model.log_prob(x)).mean()) == pytest.approx(0, abs=0.01)


def test_one_component_is_the_gaussian():
    x = torch.tensor(load_iris().data, dtype=torch.float32)
    model = GaussianMixture(Vectors(4), Config(1))
    fitted(model, x)
    mean, centred = x.mean(0), x - x.mean(0)
    gaussian = torch.distributions.MultivariateNormal(mean, centred.T @ centred / len(x))
    torch.testing.assert_close(model.log_prob(x), gaussian.log_prob(x), rtol=1e-3, atol=1e-3)


def test_batches_do_not_matter():
    x = torch.tensor(digits()[:400], dtype=torch.float32)
    models = []
    for size in (400, 37):
        torch.manual_seed(0)
        model = GaussianMixture(Vectors(20), Config(4, rounds=3))
        batches = stream(x, model.space, 400)
        list(zip(Play(model, model.game()).rounds(batches, lambda c: 0.0), range(1), strict=False))
        model.expect_maximise(stream(x, model.space, size).sweep(), None, Clock())
        models.append(model)
    torch.testing.assert_close(
        models[0].gaussians.means, models[1].gaussians.means, rtol=1e-4, atol=1e-5
    )


def test_a_table_forgets_its_units():
    x = torch.tensor(load_iris().data, dtype=torch.float32)
    space = Table(tuple(Column(name) for name in "abcd"))
    units = torch.tensor([1e-3, 1.0, 1e3, 60.0])
    values = []
    for factor in (torch.ones(4), units):
        model = GaussianMixture(space, GaussianMixture.recommend(space, len(x)))
        fitted(model, x * factor)
        values.append(model.log_prob(x * factor) + factor.log().sum())
    torch.testing.assert_close(*values, rtol=1e-2, atol=1e-2)


def test_too_few_data_are_refused():
    with pytest.raises(Refusal, match="components"):
        fitted(GaussianMixture(Vectors(2), Config(10)), torch.randn(5, 2))


def test_completion_is_the_conditional_gaussian():
    x = torch.tensor(load_iris().data, dtype=torch.float32)
    model = GaussianMixture(Vectors(4), Config(1))
    fitted(model, x)
    covariance = torch.cov(x.T, correction=0)
    known = torch.tensor([True, False, True, False]).expand(6000, 4)
    drawn = model.complete(x[:1].expand(6000, 4), known, generator=torch.Generator().manual_seed(0))
    a, b = [0, 2], [1, 3]
    gain = covariance[b][:, a] @ torch.linalg.inv(covariance[a][:, a])
    mean = x.mean(0)[b] + gain @ (x[0, a] - x.mean(0)[a])
    rest = covariance[b][:, b] - gain @ covariance[a][:, b]
    torch.testing.assert_close(drawn[:, b].mean(0), mean, atol=0.02, rtol=0)
    torch.testing.assert_close(torch.cov(drawn[:, b].T), rest, atol=0.01, rtol=0.05)


def test_completion_chooses_the_component_that_fits():
    model = GaussianMixture(Vectors(2), Config(2))
    model.gaussians.means.copy_(torch.tensor([[-4.0, -4.0], [4.0, 4.0]]))
    x = torch.tensor([[-4.0, 0.0], [4.0, 0.0]]).repeat(50, 1)
    known = torch.tensor([True, False]).expand_as(x)
    drawn = model.complete(x, known, generator=torch.Generator().manual_seed(0))
    assert ((drawn[:, 1] > 0) == (x[:, 0] > 0)).all()


def test_digits_are_beyond_the_floor():
    images = torch.tensor(load_digits().images, dtype=torch.uint8).unsqueeze(1)
    train, test = images[:1437], images[1437:]
    space = Images(1, 8, 8, levels=17)
    model = GaussianMixture(space, GaussianMixture.recommend(space, len(train)))
    fitted(model, train, 4000)
    bits = -float(model.log_prob(test).mean()) / (64 * math.log(2))
    assert bits < 2.36 - 0.2
    # With one standard normal, what is left is exactly independent pixels.
    floor = copy.deepcopy(model)
    floor.gaussians.means.zero_()
    floor.gaussians.precision_cholesky.copy_(
        torch.eye(64).expand_as(floor.gaussians.precision_cholesky)
    )
    frequencies = floor.door.log_frequencies.log_softmax(1)
    own = frequencies[torch.arange(64), test.flatten(1).long()].sum(1)
    torch.testing.assert_close(floor.log_prob(test), own, rtol=1e-3, atol=1e-2)


def test_double_and_single_agree():
    x = torch.tensor(load_iris().data, dtype=torch.float32)
    model = GaussianMixture(Vectors(4), Config(3))
    fitted(model, x)
    single = model.log_prob(x)
    double = copy.deepcopy(model).double().log_prob(x)
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)
