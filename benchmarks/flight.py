"""Healthy runs under the flight recorder: how often does it raise a false alarm?

    python benchmarks/flight.py 20s > benchmarks/results/flight.json

The best known model of each family with its defaults on the digits, three seeds each.
"""

from __future__ import annotations

import json
import sys

from simulacra import open_data, shelf
from simulacra.runs.conductor import Run
from simulacra.runs.recipe import Recipe

SEEDS = 3


def main() -> None:
    """Print one JSON object."""
    data, runs = open_data("digits"), []
    for entry in (one for one in shelf.entries() if one.representative):
        for seed in range(SEEDS):
            model = shelf.build(entry.name, data.space, num_examples=len(data.train), seed=seed)
            run = Run(model, data, Recipe(entry.name, budget=sys.argv[1], seed=seed), None)
            run.go()
            runs.append({"model": entry.name, "seed": seed, "warnings": run.warnings})
            print(runs[-1], file=sys.stderr)
    alarmed = sum(bool(one["warnings"]) for one in runs)
    print(json.dumps({"runs": len(runs), "with an alarm": alarmed, "each": runs}, indent=2))


if __name__ == "__main__":
    main()
