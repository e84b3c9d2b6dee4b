"""PixelCNN++: what a pixel may see, the channels within it, and drawing by rows against whole passes."""

import itertools

import pytest
import torch

from simulacra.layers.front_door import drawn_labels
from simulacra.models.autoregressive.pixelcnn_plus_plus import (
    Config,
    Mixture,
    PixelCNNPlusPlus,
)
from simulacra.probability.distributions import discretised_logistic_log_prob
from simulacra.probability.noise import row_noise
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels

SCALES = pytest.mark.parametrize("scales", [1, 2, 3])
SPACES = pytest.mark.parametrize(
    "space",
    [Images(1, 6, 5, 256), Images(3, 5, 7, 17), Images(2, 4, 4, 3), Images(1, 1, 7, 4)],
    ids=["gray", "colour and odd sides", "two channels", "one row"],
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small(space, scales=2, *, channels=6, blocks=2, mixtures=3, condition=None):
    """A net whose weights are large enough for every pixel to matter."""
    config = Config(channels, scales, blocks, mixtures, dropout=0.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PixelCNNPlusPlus(space, config, condition=condition).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def one_pass_a_pixel(model, rows, seed, given=None, known=None):
    """The plain way to draw: the whole network again for every pixel."""
    noise = row_noise(rows, seeded(seed))
    condition = drawn_labels(None, model.condition_space, noise.uniform())
    uniform = noise.uniform(*model.space.shape, 2)
    x = torch.zeros(rows, *model.space.shape, dtype=torch.long)
    for i, j in itertools.product(*map(range, model.space.shape[1:])):
        with torch.no_grad():
            mixture = model.mixture(x, condition)
        one = Mixture(
            *(
                getattr(mixture, name)[:, i, j]
                for name in ("logits", "mean", "log_scale", "coupling")
            )
        )
        at = (slice(None), slice(None), i, j)
        fixed = None if given is None else (given[at].long(), known[at])
        x[at] = model.pixel(one, uniform[at], fixed)
    return x.to(model.space.dtype)


def seen_by(model, row, column):
    """Which pixels of the network's input move the numbers of one pixel, by autograd."""
    channels, *sides = model.space.shape
    read = model._read(model.space.random(1, seeded())).shape[1]
    entering = torch.randn(8, read, *sides, dtype=torch.float64, requires_grad=True)
    numbers = model.numbers(entering, None)[:, row, column]
    (slope,) = torch.autograd.grad((numbers * torch.randn_like(numbers)).sum(), entering)
    # What is read of a pixel are its channels, and then waves of them.
    return (slope != 0).any(0).unflatten(0, (-1, channels)).any(0)


@SCALES
@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 5, 7)], ids=["gray", "colour and odd sides"])
def test_a_pixel_sees_all_pixels_before_it_and_no_other(scales, shape):
    # Each convolution reaches one row and one column further: at full size two pairs or three on
    # either way, of two convolutions each, are enough.
    model = small(Images(*shape, 4), scales, blocks=3 if scales == 1 else 2**scales)
    model = model.double()
    index = torch.arange(shape[1] * shape[2]).reshape(shape[1:])
    for row, column in itertools.product(range(shape[1]), range(shape[2])):
        before = (index < index[row, column]).expand(shape)
        assert torch.equal(seen_by(model, row, column), before), (row, column)


def test_the_support_test_would_notice_a_leak():
    model = small(Images(1, 4, 4, 4), 2).double()
    model.streams.enter_right.mask.fill_(1.0)
    assert seen_by(model, 2, 2)[0, 2, 2]


def test_without_depth_the_reach_is_short():
    model = small(Images(1, 12, 12, 4), 1, blocks=1).double()
    seen = seen_by(model, 11, 6)[0]
    assert not seen[0].any()
    assert seen[7:11].any(1).all()


def test_a_channel_depends_on_the_channels_before_it_alone():
    model = small(Images(3, 2, 2, 17)).double()
    x = model.space.random(4, seeded())
    with torch.no_grad():
        factors = model.log_factors(x)
        for channel in range(3):
            other = x.clone()
            other[:, channel, 1, 1] = (other[:, channel, 1, 1] + 8) % 17
            moved = (model.log_factors(other) - factors)[:, :, 1, 1].abs().gt(1e-9).all(0)
            assert moved.tolist() == [later >= channel for later in range(3)]
            assert torch.equal(model.log_factors(other)[:, :, 0], factors[:, :, 0])


def test_means_are_those_of_equation_3():
    draw = torch.randn(2, 3, 7, dtype=torch.float64, generator=seeded())
    mixture = Mixture(draw[..., 0], draw[..., 1:4].mT, draw[..., 1:4].mT, draw[..., 4:].mT)
    r, g, b = torch.rand(2, 3, dtype=torch.float64, generator=seeded(1)).unsqueeze(-1).unbind(1)
    means = mixture.means(torch.cat([r, g, b], 1))
    alpha, beta, gamma = mixture.coupling.unbind(1)
    assert torch.equal(means[:, 0], mixture.mean[:, 0])
    torch.testing.assert_close(means[:, 1], mixture.mean[:, 1] + alpha * r)
    torch.testing.assert_close(means[:, 2], mixture.mean[:, 2] + beta * r + gamma * g)


def test_a_pixels_density_is_the_sum_over_components():
    model = small(Images(3, 1, 1, 5)).double()
    x = model.space.random(6, seeded())
    with torch.no_grad():
        mixture, told = model.mixture(x), model.log_prob(x)
    weights = torch.softmax(mixture.logits[:, 0, 0], -1)
    scaled = x[:, :, 0, 0].double() / 2 - 1
    total = torch.zeros(6, dtype=torch.float64)
    for k in range(3):
        part, mean = weights[:, k].log(), mixture.mean[:, 0, 0, :, k]
        slope = mixture.coupling[:, 0, 0, :, k]
        centres = [
            mean[:, 0],
            mean[:, 1] + slope[:, 0] * scaled[:, 0],
            mean[:, 2] + slope[:, 1] * scaled[:, 0] + slope[:, 2] * scaled[:, 1],
        ]
        for c, centre in enumerate(centres):
            spread = mixture.log_scale[:, 0, 0, c, k]
            part = part + discretised_logistic_log_prob(x[:, c, 0, 0], centre, spread, 5)
        total += part.exp()
    torch.testing.assert_close(told.exp(), total)


@SCALES
@pytest.mark.parametrize("space", [Images(1, 2, 3, 4), Images(3, 1, 2, 4)], ids=["gray", "colour"])
@pytest.mark.parametrize("condition", [None, Labels(3)], ids=["free", "conditional"])
def test_all_states_together_have_probability_one(scales, space, condition):
    model = small(space, scales, condition=condition).double()
    states = torch.cartesian_prod(*[torch.arange(space.levels)] * space.dimensions)
    x = states.reshape(-1, *space.shape)
    labels = None if condition is None else torch.full((len(x),), 1)
    with torch.no_grad():
        total = model.log_prob(x, condition=labels).exp().sum()
    assert float(total) == pytest.approx(1, abs=1e-9)


@SCALES
@SPACES
def test_features_of_a_position_are_those_of_the_whole_image(scales, space):
    model = small(space, scales, condition=Labels(2))
    x, labels = space.random(4, seeded()), torch.tensor([0, 1, 1, 0])
    entering, classes = model._read(x), model._classes(labels, 4)
    with torch.no_grad():
        whole, walk = model.streams(entering, classes), model.streams.walk(4, classes)
        for row in range(space.height):
            walk.next_row(row, entering[:, :, row - 1] if row else None)
            for column in range(space.width):
                there = walk.at(column)
                torch.testing.assert_close(there, whole[:, :, row, column], atol=1e-5, rtol=1e-5)
                walk.put(column, entering[:, :, row, column])


@SCALES
@SPACES
@pytest.mark.parametrize("condition", [None, Labels(3)], ids=["free", "conditional"])
def test_drawing_by_rows_equals_one_pass_a_pixel(scales, space, condition):
    model = small(space, scales, condition=condition)
    x = model.sample(8, generator=seeded(3))
    assert space.contains(x)
    assert len(x.unique()) > 1
    assert torch.equal(x, one_pass_a_pixel(model, 8, 3))


@SPACES
def test_completion_keeps_the_known_and_draws_the_rest_in_order(space):
    model = small(space)
    x = space.random(8, seeded(1))
    known = torch.rand(x.shape, generator=seeded(2)) < 0.5
    filled = model.complete(x, known, generator=seeded(4))
    assert torch.equal(filled[known], x[known])
    assert torch.equal(filled, one_pass_a_pixel(model, 8, 4, given=x, known=known))


@pytest.mark.parametrize("red", [None, 0, 2])
def test_colours_are_drawn_with_their_probability(red):
    """All of a pixel, or green and blue given a red that is known."""
    model = small(Images(3, 1, 1, 3)).double()
    states = torch.cartesian_prod(*[torch.arange(3)] * 3).reshape(-1, 3, 1, 1)
    with torch.no_grad():
        p = model.log_prob(states).exp()
    rows = 20_000
    if red is None:
        x = model.sample(rows, generator=seeded())
    else:
        p = torch.where(states[:, 0, 0, 0] == red, p, 0)
        known = torch.tensor([True, False, False]).reshape(1, 3, 1, 1).expand(rows, -1, 1, 1)
        given = torch.full((rows, 3, 1, 1), red, dtype=torch.uint8)
        x = model.complete(given, known, generator=seeded())
    code = (x.long()[:, :, 0, 0] * torch.tensor([9, 3, 1])).sum(1)
    shares = torch.bincount(code, minlength=27) / rows
    torch.testing.assert_close(shares.double(), p / p.sum(), atol=0.015, rtol=0)


def trained_on_two_humps(mixtures):
    """Nats per pixel after a short training on pixels near 40 or near 200 of 256."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PixelCNNPlusPlus(Images(1, 2, 2), Config(8, 1, 1, mixtures, dropout=0.0))
    x = torch.where(torch.rand(256, 1, 2, 2, generator=seeded()) < 0.5, 40, 200)
    x = x + torch.randint(-4, 5, x.shape, generator=seeded(1))
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(80):
        optimiser.zero_grad()
        loss = -model.log_prob(x).mean() / 4
        loss.backward()
        optimiser.step()
    return float(loss)


def test_a_mixture_beats_a_single_logistic():
    assert trained_on_two_humps(4) < trained_on_two_humps(1) - 0.5


def test_a_class_is_learned():
    model = small(Images(1, 3, 3, 4), condition=Labels(2))
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    condition = torch.arange(64) % 2
    x = (3 * condition).reshape(-1, 1, 1, 1).expand(-1, 1, 3, 3)
    for _ in range(40):
        optimiser.zero_grad()
        (-model.log_prob(x, condition=condition).mean()).backward()
        optimiser.step()
    drawn = model.eval().sample(64, condition=condition, generator=seeded())
    assert float((drawn == x).float().mean()) > 0.95


def test_two_levels_are_refused():
    with pytest.raises(Refusal, match="pixelcnn") as refusal:
        PixelCNNPlusPlus(Images(1, 4, 4, 2))
    assert refusal.value.code == "CFG-090"
