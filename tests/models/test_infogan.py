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
    (*_, last) = one.game().stages[0].turns
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


@pytest.mark.parametrize(
    ("options", "code"),
    [({"classes": 1}, "CFG-173"), ({"pack": 2}, "CFG-235"), ({"unrolled": 1}, "CFG-235")],
)
def test_codes_that_nobody_can_read_are_refused(options, code):
    with pytest.raises(Refusal) as refusal:
        model(**options)
    assert refusal.value.code == code
