"""One denoiser of digits, and everything that is asked of it: samplers, guidance, variances, strangers.

    simulacra train ddpm digits --conditional --budget 2500steps \
        --set variance=learned --set guidance=classifier --out RUN
    simulacra train ddpm digits --conditional --budget 2500steps --set schedule=linear --out LINEAR
    python benchmarks/diffusion.py samplers RUN > benchmarks/results/diffusion-samplers.json
    simulacra train ddpm mnist --size 14 --conditional --budget 18m --set schedule=linear \
        --set channels=32 --set blocks=5 --set learning_rate=1e-3 --out MNIST
    python benchmarks/diffusion.py samplers MNIST --only "DDIM 20" "DDIM 20, eta 1" "DDIM 100" \
        --spacing quadratic --samples 10000
    python benchmarks/diffusion.py guidance RUN
    python benchmarks/diffusion.py variance RUN
    python benchmarks/diffusion.py schedules RUN LINEAR
    python benchmarks/diffusion.py strangers --rounds 1200

Fréchet distances are in the features of the house classifier of the training data. FD is that to all
real data, and FD at infinity its value on a line over 1 / count at nought; ratios are given of both. nFD
goes by the ruler: against held-out data, (FD - floor) / (control - floor), the floor training data in the
samples' place and the control Gaussians in the training images' first 100 principal components, one a
class. A second opinion is the distance in the first 64 principal components of pixels from held-out data,
plain and less that of training data: a classifier's features do not see the noise that few steps leave.
The classes asked for are as frequent as the data's, the seed is one for all. The judge of classes has
learned data that neither model nor guiding classifier has seen.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simulacra import open_data, shelf
from simulacra.data.dataset import Dataset, Part
from simulacra.evaluation.anomaly import area_under_curve
from simulacra.evaluation.frechet import extrapolated, frechet_distance, variance
from simulacra.evaluation.gaussians import gaussian_images
from simulacra.evaluation.intervals import around, wilson
from simulacra.evaluation.manifold import compare
from simulacra.evaluation.second_opinion import PrincipalComponents
from simulacra.probability.noise import mixed
from simulacra.runs.conductor import Run
from simulacra.runs.judging import ruler_features
from simulacra.runs.recipe import Recipe
from simulacra.runs.using import sample_in_chunks
from simulacra.spaces import Images

SEED, COUNT, GUIDED = 0, 600, 400
WALKS: dict[str, dict[str, Any]] = {
    "DDIM 20": {"num_inference_steps": 20},
    "DDIM 100": {"num_inference_steps": 100},
    "DDIM 20, eta 1": {"num_inference_steps": 20, "eta": 1.0},
    "DPM-Solver++ 15": {"sampler": "dpm++2m", "num_inference_steps": 15},
    "DPM-Solver++ SDE 15": {"sampler": "dpm++2m-sde", "num_inference_steps": 15},
    "Heun 18": {"sampler": "heun", "num_inference_steps": 18},
    "Heun 50": {"sampler": "heun", "num_inference_steps": 50},
    "Heun 100": {"sampler": "heun", "num_inference_steps": 100},
    "Euler 36": {"sampler": "euler", "num_inference_steps": 36},
}
RATIOS = {
    "DDIM 20 / DDIM 100 (<= 2.0)": ("DDIM 20", "DDIM 100"),
    "eta 1 / eta 0 at 20 (>= 2.0)": ("DDIM 20, eta 1", "DDIM 20"),
    "DPM-Solver++ 15 / DDIM 100 (<= 1.1)": ("DPM-Solver++ 15", "DDIM 100"),
    "Heun 18 / Heun 100 (<= 1.05)": ("Heun 18", "Heun 100"),
    "Heun 18 / Euler 36 (<= 1)": ("Heun 18", "Euler 36"),
}
SECOND = "FD in principal components"
ABOVE = f"{SECOND}, above real data's"
OUT = 8
"""The class of digits that is held out as strange."""


@dataclass(frozen=True)
class Ruler:
    """Features of real data, the judge, and the two ends of nFD."""

    data: Dataset
    eyes: Any
    judge: Any
    real: Tensor
    held_out: Tensor
    labels: Tensor
    floor: float
    control: float
    second: PrincipalComponents
    held_out_pixels: Tensor
    second_floor: float

    @classmethod
    def of(cls, folder: Path, count: int) -> Ruler:
        """For so many samples."""
        data = Recipe.from_json(shelf.read_card(folder)["recipe"]).open_data()
        assert isinstance(data.space, Images)
        eyes, judge = ruler_features(data, folder, SEED)
        train, *others = (part.all() for part in (data.train, data.valid, data.test))
        labels = [part.condition for part in (train, *others) if part.condition is not None]
        held_out = eyes.features(torch.cat([part.x for part in others])).double()
        taught = eyes.features(train.x).double()
        fake = gaussian_images(train, data.space, count=count, seed=SEED, by_class=True)
        stream = torch.Generator().manual_seed(mixed(SEED, 2))
        chosen = torch.randperm(len(taught), generator=stream)[:count]
        some = taught[chosen]
        pixels = torch.cat([part.x for part in others])
        second = PrincipalComponents(data.space).fit(train.x)
        return cls(
            data,
            eyes,
            judge,
            torch.cat([taught, held_out]),
            held_out,
            torch.cat(labels),
            frechet_distance(some, held_out),
            frechet_distance(eyes.features(fake).double(), held_out),
            second,
            pixels,
            frechet_distance(second(train.x[chosen]), second(pixels)),
        )

    def asked(self, count: int) -> Tensor:
        """Classes as frequent as in the data."""
        stream = torch.Generator().manual_seed(mixed(SEED, 1))
        return self.labels[torch.randint(len(self.labels), (count,), generator=stream)]

    def told(self, x: Tensor, asked: Tensor) -> dict[str, Any]:
        """What is measured of samples."""
        seen = self.eyes.features(x).double()
        value = frechet_distance(seen, self.real)
        low, high = around(value, variance(seen, self.real))
        hits = int((self.judge.probabilities(x).argmax(1) == asked).sum())
        second = frechet_distance(self.second(x), self.second(self.held_out_pixels))
        some = self.real[torch.randperm(len(self.real), generator=torch.Generator().manual_seed(0))]
        found = compare(seen, some[: len(seen)])
        return {
            "FD": value,
            "FD interval": [low, high],
            "FD at infinity": extrapolated(seen, self.real)[0],
            "nFD": (frechet_distance(seen, self.held_out) - self.floor)
            / (self.control - self.floor),
            SECOND: second,
            ABOVE: second - self.second_floor,
            "class accuracy": hits / len(x),
            "class accuracy interval": wilson(hits, len(x)),
            "precision": float(found.precise.double().mean()),
            "recall": float(found.recalled.double().mean()),
            "samples": len(x),
        }


def drawn(folder: Path, count: int, asked: Tensor, **settings: Any) -> tuple[Tensor, float]:
    """Samples of a run with other settings of sampling, and the seconds they took."""
    model = shelf.from_pretrained(folder, settings=settings)
    begun = time.perf_counter()
    x = sample_in_chunks(model, count, torch.Generator().manual_seed(SEED), asked)
    return x, time.perf_counter() - begun


def samplers(folder: Path, only: list[str], count: int, spacing: str | None) -> dict[str, Any]:
    """Distances of all samplers, or those named, their ratios, and the round trip of DDIM inversion;
    ``spacing`` is that of DDIM's steps."""
    ruler = Ruler.of(folder, count)
    told: dict[str, Any] = {"floor": ruler.floor, "control": ruler.control}
    told |= {"judge's accuracy on real data": ruler.judge.accuracy}
    asked = ruler.asked(count)
    for name, settings in WALKS.items():
        if only and name not in only:
            continue
        if spacing and name.startswith("DDIM"):
            settings = settings | {"spacing": spacing}
        x, seconds = drawn(folder, count, asked, **settings)
        told[name] = {**ruler.told(x, asked), "seconds": seconds}
        print(name, told[name]["FD"], file=sys.stderr, flush=True)
    for of in ("FD", "FD at infinity", SECOND, ABOVE):
        told[f"ratios of {of}"] = {
            name: told[first][of] / told[second][of]
            for name, (first, second) in RATIOS.items()
            if first in told and second in told
        }
    told["inversion"] = inversion(folder, ruler)
    return told


def inversion(folder: Path, ruler: Ruler) -> dict[str, Any]:
    """From test data to noise and back by DDIM, in numbers of [-1, 1]."""
    from simulacra.layers.denoising import Way
    from simulacra.probability.noise import row_noise
    from simulacra.probability.samplers import DDIM, descended, last

    model, batch = shelf.from_pretrained(folder), ruler.data.test.first(100)
    found = {}
    for count in (50, 100):
        way = Way.of(model.config, num_inference_steps=count, spacing="karras")
        reverse = model.reverse
        noise = reverse.inverted(batch.x, batch.condition, way)
        classes = reverse.context(batch.condition, len(batch))
        denoise = reverse.denoiser(classes, 0.0, legible=False)
        with torch.no_grad():
            walk = descended(DDIM(), denoise, noise, reverse.steps(way)[:-1], row_noise(100, None))
            again = last(walk)
        gap = (again - reverse.centred(batch.x)).square().mean().sqrt()
        found[f"{count} steps"] = {
            "root mean square of the round trip (<= 1e-2)": float(gap),
            "deviation of the noise": float(noise.std()),
            "data": len(batch),
        }
    return found


def guidance(folder: Path) -> dict[str, Any]:
    """Class accuracy and recall as guidance grows, of both kinds."""
    ruler, told = Ruler.of(folder, GUIDED), dict[str, Any]()
    asked = ruler.asked(GUIDED)
    walk = {"sampler": "dpm++2m", "num_inference_steps": 15}
    for kind, name in (("by a classifier", "classifier"), ("without one", "classifier-free")):
        for scale in (0.0, 1.0, 3.0):
            model = shelf.from_pretrained(folder, settings={**walk, "guidance_scale": scale})
            if name == "classifier-free":
                model.classifier = None
            stream = torch.Generator().manual_seed(SEED)
            x = sample_in_chunks(model, GUIDED, stream, asked)
            told[f"{kind}, w = {scale:g}"] = ruler.told(x, asked)
    return told


def learned_variance(folder: Path) -> dict[str, Any]:
    """The bound with the learned variance and, of the same network, with beta-tilde."""
    model = shelf.from_pretrained(folder, settings={"bound_steps": 60})
    batch = Recipe.from_json(shelf.read_card(folder)["recipe"]).open_data().test.all()
    learned = model.diagnose(batch.x, condition=batch.condition)
    origin = model._origin
    model._origin = lambda *given: replace(origin(*given), share=None)
    fixed = model.diagnose(batch.x, condition=batch.condition)
    gain = sum(fixed.values()) - sum(learned.values())
    return {
        "learned": {**learned, "whole": sum(learned.values())},
        "fixed": {**fixed, "whole": sum(fixed.values())},
        "gain (bits/dim, >= 0.02)": gain,
        "test data": len(batch),
    }


def schedules(cosine: Path, linear: Path) -> dict[str, Any]:
    """Both schedules at 50 steps; one run may be named twice, to be sampled on either."""
    ruler = Ruler.of(cosine, GUIDED)
    asked, told = ruler.asked(GUIDED), {}
    for name, folder in (("cosine", cosine), ("linear", linear)):
        x, _ = drawn(folder, GUIDED, asked, schedule=name, num_inference_steps=50)
        told[name] = ruler.told(x, asked)
    return told


def without(part: Part, label: int) -> Part:
    """The data of all other classes."""
    assert part.conditions is not None
    return replace(part, index=part.index[part.conditions[part.index] != label])


def strangers(rounds: int, out: int) -> dict[str, Any]:
    """AUROC of all data of a class that training did not see against the others of the test split."""
    data, told = open_data("digits"), dict[str, Any]()
    parts = (data.train, data.valid, data.test)
    train, valid, test = (without(part, out) for part in parts)
    ordinary = replace(data, train=train, valid=valid, test=test)
    known = ordinary.test.all().x
    strange = torch.cat([_of_class(part, out) for part in parts])
    for name, budget in (("ddpm", f"{rounds}steps"), ("vae", "3000steps")):
        model = shelf.build(name, data.space, num_examples=len(ordinary.train))
        size = model.game().batch_size
        recipe = Recipe(name, "digits", batch_size=size, budget=budget)
        with tempfile.TemporaryDirectory() as place:
            run = Run(model, ordinary, recipe, Path(place) / "run")
            run.go()
        model.eval()
        with torch.no_grad():
            high, low = (
                model.anomaly_score(x, generator=torch.Generator().manual_seed(0))
                for x in (strange, known)
            )
        value, spread = area_under_curve(high, low)
        told[name] = {
            "AUROC": value,
            "standard error": math.sqrt(spread),
            "source": model.score_source,
            "strange": len(strange),
            "ordinary": len(known),
        }
    return told


def _of_class(part: Part, label: int) -> Tensor:
    batch = part.all()
    assert batch.condition is not None
    return batch.x[batch.condition == label]


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "what", choices=("samplers", "guidance", "variance", "schedules", "strangers")
    )
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--only", nargs="*", default=[], help="samplers to measure")
    parser.add_argument("--spacing", help="of DDIM's steps; as in its paper: quadratic")
    parser.add_argument("--samples", type=int, default=COUNT, help="of each sampler")
    parser.add_argument("--rounds", type=int, default=1200)
    parser.add_argument("--out", type=int, default=OUT, help="the class that is held out")
    given = parser.parse_args()
    torch.set_num_threads(1)
    told = {
        "samplers": lambda: samplers(given.runs[0], given.only, given.samples, given.spacing),
        "guidance": lambda: guidance(given.runs[0]),
        "variance": lambda: learned_variance(given.runs[0]),
        "schedules": lambda: schedules(given.runs[0], given.runs[1]),
        "strangers": lambda: strangers(given.rounds, given.out),
    }[given.what]()
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
