"""A model that draws no samples is trained, compared and shown by what comes back of data."""

import io
import re

import pytest
import torch
from PIL import Image

from simulacra import shelf
from simulacra.contract import Sampler
from simulacra.data.open import open_data
from simulacra.runs import comparison
from simulacra.runs.judging import Judgement
from simulacra.runs.pictures import picture, png
from simulacra.runs.using import beside, rebuilds, rebuilt

NAME = "autoencoder"


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    out = tmp_path_factory.mktemp("without") / "out"
    choices = {"budget": "30steps", "num_samples": 100}
    return out, comparison.compare(f"independent,{NAME}", out, **choices)


def opened(path):
    return Image.open(io.BytesIO(path.read_bytes()))


def test_what_comes_back_is_shown(compared):
    out, page = compared
    folder = out / NAME
    assert not issubclass(shelf.find(NAME).cls, Sampler)
    assert not (folder / "samples.png").exists()
    model = shelf.from_pretrained(folder)
    data = open_data("digits")
    batch = data.test.first(40)
    assert rebuilds(model)
    again = rebuilt(model, batch)
    assert torch.equal(again, model.decode(model.encode(batch.x)))
    drawn = png(picture(beside(batch.x, again), data.space, None, pixels=360))
    assert (folder / "reconstructions.png").read_bytes() == drawn
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == 3
    assert "no samples: each datum, and below it what its code gives back" in text


def test_pictures_while_it_trains_show_what_comes_back(compared):
    out, _ = compared
    drawn = sorted((out / NAME / "pictures").glob("round-*.png"))
    assert len(drawn) > 1
    assert opened(drawn[0]).tobytes() != opened(drawn[-1]).tobytes()
    # Six columns: 36 originals, and 36 that came back.
    width, height = opened(drawn[0]).size
    assert height > 1.9 * width


def test_it_is_read_without_samples(compared):
    out, _ = compared
    judged = Judgement.read(out / NAME)
    names = {one.name for one in judged.readings}
    assert "reconstruction error" in names
    assert not names & {"Fréchet distance", "bits per dimension", "two-sample classifier"}
    assert not judged.refused
    text = comparison.show_run(out / NAME, judged).read_text(encoding="utf-8")
    assert re.search(r"<b>reconstructions</b>", text)
    assert "<b>samples</b>" not in text


def test_every_original_has_what_was_made_of_it_below():
    originals, others = torch.arange(1, 12)[:, None], -torch.arange(1, 12)[:, None]
    rows = beside(originals, others, 8, blanks=False)
    assert rows.flatten().tolist() == [*range(1, 9), *range(-1, -9, -1), 9, 10, 11, -9, -10, -11]
    filled = beside(originals, others).reshape(4, 8)
    assert filled[2].tolist() == [9, 10, 11, 0, 0, 0, 0, 0]
    assert filled[3].tolist() == [-9, -10, -11, 0, 0, 0, 0, 0]
