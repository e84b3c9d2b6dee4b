"""What no model can beat stands beside likelihoods: coin flips, a known density, else nothing."""

import numpy as np
import pytest
from torch import nn

from simulacra.contract import Density, Kind
from simulacra.data.open import open_data
from simulacra.evaluation.case import Case
from simulacra.evaluation.likelihood import NATS, Likelihood
from simulacra.runs.judging import _noise_floor


@pytest.mark.parametrize("name", ["digits", "stacked-digits"])
def test_redrawn_pixels_cost_their_coin_flips(name):
    """Independently, from the grey images: the sum over pixels of the binary entropy, in nats."""
    data, plain = open_data(name, view="dynamic"), open_data(name)
    assert data.test.index.tolist() == plain.test.index.tolist()
    chance = plain.test.all().x.numpy() / 16
    chance = np.clip(chance, 1e-300, 1 - 1e-16)
    flips = -chance * np.log(chance) - (1 - chance) * np.log1p(-chance)
    assert _noise_floor(data) == pytest.approx(flips.sum((1, 2, 3)).mean(), rel=1e-6)


@pytest.mark.parametrize("view", ["8bit", "binary"])
def test_what_is_not_redrawn_has_no_such_floor(view):
    assert _noise_floor(open_data("digits", view=view)) is None


class Truth(nn.Module, Density):
    """The density that the data are drawn from."""

    kind = Kind.EXACT
    condition_space = None

    def __init__(self, mixture):
        super().__init__()
        self.mixture = mixture

    def log_prob(self, x, *, condition=None, generator=None):
        return self.mixture.log_prob(x)


def readings(data, **more):
    parts = {"train": data.train.first(50), "valid": data.valid.first(50)}
    case = Case(
        model=Truth(open_data("ring").truth),
        space=data.space,
        test=data.test.first(500),
        features=None,
        seed=0,
        seconds=60.0,
        **parts,
        **more,
    )
    return {one.name: one for one in Likelihood.read(case)}


def test_the_true_density_is_its_own_floor():
    data = open_data("ring")
    found = readings(data, truth=data.truth)[NATS]
    assert found.value == pytest.approx(found.floor, abs=1e-9)
    assert "true density" in found.how
    assert readings(data)[NATS].floor is None
