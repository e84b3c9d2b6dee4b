"""InfoGAN: the reader teaches the generator, and codes lead there and back."""

import math

import pytest
import torch

from simulacra.data.dataset import Part, Stream
from simulacra.games import Batch, Clock, Play
from simulacra.models.adversarial.infogan import Config, InfoGAN
from simulacra.probability.noise import row_noise
from simulacra.refusals import Refusal
from simulacra.spaces import Images

SPACE = Images(1, 8, 8, 2)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def model(**options):
    torch.manual_seed(0)
    settings = {"classes": 2, "numbers": 1, "latent": 8, "channels": 8, "batch_size": 32}
    return InfoGAN(SPACE, Config(**settings | options))


def test_the_information_reaches_the_generator_and_not_the_critic():
    batch = Batch(SPACE.random(32, seeded()))
    slopes = []
    for information in (0.0, 1.0):
        one = model(information=information)
        noise = row_noise(32, seeded(), "cpu")
        one.generator_loss(batch, noise, Clock()).value.backward()
        slopes.append(one.generator.start.weight.grad.clone())
        if information:
            assert all(p.grad is not None for p in one.reader.parameters())
    assert not torch.allclose(*slopes, rtol=0.01)
    (*_, last) = one.game().stages[-1].turns
    assert [player.name for player in last.players] == ["generator", "reader"]


def test_a_reader_that_knows_nothing_is_surprised_by_every_class_alike():
    one = model(classes=5)
    with torch.no_grad():
        one.reader[-1].weight.zero_()
        one.reader[-1].bias.zero_()
    noise = row_noise(32, seeded(), "cpu")
    told = one.generator_loss(Batch(SPACE.random(32, seeded())), noise, Clock())
    assert told.numbers["surprise of classes"].item() == pytest.approx(math.log(5))


def test_codes_of_two_pictures_are_found_without_labels():
    pictures = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    pictures[0, :, :4], pictures[1, :, :, 4:] = 1, 1
    y = torch.arange(400) % 2
    part = Part(pictures[y], torch.arange(400), SPACE)
    one = model(learning_rate=2e-3, penalty=0.2)
    play = Play(one, one.game(), seed=0)
    for report in play.rounds(Stream(part, 32, seed=0), lambda clock: clock.rounds / 120):
        assert not report.skipped
    with play.averaged():
        codes = one.encode(pictures)
        assert codes[0, :2].argmax() != codes[1, :2].argmax()
        right = (one.decode(codes) == pictures).float().mean()
    assert right > 0.95


def slanted_bars(count):
    """One bar or two, slanted to one side or to the other: images, and which have two."""
    down, across = (
        axis.float() - 5.5 for axis in torch.meshgrid(2 * [torch.arange(12)], indexing="ij")
    )
    two, side = torch.randint(2, (2, count), generator=seeded())
    slope = 0.35 * (2 * side - 1)[:, None, None]

    def bar(place):
        return (1.2 - (across - place - slope * down).abs()).clamp(0, 1) * (down.abs() < 5)

    x = torch.where(two[:, None, None] == 1, torch.maximum(bar(-2.5), bar(2.5)), bar(0.0))
    return (255 * x).round().to(torch.uint8)[:, None], two


@pytest.mark.parametrize(("views", "seed"), [(0.0, 0), (1.0, 0), (1.0, 1)])
def test_classes_stand_for_what_views_leave_as_it_is(views, seed):
    x, two = slanted_bars(400)
    space = Images(1, 12, 12, 256)
    torch.manual_seed(seed)
    settings = {"classes": 2, "numbers": 1, "latent": 8, "channels": 8, "batch_size": 32}
    one = InfoGAN(space, Config(**settings, learning_rate=2e-3, penalty=0.2, views=views))
    play = Play(one, one.game(), seed=seed)
    stream = Stream(Part(x, torch.arange(400), space), 32, seed=seed)
    for report in play.rounds(stream, lambda clock: clock.rounds / 150):
        assert not report.skipped
    with play.averaged():
        found = one.encode(x)[:, :2].argmax(1)
    # Without views a slant tells classes apart as well as the number of bars does.
    told = abs(2 * (found == two).float().mean() - 1)
    assert told > 0.95 if views else told < 0.7


def test_what_views_keep_is_the_information_of_the_classes():
    one, x = model(classes=4), torch.zeros(64, 1, 8, 8)
    noise = row_noise(64, seeded(), "cpu")
    certain = 50 * torch.eye(4)
    # Two views of one datum are told alike or not; nobody knows more than log 4.
    for read, information in (
        (lambda n: certain[torch.arange(n) % 4], math.log(4)),
        (lambda n: torch.zeros(n, 4), 0.0),
        (lambda n: certain[:1].expand(n, 4), 0.0),
        (lambda n: certain[(torch.arange(n) + torch.arange(n) // 64) % 4], math.log(4) - 50),
    ):
        one._read = lambda features, read=read: (read(len(features)), None)
        assert one._kept_by_views(x, noise).item() == pytest.approx(information, abs=1e-4)


def test_what_views_keep_moves_the_reader_alone_and_by_two_views_that_differ():
    one, x = model(classes=4), SPACE.random(32, seeded()).float()
    seen = []
    read = one._read
    one._read = lambda features: (seen.append(features), read(features))[1]
    one._kept_by_views(x, row_noise(32, seeded(), "cpu")).backward()
    first, last = seen[0].chunk(2)
    assert not torch.allclose(first, last)
    assert all(p.grad is None for p in [*one.critic.parameters(), *one.generator.parameters()])
    assert all(p.grad is not None for p in one.reader.parameters())


def test_a_class_that_nobody_takes_leaves_slopes_finite():
    one, x = model(classes=4), torch.zeros(32, 1, 8, 8)
    with torch.no_grad():
        one.reader[-1].bias[:4] = torch.tensor([0.0, 1.0, -200.0, -400.0])
    one._kept_by_views(x, row_noise(32, seeded(), "cpu")).backward()
    assert all(p.grad.isfinite().all() for p in one.reader.parameters())


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"classes": 1}, "CFG-173"),
        ({"pack": 2}, "CFG-235"),
        ({"unrolled": 1}, "CFG-235"),
        ({"views": -1.0}, "CFG-261"),
        ({"views": 2.1}, "CFG-261"),
    ],
)
def test_codes_that_nobody_can_read_are_refused(options, code):
    with pytest.raises(Refusal) as refusal:
        model(**options)
    assert refusal.value.code == code
