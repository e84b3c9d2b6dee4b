"""Discriminant analysis against scikit-learn's, and its posterior against Bayes' rule."""

import pytest
import torch
from sklearn.datasets import load_digits, load_iris
from sklearn.discriminant_analysis import (
    LinearDiscriminantAnalysis,
    QuadraticDiscriminantAnalysis,
)

from simulacra.data.dataset import Part, Stream
from simulacra.models.mixtures.discriminant import Config, Discriminant
from simulacra.play import Play
from simulacra.spaces import Images, Labels, Vectors


def fitted(space, x, labels, **settings):
    model = Discriminant(space, Config(**settings), condition=Labels(int(labels.max()) + 1))
    part = Part(x, torch.arange(len(x)), space, labels)
    source = Stream(part, 100, seed=0, conditional=True)
    list(Play(model, model.game(), seed=0).rounds(source, lambda clock: 0.0))
    return model.eval()


def iris():
    data = load_iris()
    return torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target)


def test_linear_as_in_scikit_learn():
    x, labels = iris()
    model = fitted(Vectors(4), x, labels, covariance="tied", ridge=0.0, prior_weight=1e-9)
    other = LinearDiscriminantAnalysis(solver="lsqr").fit(x.numpy(), labels.numpy())
    wanted = torch.from_numpy(other.predict_proba(x.numpy())).float()
    torch.testing.assert_close(model.predict(x), wanted, atol=2e-3, rtol=1e-2)


def test_quadratic_as_in_scikit_learn():
    x, labels = iris()
    model = fitted(Vectors(4), x, labels, covariance="full", ridge=0.0, prior_weight=1e-9)
    other = QuadraticDiscriminantAnalysis().fit(x.numpy(), labels.numpy())
    wanted = torch.from_numpy(other.predict_proba(x.numpy())).float()
    # Theirs divides scatter by n - 1, ours by n.
    torch.testing.assert_close(model.predict(x), wanted, atol=0.02, rtol=0.05)
    assert float((model.predict(x).argmax(1) == labels).float().mean()) >= 0.97


def test_the_posterior_is_bayes_rule():
    x, labels = iris()
    model = fitted(Vectors(4), x, labels).double()
    x = x.double()
    given = torch.stack([model.log_prob(x, condition=torch.full((150,), y)) for y in range(3)], 1)
    joint = given + model.log_prior
    torch.testing.assert_close(joint.logsumexp(1), model.log_prob(x), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(torch.softmax(joint, 1), model.predict(x), atol=1e-6, rtol=1e-6)


def test_images_are_classified_and_drawn_by_class():
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.uint8).unsqueeze(1)
    labels = torch.tensor(data.target)
    space = Images(1, 8, 8, levels=17)
    config = Discriminant.recommend(space, 1400)
    model = fitted(space, x[:1400], labels[:1400], shrinkage=config.shrinkage)
    assert float((model.predict(x[1400:]).argmax(1) == labels[1400:]).float().mean()) > 0.88
    asked = torch.arange(10).repeat(30)
    drawn = model.sample(300, condition=asked, generator=torch.Generator().manual_seed(0))
    assert space.contains(drawn)
    assert float((model.predict(drawn).argmax(1) == asked).float().mean()) > 0.95


def test_completion_follows_the_class():
    x, labels = iris()
    model = fitted(Vectors(4), x, labels)
    known = torch.zeros((300, 4), dtype=torch.bool)
    asked = torch.arange(3).repeat(100)
    done = model.complete(
        x[:300].repeat(2, 1), known, condition=asked, generator=torch.Generator().manual_seed(0)
    )
    means = torch.stack([done[asked == y].mean(0) for y in range(3)])
    wanted = torch.stack([x[labels == y].mean(0) for y in range(3)])
    assert float((means - wanted).abs().max()) == pytest.approx(0, abs=0.2)
