"""Which modes of rings and grids of Gaussians adversarial training finds, by loss and remedy.

    python benchmarks/adversarial_2d.py ring --only default,vanilla --seeds 10
    python benchmarks/adversarial_2d.py grid --only default,vanilla --seeds 10
    python benchmarks/adversarial_2d.py ring --only unrolled-0,unrolled-10 --seeds 5 --rounds 25000

One line of JSON a run: modes reached, the share of high-quality samples (within three deviations of a
centre), the reverse KL of the modes (2,500 samples of the last average, as in Lin et al. 2018), how
far D is from 1/2, and seconds. A last line a setting has the means over seeds.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import fmean
from typing import Any

import torch

from simulacra import shelf
from simulacra.data.dataset import Stream
from simulacra.data.open import open_data
from simulacra.evaluation.measure import Provenance
from simulacra.evaluation.modes import Modes
from simulacra.play import Play

SAMPLES = 2500
# Small networks, after those of Metz et al. 2017 on their ring; larger critics lose fewer modes.
CLASSIC: dict[str, Any] = {
    "loss": "non-saturating",
    "regulariser": "none",
    "kinds": 0,
    "octaves": 0,
    "critic_rate": 1.0,
    "average": 0.0,
    "latent": 2,
    "hidden": 128,
    "layers": 2,
    "critic_hidden": 128,
    "critic_layers": 1,
    "learning_rate": 1e-3,
}
# As theirs on the ring but for a critic of a quarter of the generator's width.
QUARTER = CLASSIC | {
    "latent": 64,
    "critic_hidden": 32,
    "critic_layers": 2,
    "critic_rate": 0.1,
    "batch_size": 256,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "vanilla": CLASSIC,
    "saturating": CLASSIC | {"loss": "saturating"},
    "packed": CLASSIC | {"pack": 2},
    "least-squares": CLASSIC | {"loss": "least-squares"},
    "wgan-gp": {
        "loss": "wasserstein",
        "regulariser": "wgan-gp",
        "penalty": 0.1,
        "penalty_left": 1.0,
        "critic_steps": 5,
    },
    "unrolled-0": QUARTER,
    "unrolled-10": QUARTER | {"unrolled": 10, "unrolled_rate": 0.02},
}


def run(data_name: str, name: str, seed: int, rounds: int, more: dict[str, Any]) -> dict[str, Any]:
    data = open_data(data_name)
    settings = SETTINGS[name] | more
    model = shelf.build(
        "gan", data.space, settings=settings, num_examples=len(data.train), seed=seed
    )
    play = Play(model, model.game(), seed=seed)
    stream = Stream(data.train, model.config.batch_size, seed=seed)
    began, cpu = time.perf_counter(), time.process_time()
    for _ in play.rounds(stream, lambda clock: clock.rounds / rounds):
        pass
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    with play.averaged():
        x = model.sample(SAMPLES, generator=torch.Generator().manual_seed(seed))
        told = model.diagnose(data.test.first(1000).x)
    assert data.truth is not None
    readings = Modes.of_truth(data.truth, x, Provenance(seed=seed))
    values = {one.name: round(one.value, 4) for one in readings}
    values |= {key: round(value, 4) for key, value in told.items()}
    return values | {"rounds": rounds, "seconds": round(seconds, 1), "cpu seconds": round(cpu, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", choices=("ring", "grid"))
    parser.add_argument("--only", default=",".join(SETTINGS), help=f"Some of {list(SETTINGS)}.")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="The first seed.")
    parser.add_argument("--rounds", type=int, default=8000)
    parser.add_argument("--set", default="{}", help="Settings for all, as JSON.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.only.split(","):
        found = []
        for seed in range(given.first, given.first + given.seeds):
            found.append(run(given.data, name, seed, given.rounds, json.loads(given.set)))
            print(
                json.dumps({"data": given.data, "run": name, "seed": seed} | found[-1]), flush=True
            )
        mean = {key: round(fmean(one.get(key, 0.0) for one in found), 4) for key in found[0]}
        print(
            json.dumps({"data": given.data, "run": name, "seeds": given.seeds, "mean": mean}),
            flush=True,
        )


if __name__ == "__main__":
    main()
