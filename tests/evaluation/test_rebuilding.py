"""Reconstruction: the published quantity, beside principal components of the same size of code."""

import time

import pytest
import torch
from sklearn.decomposition import PCA
from torch import nn

from simulacra.contract import Decoder, Encoder
from simulacra.evaluation.case import Case
from simulacra.evaluation.rebuilding import Reconstruction
from simulacra.evaluation.representation import LEAST, Representation
from simulacra.games import Batch
from simulacra.spaces import Images, Labels, Vectors


class Halved(nn.Module, Encoder, Decoder):
    """Its code is the datum, of which it claims the first ``size`` numbers; all comes back by half."""

    condition_space, code_space = None, None

    def __init__(self, space, size):
        super().__init__()
        self.space, self.code_space = space, Vectors(size)

    def encode(self, x, *, condition=None):
        return x.flatten(1).float()

    def decode(self, code, *, condition=None):
        return (code / 2).to(self.space.dtype).reshape(-1, *self.space.shape)


def reading(space, parts, size):
    train, valid, test = parts
    model = Halved(space, size)
    case = Case(
        model=model,
        space=space,
        train=train,
        valid=valid,
        test=test,
        features=None,
        seed=0,
        seconds=60.0,
    )
    (found,) = Reconstruction.read(case)
    return found


def by_components(train, test, size):
    """scikit-learn's principal components of the training data, asked for the test data."""
    line = PCA(size, svd_solver="full").fit(train)
    return ((test - line.inverse_transform(line.transform(test))) ** 2).sum(1).mean()


def test_the_error_of_images_is_summed_over_pixels_in_the_unit_interval(digits):
    space = Images(1, 8, 8, levels=17)
    found = reading(space, digits, 5)
    train, _, test = digits
    rows = [one.x.flatten(1).double() / 16 for one in (train, test)]
    half = torch.floor(test.x.flatten(1).double() / 2) / 16
    assert found.value == pytest.approx(float((rows[1] - half).square().sum(1).mean()))
    assert found.count == len(test)
    assert found.unit == "squared error an image, pixels in [0, 1]"
    expected = by_components(*(one.numpy() for one in rows), 5)
    assert found.control == pytest.approx(expected, rel=1e-3)
    assert "first 5 principal components" in found.how


def test_a_code_as_large_as_the_datum_stands_beside_the_mean(digits):
    space = Images(1, 8, 8, levels=17)
    found = reading(space, digits, 64)
    train, _, test = digits
    away = (test.x.double() - train.x.double().mean(0)) / 16
    assert found.control == pytest.approx(float(away.flatten(1).square().sum(1).mean()), rel=1e-5)
    assert found.how.endswith("the mean of the training data")


def test_vectors_are_compared_as_they_are():
    draw = torch.Generator().manual_seed(0)
    parts = [
        Batch(torch.randn(count, 4, generator=draw) * torch.tensor([9.0, 3, 1, 1]) + 5)
        for count in (900, 10, 300)
    ]
    found = reading(Vectors(4), parts, 2)
    x = parts[2].x.double()
    assert found.value == pytest.approx(float((x / 2).square().sum(1).mean()), rel=1e-6)
    assert found.unit == "squared error a datum"
    expected = by_components(parts[0].x.numpy(), parts[2].x.numpy(), 2)
    assert found.control == pytest.approx(float(expected), rel=1e-3)


class Slow(nn.Module, Encoder):
    """Codes are pixels, after a while."""

    condition_space, code_space = None, Vectors(64)

    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.rows = seconds, 0

    def encode(self, x, *, condition=None):
        time.sleep(self.seconds * len(x))
        self.rows += len(x)
        return x.flatten(1).float()


def test_a_slow_encoder_is_asked_for_as_many_codes_as_there_is_time_for(digits):
    train, valid, test = (Batch(one.x[:300], one.condition[:300]) for one in digits)
    counts = []
    for seconds, budget in ((0.0, 60.0), (0.004, 2.0)):
        model = Slow(seconds)
        case = Case(
            model=model,
            space=Images(1, 8, 8, levels=17),
            features=None,
            seed=0,
            seconds=budget,
            labels=Labels(10),
            train=train,
            valid=valid,
            test=test,
        )
        found = {one.name: one for one in Representation.read(case)}
        counts.append(model.rows)
        assert found["linear probe"].value > 0.7
    assert counts[0] >= 480
    assert 2 * LEAST <= counts[1] < 200
