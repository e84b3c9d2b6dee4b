"""GAN: D and its optimum, and tables with all that may stand in them."""

import math
from dataclasses import replace

import pytest
import torch

from simulacra import shelf
from simulacra.data.dataset import Part, Stream
from simulacra.games import Batch, Clock
from simulacra.layers.dense_critic import DenseCritic
from simulacra.models.adversarial.gan import GAN, Config, share_of_data
from simulacra.play import Play
from simulacra.probability.adversarial import LOSSES
from simulacra.probability.noise import BatchNoise, row_noise
from simulacra.spaces import Column, Images, Labels, Table, Vectors


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def played(model, x, rounds, y=None):
    part = Part(x, torch.arange(len(x)), model.space, y)
    stream = Stream(part, model.config.batch_size, seed=0, conditional=y is not None)
    play = Play(model, model.game(), seed=0)
    for report in play.rounds(stream, lambda clock: clock.rounds / rounds):
        assert not report.skipped
    return play


def test_neighbours_tell_p_over_p_plus_q():
    """Of N(0, 1) and N(1, 1), p / (p + q) = sigmoid(1/2 - x)."""
    real, made = (torch.randn(2000, 1, generator=seeded(s)) + s for s in (0, 1))
    exact = torch.sigmoid(0.5 - torch.cat([real, made]))[:, 0]
    assert (share_of_data(real, made) - exact).abs().mean() < 0.08


@pytest.mark.parametrize("loss", ["non-saturating", "relativistic"])
@pytest.mark.parametrize("shift", [1.0, 0.0])
def test_a_critic_of_a_fixed_generator_learns_the_optimum(loss, shift):
    """q is a point's cloud, p another one, or the same: D comes within 0.05 of p / (p + q), whose form is
    known, and which is 1/2 where they are the same."""
    torch.manual_seed(0)
    config = Config(
        latent=1, hidden=8, critic_hidden=32, layers=2, loss=loss, penalty=0.0, learning_rate=5e-3
    )
    model = GAN(Vectors(1), config)

    class Shift(torch.nn.Module):
        def forward(self, z):
            return z + shift

    model.generator = Shift()
    optimiser = torch.optim.Adam(model.critic.parameters(), 5e-3)
    x = torch.randn(20_000, 1, generator=seeded())
    draws = seeded(1)
    for step in range(250):
        rows = x[torch.randint(len(x), (256,), generator=draws)]
        noise = BatchNoise(seeded(step), 256)
        optimiser.zero_grad()
        model.critic_loss(Batch(rows), noise, Clock()).value.backward()
        optimiser.step()
    found = model.chance_of_data(x[:1000], beside=x[:1000])
    exact = torch.sigmoid(shift**2 / 2 - shift * x[:1000, 0])
    assert (found - exact).abs().mean() < 0.05
    told = model.diagnose(x[:1000])
    assert told["distance of D from p/(p + q) (probability)"] < 0.1
    assert (told["distance of D from 1/2 (probability)"] > 0.1) == (shift > 0)


def test_a_critic_of_waves_sees_within_a_cluster():
    """Made clusters are half as wide as the data's: plain numbers leave D at 1/2, waves bring it near
    p / (p + q), which is known."""
    angle = torch.pi / 4 * torch.arange(8)
    centres = torch.stack([angle.cos(), angle.sin()], 1) * 2**0.5

    def drawn(count, width, draws):
        which = torch.randint(8, (count,), generator=draws)
        return centres[which] + width * torch.randn(count, 2, generator=draws)

    def log_density(x, width):
        square = torch.cdist(x, centres).min(1).values.square()
        return -square / (2 * width**2) - 2 * math.log(width)

    wide, narrow = 0.0141, 0.0071
    test = torch.cat([drawn(500, wide, seeded(5)), drawn(500, narrow, seeded(6))])
    exact = torch.sigmoid(log_density(test, wide) - log_density(test, narrow))
    apart = {}
    for octaves in (0, 5):
        torch.manual_seed(0)
        critic = DenseCritic(2, 0, Config(), hidden=64, layers=3, waves=octaves)
        optimiser, draws = torch.optim.Adam(critic.parameters(), 1e-3), seeded(1)
        for _ in range(300):
            logits = [critic(drawn(256, width, draws), None).logit for width in (wide, narrow)]
            optimiser.zero_grad()
            LOSSES["non-saturating"].critic(*logits, 0.0).backward()
            optimiser.step()
        with torch.no_grad():
            told = torch.sigmoid(critic(test, None).logit)
        apart[octaves] = float((told - exact).abs().mean())
    assert apart[5] < 0.1
    assert apart[0] > 0.2


def test_the_critic_is_watched_while_it_learns():
    """Beside the turns of both: D's distances, every so many rounds, and of packs none."""
    torch.manual_seed(0)
    config = replace(GAN.recommend(Vectors(2), 1000), batch_size=64, hidden=16, critic_hidden=16)
    model = GAN(Vectors(2), config)
    x = torch.randn(600, 2, generator=seeded())
    stream = Stream(Part(x, torch.arange(600), Vectors(2)), 64, seed=0)
    play = Play(model, model.game(), seed=0)
    told = [report.numbers for report in play.rounds(stream, lambda c: c.rounds / 850)]
    name = "distance of D from p/(p + q) (probability)"
    watched = [index for index, numbers in enumerate(told) if name in numbers]
    assert len(watched) == 3
    assert all(0 <= told[index][name] <= 1 for index in watched)
    packed = GAN(Vectors(2), replace(config, pack=2))
    turns = [turn for stage in packed.game().stages for turn in stage.turns]
    assert "watch" not in [getattr(turn, "name", "") for turn in turns]


def test_a_critic_that_cannot_tell_says_one_half():
    model = GAN(Vectors(2), Config(critic_hidden=8, layers=1))
    with torch.no_grad():
        model.critic.out.weight.zero_()
        model.critic.out.bias.zero_()
    told = model.diagnose(torch.randn(200, 2, generator=seeded()))
    assert told["distance of D from 1/2 (probability)"] == pytest.approx(0, abs=1e-6)


def test_a_table_of_everything_is_drawn_by_class():
    """A real column, one that may be missing and a category, all of which the class decides."""
    columns = (
        Column("size"),
        Column("age", missing=True),
        Column("colour", "category", ("red", "green", "blue")),
    )
    space = Table(columns)
    y = torch.arange(600) % 2
    draw = seeded()
    size = 3.0 * y + 0.3 * torch.randn(600, generator=draw)
    age = torch.where(y == 0, torch.nan, 40 + torch.randn(600, generator=draw))
    x = torch.stack([size, age, 2.0 * y], dim=1)
    torch.manual_seed(0)
    config = GAN.recommend(space, 600)
    config = replace(config, latent=8, hidden=64, critic_hidden=64, learning_rate=2e-3)
    model = GAN(space, config, condition=Labels(2))
    play = played(model, x, 220, y)
    wanted = torch.arange(200) % 2
    with play.averaged():
        made = model.sample(200, condition=wanted, generator=seeded())
    assert space.contains(made)
    ones = wanted == 1
    assert (made[ones, 0].mean() - made[~ones, 0].mean()).item() == pytest.approx(3, abs=0.8)
    assert made[~ones, 1].isnan().float().mean() > 0.7
    # A generator that does not see the class leaves half out; in eight trainings at most 0.14 were.
    assert made[ones, 1].isnan().float().mean() < 0.25
    assert (made[ones, 2] == 2).float().mean() > 0.8


def test_small_images_come_out_as_levels():
    model = shelf.build("gan", Images(1, 4, 5, 16), num_examples=100)
    assert model.space.contains(model.sample(3, generator=seeded()))
    batch = Batch(model.space.random(16, seeded()))
    assert math.isfinite(
        model.critic_loss(batch, row_noise(16, seeded(), "cpu"), Clock()).value.item()
    )
