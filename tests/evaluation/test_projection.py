"""Codes in the plane: principal components against NumPy's, crowds that stay together."""

import numpy as np
import pytest
import torch

from simulacra.evaluation.projection import (
    FEWEST,
    neighbour_embedding,
    principal_components,
    projections,
)
from simulacra.evaluation.representation import nearest_hits
from simulacra.games import Batch


def crowds(count=120, width=6, seed=0):
    draw = torch.Generator().manual_seed(seed)
    which = torch.arange(count) % 3
    centres = 6 * torch.eye(3, width)
    return centres[which] + torch.randn((count, width), generator=draw), which


def test_principal_components_are_those_of_the_covariance():
    codes, _ = crowds()
    found = principal_components(codes)
    values, vectors = np.linalg.eigh(np.cov(codes.double().numpy().T))
    for axis in (0, 1):
        expected = (codes.double() - codes.double().mean(0)).numpy() @ vectors[:, -1 - axis]
        weights = vectors[:, -1 - axis]
        expected *= np.sign(weights[np.abs(weights).argmax()])
        assert found.points[:, axis].numpy() == pytest.approx(expected, abs=1e-9)
    shares = values[::-1] / values.sum()
    assert f"{shares[0]:.0%} and {shares[1]:.0%} of the variance" in found.how


def test_crowds_stay_together_and_the_seed_decides():
    codes, which = crowds()
    found = neighbour_embedding(codes, 3)
    again = neighbour_embedding(codes, 3)
    assert torch.equal(found.points, again.points)
    assert "perplexity 30, seed 3" in found.how
    taught = Batch(found.points[:60].float(), which[:60])
    assert nearest_hits(taught, Batch(found.points[60:].float(), which[60:])) >= 57


def test_codes_that_have_no_plane_get_what_they_have():
    line, still = torch.randn(40, 1), torch.ones(40, 4)
    for codes in (line, still):
        for one in projections(codes, 0):
            assert one.points.shape == (40, 2)
            assert torch.isfinite(one.points).all()
    assert not principal_components(line).points[:, 1].any()
    assert [one.name for one in projections(torch.randn(FEWEST - 1, 3), 0)] == ["PCA"]
    assert principal_components(torch.randn(1, 3)).points.shape == (1, 2)
