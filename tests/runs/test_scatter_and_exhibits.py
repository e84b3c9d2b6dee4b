"""What a run shows of its test data: codes in the plane and strange data, for every kind of space."""

import base64
import io
import re
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image

from simulacra.data.dataset import Dataset, Part
from simulacra.evaluation.projection import Projection, principal_components
from simulacra.runs.exhibits import Plane, exhibits, from_noise, plane_of_codes, strange_data
from simulacra.runs.scatter import MOST_NAMED, palette, scatter
from simulacra.shelf import build
from simulacra.spaces import Column, Images, Labels, Table, Tokens

MIXED = Table((Column("a"), Column("<b>", "category", ("x<", "y")), Column("c")))


def dataset(space, labels=None):
    draw = torch.Generator().manual_seed(0)
    x, index = space.random(60, draw), torch.arange(60)
    which = None if labels is None else torch.arange(60) % labels.count
    train, held = (Part(x, one, space, which) for one in (index[:40], index[40:]))
    return Dataset("made", space, train, held, held, labels)


def test_points_carry_colour_and_name():
    points = torch.tensor([[0.0, 0.0], [4.0, 1.0], [2.0, 1.0]], dtype=torch.float64)
    panel = Projection("PCA", points, "made up")
    drawn = scatter([panel], torch.tensor([0, 2, 2]), ("zero", "one", "<two>"), alone=True)
    root = ElementTree.fromstring(drawn)
    space = "{http://www.w3.org/2000/svg}"
    marks = [one for one in root.iter(f"{space}circle") if one.get("r") == "3.2"]
    assert [one.find(f"{space}title").text for one in marks] == [
        "zero (datum 0)",
        "<two> (datum 1)",
        "<two> (datum 2)",
    ]
    assert marks[1].get("fill") == marks[2].get("fill") != marks[0].get("fill")
    x, y = ([float(one.get(axis)) for one in marks] for axis in ("cx", "cy"))
    # Both axes have one scale, and up is up.
    assert (x[1] - x[0]) == pytest.approx(4 * (y[0] - y[1]), abs=0.5)
    assert y[1] == y[2]


def test_many_classes_are_told_apart_and_the_legend_stays_short():
    assert len(set(palette(40))) == 40
    panel = principal_components(torch.randn(60, 5))
    drawn = scatter([panel], torch.arange(60) % 30)
    assert f"and {30 - MOST_NAMED} more" in drawn
    assert drawn.count("<title>") == 60
    assert "<text" not in re.sub(r"<text[^>]*>(PCA)</text>", "", scatter([panel]))


def test_images_show_codes_by_label_and_maps():
    labels = Labels(3, ("cat", "dog", "<cow>"))
    data = dataset(Images(1, 5, 4, 3), labels)
    shows = exhibits(build("vae", data.space, num_examples=40).eval(), data, 0)
    assert len(shows) == 4
    strange, codes, ways, moved = shows
    assert "along a great circle" in ways.words
    assert "the most active units" in moved.words
    for one in (ways, moved):
        assert one.body.count("data:image/png;base64,") == 1
    assert strange.words.startswith("The 16 strangest of 20 test data by reconstruction error")
    assert "data:image/png;base64," in strange.body
    assert "&lt;cow&gt; (datum" in codes.body
    assert codes.words.endswith("Coloured by label.")


def test_tables_show_cells_and_the_predicted_column():
    data = dataset(MIXED)
    strange, codes = exhibits(build("vae", MIXED, num_examples=40).eval(), data, 0)
    assert strange.body.count("<tr>") == 9
    assert "&lt;b&gt;" in strange.body
    assert "<b>" not in strange.body
    assert codes.words.endswith("Coloured by the column '<b>'.")
    nats = strange_data(build("independent", MIXED).eval(), data, 0)
    assert "nats" in nats.body


def test_a_conditional_model_is_given_its_labels():
    labels = Labels(2)
    data = dataset(Images(1, 5, 4, 2), labels)
    vae = build("vae", data.space, condition=labels, num_examples=40).eval()
    assert len(exhibits(vae, data, 0)) == 5
    pixelcnn = build("pixelcnn", data.space, condition=labels, num_examples=40).eval()
    assert plane_of_codes(pixelcnn, data, 0) is None
    assert "-log p" in strange_data(pixelcnn, data, 0).words


@pytest.mark.parametrize(("numbers", "pictures"), [(0, 1), (1, 1), (5, 3)])
def test_a_model_that_finds_classes_shows_them_and_what_its_numbers_do(numbers, pictures):
    data = dataset(Images(1, 8, 8, 17))
    settings = {"classes": 4, "numbers": numbers, "channels": 8}
    shows = exhibits(build("infogan", data.space, settings=settings).eval(), data, 0)
    found = [one for one in shows if one.title == "Classes found without labels"]
    assert [one.body.count("<img") for one in found] == [pictures]
    assert "4 classes" in found[0].words


def test_a_model_that_has_neither_shows_nothing():
    data = dataset(Images(1, 8, 8, 17))
    assert exhibits(build("dcgan", data.space).eval(), data, 0) == []
    assert exhibits(build("independent", Tokens(4, 3)).eval(), dataset(Tokens(4, 3)), 0) == []


def test_data_without_classes_are_one_colour():
    data = dataset(Images(1, 5, 4, 2))
    vae = build("vae", data.space, num_examples=40).eval()
    plane = Plane.of(vae, data.test, None, data.space, 0)
    assert plane.classes is None
    assert "Coloured" not in plane.words
    assert plane.svg().count("datum") == 40


def test_samples_are_shown_as_they_come_to_be():
    data = dataset(Images(1, 5, 4, 3), Labels(2))
    settings = {"channels": 8, "blocks": 1, "num_inference_steps": 5}
    model = build("ddpm", data.space, settings=settings, condition=data.labels, num_examples=40)
    show = from_noise(model.eval(), data, 0)
    assert "in 5 steps" in show.words
    assert show.body.count("<img") == 2
    encoded = show.body.rpartition("base64,")[2].partition('"')[0]
    moving = Image.open(io.BytesIO(base64.b64decode(encoded)))
    assert moving.format == "PNG"
    assert moving.n_frames == 6
    assert from_noise(build("vae", data.space, num_examples=40), data, 0) is None
