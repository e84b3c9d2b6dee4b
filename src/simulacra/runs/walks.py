"""Walks among codes: from one datum to another, and along one unit at a time.

Codes that are standard normal numbers lie near a sphere, and straight lines between them pass through a
middle where hardly any lie; so such codes are joined along a great circle (White 2016),

    slerp(a, b, t) = sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b,    w the angle between a and b,

and all others along a straight line. Both ends are reconstructions. A traversal moves one unit of a
datum's code, the most active ones first, by so many standard deviations (Higgins et al. 2017). Codes that
are read at several levels can be crossed: coarse features of one datum with fine ones of another (Karras
et al. 2019, fig. 3).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simulacra.contract import Decoder, Encoder, Mixer, require_capability
from simulacra.games import Batch
from simulacra.refusals import Refusal
from simulacra.runs.using import CHUNK, in_chunks
from simulacra.spaces import Vectors

STEPS, WALKS = 9, 8
CROSSED = 6
"""Data a side of a picture of crossings."""

REACH = 2.0
"""How many standard deviations a unit moves, each way."""

LEAST_SINE = 1e-4


def can_walk(model: Any) -> bool:
    """Whether it has codes of real numbers that lead back to elements."""
    return (
        isinstance(model, Encoder)
        and isinstance(model, Decoder)
        and isinstance(model.code_space, Vectors)
    )


def require_walks(model: Any, *, to: str) -> None:
    """A refusal for a model without codes, without a way back, or with codes that are no reals."""
    encoder = require_capability(model, Encoder, to=to)
    require_capability(model, Decoder, to=to)
    if not isinstance(encoder.code_space, Vectors):
        raise Refusal(
            "CAN-014",
            f"cannot {to}: codes of {type(model).__name__} are {encoder.code_space}, and between two "
            "of them lies nothing",
            way_out="choose a model whose codes are real vectors",
        )


def lerp(first: Tensor, last: Tensor, shares: Tensor) -> Tensor:
    """(1 - t) a + t b, shapes (n, d), (n, d) and (steps,) to (n, steps, d)."""
    t = shares.to(first).reshape(1, -1, 1)
    return (1 - t) * first.unsqueeze(1) + t * last.unsqueeze(1)


def slerp(first: Tensor, last: Tensor, shares: Tensor) -> Tensor:
    """Along a great circle, as ``lerp``, which it is where both point the same or opposite ways."""
    cosine = torch.nn.functional.cosine_similarity(first.double(), last.double(), dim=1)
    angle = cosine.clamp(-1, 1).arccos().reshape(-1, 1, 1)
    t, sine = shares.double().reshape(1, -1, 1), angle.sin()
    before, after = ((1 - t) * angle).sin() / sine, (t * angle).sin() / sine
    path = before * first.double().unsqueeze(1) + after * last.double().unsqueeze(1)
    straight = lerp(first.double(), last.double(), shares)
    return torch.where(sine > LEAST_SINE, path, straight).to(first)


def interpolations(model: Any, batch: Batch, steps: int = STEPS) -> Tensor:
    """Elements on the way from each datum of even place to the one after it, way after way.

    Of a conditional model, the first half of a way has the label that it starts at.
    """
    codes = in_chunks(model.encode, model, batch)
    pairs = len(codes) // 2
    joined = slerp if getattr(model, "normal_codes", False) else lerp
    way = joined(codes[: 2 * pairs : 2], codes[1 : 2 * pairs : 2], torch.linspace(0, 1, steps))
    labels = None
    if batch.condition is not None:
        ends = batch.condition[: 2 * pairs].reshape(pairs, 2, *batch.condition.shape[1:])
        labels = ends[:, (torch.arange(steps) >= steps / 2).long()].flatten(0, 1)
    return _decoded(model, way.flatten(0, 1), labels)


def most_active(codes: Tensor, count: int) -> Tensor:
    """The units whose codes vary most among data, most first."""
    return codes.double().var(0).argsort(descending=True, stable=True)[:count]


def traversals(
    model: Any,
    batch: Batch,
    which: int = 0,
    *,
    steps: int = STEPS,
    count: int = WALKS,
    codes: Tensor | None = None,
) -> Tensor:
    """Elements as one unit of the code of datum ``which`` moves by -2 to 2 standard deviations.

    A row of ``steps`` elements for each of the ``count`` most active units; ``batch`` is what tells
    deviations, ``codes`` its codes where they are known. An odd number of steps has the datum's
    reconstruction in the middle.
    """
    codes = in_chunks(model.encode, model, batch) if codes is None else codes
    units = most_active(codes, count)
    shares = torch.linspace(-REACH, REACH, steps)
    moved = codes[which].expand(len(units), steps, -1).clone()
    for row, unit in enumerate(units.tolist()):
        moved[row, :, unit] += shares * codes[:, unit].std()
    flat, labels = moved.flatten(0, 1), None
    if batch.condition is not None:
        labels = batch.condition[which].expand(len(flat), *batch.condition.shape[1:])
    return _decoded(model, flat, labels)


def classes_and_numbers(model: Any, number: int | None, most: int, steps: int = STEPS) -> Tensor:
    """A row of elements for each of the first ``most`` of the ``code_classes`` that a code begins with.

    It has ``steps`` of them, as one of the numbers after the classes goes from -1 to 1, or a single one
    without a number; the other numbers are nought.
    """
    classes: int = model.code_classes
    codes = torch.zeros(min(most, classes), 1 if number is None else steps, *model.code_space.shape)
    codes[..., :classes] = torch.eye(classes)[: len(codes), None]
    if number is not None:
        codes[..., classes + number] = torch.linspace(-1, 1, steps)
    return _decoded(model, codes.flatten(0, 1), None)


def coarse_levels(model: Any, level: int | None = None) -> int:
    """How many levels of a code count as coarse: those asked for, or half; refused where there are none
    such."""
    levels = require_capability(model, Mixer, to="cross data").code_levels
    if level is None:
        return (levels + 1) // 2
    if not 0 <= level <= levels:
        reason = f"{level} levels of a code are to be coarse, and it has {levels}"
        raise Refusal("CFG-233", reason, way_out=f"give a level from 0 to {levels}")
    return level


def crossings(model: Any, batch: Batch, level: int | None = None, count: int = CROSSED) -> Tensor:
    """(count + 1)^2 images, row after row: the first row and the first column are reconstructions of
    ``count`` data each, and where they meet are the coarse features of the column's with the fine ones of
    the row's; the corner is empty. ``level``: how many levels count as coarse, half of them else.

    A conditional model is given the label of the coarse datum.
    """
    level = coarse_levels(model, level)
    mixer = require_capability(model, Mixer, to="cross data")
    labels = None if batch.condition is None else batch.condition[: 2 * count]
    batch = Batch(batch.x[: 2 * count], labels)
    codes = in_chunks(model.encode, model, batch)
    fine, coarse = codes[:count], codes[count:]
    labels = None if model.condition_space is None else labels
    rebuilt = _decoded(model, codes, labels)
    rows = [torch.zeros_like(rebuilt[:1]), rebuilt[:count]]
    for index in range(len(coarse)):
        given = None if labels is None else labels[count + index].expand(count)
        first = coarse[index : index + 1].expand(count, -1)
        with torch.no_grad():
            crossed = mixer.mix(first, fine, level, condition=given).cpu()
        rows += [rebuilt[count + index : count + index + 1], crossed]
    return torch.cat(rows)


def _decoded(model: Any, codes: Tensor, labels: Tensor | None) -> Tensor:
    given = labels if model.condition_space is not None else None
    parts = []
    for start in range(0, len(codes), CHUNK):
        rows = slice(start, start + CHUNK)
        parts.append(model.decode(codes[rows], condition=None if given is None else given[rows]))
    return torch.cat(parts).cpu()
