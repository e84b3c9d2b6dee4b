"""Stacked digits are digits, split before they are stacked; rings and grids are what they claim."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from simulacra.data import named, stacks
from simulacra.data.open import open_data
from simulacra.data.synthetic import TRUTHS
from simulacra.probability.mixtures import RoundMixture
from simulacra.spaces import Images, Vectors


@pytest.fixture(scope="module")
def stacked():
    return open_data("stacked-digits")


def planes(part, count=300):
    """The channels of the first stacks as bytes, with the class that each has by the stack's label."""
    batch = part.first(count)
    return [
        (plane.numpy().tobytes(), int(digit))
        for x, label in zip(batch.x, batch.condition, strict=True)
        for plane, digit in zip(x, f"{int(label):03d}", strict=True)
    ]


def test_every_channel_is_a_digit_and_the_label_reads_them(stacked):
    loaded = load_digits()
    known = {
        image.astype(np.uint8).tobytes(): int(digit)
        for image, digit in zip(loaded.images, loaded.target, strict=True)
    }
    assert stacked.space == Images(3, 8, 8, levels=17)
    assert stacked.labels.count == 1000
    for plane, digit in planes(stacked.train):
        assert known[plane] == digit


def test_no_digit_of_a_held_out_stack_was_seen_in_training(stacked):
    seen = {plane for plane, _ in planes(stacked.train, 20_000)}
    assert len(seen) > 850
    for part in (stacked.valid, stacked.test):
        assert not seen & {plane for plane, _ in planes(part)}


def test_a_stack_is_a_function_of_its_number_and_the_seed():
    base = named.read_named("digits")
    few, more = (
        stacks.stacked(base, stacks.Plan("digits", (count, 5, 5), 0.25)) for count in (10, 500)
    )
    other = stacks.stacked(base, stacks.Plan("digits", (500, 5, 5), 0.25), seed=1)
    assert np.array_equal(few.rows[:10], more.rows[:10])
    assert not np.array_equal(other.rows[:10], more.rows[:10])


def test_stacks_are_put_together_when_they_are_asked_for(stacked):
    rows = stacked.train.rows
    assert rows.images.nbytes + rows.picks.nbytes < 0.2 * math.prod(rows.shape)
    which = torch.tensor([3, 1, 3])
    assert torch.equal(stacked.train.take(which, 0)[0], stacked.train.take(which, 0)[2])


def test_all_modes_are_as_frequent_as_their_digits(stacked):
    labels = stacked.train.condition(torch.arange(len(stacked.train)))
    counts = torch.bincount(labels, minlength=1000).double()
    each = stacked.labels.separated(labels, 3)
    shares = torch.stack([torch.bincount(one, minlength=10).double() for one in each.T]) / len(each)
    expected = len(each) * torch.einsum("i,j,k->ijk", *shares).flatten()
    chi = ((counts - expected).square() / expected).sum()
    assert abs(chi - 999) < 5 * math.sqrt(2 * 999)


def test_stacks_have_views_and_sizes():
    data = open_data("stacked-digits", view="dynamic", size=4)
    assert data.space == Images(3, 4, 4, levels=2)
    assert data.space.contains(data.train.first(5).x)
    assert data.space.contains(data.test.first(5).x)


@pytest.mark.parametrize(("name", "modes", "deviation"), [("ring", 8, 0.01), ("grid", 25, 0.05)])
def test_rings_and_grids_are_what_the_papers_say(name, modes, deviation):
    data, truth = open_data(name), TRUTHS[name]()
    assert data.space == Vectors(2)
    assert (len(data.train), len(data.valid), len(data.test)) == (80_000, 10_000, 10_000)
    x = data.everything().all().x.double()
    away = (x[:, None] - truth.centres).norm(dim=2)
    nearest = away.argmin(1)
    counts = torch.bincount(nearest, minlength=modes).double()
    assert len(counts) == modes
    assert ((counts - 1e5 / modes).square() / (1e5 / modes)).sum() < modes + 5 * (2 * modes) ** 0.5
    offset = x - truth.centres[nearest]
    assert offset.mean(0).abs().max() < 5 * deviation / 1e5**0.5
    assert offset.std(0).tolist() == pytest.approx([deviation] * 2, rel=0.02)
    within = (away.min(1).values <= 3 * deviation).double().mean()
    assert within == pytest.approx(truth.share_within(3), abs=5 * 0.105 / 1e5**0.5)
    assert open_data(name).fingerprint == data.fingerprint


def test_the_true_density_integrates_to_one():
    mixture = RoundMixture(
        torch.tensor([[0.0, 0], [1, 2]]).double(),
        0.3,
        torch.tensor([0.2, 0.8], dtype=torch.float64),
    )
    side = torch.arange(-3, 5, 0.02, dtype=torch.float64)
    density = mixture.log_prob(torch.cartesian_prod(side, side)).exp()
    assert float(density.sum()) * 0.02**2 == pytest.approx(1, abs=1e-9)
    assert RoundMixture.equal(torch.zeros(1, 1), 1.0).share_within(1.959963984540054) == (
        pytest.approx(0.95)
    )
