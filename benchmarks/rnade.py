"""RNADE on the real-valued digits, beside one Gaussian and a mixture of ten, in nats a digit.

    python benchmarks/rnade.py [BUDGET] > benchmarks/results/rnade.json

The 8 x 8 digits with their 17 levels get uniform noise once, (x + u) / 17, and are vectors of 64 reals
from then on: every density is exact, on the same split and in the same unit.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

RIVALS = {
    "one Gaussian, full covariance": ("gaussian-mixture", ("components=1",)),
    "ten Gaussians, full covariance": ("gaussian-mixture", ("components=10",)),
    "ten Gaussians, shrunk towards the tied one": (
        "gaussian-mixture",
        ("components=10", "shrinkage=50"),
    ),
    "gaussian-mixture as recommended": ("gaussian-mixture", ()),
    "RNADE as recommended": ("nade", ()),
}


def simulacra(*words: str) -> str:
    """What a command prints."""
    command = [sys.executable, "-m", "simulacra", *words]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def judged(folder: Path, data: Path, model: str, settings: tuple[str, ...], budget: str) -> Any:
    """The held-out negative log-likelihood of one model trained by the command line."""
    run = str(folder)
    options = [word for one in settings for word in ("--set", one)]
    simulacra("train", model, str(data), "--budget", budget, "--out", run, *options)
    said = json.loads(simulacra("evaluate", run, "--num-samples", "200", "--json"))
    for reading in said["readings"]:
        if reading["name"] == "negative log-likelihood":
            return {key: reading[key] for key in ("value", "low", "high", "kind", "unit")}
    raise ValueError(f"{model} was given no likelihood")


def main() -> None:
    """All of them; one JSON object."""
    budget = sys.argv[1] if len(sys.argv) > 1 else "3m"
    pixels = load_digits().data
    noise = np.random.default_rng(0).random(pixels.shape)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "digits.npy"
        np.save(data, ((pixels + noise) / 17).astype(np.float32))
        found = {}
        for index, (name, (model, settings)) in enumerate(RIVALS.items()):
            found[name] = judged(Path(folder) / str(index), data, model, settings, budget)
            print(name, found[name], file=sys.stderr)
    print(json.dumps({"budget": budget, "models": found}, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
