"""Autoencoder: a narrow code that a datum can be rebuilt from; it has no p(x) and draws no samples.

An encoder h = f(x) and a decoder g lower the error of rebuilding, E L(x, g(f(x))), L the squared or the
absolute error summed over the numbers of a datum (``layers/rebuilding.py``: pixels in [0, 1]). With a
linear network this is principal components (Bourlard & Kamp 1988). Independent settings add

- sparsity: weight * E sum_j |h_j| ('l1': Olshausen & Field 1996), or weight * sum_j KL(rho || mean h_j)
  for h in (0, 1) ('kl': Nair & Hinton 2009; Ng 2011, CS294A, sec. 3);
- corruption: f reads a spoilt x and the error is that of the clean one: dimensions set to 0 at random
  ('masking'), or Gaussian noise (Vincent et al. 2008, sec. 2.3);
- contraction: weight * E ||J||_F^2, J = df(x)/dx (Rifai et al. 2011, eq. 1). Without hidden layers and
  with h = sigmoid(W x + b) it is sum_j (h_j (1 - h_j))^2 ||W_j||^2, exactly; else it is the mean over
  ``probes`` of ||v' J||^2, v of random signs, which has that expectation (Hutchinson 1990), with
  gradients of gradients.

Codes are features, and the error of rebuilding is an anomaly score. Paper: Hinton & Salakhutdinov 2006,
whose 784-1000-500-250-30 is a recipe. Changed: trained as a whole from random weights with AdamW instead
of layer by layer, SiLU for logistic units, decoders that do not share the encoder's weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from simulacra.contract import Decoder, Diagnosable, Encoder, Scorer
from simulacra.games import Batch, Clock, Descent, Game, Loss, Player, Rewrite, Stage
from simulacra.layers.front_door import as_device
from simulacra.layers.mlp import multilayer_perceptron
from simulacra.layers.pyramid import PyramidDecoder, PyramidEncoder
from simulacra.layers.rebuilding import Error, Rebuilding
from simulacra.optimisation import Optimiser
from simulacra.probability.noise import Noise
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels, Space, Table, Tokens, Vectors

DIAGNOSED = 100
"""Rows whose whole Jacobian is looked at."""


@dataclass(frozen=True)
class Config:
    """``hidden`` are the encoder's layers, the decoder's the other way round; ``channels`` those of a
    convolutional network at sides of at most 32. ``corruption_level`` is the share of dimensions that
    are masked, or the deviation of the noise; ``sparsity_target`` is rho. A weight of 0 leaves its term
    out."""

    network: Literal["mlp", "convolutional"] = "mlp"
    hidden: tuple[int, ...] = (1000, 500, 250)
    channels: int = 16
    code: int = 30
    activation: Literal["linear", "sigmoid"] = "linear"
    error: Error = "squared"
    sparsity: Literal["l1", "kl"] = "l1"
    sparsity_weight: float = 0.0
    sparsity_target: float = 0.05
    corruption: Literal["masking", "gaussian"] = "masking"
    corruption_level: float = 0.0
    contraction_weight: float = 0.0
    probes: int = 1
    dropout: float = 0.0
    batch_size: int = 100
    learning_rate: float = 1e-3
    weight_decay: float = 0.0


class Autoencoder(nn.Module, Encoder, Decoder, Scorer, Diagnosable):
    """Encoder and decoder with a narrow code between them."""

    spaces: ClassVar = (Images, Vectors, Table, Tokens)
    conditions: ClassVar = ()

    def __init__(
        self, space: Space, config: Config | None = None, *, condition: Labels | None = None
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config = config or Config()
        _require_sense(config, space)
        self.door = Rebuilding(space)
        if config.network == "convolutional":
            assert isinstance(space, Images)
            self.encoder: nn.Module = PyramidEncoder(space, config.channels, 0, config.code)
            self.decoder: nn.Module = PyramidDecoder(
                space, config.channels, config.code, space.channels
            )
        else:
            sizes = [self.door.reads, *config.hidden, config.code]
            self.encoder = multilayer_perceptron(sizes, dropout=config.dropout)
            self.decoder = multilayer_perceptron(sizes[::-1], dropout=config.dropout)

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """An eighth of an image's numbers, 30 at most; convolutions for images with sides above 32."""
        few = num_examples < 5000
        hidden = (256, 128) if few or not isinstance(space, Images) else (1000, 500, 250)
        decay, size = (1e-2, 64) if few else (0.0, 100)
        if isinstance(space, Images) and min(space.height, space.width) > 32:
            return Config(network="convolutional", code=64, batch_size=64, weight_decay=decay)
        share = 8 if isinstance(space, Images) else 2
        code = max(1, min(30, space.dimensions // share))
        return Config(hidden=hidden, code=code, batch_size=size, weight_decay=decay)

    @classmethod
    def toy(cls) -> Autoencoder:
        config = Config(
            hidden=(8,),
            code=2,
            activation="sigmoid",
            sparsity="kl",
            sparsity_weight=0.01,
            corruption_level=0.1,
            contraction_weight=0.01,
            batch_size=16,
        )
        return cls(Images(1, 3, 3, levels=2), config)

    @property
    def code_space(self) -> Vectors:
        return Vectors(self.config.code)

    @property
    def score_source(self) -> str:
        return f"{self.config.error} error of rebuilding"

    @torch.no_grad()
    def encode(self, x: Tensor, *, condition: Tensor | None = None) -> Tensor:
        return self._encoded(self.door.numbers(as_device(x, self)))

    @torch.no_grad()
    def decode(self, code: Tensor, *, condition: Tensor | None = None) -> Tensor:
        return self.door.elements(self._decoded(as_device(code, self).to(self._type)))

    @torch.no_grad()
    def anomaly_score(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The error of rebuilding, summed over the numbers of a datum."""
        numbers = self.door.numbers(as_device(x, self))
        rebuilt = self._decoded(self._encoded(numbers))
        return self.door.errors(numbers, rebuilt, self.config.error)

    @torch.no_grad()
    def diagnose(self, x: Tensor, *, condition: Tensor | None = None) -> dict[str, float]:
        """The error, how many directions the codes use (the participation ratio of the eigenvalues of
        their covariance), and how much the code moves with the datum."""
        numbers = self.door.numbers(as_device(x, self))
        code = self._encoded(numbers)
        sizes = torch.linalg.eigvalsh(torch.cov(code.double().T).reshape(code.shape[1], -1))
        used = sizes.sum().square() / sizes.square().sum().clamp(min=1e-300)
        return {
            f"rebuilding ({self.config.error} error a datum)": float(self.anomaly_score(x).mean()),
            f"directions used (of {code.shape[1]})": float(used),
            "mean activation (absolute)": float(code.abs().mean()),
            "contraction (squared norm of the code's Jacobian)": float(
                self._whole_jacobian(numbers[:DIAGNOSED]).mean()
            ),
        }

    @property
    def _type(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _before(self, numbers: Tensor) -> Tensor:
        """What the code is before its activation, (n, code)."""
        if isinstance(self.encoder, PyramidEncoder):
            images = 2 * numbers.reshape(-1, *self.space.shape) - 1
            raw = self.encoder(images, None)
        else:
            raw = self.encoder(numbers)
        told: Tensor = raw.to(numbers.dtype)
        return told

    def _encoded(self, numbers: Tensor) -> Tensor:
        before = self._before(numbers)
        return torch.sigmoid(before) if self.config.activation == "sigmoid" else before

    def _decoded(self, code: Tensor) -> Tensor:
        """Numbers (n, reads) rebuilt from codes."""
        return self.door.rebuilt(self.decoder(code).flatten(1))

    def corrupted(self, numbers: Tensor, noise: Noise) -> Tensor:
        """What the encoder reads in training: whole dimensions masked, or every number moved."""
        level = self.config.corruption_level
        if not level:
            return numbers
        if self.config.corruption == "gaussian":
            return numbers + level * noise.normal(self.door.reads).to(numbers)
        kept = noise.uniform(self.space.dimensions) >= level
        return numbers * kept[:, self.door.owner]

    def sparsity(self, code: Tensor) -> Tensor:
        """How far codes (n, code) are from sparse."""
        if self.config.sparsity == "l1":
            return code.abs().sum(1).mean()
        rho, mean = self.config.sparsity_target, code.mean(0).clamp(1e-6, 1 - 1e-6)
        rest = (1 - rho) * torch.log((1 - rho) / (1 - mean))
        return (rho * torch.log(rho / mean) + rest).sum()

    def contraction(self, numbers: Tensor, noise: Noise) -> Tensor:
        """E ||J||_F^2: exactly without hidden layers, else from random signs v."""
        if self.config.network == "mlp" and not self.config.hidden:
            return self._single_layer(numbers).mean()
        numbers = numbers.detach().requires_grad_()
        with torch.autocast(numbers.device.type, enabled=False):
            code, total = self._encoded(numbers), torch.zeros((), device=numbers.device)
            for _ in range(self.config.probes):
                signs = (noise.uniform(self.config.code) < 0.5).to(code) * 2 - 1
                (slope,) = torch.autograd.grad((signs * code).sum(), numbers, create_graph=True)
                total = total + slope.square().sum(1).mean()
        return total / self.config.probes

    def _single_layer(self, numbers: Tensor) -> Tensor:
        """||J||_F^2 of each row of the code of a single layer (Rifai et al. 2011)."""
        assert isinstance(self.encoder, nn.Sequential)
        (layer,) = self.encoder
        assert isinstance(layer, nn.Linear)
        lengths = layer.weight.square().sum(1)
        code = self._encoded(numbers)
        slope = code * (1 - code) if self.config.activation == "sigmoid" else torch.ones_like(code)
        return (slope.square() * lengths).sum(1)

    @torch.enable_grad()
    def _whole_jacobian(self, numbers: Tensor) -> Tensor:
        """||J||_F^2 of each row, exactly: one code dimension after the other."""
        numbers = numbers.detach().requires_grad_()
        code = self._encoded(numbers)
        total = torch.zeros(len(numbers), dtype=numbers.dtype, device=numbers.device)
        for place in range(code.shape[1]):
            own = code[:, place].sum()
            (slope,) = torch.autograd.grad(own, numbers, retain_graph=True)
            total = total + slope.square().sum(1)
        return total.detach()

    def rebuilding_loss(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """The error of the clean datum and the penalties, over the dimensions."""
        config, numbers = self.config, self.door.numbers(batch.x)
        code = self._encoded(self.corrupted(numbers, noise))
        error = self.door.errors(numbers, self._decoded(code), config.error).mean()
        told, value = {f"{config.error} error a datum": error}, error
        if config.sparsity_weight:
            told["sparsity"] = self.sparsity(code)
            value = value + config.sparsity_weight * told["sparsity"]
        if config.contraction_weight:
            told["contraction"] = self.contraction(numbers, noise)
            value = value + config.contraction_weight * told["contraction"]
        return Loss(value / self.space.dimensions, told)

    def standardise(
        self, batches: Iterator[Batch], noise: Noise, clock: Clock
    ) -> Mapping[str, float]:
        """Shift and scale of real columns, from all the data."""
        self.door.fit(batch.x for batch in batches)
        return {"finished": 1.0}

    def game(self) -> Game:
        config = self.config
        optimiser = Optimiser(
            "adamw",
            config.learning_rate,
            weight_decay=config.weight_decay,
            warmup=10 * config.batch_size,
        )
        player = Player("autoencoder", list(self.parameters()), optimiser, clip=100.0)
        stages = [Stage([Descent((player,), self.rebuilding_loss)])]
        if isinstance(self.space, Vectors | Table):
            look = Rewrite("standardise", self.standardise, sweep=True)
            stages.insert(0, Stage([look], rounds=1))
        wide = config.network == "convolutional" or max(config.hidden, default=0) >= 256
        return Game(stages, batch_size=config.batch_size, average=0.05, bf16=wide)


def _require_sense(config: Config, space: Space) -> None:
    """Refuse settings that contradict one another or the space."""
    if config.network == "convolutional" and not isinstance(space, Images):
        reason = f"convolutions cannot read {space}"
        raise Refusal("CFG-165", reason, way_out='set network to "mlp"')
    if config.sparsity == "kl" and config.sparsity_weight and config.activation != "sigmoid":
        reason = "the divergence from a mean activation is for codes in (0, 1)"
        raise Refusal("CFG-166", reason, way_out='set activation to "sigmoid", or sparsity to "l1"')
    if not 0 < config.sparsity_target < 1:
        reason = f"sparsity_target is {config.sparsity_target}"
        raise Refusal("CFG-167", reason, way_out="give a number between 0 and 1, such as 0.05")
    if config.code < 1 or config.probes < 1:
        reason = f"the code has {config.code} numbers, and {config.probes} probes"
        raise Refusal("CFG-168", reason, way_out="give at least one of both")
