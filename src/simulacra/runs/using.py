"""Using a trained model on many data at a time, whatever its family."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from simulacra.contract import Decoder, Density, Encoder, MeanSampler, Predictor, Scorer
from simulacra.data.tables import guarded
from simulacra.games import Batch
from simulacra.probability.units import bits_per_dimension
from simulacra.refusals import Refusal, shown
from simulacra.spaces import Column, Images, Labels, Series, Table

CHUNK = 256


def sample_in_chunks(
    model: Any,
    count: int,
    generator: torch.Generator,
    condition: Tensor | None = None,
    *,
    mean: bool = False,
) -> Tensor:
    """``count`` samples, drawn so many at a time that memory stays small; ``mean``: their means.

    Numbers of a table have as many decimals as its data. The chunks' size is fixed, so the first samples
    are the same whatever the count.
    """
    draw, parts = model.sample_mean if mean else model.sample, []
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        given = None if condition is None else condition[start : start + size]
        with torch.no_grad():
            parts.append(draw(size, condition=given, generator=generator).cpu())
    made: Tensor = model.space.rounded(torch.cat(parts))
    return made


def asked_of(model: Any, batch: Batch) -> Tensor | None:
    """What samples that are to be looked at are asked for: nothing, so that a model of classes draws them
    alike, or else what these data go with."""
    space = model.condition_space
    return None if space is None or isinstance(space, Labels) else batch.condition


def looks_better_as_means(model: Any) -> bool:
    """Whether pictures of samples show their means: dimensions drawn each by itself are grain in an
    image, and hiss in a sound, while points of the plane are drawn to be seen scattered."""
    return isinstance(model, MeanSampler) and isinstance(model.space, Images | Series)  # type: ignore[attr-defined]


def in_chunks(method: Callable[..., Tensor], model: Any, batch: Batch) -> Tensor:
    """``method`` over a batch in small parts, with the conditions that the model wants."""
    parts = []
    for start in range(0, len(batch), CHUNK):
        x = batch.x[start : start + CHUNK]
        given = None
        if model.condition_space is not None and batch.condition is not None:
            given = batch.condition[start : start + CHUNK]
        with torch.no_grad():
            parts.append(method(x, condition=given).cpu())
    return torch.cat(parts)


def rebuilds(model: Any) -> bool:
    """Whether data come back from its codes."""
    return isinstance(model, Encoder) and isinstance(model, Decoder)


def rebuilt(model: Any, batch: Batch) -> Tensor:
    """What comes back of data from their codes, (n, *shape)."""

    def there_and_back(x: Tensor, *, condition: Tensor | None) -> Tensor:
        made: Tensor = model.decode(model.encode(x, condition=condition), condition=condition)
        return made

    again: Tensor = model.space.rounded(in_chunks(there_and_back, model, batch))
    return again


def scores(model: Any, batch: Batch) -> Iterator[str]:
    """CSV lines, with a header that gives units and kinds."""
    columns: dict[str, Tensor] = {}
    if isinstance(model, Density):
        log_prob = in_chunks(model.log_prob, model, batch)
        columns[f"log_prob (nats; {model.kind.value})"] = log_prob
        space = model.space  # type: ignore[attr-defined]
        columns[f"bits_per_dimension ({model.kind.value})"] = bits_per_dimension(log_prob, space)
    if isinstance(model, Scorer):

        def stranger(x: Tensor, *, condition: Tensor | None) -> Tensor:
            return model.anomaly_score(x)

        columns[f"anomaly_score ({model.score_source})"] = in_chunks(stranger, model, batch)
    elif isinstance(model, Density):
        columns["anomaly_score (-log_prob in nats)"] = -log_prob
    if isinstance(model, Predictor) and isinstance(model.target_space, Labels):
        labels = model.target_space

        def posterior(x: Tensor, *, condition: Tensor | None) -> Tensor:
            return model.predict(x)

        each = in_chunks(posterior, model, batch).T
        columns |= {f"p({cell(labels.name(k))} | x)": share for k, share in enumerate(each)}
    yield ",".join(["index", *columns])
    for index, row in enumerate(
        zip(*(column.tolist() for column in columns.values()), strict=True)
    ):
        yield ",".join([str(index), *(f"{value:.6g}" for value in row)])


def beside(originals: Tensor, others: Tensor, columns: int = 8, *, blanks: bool = True) -> Tensor:
    """Rows of originals, each with the row of the others below it; ``blanks`` fill the last two."""
    rows = []
    for start in range(0, len(originals), columns):
        for one in (originals, others):
            rows.append(one[start : start + columns].to(others.dtype))
            if blanks and len(rows[-1]) < columns:
                rows.append(others.new_zeros(columns - len(rows[-1]), *others.shape[1:]))
    return torch.cat(rows)


def half_known(x: Tensor, which: str, seed: int) -> Tensor:
    """A mask that keeps one half of every element: of an image's rows or columns, or at random."""
    known = torch.zeros(x.shape, dtype=torch.bool)
    if which == "random":
        shape = (len(x), 1, *x.shape[2:]) if x.ndim == 4 else x.shape
        stream = torch.Generator().manual_seed(seed)
        return (torch.rand(shape, generator=stream) < 0.5).expand(x.shape)
    if which == "left":
        known[..., : x.shape[-1] // 2] = True
        return known
    if which == "top" and x.ndim == 4:
        known[:, :, : x.shape[2] // 2] = True
        return known
    raise Refusal(
        "CFG-054", f"--known is {shown(which)}", way_out="use left or random, or top for images"
    )


def named_columns(which: str, x: Tensor, space: Table) -> Tensor:
    """A mask that keeps the columns whose names ``which`` lists, with commas between."""
    known = torch.zeros(x.shape, dtype=torch.bool)
    for name in which.split(","):
        known[:, _column(name.strip(), space)] = True
    return known


def given_columns(
    texts: Sequence[str], space: Table, *, option: str = "--given"
) -> tuple[Tensor, Tensor]:
    """A row (columns,) that has the values of 'column=value', and a mask of the columns given."""
    row = torch.zeros(space.shape, dtype=space.dtype)
    known = torch.zeros(space.shape, dtype=torch.bool)
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            reason = f"{option} is {shown(text)}"
            raise Refusal("CFG-140", reason, way_out="write it as column=value")
        index = _column(name.strip(), space)
        if known[index]:
            reason = f"{option} names the column {shown(name.strip())} twice"
            raise Refusal("CFG-272", reason, way_out="give one value for each column")
        row[index], known[index] = _value(value.strip(), space.columns[index]), True
    return row, known


def _column(name: str, space: Table) -> int:
    names = [column.name for column in space.columns]
    if name not in names:
        reason = f"the table has no column {shown(name)}"
        raise Refusal("CFG-141", reason, way_out=f"choose among {', '.join(names)}")
    return names.index(name)


def _value(text: str, column: Column) -> float:
    """A cell as the number that stands for it."""
    if column.kind == "category":
        if text not in column.categories:
            reason = f"the column {shown(column.name)} has never held {shown(text)}"
            some = ", ".join(column.categories[:20])
            raise Refusal("CFG-142", reason, way_out=f"give one of {some}")
        return float(column.categories.index(text))
    if column.missing and not text:
        return math.nan
    with contextlib.suppress(ValueError):
        if math.isfinite(float(text)) or (column.missing and math.isnan(float(text))):
            return float(text)
    reason = f"the column {shown(column.name)} holds numbers, and {shown(text)} is none"
    raise Refusal("CFG-143", reason, way_out="give a number")


def numbered(texts: Sequence[str]) -> str:
    """Texts one below the other, each under its number."""
    return "\n\n".join(f"[{index}]\n{text}" for index, text in enumerate(texts)) + "\n"


def table_lines(x: Tensor, space: Table) -> Iterator[str]:
    """Rows of a table as CSV lines, which are read back as they were."""
    yield ",".join(cell(column.name) for column in space.columns)
    for row in x.tolist():
        cells = [cell(column.text(value)) for value, column in zip(row, space.columns, strict=True)]
        # A line without anything would be no row.
        yield ",".join(cells) or '""'


def cell(text: str) -> str:
    """A text as one cell of a CSV line; what a spreadsheet would run as a formula is made harmless."""
    safe = guarded(text)
    return '"' + safe.replace('"', '""') + '"' if set(safe) & set(',"\n\r') else safe
