"""InfoGAN: the reader teaches the generator, and codes lead there and back."""

import math

import pytest
import torch

from simulacra.data.dataset import Part, Stream
from simulacra.games import Batch, Clock
from simulacra.layers.front_door import centred
from simulacra.models.adversarial import infogan
from simulacra.models.adversarial.infogan import Config, InfoGAN
from simulacra.play import Play
from simulacra.probability.noise import row_noise
from simulacra.probability.view_information import gains_of_splits, information_of_views
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
    (last,) = [turn for turn in one.game().stages[0].turns if "generator_loss" in repr(turn)]
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


def test_what_views_keep_moves_the_reader_alone_and_by_two_views_that_differ():
    one, x = model(classes=4), SPACE.random(32, seeded()).float()
    chances = one._chances(one._seen_twice(x, row_noise(32, seeded(), "cpu")))
    first, last = chances.chunk(2)
    assert not torch.allclose(first, last)
    information_of_views(chances).backward()
    others = [one.critic, one.generator, one.halves]
    assert all(p.grad is None for other in others for p in other.parameters())
    read = dict(one.reader.named_parameters())
    assert all(p.grad is not None for p in read.values())


def test_halves_move_nobody_but_themselves():
    one, x = model(classes=4), SPACE.random(32, seeded()).float()
    weights, slopes = [one.critic, one.generator, one.reader], []
    for trained in (True, False):
        one.halves.requires_grad_(trained)
        one.zero_grad()
        one.generator_loss(Batch(x), row_noise(32, seeded(), "cpu"), Clock()).value.backward()
        slopes.append([p.grad for part in weights for p in part.parameters()])
        if trained:
            assert all(p.grad.abs().sum() > 0 for p in one.halves.parameters())
    for with_halves, without in zip(*slopes, strict=True):
        assert torch.equal(with_halves, without)


def test_halves_have_a_player_where_classes_can_move():
    for options, players in (({"classes": 3}, 4), ({}, 3), ({"classes": 3, "views": 0.0}, 3)):
        assert len(model(**options).game().players()) == players


def three_kinds(count):
    """A bar above, one below, or one down the middle, which is short or long."""
    kind, long = torch.randint(3, (count,), generator=seeded()), torch.rand(count) < 0.5
    x = 0.2 * torch.rand(count, 12, 12)
    x[kind == 0, 1:3], x[kind == 1, 9:11] = 1, 1
    x[kind == 2, 4:8, 5:7] = 1
    x[(kind == 2) & long, :, 5:7] = 1
    return (255 * x).to(torch.uint8)[:, None], kind, long


def test_a_class_that_is_two_kinds_is_found_where_another_kind_has_two():
    x, kind, long = three_kinds(512)
    space = Images(1, 12, 12, 256)
    torch.manual_seed(0)
    settings = {"classes": 3, "numbers": 0, "latent": 4, "channels": 8, "batch_size": 64}
    one = InfoGAN(space, Config(**settings, views=0.2))
    room = one.critic.feature_size - 144
    one._features = lambda x: torch.nn.functional.pad(x.flatten(1), (0, room))
    # A reader that takes long and short ones for two classes, and all others for one.
    codes = torch.where(kind == 2, 1 + long.long(), 0)
    optimiser = torch.optim.Adam(one.reader.parameters(), 5e-3)
    view = centred(x, 256)
    with torch.no_grad():
        features = one._features(view)
    for _ in range(60):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(one._read(features)[0], codes).backward()
        optimiser.step()

    def names():
        with torch.no_grad():
            return one._read(features)[0].argmax(1)

    assert (names() == codes).float().mean() > 0.95
    optimiser = torch.optim.Adam(one.halves.parameters(), 2e-2)
    for seed in range(60):
        hidden = one._seen_twice(view, row_noise(len(x), seeded(seed), "cpu")).detach()
        optimiser.zero_grad()
        (-gains_of_splits(one._chances(hidden).detach(), one._halves(hidden)).sum()).backward()
        optimiser.step()
    before = one.generator.start.weight.clone()
    batches = [Batch(part) for part in x.split(64)]
    for progress in (0.05, 0.85):
        clock = Clock(progress=progress)
        assert not one.move_classes(iter(batches), row_noise(64, seeded(), "cpu"), clock)
    told = one.move_classes(iter(batches), row_noise(64, seeded(), "cpu"), Clock(progress=0.5))
    assert told["a class moved"] == 1
    assert told["gain of a move"] > 0.1
    found = names()
    table = torch.stack([torch.bincount(found[kind == one], minlength=3) for one in range(3)])
    assert table.max(1).values.sum() > 0.9 * len(x)
    assert len(set(table.argmax(1).tolist())) == 3
    # The class that was freed begins with the code of the one that it is a half of.
    moved = one.generator.start.weight - before
    (freed,) = moved.abs().sum(0).nonzero()[:, 0].tolist()
    assert freed - 4 in (1, 2)
    assert torch.equal(one.generator.start.weight[:, freed], before[:, 4])
    again = one.move_classes(iter(batches), row_noise(64, seeded(), "cpu"), Clock(progress=0.5))
    assert again["a class moved"] == 0


def test_a_move_by_which_nothing_is_gained_is_not_made():
    x, *_ = three_kinds(256)
    torch.manual_seed(0)
    settings = {"classes": 3, "numbers": 0, "latent": 4, "channels": 8, "batch_size": 64}
    one = InfoGAN(Images(1, 12, 12, 256), Config(**settings))
    with torch.no_grad():
        # Halves that seem to tell all, and are as far off for whatever is of another class.
        one.halves.weight.mul_(1e4)
    before = {name: value.clone() for name, value in one.state_dict().items()}
    batches = iter([Batch(part) for part in x.split(64)])
    told = one.move_classes(batches, row_noise(64, seeded(), "cpu"), Clock(progress=0.5))
    assert told["a class moved"] == 0
    assert all(torch.equal(before[name], value) for name, value in one.state_dict().items())


def test_a_run_that_is_resumed_moves_the_same_classes(monkeypatch):
    monkeypatch.setattr(infogan, "MOVE_EVERY", 3)
    monkeypatch.setattr(infogan, "WORTH", -10.0)
    x, *_ = three_kinds(256)
    space = Images(1, 12, 12, 256)
    stream = Stream(Part(x, torch.arange(256), space), 32, seed=0)
    settings = {"classes": 4, "numbers": 1, "latent": 4, "channels": 8, "batch_size": 32}

    def played(play, rounds):
        moved = 0
        for report in play.rounds(stream, lambda clock: 0.2 + clock.rounds / 100):
            moved += report.numbers.get("a class moved", 0)
            if play.clock.rounds == rounds:
                return moved

    def new():
        torch.manual_seed(0)
        return InfoGAN(space, Config(**settings))

    whole, half, rest = (Play(one, one.game(), seed=1) for one in (new(), new(), new()))
    assert played(whole, 14) > 2
    played(half, 7)
    rest.load_state(*half.state())
    played(rest, 14)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, rest.model.state_dict()[name])
        if name in whole.shadow:
            assert torch.equal(whole.shadow[name], rest.shadow[name])


def test_averages_begin_anew_where_a_class_has_moved(monkeypatch):
    monkeypatch.setattr(infogan, "MOVE_EVERY", 4)
    monkeypatch.setattr(infogan, "WORTH", -10.0)
    x, *_ = three_kinds(256)
    space = Images(1, 12, 12, 256)
    settings = {"classes": 4, "numbers": 1, "latent": 4, "channels": 8, "batch_size": 32}
    one = InfoGAN(space, Config(**settings))
    play = Play(one, one.game(), seed=1)
    stream = Stream(Part(x, torch.arange(256), space), 32, seed=0)
    for report in play.rounds(stream, lambda clock: 0.5):
        if report.numbers.get("a class moved"):
            break
    # The round's step of the average comes after, towards weights that it stands at.
    for name in ("reader.2.weight", "generator.start.weight", "halves.weight"):
        assert torch.equal(play.shadow[name], one.state_dict()[name])
    assert not torch.equal(play.shadow["critic.out.weight"], one.critic.out.weight)


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
