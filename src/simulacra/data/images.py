"""Images of a user: a folder, a zip, or a single file, in any mix of formats and modes.

All come out alike: as many channels and levels as the richest of them needs (gray stays gray, 16 bits
stay 16 bits, an alpha channel stays unless it is opaque everywhere), upright by their EXIF orientation,
and of one size. Files are named when they cannot be read; nothing is made up for them.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from simulacra.data.dataset import Rows
from simulacra.data.metadata import NAMES, Conditions, Metadata, conditions_of, metadata_of
from simulacra.data.raw import Raw, Survey, kept, room
from simulacra.data.sources import File, beside, listed, meanings
from simulacra.refusals import Refusal, shown
from simulacra.spaces import Images, Labels, Space

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".pgm", ".ppm")
MOST_PIXELS = 64_000_000
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)

GRAY, DEEP = ("1", "L"), ("I", "I;16", "I;16B", "I;16L", "I;16N")
COLOUR, CLEAR = ("RGB", "CMYK", "YCbCr", "LAB", "HSV", "P"), ("RGBA", "LA", "PA", "La", "RGBa")


@dataclass(frozen=True)
class _Header:
    """What an image says of itself before its pixels are read; height and width are upright."""

    height: int
    width: int
    channels: int
    deep: bool
    mode: str
    flattened: bool
    """Whether it has 16 bits a colour, of which the decoder gives 8."""


def is_images(path: Path) -> bool:
    """Whether ``path`` is a folder, a zip or an image file by its ending."""
    return path.is_dir() or path.suffix.lower() in (".zip", *ENDINGS)


def read_images(
    path: Path,
    *,
    size: int | None = None,
    skip_bad: int = 0,
    conditional: bool = False,
    label: str | None = None,
    like: Space | None = None,
) -> Raw:
    """The images of a folder (at any depth), a zip or one file, and what each goes with.

    That is its folder's name or, if one is asked for by ``conditional`` or by the names of its columns,
    ``label``, what metadata.csv says. ``like``: the space of conditions of a trained model.
    """
    files, survey = listed(path, ENDINGS, "images")
    told = metadata_of(path) if conditional or label is not None else None
    if told is None and label is not None:
        reason = f"--label names a column, and {shown(path)} has no {NAMES[0]}"
        raise Refusal("CFG-074", reason, way_out="write one, or leave it out: folders are classes")
    if told is None and beside(path, NAMES):
        survey.notes.append(f"{NAMES[0]} beside images is read with --conditional or --label")
    own = files if told is None else told.named(files, survey)
    if told is not None:
        words = f"{len(own)} of {len(files)} images have a line in {told.path.name}"
        survey.notes.append(f"{words}, whose columns are {', '.join(told.columns)}")
    rows, space, names = _read(path, own, survey, size, skip_bad)
    labels, label_names, given = meanings(names)
    if labels is not None and isinstance(like, Labels) and set(label_names) <= set(like.names):
        code = torch.tensor([like.names.index(name) for name in label_names])
        labels, label_names = code[labels], like.names
    raw = Raw(rows, space, survey, labels, label_names, given)
    return raw if told is None else _with_conditions(raw, told, label, names, files, size, like)


def _read(
    path: Path, files: list[File], survey: Survey, size: int | None, skip_bad: int | None
) -> tuple[Rows, Images, list[str]]:
    """Images of one size as rows of one space, and the names of those that could be read."""
    headers = _scanned(files, survey)
    survey.require_few_bad(path, skip_bad)
    good = [file for file, header in zip(files, headers, strict=True) if header is not None]
    known = [header for header in headers if header is not None]
    if not known:
        raise Refusal(
            "DATA-012", f"{shown(path)} holds no readable image", way_out="mend its files"
        )
    height, width = (size, size) if size else _one_size(path, good, known)
    channels, deep = max(one.channels for one in known), any(one.deep for one in known)
    dtype = np.dtype(np.int32 if deep else np.uint8)
    rows = room(len(good), (channels, height, width), dtype)
    opaque, whole = _decode_into(rows, good, survey, resize=size is not None, deep=deep)
    survey.require_few_bad(path, skip_bad)
    if not all(whole):
        rows = rows[np.flatnonzero(whole)]
        good = [file for file, fine in zip(good, whole, strict=True) if fine]
    if channels == 4 and opaque:
        rows, channels = rows[:, :3], 3
        survey.notes.append("every image has an alpha channel that is opaque: it is left out")
    space = Images(channels, height, width, levels=65536 if deep else 256)
    return kept(rows), space, [file.name for file in good]


def _with_conditions(
    raw: Raw,
    told: Metadata,
    label: str | None,
    names: list[str],
    files: list[File],
    size: int | None,
    like: Space | None,
) -> Raw:
    """The same rows with what metadata say that each goes with."""
    columns = told.chosen(label)
    pictures = told.images(columns[0], names, files) if len(columns) == 1 else None
    if pictures is not None:
        rows, space, _ = _read(told.path, pictures, Survey("images"), size, None)
        found = Conditions(torch.as_tensor(np.asarray(rows)), space)
    else:
        found = conditions_of(told, columns, names, like)
    raw = replace(raw, source=raw.source | {"columns": ",".join(columns)})
    if isinstance(found.space, Labels):
        return replace(raw, labels=found.rows, label_names=found.space.names)
    return replace(raw, conditions=found.rows, condition_space=found.space)


def read_one(path: Path, space: Images) -> Tensor:
    """One image as an element of ``space``, (1, *shape): in its channels, scaled and cut to its size."""
    if not path.is_file() or path.suffix.lower() not in ENDINGS:
        reason = f"{shown(path)} is no image file"
        raise Refusal("DATA-012", reason, way_out="give the path of one that is there")
    file = File(path.name, path.read_bytes)
    try:
        _header(file)
        pixels = _pixels(file, space.channels, space.levels > 256, (space.height, space.width))
    except _Broken as broken:
        raise Refusal("DATA-010", f"{shown(path)} {broken}", way_out="mend it") from broken
    return torch.from_numpy(pixels.astype(np.int32)).to(space.dtype)[None]


def survey_images(path: Path) -> Survey:
    """What is in there, every file read to its end, and nothing refused."""
    files, survey = listed(path, ENDINGS, "images")
    headers = _scanned(files, survey)
    for file, header in zip(files, headers, strict=True):
        if header is not None:
            try:
                _pixels(file, header.channels, header.deep, None)
            except _Broken as broken:
                survey.bad.append((file.name, str(broken)))
    return survey


class _Broken(Exception):
    """Why one file cannot be read, as the end of a sentence that begins with its name."""


def _opened(file: File) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(file.read()))
    except UnidentifiedImageError as error:
        raise _Broken("is not an image, whatever its name says") from error
    except (OSError, ValueError, SyntaxError, zipfile.BadZipFile, RuntimeError) as error:
        raise _Broken(f"cannot be opened ({error})") from error
    except Image.DecompressionBombError as error:
        raise _Broken("has too many pixels") from error
    if image.width * image.height > MOST_PIXELS:
        raise _Broken(f"has {image.width} x {image.height} pixels, more than {MOST_PIXELS:,}")
    return image


def _header(file: File) -> _Header:
    image = _opened(file)
    mode = image.mode
    if mode not in (*GRAY, *DEEP, *COLOUR, *CLEAR):
        raise _Broken(f"has pixels of mode {mode}, which stand for no gray or colour")
    clear = mode in CLEAR or "transparency" in image.info
    channels = 4 if clear else 3 if mode in COLOUR else 1
    if mode == "P" and not clear:
        channels = 1 if _gray_palette(image) else 3
    try:
        turned = image.getexif().get(ORIENTATION) in TURNED
    except (OSError, ValueError, SyntaxError, TypeError, KeyError):
        turned = False
    height, width = (image.width, image.height) if turned else (image.height, image.width)
    flattened = image.format == "PNG" and mode not in DEEP and _png_depth(file) == 16
    return _Header(height, width, channels, mode in DEEP, mode, flattened)


def _gray_palette(image: Image.Image) -> bool:
    palette = image.getpalette() or []
    return all(
        palette[i] == palette[i + 1] == palette[i + 2] for i in range(0, len(palette) - 2, 3)
    )


def _png_depth(file: File) -> int:
    head = file.read()[:25]
    return head[24] if len(head) == 25 else 8


def _scanned(files: Sequence[File], survey: Survey) -> list[_Header | None]:
    def look(file: File) -> _Header | str:
        try:
            return _header(file)
        except _Broken as broken:
            return str(broken)

    with ThreadPoolExecutor() as pool:
        told = list(pool.map(look, files))
    headers: list[_Header | None] = []
    for file, one in zip(files, told, strict=True):
        headers.append(one if isinstance(one, _Header) else None)
        if isinstance(one, _Header):
            survey.sizes[f"{one.width} x {one.height}"] += 1
            survey.modes[one.mode] += 1
        else:
            survey.bad.append((file.name, one))
    flattened = sum(one.flattened for one in headers if one is not None)
    if flattened:
        survey.notes.append(f"{flattened} colour images of 16 bits are read with 8 bits a channel")
    if survey.modes.get("CMYK"):
        survey.notes.append(f"{survey.modes['CMYK']} CMYK images are turned into RGB")
    return headers


def _one_size(path: Path, files: list[File], headers: list[_Header]) -> tuple[int, int]:
    first = headers[0]
    for file, one in zip(files, headers, strict=True):
        if (one.height, one.width) != (first.height, first.width):
            raise Refusal(
                "DATA-014",
                f"the images of {shown(path)} differ in size: {shown(files[0].name)} has "
                f"{first.width} x {first.height} pixels, {shown(file.name)} {one.width} x {one.height}",
                way_out="say which size they should get, such as --size 32",
            )
    return first.height, first.width


def _decode_into(
    rows: np.ndarray, files: list[File], survey: Survey, *, resize: bool, deep: bool
) -> tuple[bool, list[bool]]:
    """Fill ``rows``; returns whether all alpha is opaque, and which files could be read."""
    channels, height, width = rows.shape[1:]
    size = (height, width) if resize else None

    def fill(job: tuple[int, File]) -> str | None:
        index, file = job
        try:
            rows[index] = _pixels(file, channels, deep, size)
        except _Broken as broken:
            return str(broken)
        return None

    with ThreadPoolExecutor() as pool:
        told = list(pool.map(fill, enumerate(files)))
    for file, reason in zip(files, told, strict=True):
        if reason is not None:
            survey.bad.append((file.name, reason))
    whole = [reason is None for reason in told]
    most = 65535 if deep else 255
    opaque = channels == 4 and all(
        bool((rows[i, 3] == most).all()) for i, fine in enumerate(whole) if fine
    )
    return opaque, whole


def _pixels(file: File, channels: int, deep: bool, size: tuple[int, int] | None) -> np.ndarray:
    """The pixels of one file, shape (channels, height, width)."""
    image = _opened(file)
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        was_deep = image.mode in DEEP
        if not was_deep:
            image = image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
        image = image if size is None else _fitted(image, *size)
    except (OSError, ValueError, SyntaxError, TypeError, EOFError) as error:
        raise _Broken(f"breaks off or is damaged ({error})") from error
    pixels = np.asarray(image).astype(np.int64 if was_deep else np.uint8)
    if was_deep and (pixels.min() < 0 or pixels.max() > 65535):
        raise _Broken("has values beyond 16 bits")
    if deep and not was_deep:
        pixels = pixels.astype(np.int64) * 257
    if pixels.ndim == 2:
        # A deep gray image among colour ones: the same gray in all colours, and opaque.
        pixels = np.repeat(pixels[None], channels, 0)
        if channels == 4:
            pixels[3] = 65535 if deep else 255
        return pixels
    return pixels.transpose(2, 0, 1)


def _fitted(image: Image.Image, height: int, width: int) -> Image.Image:
    """Scaled until the shorter side fits, and cut to its middle; averages over what it shrinks."""
    if (image.height, image.width) == (height, width):
        return image
    if image.mode in DEEP:
        image = image.convert("F")
    scale = max(height / image.height, width / image.width)
    across, down = width / scale, height / scale
    left, top = (image.width - across) / 2, (image.height - down) / 2
    box = (left, top, left + across, top + down)
    filter_ = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    resized = image.resize((width, height), filter_, box=box)
    if resized.mode == "F":
        values = np.clip(np.rint(np.asarray(resized)), 0, 65535).astype(np.uint16)
        return Image.fromarray(values)
    return resized
