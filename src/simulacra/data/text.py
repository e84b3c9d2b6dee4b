"""Plain text as sequences of characters: one part of it after the other, cut into equal lengths."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch

from simulacra.data.raw import TEST, TRAIN, VALID, Raw, Survey, memory_limit
from simulacra.refusals import Refusal, shown
from simulacra.spaces import Tokens

ENDINGS = (".txt", ".txt.gz", ".text")
LENGTH = 128
MOST_CHARACTERS = 512


def is_text(path: Path) -> bool:
    """Whether ``path`` is plain text by its ending."""
    return path.name.lower().endswith(ENDINGS)


def read_text(path: Path, *, length: int | None = None) -> Raw:
    """Pieces of ``length`` characters (128); of more than 512 different ones, of UTF-8 bytes.

    The text's first nine tenths are for training, then a twentieth each for validation and test, so
    that neighbours stay together. The alphabet, in the order of its codes, is kept in the source.
    """
    length = length or LENGTH
    content = _content(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"{shown(path)} is no UTF-8 text (byte {error.start})"
        raise Refusal("DATA-041", reason, way_out="save it as UTF-8") from error
    characters = sorted(set(text))
    if len(characters) <= MOST_CHARACTERS:
        places = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        alphabet = np.array([ord(one) for one in characters], np.uint32)
        codes, unit = np.searchsorted(alphabet, places).astype(np.int64), "characters"
        vocabulary, source = len(characters), {"alphabet": "".join(characters)}
    else:
        codes, unit = np.frombuffer(content, np.uint8).astype(np.int64), "UTF-8 bytes"
        vocabulary, source = 256, {}
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
    space = Tokens(length, vocabulary)
    return Raw(rows, space, survey, given=given, source=dict(source))


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
