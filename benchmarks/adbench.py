"""Anomaly detection on tables: our default detector beside PyOD's ECOD and isolation forest.

    pip install -e .[bench]
    python benchmarks/adbench.py FOLDER > benchmarks/results/adbench.json

FOLDER holds ADBench's .npz files (X, y; 1 is an anomaly). Two protocols: 'clean' fits on a random 70 % of
the ordinary rows and scores the others and all anomalies, 'mixed' fits on all rows, anomalies among
them, and scores them. Every detector has its own defaults. 'false alarms' is the share of ordinary
test rows that our threshold flags when 5 % are allowed, in each of five random splits, and 'expected'
the 95 % interval of that share for a threshold from so many clean rows (beta-binomial: the calibration
set is a draw too). One split in twenty lies outside by chance; 'in their interval' counts them.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import betabinom
from sklearn.metrics import roc_auc_score

from simulacra.adapters.scikit import AnomalyDetector

ALLOWED = 0.05
SPLITS = 5
DETECTORS = ("simulacra", "ECOD", "IForest")


def detector(name: str, seed: int) -> Any:
    """A detector with its defaults; higher ``scored`` is stranger."""
    if name == "simulacra":
        return AnomalyDetector(false_alarms=ALLOWED, random_state=seed)
    from pyod.models.ecod import ECOD
    from pyod.models.iforest import IForest

    return ECOD() if name == "ECOD" else IForest(random_state=seed)


def scored(one: Any, x: np.ndarray) -> np.ndarray:
    values: np.ndarray = one.decision_function(x)
    return -values if isinstance(one, AnomalyDetector) else values


def expected(clean: int, asked: int) -> list[float]:
    """The central 95 % of the share of alarms among clean rows."""
    rank = int(ALLOWED * (clean + 1))
    law = betabinom(asked, rank, clean + 1 - rank)
    return [float(law.ppf(q)) / asked for q in (0.025, 0.975)]


def alarms(x: np.ndarray, ordinary: np.ndarray, seed: int) -> dict[str, Any]:
    """The share of alarms among ordinary rows that the detector has not seen, in one random split."""
    shuffled = np.random.default_rng(seed).permutation(ordinary)
    taught, kept = np.split(shuffled, [int(0.7 * len(shuffled))])
    fitted = detector("simulacra", seed).fit(x[taught])
    share = float((fitted.predict(x[kept]) == -1).mean())
    low, high = expected(len(fitted._calibration.clean), len(kept))
    return {"share": share, "expected": [low, high], "inside": low <= share <= high}


def main() -> None:
    """Measure every set with every detector, and print one JSON object."""
    sets: dict[str, dict[str, Any]] = {}
    for path in sorted(Path(sys.argv[1]).glob("*.npz")):
        with np.load(path, allow_pickle=False) as content:
            x, y = content["X"].astype(float), content["y"].astype(int)
        draw = np.random.default_rng(0)
        ordinary = draw.permutation(np.flatnonzero(y == 0))
        taught, kept = np.split(ordinary, [int(0.7 * len(ordinary))])
        asked = np.concatenate([kept, np.flatnonzero(y == 1)])
        found: dict[str, Any] = {"rows": len(x), "columns": x.shape[1], "anomalies": int(y.sum())}
        for name in DETECTORS:
            begun = time.perf_counter()
            fitted = detector(name, 0).fit(x[taught])
            found[f"{name}, clean"] = roc_auc_score(y[asked], scored(fitted, x[asked]))
            found[f"{name}, seconds"] = time.perf_counter() - begun
            fitted = detector(name, 0).fit(x)
            found[f"{name}, mixed"] = roc_auc_score(y, scored(fitted, x))
        found["false alarms"] = [alarms(x, ordinary, seed) for seed in range(SPLITS)]
        sets[path.stem] = found
        print(path.stem, {k: v for k, v in found.items() if "," in k}, file=sys.stderr)
    means = {
        f"{name}, {how}": float(np.mean([one[f"{name}, {how}"] for one in sets.values()]))
        for name in DETECTORS
        for how in ("clean", "mixed")
    }
    splits = [one for found in sets.values() for one in found["false alarms"]]
    inside = {
        "splits": len(splits),
        "in their interval": sum(one["inside"] for one in splits),
        "mean share": float(np.mean([one["share"] for one in splits])),
    }
    print(
        json.dumps({"mean area under ROC": means, "false alarms": inside, "sets": sets}, indent=2)
    )


if __name__ == "__main__":
    main()
