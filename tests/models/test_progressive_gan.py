"""Progressive GAN: what is seen at each height, and that stopping anywhere leaves no trace."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from simulacra.data.dataset import Part, Stream
from simulacra.games import Batch, Clock
from simulacra.layers.equalised import leaky, with_deviation
from simulacra.models.adversarial.progressive_gan import Config, Height, ProgressiveGAN
from simulacra.play import Play
from simulacra.probability.noise import BatchNoise, row_noise
from simulacra.spaces import Images, Labels

SMALL = Config(latent=4, channels=4, batch_size=16, penalty_every=4)
SPACE = Images(1, 16, 16, levels=4)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def built(space=SPACE, config=SMALL, condition=None):
    torch.manual_seed(0)
    return ProgressiveGAN(space, config, condition=condition)


def played(model, until, play=None, total=28):
    play = play or Play(model, model.game(), seed=0)
    part = Part(model.space.random(64, seeded()), torch.arange(64), model.space, None)
    stream, heights = Stream(part, 16, seed=0, conditional=False), []
    for report in play.rounds(stream, lambda clock: clock.rounds / total):
        heights.append(int(model.critic.grown))
        if report.clock.rounds >= until:
            break
    return play, heights


def test_it_grows_by_the_clock_and_shares_the_budget_one_two_four():
    model = built()
    play, heights = played(model, 28)
    assert [stage.share for stage in play.game.stages] == [1, 2, 4]
    assert heights[:4] == [0, 0, 0, 0]
    assert heights[4:12] == [0, 250, 500, 750, 1000, 1000, 1000, 1000]
    assert heights[12:20] == list(range(1000, 2000, 125))
    assert heights[20:] == [2000] * 8
    # A budget that grows later makes nobody smaller.
    model.grow(iter(()), row_noise(1, None), Clock(stage=2, progress=0.1))
    assert int(model.critic.grown) == 2000


@pytest.mark.parametrize("stop", [2, 6, 15])
def test_a_stop_before_a_border_and_within_a_fade_leaves_no_trace(stop):
    whole, half, rest = built(), built(), built()
    once, _ = played(whole, 24)
    tensors, plain = copy.deepcopy(played(half, stop)[0].state())
    again = Play(rest, rest.game(), seed=9)
    again.load_state(tensors, plain)
    played(rest, 24, again)
    for first, second in ((whole.state_dict(), rest.state_dict()), (once.shadow, again.shadow)):
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_at_the_ends_of_a_fade_stand_the_two_sizes():
    model = built()
    z = torch.randn(3, 4, generator=seeded())
    four, eight = (model.generator(z, Height(level, 1.0)) for level in (0, 1))
    assert (four.shape, eight.shape) == ((3, 1, 4, 4), (3, 1, 8, 8))
    doubled = model.generator.grow[0](four)
    for alpha, wanted in ((0.0, doubled), (0.3, 0.7 * doubled + 0.3 * eight)):
        torch.testing.assert_close(model.generator(z, Height(1, alpha)), wanted)
    x = SPACE.random(4, seeded()).float()
    seen = {}
    for grown in (0, 1, 1000, 1001, 2000):
        model.critic.grown.fill_(grown)
        seen[grown] = (model._seen(x), model.critic(model._seen(x), None).logit)
    assert torch.equal(seen[2000][0], x)
    assert (seen[1000][0].shape, seen[0][0].shape) == ((4, 1, 8, 8), (4, 1, 4, 4))
    assert (seen[1001][0] - model.generator.grow[1](seen[1000][0])).abs().max() < 0.01
    # Doubling and halving again blurs a little, so that the border moves the critic a little, too.
    assert (seen[1][0].mean() - seen[0][0].mean()).abs() < 0.1


def test_a_critic_of_the_smallest_size_is_what_it_is_written_as():
    critic = built().critic
    x = torch.randn(8, 1, 4, 4, generator=seeded())

    def convolved(layer, x):
        return functional.conv2d(x, layer.weight * layer.scale, layer.bias, padding="same")

    h = leaky(convolved(critic.last, with_deviation(leaky(convolved(critic.enter[0], x)))))
    h = leaky(h.flatten(1) @ critic.read.weight.T * critic.read.scale + critic.read.bias)
    logit = h @ critic.out.weight[0] * critic.out.scale + critic.out.bias
    torch.testing.assert_close(critic(x, None).logit, logit)


@pytest.mark.parametrize("rules", [{}, {"loss": "wasserstein", "regulariser": "wgan-gp"}])
def test_all_rules_play_at_all_heights_and_nobody_moves_the_other(rules):
    model = built(config=replace(SMALL, **rules))
    batch = Batch(SPACE.random(16, seeded()))
    for grown in (0, 400, 2000):
        model.critic.grown.fill_(grown)
        for still, turn in (
            ("generator", model.critic_loss),
            ("generator", model.gradient_penalty),
            ("critic", model.generator_loss),
        ):
            before = {name: one.clone() for name, one in getattr(model, still).state_dict().items()}
            others = [p for name, p in model.named_parameters() if not name.startswith(still)]
            model.zero_grad()
            told = turn(batch, row_noise(16, seeded()), Clock())
            torch.autograd.backward(told.value, inputs=others)
            assert all(p.grad is None for p in getattr(model, still).parameters())
            after = getattr(model, still).state_dict()
            assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("regulariser", ["r1", "r1+r2", "wgan-gp"])
def test_squared_slopes_of_small_images_count_as_at_full_size(regulariser):
    """Along a pixel that is a mean of four a critic rises by twice as much as along the four."""
    model = built(config=replace(SMALL, regulariser=regulariser))
    batch = Batch(SPACE.random(16, seeded()))
    for grown, share in ((0, 1 / 16), (1000, 1 / 4), (1001, 1.0), (2000, 1.0)):
        model.critic.grown.fill_(grown)
        counted = model.gradient_penalty(batch, row_noise(16, seeded()), Clock()).value.item()
        noise = row_noise(16, seeded())
        sides = model._sides(batch, noise)
        plain = model.contest.gradient_penalty(model.critic, sides, noise).value.item()
        expected = plain if regulariser == "wgan-gp" else share * plain
        assert counted == pytest.approx(expected, rel=1e-5)


def test_a_penalty_falls_once_through_all_stages():
    model = built(config=replace(SMALL, penalty_left=0.01))
    model.critic.grown.fill_(2000)
    told = [
        model._penalty_weight(Clock(stage=stage, progress=progress))
        for stage in range(3)
        for progress in (0.0, 0.5, 1.0)
    ]
    done = [0, 0.5, 1, 1, 2, 3, 3, 5, 7]
    assert told == pytest.approx([0.01 ** (one / 7) for one in done])


@pytest.mark.parametrize("shape", [(3, 13, 9), (4, 5, 5)])
def test_images_of_all_sizes_come_out_at_all_heights(shape):
    model = built(Images(*shape), condition=Labels(3))
    for grown in (0, 500 * (len(model.sizes) - 1), 1000 * (len(model.sizes) - 1)):
        model.critic.grown.fill_(grown)
        assert model.space.contains(model.sample(3, generator=seeded()))


def test_data_keep_their_precision_where_networks_run_in_bfloat16():
    """The penalty is taken at data without autocast: they must not be of a narrower kind than weights."""
    model = ProgressiveGAN(Images(1, 8, 8, levels=4), Config(latent=4, channels=4, batch_size=16))
    batch, noise = Batch(model.space.random(16, seeded())), BatchNoise(seeded(1), 16)
    for grown in (0, 500, 1000):
        model.critic.grown.fill_(grown)
        with torch.autocast("cpu", torch.bfloat16):
            assert model._sides(batch, noise).real.dtype == torch.float32
            assert model.gradient_penalty(batch, noise, Clock()).value.isfinite()


def test_runs_from_before_double_with_a_blur_and_new_ones_do_not():
    assert Config().blur
    assert not ProgressiveGAN.recommend(SPACE, 5000).blur
