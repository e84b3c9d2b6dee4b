"""Log-densities and draws, in nats, for whole tensors at a time.

Draws take uniform or normal numbers instead of a generator, so that each row keeps its own stream.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def bernoulli_log_prob(x: Tensor, logits: Tensor) -> Tensor:
    """log Bernoulli(x; sigmoid(logits)) entry by entry; x of 0 and 1."""
    return -functional.binary_cross_entropy_with_logits(
        logits, x.to(logits.dtype), reduction="none"
    )


def bernoulli_draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """1 where uniform < sigmoid(logits), else 0."""
    return (uniform < torch.sigmoid(logits)).long()


def categorical_log_prob(x: Tensor, logits: Tensor) -> Tensor:
    """log softmax(logits)[x]; logits has the classes last, x is one dimension shorter."""
    chosen = torch.log_softmax(logits, dim=-1).gather(-1, x.long().unsqueeze(-1))
    return chosen.squeeze(-1)


def categorical_draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Inverse of the cumulative distribution; logits has the classes last, uniform one dimension less."""
    cumulative = torch.softmax(logits.double(), dim=-1).cumsum(-1)
    # Rounding can leave the last entry just below one, and a uniform number above it.
    cumulative[..., -1] = 1.0
    return (cumulative <= uniform.double().unsqueeze(-1)).sum(-1)


def gaussian_log_prob(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log N(x; mean, exp(log_scale)^2) entry by entry."""
    z = (x - mean) * torch.exp(-log_scale)
    return -0.5 * (z * z + math.log(2 * math.pi)) - log_scale


def log_standard_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I), z (..., D), shape (...)."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)


def held_log_scale(raw: Tensor) -> Tensor:
    """A posterior's log standard deviation, held within [-8, 4] in value but not in its slope.

    A plain clamp has none beyond its bounds, and a dimension that went there early never came back.
    """
    return raw + (raw.clamp(-8, 4) - raw).detach()


def gaussian_kl(mean: Tensor, log_scale: Tensor) -> Tensor:
    """KL(N(mean, exp(log_scale)^2) || N(0, 1)) entry by entry (Kingma & Welling 2014, app. B)."""
    return 0.5 * (mean * mean + torch.exp(2 * log_scale) - 1) - log_scale


def discretised_logistic_log_prob(
    x: Tensor, mean: Tensor, log_scale: Tensor, levels: int
) -> Tensor:
    """log of a logistic's mass in the cell of x, integers 0..levels-1 (Salimans et al. 2017, eq. 2).

    ``mean`` and the scale live on [-1, 1]; the first and last cells reach to infinity, so that the
    masses of all levels sum to one.
    """
    half_cell = 1 / (levels - 1)
    centre = x.to(torch.promote_types(mean.dtype, torch.float32)) * (2 * half_cell) - 1 - mean
    inverse_scale = torch.exp(-log_scale)
    upper = (centre + half_cell) * inverse_scale
    lower = (centre - half_cell) * inverse_scale
    # log(sigmoid(upper) - sigmoid(lower)) without the cancellation of the far tails.
    width = 2 * half_cell * inverse_scale
    below, above = functional.logsigmoid(upper), functional.logsigmoid(-lower)
    inside = below + above + torch.log(-torch.expm1(-width.clamp(min=1e-12)))
    return torch.where(x == 0, below, torch.where(x == levels - 1, above, inside))


def discretised_logistic_draw(
    mean: Tensor, log_scale: Tensor, uniform: Tensor, levels: int
) -> Tensor:
    """Integers 0..levels-1: the cell that a logistic draw falls into."""
    draw = mean + torch.exp(log_scale) * torch.logit(uniform.clamp(1e-7, 1 - 1e-7))
    return ((draw + 1) * ((levels - 1) / 2)).round().clamp(0, levels - 1).long()


def discretised_logistic_mean(mean: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    """The mean of a discretised logistic in levels, 0..levels-1: below ``mean``'s own level near the top.

    It is the sum over levels k >= 1 of P(x >= k), whose terms are sigmoids; their integral in place of
    the sum is the midpoint rule, off by less than half a level.
    """
    half = (levels - 1) / 2
    centre, scale = (mean + 1) * half, log_scale.exp() * half
    above = functional.softplus((centre - (levels - 1)) / scale)
    return scale * (functional.softplus(centre / scale) - above)


def logistic_mixture_log_factors(
    x: Tensor, logits: Tensor, mean: Tensor, log_scale: Tensor, levels: int
) -> Tensor:
    """log p(x_c | x_1..x_{c-1}) under a mixture of discretised logistics that all C entries share.

    p(x) = sum_k softmax(logits)_k prod_c p_k(x_c) (Salimans et al. 2017, sec. 2.2), so each factor is the
    ratio of two sums: the weights of the components follow what the entries before them say. ``x`` is
    (…, C), ``logits`` (…, K), ``mean`` and ``log_scale`` (…, C, K); the result is (…, C).
    """
    each = discretised_logistic_log_prob(x.unsqueeze(-1), mean, log_scale, levels)
    joint = torch.log_softmax(logits, dim=-1).unsqueeze(-2) + each.cumsum(-2)
    up_to = torch.logsumexp(joint, dim=-1)
    return torch.cat([up_to[..., :1], up_to.diff(dim=-1)], dim=-1)


def logistic_mixture_draw(
    logits: Tensor, mean: Tensor, log_scale: Tensor, uniform: Tensor, levels: int
) -> Tensor:
    """Integers 0..levels-1: a component, then the cell that its draw falls into.

    Components stand last in ``logits``, ``mean`` and ``log_scale``; ``uniform`` has two numbers there.
    """
    chosen = categorical_draw(logits, uniform[..., 0]).unsqueeze(-1)
    own = (mean.gather(-1, chosen).squeeze(-1), log_scale.gather(-1, chosen).squeeze(-1))
    return discretised_logistic_draw(*own, uniform[..., 1], levels)
