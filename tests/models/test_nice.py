"""NICE: volumes are kept but for the scales, inverses are exact, and densities are those of logistics."""

import math

import pytest
import torch
from scipy.stats import logistic

from simulacra.models.flows.nice import NICE, Config
from simulacra.spaces import Column, Images, Labels, Table, Vectors


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rough(space, condition=None, **settings):
    config = Config(**{"hidden": 12, "layers": 2, **settings})
    model = NICE(space, config, condition=condition).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize(
    "space",
    [Images(1, 2, 4), Vectors(5), Vectors(1), Table((Column("a"), Column("b")))],
    ids=str,
)
def test_it_comes_back_with_autograds_determinant(space):
    model = rough(space)
    bijection = model.flow.bijection
    real = torch.randn(6, *space.shape, dtype=torch.float64, generator=seeded())
    code, log_det = bijection(real)
    torch.testing.assert_close(bijection.inverse(code), real, atol=1e-10, rtol=1e-10)
    size = space.dimensions
    jacobian = torch.autograd.functional.jacobian(lambda x: bijection(x[None])[0][0], real[0])
    _, expected = torch.linalg.slogdet(jacobian.reshape(size, size))
    assert float(log_det[0]) == pytest.approx(float(expected), abs=1e-8)
    # Only the scales change a volume.
    scales = bijection.steps[-1].log_scale
    torch.testing.assert_close(log_det, scales.sum().expand(6))
    single, narrow = bijection.float(), real.float()
    torch.testing.assert_close(single.inverse(single(narrow)[0]), narrow, atol=1e-4, rtol=1e-4)


def test_untrained_it_is_independent_logistics():
    model = NICE(Vectors(3), Config(hidden=8)).double()
    x = 3 * torch.randn(50, 3, dtype=torch.float64)
    expected = torch.from_numpy(logistic.logpdf(x.numpy())).sum(1)
    torch.testing.assert_close(model.log_prob(x), expected)
    drawn = NICE(Vectors(1), Config(hidden=8)).sample(20_000, generator=seeded())
    quantiles = torch.tensor([0.1, 0.5, 0.9])
    found = (drawn <= torch.from_numpy(logistic.ppf(quantiles.numpy())).float()).float().mean(0)
    assert drawn.shape == (20_000, 1)
    torch.testing.assert_close(found, quantiles, atol=0.01, rtol=0)


def test_images_owe_the_change_of_units():
    """Pixels in [0, 1) at logistic density: a uniform x + u of L levels costs log L a pixel."""
    model = NICE(Images(1, 2, 2, 256), Config(hidden=8)).double()
    x = model.space.random(4000, seeded())
    bound = model.log_prob(x, generator=seeded(1)).mean() / 4
    grid = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    expected = logistic.logpdf(grid.numpy()).mean() - math.log(256)
    assert float(bound.detach()) == pytest.approx(expected, abs=1e-3)


def test_a_density_integrates_to_one_for_every_label():
    model = rough(Vectors(2), Labels(2))
    side = torch.linspace(-40, 40, 401, dtype=torch.float64)
    x = torch.cartesian_prod(side, side)
    area = (side[1] - side[0]) ** 2
    with torch.no_grad():
        values = [model.log_prob(x, condition=torch.full((len(x),), label)) for label in (0, 1)]
    for value in values:
        assert float(value.exp().sum() * area) == pytest.approx(1, abs=2e-3)
    assert (values[0] - values[1]).abs().max() > 0.1


def test_codes_of_images_come_back_as_the_images():
    model = rough(Images(1, 4, 4, 16))
    x = model.space.random(20, seeded())
    assert torch.equal(model.decode(model.encode(x)), x)


def test_images_start_with_the_scales_that_the_first_turn_finds():
    """Scales start from the data, as background pixels need a stretch of hundreds."""
    model = NICE(Images(1, 2, 2, 256), Config(hidden=8))
    x = torch.zeros(300, 1, 2, 2, dtype=torch.long)
    x[:, 0, 0, 0] = torch.randint(256, (300,), generator=seeded())
    from simulacra.probability.noise import row_noise

    model.flow.start([x], [None], row_noise(300, seeded()))
    scale = model.flow.bijection.steps[-1].log_scale.exp().detach()
    assert float(scale[1]) == pytest.approx(256 * 12**0.5, rel=0.1)
    assert float(scale[0]) == pytest.approx(12**0.5, rel=0.1)
