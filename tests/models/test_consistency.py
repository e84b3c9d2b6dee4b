"""Consistency: the end is met exactly, and where paths are known, what is known has no loss."""

import pytest
import torch

from simulacra.games import Batch, Clock
from simulacra.models.diffusion.consistency import Config, Consistency
from simulacra.probability.noise import BatchNoise, row_noise
from simulacra.probability.straight_paths import scale
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Vectors


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def disturbed(space, **settings):
    model = Consistency(space, Config(channels=8, blocks=1, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=seeded()))
    return model.eval()


@pytest.mark.parametrize("space", [Vectors(3), Images(1, 4, 4, 5)])
def test_at_the_end_the_student_gives_back_what_it_got(space):
    model = disturbed(space)
    x = 3 * torch.randn(5, *space.shape, generator=seeded())
    assert torch.equal(model.student.origin(x, torch.ones(5)), x)
    assert not torch.allclose(model.student.origin(x, torch.full((5,), 0.9)), x)


def known(x, t, classes=None):
    """What F has to say for f(x_t, t) = x_t / sqrt(S), the end of the path if data are N(0, I)."""
    s, t = scale(x, t), t[:, None]
    return torch.where(t < 1, (1 - t / s) / (1 - t).clamp(min=1e-9) * x, 0.0)


def test_the_known_answer_has_no_loss(monkeypatch):
    """The teacher's F = 0 is that of standard normal data, whose paths are x_t = sqrt(S) x_0."""
    gaps = {}
    for steps in (10, 80):
        for name in ("ignorant", "knowing"):
            model = Consistency(Vectors(2), Config(channels=8, blocks=1, steps=steps)).double()
            if name == "knowing":
                monkeypatch.setattr(model.student, "told", known)
            batch = Batch(torch.randn(512, 2, generator=seeded(1)))
            told = model.distilling(batch, BatchNoise(seeded(2), 512), Clock())
            gaps[name, steps] = float(told.numbers["gap"])
    assert gaps["knowing", 10] < 1e-3 * gaps["ignorant", 10]
    # What is left is the error of one Heun step, of the third order in its length, squared.
    assert gaps["knowing", 80] < 1e-4 * gaps["knowing", 10]


def test_steps_are_answers_to_noise_and_to_noised_answers():
    model = disturbed(Vectors(2))
    noise = row_noise(6, seeded(), "cpu")
    noise.uniform()
    first = model.student.origin(noise.normal(2), torch.zeros(6))
    half = 0.5 * first + 0.5 * noise.normal(2)
    second = model.student.origin(half, torch.full((6,), 0.5))
    for steps, wanted in ((1, first), (2, second)):
        drawn = model.sample(6, generator=seeded(), num_inference_steps=steps)
        torch.testing.assert_close(drawn, wanted.detach())


def test_the_student_starts_as_the_teacher_and_the_teacher_stays():
    model = disturbed(Vectors(2))
    model.start_student(iter(()), BatchNoise(seeded(), 4), Clock())
    x, t = torch.randn(4, 2, generator=seeded()), torch.full((4,), 0.4)
    assert torch.equal(model.student.origin(x, t), model.teacher.origin(x, t))
    model.distilling(Batch(x), BatchNoise(seeded(), 4), Clock()).value.backward()
    assert all(p.grad is None for p in model.teacher.parameters())
    with pytest.raises(Refusal) as refusal:
        Consistency(Vectors(2), Config(steps=1))
    assert refusal.value.code == "CFG-222"
