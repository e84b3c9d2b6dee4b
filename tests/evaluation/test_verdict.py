"""Verdicts say who is best, when one cannot tell, and never rank different kinds as one."""

import pytest

from simulacra.contract import Kind
from simulacra.evaluation.reading import Reading
from simulacra.evaluation.verdict import leaders, verdicts


def reading(name, value, reach=0.0, **others):
    defaults = {
        "unit": "",
        "better": "lower",
        "count": 100,
        "split": "test",
        "seed": 0,
        "how": "made up",
        "low": value - reach,
        "high": value + reach,
    }
    return Reading(name=name, value=value, **(defaults | others))


def bits(value, kind, reach=0.1):
    return [reading("bits per dimension", value, reach, unit="bits/dim", kind=kind)]


def told(use, **readings):
    return next(one for one in verdicts(readings) if one.use == use)


def test_leaders_are_all_whose_intervals_overlap_the_best():
    values = {"a": 3.0, "b": 1.0, "c": 1.15, "d": 1.3}
    named = {model: reading("x", value, 0.1) for model, value in values.items()}
    assert leaders(named) == ("b", "c")
    higher = {m: reading("x", v, 0.1, better="higher") for m, v in values.items()}
    assert leaders(higher) == ("a",)


def test_a_bound_below_an_exact_value_proves_and_above_does_not():
    found = told("density", a=bits(2.0, Kind.EXACT), b=bits(1.0, Kind.LOWER))
    assert found.best == ("b",)
    assert "b is the better density" in found.text
    found = told("density", a=bits(1.0, Kind.EXACT), b=bits(2.0, Kind.LOWER))
    assert found.best == ("a",)
    assert "proves nothing" in found.text
    found = told("density", a=bits(1.05, Kind.EXACT), b=bits(1.0, Kind.LOWER))
    assert found.best == ("a",)
    assert "proves nothing" in found.text


def test_estimates_and_unnormalised_values_are_not_ranked():
    found = told(
        "density",
        a=bits(2.0, Kind.EXACT),
        b=bits(0.1, Kind.ESTIMATE),
        c=bits(-5.0, Kind.UNNORMALISED),
    )
    assert found.best == ("a",)
    assert "b: ≈ 0.1 bits/dim" in found.text
    assert "c: unnormalised" in found.text


def test_likelihoods_given_labels_stand_apart():
    given = [reading("bits per dimension given conditions", 0.5, unit="bits/dim", kind=Kind.EXACT)]
    found = told("density", a=bits(2.0, Kind.EXACT), b=given)
    assert found.best == ("a",)
    assert "Given the labels: Of the exact densities b is best" in found.text


def test_samples_are_compared_at_equal_counts_only():
    name, many = "Fréchet distance", {"samples": 1000, "real": 360}
    found = told(
        "sampling",
        a=[reading(name, 2.0, 0.1, count=many, floor=0.5)],
        b=[reading(name, 2.1, 0.1, count=many, floor=0.5)],
        c=[reading(name, 9.0, 0.1, count=many, floor=0.5)],
        d=[reading(name, 1.0, 0.1, count={"samples": 70, "real": 360}, floor=0.9)],
    )
    assert found.best == ("a", "b")
    assert "not distinguishable from it: b" in found.text
    assert "d could be judged on other counts only" in found.text
    assert "real data have 0.5" in found.text


REFUSED = (
    "not measured: error[NUM-020]: Fréchet distance: 30 data are too few for a covariance of 64 "
    "features: take at least 128"
)


def kernel(value, reach=0.1, **others):
    return [reading("kernel distance", value, reach, count={"samples": 50, "real": 30}, **others)]


def sampling(refused=(), **readings):
    told = verdicts(readings, refused=dict.fromkeys(readings, refused))
    return next(one for one in told if one.use == "sampling")


def test_the_kernel_distance_stands_in_and_what_could_not_be_read_is_said():
    found = sampling([REFUSED], a=kernel(1.0, floor=0.01), b=kernel(2.0), c=kernel(1.1))
    assert found.best == ("a", "c")
    assert "a draws the most lifelike samples: kernel distance 1 (95 % 0.9 to 1.1)" in found.text
    why = "30 data are too few for a covariance of 64 features."
    assert f"No Fréchet distance of a, b and c could be read: {why}" in found.text
    assert "No distance" not in found.text


def test_a_kernel_distance_that_cannot_tell_puts_nobody_first():
    found = sampling(a=kernel(1.0), b=kernel(1.1))
    assert found.best == ()
    assert "The kernel distance tells none of them apart: a 1 (95 %" in found.text


def test_who_lacks_the_distance_that_others_have_is_named():
    found = sampling(a=[reading("Fréchet distance", 2.0), *kernel(1.0)], b=kernel(0.5))
    assert found.best == ("a",)
    assert "No Fréchet distance of b could be read." in found.text


ABOUT = {
    "sampling": ("Fréchet distance", "lower"),
    "density": ("bits per dimension", "lower"),
    "anomaly detection": ("anomaly detection", "higher"),
    "features": ("linear probe", "higher"),
    "speed": ("sampling time", "lower"),
}
PARTS = ("coverage", "class accuracy of samples", "column predicted from samples")


def test_every_use_is_held_to_its_intervals():
    assert {one.use for one in verdicts({})} == set(ABOUT)


@pytest.mark.parametrize("kind", [Kind.EXACT, Kind.LOWER])
@pytest.mark.parametrize("use", ABOUT)
def test_every_use_says_where_it_cannot_tell(use, kind):
    name, better = ABOUT[use]
    more = {"better": better, "kind": kind if use == "density" else None}

    def of(*values):
        models = dict(zip("abc", values, strict=True))
        return told(use, **{m: [reading(name, v, 0.05, **more)] for m, v in models.items()})

    best = 0.8 if better == "higher" else 0.6
    other = 1.4 - best
    close = of(best, best + (0.04 if better == "lower" else -0.04), other)
    assert close.best == ("a", "b")
    assert "not distinguishable from it: b" in close.text
    apart = of(best, other, other)
    assert apart.best == ("a",)
    assert "not distinguishable from it" not in apart.text


@pytest.mark.parametrize("name", PARTS)
def test_what_is_said_beside_it_is_held_to_its_intervals_too(name):
    distance = reading("Fréchet distance", 1.0, 0.1)

    def of(a, b):
        pairs = {"a": a, "b": b}
        return told(
            "sampling",
            **{m: [distance, reading(name, v, 0.05, better="higher")] for m, v in pairs.items()},
        ).text

    assert of(0.9, 0.88).count("not distinguishable from it: b") == 2
    assert of(0.9, 0.5).count("not distinguishable from it: b") == 1


def test_guessing_is_no_victory_and_raw_data_are_named():
    name = "anomaly detection"
    found = told(name, a=[reading(name, 0.52, 0.05, better="higher")])
    assert found.best == ()
    assert "None" in found.text
    probe = reading("linear probe", 0.9, 0.02, better="higher", control=0.96)
    assert "less than the raw data's 0.96" in told("features", a=[probe]).text


@pytest.mark.parametrize(("value", "text"), [(2.0, "2 s"), (0.002, "2 ms"), (2e-6, "2 µs")])
def test_seconds_are_said_in_a_fitting_unit(value, text):
    found = told("speed", a=[reading("sampling time", value)], b=[reading("sampling time", 100)])
    assert text in found.text
    assert "b takes longest" in found.text


def test_no_readings_no_verdict_but_words():
    assert all(one.text and one.best == () for one in verdicts({}))
