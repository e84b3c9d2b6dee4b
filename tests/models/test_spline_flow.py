"""Spline flows: an exact inverse both ways, autograd's determinant, and densities that are one."""

import pytest
import torch

from simulacra.models.flows.spline_flow import Config, SplineFlow
from simulacra.spaces import Column, Images, Labels, Table, Vectors

FORMS = pytest.mark.parametrize("form", ["autoregressive", "coupling"])
LINEAR = pytest.mark.parametrize("linear", [True, False], ids=["linear", "flips"])
SPACES = pytest.mark.parametrize(
    "space",
    [Images(1, 2, 4), Vectors(5), Vectors(1), Table((Column("a"), Column("b")))],
    ids=str,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rough(space, condition=None, **settings):
    config = Config(**{"blocks": 3, "bins": 5, "hidden": 12, "layers": 2, **settings})
    model = SplineFlow(space, config, condition=condition).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


@FORMS
@LINEAR
@SPACES
def test_there_and_back_is_exact(space, form, linear):
    bijection = rough(space, form=form, linear=linear).flow.bijection
    real = 3 * torch.randn(8, *space.shape, dtype=torch.float64, generator=seeded())
    code, _ = bijection(real)
    torch.testing.assert_close(bijection.inverse(code), real, atol=1e-10, rtol=1e-10)
    assert (code - real.flatten(1)).abs().max() > 0.01
    single, narrow = bijection.float(), real.float()
    torch.testing.assert_close(single.inverse(single(narrow)[0]), narrow, atol=1e-4, rtol=1e-4)


@FORMS
@LINEAR
@SPACES
def test_the_log_determinant_is_autograds(space, form, linear):
    bijection = rough(space, form=form, linear=linear).flow.bijection
    for real in 2 * torch.randn(3, *space.shape, dtype=torch.float64, generator=seeded()):
        jacobian = torch.autograd.functional.jacobian(lambda x: bijection(x[None])[0][0], real)
        matrix = jacobian.reshape(space.dimensions, space.dimensions)
        _, expected = torch.linalg.slogdet(matrix)
        assert float(bijection(real[None])[1]) == pytest.approx(float(expected), abs=1e-8)


@FORMS
def test_a_density_integrates_to_one_for_every_label(form):
    model = rough(Vectors(2), Labels(2), form=form)
    side = torch.linspace(-12, 12, 241, dtype=torch.float64)
    x = torch.cartesian_prod(side, side)
    area = (side[1] - side[0]) ** 2
    with torch.no_grad():
        values = [model.log_prob(x, condition=torch.full((len(x),), label)) for label in (0, 1)]
    for value in values:
        assert float(value.exp().sum() * area) == pytest.approx(1, abs=1e-2)
    assert (values[0] - values[1]).abs().max() > 0.01


@FORMS
@LINEAR
def test_an_untrained_flow_is_a_standard_normal(form, linear):
    config = Config(form=form, linear=linear, hidden=8)
    model = SplineFlow(Vectors(3), config).double()
    x = 2 * torch.randn(50, 3, dtype=torch.float64)
    expected = torch.distributions.Normal(0, 1).log_prob(x).sum(1)
    torch.testing.assert_close(model.log_prob(x), expected, atol=1e-5, rtol=1e-5)


def test_images_are_bounded_from_below():
    model = rough(Images(1, 1, 2, 4))
    assert model.kind == "lower"
    every = torch.cartesian_prod(torch.arange(4), torch.arange(4)).reshape(-1, 1, 1, 2)
    with torch.no_grad():
        many = every.repeat_interleave(2000, dim=0)
        values = model.log_prob(many, generator=seeded()).reshape(16, 2000)
    mass, bound = values.exp().mean(1), values.mean(1)
    error = float(values.exp().std(1).square().sum().sqrt()) / 2000**0.5
    assert float(mass.sum()) < 1 + 5 * error
    assert (bound < mass.log()).all()


@FORMS
def test_codes_of_images_come_back_as_the_images(form):
    model = rough(Images(1, 4, 4, 16), form=form)
    x = model.space.random(20, seeded())
    assert torch.equal(model.decode(model.encode(x)), x)
