"""Losses and remedies of adversarial models on images, each a run of its own, judged by one ruler.

    python benchmarks/adversarial_images.py digits --budget 60s --out runs/adversarial
    python benchmarks/adversarial_images.py mnist --budget 5m --only dcgan,wgan-gp,spectral,gan

Prints one line of JSON a run: the normalised Frechet distance (0 is real data; 1 are Gaussians in the
training images' first 100 principal components, one a class), precision and recall where they are read,
class accuracy where classes were asked for, what the run told at its end, and its images a second.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment

from simulacra import shelf
from simulacra.evaluation.diversity import mean_distances
from simulacra.evaluation.networks import flat
from simulacra.runs.judging import judge
from simulacra.runs.recipe import Recipe
from simulacra.runs.training import train

CLASSIC = {"loss": "non-saturating", "regulariser": "none"}
GANS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "gan": ("gan", False, {}),
    "dcgan": ("dcgan", False, {}),
    "non-saturating": ("dcgan", False, {"loss": "non-saturating", "regulariser": "r1"}),
    "relativistic": ("dcgan", False, {"loss": "relativistic", "regulariser": "r1+r2"}),
    "vanilla": ("dcgan", False, CLASSIC),
    "least-squares": ("dcgan", False, {"loss": "least-squares"}),
    "wgan-gp": (
        "dcgan",
        False,
        {
            "loss": "wasserstein",
            "regulariser": "wgan-gp",
            # At its best a critic's slope is 1 + W / (2 penalty), W the distance that is left.
            "penalty": 20.0,
            "penalty_every": 1,
            "critic_steps": 3,
        },
    ),
    "spectral": ("dcgan", False, {"loss": "hinge", "spectral": True, "regulariser": "none"}),
    "packed": ("dcgan", False, {"pack": 2}),
    "minibatch": ("dcgan", False, {"minibatch": "discrimination"}),
    "feature-matching": ("dcgan", False, {"feature_matching": True}),
    "diffaugment": ("dcgan", False, {"shift": 0.125, "cut": 0.4, "colour": 0.5}),
    "ada": ("dcgan", False, {"shift": 0.125, "cut": 0.4, "colour": 0.5, "adaptive": 0.6}),
    "projection": ("dcgan", True, {}),
    "concatenation": ("dcgan", True, {"conditioning": "concatenation"}),
    "auxiliary": ("dcgan", True, {"conditioning": "auxiliary"}),
    "infogan": ("infogan", False, {}),
}
SHOWN = ("normalised Fréchet distance", "precision", "recall", "class accuracy of samples")


def told_last(folder: Path) -> dict[str, float]:
    """The last line of numbers in a run's ledger."""
    lines = [json.loads(one) for one in (folder / "ledger.jsonl").read_text().splitlines()]
    numbers = [one for one in lines if "round" in one]
    return {key: round(value, 4) for key, value in (numbers[-1] if numbers else {}).items()}


def code_error(model: Any, x: torch.Tensor, y: torch.Tensor) -> float:
    """The share of data whose class of code is not that of their label, codes named at their best."""
    classes = model.config.classes
    said = torch.cat([model.encode(part)[:, :classes].argmax(1).cpu() for part in x.split(500)])
    table = torch.zeros(classes, int(y.max()) + 1)
    table.index_put_((said, y.long()), torch.ones(len(y)), accumulate=True)
    rows, columns = linear_sum_assignment(-table.numpy())
    return 1 - float(table[rows, columns].sum()) / len(y)


def run(name: str, given: argparse.Namespace, seed: int) -> dict[str, Any]:
    model, conditional, settings = GANS[name]
    settings = settings | json.loads(given.set)
    recipe = Recipe(
        model=model,
        data=given.data,
        conditional=conditional,
        budget=given.budget,
        seed=seed,
        settings=settings,
    )
    folder = given.out / given.data / f"{name}-{seed}"
    if not (folder / "card.json").is_file():
        train(recipe, folder)
    data = recipe.open_data()
    ruler = given.out / given.data / "ruler"
    judged = judge(folder, num_samples=given.samples, ruler=ruler, data=data)
    opened = shelf.from_pretrained(folder)
    card = shelf.read_card(folder)["numbers"]
    told: dict[str, Any] = {"run": name, "seed": seed, "images": card.get("examples")}
    told |= {one.name: round(one.value, 4) for one in judged.readings if one.name in SHOWN}
    test = data.test.all()
    if opened.condition_space is None:
        count = min(500, len(test))
        x = opened.sample(count, generator=torch.Generator().manual_seed(0))
        own, usual = (mean_distances(flat(one, data.space)).mean() for one in (x, test.x[:count]))
        told["pairwise distance, of real data's"] = round(float(own / usual), 3)
    if hasattr(opened, "encode") and test.condition is not None:
        told["code-to-class error"] = round(code_error(opened, test.x, test.condition), 4)
    return told | {"ledger": told_last(folder), "numbers": card}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", nargs="?", default="digits")
    parser.add_argument("--budget", default="60s")
    parser.add_argument("--only", default=",".join(GANS), help=f"Some of {', '.join(GANS)}.")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--set", default="{}", help="Settings for all, as JSON.")
    parser.add_argument("--out", type=Path, default=Path("runs/adversarial"))
    given = parser.parse_args()
    for name in given.only.split(","):
        for seed in range(given.seeds):
            print(json.dumps(run(name, given, seed), ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
