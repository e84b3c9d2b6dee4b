"""Simulacra: every family of generative model behind one contract, on one honest ruler.

>>> import simulacra
>>> data = simulacra.open_data("digits")
>>> model = simulacra.build("independent", data.space)
>>> numbers = simulacra.fit(model, data, budget="1m")
>>> model.sample(16).shape
torch.Size([16, 1, 8, 8])

The names below are loaded when they are first used, so that ``import simulacra`` and
``simulacra --help`` do not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simulacra.data.open import open_data
    from simulacra.refusals import Refusal
    from simulacra.runs.training import fit
    from simulacra.shelf import build, entries, from_pretrained, save_pretrained

__version__ = "0.1.0"
__all__ = [
    "Refusal",
    "build",
    "entries",
    "fit",
    "from_pretrained",
    "open_data",
    "save_pretrained",
]

_HOMES = {
    "Refusal": "simulacra.refusals",
    "build": "simulacra.shelf",
    "entries": "simulacra.shelf",
    "fit": "simulacra.runs.training",
    "from_pretrained": "simulacra.shelf",
    "open_data": "simulacra.data.open",
    "save_pretrained": "simulacra.shelf",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'simulacra' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
