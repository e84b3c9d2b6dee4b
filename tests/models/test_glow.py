"""Glow: its parts and the whole come back, with autograd's determinant; actnorms start as they should."""

import math

import pytest
import torch

from simulacra.games import Batch, Clock
from simulacra.layers.bijections import ActNorm, InvertibleLinear, starting
from simulacra.models.flows.glow import Config, Glow
from simulacra.play import Play
from simulacra.probability.noise import row_noise
from simulacra.spaces import Images, Labels

SPACES = pytest.mark.parametrize(
    "space", [Images(1, 2, 4), Images(2, 2, 2), Images(1, 3, 2, 5), Images(1, 4, 2, 2)], ids=str
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rough(space, condition=None, **settings):
    config = Config(**{"steps": 3, "hidden": 8, **settings})
    model = Glow(space, config, condition=condition).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def log_determinant(function, x):
    jacobian = torch.autograd.functional.jacobian(lambda one: function(one[None])[0].flatten(), x)
    return torch.linalg.slogdet(jacobian.reshape(x.numel(), x.numel()))[1]


@pytest.mark.parametrize(
    "space", [Images(1, 8, 8), Images(3, 4, 4), Images(1, 7, 5), Images(2, 6, 6)]
)
def test_there_and_back_is_exact(space):
    bijection = rough(space).flow.bijection
    real = torch.randn(6, *space.shape, dtype=torch.float64, generator=seeded())
    code, _ = bijection(real)
    assert code.shape == (6, space.dimensions)
    torch.testing.assert_close(bijection.inverse(code), real, atol=1e-10, rtol=1e-10)
    single, narrow = bijection.float(), real.float()
    torch.testing.assert_close(single.inverse(single(narrow)[0]), narrow, atol=1e-4, rtol=1e-4)


@SPACES
def test_the_log_determinant_is_autograds(space):
    bijection = rough(space).flow.bijection
    for real in torch.randn(2, *space.shape, dtype=torch.float64, generator=seeded()):
        expected = log_determinant(lambda x: bijection(x)[0], real)
        assert float(bijection(real[None])[1]) == pytest.approx(float(expected), abs=1e-8)


@pytest.mark.parametrize("shape", [(4,), (4, 1, 2), (2, 2, 2)])
@pytest.mark.parametrize("kind", [ActNorm, InvertibleLinear])
def test_parts_come_back_with_autograds_determinant(kind, shape):
    part = kind(shape[0]).double()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    x = torch.randn(3, *shape, dtype=torch.float64)
    y, log_det = part(x)
    torch.testing.assert_close(part.inverse(y), x)
    expected = log_determinant(lambda one: part(one)[0], x[0])
    torch.testing.assert_close(log_det, expected.expand(3))


def test_a_linear_map_starts_as_a_rotation():
    part = InvertibleLinear(6).double()
    image, log_det = part(torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(image @ image.T, torch.eye(6).double(), atol=1e-5, rtol=1e-5)
    assert log_det.abs().max() < 1e-5
    assert (image - torch.eye(6)).abs().max() > 0.1


@pytest.mark.parametrize("shape", [(3,), (3, 4, 5)])
def test_an_actnorm_starts_with_mean_zero_and_deviation_one(shape):
    part = ActNorm(3)
    x = 5 + torch.tensor([1.0, 20.0, 0.3]).reshape(-1, *[1] * (len(shape) - 1)) * torch.randn(
        200, *shape
    )
    with starting(part):
        y, _ = part(x)
    channels = y.detach().transpose(0, 1).flatten(1)
    torch.testing.assert_close(channels.mean(1), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(channels.std(1, correction=0), torch.ones(3), atol=1e-4, rtol=0)
    before = part.shift.clone()
    part(x + 100)
    assert torch.equal(part.shift, before)


def test_the_first_turn_starts_every_actnorm_at_its_own_place():
    """Whatever enters the network of each step afterwards has mean 0 and deviation 1."""
    model = Glow(Images(1, 4, 4, 8), Config(steps=3, hidden=8))
    x = (8 * torch.rand(400, 1, 4, 4) ** 3).long()
    stage = model.game().stages[0]
    assert stage.rounds == 1
    noise = row_noise(400, seeded())
    stage.turns[0].formula(iter([Batch(x)]), noise, Clock())
    seen = {}
    for name, part in model.named_modules():
        if isinstance(part, ActNorm):
            part.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out[0]}))
    with torch.no_grad():
        model.log_prob(x, generator=seeded(1))
    assert len(seen) == 3 * len(model.flow.bijection.scales)
    for out in seen.values():
        channels = out.transpose(0, 1).flatten(1)
        assert channels.mean(1).abs().max() < 0.15
        assert (channels.std(1) - 1).abs().max() < 0.15


def test_bfloat16_stays_inside_the_coupling_networks():
    model = Glow(Images(1, 4, 4), Config(steps=2, hidden=8))
    real = torch.randn(5, 1, 4, 4)
    plain, log_det = model.flow.bijection(real)
    with torch.autocast("cpu", torch.bfloat16):
        code, found = model.flow.bijection(real)
    assert code.dtype == found.dtype == torch.float32
    # The networks start at zero: all that is left is arithmetic of the flow itself.
    torch.testing.assert_close(code, plain, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found, log_det, atol=1e-5, rtol=1e-6)


def test_one_linear_step_is_a_gaussian_of_the_channels():
    """Without couplings that move, z = W (s x + b): a Gaussian with covariance (W S)^-1 (W S)^-T."""
    model = Glow(Images(1, 2, 2), Config(scales=1, steps=1, hidden=4)).double()
    norm, linear = model.flow.bijection.scales[0].chain.steps[:2]
    with torch.no_grad():
        for parameter in (*norm.parameters(), *linear.parameters()):
            parameter.add_(0.3 * torch.randn(parameter.shape))
    x = torch.randn(9, 1, 2, 2, dtype=torch.float64)
    rows = x.flatten(1)
    matrix = linear(torch.eye(4, dtype=torch.float64))[0].T * norm.log_scale.exp()
    root = torch.linalg.inv(matrix)
    centre = -root @ linear(norm.shift[None])[0][0]
    normal = torch.distributions.MultivariateNormal(centre, root @ root.T)
    torch.testing.assert_close(model.flow.density(x, None), normal.log_prob(rows))


def test_a_condition_moves_the_density():
    model = rough(Images(1, 4, 4, 4), Labels(2))
    x = model.space.random(9, seeded())
    one, other = (model.log_prob(x, condition=torch.full((9,), label)) for label in (0, 1))
    assert (one - other).abs().max() > 1e-3
    scores = model.anomaly_score(x)
    torch.testing.assert_close(scores, math.log(2) - torch.logaddexp(one, other))


def test_codes_of_images_come_back_as_the_images():
    model = rough(Images(1, 6, 6, 16))
    x = model.space.random(20, seeded())
    assert torch.equal(model.decode(model.encode(x)), x)


def test_a_play_keeps_what_the_first_turn_found():
    model = Glow.toy()
    x = model.space.random(64, seeded())

    class Whole:
        batch_size = 64

        def batch(self, index):
            return Batch(x)

        def sweep(self):
            yield Batch(x)

    play = Play(model, model.game())
    report = next(play.rounds(Whole(), lambda clock: 0.0))
    assert report.clock.rounds == 1
    norm = model.flow.bijection.scales[0].chain.steps[0]
    assert norm.shift.abs().max() + norm.log_scale.abs().max() > 1e-3
