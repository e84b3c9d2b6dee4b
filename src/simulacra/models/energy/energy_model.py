"""Energy-based model: a network says how much likelier than a normal distribution each place is.

    p*(z) = N(z; 0, I) exp f(z),    p = p* / Z,    z = (x - shift) / scale

f is free, and the gradient of log p is that of f(data) - E_p f (maximum likelihood). Chains stand for p:
a buffer of them is kept from round to round, some begin anew in each, and all move by Langevin steps
(Du & Mordatch 2019, Alg. 1, whose buffer this is; persistent chains: Tieleman 2008),

    z' = z + e^2/2 grad log p*(z) + e n,    n ~ N(0, I).

Each step is accepted or not as Metropolis and Hastings say (MALA: Roberts & Tweedie 1996), so that it
leaves p as it is whatever its size; and its size e is drawn anew for each chain and step, between a
smallest and a largest one, so that some fit in a narrow mode and some lead out of it. f is held near
nought by ``restraint`` times f^2 (their sec. 3.2). The normal factor makes p a distribution whatever f.

Along p*_beta(z) = N(z; 0, I) exp(beta f(z)) lies a path from a start that is known in full: annealed
importance sampling tells log Z when training ends, and log p in nats, an estimate. Before, and whenever
weights have moved since, ``log_prob`` lacks its constant, and ``kind`` says so. Images are dequantised.

Samples are those of a chain, annealed from the start and then run at beta = 1: they converge to p with
``sampling_steps``, and are not exact draws.

Paper: Du & Mordatch 2019. Changed: the normal factor, accepted steps of many sizes at temperature 1 in
place of many small ones with little noise, SiLU, no spectral norm (f is restrained, and weights decay).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from simulacra.contract import Annealed, Density, Diagnosable, Kind, Sampler, Scorer
from simulacra.games import Batch, Clock, Descent, Game, Loss, Player, Rewrite, Stage
from simulacra.layers.front_door import as_device
from simulacra.layers.mlp import multilayer_perceptron
from simulacra.layers.pyramid import PyramidEncoder
from simulacra.optimisation import Optimiser
from simulacra.probability.annealing import Partition, anneal_both_ways
from simulacra.probability.dequantisation import dequantised, quantised
from simulacra.probability.distributions import gaussian_log_prob
from simulacra.probability.noise import BatchNoise, Noise, row_noise, scoring_noise
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels, Space, Vectors

NUMBERS_AT_ONCE = 2**14


@dataclass(frozen=True)
class Config:
    """``chains`` are kept, and as many as data in a batch move by ``steps`` each round, a share
    ``restart`` of them from the start. ``smallest`` and ``largest``: a step's e. ``sampling_steps``: of a
    sample's chain, the first half annealed. ``annealing_…``: for log Z, each way."""

    network: Literal["mlp", "convolutional"] = "mlp"
    hidden: int = 128
    layers: int = 3
    chains: int = 4096
    steps: int = 10
    restart: float = 0.05
    smallest: float = 0.01
    largest: float = 1.0
    restraint: float = 1e-3
    sampling_steps: int = 500
    annealing_chains: int = 100
    annealing_steps: int = 500
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4


@dataclass(frozen=True)
class _Chains:
    """Where chains stand, z (n, D), with f there, (n,), and its gradient, (n, D)."""

    z: Tensor
    f: Tensor
    slope: Tensor

    def log_annealed(self, beta: Tensor | float) -> Tensor:
        """log p*_beta, shape (n,), each with its own beta or all with one."""
        return _log_normal(self.z) + beta * self.f

    def drift(self, beta: float) -> Tensor:
        """grad log p*_beta."""
        return beta * self.slope - self.z


class EnergyModel(nn.Module, Sampler, Density, Annealed, Scorer, Diagnosable):
    """A network f beside a standard normal distribution, and a buffer of chains."""

    spaces: ClassVar = (Vectors, Images)
    conditions: ClassVar = ()
    shift: Tensor
    scale: Tensor
    chains: Tensor
    upward: Tensor
    downward: Tensor
    log_partition: Tensor
    measured: Tensor

    def __init__(
        self, space: Space, config: Config | None = None, *, condition: Labels | None = None
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config = _sensible(config or Config())
        if config.network == "convolutional" and isinstance(space, Images):
            self.net: nn.Module = PyramidEncoder(space, config.hidden, 0, 1)
        else:
            inside = [config.hidden] * config.layers
            self.net = multilayer_perceptron([space.dimensions, *inside, 1])
        self.register_buffer("shift", torch.zeros(space.dimensions))
        self.register_buffer("scale", torch.ones(space.dimensions))
        self.register_buffer("chains", torch.zeros(config.chains, space.dimensions))
        each = torch.zeros(config.annealing_chains, dtype=torch.float64)
        self.register_buffer("upward", each)
        self.register_buffer("downward", each.clone())
        self.register_buffer("log_partition", torch.zeros((), dtype=torch.float64))
        # The temperatures that log Z was made with: nought where it is not known of these weights.
        self.register_buffer("measured", torch.zeros((), dtype=torch.int64))

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """Convolutions, fewer chains and larger steps for images."""
        if not isinstance(space, Images):
            return Config()
        small = min(space.height, space.width) < 8
        return Config(
            network="mlp" if small else "convolutional",
            hidden=256 if small else 32,
            chains=2000,
            steps=20,
            smallest=0.05,
            batch_size=64,
            annealing_chains=50,
        )

    @classmethod
    def toy(cls) -> EnergyModel:
        return cls(
            Vectors(2),
            Config(
                hidden=16,
                layers=2,
                chains=64,
                steps=3,
                smallest=0.1,
                sampling_steps=40,
                annealing_chains=16,
                annealing_steps=40,
                batch_size=32,
                learning_rate=1e-2,
            ),
        )

    @property
    def kind(self) -> Kind:
        return Kind.ESTIMATE if int(self.measured) else Kind.UNNORMALISED

    @property
    def partition(self) -> Partition | None:
        if not int(self.measured):
            return None
        return Partition(self.upward.cpu(), self.downward.cpu(), int(self.measured))

    @property
    def score_source(self) -> str:
        return "minus log p(x), nats" + ("" if int(self.measured) else " and a constant")

    @property
    def start_log_partition(self) -> Tensor:
        return torch.zeros((), dtype=torch.float64, device=self.scale.device)

    def start(self, noise: Noise) -> Tensor:
        """In x's own units, reals also where elements are integers: cells of images are theirs."""
        return self._placed(noise.normal(self.space.dimensions).to(self.scale.dtype))

    def step(self, x: Tensor, beta: Tensor, noise: Noise) -> Tensor:
        z = self._standard(x).double()
        normal, uniform = noise.normal(self.space.dimensions), noise.uniform(2)
        return self._placed(self._moved(self._at(z), float(beta), normal, uniform)[0].z)

    def log_annealed(self, x: Tensor, betas: Tensor) -> Tensor:
        z = self._standard(x)
        each = betas.to(z) * self._f(z).unsqueeze(1) + _log_normal(z).unsqueeze(1)
        return each - self.scale.log().sum()

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        noise = row_noise(num_samples, generator, self.scale.device)
        y = self._placed(self._run(noise))
        return quantised(y, self.space) if isinstance(self.space, Images) else y.float()

    def log_prob(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        x = as_device(x, self)
        if isinstance(self.space, Images):
            x = dequantised(x, scoring_noise(len(x), generator, x.device))
        unnormalised = self.log_annealed(x, torch.ones(1))[:, 0]
        known = self.log_partition if int(self.measured) else torch.zeros_like(self.log_partition)
        return unnormalised - known.to(unnormalised.dtype)

    @torch.no_grad()
    def anomaly_score(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return -self.log_prob(x, generator=generator)

    @torch.no_grad()
    def diagnose(self, x: Tensor, *, condition: Tensor | None = None) -> dict[str, float]:
        """f of data and chains agree where chains have become like data."""
        noise = scoring_noise(len(x), None, self.scale.device)
        z = self._entered(x, noise).double()
        normal, uniform = noise.normal(self.space.dimensions), noise.uniform(2)
        here = self._at(z)
        _, accepted = self._moved(here, 1.0, normal, uniform)
        told = {
            "f of data (nats)": float(here.f.mean()),
            "f of the chains (nats)": float(self._f(self.chains).mean()),
            "accepted moves from data (share)": float(accepted.double().mean()),
        }
        found = self.partition
        if found is not None:
            told |= {
                "log Z (nats)": float(self.log_partition),
                "log Z, standard error (nats)": found.standard_error,
                "log Z, reverse over forward (nats)": found.gap,
                "log Z, effective sample size (chains)": found.effective_sample_size,
            }
        return told

    def _standard(self, x: Tensor) -> Tensor:
        x = as_device(x, self).flatten(1)
        return (x.to(torch.promote_types(x.dtype, self.scale.dtype)) - self.shift) / self.scale

    def _placed(self, z: Tensor) -> Tensor:
        return (z * self.scale + self.shift).reshape(len(z), *self.space.shape)

    def _entered(self, x: Tensor, noise: Noise) -> Tensor:
        x = as_device(x, self)
        return self._standard(dequantised(x, noise) if isinstance(self.space, Images) else x)

    def _f(self, z: Tensor) -> Tensor:
        """f(z), (n, D) to (n,), in z's own precision."""
        held = {name: value.to(z.dtype) for name, value in self.net.named_parameters()}
        pyramid = isinstance(self.net, PyramidEncoder)
        given = (z.reshape(len(z), *self.space.shape), None) if pyramid else (z,)
        out: Tensor = torch.func.functional_call(self.net, held, given)
        return out[:, 0]

    def _at(self, z: Tensor) -> _Chains:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            f = self._f(z)
            (slope,) = torch.autograd.grad(f.sum(), z)
        return _Chains(z.detach(), f.detach(), slope.detach())

    def _moved(
        self, here: _Chains, beta: float, normal: Tensor, uniform: Tensor
    ) -> tuple[_Chains, Tensor]:
        """One MALA step of each chain at beta, and which were accepted; ``uniform`` (n, 2)."""
        normal, uniform = normal.to(here.z), uniform.to(here.z)
        spread = math.log(self.config.largest / self.config.smallest)
        e = self.config.smallest * (spread * uniform[:, :1]).exp()
        there = self._at(here.z + e.square() / 2 * here.drift(beta) + e * normal)
        back = (here.z - there.z - e.square() / 2 * there.drift(beta)) / e
        rise = there.log_annealed(beta) - here.log_annealed(beta)
        rise = rise + (normal.square() - back.square()).sum(1) / 2
        accepted = uniform[:, 1].log() < rise
        wide = accepted.unsqueeze(1)
        return (
            _Chains(
                torch.where(wide, there.z, here.z),
                torch.where(accepted, there.f, here.f),
                torch.where(wide, there.slope, here.slope),
            ),
            accepted,
        )

    def _run(self, noise: Noise) -> Tensor:
        """z of chains from the start, in float64: rounding that depends on the batch would now and then
        tip a decision over, and the whole chain after it."""
        count, size = self.config.sampling_steps, self.space.dimensions
        betas = (torch.arange(1, count + 1) / max(count // 2, 1)).clamp(max=1.0)
        here = self._at(noise.normal(size).double())
        for part in betas.split(max(NUMBERS_AT_ONCE // size, 1)):
            normal, uniform = noise.normal(len(part), size), noise.uniform(len(part), 2)
            for index, beta in enumerate(part.tolist()):
                here, _ = self._moved(here, beta, normal[:, index], uniform[:, index])
        return here.z

    def contrast(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """E f of the chains - E f of the data (means; each process has its own chains), in nats."""
        self.measured.zero_()
        config, size = self.config, self.space.dimensions
        data = self._entered(batch.x, noise)
        count, uniform = min(len(batch), config.chains), noise.uniform(2)[: config.chains]
        first = int(uniform[0, 0].double() * config.chains)
        which = (first + torch.arange(count, device=data.device)) % config.chains
        fresh = noise.normal(size)[:count].to(self.chains)
        begun = torch.where(uniform[:, 1:] < config.restart, fresh, self.chains[which])
        here, accepted = self._at(begun), torch.zeros(())
        for _ in range(config.steps):
            normal, chance = noise.normal(size)[:count], noise.uniform(2)[:count]
            here, moved = self._moved(here, 1.0, normal, chance)
            accepted = accepted + moved.float().mean() / config.steps
        self.chains[which] = here.z
        real, made = self._f(data.to(self.chains)), self._f(here.z)
        value = made.mean() - real.mean()
        held = config.restraint * (made.square().mean() + real.square().mean())
        return Loss(value + held, {"f, chains over data (nats)": value, "accepted": accepted})

    @torch.no_grad()
    def begin(self, batches: Iterator[Batch], noise: Noise, clock: Clock) -> Mapping[str, float]:
        """Shift and scale from all data (entries of vectors share theirs), and chains from the start."""
        total, square, rows = torch.zeros(()), torch.zeros(()), 0
        for batch in batches:
            x = batch.x.double().flatten(1)
            total, square, rows = total + x.sum(0), square + x.square().sum(0), rows + len(x)
        mean = total / rows
        variance = (square / rows - mean.square()).clamp(min=0)
        if isinstance(self.space, Images):
            mean, variance = mean + 0.5, variance + 1 / 12  # those of u
        else:
            variance = variance.mean().clamp(min=1e-12).expand_as(variance)
        self.shift.copy_(mean)
        self.scale.copy_(variance.sqrt())
        each = -(-len(self.chains) // noise.rows)
        drawn = noise.normal(each, self.space.dimensions).flatten(0, 1)
        self.chains.copy_(drawn[: len(self.chains)])
        return {"counted": float(rows)}

    @torch.no_grad()
    def measure(self, batches: Iterator[Batch], noise: Noise, clock: Clock) -> Mapping[str, float]:
        """log Z, by annealing up from the start and down from where the data lead."""
        chains = self.config.annealing_chains
        seed = int(noise.uniform()[0].double() * 2**24)
        rows = BatchNoise(torch.Generator().manual_seed(seed), chains, self.scale.device)
        x = next(batches).x
        x = x[torch.arange(chains, device=x.device) % len(x)]
        x = self._placed(self._entered(x, rows))
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
        optimiser = Optimiser("adamw", config.learning_rate, weight_decay=config.weight_decay)
        player = Player("energy", list(self.parameters()), optimiser, clip=10.0)
        stages = [
            Stage([Rewrite("begin", self.begin, sweep=True)], rounds=1),
            Stage([Descent((player,), self.contrast, buffers=("chains", "measured"))]),
            Stage([Rewrite("log Z", self.measure)], rounds=1),
        ]
        return Game(stages, batch_size=config.batch_size, keep="last")


def _log_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I), (n, D) to (n,)."""
    return gaussian_log_prob(z, torch.zeros_like(z), torch.zeros_like(z)).sum(1)


def _sensible(config: Config) -> Config:
    if not 0 < config.smallest < config.largest:
        raise Refusal(
            "CFG-136",
            f"steps from {config.smallest:g} to {config.largest:g} are no range",
            way_out="give smallest above 0 and below largest",
        )
    if config.chains < 1 or config.steps < 1:
        reason = f"{config.chains} chains of {config.steps} steps contrast nothing"
        raise Refusal("CFG-137", reason, way_out="give at least one of each")
    return config
