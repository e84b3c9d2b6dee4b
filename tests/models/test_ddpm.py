"""DDPM: the process against its chain, the posterior against Bayes, samplers against the known."""

import math

import pytest
import torch

from simulacra import shelf
from simulacra.contract import Kind
from simulacra.data.dataset import Part, Stream
from simulacra.games import Batch, Clock
from simulacra.models.diffusion.ddpm import DDPM, Config
from simulacra.play import Play
from simulacra.probability.diffusion import (
    Diffusion,
    Scales,
    discretised_gaussian_log_prob,
    level_mean,
)
from simulacra.probability.noise import BatchNoise, row_noise
from simulacra.probability.samplers import DDIM, descended, implicit, last
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels

SCHEDULES = pytest.mark.parametrize("schedule", ["linear", "cosine"])
KINDS = pytest.mark.parametrize("kind", ["epsilon", "x0", "v"])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def column(values):
    return torch.as_tensor(values, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_steps_may_be_even_in_the_root_of_time(schedule):
    settings = {"schedule": schedule, "spacing": "quadratic", "num_inference_steps": 6}
    model = shelf.build("ddpm", Images(1, 4, 4), settings=settings)
    other = shelf.build("ddpm", Images(1, 4, 4), settings=settings | {"spacing": "time"})
    other.load_state_dict(model.state_dict())
    path = model.reverse.path(6, "quadratic")
    assert path == [model.diffusion.level(t) for t in model.diffusion.times(6, quadratic=True)]
    drawn, even = (
        one.sample(3, generator=torch.Generator().manual_seed(0)) for one in (model, other)
    )
    assert not torch.equal(drawn, even)
    x = model.vary(drawn, strength=1.0, generator=torch.Generator().manual_seed(1))
    assert x.shape == drawn.shape


@SCHEDULES
def test_jumps_are_what_the_single_steps_come_to(schedule):
    diffusion = Diffusion(schedule, 50)
    mean, variance = 1.0, 0.0
    for t in range(1, 51):
        alpha = float(diffusion.alpha_bar[t] / diffusion.alpha_bar[t - 1])
        mean, variance = alpha**0.5 * mean, alpha * variance + 1 - alpha
        level, at = diffusion.level(t), diffusion.scales(torch.tensor([t]), column([0.0]))
        assert level.signal == pytest.approx(mean, rel=1e-10)
        assert level.spread == pytest.approx(variance**0.5, rel=1e-10)
        assert (float(at.signal), float(at.spread)) == pytest.approx((level.signal, level.spread))
        assert float(at.log_snr) == pytest.approx(level.log_snr, rel=1e-9)
        again = Scales.preserving(at.log_snr, column([0.0]))
        assert (float(again.signal), float(again.spread)) == pytest.approx((mean, variance**0.5))


def test_the_linear_schedule_is_the_papers():
    betas = 1 - Diffusion("linear", 1000).alpha_bar[1:] / Diffusion("linear", 1000).alpha_bar[:-1]
    assert float(betas[0]) == pytest.approx(1e-4)
    assert float(betas[-1]) == pytest.approx(0.02)
    assert float(Diffusion("linear", 1000).alpha_bar[-1]) == pytest.approx(4.0e-5, rel=0.02)
    ends = [float(Diffusion("linear", steps).alpha_bar[-1]) for steps in (100, 1000)]
    assert ends[0] == pytest.approx(ends[1], rel=0.7)


@SCHEDULES
@KINDS
def test_what_is_predicted_gives_the_origin_back(schedule, kind):
    diffusion = Diffusion(schedule, 100)
    x0, epsilon = torch.randn(2, 99, 3, dtype=torch.float64, generator=seeded())
    t = torch.arange(1, 100)
    at = diffusion.scales(t, x0)
    x_t, told = at.noised(x0, epsilon), at.target(x0, epsilon, kind)
    torch.testing.assert_close(at.origin(x_t, told, kind), x0, atol=1e-7, rtol=1e-7)


@SCHEDULES
def test_the_ancestral_step_is_bayes_rule(schedule):
    """q(x_{t-1} | x_t, x_0) from the product of two Gaussians (Ho et al. 2020, eq. 6 and 7)."""
    diffusion = Diffusion(schedule, 20)
    bar = diffusion.alpha_bar
    for t in range(2, 21):
        alpha = float(bar[t] / bar[t - 1])
        prior = 1 - float(bar[t - 1])
        precision = 1 / prior + alpha / (1 - alpha)
        x0, x_t = 0.3, -1.1
        mean = (float(bar[t - 1]) ** 0.5 * x0 / prior + alpha**0.5 * x_t / (1 - alpha)) / precision
        now, then = diffusion.level(t), diffusion.level(t - 1)
        narrow = then.variance_given(now)
        assert narrow == pytest.approx(1 / precision, rel=1e-9)
        assert then.variance_from(now) == pytest.approx(1 - alpha, rel=1e-9)
        both = diffusion.variances(torch.tensor([t]), column([0.0]))
        assert [float(one) for one in both] == pytest.approx([1 / precision, 1 - alpha], rel=1e-8)
        step = implicit(column([x_t]), column([x0]), now, then, narrow)
        assert float(step) == pytest.approx(mean, rel=1e-9)
        gap = diffusion.posterior_mean_gap(torch.tensor([t]))
        moved = implicit(column([x_t]), column([x0 + 1]), now, then, narrow)
        assert float(gap) == pytest.approx(0.5 * float((moved - step) ** 2) / narrow, rel=1e-8)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_a_discretised_gaussian_sums_to_one(levels):
    x = torch.arange(levels)[:, None]
    for mean in (-1.0, -0.3, 0.99, 4.0):
        for deviation in (1e-3, 0.05, 2.0):
            told = discretised_gaussian_log_prob(
                x, torch.tensor(mean).double(), torch.tensor(deviation), levels
            )
            assert float(told.exp().sum()) == pytest.approx(1, abs=1e-5)


def test_the_nearest_level_is_read_by_bayes_rule():
    levels, deviation = 5, torch.tensor(0.08, dtype=torch.float64)
    grid = torch.linspace(-1, 1, levels, dtype=torch.float64)
    y = torch.linspace(-0.9, 0.9, 41, dtype=torch.float64)
    weights = torch.softmax(-0.5 * ((y[:, None] - grid) / deviation) ** 2, 1)
    torch.testing.assert_close(level_mean(y, deviation, levels), weights @ grid, atol=1e-8, rtol=0)


def jittered(model):
    """Weights of no meaning, but none of them nought."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded(parameter.numel())))
    return model


@pytest.mark.parametrize(
    ("kind", "variance"),
    [("epsilon", "fixed"), ("x0", "fixed"), ("v", "fixed"), ("v", "learned")],
)
def test_the_bounds_terms_agree_with_one_long_sum(kind, variance):
    """All t one after the other, by the Gaussians' own divergence, against what ``log_prob`` says."""
    space = Images(1, 2, 3, 3)
    config = Config(8, 1, 0.0, 12, "cosine", kind, variance=variance, bound_steps=3, batch_size=16)
    model = jittered(DDPM(space, config).double().eval())
    diffusion, rows = model.diffusion, 150
    with torch.no_grad():
        x = space.random(1, seeded()).expand(rows, -1, -1, -1)
        estimates = [model.log_prob(x, generator=seeded(seed)).mean() for seed in range(8)]
        x0 = x.double() - 1
        total = torch.zeros(rows, dtype=torch.float64)
        for t in range(2, 13):
            at = diffusion.scales(torch.full((rows,), t), x0)
            x_t = at.noised(x0, torch.randn(x0.shape, dtype=torch.float64, generator=seeded(t)))
            guess = model.reverse.guess(x_t, at, None)
            now, then = diffusion.level(t), diffusion.level(t - 1)
            narrow = torch.tensor(then.variance_given(now), dtype=torch.float64)
            wide = torch.tensor(then.variance_from(now), dtype=torch.float64)
            share = torch.zeros(()) if guess.share is None else guess.share
            own = (share * wide.log() + (1 - share) * narrow.log()).exp()
            means = [implicit(x_t, one, now, then, float(narrow)) for one in (x0, guess.x0)]
            q, p = (
                torch.distributions.Normal(m, v.sqrt())
                for m, v in zip(means, (narrow, own), strict=True)
            )
            total += torch.distributions.kl_divergence(q, p).flatten(1).sum(1)
        terms = model._terms(x, None, row_noise(rows, seeded(99), "cpu"))
    expected = -float((total + terms.prior + terms.data).mean())
    found = torch.stack(estimates)
    assert float(found.mean()) == pytest.approx(expected, abs=5 * float(found.std()) + 0.3)


def test_the_bound_moves_a_learned_variance_and_not_the_mean():
    """The gradient of the hybrid loss's bound is nought for the output that tells the mean."""
    config = Config(8, 1, steps=20, prediction="v", variance="learned")
    model = jittered(DDPM(Images(1, 4, 4, 4), config))
    batch = Batch(model.space.random(64, seeded()))
    loss = model.denoising_error(batch, BatchNoise(seeded(1), 64), Clock())
    last = model.network.leave[-1].weight
    (slope,) = torch.autograd.grad(loss.numbers["bound"], last)
    assert float(slope[0].abs().max()) == 0
    assert float(slope[1].abs().max()) > 0


def test_guidance_goes_on_along_the_difference():
    """x_0 of w = 2 from those of w = 0 with and without the label; no guidance without a label."""
    model = DDPM(Images(1, 3, 3, 4), Config(8, 1, label_dropout=0.1), condition=Labels(3))
    jittered(model.double().eval())
    way = model.reverse
    x = torch.randn(4, 1, 3, 3, dtype=torch.float64, generator=seeded())
    level, classes = model.diffusion.level(400), way.context(torch.tensor([0, 1, 2, 0]), 4)
    with torch.no_grad():
        plain, guided = (way.denoiser(classes, w, legible=False)(x, level).x0 for w in (0.0, 2.0))
        free = way.denoiser(None, 0.0, legible=False)(x, level).x0
    torch.testing.assert_close(guided, plain + 2 * (plain - free))
    assert float((guided - plain).abs().max()) > 1e-3
    with pytest.raises(Refusal, match="label"):
        DDPM(model.space, Config(8, 1), condition=Labels(3)).sample(2, guidance_scale=1.0)
    with pytest.raises(Refusal, match="conditional"):
        DDPM(model.space, Config(8, 1, label_dropout=0.1)).sample(2, guidance_scale=1.0)


def test_a_classifier_guides_by_the_slope_of_its_log_chance():
    config = Config(8, 1, guidance="classifier")
    model = jittered(DDPM(Images(1, 3, 3, 4), config, condition=Labels(3)).double().eval())
    way, level = model.reverse, model.diffusion.level(400)
    x = torch.randn(2, 1, 3, 3, dtype=torch.float64, generator=seeded())
    classes, at = way.context(torch.tensor([2, 0]), 2), Scales.of(level, x)
    told = way.denoiser(classes, 1.5, legible=False)(x, level).x0 - model._origin(x, at, classes).x0

    def chance(y):
        return float((model.classifier(y, at.log_snr) * classes).sum())

    step = torch.zeros_like(x)
    step[1, 0, 2, 1] = 1e-5
    with torch.no_grad():
        slope = (chance(x + step) - chance(x - step)) / 2e-5
    expected = 1.5 * level.spread**2 / level.signal * slope
    assert float(told[1, 0, 2, 1].detach()) == pytest.approx(expected, rel=1e-4)


def test_the_flows_likelihood_sums_to_one_over_all_states():
    """An unbiased estimate of each probability, but for the solver's steps; and it says what it is."""
    config = Config(8, 1, schedule="cosine", prediction="v", likelihood="flow", flow_steps=30)
    model = jittered(DDPM(Images(1, 1, 3, 2), config).double().eval())
    states = torch.cartesian_prod(*[torch.arange(2)] * 3).reshape(8, 1, 1, 3).to(torch.uint8)
    told = model.log_prob(states.repeat_interleave(15, 0), generator=seeded()).exp().reshape(8, 15)
    error = float(told.var(1).sum() / 15) ** 0.5
    assert float(told.mean(1).sum()) == pytest.approx(1, abs=4 * error + 0.05)
    assert error < 0.25
    assert model.kind is Kind.ESTIMATE
    change = model.diagnose(states)["flow likelihood, change at half the steps (bits/dim)"]
    assert 0 < change < 0.2


def test_inversion_leads_back():
    """From data to noise and back by the same path, in few steps."""
    model = jittered(DDPM(Images(1, 4, 4, 4), Config(8, 1, prediction="v")).double().eval())
    way = model._way(num_inference_steps=40, spacing="karras")
    x = model.space.random(5, seeded())
    noise = model.reverse.inverted(x, None, way)
    path, denoise = model.reverse.steps(way)[:-1], model.reverse.denoiser(None, 0, legible=False)
    with torch.no_grad():
        again = last(descended(DDIM(), denoise, noise, path, row_noise(5, seeded())))
    gap = (again - model.reverse.centred(x)).square().mean().sqrt()
    assert float(gap) <= 1e-2
    assert float(noise.std()) > 0.3


def test_variation_goes_from_the_given_to_any_other():
    config = Config(8, 1, schedule="cosine", prediction="x0")
    model = DDPM(Images(1, 4, 4, 2), config).eval()
    way = model._way(num_inference_steps=50)
    assert len(model.reverse.steps(way, 0.6)) == 31
    x = model.space.random(3, seeded(1))
    near = model.reverse.vary(x, 0.02, None, seeded(), way)
    assert torch.equal(near, x)
    far = model.reverse.vary(x, 1.0, None, seeded(), way)
    assert torch.equal(far, model.reverse.vary(x.flip(0), 1.0, None, seeded(), way))
    with pytest.raises(Refusal, match="strength"):
        model.reverse.vary(x, 1.2, None, seeded(), way)


def test_few_steps_are_a_subset_of_many():
    model = DDPM(Images(1, 4, 4, 4), Config(8, 1, steps=100))
    for count in (1, 7, 100, 1000):
        path = model.diffusion.times(count)
        assert path[0] == 100
        assert path[-1] == 0
        assert len(path) == min(count, 100) + 1
        assert path == sorted(set(path), reverse=True)


def test_the_loss_of_an_untrained_network_is_the_targets_variance():
    model = DDPM(Images(1, 8, 8, 2), Config(8, 1, prediction="epsilon"))
    with torch.no_grad():
        for parameter in model.network.leave.parameters():
            parameter.zero_()
    x = model.space.random(256, seeded())
    loss = model.denoising_error(Batch(x), row_noise(256, seeded(1), "cpu"), Clock()).value
    assert loss.item() == pytest.approx(1, abs=5 * math.sqrt(2 / (256 * 64)))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 5), (1, 28, 28)])
def test_sizes_of_all_kinds_pass(shape):
    space = Images(*shape, levels=4)
    model = DDPM(space, Config(8, 1, steps=20), condition=Labels(2)).eval()
    x = model.sample(2, condition=torch.tensor([0, 1]), generator=seeded(), num_inference_steps=3)
    assert space.contains(x)


@pytest.mark.parametrize("variance", ["fixed", "learned"])
def test_a_transformer_may_denoise_instead(variance):
    config = Config(8, 2, backbone="dit", variance=variance, batch_size=16, learning_rate=5e-3)
    model = DDPM(Images(1, 4, 4, 5), config, condition=Labels(2))
    x = (torch.arange(256) % 2 * 4).to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    part = Part(x.contiguous(), torch.arange(256), model.space, torch.arange(256) % 2)
    play = Play(model, model.game(), seed=0)
    for _ in play.rounds(Stream(part, 16, seed=0, conditional=True), lambda c: c.rounds / 150):
        if play.clock.rounds >= 150:
            break
    with play.averaged(), torch.no_grad():
        drawn = model.sample(20, condition=torch.arange(20) % 2, generator=seeded()).float()
    dark, bright = (drawn[start::2].mean() for start in (0, 1))
    assert float(dark) < 1
    assert float(bright) > 3
