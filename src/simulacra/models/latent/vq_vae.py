"""VQ-VAE: data as a small map of codes, each one of K, and a prior over the codes.

The encoder gives a vector for every place of a map, and a quantiser replaces each by one of K (van den
Oord et al. 2017, eq. 1 and 2); the decoder gives the likelihood of the data under these. The gradient
goes straight through the quantiser, and the encoder commits to what was chosen (eq. 3; the codebook's
own term is replaced by averages, their appendix A.1):

    loss = -log p(x | z_q(x)) + beta |z_e(x) - sg[e]|^2

Then a prior learns to draw the codes. With q(x), the codes that the encoder gives, all but one term of
the sum over codes are left out, so there is a bound that needs no draws:

    log p(x) = log sum_z p(z) p(x | z) >= log p(q(x)) + log p(x | q(x)).

The prior is any model of the shelf that draws sequences of tokens and knows their probability; one that
models images only sees maps of codes. ``own`` is one inside this file: a table of frequencies at each
place. A condition goes to the prior. ``fsq`` rounds a few bounded numbers instead of looking into a
codebook (Mentzer et al. 2023), and has no loss of its own. Entries of the codebook that are hardly used
any more are put where random vectors of the encoder lie (as Dhariwal et al. 2020, sec. 3.1).

Changed: likelihoods that are normalised instead of squared errors, SiLU, normalised channels, AdamW with
a cosine; a codebook that starts at encoded data; images, texts and signals by the same networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from simulacra.contract import (
    Component,
    Decoder,
    Density,
    Diagnosable,
    Encoder,
    Kind,
    MeanSampler,
    Sampler,
    Scorer,
    require_component,
)
from simulacra.families.composed import played_inside
from simulacra.games import Batch, Clock, Descent, Game, Loss, Player, Rewrite, Stage
from simulacra.layers.front_door import as_device, centred, drawn_labels
from simulacra.layers.heads import ImageHead, SequenceHead, SignalHead, choose_head
from simulacra.layers.quantisers import Codebook, FiniteScalars, balanced_levels, drawn_rows
from simulacra.layers.strided import StridedDecoder, StridedEncoder, Strides
from simulacra.optimisation import Optimiser
from simulacra.probability.distributions import categorical_draw, categorical_log_prob
from simulacra.probability.noise import Noise, row_noise
from simulacra.processes import mean_over_processes, world_and_rank
from simulacra.refusals import Refusal, shown
from simulacra.spaces import Images, Labels, Series, Space, Tokens

OWN = "own"
SETTLED = 0.9
"""The share of the autoencoder's training after which no entry is moved to a new place."""
STARTS = 16
"""Encoded vectors for each entry of the codebook that its start is drawn from, about."""


@dataclass(frozen=True)
class Config:
    """``codes`` is K; an entry of the codebook has ``width`` numbers. The map's sides are 2^``steps``
    times smaller than the data's, those of a signal 4^``steps``. ``commitment`` is beta and ``rate``
    1 - gamma of the averages; an entry used less than ``revive`` times as often as the average one is
    moved, 0 for never. ``start_from_data`` draws the first entries from encoded data. ``prior_share``
    is the prior's part of the training."""

    quantiser: Literal["codebook", "fsq"] = "codebook"
    codes: int = 512
    prior: str = "transformer"
    head: Literal["auto", "bernoulli", "categorical", "discretised-logistic", "gaussian"] = "auto"
    width: int = 32
    hidden: int = 64
    blocks: int = 2
    steps: int = 2
    commitment: float = 0.25
    rate: float = 0.01
    revive: float = 0.1
    start_from_data: bool = True
    prior_share: float = 0.5
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.0


class _Frequencies(nn.Module, Sampler, Density):
    """The prior of its own: the frequency of each code at each place, for each class, by descent."""

    def __init__(self, space: Tokens, rate: float, condition: Labels | None) -> None:
        super().__init__()
        self.space, self.condition_space, self.rate = space, condition, rate
        classes = condition.count if condition else 1
        self.logits = nn.Parameter(torch.zeros(classes, space.length, space.vocabulary))

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
        noise = row_noise(num_samples, generator, self.logits.device)
        condition = drawn_labels(condition, self.condition_space, noise.uniform())
        uniform = noise.uniform(self.space.length)
        return categorical_draw(self._of(condition, num_samples), uniform)

    def log_prob(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return categorical_log_prob(x, self._of(condition, len(x))).sum(1)

    def _of(self, condition: Tensor | None, rows: int) -> Tensor:
        if self.condition_space is None:
            return self.logits.expand(rows, -1, -1)
        if condition is None:
            raise ValueError("a conditional model needs a condition for every row")
        return self.logits[as_device(condition, self).long()]

    def negative_log_likelihood(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """-log p(codes), in nats a code."""
        nats = -self.log_prob(batch.x, condition=batch.condition).mean()
        return Loss(nats / self.space.length)

    def training_game(self) -> Game:
        """What ``game`` is elsewhere; the shelf would take a class that has one for a model."""
        player = Player("frequencies", [self.logits], Optimiser("adam", self.rate))
        return Game([Stage([Descent((player,), self.negative_log_likelihood)])])


class VQVAE(nn.Module, Sampler, MeanSampler, Density, Encoder, Decoder, Scorer, Diagnosable):
    """Strided convolutions around a quantiser, a likelihood head, and a prior over the codes."""

    spaces: ClassVar = (Images, Tokens, Series)
    conditions: ClassVar = (Labels,)

    def __init__(
        self,
        space: Images | Tokens | Series,
        config: Config | None = None,
        *,
        condition: Labels | None = None,
        prior: Any = None,
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config = config or Config(prior=OWN)
        self.quantiser: Codebook | FiniteScalars
        if config.quantiser == "fsq":
            self.quantiser = FiniteScalars(balanced_levels(config.codes))
        else:
            self.quantiser = Codebook(config.codes, config.width, config.rate)
        self.strides = _strides(space, config)
        self.head = _head(space, config.head)
        channels = config.hidden if isinstance(space, Tokens) else space.channels
        inside = (config.hidden, config.blocks)
        self.encoder = StridedEncoder(self.strides, channels, *inside, self.quantiser.width)
        outputs = self.head.per_value * (1 if isinstance(space, Tokens) else space.channels)
        self.decoder = StridedDecoder(self.strides, self.quantiser.width, *inside, outputs)
        self.embed = nn.Embedding(space.vocabulary, channels) if isinstance(space, Tokens) else None
        self.prior = self._as_prior(prior)

    def _as_prior(self, prior: Any) -> Any:
        if self.config.prior == OWN:
            return _Frequencies(self.code_space, self.config.learning_rate, self.condition_space)
        require_component("prior", self.config.prior, prior, OWN)
        if prior.kind not in (Kind.EXACT, Kind.LOWER):
            reason = f"the likelihood of {shown(self.config.prior)} is {prior.kind.value}"
            raise Refusal(
                "CFG-124", reason, way_out="set a prior whose likelihood is exact or lower"
            )
        return prior

    @classmethod
    def components(
        cls, space: Space, config: object, condition: Labels | None
    ) -> Mapping[str, Component]:
        """The prior: of sequences of codes, or else of maps of them."""
        assert isinstance(config, Config)
        if config.prior == OWN:
            return {}
        height, width = _strides(space, config).small
        spaces: tuple[Space, ...] = (Tokens(height * width, config.codes),)
        if height > 1:
            spaces = (*spaces, Images(1, height, width, config.codes))
        return {"prior": Component(config.prior, spaces, (Sampler, Density), condition)}

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """Fewer codes for few data; smaller maps of larger data."""
        few = num_examples < 5000
        if isinstance(space, Images):
            side, codes = max(space.height, space.width), 64 if few else 512
            hidden = 64 if space.channels == 1 else 128
            return Config(codes=codes, hidden=hidden, steps=1 if side <= 16 else 2 + (side > 64))
        if isinstance(space, Series):
            steps = 1 if space.length < 512 else 2
            return Config(codes=256 if few else 512, steps=steps, batch_size=16)
        return Config(codes=256 if few else 512, hidden=128, steps=1)

    @classmethod
    def toy(cls) -> VQVAE:
        config = Config(
            codes=4,
            prior=OWN,
            width=2,
            hidden=8,
            blocks=1,
            steps=1,
            rate=0.2,
            prior_share=0.65,
            learning_rate=0.03,
        )
        return cls(Images(1, 3, 3, levels=2), config)

    @property
    def kind(self) -> Kind:
        return Kind.LOWER

    @property
    def code_space(self) -> Tokens:
        height, width = self.strides.small
        return Tokens(height * width, self.quantiser.codes)

    @property
    def score_source(self) -> str:
        return "minus the bound on log p(x), nats"

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return self.head.draw(*self._imagined(num_samples, condition, generator))

    @torch.no_grad()
    def sample_mean(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        raw, _ = self._imagined(num_samples, condition, generator)
        return self.head.mean(raw)

    def _imagined(
        self, rows: int, condition: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Noise]:
        """The head's numbers for codes that the prior draws, and the noise of the draw.

        Means take the noise from ``generator`` too, so that the codes of a next chunk are the same."""
        codes = self.prior.sample(rows, condition=condition, generator=generator)
        noise = row_noise(rows, generator, self._weight.device)
        return self._decoded(codes.reshape(rows, self.code_space.length)), noise

    def log_prob(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        x = as_device(x, self)
        codes = self._codes(x)
        rebuilt = self.head.log_prob(x, self._decoded(codes))
        prior: Tensor = self.prior.log_prob(
            self._as_prior_sees(codes), condition=condition, generator=generator
        )
        return rebuilt + prior

    @torch.no_grad()
    def encode(self, x: Tensor, *, condition: Tensor | None = None) -> Tensor:
        return self._codes(as_device(x, self))

    @torch.no_grad()
    def decode(self, code: Tensor, *, condition: Tensor | None = None) -> Tensor:
        """The element nearest to the mean given the codes; of tokens the most likely."""
        return self.head.mean(self._decoded(as_device(code, self)))

    def code_vectors(self, code: Tensor) -> Tensor:
        """What codes stand for, (n, length) to (n, length, width)."""
        return self.quantiser.vectors(as_device(code, self))

    @torch.no_grad()
    def anomaly_score(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Of a conditional model all labels are thought equally likely."""
        if self.condition_space is None:
            return -self.log_prob(x, generator=generator)
        labels = torch.arange(self.condition_space.count).repeat_interleave(len(x))
        many = x.repeat(self.condition_space.count, *(1 for _ in x.shape[1:]))
        each = self.log_prob(many, condition=labels, generator=generator)
        joint = torch.logsumexp(each.reshape(self.condition_space.count, len(x)), dim=0)
        return torch.tensor(float(self.condition_space.count)).log() - joint

    @torch.no_grad()
    def diagnose(self, x: Tensor, *, condition: Tensor | None = None) -> dict[str, float]:
        """Use of the codes, perplexity exp H of their frequencies (van den Oord et al. 2017's measure).

        The share is of the codes that as many tokens would show if all were equally likely.
        """
        x = as_device(x, self)
        codes = self._codes(x)
        total = self.quantiser.codes
        share = codes.flatten().bincount(minlength=total).double() / codes.numel()
        used = float((share > 0).sum())
        shown_of_all = total * (1 - (1 - 1 / total) ** codes.numel())
        prior = self.prior.log_prob(self._as_prior_sees(codes), condition=condition)
        return {
            "codes used (share)": min(1.0, used / shown_of_all),
            "unused codes (of the codebook)": total - used,
            "perplexity (codes)": float(torch.special.entr(share).sum().exp()),
            "reconstruction (nats)": -float(self.head.log_prob(x, self._decoded(codes)).mean()),
            "prior (nats)": -float(prior.mean()),
        }

    @property
    def _weight(self) -> Tensor:
        return next(self.encoder.parameters())

    def _vectors(self, x: Tensor) -> Tensor:
        """What the encoder says at each place, before it is quantised, (n, length, width)."""
        if self.embed is not None:
            read = self.embed(x.long()).mT.unsqueeze(2)
        elif isinstance(self.head, SignalHead):
            read = self.head.standard(x).unsqueeze(2)
        else:
            assert isinstance(self.space, Images)
            read = centred(x, self.space.levels).to(self._weight.dtype)
        said: Tensor = self.encoder(read)
        return said.flatten(2).mT

    @torch.no_grad()
    def _codes(self, x: Tensor) -> Tensor:
        """The codes of elements, (n, length); the same in training as in use."""
        with torch.autocast(x.device.type, enabled=False):
            codes: Tensor = self.quantiser(self._vectors(x)).codes
        return codes

    def _decoded(self, codes: Tensor) -> Tensor:
        return self._likelihood(self.quantiser.vectors(codes.long()))

    def _likelihood(self, vectors: Tensor) -> Tensor:
        """The head's numbers given vectors (n, length, width), at least in float32."""
        maps = vectors.mT.unflatten(2, self.strides.small).to(self._weight.dtype)
        raw: Tensor = self.decoder(maps)
        raw = raw if isinstance(self.space, Images) else raw.squeeze(2)
        return raw.to(self._weight.dtype)

    def _as_prior_sees(self, codes: Tensor) -> Tensor:
        space = self.prior.space
        return codes.reshape(len(codes), *space.shape).to(space.dtype)

    def coded(self, batch: Batch, noise: Noise) -> Batch:
        """A batch as the prior sees it."""
        return Batch(self._as_prior_sees(self._codes(batch.x)), batch.condition)

    def rebuilding(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """-log p(x | z_q) in nats a dimension, and the commitment (eq. 3)."""
        quantised = self.quantiser(self._vectors(batch.x))
        rebuilt = self.head.log_prob(batch.x, self._likelihood(quantised.vectors)).mean()
        value = -rebuilt / self.space.dimensions
        numbers = {"reconstruction (nats)": -rebuilt, "commitment": quantised.commitment}
        return Loss(value + self.config.commitment * quantised.commitment, numbers)

    @torch.no_grad()
    def standardise(
        self, batches: Iterator[Batch], noise: Noise, clock: Clock
    ) -> Mapping[str, float]:
        """Shift and scale of each channel of a signal, from all the data."""
        assert isinstance(self.head, SignalHead)
        total = torch.zeros_like(self.head.shift, dtype=torch.float64)
        square, count = torch.zeros_like(total), 0
        for batch in batches:
            x = batch.x.double()
            total += x.sum((0, 2)).unsqueeze(1)
            square += x.square().sum((0, 2)).unsqueeze(1)
            count += x.shape[0] * x.shape[2]
        mean = total / count
        self.head.shift.copy_(mean)
        self.head.scale.copy_((square / count - mean.square()).clamp(min=1e-12).sqrt())
        return {"finished": 1.0}

    @torch.no_grad()
    def start_codebook(
        self, batches: Iterator[Batch], noise: Noise, clock: Clock
    ) -> Mapping[str, float]:
        """Entries drawn from what the encoder says of a few batches."""
        assert isinstance(self.quantiser, Codebook)
        z = torch.cat([self._vectors(batch.x).flatten(0, 1) for batch in batches]).float()
        codes = self.quantiser.codes
        each = noise.rows * self.code_space.length / codes
        self.quantiser.start(_agreed(drawn_rows(z, codes, noise)), each)
        return {}

    @torch.no_grad()
    def move_codebook(
        self, batches: Iterator[Batch], noise: Noise, clock: Clock
    ) -> Mapping[str, float]:
        """Averages of what chose each entry in this round's batch (appendix A.1), and revival."""
        assert isinstance(self.quantiser, Codebook)
        z, counts, sums = self.quantiser.noted()
        mean_over_processes([counts, sums])
        self.quantiser.move(counts, sums)
        dead = self.quantiser.dead(self.config.revive)
        count = int(dead.sum()) if clock.progress < SETTLED else 0
        if count:
            fresh = _agreed(drawn_rows(z, count, noise))
            self.quantiser.revive(dead, fresh, 2 * self.config.revive)
        return {"revived codes": float(count)}

    def game(self) -> Game:
        """The autoencoder, and then the prior's own game, played on codes."""
        config, stages = self.config, list[Stage]()
        if isinstance(self.space, Series):
            stages.append(Stage([Rewrite("standardise", self.standardise, sweep=True)], rounds=1))
        optimiser = Optimiser(
            "adamw",
            config.learning_rate,
            weight_decay=config.weight_decay,
            warmup=50 * config.batch_size,
        )
        parts = [self.encoder, self.decoder, self.head, *([self.embed] if self.embed else [])]
        held = [parameter for part in parts for parameter in part.parameters()]
        autoencoder = Player("autoencoder", held, optimiser, clip=1.0)
        turns: list[Descent | Rewrite] = [Descent((autoencoder,), self.rebuilding)]
        if isinstance(self.quantiser, Codebook):
            if config.start_from_data:
                vectors = config.batch_size * self.code_space.length
                enough = max(1, min(STARTS, STARTS * config.codes // vectors))
                start = Rewrite("start codebook", self.start_codebook, batches=enough)
                stages.append(Stage([start], rounds=1))
            turns.append(Rewrite("move codebook", self.move_codebook, batches=0))
        stages.append(Stage(turns, share=1 - config.prior_share))
        own = isinstance(self.prior, _Frequencies)
        inner: Game = self.prior.training_game() if own else self.prior.game()
        stages += played_inside(
            inner, "prior", self.coded, after=len(stages), share=config.prior_share
        )
        # Signals are rebuilt more finely than eight bits can say.
        bf16 = (config.hidden >= 64 or inner.bf16) and not isinstance(self.space, Series)
        return Game(stages, batch_size=config.batch_size, average=inner.average, bf16=bf16)


def _strides(space: Space, config: Config) -> Strides:
    """Images get smaller along both sides, sequences along their one."""
    if isinstance(space, Images):
        return Strides((space.height, space.width), config.steps)
    length = space.shape[-1]
    return Strides((1, length), config.steps, (1, 4 if isinstance(space, Series) else 2))


def _head(space: Images | Tokens | Series, kind: str) -> ImageHead | SequenceHead | SignalHead:
    natural = choose_head(space)
    fits: tuple[str, ...] = ("auto", natural)
    if isinstance(space, Images) and space.levels > 2:
        fits = ("auto", "categorical", "discretised-logistic")
    if kind not in fits:
        reason = f"the head {kind} does not fit {space}"
        raise Refusal("CFG-035", reason, way_out="leave head at auto")
    if isinstance(space, Tokens):
        return SequenceHead(space)
    if isinstance(space, Series):
        return SignalHead(space)
    return ImageHead(space, natural if kind == "auto" else kind)


def _agreed(proposed: Tensor) -> Tensor:
    """The first process's proposal, in all of them."""
    world, rank = world_and_rank()
    agreed = proposed.clone() if rank == 0 else torch.zeros_like(proposed)
    mean_over_processes([agreed])
    return agreed * world
