"""The flight recorder names planted failures within an interval, and leaves healthy runs alone."""

import json

import pytest
import torch
from torch import nn

from simulacra import open_data, shelf
from simulacra.contract import Sampler
from simulacra.games import Descent, Game, Loss, Player, Stage
from simulacra.optimisation import Optimiser
from simulacra.runs.conductor import Run
from simulacra.runs.flight import FlightRecorder
from simulacra.runs.recipe import Recipe
from simulacra.spaces import Images


@pytest.fixture(scope="module")
def digits():
    return open_data("digits")


def warnings_of(model, data, budget="200steps", **choices):
    run = Run(model, data, Recipe("vae", budget=budget, **choices), None, device="cpu")
    run.go()
    return run.warnings


class Painter(nn.Module, Sampler):
    """Learns the mean image, and draws as it is told to: one image, training data, or noise."""

    condition_space = None

    def __init__(self, space, draws):
        super().__init__()
        self.space, self.draws = space, draws
        self.mean = nn.Parameter(torch.zeros(space.shape))
        self.factor, self.broken = 1.0, False
        self.rounds = 0

    def sample(self, num_samples, *, condition=None, generator=None):
        return self.draws(num_samples, generator)

    def loss(self, batch, noise, clock):
        self.rounds += 1
        value = (batch.x.float() - self.mean).square().mean()
        if self.rounds > 100:
            value = value * self.factor
        if self.broken and self.rounds % 50 == 0:
            value = value * float("nan")
        return Loss(value)

    def game(self):
        player = Player("painter", list(self.parameters()), Optimiser("sgd", 1e-3), clip=1.0)
        return Game([Stage([Descent((player,), self.loss)])], batch_size=32)


def painter(data, draws=None):
    space = data.space
    return Painter(space, draws or (lambda count, generator: space.random(count, generator)))


def test_a_healthy_painter_is_left_alone(digits):
    assert warnings_of(painter(digits), digits) == []


def test_collapse_is_named_with_its_round_and_its_way_out(digits):
    one = digits.train.first(1).x
    found = warnings_of(painter(digits, lambda count, g: one.repeat(count, 1, 1, 1)), digits)
    assert any(text.startswith("collapse of diversity: samples are 0%") for text in found)
    assert any("since round" in text and "learning_rate" in text for text in found)


def test_a_memoriser_is_named(digits):
    train = digits.train.first(2000).x

    def copies(count, generator):
        return train[torch.randint(len(train), (count,), generator=generator)]

    (found,) = warnings_of(painter(digits, copies), digits)
    assert found.startswith("memorisation: 100% of samples are copies")


def test_exploding_gradients_are_named(digits):
    model = painter(digits)
    model.factor = 1e6
    found = warnings_of(model, digits)
    assert [text.split(":")[0] for text in found] == ["exploding gradients"]


def test_an_injected_nan_is_named(digits):
    model = painter(digits)
    model.broken = True
    found = warnings_of(model, digits)
    assert found[0].startswith("not finite: 1 updates")


def test_a_collapsed_posterior_is_named(digits):
    settings = {"beta": 100.0, "warm_up": 0.0}
    model = shelf.build("vae", digits.space, settings=settings, num_examples=1437)
    found = warnings_of(model, digits)
    assert any(text.startswith("KL collapse:") and "lower beta" in text for text in found)
    healthy = shelf.build("vae", digits.space, num_examples=1437)
    assert warnings_of(healthy, digits, budget="400steps") == []


def test_a_real_network_that_yields_no_number_is_named(digits):
    """Once only: the update is left out, and the training goes on to a finite end."""
    model, calls = shelf.build("vae", digits.space, num_examples=1437), []

    def broken(module, given, out):
        calls.append(out)
        return out * float("nan") if len(calls) == 50 else out

    model.decoder.register_forward_hook(broken)
    found = warnings_of(model, digits)
    assert [text.split(":")[0] for text in found] == ["not finite"]
    assert found[0].startswith("not finite: 1 updates")
    assert torch.isfinite(model.log_prob(digits.test.first(20).x)).all()


def codebook_run(data, **settings):
    """A run of a VQ-VAE whose codebook starts far from everything that the encoder says."""
    told = {"codes": 32, "prior": "own", "prior_share": 0.2, "batch_size": 32, "hidden": 16}
    model = shelf.build("vq-vae", data.space, settings=told | settings, num_examples=1437)
    with torch.no_grad():
        model.quantiser.entries.add_(10.0)
        model.quantiser.sums.add_(10.0)
    return warnings_of(model, data, budget="300steps")


def test_a_codebook_with_dead_codes_is_named(digits):
    """A start far off and no revival: one entry is the nearest to all, and the others never move."""
    found = codebook_run(digits, start_from_data=False, revive=0.0)
    (told,) = (text for text in found if text.startswith("dead codes:"))
    assert "of the codebook is used, since round" in told
    assert "revive dead ones" in told


@pytest.mark.parametrize("cure", [{"start_from_data": True}, {"start_from_data": False}])
def test_revival_and_a_start_at_data_keep_codes_alive(digits, cure):
    assert not [text for text in codebook_run(digits, **cure) if text.startswith("dead codes")]


def trained_gan(data, budget, seed, **settings):
    model = shelf.build(
        "dcgan", data.space, settings=settings, num_examples=len(data.train), seed=seed
    )
    return model, warnings_of(model, data, budget, seed=seed)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_gan_that_really_collapses_is_named_at_the_first_look(digits, seed):
    """A far too high learning rate and no penalty: one image is drawn for every z."""
    settings = {"penalty": 0.0, "shift": 0.0, "learning_rate": 0.3, "batch_size": 32}
    model, found = trained_gan(digits, "120steps", seed, **settings)
    x = model.sample(50, generator=torch.Generator().manual_seed(1))
    assert len(x.unique(dim=0)) <= 5
    (told,) = (text for text in found if text.startswith("collapse of diversity"))
    assert "since round 30" in told
    assert "lower learning_rate, or raise penalty" in told


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_gan_with_its_recommended_settings_is_left_alone(digits, seed):
    model, found = trained_gan(digits, "300steps", seed)
    assert found == []
    assert len(model.sample(50, generator=torch.Generator().manual_seed(1)).unique(dim=0)) == 50


def recorder():
    space = Images(1, 4, 4, levels=4)
    return FlightRecorder(space, space.random(50, torch.Generator().manual_seed(0)))


def test_dead_codes_and_a_saturated_critic_are_named():
    watch = recorder()
    assert watch.diagnoses({"codes used (share)": 0.9}, 10, 0.5) == []
    (found,) = watch.diagnoses({"codes used (share)": 0.1}, 20, 0.5)
    assert found.text().startswith("dead codes: only 10% of the codebook is used, since round 20")
    assert watch.numbers({"critic/accuracy": 1.0}, 30, 0.5) == []
    (found,) = watch.numbers({"critic/accuracy": 1.0}, 40, 0.5)
    assert found.detector == "saturated critic"
    assert found.since == 30
    assert watch.numbers({"critic/accuracy": 1.0}, 50, 0.5) == []


def test_spoken_once_and_again_after_it_went_away():
    watch = recorder()
    speaks = [bool(watch.numbers({"skipped": n}, n, 0.5)) for n in (1, 1, 0, 2)]
    assert speaks == [True, False, False, True]


def test_what_was_seen_survives_a_resume():
    watch, again = recorder(), recorder()
    for value in (1.0, 1.1, 0.9, 1.0, 1.2):
        watch.numbers({"gradient norm": value, "skipped": 1}, 1, 0.5)
    again.load_state(json.loads(json.dumps(watch.state())))
    told = {"gradient norm": 500.0, "skipped": 1}
    assert [one.detector for one in again.numbers(told, 2, 0.5)] == ["exploding gradients"]


def test_a_held_out_part_of_one_datum_is_not_looked_at(tmp_path):
    import numpy as np

    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "few.npy", images)
    data = open_data(tmp_path / "few.npy")
    assert len(data.valid) == 1
    model = shelf.build("dcgan", data.space, settings={"channels": 4}, num_examples=10)
    run = Run(model, data, Recipe("dcgan", budget="12steps"), None, device="cpu")
    run.go()
    assert run.play.clock.rounds == 12
