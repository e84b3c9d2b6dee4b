"""Checkpoints: whole or not there, verified before use, and never pickled.

A checkpoint is a folder with tensors (safetensors), plain numbers (JSON) and a manifest of SHA-256
digests. It is written under a temporary name, flushed, and renamed; the older ones go only after the
new one is whole. The newest one that verifies is used, and a damaged one is named.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from simulacra.files import read_json, sha256, sync_folder, write_bytes, write_json, writing
from simulacra.refusals import Refusal, shown

FOLDER = "checkpoints"
FORMAT = 1
KEPT = 2


def save(run: Path, rounds: int, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> Path:
    """Publish the state of round ``rounds``; older checkpoints beyond the last two go afterwards."""
    parent = run / FOLDER
    final = parent / f"step-{rounds:09d}"
    if final.exists() and _damage(final) is None:
        return final
    content = {
        "state.safetensors": safetensors.torch.save(
            {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        ),
        "state.json": json.dumps({"format": FORMAT, **plain}).encode(),
    }
    _require_room(parent, sum(map(len, content.values())))
    temporary = parent / f".writing-{final.name}"
    with writing(final):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            for name, blob in content.items():
                write_bytes(temporary / name, blob, atomic=False)
            digests = {name: sha256(blob) for name, blob in content.items()}
            write_json(temporary / "manifest.json", digests, atomic=False)
            sync_folder(temporary)
            shutil.rmtree(final, ignore_errors=True)
            os.rename(temporary, final)
            sync_folder(parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    for old in _all(run)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _require_room(parent: Path, size: int) -> None:
    existing = parent
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < 1.2 * size:
        raise Refusal(
            "IO-007",
            f"no space for a checkpoint in {shown(parent)}: it needs {size / 2**20:.1f} MiB and "
            f"{free / 2**20:.1f} MiB are free",
            way_out="free some space, or give another --out",
        )


def load_newest(
    run: Path, warn: Callable[[str], None]
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint that verifies, or None when there has never been one.

    A damaged one is named through ``warn``; when every one is damaged, that is a refusal, and never a
    silent fresh start.
    """
    found = _all(run)
    for path in found:
        damage = _damage(path)
        if damage is None:
            plain = read_json(path / "state.json")
            return safetensors.torch.load((path / "state.safetensors").read_bytes()), plain
        warn(f"checkpoint {shown(path)} is damaged ({damage}) and is passed over")
    if found:
        raise Refusal(
            "CKPT-010",
            f"every checkpoint in {shown(run / FOLDER)} is damaged",
            way_out="restore one from a copy, or train anew with another --out",
        )
    return None


def _all(run: Path) -> list[Path]:
    """Published checkpoints, newest first."""
    return sorted((run / FOLDER).glob("step-*"), reverse=True)


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None when every byte is as it was written."""
    try:
        digests = read_json(path / "manifest.json")
        for name in ("state.safetensors", "state.json"):
            if sha256((path / name).read_bytes()) != digests.get(name):
                return f"{name} does not match its SHA-256"
        if read_json(path / "state.json").get("format") != FORMAT:
            return "it was written in another format"
    except (Refusal, OSError) as error:
        return str(error).partition(";")[0]
    return None
