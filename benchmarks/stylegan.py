"""What a trained StyleGAN2 trades by truncation, and how near projections come to real images.

    simulacra train stylegan2 PATH --budget 25m --out RUN
    python benchmarks/stylegan.py RUN --ruler runs/ruler

One line of JSON a truncation psi: precision and recall of 1,000 samples against 2,000 training images, in
the features of the house classifier. Then one a number of projection steps: the mean distance in features
of 20 test images from their projections, and their squared error in pixels of [-1, 1], beside the
same of the nearest training image, nearest by either measure itself.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simulacra import shelf
from simulacra.evaluation.manifold import compare
from simulacra.runs.judging import ruler_features
from simulacra.runs.recipe import Recipe
from simulacra.runs.using import sample_in_chunks
from simulacra.spaces import Images

TRUNCATIONS = (1.0, 0.85, 0.7, 0.55, 0.4, 0.25)
PROJECTIONS = ((False, 60), (False, 400), (True, 60), (True, 400))
SAMPLES, REAL, PROJECTED = 1000, 2000, 20


def told(**numbers: Any) -> None:
    short = {
        name: round(one, 4) if isinstance(one, float) else one for name, one in numbers.items()
    }
    print(json.dumps(short), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--ruler", type=Path, default=Path("runs/ruler"))
    given = parser.parse_args()
    data = Recipe.from_json(shelf.read_card(given.run)["recipe"]).open_data()
    eyes, _ = ruler_features(data, given.ruler, 0)

    def seen(x: Tensor) -> Tensor:
        return eyes.features(x).double()

    real = seen(data.train.first(REAL).x)
    for psi in TRUNCATIONS:
        model: Any = shelf.from_pretrained(given.run, settings={"truncation": psi})
        x = sample_in_chunks(model, SAMPLES, torch.Generator().manual_seed(0))
        found = compare(seen(x), real)
        precision, recall = (float(one.double().mean()) for one in (found.precise, found.recalled))
        told(truncation=psi, precision=precision, recall=recall)

    train, test = data.train.all().x, data.test.first(PROJECTED).x
    assert isinstance(data.space, Images)
    scale = (data.space.levels - 1) / 2
    rows, asked = (one.float().flatten(1) / scale for one in (train, test))
    near = torch.cdist(asked, rows).min(1).values.square() / rows.shape[1]
    near_seen = torch.cdist(seen(test), seen(train)).min(1).values
    for extended, steps in PROJECTIONS:
        settings = {"projection_steps": steps, "extended": extended}
        model = shelf.from_pretrained(given.run, settings=settings)
        x = model.decode(model.encode(test))
        apart = (x.float().flatten(1) / scale - asked).square().mean(1)
        apart_seen = (seen(x) - seen(test)).norm(dim=1)
        told(
            steps=steps,
            extended=extended,
            features=float(apart_seen.mean()),
            features_of_nearest=float(near_seen.mean()),
            features_lower=int((apart_seen < near_seen).sum()),
            pixels=float(apart.mean()),
            pixels_of_nearest=float(near.mean()),
            pixels_lower=int((apart < near).sum()),
            images=PROJECTED,
        )


if __name__ == "__main__":
    main()
