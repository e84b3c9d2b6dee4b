"""Digits, split as users split them, and the ruler's eyes for them, trained once."""

import pytest
import torch
from sklearn.datasets import load_digits

from simulacra.evaluation.features import learn_features, learn_judge
from simulacra.games import Batch
from simulacra.spaces import Images, Labels

DIGITS = Images(1, 8, 8, levels=17)


@pytest.fixture(scope="session")
def digits():
    """Train, validation and test batches."""
    loaded = load_digits()
    x = torch.from_numpy(loaded.images).to(torch.uint8)[:, None]
    labels = torch.from_numpy(loaded.target).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    parts = order.split([1257, 180, 360])
    return tuple(Batch(x[part], labels[part]) for part in parts)


@pytest.fixture(scope="session")
def eyes(digits):
    train, _, test = digits
    return learn_features(DIGITS, train=train, labels=Labels(10), held_out=test)


@pytest.fixture(scope="session")
def judge(digits):
    _, valid, test = digits
    return learn_judge(DIGITS, valid=valid, test=test, labels=Labels(10))


@pytest.fixture(scope="session")
def ladder(digits, eyes):
    """Features of the test split, and of training data with more and more of their pixels noise."""
    train, _, test = digits
    draw = torch.Generator().manual_seed(1)
    real = train.x[:360]
    noise, order = DIGITS.random(len(real), draw), torch.rand(real.shape, generator=draw)
    corrupted = [
        torch.where(order < share, noise, real) for share in (0.0, 0.03, 0.08, 0.15, 0.3, 0.6, 1.0)
    ]
    return eyes.features(test.x).double(), [eyes.features(x).double() for x in corrupted]


@pytest.fixture
def clouds():
    """Two sets of correlated features, (300, 12) and (200, 12)."""
    draw = torch.Generator().manual_seed(2)
    mix = torch.randn((12, 12), generator=draw, dtype=torch.float64)
    x = torch.randn((300, 12), generator=draw, dtype=torch.float64)
    y = 0.4 + torch.randn((200, 12), generator=draw, dtype=torch.float64) @ mix / 3
    return x, y
