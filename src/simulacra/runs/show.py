"""What a long piece of work shows while it goes on: lines, and how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def _quiet(*_: object) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Show:
    """``line`` says something once; ``progress`` gets a share in [0, 1] and a few words, often."""

    line: Callable[[str], None] = _quiet
    progress: Callable[[float, str], None] = _quiet


QUIET = Show()
