"""Averages of any length out of snapshots of two: against integrals, and against averages tracked so."""

import itertools
import math

import numpy as np
import pytest
import torch

from simulacra.probability.weight_averages import (
    LONGER,
    Profile,
    SecondAverage,
    fit,
    inner_products,
    second_half_life,
)


def density(profile, t, now):
    """p_gamma(tau, t_a) on a grid of times in units of exp(now)."""
    end = math.exp(profile.age - now)
    return np.where(
        t <= end, (profile.gamma + 1) * t**profile.gamma / end ** (profile.gamma + 1), 0
    )


def test_inner_products_are_integrals():
    now = 3.0
    some = [Profile(0.05, 3.0), Profile(0.125, 2.9), Profile(0.3, 2.2), Profile(0.5, 3.0)]
    edges = np.linspace(0, 1, 400_001)
    t = (edges[1:] + edges[:-1]) / 2
    found = inner_products(some, some, now=now)
    for (i, one), (j, other) in itertools.product(enumerate(some), repeat=2):
        expected = (density(one, t, now) * density(other, t, now)).mean()
        assert found[i, j] == pytest.approx(expected, rel=1e-4), (one, other)


def test_a_kept_average_is_made_of_itself_and_shares_sum_to_one():
    kept = [Profile(h, math.log(k)) for h in (0.05, 0.125) for k in range(1, 17)]
    for index in (15, 31):
        x, residual = fit(kept, kept[index])
        assert np.abs(x - np.eye(32)[index]).max() < 1e-6
        assert residual < 1e-6
    for half_life in (0.02, 0.1, 0.4):
        assert fit(kept, Profile(half_life, math.log(16)))[0].sum() == pytest.approx(1, abs=1e-9)


def test_more_snapshots_miss_less_of_a_profile():
    def missing(count, half_life):
        ages = [math.log(k) for k in range(1, count + 1)]
        kept = [Profile(h, age) for h in (0.05, second_half_life(0.05)) for age in ages]
        return fit(kept, Profile(half_life, ages[-1]))[1]

    for half_life in (0.02, 0.08, 0.3):
        assert missing(32, half_life) < 0.5 * missing(8, half_life)
    assert missing(8, 0.01) > 0.3, "no averages so sparse tell of the last hundredth"
    assert missing(8, 0.1) < 0.02


class Walk:
    """A random walk of vectors, and its averages by the rule of the game: beside one another."""

    def __init__(self, half_lives, *, batch=10, batches=1, swept=0, rounds=1600, snapshots=16):
        stream = torch.Generator().manual_seed(0)
        theta = torch.randn(8, generator=stream, dtype=torch.float64)
        self.tracked = {h: theta.clone() for h in half_lives}
        examples, age = swept, 0.0
        self.snapshots = []
        for k in range(1, rounds + 1):
            theta = theta + torch.randn(8, generator=stream, dtype=torch.float64)
            examples += batch * batches
            age += batch / examples
            for half_life, average in self.tracked.items():
                average.lerp_(theta, 1 - 0.5 ** (batch / (half_life * examples)))
            if k % (rounds // snapshots) == 0:
                kept = {h: self.tracked[h].clone() for h in half_lives[:2]}
                self.snapshots.append((age, kept))
        self.theta, self.age = theta, age

    def made(self, half_life):
        kept = [
            (Profile(h, age), value) for age, held in self.snapshots for h, value in held.items()
        ]
        x, residual = fit([profile for profile, _ in kept], Profile(half_life, self.age))
        total = sum(
            float(share) * value for share, value in zip(x, (v for _, v in kept), strict=True)
        )
        return total, residual

    def error(self, half_life, found):
        """How far from the average that was tracked, as a share of how far that is from the walk."""
        right = self.tracked[half_life]
        return float((found - right).norm() / (right - self.theta).norm())


@pytest.mark.parametrize(
    "choices",
    [{}, {"batches": 6}, {"swept": 5000}, {"batch": 1}],
    ids=["plain", "six batches a round", "a sweep before", "one datum"],
)
def test_an_average_is_what_it_would_have_been(choices):
    lengths = (0.05, second_half_life(0.05), 0.03, 0.07, 0.1, 0.2)
    walk = Walk(lengths, **choices)
    for half_life in lengths:
        found, residual = walk.made(half_life)
        exact = half_life in lengths[:2]
        assert walk.error(half_life, found) < (1e-9 if exact else 0.02), (half_life, residual)
        assert residual < (1e-6 if exact else 0.05)
    # Neither of the tracked ones would have done.
    nearest = min(walk.error(0.2, walk.snapshots[-1][1][h]) for h in lengths[:2])
    assert nearest > 0.05


def test_a_second_average_has_an_age_and_stands_where_it_is_put():
    weights = {"one": torch.zeros(3), "two": torch.zeros(3)}
    second = SecondAverage({k: v.clone() for k, v in weights.items()}, 0.2)
    now = {name: torch.ones(3) for name in weights}
    for share in (1.0, 0.5, 0.25):
        second.follow(now, share)
    assert second.age == 1.75
    assert torch.allclose(second.weights["one"], torch.full((3,), 1 - 0.5 ** (1.75 / 0.2)))
    second.write("two", torch.full((3,), 7.0))
    assert second.since == {"two": 1.75}
    assert second.weights["two"].tolist() == [7.0] * 3
    assert second.plain() == {"half_life": 0.2, "age": 1.75, "since": {"two": 1.75}}


def test_the_second_length_stays_within_the_training():
    assert second_half_life(0.05) == 0.05 * LONGER
    assert second_half_life(0.4) < 0.4
