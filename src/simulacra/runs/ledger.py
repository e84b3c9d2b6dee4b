"""The ledger of a run: one JSON line a report, only ever added to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simulacra.files import write_bytes, writing

LEDGER = "ledger.jsonl"


class Ledger:
    """Lines of a run, each with its round; without a folder nothing is kept."""

    def __init__(self, folder: Path | None, *, upto_round: int = 0) -> None:
        """Continue the ledger in ``folder``; lines after ``upto_round`` will come again, and go."""
        self.path = None if folder is None else folder / LEDGER
        if self.path is not None:
            kept = [line for line in read_ledger(self.path.parent) if line["round"] <= upto_round]
            text = "".join(json.dumps(line) + "\n" for line in kept)
            write_bytes(self.path, text.encode())

    def add(self, line: Mapping[str, Any]) -> None:
        if self.path is None:
            return
        with writing(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(dict(line)) + "\n")


def read_ledger(folder: Path) -> list[dict[str, Any]]:
    """All whole lines; the last one may have been cut by a kill, and is then left out."""
    path = folder / LEDGER
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
