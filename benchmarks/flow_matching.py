"""Flow matching, consistency and latent diffusion: what few steps, straight paths and small codes are
worth.

    python benchmarks/flow_matching.py > benchmarks/results/flow-matching.json
    python benchmarks/flow_matching.py plane digits consistency latent --scale 0.1

``plane``: held-out nats of points on a ring and on a grid, beside those of a spline flow that trained
as long, and of the truth. ``digits``: the Fréchet distance by steps of Euler, before and after reflow,
and the paths' curvature. ``consistency``: the student's distance in one step and two beside its
teacher's. ``latent``: distance, and seconds for samples, beside a DDPM in pixels that trained as long,
on 32 x 32 images of clothes. One thread; ``--scale`` multiplies all training times, which are processor
times.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from simulacra import shelf
from simulacra.data.dataset import Dataset, Stream
from simulacra.data.open import open_data
from simulacra.evaluation.features import FeatureNet, learn_features
from simulacra.evaluation.frechet import frechet_distance
from simulacra.games import Batch
from simulacra.play import Play

SECONDS = {"plane": 30.0, "digits": 60.0, "consistency": 120.0, "latent": 60.0}
"""Training of each model."""
DRAWN, LARGE_DRAWN, HELD_OUT = 600, 200, 2000
"""Samples of digits, samples of larger images, and points that likelihoods are taken of."""
Numbers = dict[str, Any]


def trained(
    name: str, data: Dataset, seconds: float, settings: Mapping[str, Any] | None = None
) -> Any:
    """A model of the shelf after so many seconds of its own game, with its averaged weights."""
    model = shelf.build(name, data.space, settings=settings or {}, num_examples=len(data.train))
    game = model.game()
    play = Play(model, game, bf16=game.bf16)
    source = Stream(data.train, game.batch_size, seed=0, conditional=False)
    begun = time.process_time()
    for _ in play.rounds(source, lambda clock: (time.process_time() - begun) / seconds):
        pass
    if play.shadow:
        model.load_state_dict(play.shadow, strict=False)
    print(f"{name}: {play.clock.examples:,} examples", file=sys.stderr)
    return model.eval()


class Ruler:
    """The Fréchet distance to the training data, in the features that the ruler learns from them."""

    def __init__(self, data: Dataset) -> None:
        train, test = _some(data.train.all()), _some(data.test.all())
        self.eyes: FeatureNet = learn_features(
            data.space, train=train, labels=data.labels, held_out=test
        )
        self.real = self.eyes.features(train.x)

    def __call__(self, draw: Callable[[torch.Generator], Tensor]) -> float:
        return self.distance(draw(torch.Generator().manual_seed(1)))

    def distance(self, x: Tensor) -> float:
        return round(frechet_distance(self.eyes.features(x), self.real), 3)


def _some(batch: Batch, most: int = 10_000) -> Batch:
    return Batch(batch.x[:most], None if batch.condition is None else batch.condition[:most])


def plane(seconds: float) -> Numbers:
    """Held-out nats a point, and how far half the steps would put them off."""
    told: Numbers = {}
    for name in ("ring", "grid"):
        data = open_data(name)
        x = data.test.all().x[:HELD_OUT]
        spline = trained("spline-flow", data, seconds)
        flow = trained("flow-matching", data, seconds)
        with torch.no_grad():
            whole = flow.log_prob(x)
            half = flow.log_prob(x, likelihood_steps=flow.config.likelihood_steps // 2)
            told[name] = {
                "truth": float(data.truth.log_prob(x).mean()) if data.truth else None,
                "spline-flow": float(spline.log_prob(x).mean()),
                "flow-matching": float(whole.mean()),
                "half the likelihood steps": float(half.mean()),
            }
    return told


def digits(seconds: float) -> Numbers:
    """Distance by steps, and curvature, without and with reflow."""
    data = open_data("digits")
    ruler, told = Ruler(data), Numbers()
    for name, reflow, share in (("once", 0, 1.0), ("reflow", 1, 2.0)):
        model = trained("flow-matching", data, share * seconds, {"reflow": reflow})
        told[name] = {"curvature": model.curvature(500)} | {
            f"Euler {steps}": ruler(_drawing(model.sample, num_inference_steps=steps))
            for steps in (1, 2, 5, 20, 100)
        }
    return told


def _drawing(sample: Callable[..., Tensor], **more: Any) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: sample(DRAWN, generator=generator, **more)


def consistency(seconds: float) -> Numbers:
    """Distance of the student in one step and two, and of its teacher in one and in 18 of Heun."""
    data = open_data("digits")
    ruler = Ruler(data)
    model = trained("consistency", data, seconds)
    told = {f"student {k}": ruler(_drawing(model.sample, num_inference_steps=k)) for k in (1, 2)}
    one = _drawing(model.teacher_sample, num_inference_steps=1, solver="euler")
    return told | {
        "teacher Euler 1": ruler(one),
        "teacher Heun 18": ruler(_drawing(model.teacher_sample, num_inference_steps=18)),
    }


def latent(seconds: float) -> Numbers:
    """Distance and seconds for samples, of codes and of pixels."""
    data = open_data("fashion-mnist", size=32)
    ruler, told = Ruler(data), Numbers()
    for name in ("latent-diffusion", "ddpm"):
        model = trained(name, data, seconds)
        begun = time.process_time()
        x = model.sample(LARGE_DRAWN, generator=torch.Generator().manual_seed(1))
        taken = time.process_time() - begun
        told[name] = {"distance": ruler.distance(x), "seconds": round(taken, 2)}
    return told


PARTS: dict[str, Callable[[float], Numbers]] = {
    "plane": plane,
    "digits": digits,
    "consistency": consistency,
    "latent": latent,
}


def main() -> None:
    """Measure what is asked for, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=list(PARTS))
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    told: Numbers = {"torch": torch.__version__, "threads": 1, "scale": options.scale}
    for name in options.parts:
        told[name] = PARTS[name](options.scale * SECONDS[name])
        print(name, told[name], file=sys.stderr)
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
