"""Data sets by name. Files are known by the SHA-256 of what they hold, wherever they came from.

They are looked for in the folder that SIMULACRA_DATA names, then among earlier downloads, then
fetched. scikit-learn's handwritten digits need neither file nor network.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from simulacra.data import captions, stacks, synthetic, tones
from simulacra.data.arrays import idx_labels, read_idx
from simulacra.data.raw import TEST, TRAIN, Raw, Survey, cache_folder
from simulacra.data.views import resized
from simulacra.files import write_bytes
from simulacra.refusals import Refusal, shown
from simulacra.spaces import Images

TIMEOUT, MOST_BYTES = 30, 64 * 2**20


@dataclass(frozen=True)
class _Set:
    """Four IDX files: where they can be had, and the SHA-256 of each when unpacked."""

    source: str
    licence: str
    sums: dict[str, str]
    names: tuple[str, ...] = ()


TRAIN_X, TRAIN_Y = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_X, TEST_Y = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"

SETS = {
    "mnist": _Set(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "CC BY-SA 3.0; LeCun, Cortes & Burges",
        {
            TRAIN_X: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            TRAIN_Y: "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            TEST_X: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            TEST_Y: "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
    ),
    "fashion-mnist": _Set(
        "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
        "MIT; Xiao, Rasul & Vollgraf 2017",
        {
            TRAIN_X: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            TRAIN_Y: "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            TEST_X: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            TEST_Y: "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        (
            "T-shirt/top",
            "trouser",
            "pullover",
            "dress",
            "coat",
            "sandal",
            "shirt",
            "sneaker",
            "bag",
            "ankle boot",
        ),
    ),
}
NAMES = ("digits", *SETS, *stacks.PLANS, *captions.PLANS, *synthetic.TRUTHS, tones.NAME)


def read_named(name: str, size: int | None = None) -> Raw:
    """The set called ``name``, one of ``NAMES``; ``size``: the side that images are resized to, the
    samples of a tone."""
    if name in stacks.PLANS:
        plan = stacks.PLANS[name]
        return stacks.stacked(read_named(plan.base, size), plan)
    if name in captions.PLANS:
        plan = captions.PLANS[name]
        return captions.captioned(read_named(plan.base, size), plan)
    if name in synthetic.TRUTHS:
        return synthetic.drawn(name)
    if name == tones.NAME:
        return tones.drawn(size)
    raw = _digits() if name == "digits" else _idx_set(name)
    return raw if size is None else resized(raw, size)


def _digits() -> Raw:
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images = torch.from_numpy(loaded.images.astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(loaded.target.astype(np.int64))
    survey = Survey("images", Counter({"8 x 8": len(images)}), Counter({"17 levels": len(images)}))
    source = {"origin": "scikit-learn's load_digits (Alpaydin & Kaynak 1998)"}
    names = tuple(map(str, range(10)))
    return Raw(images, Images(1, 8, 8, levels=17), survey, labels, names, source=source)


def _idx_set(name: str) -> Raw:
    known = SETS[name]
    files = {file: _found(name, file) for file in known.sums}
    images = np.concatenate([np.array(read_idx(files[one])) for one in (TRAIN_X, TEST_X)])
    labels = torch.cat([idx_labels(files[one]) for one in (TRAIN_Y, TEST_Y)])
    count, height, width = images.shape
    given = torch.full((count,), TRAIN)
    given[-len(read_idx(files[TEST_X])) :] = TEST
    survey = Survey(
        "images", Counter({f"{width} x {height}": count}), Counter({"256 levels": count})
    )
    return Raw(
        torch.from_numpy(images).unsqueeze(1),
        Images(1, height, width),
        survey,
        labels,
        known.names or tuple(map(str, range(10))),
        given,
        {"origin": known.source, "licence": known.licence},
    )


def _found(name: str, file: str) -> Path:
    """The path of one file of a set, its content checked."""
    told = os.environ.get("SIMULACRA_DATA")
    places = [Path(told) / name] if told else []
    for folder in (*places, cache_folder() / name):
        for path in (folder / f"{file}.gz", folder / file):
            if path.is_file():
                content = gzip.decompress(path.read_bytes()) if path.suffix else path.read_bytes()
                _require_sum(content, SETS[name].sums[file], path)
                return path
    return _fetched(name, file)


def _require_sum(content: bytes, expected: str, what: object) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise Refusal(
            "DATA-051",
            f"{shown(what)} is not the file it should be (SHA-256 {found[:12]}…, not {expected[:12]}…)",
            way_out="remove it, and it is fetched again",
        )


def _fetched(name: str, file: str) -> Path:
    address = f"{SETS[name].source}{file}.gz"
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:  # noqa: S310
            packed = answer.read(MOST_BYTES)
        content = gzip.decompress(packed)
    except (urllib.error.URLError, OSError, EOFError) as error:
        raise Refusal(
            "DATA-050",
            f"{name} is not on this machine and {shown(address)} cannot be had ({error})",
            way_out=f"put its four IDX files into a folder {name}, and name the folder above it in "
            "SIMULACRA_DATA",
        ) from error
    _require_sum(content, SETS[name].sums[file], address)
    target = cache_folder() / name / f"{file}.gz"
    write_bytes(target, packed)
    return target
