"""Walks among codes: great circles, ends that are reconstructions, units that move alone."""

import math

import pytest
import torch

from simulacra import shelf
from simulacra.games import Batch
from simulacra.refusals import Refusal
from simulacra.runs.walks import (
    can_walk,
    classes_and_numbers,
    crossings,
    interpolations,
    lerp,
    most_active,
    require_walks,
    slerp,
    traversals,
)
from simulacra.spaces import Images, Labels, Tokens, Vectors

SPACE = Images(1, 6, 5, 17)


class Plain(torch.nn.Module):
    """Codes are elements of a line space, and decode to themselves; its second unit hardly moves."""

    space, code_space, condition_space = Vectors(3), Vectors(3), None
    spread = torch.tensor([2.0, 0.01, 5.0])

    def encode(self, x, *, condition=None):
        return x * self.spread

    def decode(self, code, *, condition=None):
        return code


def batch(space, count=40, labels=None):
    draw = torch.Generator().manual_seed(0)
    given = None if labels is None else labels.random(count, draw)
    return Batch(space.random(count, draw), given)


def test_a_great_circle_keeps_the_length_and_the_pace():
    draw = torch.Generator().manual_seed(1)
    first, last = (torch.nn.functional.normalize(torch.randn(4, 7, generator=draw)) for _ in "ab")
    path = slerp(first, last, torch.linspace(0, 1, 6))
    torch.testing.assert_close(path.norm(dim=2), torch.ones(4, 6))
    angles = (path[:, 1:] * path[:, :-1]).sum(2).clamp(-1, 1).arccos()
    whole = (first * last).sum(1).arccos()
    torch.testing.assert_close(angles, (whole / 5).unsqueeze(1).expand(4, 5), atol=1e-3, rtol=0)
    assert (lerp(first, last, torch.tensor([0.5])).norm(dim=2) < 0.95).all()


def test_great_circles_of_normal_codes_stay_among_normal_codes():
    first, last = torch.randn(200, 100), torch.randn(200, 100)
    half = torch.tensor([0.5])
    assert float(slerp(first, last, half).std()) == pytest.approx(1, abs=0.03)
    assert float(lerp(first, last, half).std()) == pytest.approx(math.sqrt(0.5), abs=0.03)


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0, 0.0])
def test_codes_in_line_are_joined_by_a_line(factor):
    first = torch.randn(3, 5)
    shares = torch.linspace(0, 1, 5)
    path = slerp(first, factor * first, shares)
    assert torch.isfinite(path).all()
    if factor != 0:
        torch.testing.assert_close(path[:, 0], first)
        torch.testing.assert_close(path[:, -1], factor * first)


@pytest.mark.parametrize("labels", [None, Labels(3)], ids=["free", "conditional"])
def test_crossings_have_what_stands_on_the_left_and_above(labels):
    model = shelf.build("ladder-vae", SPACE, condition=labels, num_examples=100, seed=0).eval()
    data = batch(SPACE, 7, labels)
    given = data.condition
    codes = model.encode(data.x, condition=given)
    again = model.decode(codes, condition=given)
    sheet = crossings(model, data, 1, 3).reshape(4, 4, *SPACE.shape)
    assert not sheet[0, 0].any()
    assert torch.equal(sheet[0, 1:], again[:3])
    assert torch.equal(sheet[1:, 0], again[3:6])
    for row in range(3):
        label = None if given is None else given[3 + row].repeat(3)
        whole = crossings(model, data, model.code_levels, 3).reshape(sheet.shape)[1 + row, 1:]
        assert torch.equal(whole[0], again[3 + row])
        coarse = codes[3 + row].repeat(3, 1)
        assert torch.equal(sheet[1 + row, 1:], model.mix(coarse, codes[:3], 1, condition=label))


def test_classes_stand_in_rows_along_which_one_number_moves():
    class Told(Plain):
        space = code_space = Vectors(5)
        code_classes = 3

    rows = classes_and_numbers(Told(), 1, 9, 5).reshape(3, 5, 5)
    assert torch.equal(rows[..., :3], torch.eye(3)[:, None].expand(3, 5, 3))
    assert not rows[..., 3].any()
    assert torch.equal(rows[..., 4], torch.linspace(-1, 1, 5).expand(3, 5))
    assert torch.equal(classes_and_numbers(Told(), None, 2), torch.eye(5)[:2])


@pytest.mark.parametrize("labels", [None, Labels(3)], ids=["free", "conditional"])
@pytest.mark.parametrize("name", ["vae", "ladder-vae"])
def test_both_ends_are_reconstructions(name, labels):
    model = shelf.build(name, SPACE, condition=labels, num_examples=100, seed=0).eval()
    data = batch(SPACE, 7, labels)
    way = interpolations(model, data, 5).reshape(3, 5, *SPACE.shape)
    again = model.decode(model.encode(data.x, condition=data.condition), condition=data.condition)
    assert torch.equal(way[:, 0], again[0:6:2])
    assert torch.equal(way[:, -1], again[1:6:2])
    assert SPACE.contains(way.flatten(0, 1))


def test_other_codes_are_joined_by_a_line():
    data = batch(Vectors(3), 4)
    way = interpolations(Plain(), data, 3).reshape(2, 3, 3)
    codes = data.x * Plain.spread
    torch.testing.assert_close(way[:, 1], (codes[::2] + codes[1::2]) / 2)


def test_units_move_alone_and_the_most_active_first():
    data = batch(Vectors(3), 400)
    codes = data.x * Plain.spread
    assert most_active(codes, 2).tolist() == [2, 0]
    moved = traversals(Plain(), data, 5, steps=5, count=2).reshape(2, 5, 3)
    offset = moved - codes[5]
    torch.testing.assert_close(offset[:, 2], torch.zeros(2, 3))
    expected = torch.tensor([-2.0, -1, 0, 1, 2])
    torch.testing.assert_close(offset[0, :, 2], expected * codes[:, 2].std())
    torch.testing.assert_close(offset[1, :, 0], expected * codes[:, 0].std())
    assert offset[0, :, :2].abs().max() == 0
    assert offset[1, :, 1:].abs().max() == 0


def test_a_model_without_a_way_back_is_refused():
    dcgan = shelf.build("dcgan", Images(1, 8, 8, 17))
    assert not can_walk(dcgan)
    with pytest.raises(Refusal, match="cannot interpolate"):
        require_walks(dcgan, to="interpolate")


def test_codes_that_are_no_reals_are_refused():
    vae = shelf.build("vae", SPACE, num_examples=100)
    assert can_walk(vae)
    require_walks(vae, to="traverse")
    discrete = type("Discrete", (type(vae),), {"code_space": Tokens(4, 8)})
    vae.__class__ = discrete
    assert not can_walk(vae)
    with pytest.raises(Refusal, match="between two of them lies nothing"):
        require_walks(vae, to="traverse")
