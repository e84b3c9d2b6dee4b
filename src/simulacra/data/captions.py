"""Captioned digits: coloured digits on coloured grounds, each with a caption that says which.

"a red seven on blue": ten digits, and two different ones of eight colours, make 560 captions. Digits are
split first and coloured then, so that no digit of a held-out image was seen in training. Which digit and
which colours image i has is a function of (seed, part, i) alone, and an image is put together when it is
asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch

from simulacra.data.metadata import caption_space
from simulacra.data.raw import TEST, TRAIN, VALID, Raw, Survey
from simulacra.data.splits import split
from simulacra.data.stacks import Plan
from simulacra.data.text import encoded
from simulacra.spaces import Images

COLOURS = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 70, 220),
    "yellow": (250, 215, 40),
    "purple": (140, 50, 170),
    "orange": (255, 130, 20),
}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLANS = {
    "captioned-mnist": Plan("mnist", (60_000, 6_000, 10_000), 0.1),
    "captioned-digits": Plan("digits", (20_000, 2_000, 2_000), 0.25),
}


class Coloured:
    """Rows (n, 3, height, width) of single-channel images (m, 1, height, width) in 0..top: row i is image
    ``picks[i]`` in colour ``inks[i]`` on colour ``grounds[i]``, both (n, 3)."""

    def __init__(
        self, images: np.ndarray, top: int, picks: np.ndarray, inks: np.ndarray, grounds: np.ndarray
    ) -> None:
        self.images, self.top, self.picks = images, top, picks
        self.inks, self.grounds = inks, grounds
        self.shape = (len(picks), 3, *images.shape[2:])
        self.dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.picks)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[np.array([row])][0] for row in range(len(self)))

    def __getitem__(self, which: slice | np.ndarray) -> np.ndarray:
        share = self.images[self.picks[which]].astype(np.float32) / self.top
        ink, ground = (one[which][:, :, None, None] for one in (self.inks, self.grounds))
        coloured: np.ndarray = np.rint(ground + share * (ink - ground)).astype(np.uint8)
        return coloured


def captioned(base: Raw, plan: Plan, seed: int = 0) -> Raw:
    """Images of ``base`` in colours, those of each part from that part's images alone."""
    assert isinstance(base.space, Images)
    assert base.labels is not None
    parts, _, _ = split(base, seed, plan.held_out)
    drawn, given = [], []
    for part, index, count in zip((TRAIN, VALID, TEST), parts, plan.counts, strict=True):
        # Row by row from one stream: the first images are the same however many there are.
        sizes = (len(index), len(COLOURS), len(COLOURS) - 1)
        draw = np.random.default_rng((seed, part)).integers(sizes, size=(count, 3))
        draw[:, 0] = index.numpy()[draw[:, 0]]
        # The ground is one of the other colours.
        draw[:, 2] += draw[:, 2] >= draw[:, 1]
        drawn.append(draw)
        given.append(torch.full((count,), part))
    picks, inks, grounds = np.concatenate(drawn).T
    images = base.rows.numpy() if isinstance(base.rows, torch.Tensor) else base.rows
    space = Images(3, base.space.height, base.space.width)
    shades, names = np.array(list(COLOURS.values()), np.float32), list(COLOURS)
    digits = base.labels.numpy()[picks]
    captions = [
        f"{'an' if names[ink] == 'orange' else 'a'} {names[ink]} {DIGITS[digit]} on {names[ground]}"
        for digit, ink, ground in zip(digits, inks, grounds, strict=True)
    ]
    texts = caption_space(captions, plan.base)
    sizes_seen = Counter({f"{space.width} x {space.height}": len(picks)})
    return Raw(
        Coloured(np.asarray(images), base.space.levels - 1, picks, shades[inks], shades[grounds]),
        space,
        Survey("images", sizes_seen, Counter({"RGB": len(picks)})),
        given=torch.cat(given),
        source=dict(base.source) | {"captioned": f"{plan.base} in colours"},
        conditions=encoded(captions, texts, plan.base),
        condition_space=texts,
    )
