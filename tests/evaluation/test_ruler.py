"""The whole ruler on stand-in models of known worth."""

import math
import time

import pytest
import torch
from torch import nn

from simulacra.contract import Density, Encoder, Kind, Sampler
from simulacra.evaluation import likelihood
from simulacra.evaluation import ruler as ruler_module
from simulacra.evaluation.features import learn_features
from simulacra.evaluation.ruler import FrechetDistance, KernelDistance, Samples, measure
from simulacra.games import Batch
from simulacra.spaces import Labels, Vectors

from .conftest import DIGITS


class Copier(nn.Module, Sampler, Encoder):
    """Draws training data, of the class that was asked for; ``noise`` of the pixels are anything."""

    code_space = Vectors(64)

    def __init__(self, train, noise, labels=None):
        super().__init__()
        self.train_data, self.noise, self.condition_space = train, noise, labels

    def sample(self, num_samples, *, condition=None, generator=None):
        which = torch.randint(len(self.train_data), (num_samples,), generator=generator)
        if condition is not None:
            fits = self.train_data.condition == condition[:, None]
            which = torch.multinomial(fits.float(), 1, generator=generator)[:, 0]
        x = self.train_data.x[which]
        other = torch.rand(x.shape, generator=generator) < self.noise
        return torch.where(other, DIGITS.random(num_samples, generator), x)

    def encode(self, x, *, condition=None):
        return x.flatten(1).float()


class Uniform(nn.Module, Density):
    """Every image is as likely; known to the last digit."""

    kind = Kind.EXACT

    def __init__(self, labels=None):
        super().__init__()
        self.condition_space = labels

    def log_prob(self, x, *, condition=None, generator=None):
        assert (condition is None) == (self.condition_space is None)
        return torch.full((len(x),), -64 * math.log(17))


@pytest.fixture
def ruler(digits, eyes, judge):
    train, valid, test = digits
    known = {"space": DIGITS, "train": train, "valid": valid, "test": test}

    def read(model, **choices):
        readings = measure(model, features=eyes, judge=judge, labels=Labels(10), **known, **choices)
        return {one.name: one for one in readings}

    return read


def test_a_copier_is_at_the_floor_and_noise_takes_it_away(ruler, digits):
    begun = time.perf_counter()
    good = ruler(Copier(digits[0], 0.0))
    assert time.perf_counter() - begun < 30
    bad = ruler(Copier(digits[0], 0.2))
    for name in ("Fréchet distance", "kernel distance", "precision", "density", "coverage"):
        near, far = good[name], bad[name]
        assert near.floor == far.floor
        equal = 360 if name in ("precision", "density", "coverage") else 1000
        assert near.count == {"samples": equal, "real": 360}
        assert abs(near.value - near.floor) < 0.5 * abs(far.value - far.floor)
        assert near.low <= near.value <= near.high
    assert "class accuracy of samples" not in good
    assert "bits per dimension" not in good
    assert good["linear probe"].value == good["linear probe"].control
    assert good["sampling time"].value > 0
    assert good["sampling time"].counted.endswith("batches")
    assert good["Fréchet distance at infinity"].text().split(": ")[1].startswith("≈")
    assert good["parameters"].text().split(": ")[1].startswith("=")
    assert all(one.unit and one.kind for one in good.values())


def test_a_conditional_model_is_asked_for_classes(ruler, digits):
    obedient = ruler(Copier(digits[0], 0.0, Labels(10)), num_samples=300)
    found = obedient["class accuracy of samples"]
    assert found.value > 0.95
    assert found.floor > 0.95
    assert found.count == {"samples": 300}
    assert "linear probe" not in obedient


def test_a_density_of_known_value(ruler):
    found = ruler(Uniform())
    assert found["bits per dimension"].value == pytest.approx(math.log2(17))
    assert found["negative log-likelihood"].value == pytest.approx(64 * math.log(17))
    assert found["bits per dimension"].count == 360
    assert found["anomaly detection"].value == 0.5
    assert "Fréchet distance" not in found
    given = ruler(Uniform(Labels(10)))
    assert likelihood.BITS + likelihood.GIVEN in given
    assert likelihood.BITS not in given


def test_same_seed_same_readings_and_the_model_is_left_as_it_was(ruler, digits):
    model = Copier(digits[0], 0.1).train()
    before = torch.random.get_rng_state()
    first, again, other = (ruler(model, num_samples=200, seed=seed) for seed in (3, 3, 4))
    assert first.keys() == again.keys()
    for name, reading in first.items():
        same = again[name]
        assert (reading.count, reading.features) == (same.count, same.features)
        if name != "sampling time":
            # Where a tensor lies in memory decides the last digit of a sum.
            told, once_more = (
                [getattr(one, key) or 0.0 for key in ("value", "low", "high", "floor", "control")]
                for one in (reading, same)
            )
            assert told == pytest.approx(once_more, rel=1e-9, abs=1e-12)
    assert first["Fréchet distance"].value != other["Fréchet distance"].value
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_cannot_be_measured_is_said(ruler, digits):
    heard = []
    found = ruler(Copier(digits[0], 0.0), num_samples=40, say=heard.append)
    assert "Fréchet distance" not in found
    assert "kernel distance" in found
    assert len(heard) == 2
    assert "KID" in heard[0]


class Wide:
    """Eyes with as many features as the named nets have."""

    kind, identity = "wide", "wide"

    def __init__(self, dimension):
        self.dimension = dimension
        self.directions = torch.randn((64, dimension), generator=torch.Generator().manual_seed(0))

    def features(self, x):
        return torch.tanh(x.flatten(1).float() @ self.directions / 64)


@pytest.mark.parametrize("dimension", [64, 384, 768, 2048])
def test_below_twice_as_many_data_as_features_only_the_kernel_distance_is_read(
    digits, dimension, monkeypatch
):
    monkeypatch.setattr(ruler_module, "MEASURES", (FrechetDistance, KernelDistance))
    train, valid, test = digits

    def read(count):
        heard = []
        found = measure(
            Copier(train, 0.1),
            space=DIGITS,
            train=Batch(train.x.repeat(4, 1, 1, 1)),
            valid=valid,
            test=Batch(test.x.repeat(12, 1, 1, 1)),
            features=Wide(dimension),
            samples=Samples(train.x.repeat(4, 1, 1, 1)[:count]),
            say=heard.append,
        )
        return {one.name for one in found}, heard

    names, (line,) = read(2 * dimension - 1)
    assert names == {"kernel distance"}
    assert f"{2 * dimension - 1} data are too few for a covariance of {dimension} features" in line
    assert f"take at least {2 * dimension}, or read the kernel distance (KID)" in line
    assert "\n" not in line
    if dimension == 64:
        names, heard = read(2 * dimension)
        assert "Fréchet distance" in names
        assert not heard


def test_costs_are_passed_on(ruler):
    cost = {"training_seconds": 12.0, "peak_memory_mib": 345.0, "rounds": 7}
    found = ruler(Uniform(), training_cost=cost)
    assert found["training time"].value == 12
    assert found["peak memory"].unit == "MiB"
    assert found["parameters"].value == 0


def test_a_slow_sampler_is_judged_on_fewer(ruler, digits):
    class Slow(Copier):
        def sample(self, num_samples, *, condition=None, generator=None):
            time.sleep(0.004 * num_samples)
            return super().sample(num_samples, condition=condition, generator=generator)

    found = ruler(Slow(digits[0], 0.0), budget_seconds=1.0)
    assert 10 <= found["kernel distance"].count["samples"] < 500


def test_vectors_without_labels():
    draw = torch.Generator().manual_seed(0)
    parts = [Batch(torch.randn((300, 3), generator=draw)) for _ in range(3)]
    train, valid, test = parts

    class Normal(nn.Module, Sampler, Density):
        condition_space = None
        kind = Kind.EXACT

        def sample(self, num_samples, *, condition=None, generator=None):
            return torch.randn((num_samples, 3), generator=generator)

        def log_prob(self, x, *, condition=None, generator=None):
            return -0.5 * (x.square() + math.log(2 * math.pi)).sum(1)

    space = Vectors(3)
    readings = measure(
        Normal(),
        space=space,
        train=train,
        valid=valid,
        test=test,
        features=learn_features(space, train=train),
        num_samples=500,
    )
    found = {one.name: one for one in readings}
    assert found["Fréchet distance"].value < 0.1
    assert found["coverage"].value > 0.9
    entropy = 1.5 * math.log(2 * math.pi * math.e)
    nats = found["negative log-likelihood"]
    assert nats.low < entropy < nats.high
