"""The contract: what a model promises, named on its class line.

A capability is one or two methods and never an implementation. A model that cannot do a thing does
not name it: ``class DCGAN(nn.Module, Sampler)`` has no ``log_prob``, and nothing pretends that it has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, TypeVar

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from simulacra.probability.annealing import Partition
from simulacra.probability.noise import Noise
from simulacra.refusals import Refusal, shown
from simulacra.spaces import Space


class Kind(StrEnum):
    """What a number that claims to be a log-likelihood is. Different kinds are never ranked as one."""

    EXACT = "exact"
    """A normalised density: sums, or integrates, to one."""
    LOWER = "lower"
    """A lower bound of log p(x), in expectation over the model's own noise."""
    ESTIMATE = "estimate"
    """An estimate of log p(x) that promises no direction."""
    UNNORMALISED = "unnormalised"
    """log p(x) up to a constant that is not known."""

    @property
    def sign(self) -> str:
        """The sign printed beside bits per dimension and negative log-likelihoods."""
        return {"exact": "=", "lower": "≤", "estimate": "≈", "unnormalised": "∝"}[self.value]


class Sampler(ABC):
    """Draws new elements of its space."""

    @abstractmethod
    def sample(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Shaped[Tensor, "num_samples *shape"]:
        """Elements of the space; the same seed gives the same samples, the global generator is not
        touched, and sample i does not depend on how many are drawn with it. ``condition`` has one row
        a sample; without ``generator`` a fresh seed is taken from the system."""


class MeanSampler(ABC):
    """Draws what its samples scatter about, without the noise that every dimension has for itself."""

    @abstractmethod
    def sample_mean(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Shaped[Tensor, "num_samples *shape"]:
        """The element nearest to the mean of p(x|z), for the codes z that ``sample`` draws from the same
        seed: what papers show of their autoencoders. Categories and tokens, which have no mean, are the
        most likely ones. No draw of p(x), so nothing that its likelihood speaks of."""


class Gradual(ABC):
    """Makes a sample step by step, from noise to a datum."""

    @abstractmethod
    def trajectory(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Shaped[Tensor, "steps num_samples *shape"]:
        """What every step stands at, as elements of the space: noise first, and last what ``sample``
        draws from the same seed."""


class Variator(ABC):
    """Draws elements that are like given ones."""

    @abstractmethod
    def vary(
        self,
        x: Shaped[Tensor, "batch *shape"],
        *,
        strength: float = 0.8,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Shaped[Tensor, "batch *shape"]:
        """Another element for each; ``strength``, above 0 to 1, says how little of ``x`` is left."""


class Density(ABC):
    """Says how likely an element is, and what kind of number that is."""

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """Exact, a lower bound, an estimate, or unnormalised, on the model's own space."""

    @abstractmethod
    def log_prob(
        self,
        x: Shaped[Tensor, "batch *shape"],
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " batch"]:
        """log p(x) in nats against the space's own measure. Where noise is needed (bounds), row i uses
        stream i of ``generator``; without one, seed 0, so that a score is reproducible."""


class Factorised(ABC):
    """Gives log p(x) dimension by dimension, as a product of conditionals."""

    @abstractmethod
    def log_factors(
        self, x: Shaped[Tensor, "batch *shape"], *, condition: Tensor | None = None
    ) -> Float[Tensor, "batch *shape"]:
        """log p(x_i | the dimensions before it in the model's order), in nats; the sum over all
        dimensions is ``log_prob``."""


class Annealed(ABC):
    """Knows its density up to a constant, p(x) = p*(x) / Z, and a path of distributions p*_beta that
    leads to it, at beta = 1, from one that is known in full, at beta = 0: what annealed importance
    sampling needs (``probability/annealing.py``)."""

    @property
    @abstractmethod
    def start_log_partition(self) -> Float[Tensor, ""]:
        """log Z_0 of the start, in nats, exactly."""

    @abstractmethod
    def start(self, noise: Noise) -> Shaped[Tensor, "rows *shape"]:
        """Exact draws of the start, one for each row of ``noise``."""

    @abstractmethod
    def step(
        self, x: Shaped[Tensor, "rows *shape"], beta: Float[Tensor, ""], noise: Noise
    ) -> Shaped[Tensor, "rows *shape"]:
        """A move of each row that leaves p_beta as it is, and is reversible (detailed balance)."""

    @abstractmethod
    def log_annealed(
        self, x: Shaped[Tensor, "batch *shape"], betas: Float[Tensor, " k"]
    ) -> Float[Tensor, "batch k"]:
        """log p*_beta(x) in nats for several beta; beta = 1 gives log p*(x)."""

    @property
    @abstractmethod
    def partition(self) -> Partition | None:
        """What annealing told of log Z of the present weights; None before, and where Z is exact."""


class Encoder(ABC):
    """Turns an element into a code."""

    @property
    @abstractmethod
    def code_space(self) -> Space:
        """The space that codes live in."""

    @abstractmethod
    def encode(
        self, x: Shaped[Tensor, "batch *shape"], *, condition: Tensor | None = None
    ) -> Shaped[Tensor, "batch *code"]:
        """A code of ``code_space`` for each element."""


class Decoder(ABC):
    """Turns a code into an element."""

    @abstractmethod
    def decode(
        self, code: Shaped[Tensor, "batch *code"], *, condition: Tensor | None = None
    ) -> Shaped[Tensor, "batch *shape"]:
        """An element of the space for each code."""


class Mixer(ABC):
    """Makes elements of two codes: coarse features of one, fine ones of the other."""

    @property
    @abstractmethod
    def code_levels(self) -> int:
        """How many levels a code is read at, from coarse to fine."""

    @abstractmethod
    def mix(
        self,
        coarse: Shaped[Tensor, "batch *code"],
        fine: Shaped[Tensor, "batch *code"],
        level: int,
        *,
        condition: Tensor | None = None,
    ) -> Shaped[Tensor, "batch *shape"]:
        """Elements whose first ``level`` levels read ``coarse``, all others ``fine``."""


class Translator(ABC):
    """Turns an element of one space or domain into one of another."""

    @abstractmethod
    def translate(
        self, x: Shaped[Tensor, "batch *shape"], *, to: str
    ) -> Shaped[Tensor, "batch *target"]:
        """Elements of the target space."""


class Completer(ABC):
    """Fills in what is missing."""

    @abstractmethod
    def complete(
        self,
        x: Shaped[Tensor, "batch *shape"],
        known: Bool[Tensor, "batch *shape"],
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Shaped[Tensor, "batch *shape"]:
        """Elements of the space that equal ``x`` wherever ``known`` is true."""


class Predictor(ABC):
    """p(y|x) in a target space."""

    @property
    @abstractmethod
    def target_space(self) -> Space:
        """The space of y."""

    @abstractmethod
    def predict(self, x: Shaped[Tensor, "batch *shape"]) -> Float[Tensor, "batch *target"]:
        """Probabilities of the target: classes, masks or boxes."""


class Scorer(ABC):
    """Says how strange an element is."""

    @property
    @abstractmethod
    def score_source(self) -> str:
        """What the score is made of: reconstruction error, critic, denoising error, …"""

    @abstractmethod
    def anomaly_score(
        self, x: Shaped[Tensor, "batch *shape"], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, " batch"]:
        """Higher is stranger."""


class Diagnosable(ABC):
    """Knows the numbers that a specialist of its family asks for first."""

    @abstractmethod
    def diagnose(
        self, x: Shaped[Tensor, "batch *shape"], *, condition: Tensor | None = None
    ) -> dict[str, float]:
        """Numbers by name, each name ending in its unit: 'active units', 'divergence (nats)', …"""


Promise = TypeVar("Promise")

CAPABILITIES: tuple[type, ...] = (
    Sampler,
    MeanSampler,
    Gradual,
    Variator,
    Density,
    Factorised,
    Annealed,
    Encoder,
    Decoder,
    Mixer,
    Translator,
    Completer,
    Predictor,
    Scorer,
    Diagnosable,
)


@dataclass(frozen=True)
class Component:
    """A model that another one is made of, such as the prior over its codes.

    ``model`` is its name on the shelf; of ``spaces``, the best first, it gets the first that it fits;
    ``needs`` are capabilities that it has to have; ``condition`` is the space of what it is told.
    ``codes_of`` names a component before it whose code space is its space, instead of ``spaces``.
    """

    model: str
    spaces: tuple[Space, ...]
    needs: tuple[type, ...] = ()
    condition: Space | None = None
    codes_of: str = ""


class Composed(Protocol):
    """A model that is made of others, whichever the user names: no model imports another.

    The shelf builds what ``components`` asks for and hands each to the constructor by its name. The
    model keeps it as an attribute of that name, so that one file holds the weights of all. Settings of
    a component are written after its name and a dot: ``prior.width=128``.
    """

    @classmethod
    def components(cls, space: Space, config: object, condition: Any) -> Mapping[str, Component]:
        """What a model of ``space`` with this config is made of, by the constructor's names."""
        ...


def require_component(key: str, name: str, part: object, without: str) -> None:
    """Refuse a model that was built without a model it is made of; ``without`` is what needs none."""
    if part is None:
        reason = f"the {key} {shown(name)} was not handed over"
        way_out = f"build the model with shelf.build, or set {key}={without}"
        raise Refusal("CFG-223", reason, way_out=way_out)


def capabilities(model: object) -> list[str]:
    """The names of the capabilities on a model's (or a model class's) class line."""
    kind = model if isinstance(model, type) else type(model)
    return [one.__name__ for one in CAPABILITIES if issubclass(kind, one)]


def require_capability(model: object, wanted: type[Promise], *, to: str) -> Promise:
    """``model`` itself when it has the capability, else a refusal that says what it can do."""
    if not isinstance(model, wanted):
        raise Refusal(
            "CAN-001",
            f"cannot {to}: {type(model).__name__} is no {wanted.__name__}",
            way_out=f"it is {', '.join(capabilities(model))}; `simulacra models` shows who can",
        )
    return model
