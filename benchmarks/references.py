"""Our measures beside other libraries', on the same features: distances, neighbourhoods, times.

    pip install -e .[bench]
    python benchmarks/references.py > benchmarks/results/references.json

The Fréchet distance of 10,000 against 10,000 features of 2,048 dimensions is timed beside scipy's
matrix square root, and so is the memory that precision and recall of 10,000 against 10,000 take.
"""

from __future__ import annotations

import json
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from simulacra.evaluation.dinov2 import OFFSET, DINOv2, Sizes, hugging_face_names
from simulacra.evaluation.frechet import Moments, distance, frechet_distance
from simulacra.evaluation.kernel_distance import in_subsets, kernel_distance
from simulacra.evaluation.manifold import COVERAGE_NEIGHBOURS, PRECISION_NEIGHBOURS, compare
from simulacra.evaluation.pretrained import Inception, open_pretrained
from simulacra.spaces import Images


def clouds(count: int, dimension: int) -> tuple[Tensor, Tensor]:
    """Two correlated sets of features."""
    draw = torch.Generator().manual_seed(0)
    mix = torch.randn((dimension, dimension), generator=draw, dtype=torch.float64) / dimension**0.5
    x = torch.randn((count, dimension), generator=draw, dtype=torch.float64)
    y = 0.1 + torch.randn((count, dimension), generator=draw, dtype=torch.float64) @ mix
    return x, y


class Given(nn.Module):
    """An extractor that gives what it gets, for libraries that want one."""

    num_features = 64

    def forward(self, x: Tensor) -> Tensor:
        return x


def against_torchmetrics() -> dict[str, Any]:
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    x, y = clouds(1000, 64)
    fid = FrechetInceptionDistance(feature=Given(), normalize=False).set_dtype(torch.float64)
    fid.update(y, real=True)
    fid.update(x, real=False)
    kid = KernelInceptionDistance(feature=Given(), subsets=1, subset_size=1000)
    kid.update(y, real=True)
    kid.update(x, real=False)
    return {
        "FID": (frechet_distance(x, y), float(fid.compute())),
        "KID": (kernel_distance(x, y), float(kid.compute()[0])),
        "KID in one subset": (in_subsets(x, y, subsets=1)[0], float(kid.compute()[0])),
    }


def against_prdc() -> dict[str, Any]:
    from prdc import compute_prdc

    x, y = clouds(1000, 64)
    mine = compare(x, y)
    few = compute_prdc(y.numpy(), x.numpy(), nearest_k=PRECISION_NEIGHBOURS)
    many = compute_prdc(y.numpy(), x.numpy(), nearest_k=COVERAGE_NEIGHBOURS)
    return {
        "precision": (float(mine.precise.double().mean()), float(few["precision"])),
        "recall": (float(mine.recalled.double().mean()), float(few["recall"])),
        "density": (float(mine.density.mean()), float(many["density"])),
        "coverage": (float(mine.covered.double().mean()), float(many["coverage"])),
    }


def against_torch_fidelity() -> dict[str, Any]:
    """Inception with the same random weights on the same images of three sizes: the largest gap."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    gaps = {}
    with tempfile.TemporaryDirectory() as folder:
        own = Inception(Images(3, 32, 32))
        torch.manual_seed(0)
        for part in own.modules():
            if isinstance(part, nn.BatchNorm2d):
                assert part.running_mean is not None
                assert part.running_var is not None
                part.running_mean.normal_(0, 0.1)
                part.running_var.uniform_(0.5, 1.5)
        classifier = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
        torch.save(own.state_dict() | classifier, Path(folder) / "weights.pth")
        save_file(own.state_dict(), Path(folder) / "weights.safetensors")
        peer = FeatureExtractorInceptionV3(
            "peer", ["2048"], feature_extractor_weights_path=str(Path(folder) / "weights.pth")
        )
        for side in (32, 200, 400):
            space = Images(3, side, side)
            x = space.random(4, torch.Generator().manual_seed(side))
            mine = open_pretrained(Path(folder) / "weights.safetensors", space)
            with torch.no_grad():
                theirs, ours = peer(x)[0], mine(x)
            gaps[f"{side} x {side}"] = float((ours - theirs).abs().max() / theirs.abs().max())
    return {"largest relative difference of features": gaps}


def against_transformers() -> dict[str, Any]:
    """DINOv2, small, with the same random weights on the same pixels: the largest gap.

    At the checkpoint's own side no positions are moved; at 224 pixels they are, where the port has no
    offset and the published code, which we follow, has one.
    """
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    small = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14
    )
    peer = Dinov2Model(small).eval()
    for name, one in peer.named_parameters():
        # As they come, layers would hardly add to what they pass on.
        nn.init.normal_(one, 1.0 if "lambda1" in name else 0.0, 0.05)
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        state = hugging_face_names(load_file(Path(folder) / "model.safetensors"))
    gaps = {}
    for side, offset in ((518, OFFSET), (224, 0.0), (224, OFFSET)):
        own = DINOv2(Images(3, 32, 32), Sizes.of(state), offset=offset).eval()
        own.load_state_dict(state)
        x = torch.randn((2, 3, side, side), generator=torch.Generator().manual_seed(side))
        with torch.no_grad():
            theirs, ours = peer(x).pooler_output, own.class_token(x)
        gaps[f"{side} pixels, offset {offset}"] = float(
            (ours - theirs).abs().max() / theirs.abs().max()
        )
    return {"largest relative difference of features": gaps}


def by_square_root(one: Moments, two: Moments) -> float:
    """As published, with scipy's matrix square root."""
    first, second = one.covariance.numpy(), two.covariance.numpy()
    root = scipy.linalg.sqrtm(first @ second).real
    shift = (one.mean - two.mean).numpy()
    return float(shift @ shift + np.trace(first + second - 2 * root))


def speed() -> dict[str, Any]:
    x, y = clouds(10_000, 2048)
    one, two = Moments(2048).update(x), Moments(2048).update(y)
    times: dict[str, list[float]] = {"ours": [], "scipy": []}
    values: dict[str, float] = {}
    for _ in range(3):
        for name, work in (("ours", distance), ("scipy", by_square_root)):
            begun = time.perf_counter()
            values[name] = work(one, two)
            times[name].append(time.perf_counter() - begun)
    medians = {name: statistics.median(several) for name, several in times.items()}
    return {
        "seconds (median of 3)": medians,
        "times as fast": medians["scipy"] / medians["ours"],
        "values": values,
        "relative difference": abs(values["ours"] / values["scipy"] - 1),
    }


def memory() -> dict[str, Any]:
    """Before anything large has been held, since a process's peak never falls."""
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn((10_000, 64), generator=draw) for _ in range(2))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter()
    compare(x, y)
    seconds = time.perf_counter() - begun
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"added peak (MiB)": added, "seconds": seconds}


def stand_in_for_torchvision() -> None:
    """torchmetrics imports torchvision, whose CPU build lacks two operators that are never called."""
    if not torch.cuda.is_available():
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        KEPT.append(library)


KEPT: list[Any] = []


def main() -> None:
    """Print one JSON object; pairs are ours and the other library's."""
    stand_in_for_torchvision()
    found = {
        "precision and recall of 10,000 against 10,000": memory(),
        "torchmetrics": against_torchmetrics(),
        "prdc": against_prdc(),
        "torch-fidelity, Inception": against_torch_fidelity(),
        "transformers, DINOv2": against_transformers(),
        "Fréchet distance, 10,000 against 10,000 of 2,048 dimensions": speed(),
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
