"""Quantisers: how fast ours are beside a peer's, and what codes are worth on Fashion-MNIST.

    pip install vector-quantize-pytorch      # for the speed only, in a virtual environment of its own
    python benchmarks/quantisers.py speed
    python benchmarks/quantisers.py codes RUN [FSQ-RUN] > benchmarks/results/quantisers.json

``codes`` takes runs of the VQ-VAE (recipes/vq-vae-fashion.toml, and the same with --set quantiser=fsq).
Of the test data: how many codes are used, the squared error of what is decoded beside coders of equal
bits, and the prior's nats beside those of single codes' frequencies. The other coders are taught on the
training data:

- k-means: every image is cut into as many patches as it has codes, and a patch is said by the nearest
of   K centres of such patches; - PCA: the bits of an image are spread over the first components by the
gain that one more bit brings, each   component cut into 2^bits cells that k-means in one dimension
finds (Lloyd-Max).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from simulacra import shelf
from simulacra.layers.quantisers import Codebook, FiniteScalars, balanced_levels, nearest
from simulacra.runs.recipe import Recipe
from simulacra.runs.using import in_chunks

ROUNDS, REPEATS = 5, 5
SIZES = ((64 * 49, 512, 32), (4096, 1024, 64))
"""Vectors a batch, entries, numbers of an entry."""
LEARNT = 20_000
LLOYD = 30


def vectors_per_second(step: Callable[[], object], vectors: int) -> float:
    """The best of a few repeats, after one to warm up."""
    step()
    best = math.inf
    for _ in range(REPEATS):
        started = time.perf_counter()
        for _ in range(ROUNDS):
            step()
        best = min(best, (time.perf_counter() - started) / ROUNDS)
    return vectors / best


def train_step(book: Codebook, z: Tensor) -> None:
    """Quantise with gradients, and move the averages."""
    said = book(z)
    (said.vectors.sum() + said.commitment).backward()
    z.grad = None
    _, counts, sums = book.noted()
    book.move(counts, sums)


def peer_step(peer: Any, z: Tensor) -> None:
    """The same of vector-quantize-pytorch: quantise, commitment, averages."""
    vectors, _, *losses = peer(z)
    torch.stack([vectors.sum(), *(loss.sum() for loss in losses)]).sum().backward()
    z.grad = None


def speed() -> dict[str, Any]:
    """Vectors a second of ours and of the peer, in use and in training."""
    import vector_quantize_pytorch as peer

    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for count, codes, width in SIZES:
        data = torch.randn(1, count, width)
        z = data.clone().requires_grad_()
        book = Codebook(codes, width)
        theirs = peer.VectorQuantize(dim=width, codebook_size=codes, threshold_ema_dead_code=0)
        told = {}
        told["ours, training"] = vectors_per_second(partial(train_step, book, z), count)
        told["peer, training"] = vectors_per_second(partial(peer_step, theirs, z), count)
        book.eval()
        theirs.eval()
        with torch.no_grad():
            told["ours, use"] = vectors_per_second(partial(book, data), count)
            told["peer, use"] = vectors_per_second(partial(theirs, data), count)
        found[f"codebook of {codes} x {width}, {count} vectors"] = told
    levels, count = balanced_levels(512), 16_384
    scalars, rounds = FiniteScalars(levels), peer.FSQ(levels=list(levels))
    data = torch.randn(1, count, len(levels))
    with torch.no_grad():
        found["finite scalars, 8 x 8 x 8"] = {
            "ours, use": vectors_per_second(lambda: scalars(data), count),
            "peer, use": vectors_per_second(lambda: rounds(data), count),
        }
    return found


def patches(x: Tensor, side: int) -> Tensor:
    """Images (n, 1, H, W) as patches, (n, places, side * side)."""
    return functional.unfold(x, side, stride=side).mT


def centres_of(rows: Tensor, count: int) -> Tensor:
    """k-means centres (count, D): Lloyd's iterations from random rows, empty ones drawn anew."""
    stream = torch.Generator().manual_seed(0)
    centres = rows[torch.randperm(len(rows), generator=stream)[:count]].clone()
    for _ in range(LLOYD):
        own = nearest(rows, centres)
        sizes = own.bincount(minlength=count)
        sums = torch.zeros_like(centres).index_add_(0, own, rows)
        empty = sizes == 0
        centres = sums / sizes.clamp(min=1).unsqueeze(1)
        fresh = torch.randint(len(rows), (int(empty.sum()),), generator=stream)
        centres[empty] = rows[fresh]
    return centres


def patch_error(train: Tensor, test: Tensor, codes: int, places: int) -> float:
    """The squared error an image of the k-means coder; x in [0, 1], (n, 1, H, W)."""
    side = round(math.sqrt(train.shape[2] * train.shape[3] / places))
    centres = centres_of(patches(train, side).flatten(0, 1)[:200_000], codes)
    seen = patches(test, side)
    rows = seen.flatten(0, 1)
    return float((rows - centres[nearest(rows, centres)]).square().sum() / len(test))


def spread_bits(variances: Tensor, bits: int) -> list[int]:
    """Bits for each component: one more always where the error left, about v 4^-b, is the largest."""
    left, given = variances.double().clone(), [0] * len(variances)
    for _ in range(bits):
        index = int(left.argmax())
        given[index] += 1
        left[index] /= 4
    return given


def pca_error(train: Tensor, test: Tensor, bits: int) -> float:
    """The squared error an image of the PCA coder."""
    rows, seen = train.flatten(1).double(), test.flatten(1).double()
    mean = rows.mean(0)
    values, directions = torch.linalg.eigh(torch.cov(rows.T))
    order = values.argsort(descending=True)
    given = spread_bits(values[order], bits)
    used = [index for index, count in enumerate(given) if count]
    directions = directions[:, order[used]]
    taught, asked = (rows - mean) @ directions, (seen - mean) @ directions
    rebuilt = torch.empty_like(asked)
    for index, place in enumerate(used):
        centres = centres_of(taught[:, index : index + 1], 2 ** given[place])
        column = asked[:, index : index + 1].contiguous()
        rebuilt[:, index] = centres[nearest(column, centres), 0]
    return float((mean + rebuilt @ directions.T - seen).square().sum(1).mean())


def codes_of_run(folder: Path) -> dict[str, Any]:
    """What one run's codes are worth on its test data."""
    model = shelf.from_pretrained(folder)
    card = shelf.read_card(folder)
    data = Recipe.from_json(card["recipe"]).open_data()
    test, train = data.test.all(), data.train.first(LEARNT)
    scale = model.space.levels - 1
    codes, seen = (in_chunks(model.encode, model, one) for one in (test, train))
    total, places = model.code_space.vocabulary, model.code_space.length
    again = torch.cat([model.decode(part) for part in codes.split(256)])
    errors = (test.x.double() - again.double()).div(scale).square().flatten(1).sum(1)

    # Laplace's rule, for each place of the map by itself, and for all places together.
    counts = functional.one_hot(seen, total).sum(0).double() + 0.5
    by_place = (counts / counts.sum(1, keepdim=True)).log()
    together = (counts.sum(0) / counts.sum()).log()
    unigram = -together[codes].sum(1).mean()
    placed = -by_place.gather(1, codes.T).sum(0).mean()
    prior = model.prior.log_prob
    space = model.prior.space
    nats = -torch.cat(
        [
            prior(part.reshape(-1, *space.shape).to(space.dtype)).detach()
            for part in codes.split(256)
        ]
    ).mean()
    share = codes.flatten().bincount(minlength=total).double() / codes.numel()
    return {
        "run": model.config.quantiser,
        "rounds": card["numbers"]["rounds"],
        "training seconds": card["numbers"]["training_seconds"],
        "codes used (share)": float((share > 0).double().mean()),
        "perplexity (codes)": float(torch.special.entr(share).sum().exp()),
        "bits a datum": places * math.log2(total),
        "squared error a datum": float(errors.mean()),
        "prior (nats a datum)": float(nats),
        "frequencies of codes (nats a datum)": float(unigram),
        "frequencies by place (nats a datum)": float(placed),
        "prior saves of the frequencies (share)": float(1 - nats / unigram),
    }


def coders(folder: Path) -> dict[str, float]:
    """Squared errors of the coders without a network, at the bits of the run's codes."""
    model = shelf.from_pretrained(folder)
    data = Recipe.from_json(shelf.read_card(folder)["recipe"]).open_data()
    scale = model.space.levels - 1
    train, test = (one.x.float() / scale for one in (data.train.first(LEARNT), data.test.all()))
    total, places = model.code_space.vocabulary, model.code_space.length
    mean = train.mean(0)
    return {
        "k-means of patches": patch_error(train, test, total, places),
        "PCA": pca_error(train, test, round(places * math.log2(total))),
        "the mean image": float((test - mean).square().flatten(1).sum(1).mean()),
    }


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    kinds = parser.add_subparsers(dest="what", required=True)
    kinds.add_parser("speed", help="Vectors a second, ours beside the peer's.")
    worth = kinds.add_parser("codes", help="What the codes of runs are worth.")
    worth.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    given = parser.parse_args()
    if given.what == "speed":
        told: dict[str, Any] = speed()
    else:
        told = {"runs": [codes_of_run(one) for one in given.runs], "coders": coders(given.runs[0])}
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
