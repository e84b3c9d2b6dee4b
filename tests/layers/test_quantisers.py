"""Quantisers: nearest entries by brute force, averages by their closed form, levels all reachable."""

import itertools

import pytest
import torch

from simulacra.layers.quantisers import (
    Codebook,
    FiniteScalars,
    balanced_levels,
    drawn_rows,
    nearest,
)
from simulacra.probability.noise import BatchNoise
from simulacra.refusals import Refusal


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed))


@pytest.mark.parametrize(("rows", "codes", "width"), [(1, 3, 2), (700, 512, 8), (5, 70_000, 3)])
def test_the_nearest_entry_is_found(rows, codes, width):
    z, entries = normal(rows, width), normal(codes, width, seed=1)
    found = nearest(z, entries)
    distances = torch.cdist(z.double(), entries.double())
    best = distances.min(1).values
    torch.testing.assert_close(
        distances.gather(1, found[:, None])[:, 0], best, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("codes", [64, 256, 300, 512])
def test_the_first_of_equals_is_taken(codes):
    """Entries stand twice, a half apart, which is another block of the search."""
    half = torch.arange(codes // 2).float()
    entries = torch.stack([half, -half], 1).repeat(2, 1)
    assert nearest(entries, entries).tolist() == 2 * list(range(codes // 2))


@pytest.mark.parametrize("codes", [3, 512])
def test_no_rows_have_no_codes(codes):
    assert nearest(normal(0, 4), normal(codes, 4)).shape == (0,)


def test_autocast_does_not_move_vectors_to_other_codes():
    z, entries = normal(500, 8), normal(256, 8, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest(z, entries), nearest(z, entries).clone())
        inside = nearest(z, entries)
    assert torch.equal(inside, nearest(z, entries))


def test_gradients_go_straight_through_the_codebook():
    book, z = Codebook(5, 3), normal(4, 2, 3).requires_grad_()
    said = book(z)
    assert torch.equal(said.codes.flatten(), nearest(z.detach().reshape(-1, 3), book.entries))
    torch.testing.assert_close(said.vectors, book.vectors(said.codes))
    slope = normal(4, 2, 3, seed=2)
    (found,) = torch.autograd.grad((said.vectors * slope).sum(), z)
    torch.testing.assert_close(found, slope)
    commitment = book(z).commitment
    (found,) = torch.autograd.grad(commitment, z)
    torch.testing.assert_close(found, 2 * (z - said.vectors).detach() / z.numel())
    assert not list(book.parameters())


def test_averages_are_those_of_the_paper():
    """A weighted mean of all batches so far, weights falling by 1 - rate with their age."""
    rate, rounds = 0.2, 6
    book = Codebook(3, 2, rate=rate)
    book.start(10 * normal(3, 2, seed=5), 4.0)
    begun, weight = book.sums.double(), book.counts.double()
    for step in range(rounds):
        book(10 * normal(7, 2, seed=step).requires_grad_())
        z, counts, sums = book.noted()
        codes = nearest(z, book.entries)
        own = torch.nn.functional.one_hot(codes, 3).double()
        torch.testing.assert_close(counts.double(), own.sum(0))
        torch.testing.assert_close(sums.double(), own.T @ z.double(), rtol=1e-5, atol=1e-5)
        begun = (1 - rate) * begun + rate * own.T @ z.double()
        weight = (1 - rate) * weight + rate * own.sum(0)
        book.move(counts, sums)
        torch.testing.assert_close(
            book.entries.double(), begun / weight.unsqueeze(1), rtol=1e-5, atol=1e-5
        )


def test_averages_settle_at_the_mean_of_what_chooses_an_entry():
    book = Codebook(2, 1, rate=0.5)
    book.start(torch.tensor([[-1.0], [1.0]]), 2.0)
    z = torch.tensor([[-3.0], [-5.0], [2.0], [6.0]])
    for _ in range(40):
        book(z.requires_grad_())
        _, counts, sums = book.noted()
        book.move(counts, sums)
    torch.testing.assert_close(book.entries, torch.tensor([[-4.0], [4.0]]))
    torch.testing.assert_close(book.counts, torch.tensor([2.0, 2.0]))


def test_an_entry_that_nothing_chooses_stays_and_is_revived():
    book = Codebook(3, 2, rate=0.1)
    book.start(torch.tensor([[0.0, 0.0], [1.0, 1.0], [90.0, 90.0]]), 2.0)
    z = normal(10, 2)
    for _ in range(60):
        assert not book.dead(0.0).any()
        book(z.requires_grad_())
        _, counts, sums = book.noted()
        book.move(counts, sums)
    torch.testing.assert_close(book.entries[2], torch.tensor([90.0, 90.0]))
    dead = book.dead(0.03)
    assert dead.tolist() == [False, False, True]
    mean = book.counts.mean().clone()
    fresh = drawn_rows(z.detach(), 1, BatchNoise(seeded(3), 5))
    book.revive(dead, fresh, 0.2)
    torch.testing.assert_close(book.entries[2], fresh[0])
    torch.testing.assert_close(book.counts[2], 0.2 * mean)
    torch.testing.assert_close(book.sums[2] / book.counts[2], fresh[0])
    assert (z == fresh).all(1).any()


def test_rows_are_drawn_once_while_there_are_enough():
    z, noise = torch.arange(12.0).unsqueeze(1), BatchNoise(seeded(), 4)
    assert len(drawn_rows(z, 12, noise).unique()) == 12
    assert len(drawn_rows(z, 5, noise).unique()) == 5
    many = drawn_rows(z, 30, noise)
    assert len(many) == 30
    assert len(many.unique()) == 12
    first, again, other = (drawn_rows(z, 5, BatchNoise(seeded(s), 4)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_batch_is_noted_once_and_only_in_training():
    book = Codebook(4, 2)
    book.eval()
    book(normal(3, 2).requires_grad_())
    with pytest.raises(AssertionError):
        book.noted()
    book.train()
    book(normal(3, 2))
    book.noted()
    with pytest.raises(AssertionError):
        book.noted()


@pytest.mark.parametrize("levels", [(2,), (3,), (4,), (8, 6, 5), (2, 3, 7), (8, 8, 8)])
def test_every_level_is_reached_and_none_beyond(levels):
    scalars = FiniteScalars(levels)
    line = torch.linspace(-40, 40, 20_001)
    for index, count in enumerate(levels):
        z = torch.zeros(len(line), len(levels))
        z[:, index] = line
        steps = scalars.bounded(z).round()[:, index]
        low, high = -(count // 2), (count - 1) // 2
        assert steps.unique().tolist() == list(range(low, high + 1))
        assert (steps.diff() >= 0).all()
    assert torch.equal(
        scalars.bounded(torch.zeros(1, len(levels))).abs() < 1e-5, torch.ones(1, len(levels)) > 0
    )


@pytest.mark.parametrize("levels", [(8, 6, 5), (2, 3), (5, 5, 5)])
def test_codes_and_vectors_of_finite_scalars_name_each_other(levels):
    scalars = FiniteScalars(levels)
    every = torch.arange(scalars.codes)
    vectors = scalars.vectors(every)
    assert len(vectors.unique(dim=0)) == scalars.codes
    assert vectors.abs().max() <= 1
    said = scalars(30 * normal(4000, len(levels)))
    torch.testing.assert_close(said.vectors, scalars.vectors(said.codes))
    assert float(said.commitment) == 0
    some = scalars(2 * normal(20_000, len(levels), seed=3)).codes.unique()
    assert len(some) == scalars.codes


def test_gradients_go_straight_through_the_rounding():
    scalars, z = FiniteScalars((8, 5)), normal(6, 2).requires_grad_()
    slope = normal(6, 2, seed=2)
    (found,) = torch.autograd.grad((scalars(z).vectors * slope).sum(), z)
    middle = torch.tensor([4, 2])
    (expected,) = torch.autograd.grad((scalars.bounded(z) / middle * slope).sum(), z)
    torch.testing.assert_close(found, expected)
    assert found.abs().min() > 0


@pytest.mark.parametrize(
    ("codes", "levels"),
    [(512, (8, 8, 8)), (1000, (8, 5, 5, 5)), (240, (8, 6, 5)), (64, (8, 8)), (4, (4,)), (7, (7,))],
)
def test_levels_are_as_many_and_as_equal_as_can_be(codes, levels):
    found = balanced_levels(codes)
    assert torch.tensor(found).prod() == codes
    if codes != 4:
        assert found == levels


@pytest.mark.parametrize("codes", [1, 0, 509])
def test_codes_without_levels_are_refused(codes):
    with pytest.raises(Refusal) as refusal:
        balanced_levels(codes)
    assert refusal.value.code == "CFG-122"


def test_the_paper_s_levels_can_all_be_made():
    for levels in itertools.product((5, 8), repeat=2):
        assert FiniteScalars(levels).codes == levels[0] * levels[1]
