"""The control without a model: Gaussians in principal components, one a class."""

import pytest
import torch

from simulacra.evaluation.gaussians import COMPONENTS, Principal, gaussian_images
from simulacra.games import Batch
from simulacra.spaces import Images

from .conftest import DIGITS

SPACE = Images(1, 12, 12)


@pytest.fixture(scope="module")
def planted():
    """Two classes of 12 x 12 images, one three times as frequent, far apart and of unlike spread."""
    draw = torch.Generator().manual_seed(0)
    labels = (torch.rand(4000, generator=draw) < 0.25).long()
    mix = torch.randn((2, 5, 144), generator=draw) * torch.tensor([4.0, 12.0])[:, None, None]
    centre = torch.tensor([70.0, 170.0])
    inner = torch.randn((4000, 1, 5), generator=draw)
    x = centre[labels, None] + (inner @ mix[labels])[:, 0]
    return Batch(x.round().clamp(0, 255).to(torch.uint8).reshape(-1, 1, 12, 12), labels)


def test_each_class_keeps_its_share_its_mean_and_its_covariance(planted):
    drawn = gaussian_images(planted, SPACE, count=4000, seed=1)
    assert drawn.dtype == torch.uint8
    second = drawn.flatten(1).float().mean(1) > 120
    assert float(second.float().mean()) == pytest.approx(0.25, abs=0.03)
    for label, rows in ((0, drawn[~second]), (1, drawn[second])):
        ours, theirs = (
            rows.flatten(1).double(),
            planted.x[planted.condition == label].flatten(1).double(),
        )
        spread = theirs.std(0)
        assert ((ours.mean(0) - theirs.mean(0)) / spread).abs().max() < 0.2
        gap = torch.cov(ours.T) - torch.cov(theirs.T)
        assert gap.norm() < 0.15 * torch.cov(theirs.T).norm()


def test_without_labels_it_is_one_gaussian(planted):
    for one in (
        gaussian_images(Batch(planted.x), SPACE, count=2000, seed=1),
        gaussian_images(planted, SPACE, count=2000, seed=1, by_class=False),
    ):
        means = one.flatten(1).float().mean(1)
        # Between the classes there are no data, and the middle of one Gaussian.
        assert float(((means > 90) & (means < 150)).float().mean()) > 0.3


def test_the_components_are_those_of_most_variance():
    draw = torch.Generator().manual_seed(3)
    rows = torch.randn((600, 300), generator=draw) * torch.linspace(3, 0.1, 300)
    found = Principal.of(rows, seed=0)
    assert found.directions.shape == (300, COMPONENTS)
    exact = torch.linalg.svdvals((rows - rows.mean(0)).double())[:COMPONENTS].square().sum()
    assert float(found.coordinates(rows).square().sum() / exact) > 0.999
    back = found.coordinates(found.pixels(found.coordinates(rows)))
    torch.testing.assert_close(back, found.coordinates(rows), rtol=1e-4, atol=1e-4)


def test_same_seed_same_images_and_the_global_generator_is_left_alone(digits):
    before = torch.random.get_rng_state()
    one, again, other = (gaussian_images(digits[0], DIGITS, count=50, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.max() <= 16


def test_few_images_and_single_ones_of_a_class():
    x = SPACE.random(3, torch.Generator().manual_seed(0))
    drawn = gaussian_images(Batch(x, torch.tensor([0, 1, 1])), SPACE, count=20, seed=0)
    assert drawn.shape == (20, 1, 12, 12)
    assert (drawn == x[0]).flatten(1).all(1).any()
