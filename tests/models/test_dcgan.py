"""DCGAN: who moves when, what the losses are, and that it learns a distribution it can be held to."""

import math

import pytest
import torch

from simulacra.data.dataset import Part, Stream
from simulacra.games import Batch, Clock
from simulacra.layers.augmentation import ADAPT_EVERY, IMAGES_TO_ONE
from simulacra.models.adversarial.dcgan import DCGAN, Config
from simulacra.play import Play
from simulacra.probability.noise import row_noise
from simulacra.spaces import Images, Labels


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_list_of_turns_is_the_algorithm():
    (stage,) = DCGAN(Images(1, 8, 8), Config(channels=8, critic_steps=3)).game().stages
    movers = [turn.players[0].name for turn in stage.turns]
    assert movers == ["critic", "critic", "critic", "critic", "generator"]
    assert stage.turns[0] is stage.turns[2]


def test_a_critic_that_cannot_tell_has_the_losses_of_a_coin():
    model = DCGAN(Images(1, 8, 8), Config(channels=8))
    with torch.no_grad():
        model.critic.out.weight.zero_()
        model.critic.out.bias.zero_()
    batch, noise = Batch(model.space.random(16, seeded())), row_noise(16, seeded(), "cpu")
    look = model.critic_loss(batch, noise, Clock())
    assert look.value.item() == pytest.approx(2 * math.log(2), abs=1e-6)
    assert model.generator_loss(batch, noise, Clock()).value.item() == pytest.approx(math.log(2))


def test_the_penalty_is_the_mean_squared_slope():
    model = DCGAN(Images(1, 4, 4, 2), Config(channels=8, penalty=3.0, penalty_every=5))
    x = model.space.random(6, seeded())
    told = model.gradient_penalty(Batch(x), row_noise(6, seeded(), "cpu"), Clock())
    start = x.float() * 2 - 1
    slopes = [
        torch.autograd.functional.jacobian(lambda one: model.critic(one[None], None).logit[0], row)
        for row in start
    ]
    mean = torch.stack(slopes).square().flatten(1).sum(1).mean()
    assert told.numbers["squared slope"].item() == pytest.approx(float(mean), rel=1e-5)
    assert told.value.item() == pytest.approx(0.5 * 3.0 * 5 * float(mean), rel=1e-5)


def test_a_penalty_falls_to_what_is_left():
    model = DCGAN(Images(1, 4, 4, 2), Config(channels=8, penalty_left=0.01))
    batch = Batch(model.space.random(6, seeded()))
    start, half, end = (
        model.gradient_penalty(
            batch, row_noise(6, seeded(), "cpu"), Clock(progress=at)
        ).value.item()
        for at in (0.0, 0.5, 1.0)
    )
    assert half == pytest.approx(0.1 * start)
    assert end == pytest.approx(0.01 * start)


@pytest.mark.parametrize("steps", [1, 5])
def test_augmentation_adapts_by_the_data_of_every_critic_step(steps, monkeypatch):
    config = Config(channels=8, batch_size=20, shift=0.1, adaptive=0.6, critic_steps=steps)
    model = DCGAN(Images(1, 8, 8), config)
    monkeypatch.setattr(model.contest, "sureness", lambda *given: torch.tensor(1.0))
    # Of eight data, as a run may be given.
    batch = Batch(model.space.random(8, seeded()))
    told = model.adapt(iter([batch]), row_noise(8, seeded(), "cpu"), Clock())
    seen = ADAPT_EVERY * steps * 8
    assert told["strength of augmentation"] == pytest.approx(seen / IMAGES_TO_ONE, rel=1e-5)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 9), (1, 28, 28), (4, 5, 5)])
def test_images_of_all_sizes_come_out(shape):
    model = DCGAN(Images(*shape), Config(channels=8))
    assert model.space.contains(model.sample(3, generator=seeded()))


def test_it_learns_which_pictures_there_are_and_how_often():
    """Two pictures, three to one, each named by its class: both are drawn, and as asked for."""
    space, labels = Images(1, 8, 8, 2), Labels(2)
    pictures = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    pictures[0, :, :4], pictures[1, :, :, 4:] = 1, 1
    y = (torch.arange(400) % 4 == 0).long()
    part = Part(pictures[y], torch.arange(400), space, y)
    model = DCGAN(
        space,
        Config(latent=8, channels=8, batch_size=32, learning_rate=2e-3, penalty=0.2),
        condition=labels,
    )
    play = Play(model, model.game(), seed=0)
    stream = Stream(part, 32, seed=0, conditional=True)
    for report in play.rounds(stream, lambda clock: clock.rounds / 150):
        assert not report.skipped
    wanted = torch.arange(200) % 2
    with play.averaged():
        x = model.sample(200, condition=wanted, generator=seeded())
    right = (x == pictures[wanted]).float().mean((1, 2, 3))
    assert float(right.mean()) > 0.97


def test_what_a_critic_feels_is_kept_once_for_its_gradients():
    model = DCGAN(Images(1, 16, 16), Config(channels=8))
    x, kept = torch.randn(7, 1, 16, 16), {}

    def keep(one):
        if one.ndim == 4 and len(one) == 7:
            kept[one.untyped_storage().data_ptr()] = one
        return one

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
        model.critic(x, None)
    sizes = sorted(one[0].numel() for one in kept.values())
    # The image, then what follows each convolution: at 16, 8 and 4 pixels, and the reading at 4.
    assert sizes == sorted([256, 8 * 256, 16 * 64, 32 * 16, 32 * 16])


def test_what_is_no_number_is_not_kept_in_averages():
    model = DCGAN(Images(1, 8, 8), Config(channels=8, regulariser="none"))
    part = Part(model.space.random(64, seeded()), torch.arange(64), model.space)
    play = Play(model, model.game())
    weight = model.generator.start.weight
    rounds = play.rounds(Stream(part, 16, seed=0), lambda clock: clock.rounds / 10)
    next(rounds)
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0] = torch.nan
    assert next(rounds).skipped == 2
    with torch.no_grad():
        weight.copy_(kept)
        play.shadow["generator.start.weight"].copy_(kept)
    assert next(rounds).skipped == 0
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert all(value.isfinite().all() for value in play.shadow.values())
