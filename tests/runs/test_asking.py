"""What a person writes as the condition of a sample, and what a page says of conditions."""

import numpy as np
import pytest
import torch
from PIL import Image

from simulacra import shelf
from simulacra.cli.sampling import sample
from simulacra.cli.using import score
from simulacra.data.dataset import Dataset, Part
from simulacra.data.open import open_data
from simulacra.refusals import Refusal
from simulacra.runs.asking import asked_for, parsed, worded
from simulacra.runs.exhibits import asked_and_drawn
from simulacra.runs.recipe import Recipe
from simulacra.runs.training import fit, train
from simulacra.runs.using import asked_of
from simulacra.spaces import Column, Images, Labels, Table, Tokens

ATTRIBUTES = Table((Column("colour", "category", ("red", "dark, blue")), Column("weight")))
WORDS = Labels(3, ("cat", "dog", "7"))
CAPTIONS = Tokens(8, 5, " abcd")


@pytest.mark.parametrize(
    ("text", "space", "value"),
    [
        ("dog", WORDS, [1]),
        ("0", WORDS, [0]),
        ("7", WORDS, [2]),  # a name goes before a number
        ("a cab", CAPTIONS, [[1, 0, 3, 1, 2, 0, 0, 0]]),
        ("weight=2.5,colour=red", ATTRIBUTES, [[0, 2.5]]),
    ],
)
def test_a_condition_is_written_in_words(text, space, value):
    asked = parsed(text, space)
    assert asked.tolist() == value
    assert space.contains(asked)


def test_words_and_conditions_are_each_others_inverse():
    assert worded(parsed("a cab", CAPTIONS), CAPTIONS) == "a cab"
    assert worded(parsed("dog", WORDS), WORDS) == "dog"
    row = torch.tensor([[1.0, -3.25]])
    assert worded(row, ATTRIBUTES) == "colour=dark, blue, weight=-3.25"
    assert torch.equal(parsed(worded(row, ATTRIBUTES), ATTRIBUTES), row)
    gap = Table((Column("a", missing=True), Column("b", "category", ("=x", "y"))))
    none = torch.tensor([[torch.nan, 0.0]])
    assert worded(none, gap) == "a=, b==x"
    assert torch.equal(parsed(worded(none, gap), gap).isnan(), none.isnan())


@pytest.mark.parametrize(
    ("text", "space", "said"),
    [
        ("bird", WORDS, "one of cat, dog, 7"),
        ("3", WORDS, "one of cat, dog, 7"),
        ("a bad cab", CAPTIONS, "of 9 characters"),
        ("egg", CAPTIONS, "'eg', which the run has never seen"),
        ("colour=red", ATTRIBUTES, "says nothing of 'weight'"),
        ("colour=green,weight=1", ATTRIBUTES, "has never held 'green'"),
        ("nowhere.png", Images(1, 4, 4), "no image file"),
        ("red", ATTRIBUTES, "--condition is 'red'"),
        ("0", Labels(3, ("1", "2", "3")), "one of 1, 2, 3"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(text, space, said):
    with pytest.raises(Refusal, match=said):
        parsed(text, space)


def test_an_image_is_asked_for_by_its_path(tmp_path):
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path / "x.png")
    path = str(tmp_path / "x.png")
    assert (parsed(path, Images(1, 8, 8)) == 9).all()
    assert parsed(path, Images(1, 4, 4)).shape == (1, 1, 4, 4)
    coloured = parsed(path, Images(3, 8, 8))
    assert coloured.shape == (1, 3, 8, 8)
    assert (coloured == 9).all()
    (tmp_path / "y.png").write_text("no picture")
    with pytest.raises(Refusal, match="is not an image"):
        parsed(str(tmp_path / "y.png"), Images(1, 8, 8))
    with pytest.raises(Refusal, match="no image file"):
        parsed(str(tmp_path), Images(1, 8, 8))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of captions that has learned nothing, whose weights are disturbed so that captions count."""
    data = open_data("captioned-digits")
    settings = {"channels": 8, "blocks": 1, "num_inference_steps": 3}
    model = shelf.build("ddpm", data.space, settings=settings, condition=data.condition)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    recipe = Recipe("ddpm", "captioned-digits", conditional=True)
    folder = tmp_path_factory.mktemp("captions")
    return shelf.save_pretrained(model.eval(), folder, card={"recipe": recipe.to_json()})


def test_samples_follow_a_caption_or_those_of_the_test_data(run, tmp_path):
    drawn = {}
    for name, options in {
        "seven": {"condition": "a red seven on blue"},
        "again": {"condition": "a red seven on blue"},
        "two": {"condition": "a white two on green"},
        "any": {},
    }.items():
        sample(run, num_samples=3, out=tmp_path / "x.npy", **options)
        drawn[name] = np.load(tmp_path / "x.npy")
    assert (drawn["seven"] == drawn["again"]).all()
    assert (drawn["seven"] != drawn["two"]).any()
    model, data = shelf.from_pretrained(run), open_data("captioned-digits")
    asked = asked_for(run, model, None, 5)
    assert torch.equal(asked, data.test.first(5).condition)
    assert torch.equal(asked_of(model, data.test.first(5)), asked)
    with pytest.raises(Refusal, match="use only"):
        sample(run, num_samples=1, condition="SEVEN")


def test_an_unconditional_run_cannot_be_asked(tmp_path):
    model = shelf.build("independent", Images(1, 8, 8))
    with pytest.raises(Refusal, match="not conditional"):
        asked_for(tmp_path, model, "7", 1)
    assert asked_for(tmp_path, model, None, 3) is None


def test_a_page_shows_what_was_asked_for(run):
    data = open_data("captioned-digits")
    show = asked_and_drawn(shelf.from_pretrained(run), data, 0)
    assert show.body.count("<img") == 10
    assert " on " in show.body
    assert "first test data" in show.words


def test_a_page_shows_images_and_classes_that_were_asked_for():
    space, draw = Images(1, 4, 4, 5), torch.Generator().manual_seed(0)
    x = space.random(20, draw)
    for condition, pictures, said in (
        (Images(1, 2, 2), 24, "go with"),
        (Labels(3), 3, "every class"),
    ):
        held = Part(x, torch.arange(12), space, condition.random(20, draw))
        data = Dataset("made", space, held, held, held, condition)
        settings = {"channels": 8, "blocks": 1, "num_inference_steps": 2}
        model = shelf.build("ddpm", space, settings=settings, condition=condition).eval()
        show = asked_and_drawn(model, data, 0)
        assert show.body.count("<img") == (20 if pictures == 24 else 3)
        assert said in show.words
        unasked = shelf.build("ddpm", space, settings=settings).eval()
        assert asked_and_drawn(unasked, data, 0) is None


def captioned(path, texts):
    path.mkdir()
    lines = ["file_name,text"]
    for index, text in enumerate(texts):
        pixels = np.full((8, 8), index, np.uint8)
        Image.fromarray(pixels).save(path / f"{index}.png")
        lines.append(f"{index}.png,{text}")
    (path / "metadata.csv").write_text("\n".join(lines))
    return path


def test_what_data_go_with_has_to_be_what_the_run_goes_by(tmp_path):
    """Other data, and its own that have changed since, are refused in one line by every verb."""
    words = ["a red one", "a blue two"] * 10
    own = captioned(tmp_path / "own", words)
    settings = {"channels": 8, "blocks": 1, "num_inference_steps": 2, "bound_steps": 2}
    recipe = Recipe(
        "ddpm", str(own), conditional=True, budget="2steps", batch_size=8, settings=settings
    )
    train(recipe, tmp_path / "run", device="cpu")
    score(tmp_path / "run", out=tmp_path / "scores.csv")
    other = captioned(tmp_path / "other", ["a blue one"] * 20)
    score(tmp_path / "run", str(other), out=tmp_path / "scores.csv")
    (other / "metadata.csv").unlink()
    with pytest.raises(Refusal, match="go with nothing"):
        score(tmp_path / "run", str(other), out=tmp_path / "scores.csv")
    (own / "metadata.csv").write_text((own / "metadata.csv").read_text().replace("two", "six"))
    for verb in (score, sample):
        with pytest.raises(Refusal, match=r"are not those that|cannot be read"):
            verb(tmp_path / "run", out=tmp_path / "x.npy")
    sample(tmp_path / "run", num_samples=2, condition="a red two", out=tmp_path / "x.npy")


def test_a_model_fitted_in_python_knows_how_its_data_were_read(tmp_path):
    data = open_data(captioned(tmp_path / "own", ["a b", "b a"] * 10), conditional=True)
    settings = {"channels": 8, "blocks": 1, "num_inference_steps": 2, "batch_size": 8}
    model = shelf.build("ddpm", data.space, settings=settings, condition=data.condition)
    fit(model, data, budget="2steps", folder=tmp_path / "run")
    sample(tmp_path / "run", num_samples=2, out=tmp_path / "x.npy")
    assert np.load(tmp_path / "x.npy").shape == (2, 1, 8, 8)
