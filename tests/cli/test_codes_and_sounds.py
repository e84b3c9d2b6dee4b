"""A VQ-VAE from the command line: sounds that can be heard, texts, and settings of the prior."""

import json
import re
import wave

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from simulacra.cli.main import app
from simulacra.refusals import Refusal

SMALL = (
    "--set",
    "codes=8",
    "--set",
    "hidden=8",
    "--set",
    "prior.width=8",
    "--set",
    "prior.heads=2",
)


def run(*words):
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=True)
    if isinstance(done.exception, Refusal):
        raise done.exception
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds") / "run"
    run("train", "vq-vae", "tones", "--size", 256, "--budget", "4steps", "--out", folder, *SMALL)
    return folder


def test_samples_of_signals_are_sounds_and_a_picture(tones):
    told = run("sample", tones, "--num-samples", 12)
    assert told.endswith("samples-0")
    files = sorted(one.name for one in (tones / "samples-0").iterdir())
    assert files == [*(f"{index:02}.wav" for index in range(12)), "picture.png"]
    with wave.open(str(tones / "samples-0" / "03.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (8000, 1, 256)
    with Image.open(tones / "samples-0" / "picture.png") as picture:
        assert picture.width == 720


def test_one_file_holds_sounds_a_picture_or_numbers(tones, tmp_path):
    run("sample", tones, "--num-samples", 3, "--out", tmp_path / "all.wav")
    with wave.open(str(tmp_path / "all.wav")) as file:
        assert file.getnframes() == 3 * 256 + 2 * 1600
    run("sample", tones, "--num-samples", 3, "--out", tmp_path / "all.npy")
    assert np.load(tmp_path / "all.npy").shape == (3, 1, 256)
    run("sample", tones, "--num-samples", 3, "--out", tmp_path / "all.png")
    with Image.open(tmp_path / "all.png") as picture:
        assert picture.format == "PNG"
    with pytest.raises(Refusal, match="cannot hold") as refusal:
        run("sample", tones, "--out", tmp_path / "all.csv")
    assert refusal.value.code == "CFG-053"
    assert ".wav" in refusal.value.way_out


def test_sounds_are_scored_encoded_and_rebuilt(tones):
    header, first, *_ = run("score", tones, "--count", 3).splitlines()
    assert "log_prob (nats; lower)" in header
    assert first.startswith("0,")
    run("encode", tones, "--count", 5)
    codes = np.load(tones / "codes.npy")
    assert codes.shape[0] == 5
    assert 0 <= codes.min() <= codes.max() < 8
    run("reconstruct", tones, "--count", 4)
    assert len(list((tones / "reconstructions").glob("*.wav"))) == 8


def test_a_run_says_what_it_is_made_of(tones):
    card = json.loads((tones / "card.json").read_text())
    assert card["components"]["prior"]["model"] == "transformer"
    assert card["components"]["prior"]["config"]["width"] == 8


def test_a_text_becomes_codes(tmp_path):
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 80)
    folder = tmp_path / "run"
    where = tmp_path / "text.txt"
    run("train", "vq-vae", where, "--size", 20, "--budget", "8steps", "--out", folder, *SMALL)
    # Samples are read as what they are; numbers for those who want them.
    run("sample", folder, "--num-samples", 2)
    zero, one = re.fullmatch(
        r"\[0\]\n(.{20})\n\n\[1\]\n(.{20})\n", (folder / "samples-0.txt").read_text()
    ).groups()
    assert set(zero + one) <= set("the quick brown fox jumps over the lazy dog. ")
    run("sample", folder, "--num-samples", 2, "--out", tmp_path / "a.npy")
    assert np.load(tmp_path / "a.npy").shape == (2, 20)
    with pytest.raises(Refusal, match="cannot hold texts of 20 characters") as refusal:
        run("sample", folder, "--out", tmp_path / "a.png")
    assert refusal.value.way_out == "give --out a name that ends in .txt or .npy"
    run("reconstruct", folder, "--count", 2)
    assert (folder / "reconstructions.txt").read_text().count("[") == 4
    (tmp_path / "other.txt").write_text("THE QUICK BROWN FOX. " * 10)
    with pytest.raises(Refusal, match="which the run has never seen"):
        run("score", folder, tmp_path / "other.txt")
    run("evaluate", folder, "--num-samples", 20)
    page = (folder / "report.html").read_text()
    # The data and samples; what a user wrote beside them is not the page's.
    assert page.count("<pre>[0]") == 2
    assert "below it" not in page
