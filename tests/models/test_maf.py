"""MAF: the mask's order, an exact inverse, autograd's determinant, and the Gaussian it contains."""

import pytest
import torch

from simulacra.layers.masked_linear import AutoregressiveNet, MaskedLinear
from simulacra.models.flows.maf import MAF, Config
from simulacra.spaces import Column, Images, Labels, Table, Vectors

SPACES = [
    Images(1, 2, 4),
    Images(3, 2, 2, 5),
    Vectors(5),
    Vectors(1),
    Table((Column("a"), Column("b"))),
]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rough(space, condition=None, **settings):
    config = Config(**{"blocks": 3, "hidden": 12, "layers": 2, **settings})
    return roughened(MAF(space, config, condition=condition))


def roughened(model):
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


def jacobian(function, x):
    found = torch.autograd.functional.jacobian(lambda one: function(one[None])[0].flatten(), x)
    return found.reshape(x.numel(), x.numel())


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_there_and_back_is_exact(space):
    model = rough(space)
    bijection = model.flow.bijection
    real = torch.randn(6, *space.shape, dtype=torch.float64, generator=seeded())
    code, _ = bijection(real)
    assert code.shape == (6, space.dimensions)
    torch.testing.assert_close(bijection.inverse(code), real, atol=1e-10, rtol=1e-10)
    assert (code - real.flatten(1)).abs().max() > 0.1
    single, narrow = bijection.float(), real.float()
    torch.testing.assert_close(single.inverse(single(narrow)[0]), narrow, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_the_log_determinant_is_autograds(space):
    bijection = rough(space).flow.bijection
    for real in torch.randn(3, *space.shape, dtype=torch.float64, generator=seeded()):
        _, expected = torch.linalg.slogdet(jacobian(lambda x: bijection(x)[0], real))
        assert float(bijection(real[None])[1]) == pytest.approx(float(expected), abs=1e-8)


@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize(("size", "hidden"), [(6, 40), (9, 4), (1, 5)])
def test_an_entry_sees_those_before_it_and_no_others(size, hidden, layers):
    network = roughened(AutoregressiveNet(size, 1, hidden, layers))
    seen = torch.zeros(size, size, dtype=torch.bool)
    for x in 2 * torch.randn(30, size, dtype=torch.float64):
        seen |= jacobian(lambda one: network(one)[..., 0], x) != 0
    assert not seen.triu().any()
    if hidden >= size or layers == 0:
        assert torch.equal(seen, torch.ones(size, size).tril(-1).bool())


def test_strips_are_the_masked_product():
    sees = torch.randint(0, 401, (700,), generator=seeded()).sort().values
    layer = MaskedLinear(400, sees).double()
    assert len(layer.strips) > 1
    with torch.no_grad():
        layer.bias.normal_()
    matrix = layer.matrix()
    assert torch.equal(matrix != 0, torch.arange(400) < sees[:, None])
    x = torch.randn(7, 400, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x @ matrix.T + layer.bias)


def test_entry_by_entry_is_the_whole_pass_again():
    """The quick way back, against one whole pass of the network for every entry."""
    model = rough(Vectors(7), Labels(3))
    given = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 1]]
    y = torch.randn(4, 7, dtype=torch.float64)
    step = model.flow.bijection.steps[1]
    x = torch.zeros(4, 7, dtype=torch.float64)
    for entry in range(7):
        mean, raw = step.network(x, given).unbind(-1)
        whole = y * torch.exp(-step.reach * torch.tanh(raw)) + mean
        x[:, entry] = whole[:, entry]
    torch.testing.assert_close(step.inverse(y, given), x)


def test_one_linear_block_is_a_gaussian_with_full_covariance():
    """mu = the regression on the entries before, alpha = the log of what is left: any Gaussian."""
    size = 4
    factor = torch.randn(size, size, dtype=torch.float64, generator=seeded())
    centre = torch.randn(size, dtype=torch.float64, generator=seeded(1))
    normal = torch.distributions.MultivariateNormal(centre, factor @ factor.T)
    model = MAF(Vectors(size), Config(blocks=1, layers=0)).double()
    lower = normal.scale_tril
    # x = centre + L u, so x_i - mu_i = L_ii u_i with mu = centre + (I - diag(L) L^-1) (x - centre).
    weight = torch.eye(size) - lower.diagonal()[:, None] * torch.linalg.inv(lower)
    log_scale = lower.diagonal().log()
    last = model.flow.bijection.steps[1].network.last
    with torch.no_grad():
        model.flow.bijection.steps[1].reach.fill_(9.0)
        rows = torch.zeros(size, 2, last.steps0.shape[1], dtype=torch.float64)
        rows[:, 0] = weight[:, : rows.shape[2]]
        last.steps0.copy_(rows.flatten(0, 1))
        biases = torch.stack([centre - weight @ centre, torch.atanh(-log_scale / 9)], 1)
        last.bias.copy_(biases.flatten())
    x = normal.sample((50,))
    torch.testing.assert_close(model.log_prob(x), normal.log_prob(x))


def test_a_density_integrates_to_one_for_every_label():
    model = rough(Vectors(2), Labels(2))
    side = torch.linspace(-15, 15, 601, dtype=torch.float64)
    x = torch.cartesian_prod(side, side)
    area = (side[1] - side[0]) ** 2
    with torch.no_grad():
        one, other = (model.log_prob(x, condition=torch.full((len(x),), label)) for label in (0, 1))
    assert float(one.exp().sum() * area) == pytest.approx(1, abs=1e-3)
    assert float(other.exp().sum() * area) == pytest.approx(1, abs=1e-3)
    assert (one - other).abs().max() > 0.1
    scores = model.anomaly_score(x[::5000])
    mean = torch.logaddexp(one, other)[::5000] - torch.log(torch.tensor(2.0))
    torch.testing.assert_close(scores, -mean)


def test_an_untrained_flow_is_a_standard_normal():
    model = MAF(Vectors(3), Config(hidden=8)).double()
    x = torch.randn(50, 3, dtype=torch.float64)
    expected = torch.distributions.Normal(0, 1).log_prob(x).sum(1)
    torch.testing.assert_close(model.log_prob(x), expected)


def test_images_are_bounded_from_below():
    """The mass of each of all images, by many draws, sums to one at most; the bound lies below."""
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


def test_codes_of_images_come_back_as_the_images():
    model = rough(Images(1, 4, 4, 16))
    x = model.space.random(20, seeded())
    assert torch.equal(model.decode(model.encode(x)), x)
