"""Anomaly scores: ways to ask a trained model how strange a datum is; higher is always stranger.

A likelihood alone fails where strange data are simpler than ordinary ones (Nalisnick et al. 2019): a
model of clothes finds digits likely. The other scores correct that, or ask something else.

- likelihood         -log p(x)
- typicality         |-log p(x) - E[-log p] of clean data|                    (Nalisnick et al. 2019b)
- ratio              -log p(x) + log p_background(x)                                (Ren et al. 2019)
- complexity         -log p(x) - L(x), L the length of a lossless code             (Serrà et al. 2020)
- reconstruction     squared error of decode(encode(x))
- latent             squared Mahalanobis distance of encode(x) from clean data's codes (Lee et al. 2018)
- own                what the model itself calls strange: its critic's, its denoising error, …

Some scores are sums over a datum's entries, and then have a map that says which entries are strange: a
likelihood whose factors are known, -log p(x) = sum_i -log p(x_i | x_before), their ratio, and the
squared error of a reconstruction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from simulacra.contract import Decoder, Density, Encoder, Factorised, Scorer
from simulacra.evaluation.code_length import code_length
from simulacra.evaluation.rebuilding import unit_scale
from simulacra.evaluation.representation import codes_of
from simulacra.games import Batch
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Table

MOST_CLEAN = 5000
AT_ONCE = 200


class AnomalyScore(ABC):
    """How strange data are to a model, once ``fit`` has seen clean ones."""

    NEEDS: ClassVar[tuple[type, ...]] = ()
    """The capabilities that a model needs, all of them."""
    source: str = ""
    unit: ClassVar[str] = ""
    """What the score, and each entry of its map, is counted in."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @classmethod
    def maps_of(cls, model: Any) -> bool:
        """Whether the score of this model is a sum over entries, which ``map`` gives one by one."""
        return False

    def fit(self, clean: Batch, generator: torch.Generator) -> Self:
        """Learn what a score compares with, from clean data; most scores need nothing."""
        return self

    @abstractmethod
    def score(self, x: Tensor, condition: Tensor | None, generator: torch.Generator) -> Tensor:
        """Scores of elements, shape (n, *shape) to (n,)."""

    def map(self, x: Tensor, condition: Tensor | None, generator: torch.Generator) -> Tensor:
        """What each entry adds to the score, shape (n, *shape); refused where there is no such thing."""
        name = next((name for name, one in SCORES.items() if one is type(self)), "")
        raise no_map(self.model, name)

    def of(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Scores of a whole batch in parts, shape (n,), float64."""
        return self._in_parts(self.score, batch, generator)

    def maps(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Maps of a whole batch in parts, shape (n, *shape), float64; each sums to its score."""
        return self._in_parts(self.map, batch, generator)

    def _in_parts(
        self, method: Callable[..., Tensor], batch: Batch, generator: torch.Generator
    ) -> Tensor:
        parts = []
        conditional = getattr(self.model, "condition_space", None) is not None
        for start in range(0, len(batch), AT_ONCE):
            rows = slice(start, start + AT_ONCE)
            given = batch.condition[rows] if conditional and batch.condition is not None else None
            with torch.no_grad():
                parts.append(method(batch.x[rows], given, generator).double().cpu())
        return torch.cat(parts)


class Likelihood(AnomalyScore):
    """-log p(x), in nats."""

    NEEDS = (Density,)
    source = "-log p"
    unit = "nats"

    @classmethod
    def maps_of(cls, model: Any) -> bool:
        return isinstance(model, Factorised)

    def score(self, x: Tensor, condition: Tensor | None, generator: torch.Generator) -> Tensor:
        found: Tensor = -self.model.log_prob(x, condition=condition, generator=generator)
        return found

    def map(self, x: Tensor, condition: Tensor | None, generator: torch.Generator) -> Tensor:
        if not self.maps_of(self.model):
            return super().map(x, condition, generator)
        found: Tensor = -self.model.log_factors(x, condition=condition)
        return found


class _Indivisible(Likelihood):
    """Made of a likelihood, and no sum over entries."""

    @classmethod
    def maps_of(cls, model: Any) -> bool:
        return False


class Typicality(_Indivisible):
    """How far -log p(x) lies from what it is on average on clean data, to either side."""

    source = "distance of -log p from its mean on clean data"
    usual = 0.0

    def fit(self, clean: Batch, generator: torch.Generator) -> Self:
        likelihood = Likelihood(self.model)
        self.usual = float(likelihood.of(_first(clean), generator).mean())
        return self

    def score(self, x: Tensor, condition: Tensor | None, generator: torch.Generator) -> Tensor:
        return (super().score(x, condition, generator) - self.usual).abs()


class Ratio(Likelihood):
    """log p of a background model over log p of this one: what is special, and not mere background."""

    source = "log p of the background model - log p"

    def __init__(self, model: Any, background: Any = None) -> None:
        super().__init__(model)
        if background is None:
            raise Refusal(
                "CFG-081",
                "a likelihood ratio needs a second model",
                way_out="give --background a run on other or on corrupted data, or --score complexity",
            )
        if not isinstance(background, Density) or background.kind is not model.kind:
            raise Refusal(
                "CFG-082",
                f"a background of another kind than {model.kind} cannot stand in a ratio with it",
                way_out="train the background with the same model",
            )
        self.background: Any = background

    def score(self, x: Tensor, condition: Tensor | None, generator: torch.Generator) -> Tensor:
        own = super().score(x, condition, generator)
        other: Tensor = self.background.log_prob(x, generator=generator)
        return own + other

    def map(self, x: Tensor, condition: Tensor | None, generator: torch.Generator) -> Tensor:
        if not self.maps_of(self.background):
            raise no_map(self.background, "ratio")
        other: Tensor = self.background.log_factors(x)
        return super().map(x, condition, generator) + other


class Complexity(_Indivisible):
    """-log p(x) less the length of a lossless code of x: the shorter of PNG and zlib, in nats."""

    source = "-log p less the length of a lossless code"

    def score(self, x: Tensor, condition: Tensor | None, generator: torch.Generator) -> Tensor:
        likelihood = super().score(x, condition, generator)
        lengths = [code_length(one, self.model.space) for one in x.cpu()]
        return likelihood - torch.tensor(lengths).to(likelihood)


class Reconstruction(AnomalyScore):
    """Squared error of decode(encode(x)).

    Numbers of a table are counted in their column's variance on clean data, and a wrong category as 1.
    """

    NEEDS = (Encoder, Decoder)
    source = "reconstruction error"
    unit = "squared error"
    spread: Tensor | float = 1.0

    @classmethod
    def maps_of(cls, model: Any) -> bool:
        """Not of a flow, whose code is as large as the datum: what comes back is what went in."""
        as_large: bool = model.space.dimensions == model.code_space.dimensions
        return not (as_large and isinstance(model, Density))

    def fit(self, clean: Batch, generator: torch.Generator) -> Self:
        if isinstance(self.model.space, Table):
            x = clean.x.double().cpu()
            # Of what is not missing.
            spread = (x - x.nanmean(0)).square().nanmean(0).sqrt().nan_to_num()
            self.spread = torch.where(spread > 1e-12, spread, 1.0)
        return self

    def score(self, x: Tensor, condition: Tensor | None, generator: torch.Generator) -> Tensor:
        return self._errors(x, condition).flatten(1).sum(1)

    def map(self, x: Tensor, condition: Tensor | None, generator: torch.Generator) -> Tensor:
        if not self.maps_of(self.model):
            return super().map(x, condition, generator)
        return self._errors(x, condition)

    def _errors(self, x: Tensor, condition: Tensor | None) -> Tensor:
        space = self.model.space
        code = self.model.encode(x, condition=condition)
        again = self.model.decode(code, condition=condition).cpu()
        errors = (unit_scale(x.cpu(), space) - unit_scale(again, space)) / self.spread
        if isinstance(space, Table):
            category = torch.tensor([column.kind == "category" for column in space.columns])
            missed = x.cpu().isnan() != again.isnan()
            errors = torch.where(category, (errors != 0).double(), errors)
            errors = torch.where(missed, 1.0, errors)
        return errors.square()


class Latent(AnomalyScore):
    """How far the code lies from those of clean data, in their own covariance."""

    NEEDS = (Encoder,)
    source = "distance of the code from those of clean data"

    def fit(self, clean: Batch, generator: torch.Generator) -> Self:
        some = _first(clean)
        codes = codes_of(self.model, some.x, some.condition).double()
        self.mean = codes.mean(0)
        covariance = torch.cov(codes.T).reshape(codes.shape[1], codes.shape[1])
        # Directions that codes hardly use must not decide alone.
        ridge = 1e-3 * covariance.diagonal().mean() * torch.eye(len(covariance)).double()
        self.precision = torch.linalg.inv(covariance + ridge)
        return self

    def score(self, x: Tensor, condition: Tensor | None, generator: torch.Generator) -> Tensor:
        centred = codes_of(self.model, x, condition).double() - self.mean
        square: Tensor = ((centred @ self.precision) * centred).sum(1)
        return square


class Own(AnomalyScore):
    """The model's own anomaly score."""

    NEEDS = (Scorer,)

    @property
    def source(self) -> str:  # type: ignore[override]
        return str(self.model.score_source)

    def score(self, x: Tensor, condition: Tensor | None, generator: torch.Generator) -> Tensor:
        found: Tensor = self.model.anomaly_score(x, generator=generator)
        return found


SCORES: dict[str, type[AnomalyScore]] = {
    "likelihood": Likelihood,
    "typicality": Typicality,
    "ratio": Ratio,
    "complexity": Complexity,
    "reconstruction": Reconstruction,
    "latent": Latent,
    "own": Own,
}


def able(model: Any) -> list[str]:
    """The names of the scores that a model allows."""
    return [
        name for name, one in SCORES.items() if all(isinstance(model, need) for need in one.NEEDS)
    ]


def with_maps(model: Any) -> list[str]:
    """The names of the scores that a model allows and that have maps."""
    return [name for name in able(model) if SCORES[name].maps_of(model)]


def no_map(model: Any, name: str = "") -> Refusal:
    """Why there is no map of this score (of any, without a name), and where there are some."""
    others = with_maps(model)
    what = f"the {name} score of {type(model).__name__}" if name else type(model).__name__
    return Refusal(
        "CAN-013",
        f"{what} has no map of entries",
        way_out=f"choose --score {' or '.join(others)}"
        if others
        else "likelihood and ratio have maps for a model that is Factorised, reconstruction for an "
        "Encoder and Decoder that is no flow; `simulacra models` shows which are",
    )


def default_score(model: Any, *, maps: bool = False) -> str:
    """Likelihoods of images are corrected for complexity; else the likelihood, or what the model has.

    ``maps``: the likelihood or the reconstruction, whichever has a map; refused where none has.
    """
    if maps:
        mapped = with_maps(model)
        if not mapped:
            raise no_map(model)
        return mapped[0]
    names = able(model)
    if "likelihood" in names:
        images = isinstance(model.space, Images) and model.space.levels > 2
        return "complexity" if images else "likelihood"
    for name in ("own", "reconstruction", "latent"):
        if name in names:
            return name
    raise Refusal(
        "CAN-011",
        f"{type(model).__name__} has no likelihood, no code and no score of its own",
        way_out="`simulacra models` shows who scores",
    )


def make_score(name: str, model: Any, *, background: Any = None) -> AnomalyScore:
    """The score of this name for a model; refused where the model does not allow it."""
    if name not in SCORES:
        reason = f"there is no score {name!r}"
        raise Refusal("CFG-083", reason, way_out=f"choose one of {', '.join(SCORES)}")
    if name not in able(model):
        raise Refusal(
            "CAN-012",
            f"{type(model).__name__} allows no {name} score",
            way_out=f"it allows {', '.join(able(model)) or 'none'}",
        )
    if name == "ratio":
        return Ratio(model, background)
    return SCORES[name](model)


def _first(clean: Batch) -> Batch:
    condition = None if clean.condition is None else clean.condition[:MOST_CLEAN]
    return Batch(clean.x[:MOST_CLEAN], condition)
