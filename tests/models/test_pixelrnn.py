"""PixelRNN: what a pixel sees, sums to one, and drawing with kept states against one pass a pixel."""

import itertools

import pytest
import torch

from simulacra.layers.front_door import drawn_labels
from simulacra.models.autoregressive.pixelrnn import Config, PixelRNN
from simulacra.probability.distributions import categorical_draw
from simulacra.probability.noise import row_noise
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels

SCAN = pytest.mark.parametrize("scan", ["row", "diagonal"])
SPACES = pytest.mark.parametrize(
    "space",
    [Images(1, 6, 5, 2), Images(3, 4, 5, 5), Images(2, 4, 3, 256), Images(1, 1, 7, 3)],
    ids=["binary", "colour", "two channels of 256", "one row"],
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small(space, scan, *, layers=2, first=5, kernel=3, condition=None):
    """A net in float64 whose weights are large enough for every pixel to matter."""
    config = Config(scan, 6, layers, first, kernel, head=24)
    model = PixelRNN(space, config, condition=condition).double().eval()
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


def places(shape):
    """All entries in raster order, channels innermost: (channel, row, column)."""
    for i, j, channel in itertools.product(*map(range, (*shape[1:], shape[0]))):
        yield channel, i, j


def seen(model):
    """For each entry, which entries of the input move its distribution, by autograd.

    Over several inputs, as rectified units can cut a path off for some of them.
    """
    shape = model.space.shape
    network_input = (3 * torch.randn(24, *shape, dtype=torch.float64)).requires_grad_()
    features = model.network(network_input, None)
    told = model._head(features, model.before_last, model.last)
    logits = told.unflatten(1, (model.space.levels, shape[0]))
    logits = logits * torch.randn(logits.shape, dtype=torch.float64)
    for channel, i, j in places(shape):
        (gradient,) = torch.autograd.grad(
            logits[:, :, channel, i, j].sum(), network_input, retain_graph=True
        )
        yield (channel, i, j), (gradient != 0).any(0)


def earlier(shape, channel, row, column):
    """All entries before one in raster order."""
    index = {place: number for number, place in enumerate(places(shape))}
    now = index[channel, row, column]
    return torch.tensor(
        [[[index[c, i, j] < now for j in range(shape[2])] for i in range(shape[1])]
         for c in range(shape[0])]
    )  # fmt: skip


def triangle(model, channel, row, column):
    """What a Row LSTM's pixel can know, from the widths of its kernels.

    To row - d it climbs d times. The first convolution climbs at most once to get furthest right; each
    state climbs a row and ``reach`` to either side; in a row, every layer and the first convolution
    reach to the left.
    """
    config, (channels, height, width) = model.config, model.space.shape
    first, reach = config.first // 2, config.kernel // 2
    visible = torch.zeros(channels, height, width, dtype=torch.bool)
    for i, j in itertools.product(range(row + 1), range(width)):
        climb = row - i
        left = column - (climb + config.layers) * reach - first
        right = column + (climb - 1) * reach + first if climb else column - 1
        visible[:, i, j] = left <= j <= right
    visible[:, row, column] = torch.arange(channels) < channel
    return visible


@pytest.mark.parametrize(
    ("channels", "layers", "first", "kernel"),
    [(1, 1, 3, 3), (1, 2, 5, 3), (1, 3, 7, 3), (1, 2, 5, 5), (3, 2, 3, 3)],
)
def test_a_row_lstm_sees_its_triangle_and_nothing_else(channels, layers, first, kernel):
    space = Images(channels, 4, 7 if channels > 1 else 11, 2)
    model = small(space, "row", layers=layers, first=first, kernel=kernel)
    for place, visible in seen(model):
        assert torch.equal(visible, triangle(model, *place)), place


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_diagonal_lstm_sees_all_that_was_before_and_nothing_else(channels, layers):
    # Wide enough that only the second direction can tell a row's start of the last row's end.
    model = small(Images(channels, 4, 7, 2), "diagonal", layers=layers, first=3)
    for place, visible in seen(model):
        assert torch.equal(visible, earlier(model.space.shape, *place)), place


@SCAN
@pytest.mark.parametrize("space", [Images(1, 3, 4, 2), Images(3, 1, 2, 3)], ids=["gray", "colour"])
@pytest.mark.parametrize("condition", [None, Labels(3)], ids=["free", "conditional"])
def test_all_states_together_have_probability_one(scan, space, condition):
    model = small(space, scan, condition=condition)
    states = torch.tensor(list(itertools.product(range(space.levels), repeat=space.dimensions)))
    x = states.reshape(-1, *space.shape)
    labels = None if condition is None else torch.full((len(x),), 1)
    with torch.no_grad():
        total = model.log_prob(x, condition=labels).exp().sum()
    assert float(total) == pytest.approx(1, abs=1e-9)


@SCAN
@SPACES
@pytest.mark.parametrize("condition", [None, Labels(3)], ids=["free", "conditional"])
def test_drawing_with_kept_states_equals_one_pass_a_pixel(scan, space, condition):
    model = small(space, scan, condition=condition)
    x = model.sample(8, generator=seeded(3))
    assert space.contains(x)
    assert len(x.unique()) > 1
    assert torch.equal(x, one_pass_a_pixel(model, 8, 3))


@SCAN
@SPACES
def test_features_of_a_position_are_those_of_the_whole_image(scan, space):
    model = small(space, scan, condition=Labels(2))
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
                torch.testing.assert_close(there, whole[:, :, row, column], atol=1e-9, rtol=1e-9)
            above = entering[:, :, row].mT


@SCAN
@SPACES
def test_completion_keeps_the_known_and_draws_the_rest_in_order(scan, space):
    model = small(space, scan)
    x = space.random(8, seeded(1))
    known = torch.rand(x.shape, generator=seeded(2)) < 0.5
    filled = model.complete(x, known, generator=seeded(4))
    assert torch.equal(filled[known], x[known])
    assert torch.equal(filled, one_pass_a_pixel(model, 8, 4, given=x, known=known))


@SCAN
def test_a_class_is_learned(scan):
    space, labels = Images(1, 3, 3, 2), Labels(2)
    model = PixelRNN(space, Config(scan, 6, 2, 3, 3, head=8), condition=labels)
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    condition = torch.arange(64) % 2
    x = condition.reshape(-1, 1, 1, 1).expand(-1, 1, 3, 3)
    for _ in range(40):
        optimiser.zero_grad()
        (-model.log_prob(x, condition=condition).mean()).backward()
        optimiser.step()
    drawn = model.eval().sample(64, condition=condition, generator=seeded())
    assert float((drawn == x).float().mean()) > 0.95


@SCAN
def test_gradients_are_those_of_finite_differences(scan):
    model = small(Images(3, 3, 3, 3), scan, condition=Labels(2))
    x, labels = model.space.random(2, seeded()), torch.tensor([0, 1])
    model.log_prob(x, condition=labels).sum().backward()
    for name, parameter in model.named_parameters():
        direction = torch.randn(parameter.shape, dtype=torch.float64)
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter.add_(step * direction)
                values.append(float(model.log_prob(x, condition=labels).sum()))
                parameter.sub_(step * direction)
        slope = float((parameter.grad * direction).sum())
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(slope, rel=1e-5, abs=1e-7), name


@SCAN
def test_lower_precision_leaves_the_states_alone(scan):
    model = PixelRNN(Images(1, 6, 5, 2), Config(scan, 8, 2, head=8))
    x = model.space.random(4, seeded())
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.logits(x)
    rough.float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    torch.testing.assert_close(rough.float(), model.logits(x), atol=0.05, rtol=0.05)


@SCAN
def test_channels_that_do_not_divide_are_rounded_up(scan):
    model = PixelRNN(Images(3, 4, 4), Config(scan, channels=16, layers=1, head=16))
    assert model.logits(torch.zeros(2, 3, 4, 4)).shape == (2, 256, 3, 4, 4)


@SCAN
def test_many_images_are_scored_in_parts(scan):
    model = small(Images(1, 2, 3, 2), scan, condition=Labels(2))
    x, labels = model.space.random(70, seeded()), torch.arange(70) % 2
    whole = model.log_prob(x, condition=labels)
    for rows in (slice(0, 3), slice(60, 70)):
        torch.testing.assert_close(whole[rows], model.log_prob(x[rows], condition=labels[rows]))


@pytest.mark.parametrize(
    ("setting", "code"),
    [({"first": 4}, "CFG-110"), ({"kernel": 2}, "CFG-110"), ({"layers": 0}, "CFG-111")],
)
def test_settings_that_make_no_sense_are_refused(setting, code):
    with pytest.raises(Refusal) as refusal:
        Config(**setting)
    assert refusal.value.code == code
