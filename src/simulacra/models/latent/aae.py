"""Adversarial autoencoder: a critic makes codes of data look like draws from a prior.

Codes have a prior p(z) that can be sampled, and the aggregated posterior of the data,

    q(z) = int q(z|x) p_d(x) dx                                                         (eq. 1).

Instead of a divergence in closed form, a critic D learns to tell q(z) from p(z), and the encoder learns
to deceive it. Three turns: the autoencoder lowers the error of rebuilding; the critic learns; the
encoder hides, with the non-saturating loss -E log D(z). Then decoded draws of p(z) are samples:

- unsupervised: z from a Gaussian, from ten petals, or from a Swiss roll (sec. 2);
- supervised: the decoder is given the label, so that z keeps the style (sec. 4);
- semi-supervised: the code is a class y and a style z, each with a critic of its own: q(y) is to look
  like draws of a uniform class, zeros and a one. A fourth turn lowers the cross-entropy of q(y|x) on the
  few rows whose label is shown (sec. 5). Without any label this clusters (sec. 6).

There is no likelihood: p(x|z) is only the error of rebuilding, and the class line names no ``Density``.
Which rows show their label is a pure function of their content and ``label_seed``; they are looked up
once and then kept with the weights. The labels of all others reach no loss.

Paper: Makhzani, Shlens, Jaitly, Goodfellow & Frey 2015. Changed: batch normalisation in the encoder and
noise on what it reads, Adam for SGD with momentum, averaged weights, logistic outputs; the critic of z
is told the class (in this way: their sec. 2.3), so that z looks like the prior within each class, and a
class that is asked for is drawn; images that show their label may be moved about.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.contract import Decoder, Diagnosable, Encoder, Predictor, Sampler, Scorer
from simulacra.games import Batch, Clock, Descent, Game, Loss, Player, Rewrite, Stage
from simulacra.layers.augmentation import translated
from simulacra.layers.front_door import as_device, drawn_labels, one_hot_labels
from simulacra.layers.normalisation import BatchNorm
from simulacra.layers.rebuilding import Error, Rebuilding
from simulacra.optimisation import Optimiser
from simulacra.probability.contents import content_numbers, lowest
from simulacra.probability.distributions import held_log_scale
from simulacra.probability.noise import Noise, row_noise, scoring_noise
from simulacra.probability.priors import petals, swiss_roll
from simulacra.probability.two_sample import neighbour_accuracy
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels, Space, Table, Tokens, Vectors


@dataclass(frozen=True)
class Config:
    """``code`` is the size of z. ``labelled``: how many training rows show their label; 0 of a model with
    labels means all of them, and that the decoder is given them. ``categories`` are the classes of a
    categorical code where there are no labels. ``input_noise`` is the deviation of what is added to the
    numbers that the encoder reads; ``shift`` moves images that show their label about by up to that
    share of their sides; the rates are those of rebuilding and classifying, and of the
    adversaries."""

    prior: Literal["gaussian", "mixture", "swiss-roll", "categorical-gaussian"] = "gaussian"
    posterior: Literal["deterministic", "gaussian"] = "deterministic"
    error: Error = "squared"
    code: int = 8
    categories: int = 10
    labelled: int = 0
    label_seed: int = 0
    hidden: int = 1000
    layers: int = 2
    critic_hidden: int = 500
    input_noise: float = 0.0
    shift: float = 0.0
    batch_size: int = 100
    learning_rate: float = 1e-3
    adversarial_rate: float = 2e-4
    classify_rate: float = 1e-3


@dataclass(frozen=True, eq=False)
class Code:
    """q(y|x) as logits (n, classes), no columns where there are no classes, and q(z|x) (n, code)."""

    logits: Tensor
    mean: Tensor
    log_scale: Tensor | None

    def style(self, noise: Noise | None) -> Tensor:
        """z: a draw of q(z|x) where it has a width and there is noise, else its mean."""
        if self.log_scale is None or noise is None:
            return self.mean
        return self.mean + self.log_scale.exp() * noise.normal(self.mean.shape[1]).to(self.mean)

    def whole(self, style: Tensor) -> Tensor:
        """The chances of y and z beside one another, (n, classes + code)."""
        return torch.cat([torch.softmax(self.logits, dim=1), style], dim=1)


def _network(sizes: list[int], *, normalise: bool = False) -> nn.Sequential:
    """Linear layers with ReLU between them, normalised over the batch or not; the last one is plain."""
    parts: list[nn.Module] = []
    for size, following in itertools.pairwise(sizes[:-1]):
        parts.append(nn.Linear(size, following, bias=not normalise))
        parts += [BatchNorm(following)] if normalise else []
        parts.append(nn.ReLU())
    return nn.Sequential(*parts, nn.Linear(sizes[-2], sizes[-1]))


class AAE(nn.Module, Sampler, Encoder, Decoder, Predictor, Scorer, Diagnosable):
    """Encoder, decoder, and a critic for each part of the code."""

    spaces: ClassVar = (Images, Vectors, Table, Tokens)
    conditions: ClassVar = (Labels,)
    shown: Tensor
    shown_labels: Tensor

    def __init__(
        self, space: Space, config: Config | None = None, *, condition: Labels | None = None
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config = config or Config()
        _require_sense(config, condition)
        self.learns = condition if config.labelled else None
        self.given = None if config.labelled else condition
        self.classes = 0
        if config.prior == "categorical-gaussian":
            self.classes = self.learns.count if self.learns else config.categories
        self.door = Rebuilding(space)
        inside = [config.hidden] * config.layers
        told = config.code * (2 if config.posterior == "gaussian" else 1)
        self.encoder = _network([self.door.reads, *inside, self.classes + told], normalise=True)
        reads = self.classes + config.code + (self.given.count if self.given else 0)
        self.decoder = _network([reads, *inside, self.door.reads])
        width = [config.critic_hidden] * 2
        self.style_critic = _network([reads, *width, 1])
        self.class_critic = _network([self.classes, *width, 1]) if self.classes else None
        self.register_buffer("shown", torch.zeros(config.labelled, self.door.reads))
        self.register_buffer("shown_labels", torch.zeros(config.labelled, dtype=torch.long))

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """Smaller and noisier for few data."""
        if num_examples >= 5000:
            return Config()
        code = max(2, min(8, space.dimensions // 2))
        return Config(code=code, hidden=256, critic_hidden=128, input_noise=0.1, batch_size=64)

    @classmethod
    def toy(cls) -> AAE:
        config = Config(
            prior="categorical-gaussian",
            code=2,
            labelled=32,
            hidden=16,
            critic_hidden=8,
            input_noise=0.1,
            batch_size=16,
        )
        return cls(Images(1, 3, 3, levels=2), config, condition=Labels(3))

    @property
    def code_space(self) -> Vectors:
        """Chances of the classes, where the code has any, and z."""
        return Vectors(self.classes + self.config.code)

    @property
    def target_space(self) -> Labels:
        """The classes that are learned from shown labels; a single one without any."""
        return self.learns or Labels(1)

    @property
    def score_source(self) -> str:
        return f"{self.config.error} error of rebuilding"

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Decoded draws of the prior; the class is the label where the code, or the decoder, has one."""
        noise = row_noise(num_samples, generator, self._device)
        condition = drawn_labels(condition, self.condition_space, noise.uniform())
        classes = self._prior_classes(noise)
        if self.learns is not None and condition is not None:
            classes = functional.one_hot(as_device(condition, self).long(), self.classes)
        code = torch.cat([classes.to(self._type), self._prior_style(noise).to(self._type)], dim=1)
        return self.door.elements(self._decoded(code, self._given(condition, num_samples)))

    @torch.no_grad()
    def encode(self, x: Tensor, *, condition: Tensor | None = None) -> Tensor:
        """The chances of y and the mean of z; no label is asked for."""
        code = self._code_of(x)
        return code.whole(code.mean)

    @torch.no_grad()
    def decode(self, code: Tensor, *, condition: Tensor | None = None) -> Tensor:
        told = as_device(code, self).to(self._type)
        return self.door.elements(self._decoded(told, self._given(condition, len(code))))

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """q(y|x); a single class where no label was ever shown."""
        if self.learns is None:
            return torch.ones(len(x), 1, device=self._device)
        return torch.softmax(self._code_of(x).logits, dim=1)

    @torch.no_grad()
    def anomaly_score(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The error of rebuilding; of a decoder that is given labels, with the label that suits best."""
        if self.given is None:
            return self._errors_of(x, None)
        labels = range(self.given.count)
        each = [self._errors_of(x, torch.full((len(x),), label)) for label in labels]
        return torch.stack(each).amin(0)

    @torch.no_grad()
    def diagnose(self, x: Tensor, *, condition: Tensor | None = None) -> dict[str, float]:
        """How well neighbours tell codes from draws of the prior (0.5: not at all), and the error."""
        noise = scoring_noise(len(x), None, self._device)
        code = self._code_of(x)
        beside = self._beside(code, condition)
        own = torch.cat([beside, code.style(noise).to(beside)], dim=1)
        # A softmax is never exactly zeros and a one: what the class is, not how sure it is, counts.
        drawn = self._prior_classes(noise).to(beside) if self.classes else beside
        prior = torch.cat([drawn, self._prior_style(noise).to(beside)], dim=1)
        told = {}
        if self.classes:
            chances = torch.softmax(code.logits, dim=1)
            told["surest class (mean chance)"] = float(chances.amax(1).mean())
            away = (chances.mean(0) - 1 / self.classes).abs().sum() / 2
            told["classes from the prior's shares (total variation)"] = float(away)
        accuracy = neighbour_accuracy(own, prior)
        error = self._errors_of(x, condition).mean()
        told["codes told from the prior (accuracy of neighbours)"] = accuracy
        return {**told, f"rebuilding ({self.config.error} error a datum)": float(error)}

    @property
    def _device(self) -> torch.device:
        return self.shown.device

    @property
    def _type(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @contextlib.contextmanager
    def _as_used(self) -> Iterator[None]:
        """Inside, the encoder normalises with what it has learned, and not over the rows at hand."""
        training = self.encoder.training
        self.encoder.eval()
        try:
            yield
        finally:
            self.encoder.train(training)

    def _code_of(self, x: Tensor) -> Code:
        with self._as_used():
            return self._encoded(self.door.numbers(as_device(x, self)))

    def _errors_of(self, x: Tensor, condition: Tensor | None) -> Tensor:
        numbers, code = self.door.numbers(as_device(x, self)), self._code_of(x)
        rebuilt = self._decoded(code.whole(code.mean), self._given(condition, len(x)))
        return self.door.errors(numbers, rebuilt, self.config.error)

    def _given(self, condition: Tensor | None, rows: int) -> Tensor | None:
        """Labels as the decoder reads them; None where it reads none."""
        told = one_hot_labels(condition, self.given, rows)
        return None if told is None else as_device(told, self).to(self._type)

    def _encoded(self, numbers: Tensor, noise: Noise | None = None) -> Code:
        """The code of numbers (n, reads), which ``noise`` is added to first, where there is any."""
        if noise is not None and self.config.input_noise:
            numbers = numbers + self.config.input_noise * noise.normal(self.door.reads)
        raw = self.encoder(numbers).to(numbers.dtype)
        logits, style = raw.split([self.classes, raw.shape[1] - self.classes], dim=1)
        if self.config.posterior == "deterministic":
            return Code(logits, style, None)
        mean, log_scale = style.chunk(2, dim=1)
        return Code(logits, mean, held_log_scale(log_scale))

    def _decoded(self, code: Tensor, given: Tensor | None) -> Tensor:
        """Numbers (n, reads) rebuilt from codes."""
        return self.door.rebuilt(
            self.decoder(code if given is None else torch.cat([code, given], 1))
        )

    def _prior_style(self, noise: Noise) -> Tensor:
        """Draws of p(z), (n, code)."""
        if self.config.prior == "mixture":
            return petals(noise.uniform(), noise.normal(2))
        if self.config.prior == "swiss-roll":
            return swiss_roll(noise.uniform(), noise.normal(2))
        return noise.normal(self.config.code)

    def _prior_classes(self, noise: Noise) -> Tensor:
        """Draws of p(y), zeros and a one, (n, classes)."""
        if not self.classes:
            return torch.zeros(noise.rows, 0, device=self._device)
        which = (noise.uniform() * self.classes).long().clamp(max=self.classes - 1)
        return functional.one_hot(which, self.classes).float()

    @staticmethod
    def _parts(code: Code, noise: Noise) -> list[Tensor]:
        """What each critic is shown of a code: z, and the chances of y."""
        return [code.style(noise), torch.softmax(code.logits, dim=1)]

    def _beside(self, code: Code, condition: Tensor | None) -> Tensor:
        """The class, zeros and a one, that z must know nothing of: the likeliest y, or the label."""
        if self.classes:
            own = functional.one_hot(code.logits.argmax(1), self.classes)
        else:
            own = code.logits.new_zeros(len(code.logits), 0)
        given = self._given(condition, len(own))
        return torch.cat([own.to(self._type)] + ([] if given is None else [given]), dim=1)

    def rebuilding_loss(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """The error of x given its noisy code, over the dimensions."""
        numbers = self.door.numbers(batch.x)
        code = self._encoded(numbers, noise)
        rebuilt = self._decoded(
            code.whole(code.style(noise)), self._given(batch.condition, len(batch))
        )
        error = self.door.errors(numbers, rebuilt, self.config.error).mean()
        numbers_told = {f"{self.config.error} error a datum": error}
        return Loss(error / self.space.dimensions, numbers_told)

    def critic_loss(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """-E log D(prior) - E log(1 - D(code)), of each critic, in nats."""
        with torch.no_grad():
            code = self._encoded(self.door.numbers(batch.x), noise)
            fakes, beside = self._parts(code, noise), self._beside(code, batch.condition)
        reals = [self._prior_style(noise), self._prior_classes(noise)]
        reals[0], fakes[0] = (torch.cat([beside, one[0].to(beside)], 1) for one in (reals, fakes))
        value, told = torch.zeros((), device=self._device), {}
        for name, critic, real, fake in zip(
            ("", "class "), self._critics, reals, fakes, strict=False
        ):
            yes, no = (critic(one.to(self._type)).float() for one in (real, fake))
            value = value + functional.softplus(-yes).mean() + functional.softplus(no).mean()
            told[f"{name}accuracy"] = ((yes > 0).float().mean() + (no < 0).float().mean()) / 2
        return Loss(value, told)

    def hiding_loss(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """-E log D(code), of each critic, in nats."""
        code = self._encoded(self.door.numbers(batch.x), noise)
        parts = self._parts(code, noise)
        parts[0] = torch.cat([self._beside(code, batch.condition), parts[0]], dim=1)
        pairs = zip(self._critics, parts, strict=False)
        each = [functional.softplus(-critic(one).float()).mean() for critic, one in pairs]
        return Loss(torch.stack(each).sum())

    def classification_loss(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """-log q(y|x) in nats, on rows drawn from those that show their label."""
        which = (noise.uniform() * len(self.shown)).long()
        code = self._encoded(self._moved(self.shown[which], noise), noise)
        labels = self.shown_labels[which]
        right = (code.logits.argmax(1) == labels).float().mean()
        return Loss(functional.cross_entropy(code.logits.float(), labels), {"right": right})

    def _moved(self, numbers: Tensor, noise: Noise) -> Tensor:
        """Images moved about a little, (n, reads); other data stay as they are."""
        if not self.config.shift or not isinstance(self.space, Images):
            return numbers
        images = numbers.reshape(-1, *self.space.shape)
        return translated(images, noise.uniform(2), self.config.shift).flatten(1)

    @property
    def _critics(self) -> list[nn.Sequential]:
        return [self.style_critic] + ([self.class_critic] if self.class_critic is not None else [])

    def standardise(
        self, batches: Iterator[Batch], noise: Noise, clock: Clock
    ) -> Mapping[str, float]:
        """Shift and scale of real columns, from all the data."""
        self.door.fit(batch.x for batch in batches)
        return {}

    def choose(self, batches: Iterator[Batch], noise: Noise, clock: Clock) -> Mapping[str, float]:
        """The rows that show their label: those whose content has the lowest numbers, each once."""
        keys = torch.empty(0, dtype=torch.int64)
        rows, labels = self.shown[:0].cpu(), self.shown_labels[:0].cpu()
        for batch in batches:
            assert batch.condition is not None
            keys = torch.cat([keys, content_numbers(batch.x.cpu(), self.config.label_seed)])
            rows = torch.cat([rows, self.door.numbers(batch.x).cpu()])
            labels = torch.cat([labels, batch.condition.long().cpu()])
            first = lowest(keys, self.config.labelled)
            keys, rows, labels = keys[first], rows[first], labels[first]
        if len(keys) < self.config.labelled:
            reason = f"labelled is {self.config.labelled}, and {len(keys)} rows are different"
            raise Refusal("CFG-163", reason, way_out="lower labelled")
        self.shown.copy_(rows)
        self.shown_labels.copy_(labels)
        return {"classes shown": float(len(labels.unique()))}

    def game(self) -> Game:
        config = self.config
        own, against, by_label = (
            Optimiser("adam", rate, betas=betas, schedule="cosine")
            for rate, betas in (
                (config.learning_rate, (0.9, 0.999)),
                (config.adversarial_rate, (0.5, 0.999)),
                (config.classify_rate, (0.9, 0.999)),
            )
        )
        encoder = list(self.encoder.parameters())
        both = Player("autoencoder", encoder + list(self.decoder.parameters()), own)
        judges = [p for critic in self._critics for p in critic.parameters()]
        critic, hidden = Player("critic", judges, against), Player("encoder", encoder, against)
        turns = [
            Descent((both,), self.rebuilding_loss),
            Descent((critic,), self.critic_loss, batches=0),
            Descent((hidden,), self.hiding_loss, batches=0),
        ]
        looks = []
        if isinstance(self.space, Vectors | Table):
            looks.append(Rewrite("standardise", self.standardise, sweep=True))
        if self.learns is not None:
            looks.append(Rewrite("choose", self.choose, sweep=True))
            named = Player("classifier", encoder, by_label)
            turns.append(Descent((named,), self.classification_loss, batches=0))
        stages = [Stage(looks, rounds=1)] if looks else []
        wide = config.hidden >= 256
        return Game(
            [*stages, Stage(turns)], config.batch_size, average=0.05, bf16=wide, keep="last"
        )


def _require_sense(config: Config, condition: Labels | None) -> None:
    """Refuse settings that contradict one another."""
    if config.prior in ("mixture", "swiss-roll") and config.code != 2:
        reason = (
            f"the prior {config.prior} lies in the plane, and the code has {config.code} numbers"
        )
        raise Refusal("CFG-160", reason, way_out="set code to 2")
    if config.labelled and condition is None:
        reason = f"{config.labelled} rows are to show their label, and the model is given none"
        raise Refusal("CFG-161", reason, way_out="train with --conditional, or leave labelled at 0")
    if config.labelled and config.prior != "categorical-gaussian":
        reason = f"the prior {config.prior} has no class for labels to be learned in"
        raise Refusal("CFG-162", reason, way_out='set prior to "categorical-gaussian"')
