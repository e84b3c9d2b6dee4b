"""Quantisers: from vectors to codes of a finite set and back, with gradients straight through.

A codebook says a vector by the nearest of its K entries, q(z) = e_k with k = argmin_j |z - e_j| (van
den Oord et al. 2017, eq. 1 and 2). Its entries are averages of the vectors that chose them (their
appendix A.1), with n_i of them in a batch:

    N_i <- g N_i + (1 - g) n_i,    m_i <- g m_i + (1 - g) sum_j z_ij,    e_i = m_i / N_i    (eq. 6 to 8)

Finite scalars (Mentzer et al. 2023) need no codebook: each of a few numbers is bounded and rounded to
one of its L_d levels, and a code is their combination. In both the gradient of a rounded vector goes to
the vector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from simulacra.probability.noise import Noise
from simulacra.refusals import Refusal

AT_ONCE = 1 << 20
"""Distances worked out at a time: so many stay in a core's cache."""
BLOCK = 64
"""Distances of a row that are looked through together."""
MOST_LEVELS = 64
GRACE = 0.2
"""The use that the first entries begin with, as a share of the average one's."""


@dataclass(frozen=True)
class Quantised:
    """``vectors`` (…, width) stand for the codes, gradients passing to what was quantised; ``codes`` (…).

    ``commitment`` is the squared distance that quantising left, a scalar with gradients to the encoder.
    """

    vectors: Tensor
    codes: Tensor
    commitment: Tensor


def nearest(z: Tensor, entries: Tensor) -> Tensor:
    """The index of the nearest of ``entries`` (K, width) to each of z (n, width), the first of equals.

    |z|^2 is the same for all, so |e|^2 / 2 - z.e decides: one product of matrices.
    """
    half = 0.5 * entries.square().sum(1)
    parts = z.split(max(1, AT_ONCE // len(entries)))
    with torch.autocast(z.device.type, enabled=False):
        return torch.cat([_least(torch.addmm(half, part, -entries.T)) for part in parts])


def _least(rows: Tensor) -> Tensor:
    """Where each of ``rows`` (n, K) is least, (n,), the first of equals.

    On a CPU min tells its index several times faster than argmin does, and amin, which tells none, ten
    times faster than min: so amin finds the block, and min the place in it.
    """
    if rows.shape[1] < 4 * BLOCK or rows.shape[1] % BLOCK:
        return rows.min(1).indices
    blocks = rows.unflatten(1, (-1, BLOCK))
    chosen = blocks.amin(2).min(1).indices
    inside = blocks[torch.arange(len(rows), device=rows.device), chosen].min(1).indices
    found: Tensor = chosen * BLOCK + inside
    return found


def straight_through(z: Tensor, rounded: Tensor) -> Tensor:
    """``rounded`` in value, with the gradient of z (Bengio et al. 2013)."""
    return z + (rounded - z).detach()


def _precise(z: Tensor) -> Tensor:
    """At least float32: rounding to bfloat16 would move vectors to other codes."""
    return z.to(torch.promote_types(z.dtype, torch.float32))


class Codebook(nn.Module):
    """K entries that follow the vectors that choose them; ``note`` keeps a batch's until ``move``.

    ``rate`` is 1 - g. Buffers: ``entries`` e and ``sums`` m, (K, width), and ``counts`` N, (K,).
    """

    entries: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self, codes: int, width: int, rate: float = 0.01) -> None:
        super().__init__()
        self.codes, self.width, self.rate = codes, width, rate
        self.register_buffer("entries", torch.randn(codes, width))
        self.register_buffer("sums", self.entries.clone())
        self.register_buffer("counts", torch.ones(codes))
        self._noted: tuple[Tensor, Tensor] | None = None

    def forward(self, z: Tensor) -> Quantised:
        z = _precise(z)
        codes = nearest(z.detach().reshape(-1, self.width), self.entries).reshape(z.shape[:-1])
        chosen = self.vectors(codes)
        if self.training and torch.is_grad_enabled():
            self._noted = z.detach().reshape(-1, self.width), codes.flatten()
        return Quantised(straight_through(z, chosen), codes, (z - chosen).square().mean())

    def vectors(self, codes: Tensor) -> Tensor:
        """The entries of codes, shape (…) to (…, width)."""
        return self.entries[codes]

    @torch.no_grad()
    def start(self, entries: Tensor, count: float) -> None:
        """Begin with these entries (K, width), where a batch has ``count`` vectors for each.

        They weigh little, for the encoder will soon be another.
        """
        self.entries.copy_(entries)
        self.counts.fill_(GRACE * count)
        self.sums.copy_(self.entries * self.counts.unsqueeze(1))

    def noted(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of the last batch: the vectors (n, width), n_i (K,) and the sums of z (K, width).

        They are given once.
        """
        assert self._noted is not None, "the codebook has to be used in training before it moves"
        (z, codes), self._noted = self._noted, None
        counts = torch.zeros_like(self.counts).index_add_(0, codes, torch.ones_like(z[:, 0]))
        return z, counts, torch.zeros_like(self.sums).index_add_(0, codes, z)

    @torch.no_grad()
    def move(self, counts: Tensor, sums: Tensor) -> None:
        """The average of appendix A.1, eq. 6 to 8; an entry that nothing chooses stays where it is."""
        self.counts.lerp_(counts, self.rate)
        self.sums.lerp_(sums, self.rate)
        used = self.counts > 1e-20
        means = self.sums / self.counts.clamp(min=1e-20).unsqueeze(1)
        self.entries.copy_(torch.where(used.unsqueeze(1), means, self.entries))

    def dead(self, share: float) -> Tensor:
        """Which entries are chosen less than ``share`` times as often as the average one, (K,)."""
        return self.counts < share * self.counts.mean()

    @torch.no_grad()
    def revive(self, dead: Tensor, fresh: Tensor, share: float) -> None:
        """Put vectors ``fresh`` (as many, width) in the places of ``dead`` entries.

        They begin with a use of ``share``; with twice what is dead they have 0.7 / rate batches to show
        that they are needed.
        """
        counts = (share * self.counts.mean()).expand(len(fresh))
        self.entries[dead], self.counts[dead] = fresh, counts
        self.sums[dead] = fresh * counts.unsqueeze(1)


def drawn_rows(z: Tensor, count: int, noise: Noise) -> Tensor:
    """``count`` rows of z (n, width), drawn without putting back while there are enough."""
    keys = noise.uniform(math.ceil(len(z) / noise.rows)).flatten()[: len(z)]
    order = keys.argsort().to(z.device)
    return z[order.repeat(math.ceil(count / len(z)))[:count]]


class FiniteScalars(nn.Module):
    """Numbers bounded and rounded to L_d levels each (Mentzer et al. 2023, sec. 3.1); no weights.

    tanh bounds z to the interval in which rounding gives exactly L levels: -(L-1)/2 to (L-1)/2 for odd
    L, and half a level lower for even L, where the shift keeps z = 0 in the middle of a level. The
    paper's code shifts by tan of the offset; its inverse hyperbolic tangent is what takes 0 to 0.
    """

    levels: Tensor
    reach: Tensor
    offset: Tensor
    shift: Tensor
    basis: Tensor

    def __init__(self, levels: tuple[int, ...], margin: float = 1e-3) -> None:
        super().__init__()
        self.width, self.codes = len(levels), math.prod(levels)
        whole = torch.tensor(levels)
        reach = (whole - 1) * (1 + margin) / 2
        offset = torch.where(whole % 2 == 0, 0.5, 0.0)
        basis = torch.cat([torch.ones(1, dtype=torch.long), whole.cumprod(0)[:-1]])
        told = {"levels": whole, "reach": reach, "offset": offset, "basis": basis}
        told["shift"] = torch.atanh(offset / reach)
        for name, value in told.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, z: Tensor) -> Quantised:
        bounded = self.bounded(_precise(z))
        steps = bounded.round()
        vectors = straight_through(bounded, steps) / self._middle
        codes = ((steps + self._middle).long() * self.basis).sum(-1)
        return Quantised(vectors, codes, vectors.new_zeros(()))

    def bounded(self, z: Tensor) -> Tensor:
        """z inside the interval whose whole numbers are the levels."""
        return torch.tanh(z + self.shift) * self.reach - self.offset

    def vectors(self, codes: Tensor) -> Tensor:
        """The numbers of codes in [-1, 1], shape (…) to (…, dimensions)."""
        steps = codes.unsqueeze(-1) // self.basis % self.levels - self._middle
        return steps.to(self.reach.dtype) / self._middle

    @property
    def _middle(self) -> Tensor:
        return self.levels // 2


def balanced_levels(codes: int) -> tuple[int, ...]:
    """Levels whose product is ``codes``: as many dimensions as leave each five or more levels, and
    among those the most equal ones (Mentzer et al. 2023, sec. 4.1); large levels first."""
    found = [one for one in _factors(codes, codes) if one and max(one) <= MOST_LEVELS]
    if codes < 2 or not found:
        raise Refusal(
            "CFG-122",
            f"{codes} codes are no product of levels from 2 to {MOST_LEVELS}",
            way_out="choose a number such as 256, 512, 1000 or 4096",
        )
    return max(found, key=lambda one: (min(one) >= 5, len(one) if min(one) >= 5 else 0, -max(one)))


def _factors(product: int, largest: int) -> list[tuple[int, ...]]:
    """All ways to write a product with falling factors of 2 and more."""
    if product < 2:
        return [()]
    return [
        (factor, *rest)
        for factor in range(2, min(product, largest) + 1)
        if product % factor == 0
        for rest in _factors(product // factor, factor)
    ]
