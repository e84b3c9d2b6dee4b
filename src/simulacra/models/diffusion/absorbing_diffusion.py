"""Absorbing diffusion: entries are masked one after the other, and a network learns to bring them back.

Noise turns entries of a text, or of an image of few levels, into a mask, from which there is no way
back (Austin et al. 2021, sec. 3.1). The network p(x_i | x_seen) sees what is not masked, all at once,
and tells every masked entry's distribution. If entries come back one at a time in a random order sigma,
then (Hoogeboom et al. 2022, eq. 2 to 4)

    log p(x) >= E_sigma sum_t log p(x_sigma(t) | x_sigma(<t))
              = E_k D / k E_{k masked} sum_{i masked} log p(x_i | x_seen),    k uniform in 1..D,

which is the continuous-time bound of absorbing diffusion, whatever its schedule (Sahoo et al. 2024, eq.
10; Ou et al. 2024). Training and ``log_prob`` take it on random k and random masks, unbiased,
``bound_draws`` of stratified k for the latter. What is sampled one entry at a time is what the bound is
of; in fewer steps, ``num_inference_steps``, several entries come back at once, as if independent given
what is seen. Any entries may be the known ones, so ``complete`` is sampling from a later start.

Papers: Austin, Johnson, Ho, Tarlow & van den Berg 2021; Hoogeboom et al. 2022. Changed: no time as an
input (how many are masked can be seen), learned places with turned queries and keys (Su et al. 2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from simulacra.contract import Completer, Density, Kind, Sampler
from simulacra.games import Batch, Clock, Descent, Game, Loss, Player, Stage
from simulacra.layers.attention import AttentionLayer, Places, attended, grid, turned
from simulacra.layers.front_door import as_device, drawn_labels
from simulacra.optimisation import Optimiser
from simulacra.probability.distributions import categorical_draw, categorical_log_prob
from simulacra.probability.noise import Noise, row_noise, scoring_noise
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels, Space, Tokens


@dataclass(frozen=True)
class Config:
    """``width``, ``layers`` and ``heads`` are the transformer's. ``num_inference_steps`` is the
    sampler's, 0 for one entry at a time; ``bound_draws`` the draws of k in ``log_prob``. Neither
    touches weights."""

    width: int = 64
    layers: int = 4
    heads: int = 4
    dropout: float = 0.0
    num_inference_steps: int = 0
    bound_draws: int = 16
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.0


class AbsorbingDiffusion(nn.Module, Sampler, Density, Completer):
    """A transformer that sees in all directions and tells what is masked."""

    spaces: ClassVar = (Images, Tokens)
    conditions: ClassVar = (Labels,)

    def __init__(
        self,
        space: Images | Tokens,
        config: Config | None = None,
        *,
        condition: Labels | None = None,
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config = config or Config()
        _require_sense(config)
        self.count = space.levels if isinstance(space, Images) else space.vocabulary
        width = config.width
        self.values = nn.Embedding(self.count + 1, width)
        self.start = nn.Embedding(condition.count if condition else 1, width)
        self.places = Places(space, width, width // config.heads)
        self.layers = nn.ModuleList(
            AttentionLayer(width, config.heads, config.layers, config.dropout)
            for _ in range(config.layers)
        )
        self.norm, self.leave = nn.LayerNorm(width), nn.Linear(width, self.count)
        for table in (self.values.weight, self.start.weight, self.leave.weight):
            nn.init.normal_(table, std=0.02)
        nn.init.zeros_(self.leave.bias)

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """Few layers and dropout for few data; wider for colour and text, which come in 64 steps."""
        steps = 0 if space.dimensions <= 64 else 64
        if num_examples < 10_000:
            return Config(
                layers=3,
                heads=2,
                dropout=0.1,
                num_inference_steps=steps,
                batch_size=64,
                learning_rate=3e-3,
            )
        if isinstance(space, Images) and space.channels == 1:
            return Config(width=96, num_inference_steps=steps, learning_rate=2e-3)
        return Config(width=128, num_inference_steps=steps, batch_size=16)

    @classmethod
    def toy(cls) -> AbsorbingDiffusion:
        config = Config(16, 1, 2, bound_draws=9, batch_size=32, learning_rate=0.01)
        return cls(Images(1, 3, 3, levels=2), config)

    @property
    def kind(self) -> Kind:
        return Kind.LOWER

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
    ) -> Tensor:
        noise = row_noise(num_samples, generator, self._weight.device)
        length = self.space.dimensions
        nothing = torch.zeros((num_samples, length), dtype=torch.long, device=self._weight.device)
        return self._drawn(noise, condition, nothing, nothing.bool(), num_inference_steps)

    def log_prob(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The bound, from one draw of k in each of ``bound_draws`` equal parts, and one mask for
        each."""
        noise = scoring_noise(len(x), generator, self._weight.device)
        entries = self._in_order(as_device(x, self))
        draws = self.config.bound_draws
        total = torch.zeros(len(x), dtype=self._weight.dtype, device=entries.device)
        for index in range(draws):
            count = self._masked_count((index + noise.uniform()) / draws)
            total = total + self._term(entries, condition, count, noise)
        return total / draws

    @torch.no_grad()
    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Unknown entries are drawn one at a time (or in ``num_inference_steps``) in a random order,
        each given all that is known or drawn, wherever it stands."""
        noise = row_noise(len(x), generator, self._weight.device)
        given, known = (self._in_order(as_device(one, self)) for one in (x, known))
        return self._drawn(noise, condition, given.long(), known, None)

    @property
    def _weight(self) -> Tensor:
        return self.values.weight

    def logits(self, entries: Tensor, masked: Tensor, condition: Tensor | None = None) -> Tensor:
        """Of every value at every entry, (batch, length, values), given the entries that are not
        masked."""
        h = self.values(torch.where(masked, self.count, entries.long()))
        h = h + self.places() + self._class(condition, len(entries))
        for layer in self.layers:
            h = layer(h, self._attend)
        out: Tensor = self.leave(self.norm(h))
        return out

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # An entry carries its own value: queries and keys are turned by the same place.
        query, key = turned(query, self.places.query), turned(key, self.places.query)
        return attended(query, key, value)

    def _class(self, condition: Tensor | None, rows: int) -> Tensor:
        if self.condition_space is None:
            return self.start.weight
        if condition is None:
            raise ValueError("a conditional model needs a condition for every row")
        if len(condition) != rows:
            raise ValueError(f"{rows} rows need {rows} conditions, got {len(condition)}")
        told: Tensor = self.start(as_device(condition, self).long())
        return told.unsqueeze(1)

    def _in_order(self, x: Tensor) -> Tensor:
        """Entries as a sequence, (batch, length)."""
        return x.permute(0, 2, 3, 1).flatten(1) if isinstance(self.space, Images) else x

    def _in_place(self, entries: Tensor) -> Tensor:
        """The inverse of ``_in_order``."""
        if not isinstance(self.space, Images):
            return entries
        return entries.reshape(len(entries), *grid(self.space)).permute(0, 3, 1, 2).contiguous()

    def _masked_count(self, place: Tensor) -> Tensor:
        """Places in [0, 1) as k in 1..D."""
        length = self.space.dimensions
        return 1 + (place * length).long().clamp(max=length - 1)

    def _term(
        self, entries: Tensor, condition: Tensor | None, count: Tensor, noise: Noise
    ) -> Tensor:
        """D / k sum of log p(x_i | x_seen) over the k entries that a random mask hides, shape (n,)."""
        masked = _ranks(noise.uniform(self.space.dimensions)) < count[:, None]
        logits = self.logits(entries, masked, condition).to(self._weight.dtype)
        each = torch.where(masked, categorical_log_prob(entries, logits), 0.0)
        return each.sum(1) * (self.space.dimensions / count)

    def _drawn(
        self,
        noise: Noise,
        condition: Tensor | None,
        entries: Tensor,
        known: Tensor,
        steps: int | None,
    ) -> Tensor:
        """Entries that are not known come back in a random order, in so many steps."""
        condition = drawn_labels(condition, self.condition_space, noise.uniform())
        length = self.space.dimensions
        # Those that are known stand last in the order, and the rest share the steps evenly.
        order = _ranks(noise.uniform(length) + known)
        uniform = noise.uniform(length)
        steps = steps or self.config.num_inference_steps or length
        unknown = (~known).sum(1, keepdim=True).clamp(min=1)
        turn = torch.where(known, -1, order * steps // unknown)
        training, _ = self.training, self.eval()
        for step in range(steps):
            now = turn == step
            if now.any():
                value = categorical_draw(self.logits(entries, turn >= step, condition), uniform)
                entries = torch.where(now, value, entries)
        self.train(training)
        return self._in_place(entries).to(self.space.dtype)

    def negative_bound(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """Minus the bound in nats a dimension, k stratified over the batch."""
        place = noise.uniform() + torch.arange(len(batch), device=batch.x.device)
        count = self._masked_count(place / len(batch))
        entries = self._in_order(batch.x)
        bound = self._term(entries, batch.condition, count, noise)
        return Loss(-bound.mean() / self.space.dimensions)

    def game(self) -> Game:
        config = self.config
        optimiser = Optimiser(
            "adamw",
            config.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=config.weight_decay,
            warmup=100 * config.batch_size,
        )
        player = Player("network", list(self.parameters()), optimiser, clip=1.0)
        stage = Stage([Descent((player,), self.negative_bound)])
        bf16 = config.width >= 64
        return Game([stage], batch_size=config.batch_size, average=0.05, bf16=bf16)


def _ranks(keys: Tensor) -> Tensor:
    """The place of each key in its row when they are sorted."""
    return keys.argsort(1).argsort(1)


def _require_sense(config: Config) -> None:
    if config.width % (2 * config.heads):
        raise Refusal(
            "CFG-226",
            f"a width of {config.width} is not {config.heads} heads of an even width",
            way_out=f"choose a multiple of {2 * config.heads}",
        )
    if config.bound_draws < 1 or config.num_inference_steps < 0:
        reason = (
            f"bound_draws is {config.bound_draws}, num_inference_steps {config.num_inference_steps}"
        )
        raise Refusal("CFG-227", reason, way_out="draw at least once, and take 0 or more steps")
