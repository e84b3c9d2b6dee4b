"""Files of a user: a folder at any depth, a zip, or a single one; and what their places say of them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from simulacra.data.raw import TEST, TRAIN, VALID, Survey, named_labels
from simulacra.refusals import Refusal, shown

MOST_BYTES = 512 * 2**20
GIVEN = {"train": TRAIN, "training": TRAIN, "val": VALID, "valid": VALID, "validation": VALID}
GIVEN |= {"test": TEST, "testing": TEST}


@dataclass(frozen=True)
class File:
    """One file of the set: its name inside it, and how to get at its bytes."""

    name: str
    read: Callable[[], bytes]


def listed(path: Path, endings: Sequence[str], kind: str) -> tuple[list[File], Survey]:
    """The files in a folder (at any depth), a zip, or the one file; refused where there are none.

    ``kind`` says in the plural what files with one of these ``endings`` are.
    """
    survey = Survey(kind)
    if path.is_dir():
        files = _in_folder(path, tuple(endings), survey)
    elif path.suffix.lower() == ".zip":
        files = _in_zip(path, tuple(endings), survey)
    else:
        files = [File(path.name, path.read_bytes)]
    if not files:
        others = f" ({survey.ignored} files of other kinds)" if survey.ignored else ""
        raise Refusal(
            "DATA-012",
            f"{shown(path)} holds no {kind}{others}",
            way_out=f"put files in it that end in {', '.join(endings[:6])}",
        )
    return files, survey


def beside(path: Path, names: Sequence[str]) -> list[File]:
    """Files that end like ``names``, in a folder or a zip; none where ``path`` is something else."""
    if path.is_dir():
        return _in_folder(path, tuple(names), Survey("files"))
    if path.suffix.lower() == ".zip":
        return _in_zip(path, tuple(names), Survey("files"))
    return []


def _in_folder(path: Path, endings: tuple[str, ...], survey: Survey) -> list[File]:
    root, files = path.resolve(), []
    for one in sorted(path.rglob("*")):
        name = one.relative_to(path).as_posix()
        if not one.is_file() or any(part.startswith(".") for part in PurePosixPath(name).parts):
            continue
        if not one.name.lower().endswith(endings):
            survey.ignored += 1
        elif not one.resolve().is_relative_to(root):
            survey.bad.append((name, "is a link that leads out of the folder"))
        elif one.stat().st_size > MOST_BYTES:
            survey.bad.append((name, f"is larger than {MOST_BYTES // 2**20} MiB"))
        else:
            files.append(File(name, one.read_bytes))
    return files


def opened_zip(path: Path) -> zipfile.ZipFile:
    """The archive at ``path``."""
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        reason = f"{shown(path)} is no zip file ({error})"
        raise Refusal("DATA-013", reason, way_out="pack it again") from error


def _in_zip(path: Path, endings: tuple[str, ...], survey: Survey) -> list[File]:
    archive, files = opened_zip(path), []
    for entry in sorted(archive.infolist(), key=lambda entry: entry.filename):
        name = PurePosixPath(entry.filename)
        hidden = any(part.startswith((".", "__MACOSX")) for part in name.parts)
        if entry.is_dir() or hidden:
            continue
        if not name.name.lower().endswith(endings):
            survey.ignored += 1
        elif entry.file_size > MOST_BYTES:
            survey.bad.append((entry.filename, f"is larger than {MOST_BYTES // 2**20} MiB"))
        else:

            def read(entry: zipfile.ZipInfo = entry) -> bytes:
                with archive.open(entry) as file:
                    # An entry may hold more than its header says.
                    return file.read(entry.file_size)

            files.append(File(entry.filename, read))
    return files


def meanings(names: Sequence[str]) -> tuple[Tensor | None, tuple[str, ...], Tensor | None]:
    """Labels, their names and given parts, from where in the tree the files stand.

    Folders on top that are all called train, valid or test give parts; the folder of a file is its
    class when there are at least two such folders and no image outside of one.
    """
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    # A zip often wraps everything in one folder.
    while folders and all(one and one[0] == folders[0][0] for one in folders):
        if len(set(folders)) == 1:
            return None, (), None
        folders = [one[1:] for one in folders]
    given = None
    tops = {one[0].lower() if one else "" for one in folders}
    if len(tops) > 1 and tops <= set(GIVEN):
        given = torch.tensor([GIVEN[one[0].lower()] for one in folders])
        folders = [one[1:] for one in folders]
    classes = ["/".join(one) for one in folders]
    if len(set(classes)) < 2 or "" in classes:
        return None, (), given
    labels, order = named_labels(classes)
    return labels, order, given
