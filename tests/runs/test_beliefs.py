"""What a critic believes, drawn on a line and in the plane."""

import torch

from simulacra.data.dataset import Dataset, Part
from simulacra.layers.critic_head import Opinion
from simulacra.runs.beliefs import CELLS, PIXELS, can_show, plane
from simulacra.runs.exhibits import belief_of_critic
from simulacra.runs.heat import HEAT
from simulacra.shelf import build
from simulacra.spaces import Images, Vectors


def dataset(space, count=120):
    x, index = space.random(count, torch.Generator().manual_seed(0)), torch.arange(count)
    held = Part(x, index[40:], space)
    return Dataset("made", space, Part(x, index[:40], space), held, held)


def test_d_is_a_map_over_the_plane():
    data = dataset(Vectors(2))
    model = build("gan", data.space, num_examples=40).eval()

    class East(torch.nn.Module):
        def forward(self, x, classes):
            return Opinion(50 * x[:, 0], x, None)

    model.critic = East()
    real = data.test.all().x
    sheet = plane(model, real, real[:0])
    assert sheet.size == (PIXELS, PIXELS)
    half = PIXELS // CELLS
    assert sheet.getpixel((half, half)) == HEAT[0]
    assert sheet.getpixel((PIXELS - half, half)) == HEAT[-1]


def test_a_page_shows_it_for_points_and_numbers_and_for_nothing_else():
    for size, drawn in ((2, "<img"), (1, "<svg")):
        data = dataset(Vectors(size))
        shown = belief_of_critic(build("gan", data.space, num_examples=40).eval(), data, 0)
        assert drawn in shown.body
        assert "distance of D from 1/2 (probability)" in shown.words
    assert not can_show(build("gan", Images(1, 4, 4)), Images(1, 4, 4))
    assert not can_show(build("gaussian-mixture", Vectors(2)), Vectors(2))
    packed = build("gan", Vectors(2), settings={"pack": 2})
    assert not can_show(packed, Vectors(2))
