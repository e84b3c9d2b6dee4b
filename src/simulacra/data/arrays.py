"""Arrays: IDX files (MNIST's format), .npy and .npz; pickled objects are never read.

Integers of three dimensions (n, height, width) or four are images; reals of two (n, size) are
vectors, of three (n, channels, length) signals. What an array cannot say by its shape is refused.
"""

from __future__ import annotations

import gzip
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simulacra.data.raw import Raw, Survey, kept, memory_limit, named_labels, room
from simulacra.refusals import Refusal, shown
from simulacra.spaces import Images, Series, Space, Tokens, Vectors

ENDINGS = (".npy", ".npz", ".idx", ".idx.gz", "-ubyte", "-ubyte.gz")
IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
DATA_NAMES = ("x", "X", "data", "images", "image", "x_train", "features", "arr_0", "tokens")
LABEL_NAMES = ("y", "Y", "label", "labels", "target", "targets", "y_train", "arr_1")
CHANNELS = (1, 3, 4)


def is_array(path: Path) -> bool:
    """Whether ``path`` is an array file by its ending."""
    return path.name.lower().endswith(ENDINGS)


def read_array(path: Path) -> Raw:
    """The rows of an array file; an .npz may hold labels beside them."""
    labels: Tensor | None = None
    names: tuple[str, ...] = ()
    survey, tokens = Survey("array"), False
    if path.suffix.lower() == ".npz":
        array, beside, tokens = _from_npz(path, survey)
        if beside is not None:
            labels, names = _labels(path, beside, len(array))
    elif path.suffix.lower() == ".npy":
        array = _from_npy(path)
    else:
        array = read_idx(path)
    survey.modes[str(array.dtype)] += 1
    survey.sizes[" x ".join(map(str, array.shape[1:]))] += len(array)
    space, rows = as_elements(array, path, tokens=tokens)
    return Raw(kept(rows), space, survey, labels, names)


def as_elements(
    array: np.ndarray, what: object, *, tokens: bool = False
) -> tuple[Space, np.ndarray]:
    """The space that an array of shape (n, …) holds, and its rows as that space stores them."""
    if array.ndim < 2 or 0 in array.shape:
        reason = f"{shown(what)} holds an array of shape {array.shape}"
        raise Refusal("DATA-020", reason, way_out="give one row a datum: (n, …), none of them 0")
    if array.dtype == bool:
        array = array.astype(np.uint8)
        return _images(array, 2, what)
    if np.issubdtype(array.dtype, np.integer) and (array.ndim > 2 or tokens):
        low, high = int(array.min()), int(array.max())
        if low < 0 or high > 65535:
            reason = f"{shown(what)} holds integers from {low} to {high}"
            raise Refusal("DATA-021", reason, way_out="images have 0 to 255, or to 65535")
        if tokens and array.ndim == 2:
            return Tokens(array.shape[1], high + 1), array.astype(np.int64)
        deep = high > 255 or array.dtype == np.uint16
        return _images(array, 65536 if deep else 256, what)
    if not np.issubdtype(array.dtype, np.number) or np.issubdtype(array.dtype, np.complexfloating):
        reason = f"{shown(what)} holds an array of {array.dtype}"
        raise Refusal("DATA-022", reason, way_out="give integers for images, or reals for vectors")
    return _reals(array, what)


def _images(array: np.ndarray, levels: int, what: object) -> tuple[Space, np.ndarray]:
    if array.ndim == 2:
        return Vectors(array.shape[1]), array.astype(np.float32)
    if array.ndim == 3:
        array = array[:, None]
    elif (
        array.ndim == 4
        and array.shape[3] in CHANNELS
        and (array.shape[1] not in CHANNELS or array.shape[3] <= array.shape[1])
    ):
        array = array.transpose(0, 3, 1, 2)
    elif array.ndim != 4 or array.shape[1] not in CHANNELS:
        reason = f"{shown(what)} holds integers of shape {array.shape}"
        way_out = "images are (n, height, width), (n, height, width, channels) or (n, channels, …)"
        raise Refusal("DATA-023", reason, way_out=way_out)
    _, channels, height, width = array.shape
    space = Images(channels, height, width, levels)
    wanted = np.uint8 if levels <= 256 else np.int32
    return space, array if array.dtype == wanted else array.astype(wanted)


def _reals(array: np.ndarray, what: object) -> tuple[Space, np.ndarray]:
    for start in range(0, len(array), 4096):
        part = array[start : start + 4096]
        fine = np.isfinite(part).reshape(len(part), -1).all(1)
        if not fine.all():
            row = start + int(np.flatnonzero(~fine)[0])
            reason = f"row {row} of {shown(what)} holds a value that is not finite"
            raise Refusal("DATA-024", reason, way_out="leave such rows out, or fill them in")
    if array.ndim == 2:
        return Vectors(array.shape[1]), array.astype(np.float32, copy=False)
    if array.ndim == 3:
        return Series(array.shape[1], array.shape[2]), array.astype(np.float32, copy=False)
    reason = f"{shown(what)} holds reals of shape {array.shape}"
    way_out = "images are integers: write them as (255 * x).round().astype('uint8')"
    raise Refusal("DATA-025", reason, way_out=way_out)


def _damaged(path: Path, why: object) -> Refusal:
    reason = f"{shown(path)} cannot be read ({why})"
    return Refusal("DATA-026", reason, way_out="write it again, without pickled objects")


def _from_npy(path: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError) as error:
        raise _damaged(path, error) from error
    return array


def _from_npz(path: Path, survey: Survey) -> tuple[np.ndarray, np.ndarray | None, bool]:
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > memory_limit():
            raise Refusal(
                "DATA-027",
                f"{shown(path)} unpacks to {unpacked / 2**30:.1f} GiB, more than fits in memory here",
                way_out="save its array as .npy, which is read from the disk",
            )
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive.files)
            data = next((name for name in DATA_NAMES if name in names), None)
            if data is None and len(names) == 1:
                data = names[0]
            if data is None:
                reason = f"{shown(path)} holds the arrays {', '.join(names)}"
                raise Refusal("DATA-028", reason, way_out=f"call the data {DATA_NAMES[0]}")
            label = next((name for name in LABEL_NAMES if name in names and name != data), None)
            rest = [name for name in names if name not in (data, label)]
            if rest:
                survey.notes.append(f"not used: the arrays {', '.join(rest)}")
            beside = None if label is None else np.asarray(archive[label])
            return np.asarray(archive[data]), beside, data == "tokens"
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, error) from error


def _labels(path: Path, beside: np.ndarray, rows: int) -> tuple[Tensor, tuple[str, ...]]:
    whole = np.issubdtype(beside.dtype, np.number) and bool((beside == np.rint(beside)).all())
    if beside.shape not in ((rows,), (rows, 1)) or not (whole or beside.dtype.kind in "US"):
        reason = f"the labels in {shown(path)} have shape {beside.shape} and type {beside.dtype}"
        raise Refusal("DATA-029", reason, way_out=f"give one class for each of the {rows} rows")
    listed = beside.reshape(-1).tolist()
    return named_labels(str(int(one)) if whole else str(one) for one in listed)


def read_idx(path: Path) -> np.ndarray:
    """An IDX file, mapped from the disk where it is not packed."""
    packed = path.suffix.lower() == ".gz"
    try:
        with gzip.open(path) if packed else open(path, "rb") as file:
            kind, shape, offset = _idx_header(file.read(4 + 4 * 255), path)
        size = math.prod(shape) * kind.itemsize
        if not packed:
            if path.stat().st_size != offset + size:
                raise _damaged(
                    path, f"{path.stat().st_size} bytes, not the {offset + size} of {shape}"
                )
            return np.memmap(path, kind, "r", offset, shape)
        return _unpacked(path, kind, shape, offset)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, error) from error


def _idx_header(head: bytes, path: Path) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in IDX_TYPES or not head[3]:
        raise _damaged(path, "no IDX header")
    dimensions, offset = head[3], 4 + 4 * head[3]
    if len(head) < offset:
        raise _damaged(path, "it ends in its header")
    shape = struct.unpack(f">{dimensions}I", head[4:offset])
    return np.dtype(IDX_TYPES[head[2]]), shape, offset


def _unpacked(path: Path, kind: np.dtype[Any], shape: tuple[int, ...], offset: int) -> np.ndarray:
    """A packed IDX file row by row, so that a lying header cannot ask for more than there is."""
    row_bytes = math.prod(shape[1:]) * kind.itemsize
    if math.prod(shape) * kind.itemsize > 2000 * path.stat().st_size:
        raise _damaged(path, f"it cannot hold an array of {shape}")
    rows = room(shape[0], tuple(shape[1:]), kind)
    with gzip.open(path) as file:
        file.read(offset)
        for start in range(0, shape[0], 1024):
            count = min(1024, shape[0] - start)
            content = file.read(count * row_bytes)
            if len(content) != count * row_bytes:
                raise _damaged(path, f"it ends before row {start + len(content) // row_bytes}")
            part = np.frombuffer(content, kind).reshape(count, *shape[1:])
            rows[start : start + count] = part
        if file.read(1):
            raise _damaged(path, "there is more in it than its header says")
    return rows


def idx_labels(path: Path) -> Tensor:
    """The labels of an IDX file, shape (n,)."""
    return torch.from_numpy(np.array(read_idx(path)).astype(np.int64))
