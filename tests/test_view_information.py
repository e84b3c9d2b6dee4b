"""B and what moves add to it, against B itself and against information by its definition."""

import math

import pytest
import torch

from simulacra.probability.view_information import (
    Move,
    best_move,
    gains_of_merges,
    gains_of_splits,
    information_of_views,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def logs(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed)).double().mul(2).log_softmax(-1)


CERTAIN = (50 * torch.eye(4)).log_softmax(1)


@pytest.mark.parametrize(
    ("read", "information"),
    [
        (CERTAIN[torch.arange(128) % 4], math.log(4)),
        (torch.zeros(128, 4).log_softmax(1), 0.0),
        (CERTAIN[:1].expand(128, 4), 0.0),
        (CERTAIN[(torch.arange(128) + torch.arange(128) // 64) % 4], math.log(4) - 50),
    ],
)
def test_what_views_keep_is_the_information_of_the_classes(read, information):
    assert information_of_views(read).item() == pytest.approx(information, abs=1e-4)


def test_it_is_below_the_information_of_the_two_classes():
    for seed in range(5):
        chances = logs(400, 3, seed=seed)
        one, other = chances.exp().chunk(2)
        joint = one.T @ other / len(one)
        joint = 0.5 * (joint + joint.T)
        independent = joint.sum(1)[:, None] * joint.sum(0)
        information = (joint * (joint / independent).log()).sum()
        assert information_of_views(chances) < information


def test_a_class_that_nobody_takes_leaves_slopes_finite():
    logits = torch.tensor([[0.0, 1.0, -200.0, -400.0]]).repeat(8, 1).requires_grad_()
    information_of_views(logits.log_softmax(1)).backward()
    assert logits.grad.isfinite().all()


def test_gains_are_the_difference_that_a_move_makes():
    chances, halves = logs(64, 4), logs(64, 4, 2, seed=1)
    before = information_of_views(chances)
    splits, merges = gains_of_splits(chances, halves), gains_of_merges(chances)
    for one in range(4):
        kept = [k for k in range(4) if k != one]
        after = torch.cat([chances[:, kept], chances[:, [one]] + halves[:, one]], dim=1)
        assert splits[one].item() == pytest.approx((information_of_views(after) - before).item())
    for one in range(4):
        for other in range(one):
            kept = [k for k in range(4) if k not in (one, other)]
            both = torch.logaddexp(chances[:, one], chances[:, other])[:, None]
            after = information_of_views(torch.cat([chances[:, kept], both], dim=1))
            assert merges[one, other].item() == pytest.approx((after - before).item())
    assert torch.allclose(merges, merges.T)


def test_the_best_move_is_the_best_of_all():
    for seed in range(20):
        splits = torch.randn(4, generator=seeded(seed))
        merges = torch.randn(4, 4, generator=seeded(100 + seed))
        merges = merges + merges.T
        found = best_move(splits, merges)
        moves = [
            Move(float(splits[a] + merges[b, c]), a, b, c)
            for a in range(4)
            for b in range(4)
            for c in range(b + 1, 4)
            if a not in (b, c)
        ]
        assert found == max(moves, key=lambda move: move.gain)


def test_two_classes_have_no_move():
    with pytest.raises(ValueError, match="three classes"):
        best_move(torch.ones(2), torch.zeros(2, 2))
