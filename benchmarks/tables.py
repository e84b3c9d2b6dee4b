"""Held-out log-likelihood of every density model of tables, beside scikit-learn's mixture.

    python benchmarks/tables.py FOLDER [BUDGET] > benchmarks/results/tables.json

Each table of FOLDER (.csv, .csv.gz) goes through `simulacra compare` as it lies there. Beside
it, scikit-learn's GaussianMixture (full covariances, the number of components with the
best validation score of 1, 5, 10, 20, ...) on the same split: what it is given has to be prepared by
hand, standardised, categories as integers plus uniform noise, which makes it a lower bound in the same
unit (its log of the mean over ten draws of the noise, as ours). Nats a row, lower is better; '=' is
exact, '≤' a bound. A table with missing numbers is not for scikit-learn.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import logsumexp
from sklearn.mixture import GaussianMixture

from simulacra.data.open import open_data
from simulacra.spaces import Table

MODELS = "independent,naive-bayes,discriminant,gaussian-mixture,nade,made,maf,nice,spline-flow,vae"
DRAWS = 10
COMPONENTS = (1, 5, 10, 20, 40, 60)


def compared(path: Path, budget: str, folder: Path) -> dict[str, Any]:
    """What the one command says of each model's held-out data."""
    words = ["compare", str(path), "--models", MODELS, "--budget", budget]
    words += ["--out", str(folder / path.name), "--num-samples", "200", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "simulacra", *words], stdout=subprocess.PIPE, text=True, check=True
    )
    said = json.loads(done.stdout)
    found: dict[str, Any] = {}
    for name, one in said["models"].items():
        for reading in one["readings"]:
            if reading["name"] == "negative log-likelihood":
                found[name] = {key: reading[key] for key in ("value", "low", "high", "kind")}
    return found | {name: {"refused": why} for name, why in said["failures"].items()}


def scikit(path: Path) -> dict[str, Any]:
    """scikit-learn's mixture on the same split, prepared by hand."""
    data = open_data(path)
    assert isinstance(data.space, Table)
    if data.space.may_miss:
        return {"refused": "numbers are missing"}
    named = np.array([column.kind == "category" for column in data.space.columns])
    draw = np.random.default_rng(0)
    parts = [part.all().x.double().numpy() for part in (data.train, data.valid, data.test)]
    train = parts[0] + named * draw.random(parts[0].shape)
    mean, scale = train.mean(0), train.std(0)

    def nats(fitted: GaussianMixture, x: np.ndarray) -> np.ndarray:
        values = [
            fitted.score_samples((x + named * draw.random(x.shape) - mean) / scale)
            for _ in range(DRAWS if named.any() else 1)
        ]
        averaged: np.ndarray = np.log(scale).sum() - logsumexp(values, axis=0) + np.log(len(values))
        return averaged

    fits = [
        GaussianMixture(count, random_state=0, reg_covar=1e-6).fit((train - mean) / scale)
        for count in COMPONENTS
        if count < len(train) // 5
    ]
    best = min(fits, key=lambda one: float(nats(one, parts[1]).mean()))
    values = nats(best, parts[2])
    reach = 1.96 * values.std() / len(values) ** 0.5
    return {
        "value": float(values.mean()),
        "low": float(values.mean() - reach),
        "high": float(values.mean() + reach),
        "kind": "lower" if named.any() else "exact",
        "components": best.n_components,
    }


def main() -> None:
    """Every table of the folder; one JSON object."""
    budget = sys.argv[2] if len(sys.argv) > 2 else "30s"
    tables = sorted(
        path for path in Path(sys.argv[1]).iterdir() if path.name.endswith((".csv", ".csv.gz"))
    )
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for path in tables:
            found[path.name] = compared(path, budget, Path(folder))
            found[path.name]["scikit-learn's mixture"] = scikit(path)
    print(json.dumps({"budget": budget, "unit": "nats a row", "tables": found}, indent=2))


if __name__ == "__main__":
    main()
