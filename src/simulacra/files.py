"""Files that are either whole or not there.

Everything that Simulacra keeps is written beside its final name, flushed to the disk, and renamed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simulacra.refusals import Refusal, shown


@contextmanager
def writing(what: Path) -> Iterator[None]:
    """Turn a full disk or a refused write into one line that names what could not be kept."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            free = shutil.disk_usage(_existing(what)).free / 2**20
            reason = f"no space to write {shown(what)}, {free:.1f} MiB free on its disk"
            raise Refusal("IO-007", reason, way_out="free some space, or give --out") from error
        reason = f"cannot write {shown(what)} ({error.strerror})"
        raise Refusal("IO-001", reason, way_out="check the folder, or give another") from error


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def sync_folder(folder: Path) -> None:
    """Flush a folder's own entries to the disk (a rename is not kept before that)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, content: bytes, *, atomic: bool = True) -> None:
    """Write ``content`` to ``path`` and flush it; with ``atomic`` under a temporary name first."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not atomic:
            _write_synced(path, content)
            return
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            _write_synced(Path(temporary), content)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def _write_synced(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Mapping[str, Any], *, atomic: bool = True) -> None:
    """Write one JSON object, readable by people."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_bytes(path, text.encode(), atomic=atomic)


def read_json(path: Path, *, largest: int = 16 * 2**20) -> dict[str, Any]:
    """Read one JSON object; anything else is refused by name."""
    if not path.is_file():
        raise Refusal("FILE-001", f"{shown(path)} is not there", way_out="check the path")
    if path.stat().st_size > largest:
        reason = f"{shown(path)} is larger than {largest // 2**20} MiB"
        raise Refusal("FILE-002", reason, way_out="it is no file that Simulacra wrote")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        reason = f"{shown(path)} is not JSON ({error})"
        raise Refusal("FILE-003", reason, way_out="restore it from a copy") from error
    if not isinstance(value, dict):
        reason = f"{shown(path)} holds no JSON object"
        raise Refusal("FILE-003", reason, way_out="restore it from a copy")
    return value


def sha256(content: bytes) -> str:
    """The SHA-256 of ``content``, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
