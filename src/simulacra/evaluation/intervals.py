"""95 % intervals in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from torch import Tensor

NORMAL_95 = 1.959963984540054


def around(value: float, variance: float) -> tuple[float, float]:
    """The normal interval of an estimate with this variance."""
    reach = NORMAL_95 * math.sqrt(max(variance, 0.0))
    return value - reach, value + reach


def mean_interval(values: Tensor) -> tuple[float, float]:
    """The normal interval of the mean of independent ``values``, shape (n,), n at least 2."""
    exact = values.double()
    return around(float(exact.mean()), float(exact.var()) / len(exact))


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's interval of a share (1927): in [0, 1], and sound at 0 and at 1."""
    share, square = successes / trials, NORMAL_95**2
    centre = (share + square / (2 * trials)) / (1 + square / trials)
    spread = math.sqrt(share * (1 - share) / trials + square / (4 * trials**2))
    reach = NORMAL_95 * spread / (1 + square / trials)
    # At the ends the formula gives nought and one, but for rounding.
    low = 0.0 if successes == 0 else centre - reach
    return low, 1.0 if successes == trials else centre + reach


def student_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's interval of the mean of a few independent values, at least two (1908)."""
    from scipy.stats import t  # half a second to import, and only needed for several seeds

    count = len(values)
    reach = float(t.ppf(0.975, count - 1)) * stdev(values) / math.sqrt(count)
    return fmean(values) - reach, fmean(values) + reach
