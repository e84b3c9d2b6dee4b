"""Exhibits: what one trained run shows of its own test data, for its page.

The strangest data with the entries that make them so, where the model has a score with maps; the codes in
the plane, where it has codes; of images walks among codes, where codes lead back, the classes that they
have found, and crossings, where they have several levels; what a conditional model draws when it is
asked; and samples from noise on, where they come to be step by step.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simulacra.contract import Encoder, Gradual, Mixer, Sampler
from simulacra.data.dataset import Dataset, Part
from simulacra.evaluation.downstream import classes_of
from simulacra.evaluation.projection import MOST, Projection, projections
from simulacra.evaluation.representation import LEAST, affordable, codes_of
from simulacra.evaluation.scores import AnomalyScore, default_score, make_score, with_maps
from simulacra.games import Batch
from simulacra.probability.noise import mixed
from simulacra.refusals import shown
from simulacra.runs.asking import worded
from simulacra.runs.beliefs import SHOWN, can_show, drawn
from simulacra.runs.maps import Scale, by_pixel, picture, strangest
from simulacra.runs.pictures import POINTS, animation, embedded, grid, has_picture, on_plane, png
from simulacra.runs.scatter import scatter
from simulacra.runs.trajectories import ROWS as WAYS
from simulacra.runs.trajectories import moving, strip, way
from simulacra.runs.using import looks_better_as_means, sample_in_chunks
from simulacra.runs.walks import (
    CROSSED,
    REACH,
    STEPS,
    WALKS,
    can_walk,
    classes_and_numbers,
    coarse_levels,
    crossings,
    interpolations,
    most_active,
    traversals,
)
from simulacra.spaces import Images, Labels, Space, Table

TAUGHT = 2000
PATIENCE = 10.0
"""Seconds that the codes of one exhibit may take."""

MOST_ASKED, ANSWERS = 10, 8
"""Conditions that a model is asked for, and the samples that it draws for each."""
FOUND, MOST_CLASSES, MOST_NUMBERS = "Classes found without labels", 20, 3
"""A title; classes of a code that are shown, and numbers beside them."""
ROWS, WIDEST = 8, 40
"""Strange rows of a table that are shown, and columns."""


@dataclass(frozen=True)
class Exhibit:
    """A title, how it was made in plain words, and the HTML that shows it."""

    title: str
    words: str
    body: str


def exhibits(model: Any, data: Dataset, seed: int) -> list[Exhibit]:
    """All that a model can show of its test data."""
    found = [
        strange_data(model, data, seed),
        plane_of_codes(model, data, seed),
        ways_between(model, data),
        moved_units(model, data),
        classes_found(model, data),
        crossed_data(model, data),
        asked_and_drawn(model, data, seed),
        from_noise(model, data, seed),
        belief_of_critic(model, data, seed),
    ]
    return [one for one in found if one is not None]


def strange_data(model: Any, data: Dataset, seed: int) -> Exhibit | None:
    """The test data that score strangest, with maps; None where there is no map to draw."""
    if not with_maps(model) or not isinstance(data.space, Images | Table):
        return None
    stream = torch.Generator().manual_seed(mixed(seed, 140))
    score = make_score(default_score(model, maps=True), model)
    score.fit(data.train.first(TAUGHT), stream)
    encodes = Encoder in score.NEEDS
    batch = _encodable(model, data.test) if encodes else data.test.first(MOST)
    scores = score.of(batch, stream)
    which = strangest(scores)
    condition = None if batch.condition is None else batch.condition[which]
    some = Batch(batch.x[which], condition)
    maps = score.maps(some, stream)
    words = f"The {{}} strangest of {len(batch):,} test data by {score.source}"
    if isinstance(data.space, Table):
        return _strange_rows(some.x, maps, scores[which], data.space, score, words)
    scale = Scale.of(by_pixel(maps), f"{score.unit} a pixel")
    drawn = png(picture(some.x, maps, scale, data.space, pixels=720))
    return Exhibit(
        "The strangest data, and where they are strange",
        f"{words.format(len(which))}, each above its map, which sums to the score: {scale}.",
        f'<figure class="broad">{embedded(drawn, "strange data above their maps")}</figure>',
    )


def _strange_rows(
    x: Tensor, maps: Tensor, scores: Tensor, space: Table, score: AnomalyScore, words: str
) -> Exhibit:
    """Rows of which each cell is the redder, the more its column adds to the score."""
    count, columns = min(ROWS, len(x)), space.columns[:WIDEST]
    high = float(maps[:count].max().clamp(min=1e-12))
    heads = "".join(f"<th>{html.escape(column.name)}</th>" for column in columns)
    rows = []
    for index in range(count):
        cells = []
        for column, value, added in zip(
            columns, x[index].tolist(), maps[index].tolist(), strict=False
        ):
            text = column.categories[int(value)] if column.kind == "category" else f"{value:.5g}"
            shade = 0.75 * max(0.0, added) / high
            cells.append(
                f'<td style="background:rgb(200 85 61 / {shade:.2f})" title="adds {added:.3g} '
                f'{score.unit}">{html.escape(text)}</td>'
            )
        rows.append(f"<tr><td>{float(scores[index]):.4g}</td>{''.join(cells)}</tr>")
    cut = f"; the first {WIDEST} columns" if len(space.columns) > WIDEST else ""
    return Exhibit(
        "The strangest rows, and where they are strange",
        f"{words.format(count)}; the redder a cell, the more its column adds (most: {high:.3g} "
        f"{score.unit}; hover to read it){cut}.",
        f"<div class=wide><table><thead><tr><th>score</th>{heads}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>",
    )


def _encodable(model: Any, part: Part) -> Batch:
    """The first data of a part, as many as are soon encoded."""
    return part.first(max(LEAST, min(MOST, affordable(model, part.first(LEAST), PATIENCE))))


@dataclass(frozen=True, eq=False)
class Plane:
    """Codes in the plane: projections, and where there are any, the classes that colour them."""

    panels: Sequence[Projection]
    classes: Tensor | None
    names: Sequence[str]
    words: str

    @classmethod
    def of(cls, model: Any, part: Part, labels: Labels | None, space: Space, seed: int) -> Plane:
        """The codes of the first data of a part."""
        batch = _encodable(model, part)
        panels = projections(codes_of(model, batch.x, batch.condition), seed)
        classes, names, coloured = batch.condition, tuple[str, ...](), " Coloured by label."
        if classes is not None and labels is not None:
            names = tuple(labels.name(index) for index in range(labels.count))
        elif isinstance(space, Table) and (told := classes_of(batch.x, space)) is not None:
            classes, names, column = told
            coloured = f" Coloured by the column {shown(column)}."
        else:
            classes, coloured = None, ""
        words = ". ".join(panel.how for panel in panels)
        return cls(panels, classes, names, f"{words}.{coloured}")

    def svg(self, *, alone: bool = False) -> str:
        """The picture."""
        return scatter(self.panels, self.classes, self.names, alone=alone)


def plane_of_codes(model: Any, data: Dataset, seed: int) -> Exhibit | None:
    """Test codes in the plane; None for a model without codes."""
    if not isinstance(model, Encoder):
        return None
    plane = Plane.of(model, data.test, data.labels, data.space, seed)
    return Exhibit(
        "Codes of test data in the plane", plane.words, f"<figure>{plane.svg()}</figure>"
    )


def ways_between(model: Any, data: Dataset) -> Exhibit | None:
    """From one test datum to another; None for a model without codes of reals that lead back."""
    if not can_walk(model) or not isinstance(data.space, Images) or len(data.test) < 2:
        return None
    x = interpolations(model, data.test.first(2 * WALKS))
    great = getattr(model, "normal_codes", False)
    road = "along a great circle, as they are standard normal" if great else "along a straight line"
    return Exhibit(
        "From datum to datum",
        f"Codes of two test data, and {STEPS - 2} between them {road}, decoded; both ends are "
        "reconstructions.",
        _broad(x, data.space, "ways between data"),
    )


def moved_units(model: Any, data: Dataset) -> Exhibit | None:
    """One unit of a code at a time, moved; None as for ``ways_between``."""
    if not can_walk(model) or not isinstance(data.space, Images) or len(data.test) < 2:
        return None
    batch = _encodable(model, data.test)
    codes = codes_of(model, batch.x, batch.condition)
    units = most_active(codes, WALKS)
    listed = ", ".join(str(unit) for unit in units.tolist())
    return Exhibit(
        "One unit of a code at a time",
        f"The code of the first test datum, with one unit a row moved by {-REACH:g} to {REACH:g} "
        f"standard deviations of {len(batch):,} codes: the most active units, {listed}.",
        _broad(traversals(model, batch, codes=codes), data.space, "traversals of codes"),
    )


def classes_found(model: Any, data: Dataset) -> Exhibit | None:
    """What the classes and the numbers of a code stand for; None for a model that finds no classes."""
    classes: int = getattr(model, "code_classes", 0)
    if not classes or not isinstance(data.space, Images):
        return None
    numbers = min(model.code_space.shape[0] - classes, MOST_NUMBERS)
    which = f"the first {MOST_CLASSES} of {classes}" if classes > MOST_CLASSES else f"the {classes}"
    if not numbers:
        x = classes_and_numbers(model, None, MOST_CLASSES)
        words = f"One for each of {which} classes of a code, without noise."
        return Exhibit(FOUND, words, _broad(x, data.space, "classes"))
    pictures = [
        _broad(
            classes_and_numbers(model, one, MOST_CLASSES),
            data.space,
            f"classes and number {one + 1}",
        )
        for one in range(numbers)
    ]
    return Exhibit(
        FOUND,
        f"A row for each of {which} classes of a code, along which a number of it goes from -1 to 1, a "
        "picture for each number; the others and the noise are nought.",
        "".join(pictures),
    )


def crossed_data(model: Any, data: Dataset) -> Exhibit | None:
    """Coarse features of some data with fine ones of others; None for a model that does not mix."""
    if not isinstance(model, Mixer) or not isinstance(data.space, Images):
        return None
    if len(data.test) < 2 * CROSSED or model.code_levels < 2:
        return None
    level = coarse_levels(model)
    x = crossings(model, data.test.first(2 * CROSSED), level)
    drawn = png(grid(x, data.space, columns=CROSSED + 1, pixels=720))
    return Exhibit(
        "Coarse features of one, fine ones of another",
        f"Of {model.code_levels} levels of a code the first {level} are of the datum on the left, all "
        "others of the one above; the first row and column are reconstructions.",
        _drawn(drawn, "crossed data"),
    )


def from_noise(model: Any, data: Dataset, seed: int) -> Exhibit | None:
    """Samples as they come to be; None for a model that does not make them step by step."""
    if not isinstance(model, Gradual) or not has_picture(data.space):
        return None
    plane = on_plane(data.space)
    condition = None
    if getattr(model, "condition_space", None) is not None:
        condition = data.test.first(POINTS if plane else WAYS).condition
    stream = torch.Generator().manual_seed(mixed(seed, 141))
    count = len(condition) if condition is not None else POINTS if plane else WAYS
    states = way(model, count, stream, condition)
    real = data.test.first(POINTS).x if plane else None
    moved = animation(moving(states, data.space, real), kind="PNG")
    body = _drawn(moved, "samples from noise on, moving")
    words = f"{count} samples from noise to data in {len(states) - 1} steps"
    if isinstance(data.space, Images):
        body = _drawn(png(strip(states, data.space)), "samples from noise on") + body
        words += ": a row a sample, then all of them moving"
    return Exhibit("From noise to data", f"{words}.", body)


def asked_and_drawn(model: Any, data: Dataset, seed: int) -> Exhibit | None:
    """What a model is asked for, and what it draws then; None where nothing can be asked for or seen."""
    space = getattr(model, "condition_space", None)
    if not isinstance(model, Sampler) or not isinstance(data.space, Images) or space is None:
        return None
    if isinstance(space, Labels):
        asked = torch.arange(min(space.count, MOST_ASKED))
    else:
        told = data.test.first(MOST_ASKED).condition
        assert told is not None
        asked = told
    stream = torch.Generator().manual_seed(mixed(seed, 142))
    each = asked.repeat_interleave(ANSWERS, dim=0)
    x = sample_in_chunks(model, len(each), stream, each, mean=looks_better_as_means(model))
    rows = []
    for index, (condition, answers) in enumerate(
        zip(asked.split(1), x.split(ANSWERS), strict=True)
    ):
        drawn = embedded(png(grid(answers, data.space, columns=ANSWERS, pixels=480)), "samples")
        if isinstance(space, Images):
            question = embedded(png(grid(condition, space, columns=1, pixels=80)), "asked for")
        else:
            question = html.escape(worded(condition, space))
        rows.append(f"<tr><td>{index}</td><td>{question}</td><td>{drawn}</td></tr>")
    classes = isinstance(space, Labels)
    words = "the first classes" if classes and len(asked) < space.count else "every class"
    return Exhibit(
        "What was asked for, and what was drawn",
        f"{ANSWERS} samples each for {words if classes else 'what the first test data go with'}.",
        f"<div class=wide><table><tbody>{''.join(rows)}</tbody></table></div>",
    )


def belief_of_critic(model: Any, data: Dataset, seed: int) -> Exhibit | None:
    """D over data and samples; None without a critic, or where neither lies on a line or in the plane."""
    if not can_show(model, data.space):
        return None
    real = data.test.first(SHOWN).x
    made = model.sample(len(real), generator=torch.Generator().manual_seed(mixed(seed, 141)))
    told = model.diagnose(real)
    listed = "".join(f"; {name} {value:.3f}" for name, value in told.items())
    return Exhibit(
        "What the critic believes",
        f"D, the chance of being a datum, from 0 (dark) to 1 (bright), with {len(real):,} test data "
        f"(white) and as many samples (green). Against the best critic D is p/(p + q), and 1/2 where "
        f"samples are like data{listed}.",
        f"<figure>{drawn(model, real, made)}</figure>",
    )


def _broad(x: Tensor, space: Images, name: str) -> str:
    return _drawn(png(grid(x, space, columns=STEPS, pixels=720)), name)


def _drawn(content: bytes, name: str) -> str:
    return f'<figure class="broad">{embedded(content, name)}</figure>'
