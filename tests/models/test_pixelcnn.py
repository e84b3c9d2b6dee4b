"""PixelCNN: what a pixel may see, sums to one, and drawing by rows against one pass a pixel."""

import itertools

import pytest
import torch

from simulacra.layers.front_door import drawn_labels
from simulacra.layers.masked import MaskedConv2d
from simulacra.models.autoregressive.pixelcnn import Config, PixelCNN
from simulacra.probability.distributions import categorical_draw
from simulacra.probability.noise import row_noise
from simulacra.spaces import Images, Labels

GATED = pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
SPACES = pytest.mark.parametrize(
    "space",
    [Images(1, 6, 5, 2), Images(3, 4, 5, 5), Images(2, 4, 3, 256), Images(1, 1, 7, 3)],
    ids=["binary", "colour", "two channels of 256", "one row"],
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small(space, gated, *, channels=6, blocks=2, first=5, condition=None):
    """A net whose weights are large enough for every pixel to matter."""
    config = Config(gated, channels, blocks, first, head=2 * channels)
    model = PixelCNN(space, config, condition=condition).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def one_pass_a_pixel(model, rows, seed, condition=None, given=None, known=None):
    """The plain way to draw: the whole network again for every entry."""
    noise = row_noise(rows, seeded(seed))
    condition = drawn_labels(condition, model.condition_space, noise.uniform())
    uniform = noise.uniform(*model.space.shape)
    channels, height, width = model.space.shape
    x = torch.zeros(rows, *model.space.shape, dtype=torch.long)
    for i, j, channel in itertools.product(range(height), range(width), range(channels)):
        at = (slice(None), channel, i, j)
        with torch.no_grad():
            logits = model.logits(x, condition)[:, :, channel, i, j]
        drawn = categorical_draw(logits, uniform[at])
        x[at] = drawn if given is None else torch.where(known[at], given[at].long(), drawn)
    return x.to(model.space.dtype)


def seen_by(model, channel, row, column):
    """Which entries of the network's input move the distribution of one entry, by autograd.

    Over several inputs, as rectified units can cut a path off for some of them.
    """
    shape = model.space.shape
    network_input = torch.randn(16, *shape, dtype=torch.float64, requires_grad=True)
    features = model.network(network_input, None)
    told = model._head(features, model.before_last, model.last)
    levels = told.unflatten(1, (model.space.levels, shape[0]))[:, :, channel, row, column]
    weights = torch.randn(levels.shape, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((levels * weights).sum(), network_input)
    return (gradient != 0).any(0)


def before(shape, channel, row, column):
    """All entries before one in raster order, channels innermost."""
    index = torch.arange(shape[1] * shape[2]).reshape(1, shape[1], shape[2]) * shape[0]
    index = index + torch.arange(shape[0]).reshape(-1, 1, 1)
    return index < index[channel, row, column]


@GATED
@pytest.mark.parametrize("channels", [1, 3])
def test_no_pixel_sees_itself_or_what_follows(gated, channels):
    model = small(Images(channels, 4, 5, 2), gated).double()
    for place in itertools.product(range(channels), range(4), range(5)):
        seen = seen_by(model, *place)
        assert not (seen & ~before(model.space.shape, *place)).any(), place


@pytest.mark.parametrize("channels", [1, 3])
def test_the_gated_form_has_no_blind_spot(channels):
    model = small(Images(channels, 6, 6, 2), True, channels=12, blocks=6, first=3).double()
    for place in itertools.product(range(channels), range(6), range(6)):
        assert torch.equal(seen_by(model, *place), before(model.space.shape, *place)), place


def test_the_plain_form_has_the_blind_spot_of_its_paper():
    # Of the row above, 3x3 kernels reach one column to the right; the next row up, two; …
    model = small(Images(1, 8, 12, 2), False, channels=16, blocks=9, first=3).double()
    seen = seen_by(model, 0, 6, 3)[0]
    for row in range(6):
        reached = torch.arange(12) <= 3 + (6 - row)
        assert torch.equal(seen[row], reached)


@GATED
def test_the_support_test_would_notice_a_leak(gated):
    model = small(Images(1, 4, 4, 2), gated).double()
    first = model.network.layers[0].horizontal if gated else model.network.enter
    # Mask B where A belongs: the pixel sees itself.
    first.mask[:, :, -1, first.reach] = 1
    first.whole = bool(first.mask.all())
    assert seen_by(model, 0, 2, 2)[0, 2, 2]


def nats_of_a_far_copy(gated):
    """After a short training on images whose lower row is the upper one from right to left."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Config(gated, channels=16, blocks=4, first=3, head=16)
        model = PixelCNN(Images(1, 2, 5, 2), config)
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for step in range(120):
        upper = torch.randint(2, (32, 1, 1, 5), generator=seeded(step))
        loss = -model.log_prob(torch.cat([upper, upper.flip(3)], dim=2)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return float(loss)


def test_the_blind_spot_costs_what_stands_in_it():
    # 3x3 kernels see of the row above one column to the right: the first two copies are guesses.
    bit = torch.tensor(2.0).log().item()
    assert nats_of_a_far_copy(gated=True) < 5.5 * bit
    assert nats_of_a_far_copy(gated=False) > 6.9 * bit


@pytest.mark.parametrize("kind", ["A", "B"])
def test_masks_at_the_centre_are_exact(kind):
    conv = MaskedConv2d(3, 3, above=1, reach=1, groups=3, kind=kind).double()
    x = torch.randn(1, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    for output in range(3):
        (gradient,) = torch.autograd.grad(conv(x)[0, output, 1, 1], x)
        seen = [bool(gradient[0, group, 1, 1]) for group in range(3)]
        assert seen == [group < output or (kind == "B" and group == output) for group in range(3)]
        assert (gradient[0, :, 0] != 0).all()
        assert (gradient[0, :, 1, 0] != 0).all()
        assert not gradient[0, :, 1, 2].any()
        assert not gradient[0, :, 2].any()


@GATED
@pytest.mark.parametrize("space", [Images(1, 3, 4, 2), Images(3, 1, 2, 3)], ids=["gray", "colour"])
@pytest.mark.parametrize("condition", [None, Labels(3)], ids=["free", "conditional"])
def test_all_states_together_have_probability_one(gated, space, condition):
    model = small(space, gated, condition=condition).double()
    states = torch.tensor(list(itertools.product(range(space.levels), repeat=space.dimensions)))
    x = states.reshape(-1, *space.shape)
    labels = None if condition is None else torch.full((len(x),), 1)
    with torch.no_grad():
        total = model.log_prob(x, condition=labels).exp().sum()
    assert total.dtype == torch.float64
    assert float(total) == pytest.approx(1, abs=1e-9)


@GATED
@SPACES
@pytest.mark.parametrize("condition", [None, Labels(3)], ids=["free", "conditional"])
def test_drawing_by_rows_equals_one_pass_a_pixel(gated, space, condition):
    model = small(space, gated, condition=condition)
    x = model.sample(8, generator=seeded(3))
    assert space.contains(x)
    assert len(x.unique()) > 1
    assert torch.equal(x, one_pass_a_pixel(model, 8, 3))


@GATED
@SPACES
def test_features_of_a_position_are_those_of_the_whole_image(gated, space):
    model = small(space, gated, condition=Labels(2))
    x, labels = space.random(4, seeded()), torch.tensor([0, 1, 1, 0])
    entering = model._entering(x)
    with torch.no_grad():
        classes = model._classes(labels, 4)
        whole = model.network(entering, classes)
        walk, above = model.network.walk(4, classes), None
        for row in range(space.height):
            walk.next_row(row, above)
            for column in range(space.width):
                walk.put(column, entering[:, :, row, column])
                there = walk.at(column)
                torch.testing.assert_close(there, whole[:, :, row, column], atol=1e-5, rtol=1e-5)
            above = entering[:, :, row].mT


@GATED
@SPACES
def test_completion_keeps_the_known_and_draws_the_rest_in_order(gated, space):
    model = small(space, gated)
    x = space.random(8, seeded(1))
    known = torch.rand(x.shape, generator=seeded(2)) < 0.5
    filled = model.complete(x, known, generator=seeded(4))
    assert torch.equal(filled[known], x[known])
    assert torch.equal(filled, one_pass_a_pixel(model, 8, 4, given=x, known=known))


@GATED
def test_a_class_is_learned(gated):
    space, labels = Images(1, 3, 3, 2), Labels(2)
    config = Config(gated, 8, 1, 3, 3, head=8)
    model = PixelCNN(space, config, condition=labels)
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    condition = torch.arange(64) % 2
    x = condition.reshape(-1, 1, 1, 1).expand(-1, 1, 3, 3)
    for _ in range(40):
        optimiser.zero_grad()
        (-model.log_prob(x, condition=condition).mean()).backward()
        optimiser.step()
    drawn = model.eval().sample(64, condition=condition, generator=seeded())
    assert float((drawn == x).float().mean()) > 0.95


@GATED
def test_channels_that_do_not_divide_are_rounded_up(gated):
    model = PixelCNN(Images(3, 4, 4), Config(gated, channels=16, blocks=1, head=16))
    assert model.logits(torch.zeros(2, 3, 4, 4)).shape == (2, 256, 3, 4, 4)
