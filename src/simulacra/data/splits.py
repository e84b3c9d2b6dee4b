"""Splits: a pure function of the data's content and a seed.

Each row has a place in a random order that depends on its bytes and the seed only, so a row keeps its
place when others come, files are renamed, or the folder is copied. Rows that are equal stand side by
side, and borders are moved so that they never part: no test datum was seen in training.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from simulacra.data.raw import TEST, TRAIN, VALID, Raw

HELD_OUT = 0.1
"""The share of all data that validation, and again the test, get."""

Index = tuple[Tensor, Tensor, Tensor]


def split(raw: Raw, seed: int, held_out: float = HELD_OUT) -> tuple[Index, str, int]:
    """The three parts' rows, the data's fingerprint (SHA-256 in hex), and how many are duplicates.

    A validation or test part that the source gives is kept; what it lacks is taken from training.
    """
    digests = list(raw.digests())
    told, _ = raw.told
    content = hashlib.sha256(b"".join(digests))
    for part in () if told is None else told.split(1024):
        content.update(part.numpy().tobytes())
    fingerprint = content.hexdigest()
    salt = seed.to_bytes(8, "little", signed=True)
    keys = [hashlib.blake2b(one, digest_size=16, salt=salt).digest() for one in digests]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    duplicates = len(digests) - len(set(digests))
    count = round(held_out * len(order))
    if raw.given is None:
        test, rest = _cut(order, keys, count)
        valid, train = _cut(rest, keys, count)
    else:
        part = raw.given.tolist()
        train = [row for row in order if part[row] == TRAIN]
        valid = [row for row in order if part[row] == VALID]
        test = [row for row in order if part[row] == TEST]
        if not valid:
            valid, train = _cut(train, keys, round(held_out * len(train)))
        if not test:
            test, train = _cut(train, keys, count)
    parts = (torch.tensor(sorted(one), dtype=torch.int64) for one in (train, valid, test))
    # In the order of the lots again, so that the first rows of a part are a fair sample of it.
    place = torch.empty(len(order), dtype=torch.int64)
    place[torch.tensor(order, dtype=torch.int64)] = torch.arange(len(order))
    first, second, third = (one[place[one].argsort()] for one in parts)
    return (first, second, third), fingerprint, duplicates


def _cut(order: list[int], keys: list[bytes], count: int) -> tuple[list[int], list[int]]:
    """The first ``count`` rows and the others; equal rows stay together, among the others."""
    while 0 < count < len(order) and keys[order[count - 1]] == keys[order[count]]:
        count -= 1
    return order[:count], order[count:]
