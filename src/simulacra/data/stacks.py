"""Stacked digits: three gray images drawn at random are the channels of one, which makes 1,000 modes.

Metz et al. 2017 (sec. 3.3.1) count the modes that a generator reaches; Srivastava et al. 2017 and Lin et
al. 2018 also tell in which shares. The digits are split first and stacked then, so that no digit of a
held-out stack was seen in training. Which digits stand in stack i is a function of (seed, part, i) alone,
and a stack is put together when it is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from simulacra.data.raw import TEST, TRAIN, VALID, Raw, Survey
from simulacra.data.splits import split
from simulacra.spaces import Images, Labels

CHANNELS = 3


class Stacks:
    """Rows (n, channels, height, width) of single-channel images; ``picks`` (n, channels) names them."""

    def __init__(self, images: np.ndarray, picks: np.ndarray) -> None:
        self.images, self.picks = images, picks
        self.shape = (*picks.shape, *images.shape[2:])
        self.dtype = images.dtype

    def __len__(self) -> int:
        return len(self.picks)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[np.array([row])][0] for row in range(len(self)))

    def __getitem__(self, which: slice | np.ndarray) -> np.ndarray:
        stacked: np.ndarray = self.images[self.picks[which], 0]
        return stacked


@dataclass(frozen=True)
class Plan:
    """Which set is stacked, how many stacks there are (train, validation, test), and the share of its
    digits that the validation part gets, and the test part where the set has none of its own."""

    base: str
    counts: tuple[int, int, int]
    held_out: float


PLANS = {
    "stacked-mnist": Plan("mnist", (60_000, 6_000, 10_000), 0.1),
    "stacked-digits": Plan("digits", (20_000, 2_000, 2_000), 0.25),
}


def stacked(base: Raw, plan: Plan, seed: int = 0) -> Raw:
    """Stacks of the images of ``base``, those of each part from that part's digits alone."""
    assert isinstance(base.space, Images)
    assert base.labels is not None
    parts, _, _ = split(base, seed, plan.held_out)
    drawn, given = [], []
    for part, index, count in zip((TRAIN, VALID, TEST), parts, plan.counts, strict=True):
        # Row by row from one stream: the first stacks are the same however many there are.
        draw = np.random.default_rng((seed, part)).integers(len(index), size=(count, CHANNELS))
        drawn.append(index.numpy()[draw])
        given.append(torch.full((count,), part))
    picks = np.concatenate(drawn)
    images = base.rows.numpy() if isinstance(base.rows, torch.Tensor) else base.rows
    space = replace(base.space, channels=CHANNELS)
    classes = len(base.label_names)
    labels = Labels(classes**CHANNELS, channel_classes=classes)
    sizes = Counter({f"{space.width} x {space.height}": len(picks)})
    return Raw(
        Stacks(np.asarray(images), picks),
        space,
        Survey("images", sizes, Counter({f"{space.levels} levels": len(picks)})),
        labels.combined(base.labels[torch.from_numpy(picks)]),
        given=torch.cat(given),
        source=dict(base.source)
        | {"stacked": f"{CHANNELS} images of {plan.base}, Metz et al. 2017"},
        channel_classes=classes,
    )
