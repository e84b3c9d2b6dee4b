"""GAN: D and its optimum, and tables with all that may stand in them."""

import math
from dataclasses import replace

import pytest
import torch

from simulacra import shelf
from simulacra.data.dataset import Part, Stream
from simulacra.games import Batch, Clock, Play
from simulacra.models.adversarial.gan import GAN, Config, share_of_data
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
def test_a_critic_of_a_fixed_generator_learns_the_optimum(loss):
    """q is a point's cloud, p another one: D comes within 0.05 of p / (p + q), whose form is known."""
    torch.manual_seed(0)
    config = Config(
        latent=1, hidden=8, critic_hidden=32, layers=2, loss=loss, penalty=0.0, learning_rate=5e-3
    )
    model = GAN(Vectors(1), config)

    class Shift(torch.nn.Module):
        def forward(self, z):
            return z + 1.0

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
    exact = torch.sigmoid(0.5 - x[:1000, 0])
    assert (found - exact).abs().mean() < 0.05
    told = model.diagnose(x[:1000])
    assert told["distance of D from p/(p + q) (probability)"] < 0.1
    assert told["distance of D from 1/2 (probability)"] > 0.1


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
