"""Verdicts: in plain language, which model for which use, and where the numbers cannot tell.

Two models are not distinguishable where the 95 % intervals of their readings overlap. Exact
likelihoods, bounds and estimates are never ranked as one: a bound '≤ v' that lies below another
model's exact value does prove its model better; one that lies above proves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from simulacra.contract import Kind
from simulacra.evaluation import (
    anomaly,
    class_accuracy,
    cost,
    downstream,
    frechet,
    kernel_distance,
    likelihood,
    manifold,
    representation,
)
from simulacra.evaluation.reading import Reading

Named = Mapping[str, Reading]
"""One reading of each model, all of one name."""


@dataclass(frozen=True)
class Verdict:
    """For one use: the text, and the models that it puts first (none where nothing can be said)."""

    use: str
    text: str
    best: tuple[str, ...] = ()


def verdicts(
    readings: Mapping[str, Sequence[Reading]],
    *,
    trusted: bool = True,
    refused: Mapping[str, Sequence[str]] = {},
) -> list[Verdict]:
    """What the readings of several models, by model, say for each use.

    ``trusted``: whether the ruler passed its own test on these data; else samples are not ranked.
    ``refused``: the lines that say what could not be measured and why, by model.
    """
    failed = "The ruler failed its own test on these data, so nobody's samples are ranked."
    return [
        _sampling(readings, refused) if trusted else Verdict("sampling", failed),
        _density(readings),
        _anomaly(readings),
        _features(readings),
        _speed(readings),
    ]


def _all_of(readings: Mapping[str, Sequence[Reading]], name: str) -> dict[str, Reading]:
    return {
        model: one for model, several in readings.items() for one in several if one.name == name
    }


def bounds(one: Reading) -> tuple[float, float]:
    """The interval of a reading; one without any counts as a point."""
    low = one.value if one.low is None else one.low
    return low, one.value if one.high is None else one.high


def leaders(named: Named) -> tuple[str, ...]:
    """The best model, then those whose intervals overlap its own."""
    lower = next(iter(named.values())).better == "lower"
    order = sorted(named, key=lambda model: named[model].value * (1 if lower else -1))
    low, high = bounds(named[order[0]])
    return tuple(
        model
        for model in order
        if model == order[0] or (bounds(named[model])[0] <= high and bounds(named[model])[1] >= low)
    )


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _peers(first: Sequence[str]) -> str:
    return f"; not distinguishable from it: {_and(first[1:])}" if len(first) > 1 else ""


def _shown(one: Reading) -> str:
    """Value with sign, unit and interval."""
    sign = "" if one.kind is None else f"{one.kind.sign} "
    unit = f" {one.unit}" if one.unit in ("bits/dim", "s/sample") else ""
    low, high = bounds(one)
    interval = f" (95 % {low:.3g} to {high:.3g})" if low < high else ""
    return f"{sign}{one.value:.3g}{unit}{interval}"


def _sampling(
    readings: Mapping[str, Sequence[Reading]], refused: Mapping[str, Sequence[str]]
) -> Verdict:
    """By the Fréchet distance; by the kernel distance, which any count will do for, where none has it."""
    use, named = "sampling", _all_of(readings, frechet.NAME)
    unread = _unread(readings, refused)
    by_kernel = not named
    named = named or _all_of(readings, kernel_distance.NAME)
    more = unread + _variety(readings) + _obedience(readings) + _usefulness(readings)
    if not named:
        return Verdict(use, f"No distance of samples to real data could be read.{more}")
    counts = [str(one.count) for one in named.values()]
    usual = max(set(counts), key=lambda count: (counts.count(count), count))
    compared = {model: one for model, one in named.items() if str(one.count) == usual}
    first = leaders(compared)
    best = compared[first[0]]
    real = "" if best.floor is None else f", where other real data have {best.floor:.3g}"
    others = [model for model in named if model not in compared]
    if others:
        more = (
            f" {_and(others)} could be judged on other counts only, and cannot be compared.{more}"
        )
    if by_kernel and 1 < len(first) == len(compared):
        values = ", ".join(f"{model} {_shown(compared[model])}" for model in first)
        return Verdict(use, f"The {best.name} tells none of them apart: {values}{real}.{more}")
    text = f"{first[0]} draws the most lifelike samples: {best.name} {_shown(best)}{real}"
    return Verdict(use, f"{text}{_peers(first)}.{more}", first)


def _unread(readings: Mapping[str, Sequence[Reading]], refused: Mapping[str, Sequence[str]]) -> str:
    """Whose samples have a kernel distance and no Fréchet distance, and why."""
    lacking = [
        model
        for model in _all_of(readings, kernel_distance.NAME)
        if model not in _all_of(readings, frechet.NAME)
    ]
    if not lacking:
        return ""
    # What stands between the measure's name and the way out.
    lines = [line for model in lacking for line in refused.get(model, ())]
    told = [line.partition(f"{frechet.NAME}: ")[2].partition(": ")[0] for line in lines]
    why = "; ".join(dict.fromkeys(filter(None, told)))
    return f" No {frechet.NAME} of {_and(lacking)} could be read{f': {why}' if why else ''}."


def _variety(readings: Mapping[str, Sequence[Reading]]) -> str:
    covered = _all_of(readings, manifold.COVERAGE)
    if not covered:
        return ""
    first = leaders(covered)
    told = f" The most variety: {first[0]}, coverage {_shown(covered[first[0]])}"
    return told + _peers(first) + "."


def _obedience(readings: Mapping[str, Sequence[Reading]]) -> str:
    named = _all_of(readings, class_accuracy.NAME)
    if not named:
        return ""
    first = leaders(named)
    best = named[first[0]]
    real = "" if best.floor is None else f", real data to {best.floor:.3g}"
    told = f" Asked for a class, {first[0]} keeps to it best: share {_shown(best)}{real}"
    return told + _peers(first) + "."


def _usefulness(readings: Mapping[str, Sequence[Reading]]) -> str:
    named = _all_of(readings, downstream.NAME)
    if not named:
        return ""
    first = leaders(named)
    best = named[first[0]]
    real = "" if best.floor is None else f", real data {best.floor:.3g}"
    guess = "" if best.control is None else f", guessing {best.control:.3g}"
    told = (
        f" Samples of {first[0]} teach most about a column of real rows: {best.unit} {_shown(best)}"
    )
    return told + real + guess + _peers(first) + "."


def _density(readings: Mapping[str, Sequence[Reading]]) -> Verdict:
    told, best = [], tuple[str, ...]()
    for given in ("", likelihood.GIVEN):
        named = _all_of(readings, likelihood.BITS + given)
        if named:
            text, first = _ranked_by_kind(named)
            told.append(f"{'Given the labels: ' if given else ''}{text}")
            best = best or first
    if not told:
        return Verdict("density", "No model here has a density.")
    return Verdict("density", " ".join(told), best)


def _ranked_by_kind(named: Named) -> tuple[str, tuple[str, ...]]:
    """The text, and the models that come first; each kind apart."""
    of_kind = {
        kind: {model: one for model, one in named.items() if one.kind == kind} for kind in Kind
    }
    exact, lower = of_kind[Kind.EXACT], of_kind[Kind.LOWER]
    told, first = list[str](), tuple[str, ...]()
    if exact:
        first = leaders(exact)
        told.append(
            f"Of the exact densities {first[0]} is best: {_shown(exact[first[0]])}{_peers(first)}."
        )
    if lower:
        bound = leaders(lower)
        told.append(
            f"Of the bounds {bound[0]}'s is lowest: {_shown(lower[bound[0]])}{_peers(bound)}."
        )
        if exact:
            least = bounds(exact[first[0]])[0]
            proven = tuple(model for model in bound if bounds(lower[model])[1] < least)
            told.append(_across(bound[0], first[0], proven=bound[0] in proven))
            first = proven if bound[0] in proven else first
        else:
            first = bound
    estimates = of_kind[Kind.ESTIMATE]
    told += [
        f"{model}: {_shown(one)}, an estimate, not ranked." for model, one in estimates.items()
    ]
    if of_kind[Kind.UNNORMALISED]:
        told.append(f"{_and(list(of_kind[Kind.UNNORMALISED]))}: unnormalised, comparable to none.")
    return " ".join(told), first


def _across(bound: str, exact: str, *, proven: bool) -> str:
    """What the lowest bound says of the best exact value."""
    if proven:
        return f"That bound lies below {exact}'s exact value, so {bound} is the better density."
    return (
        f"That bound does not lie clearly below {exact}'s exact value, which proves nothing: "
        f"{bound}'s true value may be lower than its bound."
    )


def _anomaly(readings: Mapping[str, Sequence[Reading]]) -> Verdict:
    use, named = "anomaly detection", _all_of(readings, anomaly.NAME)
    if not named:
        return Verdict(use, "No model here scores how strange a datum is.")
    first = leaders(named)
    best = named[first[0]]
    if bounds(best)[0] <= anomaly.GUESSING:
        text = "None finds data spliced from two better than guessing; best of them"
        return Verdict(use, f"{text} {first[0]}: {_shown(best)}.")
    text = f"{first[0]} finds data spliced from two best: area under ROC {_shown(best)}"
    return Verdict(use, f"{text}, 0.5 is guessing{_peers(first)}.", first)


def _features(readings: Mapping[str, Sequence[Reading]]) -> Verdict:
    use, named = "features", _all_of(readings, representation.LINEAR)
    if not named:
        return Verdict(
            use, "No codes could be probed: that takes labels and an unconditional encoder."
        )
    first = leaders(named)
    best = named[first[0]]
    text = f"A linear probe reads most of the labels from {first[0]}'s codes: {_shown(best)}"
    text += _peers(first) + "."
    if best.control is None:
        return Verdict(use, text, first)
    low, high = bounds(best)
    beside = "not distinguishable from"
    if low > best.control:
        beside = "more than"
    elif high < best.control:
        beside = "less than"
    return Verdict(use, f"{text} That is {beside} the raw data's {best.control:.3g}.", first)


def _speed(readings: Mapping[str, Sequence[Reading]]) -> Verdict:
    use, named = "speed", _all_of(readings, cost.SAMPLING)
    if not named:
        return Verdict(use, "No model here draws samples.")
    first = leaders(named)
    best = named[first[0]]
    text = f"{first[0]} samples fastest: {_seconds(best.value)} a sample{_peers(first)}."
    slowest = max(named, key=lambda model: named[model].value)
    if slowest not in first and best.value > 0:
        times = named[slowest].value / best.value
        text += (
            f" {slowest} takes longest: {_seconds(named[slowest].value)}, {times:,.3g} times that."
        )
    return Verdict(use, text, first)


def _seconds(value: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if value * scale >= 1 or unit == "µs":
            return f"{value * scale:.3g} {unit}"
    raise AssertionError
