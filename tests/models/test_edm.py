"""EDM: preconditioning against its definition, the start against the best linear denoiser."""

import pytest
import torch

from simulacra import shelf
from simulacra.games import Batch, Clock
from simulacra.models.diffusion.edm import EDM, Config, Preconditioning
from simulacra.probability.diffusion import Scales
from simulacra.probability.noise import BatchNoise
from simulacra.probability.samplers import Level
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ["edm", "vdm"])
def test_models_without_whole_times_take_no_squares_of_them(name):
    with pytest.raises(Refusal, match="quadratic"):
        shelf.build(name, Images(1, 4, 4), settings={"spacing": "quadratic"})
    assert shelf.build(name, Images(1, 4, 4), settings={"spacing": "karras"})


@pytest.mark.parametrize("sigma", [0.002, 0.1, 0.5, 3.0, 80.0])
def test_input_and_target_have_variance_one(sigma):
    deviation = torch.tensor(0.7, dtype=torch.float64)
    x0, n = torch.randn(2, 40_000, dtype=torch.float64, generator=seeded())
    y = deviation * x0 + sigma * n
    c = Preconditioning.of(torch.tensor(sigma, dtype=torch.float64), deviation)
    assert float((c.into * y).var()) == pytest.approx(1, abs=0.03)
    target = (deviation * x0 - c.skip * y) / c.out
    assert float(target.var()) == pytest.approx(1, abs=0.03)
    # c_skip makes what is left for the network as small as it can be.
    for other in (0.9, 1.1):
        assert float((deviation * x0 - other * c.skip * y).var()) > float(c.out) ** 2 * 0.97


def silent(model):
    with torch.no_grad():
        for parameter in model.network.leave.parameters():
            parameter.zero_()
    return model


def test_a_silent_network_is_the_best_linear_denoiser_and_its_loss_is_one():
    model = silent(EDM(Images(1, 8, 8, 2), Config(channels=8, blocks=1)))
    x = model.space.random(512, seeded())
    told = model.measure_data(
        iter([Batch(x[:100]), Batch(x[100:])]), BatchNoise(seeded(), 1), Clock()
    )
    assert told["deviation of the data"] == pytest.approx(
        float((2 * x.double() - 1).std()), rel=1e-3
    )
    loss = model.denoising_error(Batch(x), BatchNoise(seeded(1), 512), Clock())
    assert float(loss.value) == pytest.approx(1, abs=0.05)
    level, y = Level(0.6, 0.8), torch.randn(3, 1, 8, 8, generator=seeded())
    guess = model._origin(y, Scales.of(level, y), None).x0
    gain = 0.6 * float(model.deviation) ** 2 / (0.36 * float(model.deviation) ** 2 + 0.64)
    torch.testing.assert_close(guess, gain * y)


def test_eighteen_steps_of_heun_are_thirty_five_evaluations():
    model = silent(
        EDM(Images(1, 4, 4, 4), Config(channels=8, blocks=1), condition=Labels(2))
    ).eval()
    calls = []
    model.network.register_forward_hook(lambda *_: calls.append(1))
    model.sample(2, generator=seeded())
    assert len(calls) == 35
    model.sample(2, generator=seeded(), guidance_scale=1.0)
    assert len(calls) == 3 * 35
    path = model.reverse.steps(model._way())
    assert [path[0].sigma, path[-2].sigma] == pytest.approx([80, 2 / 3 / 8])
