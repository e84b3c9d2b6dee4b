"""Sounds of a user: WAV files in a folder, a zip, or a single one, cut into windows of equal length.

PCM of 8, 16, 24 and 32 bits and reals of 32 and 64 are read, as reals from -1 to 1 (full scale).
Channels are kept where all files have as many; where they differ, each file is averaged to one. All
have to have the same rate: nothing is resampled. What is left at the end of a file is left out.

Windows of one file stay in one part of the data: a tenth of the files each, drawn by their content, is
for validation and for the test. Fewer than ten files are cut along the time instead: nine tenths of
each for training, then a twentieth each.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from simulacra.data import images
from simulacra.data.raw import TEST, TRAIN, VALID, Raw, Survey, kept, room
from simulacra.data.sources import File, listed, meanings, opened_zip
from simulacra.refusals import Refusal, shown
from simulacra.spaces import Series

ENDINGS = (".wav", ".wave")
LENGTH = 4096
FEW_FILES, HELD_OUT = 10, 0.1
PCM, REAL, EXTENSIBLE = 1, 3, 0xFFFE
TYPES = {(PCM, 8): "u1", (PCM, 16): "<i2", (PCM, 24): "", (PCM, 32): "<i4"}
TYPES |= {(REAL, 32): "<f4", (REAL, 64): "<f8"}
MOST_CHANNELS = 64


class Broken(Exception):
    """Why one file cannot be read, as the end of a sentence that begins with its name."""


@dataclass(frozen=True)
class Sound:
    """Samples from -1 to 1, shape (channels, length), float32; ``rate`` in samples a second."""

    samples: np.ndarray
    rate: int
    mode: str


def is_sounds(path: Path) -> bool:
    """Whether ``path`` is a WAV file, or a folder or zip that holds more of them than images."""
    if path.is_dir():
        names = [one.name for one in path.rglob("*") if one.is_file()]
    elif path.suffix.lower() == ".zip":
        with opened_zip(path) as archive:
            names = archive.namelist()
    else:
        names = [path.name]
    endings = [PurePosixPath(name).suffix.lower() for name in names]
    sounding, seen = (sum(one in kind for one in endings) for kind in (ENDINGS, images.ENDINGS))
    return sounding > seen


def read_sounds(path: Path, *, length: int | None = None, skip_bad: int = 0) -> Raw:
    """Windows of ``length`` samples (4096)."""
    length = length or LENGTH
    files, survey = listed(path, ENDINGS, "sounds")
    found = _scanned(files, survey)
    survey.require_few_bad(path, skip_bad)
    if not found:
        reason = f"{shown(path)} holds no readable sound"
        raise Refusal("DATA-070", reason, way_out="mend its files")
    rate = _one_rate(path, found)
    windows = [one.length // length for _, one in found]
    if not sum(windows):
        longest = max(one.length for _, one in found)
        reason = f"the longest sound of {shown(path)} has {longest} samples, and a window {length}"
        raise Refusal("DATA-072", reason, way_out=f"give --size {longest} or less")
    counts = {one.channels for _, one in found}
    channels = counts.pop() if len(counts) == 1 else 1
    if counts:
        survey.notes.append("files differ in their channels: each is averaged to one")
    short = sum(count == 0 for count in windows)
    if short:
        survey.notes.append(f"{short} files are shorter than {length} samples, and left out")
    rows = room(sum(windows), (channels, length), np.dtype(np.float32))
    start = 0
    for (file, _), count in zip(found, windows, strict=True):
        samples = decoded(file.read()).samples[:, : count * length]
        if len(samples) != channels:
            samples = samples.mean(0, keepdims=True)
        rows[start : start + count] = samples.reshape(channels, count, length).transpose(1, 0, 2)
        start += count
    survey.sizes[f"{length} samples"] += len(rows)
    of_file = torch.arange(len(found)).repeat_interleave(torch.tensor(windows))
    labels, names, given = meanings([file.name for file, _ in found])
    parts = _parts([one for _, one in found], windows) if given is None else given[of_file]
    return Raw(
        kept(rows),
        Series(channels, length, rate),
        survey,
        None if labels is None else labels[of_file],
        names,
        parts,
        {"files": len(found), "rate": rate},
    )


def survey_sounds(path: Path) -> Survey:
    """What is in there, every file read to its end, and nothing refused."""
    files, survey = listed(path, ENDINGS, "sounds")
    for _, one in _scanned(files, survey):
        survey.sizes[f"{one.length} samples"] += 1
    return survey


@dataclass(frozen=True)
class _Scan:
    channels: int
    length: int
    rate: int
    digest: bytes


def _scanned(files: list[File], survey: Survey) -> list[tuple[File, _Scan]]:
    """What each file holds; the broken ones are noted in the survey."""
    found = []
    for file in files:
        try:
            content = file.read()
            sound = decoded(content)
        except Broken as broken:
            survey.bad.append((file.name, str(broken)))
            continue
        except (OSError, RuntimeError, ValueError) as error:
            survey.bad.append((file.name, f"cannot be opened ({error})"))
            continue
        digest = hashlib.blake2b(content, digest_size=16).digest()
        survey.modes[f"{sound.rate} Hz, {len(sound.samples)} channels, {sound.mode}"] += 1
        channels, length = sound.samples.shape
        found.append((file, _Scan(channels, length, sound.rate, digest)))
    return found


def _one_rate(path: Path, found: list[tuple[File, _Scan]]) -> int:
    first, known = found[0]
    for file, one in found:
        if one.rate != known.rate:
            raise Refusal(
                "DATA-071",
                f"the sounds of {shown(path)} differ in rate: {shown(first.name)} has {known.rate} "
                f"samples a second, {shown(file.name)} {one.rate}",
                way_out="bring all to one rate, with another program, or leave some out",
            )
    return known.rate


def _parts(scans: list[_Scan], windows: list[int]) -> Tensor:
    """Training, validation or test for every window."""
    if len(scans) >= FEW_FILES:
        order = sorted(range(len(scans)), key=lambda index: scans[index].digest)
        count = round(HELD_OUT * len(scans))
        which = torch.full((len(scans),), TRAIN)
        which[order[:count]], which[order[count : 2 * count]] = TEST, VALID
        return which.repeat_interleave(torch.tensor(windows))
    parts = []
    for count in windows:
        place = torch.arange(count) / max(count, 1)
        given = torch.full((count,), TRAIN)
        given[place >= 0.9], given[place >= 0.95] = VALID, TEST
        parts.append(given)
    return torch.cat(parts)


def decoded(content: bytes) -> Sound:
    """The sound that the bytes of a WAV file hold.

    Raises:
        Broken: for what is no such file, breaks off, or holds samples of another kind.
    """
    if len(content) < 12 or content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise Broken("is no WAV file, whatever its name says")
    chunks = _chunks(content)
    form, data = chunks.get(b"fmt "), chunks.get(b"data")
    if form is None or data is None or len(form) < 16:
        raise Broken("has no samples or does not say of what kind they are")
    tag, channels, rate, _, block, bits = struct.unpack("<HHIIHH", form[:16])
    if tag == EXTENSIBLE and len(form) >= 26:
        tag = int.from_bytes(form[24:26], "little")
    if (tag, bits) not in TYPES:
        raise Broken(f"holds samples of {bits} bits in the format {tag}, which is not read")
    if not 1 <= channels <= MOST_CHANNELS or not rate or block != channels * bits // 8:
        raise Broken(f"says of itself {channels} channels, {rate} samples a second: damaged")
    data = data[: len(data) // block * block]
    samples = _samples(data, tag, bits).reshape(-1, channels).T
    if not samples.size:
        raise Broken("holds no samples")
    if not np.isfinite(samples).all():
        raise Broken("holds samples that are no finite numbers")
    mode = f"{bits} bits" if tag == PCM else f"reals of {bits} bits"
    return Sound(samples, rate, mode)


def _chunks(content: bytes) -> dict[bytes, bytes]:
    """The chunks of a RIFF file by name, the first of each."""
    found: dict[bytes, bytes] = {}
    place = 12
    while place + 8 <= len(content):
        name, size = (
            content[place : place + 4],
            struct.unpack("<I", content[place + 4 : place + 8])[0],
        )
        inside = content[place + 8 : place + 8 + size]
        if len(inside) < size and name == b"data":
            raise Broken(f"breaks off: it holds {len(inside)} of {size} bytes of samples")
        found.setdefault(name, inside)
        # Chunks begin at even places.
        place += 8 + size + size % 2
    return found


def _samples(data: bytes, tag: int, bits: int) -> np.ndarray:
    """Samples from -1 to 1, float32; eight bits are unsigned, with silence at 128."""
    if (tag, bits) == (PCM, 24):
        three = np.frombuffer(data, np.uint8).reshape(-1, 3)
        whole = np.zeros((len(three), 4), np.uint8)
        whole[:, 1:] = three
        return (whole.view("<i4")[:, 0] / 2.0**31).astype(np.float32)
    values = np.frombuffer(data, TYPES[tag, bits])
    if tag == REAL:
        return values.astype(np.float32)
    if bits == 8:
        return ((values.astype(np.float32) - 128) / 128).astype(np.float32)
    return (values / math.ldexp(1.0, bits - 1)).astype(np.float32)
