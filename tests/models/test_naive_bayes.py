"""Naive Bayes against scikit-learn's estimators, and its joint distribution against all states."""

import itertools

import pytest
import torch
from sklearn.naive_bayes import CategoricalNB, GaussianNB

from simulacra.data.dataset import Part, Stream
from simulacra.models.mixtures.naive_bayes import Config, NaiveBayes
from simulacra.play import Play
from simulacra.spaces import Column, Labels, Table, Tokens, Vectors


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def fitted(space, x, labels, **settings):
    model = NaiveBayes(space, Config(**settings), condition=Labels(3))
    source = Stream(Part(x, torch.arange(len(x)), space, labels), 100, seed=0, conditional=True)
    list(Play(model, model.game(), seed=0).rounds(source, lambda clock: 0.0))
    return model.eval()


def labelled(space, count=600):
    labels = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), count, True, generator=seeded(0))
    x = space.random(count, seeded(1))
    if x.is_floating_point():
        return x + labels[:, None], labels
    return torch.where(torch.rand(x.shape, generator=seeded(2)) < 0.5, labels[:, None], x), labels


def test_categories_as_in_scikit_learn():
    space = Tokens(5, 4)
    x, labels = labelled(space)
    # Their alpha counts each level, our prior weight all levels of a dimension together.
    model = fitted(space, x, labels, prior_weight=4.0)
    other = CategoricalNB(alpha=1.0, min_categories=4).fit(x.numpy(), labels.numpy())
    model.log_prior.copy_(torch.from_numpy(other.class_log_prior_))
    wanted = torch.from_numpy(other.predict_proba(x.numpy())).float()
    torch.testing.assert_close(model.predict(x), wanted, atol=1e-5, rtol=1e-4)


def test_real_numbers_as_in_scikit_learn():
    x, labels = labelled(Vectors(4))
    model = fitted(Vectors(4), x, labels, prior_weight=1e-9)
    other = GaussianNB(var_smoothing=0.0).fit(x.numpy(), labels.numpy())
    wanted = torch.from_numpy(other.predict_proba(x.numpy())).float()
    torch.testing.assert_close(model.predict(x), wanted, atol=1e-4, rtol=1e-3)


def test_the_joint_sums_to_one_and_samples_agree_with_it():
    space = Tokens(3, 3)
    model = fitted(space, *labelled(space))
    every = torch.tensor(list(itertools.product(range(3), repeat=3)))
    joint = (
        torch.stack([model.log_prob(every, condition=torch.full((27,), y)) for y in range(3)], 1)
        + model.log_prior
    )
    assert float(joint.double().exp().sum()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(joint.logsumexp(1), model.log_prob(every))
    torch.testing.assert_close(torch.softmax(joint, 1), model.predict(every))
    drawn = model.sample(40_000, generator=seeded(0))
    share = torch.bincount((drawn * torch.tensor([9, 3, 1])).sum(1), minlength=27) / 40_000
    torch.testing.assert_close(share, model.log_prob(every).exp(), atol=0.01, rtol=0)


def test_what_is_known_tells_the_class_of_the_rest():
    space = Table((Column("a"), Column("b"), Column("c", "category", ("x", "y", "z"))))
    labels = torch.arange(600) % 3
    x = torch.stack([10.0 * labels, -5.0 * labels, labels.float()], 1)
    x[:, :2] += torch.randn((600, 2), generator=seeded(1))
    model = fitted(space, x, labels)
    known = torch.tensor([True, False, False]).expand(600, -1)
    done = model.complete(x, known, generator=seeded(0))
    assert float((done[:, 2] == labels).float().mean()) > 0.98
    assert float((done[:, 1] + 5.0 * labels).abs().mean()) < 2
