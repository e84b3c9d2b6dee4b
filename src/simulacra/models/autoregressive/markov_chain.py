"""Markov chain of order k: each dimension depends on the k before it, through a table of frequencies.

    p(x) = prod_i p_i(x_i | x_{i-k}, …, x_{i-1})

in raster order, R before G before B, or along a sequence. Fitted in closed form by counting, one pass
over the data. A context that was seldom seen leans on the shorter one (Bell, Cleary & Witten 1990; the
mean of a Dirichlet of weight a):

    p(v | c) = (n(c, v) + a p(v | c')) / (n(c) + a),      c' is c without its oldest entry,

down to the uniform distribution. A binary chain of order 1 has 2n - 1 free parameters, where the table
of all states has 2^n - 1 and independence n. ``shared`` uses one table for all positions, as for text:
then a symbol of its own stands before the start. Completion sums over what is hidden by backward
messages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.contract import Completer, Density, Diagnosable, Factorised, Kind, Sampler
from simulacra.games import Batch, Clock, Game, Rewrite, Stage
from simulacra.layers.front_door import as_device
from simulacra.layers.order import in_order, out_of_order
from simulacra.probability.distributions import categorical_draw
from simulacra.probability.noise import row_noise
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels, Measure, Space, Table, Tokens

MOST_ENTRIES = 1 << 25
RECOMMENDED_ENTRIES = 1 << 22
_AT_ONCE = 1 << 25
"""Numbers that the backward messages of one chunk of rows may take."""


@dataclass(frozen=True)
class Config:
    """``order`` is k; ``prior_weight`` is a, how many data a shorter context counts as."""

    order: int = 1
    shared: bool = False
    prior_weight: float = 1.0


class MarkovChain(nn.Module, Sampler, Density, Factorised, Completer, Diagnosable):
    """Tables log p (positions or 1, contexts, levels); a context's oldest entry counts most."""

    spaces: ClassVar = (Images, Tokens, Table)
    conditions: ClassVar = ()
    log_table: Tensor
    levels: Tensor

    def __init__(
        self, space: Space, config: Config | None = None, *, condition: Labels | None = None
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config = config or Config()
        levels = _levels(space)
        order = config.order
        if not 0 <= order < max(len(levels), 1):
            reason = f"a chain over {len(levels)} dimensions cannot have order {order}"
            raise Refusal("CFG-098", reason, way_out=f"set an order from 0 to {len(levels) - 1}")
        if config.shared and len(set(levels)) > 1:
            reason = "columns with different categories cannot share one table"
            raise Refusal("CFG-092", reason, way_out="set shared=false")
        self.symbols = max(levels) + config.shared
        self.contexts = self.symbols**order
        positions = 1 if config.shared else len(levels)
        entries = positions * self.contexts * max(levels)
        if entries > MOST_ENTRIES:
            raise Refusal(
                "CFG-093",
                f"order {order} takes tables of {entries:,} entries",
                way_out="set a lower order, shared=true, or fewer levels",
            )
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        start = self._uniform().log().unsqueeze(1).expand(-1, self.contexts, -1)
        self.register_buffer("log_table", start[:positions].float().clone())

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """The longest context with some ten data each; one table for text and for many levels."""
        levels = max(_levels(space), default=1)
        wide = isinstance(space, Images) and levels > 32
        shared = isinstance(space, Tokens) or wide
        positions = 1 if shared else space.dimensions
        seen = num_examples * (space.dimensions if shared else 1)
        order = 0
        while (
            order + 1 < min(space.dimensions, 9)
            and (levels + shared) ** (order + 1) * 10 <= seen
            and positions * (levels + shared) ** (order + 1) * levels <= RECOMMENDED_ENTRIES
        ):
            order += 1
        return Config(order=order, shared=shared)

    @classmethod
    def toy(cls) -> MarkovChain:
        return cls(Images(1, 3, 3, levels=3), Config(order=2))

    @property
    def kind(self) -> Kind:
        return Kind.EXACT

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        noise = row_noise(num_samples, generator, self.log_table.device)
        uniform = noise.uniform(len(self.levels))
        table = self._table()
        context = self._before_start(num_samples)
        drawn = torch.zeros_like(uniform, dtype=torch.long)
        for i in range(len(self.levels)):
            drawn[:, i] = categorical_draw(table[self._row(i)][context], uniform[:, i])
            context = self._moved(context, drawn[:, i])
        return out_of_order(drawn, self.space).to(self.space.dtype)

    def log_prob(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return self.log_factors(x).flatten(1).sum(1)

    def log_factors(self, x: Tensor, *, condition: Tensor | None = None) -> Tensor:
        flat = in_order(as_device(x, self), self.space).long()
        row = torch.arange(flat.shape[1], device=flat.device) % len(self.log_table)
        return out_of_order(self._table()[row, self._contexts(flat), flat], self.space)

    @torch.no_grad()
    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The exact conditional distribution of the rest, whatever is known (Rabiner 1989, eq. 25)."""
        noise = row_noise(len(x), generator, self.log_table.device)
        uniform = noise.uniform(len(self.levels))
        flat = in_order(as_device(x, self), self.space).long()
        held = in_order(as_device(known, self), self.space)
        rows = max(1, _AT_ONCE // (self.contexts * len(self.levels)))
        parts = [
            self._completed(*part)
            for part in zip(flat.split(rows), held.split(rows), uniform.split(rows), strict=True)
        ]
        done = torch.cat(parts) if parts else flat
        return out_of_order(done, self.space).to(self.space.dtype)

    def _completed(self, x: Tensor, known: Tensor, uniform: Tensor) -> Tensor:
        table, done = self._table(), x.clone()
        follow = self._moved(
            torch.arange(self.contexts, device=x.device).unsqueeze(1),
            torch.arange(table.shape[2], device=x.device),
        )
        # message[i](c) = log p(known entries from i on | context c), up to a constant.
        messages = [x.new_zeros((len(x), self.contexts), dtype=table.dtype)]
        for i in reversed(range(1, len(self.levels))):
            allowed = self._allowed(x[:, i], known[:, i], table)
            later = table[self._row(i)] + messages[-1][:, follow] + allowed.unsqueeze(1)
            message = torch.logsumexp(later, dim=2)
            top = message.amax(1, keepdim=True)
            messages.append(message - torch.where(top.isfinite(), top, 0))
        context = self._before_start(len(x))
        for i, message in enumerate(reversed(messages)):
            told = table[self._row(i)][context] + message.gather(1, follow[context])
            drawn = categorical_draw(told, uniform[:, i])
            done[:, i] = torch.where(known[:, i], x[:, i], drawn)
            context = self._moved(context, done[:, i])
        return done

    @staticmethod
    def _allowed(x: Tensor, known: Tensor, table: Tensor) -> Tensor:
        """0 for the levels that an entry may have and -inf for others, shape (n, levels)."""
        own = functional.one_hot(torch.where(known, x, 0), table.shape[2]).bool()
        return torch.where(own | ~known.unsqueeze(1), 0.0, -torch.inf).to(table.dtype)

    def diagnose(self, x: Tensor, *, condition: Tensor | None = None) -> dict[str, float]:
        levels, order = self.levels.tolist(), self.config.order
        if self.config.shared:
            return {"free parameters": float(self.contexts * (levels[0] - 1))}
        free = [
            int(self.levels[max(i - order, 0) : i].prod()) * (own - 1)
            for i, own in enumerate(levels)
        ]
        return {"free parameters": float(sum(free))}

    def _uniform(self) -> Tensor:
        """The uniform distribution of each dimension, float64 (D, levels)."""
        valid = torch.arange(int(self.levels.max())) < self.levels.cpu().unsqueeze(1)
        return valid.double() / valid.sum(1, keepdim=True)

    def _table(self) -> Tensor:
        # Normalised again, because stored logarithms are rounded.
        return torch.log_softmax(self.log_table, dim=2)

    def _row(self, position: int) -> int:
        return position % len(self.log_table)

    def _before_start(self, rows: int) -> Tensor:
        """The context of the first dimension, for each row."""
        start = self.contexts - 1 if self.config.shared else 0
        return torch.full((rows,), start, device=self.log_table.device)

    def _moved(self, context: Tensor, x: Tensor) -> Tensor:
        """The context one step on: its oldest entry falls out, ``x`` comes in."""
        moved: Tensor = (context * self.symbols + x) % self.contexts
        return moved

    def _contexts(self, flat: Tensor) -> Tensor:
        """The context of each entry, shape (n, D)."""
        found = [self._before_start(len(flat))]
        for i in range(flat.shape[1] - 1):
            found.append(self._moved(found[-1], flat[:, i]))
        return torch.stack(found, dim=1)

    @torch.no_grad()
    def count(self, batches: Iterator[Batch], noise: object, clock: Clock) -> Mapping[str, float]:
        """The closed form, from the shortest context to the longest."""
        counts = torch.zeros(self.log_table.numel(), dtype=torch.float64)
        rows = 0
        for batch in batches:
            flat = in_order(batch.x.cpu(), self.space).long()
            row = torch.arange(flat.shape[1]) % len(self.log_table)
            context = self._contexts(flat.to(self.log_table.device)).cpu()
            place = (row * self.contexts + context) * self.log_table.shape[2] + flat
            counts += torch.bincount(place.flatten(), minlength=len(counts))
            rows += len(flat)
        counts = counts.reshape(self.log_table.shape)
        found = self._uniform()[: len(counts)].unsqueeze(1)
        for order in range(self.config.order + 1):
            seen = counts.unflatten(1, (-1, self.symbols**order)).sum(1)
            # A shorter context lacks the oldest entry, which counts most: it repeats along the tables.
            shorter = found.repeat(1, seen.shape[1] // found.shape[1], 1)
            prior = self.config.prior_weight
            found = (seen + prior * shorter) / (seen.sum(2, keepdim=True) + prior)
        self.log_table.copy_(found.log())
        return {"counted": float(rows), "finished": 1.0}

    def game(self) -> Game:
        return Game([Stage([Rewrite("count", self.count, sweep=True)], rounds=1)], batch_size=1000)


def _levels(space: Space) -> list[int]:
    """How many values each dimension can take; a real column is refused."""
    if isinstance(space, Table):
        if space.measure is not Measure.COUNTING:
            real = next(column.name for column in space.columns if column.kind == "real")
            reason = f"a chain of tables counts categories, and {real!r} is a real column"
            raise Refusal(
                "CFG-094", reason, way_out="choose linear-autoregressive for real columns"
            )
        return [len(column.categories) for column in space.columns]
    assert isinstance(space, Images | Tokens)
    return [space.levels if isinstance(space, Images) else space.vocabulary] * space.dimensions
