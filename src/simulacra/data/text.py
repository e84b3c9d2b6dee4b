"""Plain text as sequences of characters: one part of it after the other, cut into equal lengths."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor

from simulacra.data.raw import TEST, TRAIN, VALID, Raw, Survey, memory_limit
from simulacra.refusals import Refusal, shown
from simulacra.spaces import Tokens

ENDINGS = (".txt", ".txt.gz", ".text")
LENGTH = 128
MOST_CHARACTERS = 512


def is_text(path: Path) -> bool:
    """Whether ``path`` is plain text by its ending."""
    return path.name.lower().endswith(ENDINGS)


def read_text(path: Path, *, length: int | None = None, like: Tokens | None = None) -> Raw:
    """Pieces of ``length`` characters (128); of more than 512 different ones, of UTF-8 bytes.

    The text's first nine tenths are for training, then a twentieth each for validation and test, so
    that neighbours stay together. ``like``: texts that a model was trained on, to read this one as.
    """
    length = length or (like.length if like else LENGTH)
    content = _content(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"{shown(path)} is no UTF-8 text (byte {error.start})"
        raise Refusal("DATA-041", reason, way_out="save it as UTF-8") from error
    characters = list(like.alphabet) if like else sorted(set(text))
    strange = sorted(set(text) - set(characters)) if like and like.alphabet else []
    if strange:
        reason = f"{shown(path)} has {shown(''.join(strange))}, which the run has never seen"
        raise Refusal(
            "DATA-044", reason, way_out="leave such characters out, or train on both texts"
        )
    if not (like and like.utf8) and len(characters) <= MOST_CHARACTERS:
        places = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        alphabet = np.array([ord(one) for one in characters], np.uint32)
        codes, unit = np.searchsorted(alphabet, places).astype(np.int64), "characters"
        space = Tokens(length, len(characters), "".join(characters))
    else:
        codes, unit = np.frombuffer(content, np.uint8).astype(np.int64), "UTF-8 bytes"
        space = Tokens(length, 256, utf8=True)
    pieces = len(codes) // length
    if not pieces:
        reason = f"{shown(path)} holds {len(codes)} {unit}, less than one piece of {length}"
        raise Refusal("DATA-042", reason, way_out="give more text, or a smaller --size")
    survey = Survey("text")
    survey.sizes[f"{length} {unit}"] += pieces
    rows = torch.from_numpy(codes[: pieces * length].reshape(pieces, length))
    place = torch.arange(pieces) / pieces
    given = torch.full((pieces,), TRAIN)
    given[place >= 0.9], given[place >= 0.95] = VALID, TEST
    return Raw(rows, space, survey, given=given)


def texts(x: Tensor, space: Tokens) -> list[str]:
    """Sequences (n, length) as the texts that they stand for; broken UTF-8 shows as �."""
    if space.utf8:
        return [bytes(row).decode("utf-8", "replace") for row in x.tolist()]
    return ["".join(space.alphabet[code] for code in row) for row in x.tolist()]


def encoded(lines: Sequence[str], space: Tokens, what: object) -> Tensor:
    """Lines of text as sequences (n, length) of ``space``, with blanks behind those that are shorter."""
    code = {character: index for index, character in enumerate(space.alphabet)}
    rows = torch.full((len(lines), space.length), code[" "])
    for row, line in zip(rows, lines, strict=True):
        if len(line) > space.length:
            reason = f"{shown(what)} has {shown(line)}, of {len(line)} characters"
            raise Refusal("DATA-048", reason, way_out=f"shorten it to {space.length}")
        strange = sorted(set(line) - set(code))
        if strange:
            reason = f"{shown(what)} has {shown(''.join(strange))}, which the run has never seen"
            raise Refusal("DATA-044", reason, way_out=f"use only {shown(space.alphabet)}")
        row[: len(line)] = torch.tensor([code[one] for one in line], dtype=torch.int64)
    return rows


def is_readable(space: object) -> TypeGuard[Tokens]:
    """Whether elements of ``space`` are text."""
    return isinstance(space, Tokens) and bool(space.alphabet or space.utf8)


def _content(path: Path) -> bytes:
    limit = memory_limit() // 16
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as file:
            content = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = f"{shown(path)} cannot be read ({error})"
        raise Refusal("DATA-040", reason, way_out="unpack it, or write it again") from error
    if len(content) > limit:
        reason = f"{shown(path)} holds more than {limit / 2**20:.0f} MiB of text"
        raise Refusal("DATA-043", reason, way_out="cut it into parts")
    return content
