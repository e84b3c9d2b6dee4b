"""Front doors: from elements of a space to what a network eats, written once."""

from __future__ import annotations

from torch import Tensor, nn

from simulacra.refusals import Refusal, shown
from simulacra.spaces import Images, Labels, Space, Table

UNTOLD = "give one for each datum: `condition=`, or data that say what they go with"
"""The way out where a conditional model was given no condition."""


def centred(x: Tensor, levels: int) -> Tensor:
    """Integers 0..levels-1 as float32 in [-1, 1]."""
    return x.float() * (2 / (levels - 1)) - 1


def levels_of(x: Tensor, space: Images) -> Tensor:
    """The inverse of ``centred``: reals in [-1, 1], rounded and cut to elements of ``space``."""
    integers = ((x.float() + 1) * ((space.levels - 1) / 2)).round().clamp(0, space.levels - 1)
    return integers.to(space.dtype)


def one_hot_labels(condition: Tensor | None, labels: Labels | None, rows: int) -> Tensor | None:
    """Labels as rows of zeros and a one, shape (rows, count); None for an unconditional model."""
    if labels is None:
        return None
    if condition is None:
        reason = f"the model goes by {labels}, and was given none"
        raise Refusal("CFG-237", reason, way_out=UNTOLD)
    if len(condition) != rows:
        raise ValueError(f"{rows} rows need {rows} conditions, got {len(condition)}")
    return nn.functional.one_hot(condition.long(), labels.count).float()


def drawn_labels(condition: Tensor | None, labels: Labels | None, uniform: Tensor) -> Tensor | None:
    """The given labels or, for a conditional model that was given none, one for each uniform number."""
    if labels is None or condition is not None:
        return condition
    return (uniform.reshape(-1) * labels.count).long().clamp(max=labels.count - 1)


def require_no_missing(space: Space, *, who: str) -> None:
    """Refuse a table whose numbers may be missing, for a model that has no state for it."""
    if isinstance(space, Table) and space.may_miss:
        reason = (
            f"{who} has no way to say that a number is missing, as in {shown(space.may_miss[0])}"
        )
        way_out = "leave such rows or columns out, or choose gaussian-mixture, nade or a flow"
        raise Refusal("CFG-096", reason, way_out=way_out)


def as_device(x: Tensor, module: nn.Module) -> Tensor:
    """``x`` on the device of the module's parameters and buffers."""
    held: list[Tensor] = [*module.parameters(), *module.buffers()]
    return x.to(held[0].device) if held else x
