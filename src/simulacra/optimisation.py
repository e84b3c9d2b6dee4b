"""Optimisers by name, with a schedule written in examples seen.

An ``Optimiser`` is data: it says what is wanted and builds the torch optimiser for given parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from simulacra.refusals import Refusal, shown


@dataclass(frozen=True)
class Optimiser:
    """An optimiser's name and numbers; ``warmup`` is in examples seen.

    The learning rate rises linearly over the warm-up, then stays ('constant') or falls to zero at the
    end of the budget along half a cosine ('cosine', Loshchilov & Hutter 2017).
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup: int = 0

    def __post_init__(self) -> None:
        if self.name not in OPTIMISERS:
            raise Refusal(
                "CFG-010",
                f"unknown optimiser {shown(self.name)}",
                way_out=f"use one of {', '.join(OPTIMISERS)}",
            )
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise Refusal(
                "CFG-011",
                f"the learning rate {self.learning_rate} is not a positive number",
                way_out="give one above 0, such as 0.001",
            )

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The torch optimiser over ``parameters``."""
        return OPTIMISERS[self.name](list(parameters), self)

    def factor(self, examples: int, progress: float) -> float:
        """What the learning rate is multiplied by after ``examples``, at ``progress`` in [0, 1]."""
        rise = min(1.0, (examples + 1) / self.warmup) if self.warmup else 1.0
        fall = 1.0
        if self.schedule == "cosine":
            fall = 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
        return rise * fall


class AdamP(torch.optim.Optimizer):
    """Adam that drops the radial part of a step for scale-invariant weights (Heo et al. 2021, Alg. 2).

    A weight counts as scale-invariant when its gradient is nearly orthogonal to it: the largest
    cosine, over channels or over the whole layer, is below delta / sqrt(dim) (eq. 10).
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "delta": delta,
            "wd_ratio": wd_ratio,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        beta1, beta2 = group["betas"]
        state["step"] += 1
        count = float(state["step"])
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = (state["exp_avg_sq"] / (1 - beta2**count)).sqrt_().add_(group["eps"])
        step = state["exp_avg"] / (1 - beta1**count) / scale

        decay = group["weight_decay"]
        if parameter.ndim > 1:
            step, invariant = self._projected(parameter, gradient, step, group["delta"])
            decay *= group["wd_ratio"] if invariant else 1.0
        parameter.mul_(1 - group["lr"] * decay)
        parameter.add_(step, alpha=-group["lr"])

    @staticmethod
    def _projected(
        parameter: Tensor, gradient: Tensor, step: Tensor, delta: float
    ) -> tuple[Tensor, bool]:
        for rows in (parameter.shape[0], 1):
            weight, slope = parameter.reshape(rows, -1), gradient.reshape(rows, -1)
            cosine = nn.functional.cosine_similarity(weight, slope, dim=1).abs().max()
            if float(cosine) < delta / math.sqrt(weight.shape[1]):
                unit = weight / weight.norm(dim=1, keepdim=True).add(1e-8)
                flat = step.reshape(rows, -1)
                tangent = flat - unit * (unit * flat).sum(dim=1, keepdim=True)
                return tangent.reshape(parameter.shape), True
        return step, False


Build = Callable[[list[nn.Parameter], Optimiser], torch.optim.Optimizer]


def _adam(kind: type[torch.optim.Optimizer], *, fused: bool) -> Build:
    def build(parameters: list[nn.Parameter], wanted: Optimiser) -> torch.optim.Optimizer:
        extra: dict[str, Any] = {"fused": True} if fused else {}
        return kind(
            parameters,
            lr=wanted.learning_rate,  # type: ignore[call-arg]
            betas=wanted.betas,
            weight_decay=wanted.weight_decay,
            **extra,
        )

    return build


def _plain(kind: type[torch.optim.Optimizer], *, momentum: bool = False, **fixed: Any) -> Build:
    def build(parameters: list[nn.Parameter], wanted: Optimiser) -> torch.optim.Optimizer:
        extra = fixed | ({"momentum": wanted.momentum} if momentum else {})
        return kind(
            parameters,
            lr=wanted.learning_rate,  # type: ignore[call-arg]
            weight_decay=wanted.weight_decay,
            **extra,
        )

    return build


OPTIMISERS: dict[str, Build] = {
    "sgd": _plain(torch.optim.SGD),
    "momentum": _plain(torch.optim.SGD, momentum=True),
    "nesterov": _plain(torch.optim.SGD, momentum=True, nesterov=True),
    "adagrad": _plain(torch.optim.Adagrad),
    "adadelta": _plain(torch.optim.Adadelta),
    "rmsprop": _plain(torch.optim.RMSprop),
    "adam": _adam(torch.optim.Adam, fused=True),
    "adamw": _adam(torch.optim.AdamW, fused=True),
    "radam": _adam(torch.optim.RAdam, fused=False),
    "adamp": _adam(AdamP, fused=False),
}
