"""Restricted Boltzmann machine: binary data and binary hidden units, joined by an energy.

    E(v, h) = -b'v - c'h - v'Wh,    p(v, h) = exp(-E) / Z             (Smolensky 1986; Hinton 2002)

Within a layer all units are independent given the other layer, h_j ~ sigmoid(c_j + v'W_j) and
v_i ~ sigmoid(b_i + W_i h), and the hidden one sums out: log p*(v) = b'v + sum_j softplus(c_j + v'W_j).
The gradient of log p is that of log p*(data) - log p*(v~) for v~ ~ p. Persistent chains stand for v~,
moved by k Gibbs steps a round (Tieleman 2008), or k steps from the data themselves (CD-k: Hinton 2002).

Weights are centred, E = -(v - mu)'b - (h - lambda)'c - (v - mu)'W(h - lambda), the same family with a
better conditioned gradient (Melchior, Fischer & Wiskott 2016): mu is the data's mean, lambda follows
the hidden one.

Z is exact, a sum over the smaller layer's states, while that layer has at most 20 units (fewer beside a
large one). Otherwise a last turn estimates it by annealed importance sampling from a base of independent
pixels with logits b_A (Salakhutdinov & Murray 2008),

    log p*_beta(v) = (1 - beta) b_A'v + beta b'v + sum_j softplus(beta (c_j + v'W_j)),

from below, and from above by chains down from the training data after a long run at beta = 1. Until
then, and whenever weights have moved since, ``log_prob`` lacks its constant, and ``kind`` says so.

Samples are those of a chain, annealed from the base and then run at beta = 1: they converge to p with
``sampling_steps``, and are not exact draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.contract import (
    Annealed,
    Completer,
    Decoder,
    Density,
    Diagnosable,
    Encoder,
    Kind,
    Sampler,
)
from simulacra.games import Batch, Clock, Descent, Game, Loss, Player, Rewrite, Stage
from simulacra.layers.front_door import as_device
from simulacra.optimisation import Optimiser
from simulacra.probability.annealing import Partition, anneal_both_ways
from simulacra.probability.noise import BatchNoise, Noise, row_noise
from simulacra.processes import mean_over_processes
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels, Space, Tokens, Vectors

MOST_ENUMERATED, MOST_NUMBERS = 20, 2**27
"""Up to so many units of the smaller layer, and numbers in all, log Z is a sum over their states."""

STATES_AT_ONCE, NUMBERS_AT_ONCE = 2**12, 2**12
PSEUDO_ROWS = 32
EVERY, FOLLOWING = 10, 0.1
"""Rounds between two moves of lambda, and how far each goes towards the batch's mean."""


@dataclass(frozen=True)
class Config:
    """``steps`` is k. ``chains`` are persistent ones. ``sampling_steps``: of a sample's chain, the first
    quarter of them annealed. ``annealing_chains`` and ``annealing_steps``: for log Z, each way."""

    hidden: int = 500
    method: Literal["persistent", "contrastive"] = "persistent"
    steps: int = 1
    chains: int = 100
    centred: bool = True
    sampling_steps: int = 1000
    annealing_chains: int = 100
    annealing_steps: int = 1000
    batch_size: int = 100
    learning_rate: float = 0.05
    weight_decay: float = 0.0


@dataclass(frozen=True)
class _Energy:
    """The uncentred weights: W (D, H), b (D,), c (H,), and the base's logits b_A (D,)."""

    weight: Tensor
    visible: Tensor
    hidden: Tensor
    base: Tensor

    def log_annealed(self, v: Tensor, betas: Tensor) -> Tensor:
        """log p*_beta(v), shapes (n, D) and (k,) to (n, k)."""
        field = v @ self.weight + self.hidden
        summed = torch.stack([_softplus(beta * field).sum(1) for beta in betas], dim=1)
        base, own = (v @ self.base).unsqueeze(1), (v @ self.visible).unsqueeze(1)
        return (1 - betas) * base + betas * own + summed

    def gibbs(self, v: Tensor, beta: Tensor | float, uniform: Tensor) -> Tensor:
        """v -> h -> v at beta; ``uniform`` (n, H + D)."""
        below = torch.sigmoid(beta * (self.hidden + v @ self.weight))
        h = (uniform[:, : len(self.hidden)] < below).to(v.dtype)
        field = (1 - beta) * self.base + beta * (self.visible + h @ self.weight.T)
        return (uniform[:, len(self.hidden) :] < torch.sigmoid(field)).to(v.dtype)

    def log_partition(self) -> Tensor:
        """log Z, a sum over all states of the smaller layer, the other one summed out."""
        outer, inner, weight = self.hidden, self.visible, self.weight.T
        if len(inner) < len(outer):
            outer, inner, weight = inner, outer, self.weight
        places = torch.arange(len(outer), device=outer.device)
        parts = []
        for states in torch.arange(2 ** len(outer), device=outer.device).split(STATES_AT_ONCE):
            state = ((states.unsqueeze(1) >> places) & 1).to(outer.dtype)
            log_weight = state @ outer + _softplus(inner + state @ weight).sum(1)
            parts.append(torch.logsumexp(log_weight, 0))
        return torch.logsumexp(torch.stack(parts), 0)


def _softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), to the last digit in float64 too."""
    return functional.softplus(x, threshold=40)


class RBM(nn.Module, Sampler, Density, Annealed, Encoder, Decoder, Completer, Diagnosable):
    """One layer of hidden units over binary data."""

    spaces: ClassVar = (Images, Tokens)
    conditions: ClassVar = ()
    visible_mean: Tensor
    hidden_mean: Tensor
    fantasies: Tensor
    upward: Tensor
    downward: Tensor
    log_partition: Tensor
    measured: Tensor

    def __init__(
        self, space: Space, config: Config | None = None, *, condition: Labels | None = None
    ) -> None:
        super().__init__()
        self.space, self.condition_space = _binary(space), condition
        self.config = config = config or Config()
        visible, hidden = space.dimensions, config.hidden
        self.weight = nn.Parameter(0.01 * torch.randn(visible, hidden))
        self.visible = nn.Parameter(torch.zeros(visible))
        self.hidden = nn.Parameter(torch.zeros(hidden))
        self.register_buffer("visible_mean", torch.full((visible,), 0.5))
        self.register_buffer("hidden_mean", torch.full((hidden,), 0.5))
        chains = config.chains if config.method == "persistent" else 0
        self.register_buffer("fantasies", torch.zeros(chains, visible, dtype=torch.uint8))
        estimates = 0 if self.enumerable else config.annealing_chains
        self.register_buffer("upward", torch.zeros(estimates, dtype=torch.float64))
        self.register_buffer("downward", torch.zeros(estimates, dtype=torch.float64))
        self.register_buffer("log_partition", torch.zeros((), dtype=torch.float64))
        # The temperatures that log Z was made with: nought where it is not known of these weights.
        self.register_buffer("measured", torch.zeros((), dtype=torch.int64))

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """Fewer hidden units, and weights that decay, for few data."""
        if num_examples < 10_000 or space.dimensions < 200:
            hidden = min(max(2 * space.dimensions, 16), 200)
            return Config(hidden=hidden, learning_rate=0.2, weight_decay=1e-4)
        return Config()

    @classmethod
    def toy(cls) -> RBM:
        return cls(
            Images(1, 3, 3, levels=2),
            Config(hidden=4, chains=32, sampling_steps=100, batch_size=32, learning_rate=0.2),
        )

    @property
    def enumerable(self) -> bool:
        """Whether log Z is a sum over few enough states."""
        fewer, more = sorted((self.space.dimensions, self.config.hidden))
        return fewer <= MOST_ENUMERATED and 2**fewer * more <= MOST_NUMBERS

    @property
    def kind(self) -> Kind:
        if self.enumerable:
            return Kind.EXACT
        return Kind.ESTIMATE if int(self.measured) else Kind.UNNORMALISED

    @property
    def partition(self) -> Partition | None:
        if self.enumerable or not int(self.measured):
            return None
        return Partition(self.upward.cpu(), self.downward.cpu(), int(self.measured))

    @property
    def code_space(self) -> Vectors:
        return Vectors(self.config.hidden)

    @property
    def start_log_partition(self) -> Tensor:
        return _softplus(self._energy(torch.float64).base).sum() + self.config.hidden * math.log(2)

    def start(self, noise: Noise) -> Tensor:
        chance = torch.sigmoid(self._energy().base)
        return self._elements(noise.uniform(self.space.dimensions) < chance)

    @torch.no_grad()
    def step(self, x: Tensor, beta: Tensor, noise: Noise) -> Tensor:
        uniform = noise.uniform(self._units)
        return self._elements(self._energy().gibbs(self._flat(x), float(beta), uniform))

    def log_annealed(self, x: Tensor, betas: Tensor) -> Tensor:
        energy = self._energy()
        return energy.log_annealed(self._flat(x), betas.to(energy.weight))

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        noise = row_noise(num_samples, generator, self.weight.device)
        return self._elements(self._run(noise, None, None))

    def log_prob(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        unnormalised = self.log_annealed(x, torch.ones(1))[:, 0]
        return unnormalised - self._log_partition().to(unnormalised.dtype)

    @torch.no_grad()
    def encode(self, x: Tensor, *, condition: Tensor | None = None) -> Tensor:
        """The hidden units' probabilities."""
        energy = self._energy()
        return torch.sigmoid(energy.hidden + self._flat(x) @ energy.weight)

    @torch.no_grad()
    def decode(self, code: Tensor, *, condition: Tensor | None = None) -> Tensor:
        """The most likely element given hidden units, or probabilities in their place."""
        energy = self._energy()
        field = energy.visible + as_device(code, self).to(energy.weight) @ energy.weight.T
        return self._elements(field > 0)

    @torch.no_grad()
    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A sample's chain whose known entries are held."""
        noise = row_noise(len(x), generator, self.weight.device)
        return self._elements(self._run(noise, self._flat(x), as_device(known, self).flatten(1)))

    @torch.no_grad()
    def diagnose(self, x: Tensor, *, condition: Tensor | None = None) -> dict[str, float]:
        code = self.encode(x).double()
        told = {
            "pseudo-likelihood (nats)": self._pseudo_likelihood(self._flat(x[:PSEUDO_ROWS])),
            "mean activity of hidden units (share)": float(code.mean()),
            "hidden units that hardly move (share)": float(
                (code.std(0, correction=0) < 0.01).double().mean()
            ),
        }
        if int(self.measured):
            told["log Z (nats)"] = float(self.log_partition)
        found = self.partition
        if found is not None:
            told |= {
                "log Z, standard error (nats)": found.standard_error,
                "log Z, reverse over forward (nats)": found.gap,
                "log Z, effective sample size (chains)": found.effective_sample_size,
            }
        return told

    @property
    def _units(self) -> int:
        return sum(self.weight.shape)

    def _energy(self, dtype: torch.dtype | None = None) -> _Energy:
        """The weights as an energy without offsets; gradients through it are the centred ones."""
        weight, visible, hidden = (
            one.to(dtype or one.dtype) for one in (self.weight, self.visible, self.hidden)
        )
        base = torch.logit(self.visible_mean.to(weight))
        if self.config.centred:
            visible = visible - weight @ self.hidden_mean.to(weight)
            hidden = hidden - self.visible_mean.to(weight) @ weight
        return _Energy(weight, visible, hidden, base)

    def _flat(self, x: Tensor) -> Tensor:
        return as_device(x, self).flatten(1).to(self.weight.dtype)

    def _elements(self, v: Tensor) -> Tensor:
        return v.to(self.space.dtype).reshape(len(v), *self.space.shape)

    def _log_partition(self) -> Tensor:
        """log Z where it can be known, else nought."""
        if self.enumerable and not int(self.measured):
            return self._energy(torch.float64).log_partition()
        return self.log_partition if int(self.measured) else torch.zeros_like(self.log_partition)

    def _run(self, noise: Noise, given: Tensor | None, known: Tensor | None) -> Tensor:
        """The chain of ``sampling_steps`` from the base, in float64: rounding that depends on the
        batch would now and then tip a unit over, and the whole chain after it."""
        energy, count = self._energy(torch.float64), self.config.sampling_steps
        betas = (torch.arange(1, count + 1) / max(count // 4, 1)).clamp(max=1.0)
        v = (noise.uniform(self.space.dimensions) < torch.sigmoid(energy.base)).double()
        # Numbers are drawn for several steps at once, as drawing them row by row takes its time.
        for part in betas.split(max(NUMBERS_AT_ONCE // self._units, 1)):
            uniform = noise.uniform(len(part), self._units)
            for index, beta in enumerate(part.tolist()):
                if given is not None and known is not None:
                    v = torch.where(known, given.double(), v)
                v = energy.gibbs(v, beta, uniform[:, index])
        return v if given is None or known is None else torch.where(known, given.double(), v)

    def _pseudo_likelihood(self, v: Tensor) -> float:
        """Mean of sum_i log p(v_i | all others) (Besag 1975), which needs no Z."""
        energy = self._energy()
        field = v @ energy.weight + energy.hidden
        sign = 1 - 2 * v
        total = 0.0
        for own, turned in zip(field, sign, strict=True):
            flipped = _softplus(own + turned.unsqueeze(1) * energy.weight).sum(1)
            rise = turned * energy.visible + flipped - _softplus(own).sum()
            total -= float(_softplus(rise).sum())
        return total / max(len(v), 1)

    def contrast(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """log p*(v~) - log p*(v), means over chains (each process has its own) and data, in nats."""
        self.measured.zero_()
        v, energy = self._flat(batch.x), self._energy()
        chains = self.fantasies.to(v) if self.config.method == "persistent" else v
        with torch.no_grad():
            for _ in range(self.config.steps):
                chains = energy.gibbs(chains, 1.0, _uniform(noise, len(chains), self._units))
        if self.config.method == "persistent":
            self.fantasies.copy_(chains)
        free = energy.log_annealed(torch.cat([v, chains]), torch.ones(1).to(v))[:, 0]
        return Loss(free[len(v) :].mean() - free[: len(v)].mean())

    @torch.no_grad()
    def begin(self, batches: Iterator[Batch], noise: Noise, clock: Clock) -> Mapping[str, float]:
        """mu, and biases and chains of independent pixels (Hinton 2012, sec. 8)."""
        total, rows = torch.zeros_like(self.visible_mean, dtype=torch.float64), 0
        for batch in batches:
            total += self._flat(batch.x).double().sum(0)
            rows += len(batch)
        # Half a datum of each value, so that no pixel is certain.
        self.visible_mean.copy_((total + 0.5) / (rows + 1))
        self.visible.copy_(torch.logit(self.visible_mean))
        if self.config.centred:
            self.visible.add_(self.weight @ self.hidden_mean)
        uniform = _uniform(noise, len(self.fantasies), self.space.dimensions)
        self.fantasies.copy_(uniform < self.visible_mean)
        return {"counted": float(rows)}

    @torch.no_grad()
    def recentre(self, batches: Iterator[Batch], noise: Noise, clock: Clock) -> Mapping[str, float]:
        """lambda goes after the hidden mean of the batch; b follows, and p stays as it was."""
        mean = torch.cat([self.encode(batch.x) for batch in batches]).mean(0)
        mean_over_processes([mean])
        change = FOLLOWING * (mean - self.hidden_mean)
        self.hidden_mean.add_(change)
        self.visible.add_(self.weight @ change)
        return {"hidden activity": float(mean.mean())}

    @torch.no_grad()
    def measure(self, batches: Iterator[Batch], noise: Noise, clock: Clock) -> Mapping[str, float]:
        """log Z: exactly, or by annealing up from the base and down from where the data lead."""
        if self.enumerable:
            self.log_partition.copy_(self._energy(torch.float64).log_partition())
            self.measured.fill_(1)
            return {"log Z (nats)": float(self.log_partition)}
        chains = self.config.annealing_chains
        seed = int(noise.uniform()[0].double() * 2**24)
        rows = BatchNoise(torch.Generator().manual_seed(seed), chains, self.weight.device)
        x = next(batches).x
        x = x[torch.arange(chains, device=x.device) % len(x)]
        upward, downward = anneal_both_ways(
            self,
            x,
            rows,
            steps=self.config.annealing_steps,
            settling=self.config.sampling_steps,
        )
        self.upward.copy_(upward)
        self.downward.copy_(downward)
        self.measured.fill_(self.config.annealing_steps)
        found = self.partition
        assert found is not None
        self.log_partition.fill_(found.log_partition)
        return found.numbers()

    def game(self) -> Game:
        config = self.config
        # Plain descent: its steps are known to suit persistent chains, which have to keep up with them.
        optimiser = Optimiser("sgd", config.learning_rate, weight_decay=config.weight_decay)
        player = Player("energy", list(self.parameters()), optimiser)
        contrast = Descent((player,), self.contrast, buffers=("fantasies", "measured"))
        recentre = [Rewrite("recentre", self.recentre, batches=0, every=EVERY)]
        stages = [
            Stage([Rewrite("begin", self.begin, sweep=True)], rounds=1),
            Stage([contrast, *(recentre if config.centred else [])]),
            Stage([Rewrite("log Z", self.measure)], rounds=1),
        ]
        return Game(stages, batch_size=config.batch_size, keep="last")


def _binary(space: Space) -> Space:
    levels = space.levels if isinstance(space, Images) else 0
    levels = space.vocabulary if isinstance(space, Tokens) else levels
    if levels != 2:
        raise Refusal(
            "CFG-055",
            f"a restricted Boltzmann machine models binary data, and these are {space}",
            way_out="show images with --view binary or dynamic, or choose another model",
        )
    return space


def _uniform(noise: Noise, rows: int, width: int) -> Tensor:
    """Uniform numbers for another number of rows than that of the data, shape (rows, width)."""
    each = -(-rows // noise.rows)
    return noise.uniform(each, width).flatten(0, 1)[:rows]
