"""Training steps of MAF and of spline flows against zuko and nflows, on the same machine in one run.

    pip install -e .[bench]
    python benchmarks/flows.py > benchmarks/results/flows.json

All sides have the same transforms, hidden layers, bins, data, batch size and optimiser, fp32, one
thread, and take whole training steps: loss, gradients, AdamW. The systems take turns, so that a
machine that grows busy slows all of them, and times are processor times: the fastest quarter of the
steps counts. Ours are rows a second of the model's own loss, with its front door.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from simulacra.games import Batch, Clock
from simulacra.models.flows.maf import MAF
from simulacra.models.flows.maf import Config as MAFConfig
from simulacra.models.flows.spline_flow import Config as SplineConfig
from simulacra.models.flows.spline_flow import SplineFlow
from simulacra.probability.noise import BatchNoise
from simulacra.spaces import Vectors

BINS, BOUND = 8, 5.0
SHAPES: dict[str, dict[str, int]] = {
    "a table": {"size": 6, "hidden": 64, "layers": 2, "transforms": 5, "batch": 256},
    "a wide table": {"size": 43, "hidden": 256, "layers": 2, "transforms": 5, "batch": 256},
    "pixels": {"size": 784, "hidden": 1024, "layers": 1, "transforms": 5, "batch": 128},
}
Step = Callable[[Tensor], Tensor]


def ours(kind: str, shape: dict[str, int]) -> tuple[nn.Module, Step]:
    space = Vectors(shape["size"])
    blocks, hidden, layers = shape["transforms"], shape["hidden"], shape["layers"]
    model: MAF | SplineFlow
    if kind == "maf":
        model = MAF(space, MAFConfig(blocks=blocks, hidden=hidden, layers=layers))
    else:
        config = SplineConfig(
            blocks=blocks, hidden=hidden, layers=layers, bins=BINS, bound=BOUND, linear=False
        )
        model = SplineFlow(space, config)
    noise = BatchNoise(torch.Generator(), shape["batch"])
    return model, lambda x: model.negative_log_likelihood(Batch(x), noise, Clock()).value


def zuko(kind: str, shape: dict[str, int]) -> tuple[nn.Module, Step]:
    from zuko import flows

    layers = (shape["hidden"],) * shape["layers"]
    same = {"transforms": shape["transforms"], "hidden_features": layers}
    if kind == "maf":
        model = flows.MAF(shape["size"], **same)
    else:
        model = flows.NSF(shape["size"], bins=BINS, **same)
    return model, lambda x: -model().log_prob(x).mean()


def nflows(kind: str, shape: dict[str, int]) -> tuple[nn.Module, Step]:
    from nflows import distributions, flows, transforms

    same = {
        "features": shape["size"],
        "hidden_features": shape["hidden"],
        "num_blocks": shape["layers"] - 1,
        "use_residual_blocks": False,
    }
    steps = []
    for _ in range(shape["transforms"]):
        steps.append(transforms.ReversePermutation(features=shape["size"]))
        if kind == "maf":
            steps.append(transforms.MaskedAffineAutoregressiveTransform(**same))
        else:
            steps.append(
                transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                    **same, num_bins=BINS, tails="linear", tail_bound=BOUND
                )
            )
    normal = distributions.StandardNormal([shape["size"]])
    model = flows.Flow(transforms.CompositeTransform(steps), normal)
    return model, lambda x: -model.log_prob(x).mean()


SYSTEMS = {"simulacra": ours, "zuko": zuko, "nflows": nflows}


def rates(kind: str, shape: dict[str, int], steps: int) -> dict[str, float]:
    """Rows a second of processor time, by system."""
    x = torch.randn(shape["batch"], shape["size"], generator=torch.Generator().manual_seed(0))
    training = {}
    for name, build in SYSTEMS.items():
        try:
            model, loss = build(kind, shape)
        except ImportError as missing:
            print(f"{name} is left out: {missing}", file=sys.stderr)
            continue
        training[name] = (torch.optim.AdamW(model.parameters(), 1e-4, fused=True), loss)
    seconds: dict[str, list[float]] = {name: [] for name in training}
    for _ in range(steps):
        for name, (optimiser, loss) in training.items():
            begun = time.process_time()
            optimiser.zero_grad()
            loss(x).backward()
            optimiser.step()
            seconds[name].append(time.process_time() - begun)
    # The first steps warm up; a quantile is the same machine's better moments for everybody.
    return {
        name: shape["batch"] / statistics.quantiles(times[steps // 10 :], n=4)[0]
        for name, times in seconds.items()
    }


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=list(SHAPES))
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    told: dict[str, dict[str, object]] = {"maf": {}, "spline-flow": {}}
    for kind in told:
        for name in options.shapes:
            if kind == "spline-flow" and name == "pixels":
                # 23 numbers for each of 784 entries: a step takes seconds, and tells nothing new.
                continue
            found = rates(kind, SHAPES[name], options.steps)
            ratios = {peer: found["simulacra"] / rate for peer, rate in found.items()}
            told[kind][name] = {
                "rows per second": found,
                "simulacra is so many times as fast": ratios,
            }
            print(kind, name, ratios, file=sys.stderr)
    machine = {"threads": 1, "torch": torch.__version__, "clock": "processor time"}
    print(json.dumps({"machine": machine, "shapes": SHAPES, **told}, indent=2))


if __name__ == "__main__":
    main()
