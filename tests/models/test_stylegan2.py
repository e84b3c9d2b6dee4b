"""StyleGAN2: its regularisers against finite differences, its styles, and the way back from an image."""

from dataclasses import replace

import pytest
import torch

from simulacra.games import Batch, Clock
from simulacra.models.adversarial.stylegan2 import Config, StyleGAN2
from simulacra.probability.noise import row_noise
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels

SMALL = Config(latent=6, style=5, mapping_layers=2, channels=4, batch_size=16)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def built(space=None, config=SMALL, condition=None, seed=0):
    torch.manual_seed(seed)
    return StyleGAN2(space or Images(1, 8, 8, levels=4), config, condition=condition)


def test_the_list_of_turns_is_the_algorithm():
    config = replace(SMALL, path_every=8, penalty_every=16)
    (stage,) = built(config=config).game().stages
    told = [(turn.players[0].name, turn.every) for turn in stage.turns]
    assert told == [("critic", 1), ("critic", 16), ("generator", 1), ("generator", 8)]


def test_a_path_is_as_long_as_finite_differences_say():
    """|J^T y| from one difference of g for each number of w."""
    model = built().double()
    w = torch.randn(3, 5, generator=seeded(), dtype=torch.float64).requires_grad_()
    told = model.lengths(w, row_noise(3, seeded()))
    noise = row_noise(3, seeded())
    synthesis = model.generator.synthesis
    drawn = [noise.normal(1, *size) for size in ((4, 4), (8, 8), (8, 8))]
    y = noise.normal(1, 8, 8).double() / 8

    class Again:
        def __init__(self):
            self.left = iter(drawn)

        def normal(self, *_):
            return next(self.left)

    def told_by(at):
        image = synthesis(at[:, None].expand(-1, 3, -1), Again())
        return (image * y).sum((1, 2, 3))

    square = torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        for number in range(5):
            step = torch.zeros_like(w)
            step[:, number] = 1e-6
            square += ((told_by(w + step) - told_by(w - step)) / 2e-6).square()
    torch.testing.assert_close(told, square.sqrt(), rtol=1e-6, atol=0)


def test_lazy_regularisers_are_the_eager_ones_in_expectation():
    """Over sixteen rounds at fixed weights the lazy turns add up to what eager ones do."""
    rounds = 16
    x = built().space.random(16, seeded())

    def summed(every):
        model = built(config=replace(SMALL, path_every=every, penalty_every=every))
        total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        (stage,) = model.game().stages
        for number in range(0, rounds, every):
            for turn in stage.turns:
                if turn.loss not in (model.path_length, model.gradient_penalty):
                    continue
                # Noise as of one round: the expectation over rounds is then a sum.
                model.length.fill_(0.1)
                model.followed.zero_()
                told = turn.loss(Batch(x), row_noise(16, seeded()), Clock(rounds=number))
                model.zero_grad()
                told.value.backward()
                for name, p in model.named_parameters():
                    total[name] += 0 if p.grad is None else p.grad
        return total

    eager = built(config=replace(SMALL, penalty_every=1, path_every=1))
    told = eager.contest.gradient_penalty(
        eager.critic, eager._sides(Batch(x), row_noise(16, seeded()), makes=False), None
    )
    eager.zero_grad()
    (told.value * rounds).backward()
    lazy, often = summed(8), summed(4)
    for name in lazy:
        torch.testing.assert_close(lazy[name], often[name], rtol=1e-4, atol=1e-5)
    for name, p in eager.critic.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(lazy["critic." + name], p.grad, rtol=1e-4, atol=1e-5)
    every_round = rounds * eager.path_length(Batch(x), row_noise(16, seeded()), Clock()).value
    lazily = built(config=replace(SMALL, path_every=8))
    twice = lazily.path_length(Batch(x), row_noise(16, seeded()), Clock()).value * 2
    torch.testing.assert_close(twice, every_round)


def test_the_mean_length_is_followed_and_survives_what_is_no_number():
    model = built()
    batch = Batch(model.space.random(16, seeded()))
    model.path_length(batch, row_noise(16, seeded()), Clock())
    first = float(model.length)
    assert first > 0
    model._follow(torch.tensor(3 * first))
    assert float(model.length) == pytest.approx(2 * first)
    first = float(model.length)
    with torch.no_grad():
        model.generator.synthesis.start.fill_(float("nan"))
    assert model.path_length(batch, row_noise(16, seeded()), Clock()).value.isnan()
    assert float(model.length) == first


def test_nobody_is_moved_by_the_other_side():
    """Whole turns of the other player leave a network's parameters and buffers bit for bit."""
    model = built(config=replace(SMALL, shift=0.1, adaptive=0.6, path_every=1, penalty_every=1))
    batch = Batch(model.space.random(16, seeded()))
    losses = {
        "critic": (model.generator_loss, model.path_length),
        "generator": (model.critic_loss, model.gradient_penalty),
    }
    for still, turns in losses.items():
        network = getattr(model, still)
        before = {name: one.clone() for name, one in network.state_dict().items()}
        others = [p for name, p in model.named_parameters() if not name.startswith(still)]
        for turn in turns:
            model.zero_grad()
            told = turn(batch, row_noise(16, seeded()), Clock())
            torch.autograd.backward(told.value, inputs=others)
            assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in others)
        assert all(p.grad is None for p in network.parameters())
        assert all(torch.equal(before[name], one) for name, one in network.state_dict().items())


def test_styles_are_mixed_from_a_layer_on_and_as_often_as_asked():
    model = built(config=replace(SMALL, mixing=0.9))
    w = model._styles(row_noise(2000, seeded()), None)
    changes = (w[:, 1:] != w[:, :-1]).any(2).sum(1)
    assert changes.max() == 1
    assert (changes == 1).float().mean() == pytest.approx(0.9, abs=0.03)
    assert (w[:, 1] != w[:, 0]).any(1).float().mean() == pytest.approx(0.45, abs=0.04)


def test_crossed_images_take_their_large_forms_from_one_and_their_finish_from_the_other():
    model = built(Images(1, 16, 16, levels=256))
    w = model.generator.mapping(torch.randn(40, 6, generator=seeded(1)), None).detach()
    coarse, fine = w[:20], w[20:]
    crossed, first, second = (
        one.float()
        for one in (model.mix(coarse, fine, 3), model.decode(coarse), model.decode(fine))
    )
    assert not torch.equal(crossed, first)
    assert not torch.equal(crossed, second)
    # What is drawn at small sizes is the coarse one's to the bit; the styles above do not reach it.
    early = model.generator.synthesis.first
    start = model.generator.synthesis.start.expand(20, -1, -1, -1)
    told = []
    early.register_forward_hook(lambda module, given, out: told.append(out))
    model.mix(coarse, fine, 1)
    torch.testing.assert_close(told[0], early(start, w[:20], None))


def test_truncation_goes_from_all_samples_to_one():
    model = built(Images(1, 8, 8), condition=Labels(2))
    with torch.no_grad():
        model.generator.synthesis.pictures[1].weight *= 4

    def spread(psi):
        model.config = replace(model.config, truncation=psi)
        x = model.sample(64, condition=torch.zeros(64), generator=seeded()).float()
        return float(x.std(0).mean())

    whole, half, none = (spread(psi) for psi in (1.0, 0.5, 0.0))
    assert none == 0
    assert 0.2 * whole < half < 0.8 * whole
    with pytest.raises(Refusal) as refusal:
        built(config=replace(SMALL, truncation=-1.0))
    assert refusal.value.code == "CFG-186"


@pytest.mark.parametrize("shape", [(3, 13, 9), (1, 28, 28), (4, 5, 5)])
def test_images_of_all_sizes_come_out_and_go_in(shape):
    model = built(Images(*shape), replace(SMALL, projection_steps=2))
    x = model.sample(3, generator=seeded())
    assert model.space.contains(x)
    assert model.encode(x).shape == (3, 5)
    model.config = replace(model.config, extended=True)
    assert model.encode(x).shape == (3, 5 * model.code_levels) == (3, *model.code_space.shape)
    assert model.critic(x.float(), None).logit.shape == (3,)


@pytest.mark.parametrize("extended", [False, True])
def test_projection_finds_the_way_back_whoever_stands_beside(extended):
    """Images of random styles are found again, nearer than the nearest style it starts from."""
    model = built(Images(1, 8, 8), replace(SMALL, style=3, projection_steps=60, extended=extended))
    with torch.no_grad():
        for picture in model.generator.synthesis.pictures:
            picture.weight *= 0.2  # so that no pixel is cut
    w = model.generator.mapping(torch.randn(12, 6, generator=seeded(5)), None).detach()
    x = model.decode(w.repeat(1, model.code_levels) if extended else w)
    code = model.encode(x)
    error = (model.decode(code).float() - x.float()).square().mean((1, 2, 3))
    model.config = replace(model.config, projection_steps=0)
    start = (model.decode(model.encode(x)).float() - x.float()).square().mean((1, 2, 3))
    assert (error < start).float().mean() > 0.9
    assert error.mean() < 0.1 * start.mean()
    model.config = replace(model.config, projection_steps=60)
    torch.testing.assert_close(model.encode(x[3:5]), code[3:5], rtol=1e-3, atol=1e-3)
    assert all(p.grad is None for p in model.parameters())
