"""The rules of the adversarial game: each loss has its optimum, each gradient its path."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from simulacra.layers.adversarial_rules import Rules
from simulacra.layers.augmentation import (
    SHIFT,
    SLANT,
    STRETCH,
    TURN,
    Augmentation,
    cut_out,
    distorted,
    recoloured,
    thickened,
)
from simulacra.layers.contest import Contest, Sides, packed
from simulacra.layers.convolutional_pair import ConvolutionalCritic
from simulacra.layers.critic_head import CriticHead, MinibatchDiscrimination, Opinion
from simulacra.layers.spectral import SpectralNorm, iterate_all, normalise_spectrally
from simulacra.probability.adversarial import LOSSES
from simulacra.probability.noise import row_noise
from simulacra.refusals import Refusal
from simulacra.spaces import Images

P, Q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.1, 0.3, 0.6])
"""Of three states: how often data, and made ones, are in each."""


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(rows, seed=0):
    return row_noise(rows, seeded(seed))


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


class Small(CriticHead):
    """Two layers on rows of three numbers, in float64."""

    def __init__(self, rules, classes=0):
        super().__init__()
        self.body = nn.Linear(3 * rules.pack, 4)
        self.add_head(4, classes, rules)
        self.double()

    def forward(self, x, classes):
        return self.opinion(torch.tanh(self.body(x)), classes)


def contest(classes=0, **options):
    torch.manual_seed(0)
    rules = Rules(**options)
    critic = Small(rules, classes)
    return Contest(rules, critic, batch_size=6), critic


def sides(rows=6):
    return Sides(drawn(rows, 3), drawn(rows, 3, seed=1))


@pytest.mark.parametrize("name", [name for name, pair in LOSSES.items() if pair.chance])
def test_the_best_critic_of_three_states_tells_p_over_p_plus_q(name):
    """The loss of all pairs of states has no slope where c is what the theory says."""
    chance = P / (P + Q)
    best = chance if name == "least-squares" else (P / Q).log()
    logits = best.clone().double().requires_grad_()
    rows = [(10 * share).round().long() for share in (P, Q)]
    states = torch.arange(3)
    real, made = (states.repeat_interleave(count) for count in rows)
    pairs = torch.tensor(list(itertools.product(real.tolist(), made.tolist())))
    LOSSES[name].critic(logits[pairs[:, 0]], logits[pairs[:, 1]], 0.0).backward()
    assert logits.grad.abs().max() < 1e-7
    told = LOSSES[name].chance(logits[real] + 0.0, logits[made])
    assert torch.allclose(told[0].detach(), chance[real].double(), atol=1e-6)
    assert torch.allclose(told[1].detach(), chance[made].double(), atol=1e-6)


def test_smooth_labels_are_those_of_real_data_only():
    """The best D is (1 - s) p / (p + q): a state that is made only stays at nought."""
    chance = 0.9 * P / (P + Q)
    logits = torch.logit(chance.double()).requires_grad_()
    rows = [torch.arange(3).repeat_interleave((10 * one).round().long()) for one in (P, Q)]
    LOSSES["non-saturating"].critic(logits[rows[0]], logits[rows[1]], 0.1).backward()
    assert logits.grad.abs().max() < 1e-7


def squared_slopes(critic, x, step=1e-5):
    """|grad c|^2 of each row by central differences."""
    found = torch.zeros(len(x), dtype=x.dtype)
    for column in range(x.shape[1]):
        moved = torch.zeros_like(x)
        moved[:, column] = step
        rise = critic(x + moved, None).logit - critic(x - moved, None).logit
        found += (rise / (2 * step)).square()
    return found.detach()


@pytest.mark.parametrize("kind", ["r1", "r2", "r1+r2", "wgan-gp"])
def test_penalties_are_those_of_finite_differences(kind):
    game, critic = contest(regulariser=kind, penalty=3.0, penalty_every=1)
    both = sides()

    def expected():
        if kind == "wgan-gp":
            share = noise(6).uniform().double()[:, None]
            between = share * both.real + (1 - share) * both.made
            return 3 * (squared_slopes(critic, between).sqrt() - 1).square().mean()
        places = {"r1": both.real, "r2": both.made}
        return sum(1.5 * squared_slopes(critic, places[one]).mean() for one in kind.split("+"))

    told = game.gradient_penalty(critic, both, noise(6)).value
    assert float(told.detach()) == pytest.approx(float(expected()), rel=1e-6)
    told.backward()
    slope, step = critic.body.weight.grad[1, 2].item(), 1e-5
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            critic.body.weight[1, 2] += sign * step
        values.append(float(expected()))
        with torch.no_grad():
            critic.body.weight[1, 2] -= sign * step
    assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-3)


@pytest.mark.parametrize("steps", [1, 3])
def test_lazy_penalties_are_the_eager_ones_in_expectation(steps):
    eager, critic = contest(penalty=2.0, penalty_every=1, critic_steps=steps)
    lazy = Contest(replace(eager.rules, penalty_every=5), critic, batch_size=6)
    both = sides()
    bare = Contest(replace(eager.rules, penalty=0.0), critic, batch_size=6)
    whole, without = (one.critic_loss(critic, both, noise(6)).value.item() for one in (eager, bare))
    assert lazy.critic_loss(critic, both, noise(6)).value.item() == without
    once = lazy.gradient_penalty(critic, both, noise(6)).value.item()
    # The eager one stands in the loss of each of the critic's steps.
    assert steps * without + once / 5 == pytest.approx(steps * whole, rel=1e-12)


@pytest.mark.parametrize("every", [1, 4])
def test_a_penalty_weighs_what_it_is_told_to(every):
    game, critic = contest(penalty=2.0, penalty_every=every)
    one, some, none = (
        game.critic_loss(critic, sides(), noise(6), weight).value.item()
        + (every > 1) * game.gradient_penalty(critic, sides(), noise(6), weight).value.item()
        for weight in (1.0, 0.1, 0.0)
    )
    assert one > none
    assert some - none == pytest.approx(0.1 * (one - none))


def test_the_unrolled_gradient_is_that_of_two_steps_written_out():
    """Steps by hand of c = w.x + b: dL/dw = E s(c(y)) y - E s(-c(x)) x; the generator's loss afterwards,
    differentiated by finite differences, which know of no graph."""
    rate, k = 0.7, 2
    rules = Rules(unrolled=k, unrolled_rate=rate, penalty=0.0)

    class Linear(CriticHead):
        def __init__(self):
            super().__init__()
            self.add_head(3, 0, rules)
            self.double()

        def forward(self, x, classes):
            return self.opinion(x, classes)

    torch.manual_seed(1)
    critic = Linear()
    game, both = Contest(rules, critic, batch_size=6), sides()

    def by_hand(made):
        w, b, x = critic.out.weight.detach()[0], critic.out.bias.detach()[0], both.real
        for _ in range(k):
            fake, real = torch.sigmoid(made @ w + b), torch.sigmoid(-(x @ w + b))
            slope_w = (fake[:, None] * made).mean(0) - (real[:, None] * x).mean(0)
            w, b = w - rate * slope_w, b - rate * (fake.mean() - real.mean())
        return -torch.nn.functional.logsigmoid(made @ w + b).mean()

    made = both.made.clone().requires_grad_()
    before = {name: value.clone() for name, value in critic.state_dict().items()}
    told = game.generator_loss(critic, Sides(both.real, made), noise(6)).value
    (slope,) = torch.autograd.grad(told, made)
    assert told.item() == pytest.approx(by_hand(both.made).item(), rel=1e-6)
    moved = torch.zeros_like(both.made)
    moved[2, 1] = 1e-5
    rise = (by_hand(both.made + moved) - by_hand(both.made - moved)) / 2e-5
    assert slope[2, 1].item() == pytest.approx(rise.item(), rel=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in critic.state_dict().items())
    near = Contest(replace(rules, unrolled=0), critic, batch_size=6)
    blind = near.generator_loss(critic, Sides(both.real, made), noise(6)).value
    (other,) = torch.autograd.grad(blind, made)
    assert abs(other[2, 1] - slope[2, 1]) > 0.1 * abs(slope[2, 1])


def test_spectral_norms_are_one_by_svd_and_follow_the_weights():
    torch.manual_seed(0)
    critic = ConvolutionalCritic(Images(1, 8, 8), 0, 8, Rules())
    normalise_spectrally(critic)
    layers = [one for one in critic.modules() if isinstance(one, nn.Linear | nn.Conv2d)]
    assert len(layers) > 3
    for _ in range(30):  # weights wander, each turn a twentieth of their length
        with torch.no_grad():
            for layer in layers:
                weight = layer.parametrizations.weight.original
                step = torch.randn(weight.shape, generator=seeded(1))
                weight.add_(0.05 * step * weight.norm() / step.norm())
        iterate_all(critic)
    largest = [torch.linalg.matrix_norm(one.weight.flatten(1), 2).item() for one in layers]
    assert largest == pytest.approx([1.0] * len(layers), abs=0.01)


@pytest.mark.parametrize("seed", range(3))
def test_norms_are_found_among_others_that_are_nearly_as_large(seed):
    """Singular values 1, 0.997, 0.994, …: one vector is 0.002 to 0.009 off after as many iterations."""
    torch.manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(rows, 128))[0] for rows in (128, 512))
    weight = left @ torch.diag(1 - 0.003 * torch.arange(128.0)) @ right.T
    found = torch.linalg.matrix_norm(SpectralNorm(weight)(weight), 2).item()
    assert found == pytest.approx(1, abs=0.0015)


def test_norms_are_as_exact_under_autocast():
    weight = drawn(64, 96).float()
    rule = SpectralNorm(weight)
    with torch.autocast("cpu", torch.bfloat16):
        found = rule(weight)
    assert found.dtype == torch.float32
    assert torch.equal(found, rule(weight))
    assert torch.equal(SpectralNorm(torch.zeros(4, 3)).vectors.norm(dim=0), torch.ones(3))


def test_the_gradient_goes_through_the_norm():
    weight = drawn(4, 3).float().requires_grad_()
    rule = SpectralNorm(weight.detach())
    (rule(weight)[1, 2] * 5).backward()
    exact = weight.detach().clone().requires_grad_()
    (exact / torch.linalg.matrix_norm(exact, 2))[1, 2].mul(5).backward()
    assert torch.allclose(weight.grad, exact.grad, rtol=1e-4, atol=1e-5)


def test_minibatch_discrimination_counts_the_others():
    torch.manual_seed(0)
    part = MinibatchDiscrimination(3, kernels=2, size=4).double()
    features = drawn(5, 3)
    rows = part.tensor(features).reshape(5, 2, 4)
    naive = torch.zeros(5, 2, dtype=torch.float64)
    for i, j, b in itertools.product(range(5), range(5), range(2)):
        if i != j:
            naive[i, b] += torch.exp(-(rows[i, b] - rows[j, b]).abs().sum())
    assert torch.allclose(part(features), naive)
    assert (part(features[:1].repeat(5, 1)) == 4).all()


def test_packs_join_data_along_their_channels():
    x = torch.arange(24).reshape(4, 1, 2, 3)
    assert torch.equal(packed(x, 2)[1, 1], x[3, 0])
    game, critic = contest(pack=2, penalty=0.0)
    assert len(game.opinion(critic, drawn(6, 3), None, noise(6)).logit) == 3


@pytest.mark.parametrize("conditioning", ["projection", "concatenation", "auxiliary"])
def test_the_critic_hears_of_classes(conditioning):
    rules = Rules(conditioning=conditioning)
    torch.manual_seed(0)
    critic = ConvolutionalCritic(Images(1, 8, 8), 3, 8, rules)
    x = torch.randn((2, 1, 8, 8), generator=seeded())
    told: list[Opinion] = [critic(x, torch.eye(3)[[y, y]]) for y in (0, 1)]
    if conditioning == "auxiliary":
        assert told[0].classes.shape == (2, 3)
        both = Sides(x, x, torch.eye(3)[[0, 1]])
        game = Contest(rules, critic, batch_size=2)
        plain = game.pair.generator(told[0].logit, told[0].logit)
        value = game.generator_loss(critic, both, noise(2)).value
        wrong = torch.nn.functional.cross_entropy(told[0].classes, torch.tensor([0, 1]))
        assert value.item() == pytest.approx((plain + wrong).item())
    else:
        assert not torch.allclose(told[0].logit, told[1].logit)


def test_what_is_augmented_can_be_told_apart_again():
    """Of all 16 binary images of two times two, and any p below one, the mixture of moves has an inverse:
    no two distributions of data become the same, so what is learnt of moved data are the data."""
    images = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4))).reshape(16, 1, 2, 2)
    augmentation = Augmentation(0.5, 0.0, 0.0, 0.6)
    draws = 4000
    places = torch.tensor([8, 4, 2, 1])

    def transition(p):
        augmentation.strength.fill_(p)
        moved = augmentation(images.repeat_interleave(draws, 0), noise_of(16 * draws))
        state = ((moved.flatten(1) > 0).long() * places).sum(1).reshape(16, draws)
        return torch.stack([torch.bincount(row, minlength=16) / draws for row in state]).double()

    truth = torch.rand(16, generator=seeded(3), dtype=torch.float64)
    truth = truth / truth.sum()
    for p in (0.0, 0.4, 0.8):
        chances = transition(p)
        assert torch.linalg.svdvals(chances)[-1] > 0.9 * (1 - p)
        again = torch.linalg.solve(chances.T, chances.T @ truth)
        assert torch.allclose(again, truth, atol=1e-9)
    always = Augmentation(0.5, 0.0, 0.0)
    assert torch.equal(always(images, noise(16)), always(images, noise(16)))


def noise_of(rows):
    """One stream: as many as in a thousand images would be slow to open."""

    class Stream:
        def __init__(self):
            self.draw = seeded(5)

        def uniform(self, *shape):
            return torch.rand((rows, *shape), generator=self.draw)

    return Stream()


def test_the_strength_of_augmentation_follows_how_sure_the_critic_is():
    augmentation = Augmentation(0.1, 0.2, 0.5, 0.6)
    for _ in range(10):
        augmentation.adapt(0.9, 1000)
    assert augmentation.strength.item() == pytest.approx(0.1)
    augmentation.adapt(0.3, 4000)
    assert augmentation.strength.item() == pytest.approx(0.06)
    augmentation.adapt(0.3, 40_000)
    assert augmentation.strength.item() == 0
    game, critic = contest()
    assert -1 <= float(game.sureness(critic, sides(), noise(6))) <= 1


def test_moves_are_what_they_say():
    x = torch.rand((3, 3, 8, 8), generator=seeded()) * 2 - 1
    middle = torch.full((3, 2), 0.5)
    cut = cut_out(x, middle, 0.5)
    assert (cut[:, :, 2:6, 2:6] == 0).all()
    assert int((cut == 0).sum()) == 3 * 3 * 16
    still = recoloured(x, torch.full((3, 3), 0.5), 1.0)
    assert torch.allclose(still, x, atol=1e-6)
    brighter = recoloured(x, torch.tensor([[1.0, 0.5, 0.5]] * 3), 1.0)
    assert torch.allclose(brighter, x + 0.5, atol=1e-5)


def test_views_of_oblong_images_are_turned_and_slanted_in_pixels():
    """All moves at once, by the matrix that the docstring gives."""
    down, across = torch.meshgrid(torch.arange(48) - 23.5, torch.arange(24) - 11.5, indexing="ij")
    uniform = torch.tensor([0.9, 0.2, 0.7, 0.4, 0.6, 0.3])
    turn, slope, wide, high, right, below = (2 * uniform - 1).tolist()
    turn, slope = TURN * turn, SLANT * slope
    stretched = torch.diag(torch.tensor([math.exp(STRETCH * wide), math.exp(STRETCH * high)]))
    turned = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    matrix = stretched @ turned @ torch.tensor([[1.0, slope], [0.0, 1.0]])
    shift = torch.tensor([SHIFT * right * 12, SHIFT * below * 24])
    wanted = torch.einsum("ab,bij->aij", matrix, torch.stack([across, down])) + shift[:, None, None]
    seen = distorted(torch.stack([across, down])[None], uniform[None], 1.0)[0]
    torch.testing.assert_close(seen[:, 16:32, 8:16], wanted[:, 16:32, 8:16], atol=1e-4, rtol=0)


def test_strokes_are_thickened_and_thinned():
    x = -torch.ones(2, 1, 9, 9)
    x[:, :, :, 3:6] = 1
    assert torch.equal(thickened(x, torch.full((2,), 0.5), 1.0), x)
    assert torch.equal(thickened(x, torch.rand(2, generator=seeded()), 0.0), x)
    # Beside a stroke half-way to its brightness, or at its rim half-way to what is around it.
    thick, thin = thickened(x, torch.tensor([1.0, 0.0]), 1.0)[:, 0, 4]
    assert thick.tolist() == [-1, -1, 0, 1, 1, 1, 0, -1, -1]
    assert thin.tolist() == [-1, -1, -1, 0, 1, 0, -1, -1, -1]
    x.requires_grad_()
    thickened(x, torch.tensor([1.0, 0.0]), 1.0).sum().backward()
    assert x.grad.abs().sum() > 0


def test_views_are_distorted_by_what_they_say():
    places = (torch.arange(64) + 0.5) / 32 - 1
    down, across = torch.meshgrid(places, places, indexing="ij")
    here = torch.stack([across, down])[None]
    still = [0.5] * 6
    assert torch.allclose(distorted(here, torch.tensor([still]), 1.0), here, atol=1e-6)
    assert torch.allclose(
        distorted(here, torch.rand((1, 6), generator=seeded()), 0.0), here, atol=1e-6
    )
    # What is seen in the middle third comes from where the move says, not from the repeated edge.
    cos, sin, middle = math.cos(TURN), math.sin(TURN), slice(22, 42)
    for move, where in (
        (0, (cos * across - sin * down, sin * across + cos * down)),
        (1, (across + SLANT * down, down)),
        (2, (math.exp(STRETCH) * across, down)),
        (3, (across, math.exp(STRETCH) * down)),
        (4, (across + SHIFT, down)),
        (5, (across, down + SHIFT)),
    ):
        uniform = torch.tensor([still])
        uniform[0, move] = 1.0
        seen = distorted(here, uniform, 1.0)[0, :, middle, middle]
        assert torch.allclose(seen, torch.stack(where)[:, middle, middle], atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        again = distorted(here, torch.tensor([[0.5, 0.5, 0.5, 0.5, 1.0, 0.5]]), 1.0)
    # Rounded, by a part of a pixel, of which 32 are one.
    apart = again[0, 0, middle, middle] - (across + SHIFT)[middle, middle]
    assert 32 * float(apart.abs().max()) < 0.15
    x = here.clone().requires_grad_()
    distorted(x, torch.rand((1, 6), generator=seeded()), 1.0).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"smooth": 0.1, "loss": "hinge"}, "CFG-170"),
        ({"pack": 4}, "CFG-171"),
        ({"pack": 2, "conditioning": "auxiliary"}, "CFG-172"),
        ({"penalty_every": 0}, "CFG-262"),
        ({"critic_steps": 0}, "CFG-262"),
        ({"unrolled": -1}, "CFG-262"),
        ({"smooth": math.nan}, "CFG-262"),
    ],
)
def test_options_that_contradict_one_another_are_refused(options, code):
    with pytest.raises(Refusal) as refusal:
        contest(**options)
    assert refusal.value.code == code


def test_the_line_between_two_packs_has_one_place():
    game, critic = contest(regulariser="wgan-gp", penalty=1.0, penalty_every=1, pack=2)
    both, seen = sides(), []

    def judge(x, classes):
        seen.append(x.detach())
        return critic(x, classes)

    game.gradient_penalty(judge, both, noise(6))
    real, made = packed(both.real, 2), packed(both.made, 2)
    share = (seen[0] - made) / (real - made)
    assert (share - share[:, :1]).abs().max() < 1e-9
    assert len(share[:, 0].unique()) == 3


@pytest.mark.parametrize("conditioning", ["projection", "concatenation", "auxiliary"])
def test_matched_features_are_those_of_a_class(conditioning):
    """Data whose classes are turned about are other data to the generator."""
    rules = Rules(feature_matching=True, conditioning=conditioning)
    torch.manual_seed(0)
    critic = ConvolutionalCritic(Images(1, 4, 4), 2, 4, rules)
    game = Contest(rules, critic, batch_size=6)
    real, made = torch.randn(6, 1, 4, 4), torch.randn(6, 1, 4, 4)
    classes = torch.eye(2)[torch.tensor([0, 0, 0, 1, 1, 1])]
    value, other = (
        game.generator_loss(critic, Sides(real, one, classes), noise(6)).value.item()
        for one in (made, made.flip(0))
    )
    assert value != pytest.approx(other, rel=1e-3)


@pytest.mark.parametrize("loss", ["non-saturating", "least-squares"])
def test_smooth_labels_leave_the_chance_what_it_is(loss):
    """A critic that cannot tell answers with 1/2 of what it is told that data are."""
    game, _ = contest(loss=loss, smooth=0.2)
    level = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([level], 0.02)
    for _ in range(400):
        optimiser.zero_grad()
        game.pair.critic(level[None], level[None], 0.2).backward()
        optimiser.step()
    assert game.chances(level[None].detach(), level[None].detach())[0].item() == pytest.approx(0.5)


def test_logits_of_pairs_have_a_level_in_every_class():
    game, _ = contest(loss="relativistic")
    classes = torch.eye(3)[torch.arange(60) % 3]
    level = torch.tensor([-2.0, 0.0, 3.0])[torch.arange(60) % 3]
    one = drawn(60, seed=3) * 1e-3
    for told in game.chances(level + one, level - one, classes):
        assert (told - 0.5).abs().max() < 1e-2
    assert (game.chances(level + one, level - one)[0] - 0.5).abs().max() > 0.3
