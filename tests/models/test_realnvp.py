"""RealNVP: an exact inverse, the determinant that autograd finds, and a density that integrates."""

import pytest
import torch

from simulacra.models.flows.realnvp import Config, RealNVP
from simulacra.spaces import Column, Images, Labels, Table, Vectors

SPACES = [
    Images(1, 4, 4),
    Images(3, 8, 4, 5),
    Images(1, 7, 5, 2),
    Images(2, 6, 6, 2),
    Vectors(5),
    Vectors(1),
    Table((Column("a"), Column("b"))),
]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rough(space, condition=None, **settings):
    config = Config(**{"couplings": 4, "hidden": 8, "blocks": 1, **settings})
    model = RealNVP(space, config, condition=condition).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_there_and_back_is_exact(space):
    model = rough(space)
    real = torch.randn(6, *space.shape, dtype=torch.float64, generator=seeded())
    code, _ = model.flow.bijection(real)
    assert code.shape == (6, space.dimensions)
    torch.testing.assert_close(model.flow.bijection.inverse(code), real, atol=1e-9, rtol=1e-9)
    assert (code - real.flatten(1)).abs().max() > 0.1


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_the_log_determinant_is_autograds(space):
    model = rough(space)
    for real in torch.randn(3, *space.shape, dtype=torch.float64, generator=seeded()):
        jacobian = torch.autograd.functional.jacobian(
            lambda x: model.flow.bijection(x[None])[0].flatten(), real
        )
        matrix = jacobian.reshape(space.dimensions, space.dimensions)
        _, expected = torch.linalg.slogdet(matrix)
        found = model.flow.bijection(real[None])[1]
        assert float(found) == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.parametrize("space", [Images(1, 8, 8), Images(3, 4, 4), Images(1, 7, 7)], ids=str)
def test_every_entry_changes_and_tells_every_other(space):
    model = rough(space, couplings=6, scales=1)
    real = torch.randn(space.shape, dtype=torch.float64, generator=seeded())
    jacobian = torch.autograd.functional.jacobian(
        lambda x: model.flow.bijection(x[None])[0][0], real
    )
    matrix = jacobian.reshape(space.dimensions, space.dimensions)
    assert (matrix.diagonal() != 1).all()
    assert (matrix != 0).double().mean() > 0.5


def test_a_density_of_vectors_integrates_to_one():
    model = rough(Vectors(2))
    side = torch.linspace(-12, 12, 500, dtype=torch.float64)
    x = torch.cartesian_prod(side, side)
    with torch.no_grad():
        total = model.log_prob(x).exp().sum() * (side[1] - side[0]) ** 2
    assert float(total) == pytest.approx(1, abs=1e-3)


def test_an_untrained_flow_is_a_standard_normal():
    model = RealNVP(Vectors(3), Config(hidden=8)).double()
    x = torch.randn(50, 3, dtype=torch.float64)
    expected = torch.distributions.Normal(0, 1).log_prob(x).sum(1)
    torch.testing.assert_close(model.log_prob(x), expected)


def test_codes_of_images_come_back_as_the_images():
    model = rough(Images(1, 6, 6, 16))
    x = model.space.random(20, seeded())
    assert torch.equal(model.decode(model.encode(x)), x)


def test_a_condition_moves_the_density():
    model = rough(Vectors(2), condition=Labels(2))
    x = torch.randn(9, 2, dtype=torch.float64)
    one, other = (model.log_prob(x, condition=torch.full((9,), label)) for label in (0, 1))
    assert (one - other).abs().max() > 1e-3
    scores = model.anomaly_score(x)
    torch.testing.assert_close(scores, -torch.logaddexp(one, other) + torch.log(torch.tensor(2.0)))


def test_more_draws_bound_more_tightly():
    one, many = (rough(Images(1, 4, 4, 8), importance_samples=count) for count in (1, 30))
    many.load_state_dict(one.state_dict())
    x = one.space.random(300, seeded())
    with torch.no_grad():
        assert float((many.log_prob(x) - one.log_prob(x)).mean()) > 0.01
        masses = many.double().log_prob(x[:1].expand(400, -1, -1, -1), generator=seeded(1)).exp()
        plain = one.double().log_prob(x[:1].expand(4000, -1, -1, -1), generator=seeded(2)).exp()
    error = float(plain.std()) / 4000**0.5 + float(masses.std()) / 20
    assert float(masses.mean()) == pytest.approx(float(plain.mean()), abs=5 * error)
