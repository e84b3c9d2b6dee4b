"""CTGAN: a generator of table rows that is told some of their columns, and a critic.

Numbers enter by the mode of their column that they are near (``layers/column_modes.py``), so that the
generator can make humps, spikes and gaps. In training it is told one category of a row, of a column that
is drawn evenly, a category by the logarithm of its frequency (Xu et al. 2019, sec. 4.3): rare ones are
seen as often as they have to be; the critic is shown real rows with that category, and told it too. A
sample is told a category by its frequency, which leaves the rows as frequent as they are. The loss is
WGAN-GP's on packs of ten, or any other by the options of ``layers/adversarial_rules.py``.

Papers: Xu, Skoularidou, Cuesta-Infante & Veeramachaneni 2019, arXiv 1907.00503; Lin et al. 2018 (packs).
Changed: in the other half of all rows any columns are given, so that ``complete`` draws rows with given
columns of every kind without rejection; what is given stands in the made row as it is, and no penalty
has to teach the generator to repeat it; rows with a category come from the batch, not from all data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.contract import Completer, Sampler
from simulacra.families.adversarial import AdversarialModel
from simulacra.games import Batch, Clock, Rewrite, Stage
from simulacra.layers.adversarial_rules import Conditioning, Regulariser, Rules
from simulacra.layers.column_modes import ColumnModes
from simulacra.layers.contest import Contest, Sides
from simulacra.layers.dense_critic import DenseCritic
from simulacra.layers.front_door import as_device
from simulacra.layers.normalisation import BatchNorm
from simulacra.probability.adversarial import Name
from simulacra.probability.distributions import categorical_draw
from simulacra.probability.noise import Noise, row_noise
from simulacra.processes import of_all_processes, own_rows
from simulacra.refusals import Refusal
from simulacra.spaces import Column, Space, Table

ONE_CATEGORY = 0.5
"""The share of rows that are told one category; of the others any columns are given."""


@dataclass(frozen=True, kw_only=True)
class Config(Rules):
    """``latent`` normal numbers through ``layers`` of ``hidden`` units each, as many in the critic; all
    else are the rules' options, at the paper's values."""

    latent: int = 128
    hidden: int = 256
    layers: int = 2
    loss: Name = "wasserstein"
    regulariser: Regulariser = "wgan-gp"
    penalty: float = 10.0
    penalty_every: int = 1
    pack: int = 10
    conditioning: Conditioning = "concatenation"
    batch_size: int = 500
    learning_rate: float = 2e-4


class Joined(nn.Module):
    """h beside ReLU(norm(W h)): a layer that keeps all that came before (Xu et al. 2019, sec. 4.4)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(inputs, outputs), BatchNorm(outputs)

    def forward(self, h: Tensor) -> Tensor:
        return torch.cat([functional.relu(self.norm(self.linear(h))), h], dim=1)


class CTGAN(AdversarialModel, Sampler, Completer):
    """A conditional generator of rows, and the critic that taught it."""

    gains_by_bf16: ClassVar = False
    config: Config
    spaces: ClassVar = (Table,)
    conditions: ClassVar = ()

    def __init__(
        self, space: Space, config: Config | None = None, *, condition: None = None
    ) -> None:
        super().__init__()
        assert isinstance(space, Table)
        self.space, self.condition_space = space, None
        self.config = config = config or Config()
        if config.conditioning == "auxiliary":
            reason = "an auxiliary classifier tells one class, and ctgan tells any columns of a row"
            raise Refusal("CFG-187", reason, way_out='set conditioning to "concatenation"')
        if not config.layers:
            reason = "layers is 0, and ctgan's critic reads what a hidden layer sees"
            raise Refusal("CFG-263", reason, way_out="give at least 1")
        self.door = ColumnModes(space)
        told = self.door.size + len(space.columns)
        inputs = [
            config.latent + told + index * config.hidden for index in range(config.layers + 1)
        ]
        self.generator = nn.Sequential(
            *(Joined(one, config.hidden) for one in inputs[:-1]),
            nn.Linear(inputs[-1], self.door.size),
        )
        self.critic = DenseCritic(
            self.door.size, told, config, hidden=config.hidden, layers=config.layers
        )
        self.contest = Contest(config, self.critic, batch_size=config.batch_size)

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """The relativistic loss and penalties that ``gan`` has for rows; smaller batches of few rows."""
        return Config(
            loss="relativistic",
            regulariser="r1+r2",
            penalty=1e-3,
            pack=1,
            critic_rate=2.0,
            batch_size=250 if num_examples >= 2000 else 100,
            learning_rate=1e-3,
        )

    @classmethod
    def toy(cls) -> CTGAN:
        space = Table((Column("a"), Column("b", "category", ("x", "y", "z"))))
        return cls(space, Config(latent=2, hidden=16, layers=1, batch_size=16, pack=2))

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        noise = row_noise(num_samples, generator, self.door.mean.device)
        row = self.door.mean.new_zeros(num_samples, self.door.size)
        known = torch.zeros_like(row[:, : len(self.door.widths)], dtype=torch.bool)
        if self.door.named:
            row, known = self._frequent(row, known, noise.uniform(2).to(row))
        return self._drawn(row, known, noise)

    def _drawn(self, row: Tensor, known: Tensor, noise: Noise) -> Tensor:
        """Rows of the table with the ``known`` columns of ``row``, none of which depends on another."""
        training, _ = self.generator.training, self.generator.eval()
        drawn = self.door.leave(self._made(row, known, noise))
        self.generator.train(training)
        return drawn

    def _frequent(self, row: Tensor, known: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Rows told one category each, of an even column, by its frequency."""
        column = self._even(uniform[:, 0])
        parts = self._within(column)
        logits = torch.where(parts, self.door.log_frequencies, -torch.inf)
        place = categorical_draw(logits, uniform[:, 1])
        first = len(self.door.numbers)
        row = row.scatter(1, (first + place).unsqueeze(1), 1.0)
        return row, known.scatter(1, column.unsqueeze(1), True)

    def _even(self, uniform: Tensor) -> Tensor:
        """A column of categories for each uniform number (n,), all of them as likely."""
        named = torch.tensor(self.door.named, device=uniform.device)
        return named[(uniform * len(named)).long().clamp(max=len(named) - 1)]

    def _within(self, column: Tensor) -> Tensor:
        """Which numbers of the parts are of a row's ``column``, (n, width)."""
        return self.door.column_of[len(self.door.numbers) :] == column.unsqueeze(1)

    @torch.no_grad()
    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The unknown columns, drawn by the generator that is told the known ones."""
        noise = row_noise(len(x), generator, self.door.mean.device)
        x, known = as_device(x, self), as_device(known, self)
        filled = torch.where(known, x, torch.zeros_like(x))
        drawn = self._drawn(self.door.enter(filled, noise), known, noise)
        return torch.where(known, x, drawn)

    def _told(self, row: Tensor, known: Tensor) -> Tensor:
        """What both networks are told: the known numbers of a row, and which columns they are."""
        return torch.cat([row * self._spread(known), known.to(row)], dim=1)

    def _spread(self, known: Tensor) -> Tensor:
        """Columns (n, columns) as the numbers that stand for them, (n, size)."""
        return known[:, self.door.column_of].to(self.door.mean.dtype)

    def _made(self, row: Tensor, known: Tensor, noise: Noise) -> Tensor:
        """Made rows in which the ``known`` columns are those of ``row``."""
        z = noise.normal(self.config.latent).to(row)
        raw = self.generator(torch.cat([z, self._told(row, known)], dim=1))
        made = self.door.made(raw, noise.uniform(self.door.width).to(row))
        return torch.where(self._spread(known) > 0, row, made)

    def _sides(self, batch: Batch, noise: Noise, *, makes: bool = True) -> Sides:
        """Real rows and made ones that are told the same columns."""
        row = self.door.enter(batch.x, noise)
        row, known = self._chosen(row, noise)
        made = self._made(row, known, noise) if makes else row
        return Sides(row, made, self._told(row, known))

    def _chosen(self, row: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Rows of the batch, and which of their columns are told."""
        columns = len(self.door.widths)
        uniform = noise.uniform(columns + 4).to(row)
        known = uniform[:, 4:] < uniform[:, 3:4]
        if not self.door.named:
            return row, known
        column = self._even(uniform[:, 0])
        alone = uniform[:, 2:3] < ONE_CATEGORY
        whole = of_all_processes(row, dim=0)
        chosen = own_rows(torch.arange(len(whole), device=row.device), len(row))
        chosen = torch.where(alone[:, 0], self._evened(whole, column, uniform[:, 1]), chosen)
        only = functional.one_hot(column, columns).bool()
        return whole[chosen], torch.where(alone, only, known)

    def _evened(self, row: Tensor, column: Tensor, uniform: Tensor) -> Tensor:
        """A row of all for each ``column``, its category as often as log(1 + how often) tells."""
        parts = row[:, len(self.door.numbers) :]
        count = parts.sum(0)
        weight = torch.where(count > 0, torch.log1p(count) / count.clamp(min=1), 0.0)
        of_column = self._within(column).to(parts) * weight
        return categorical_draw((of_column @ parts.T).log(), uniform)

    def _first(self) -> Sequence[Stage]:
        return (Stage([Rewrite("fit door", self.fit_door, sweep=True)], rounds=1),)

    def fit_door(self, batches: Iterator[Batch], noise: Noise, clock: Clock) -> Mapping[str, float]:
        """Modes of the numbers, and frequencies."""
        self.door.fit(batch.x for batch in batches)
        return {}
