"""Named sets are known by checksum; views show images in two levels, or smaller."""

import gzip
import hashlib
import struct

import numpy as np
import pytest
import torch

from simulacra.data import named, views
from simulacra.data.open import open_data
from simulacra.data.raw import Raw, Survey
from simulacra.refusals import Refusal
from simulacra.spaces import Images


@pytest.fixture
def small_mnist(tmp_path, monkeypatch):
    """A set of the same build as MNIST with 60 + 20 images, in a folder of the user's."""
    stream, sums = np.random.default_rng(0), {}
    (tmp_path / "mnist").mkdir()
    for name, shape, high in (
        (named.TRAIN_X, (60, 6, 6), 256),
        (named.TRAIN_Y, (60,), 10),
        (named.TEST_X, (20, 6, 6), 256),
        (named.TEST_Y, (20,), 10),
    ):
        array = stream.integers(0, high, shape).astype(np.uint8)
        head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *shape)
        content = head + array.tobytes()
        sums[name] = hashlib.sha256(content).hexdigest()
        (tmp_path / "mnist" / f"{name}.gz").write_bytes(gzip.compress(content))
    known = named._Set("https://example.invalid/", "none", sums)
    monkeypatch.setitem(named.SETS, "mnist", known)
    monkeypatch.setenv("SIMULACRA_DATA", str(tmp_path))
    monkeypatch.setenv("SIMULACRA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "mnist"


def test_the_canonical_test_part_is_kept(small_mnist):
    data = open_data("mnist")
    assert (len(data.train), len(data.valid), len(data.test)) == (54, 6, 20)
    assert data.space == Images(1, 6, 6)
    assert data.everything().index.tolist() == list(range(80))


def test_one_changed_byte_is_found(small_mnist):
    path = small_mnist / f"{named.TEST_X}.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[100] ^= 1
    path.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(Refusal, match="is not the file it should be"):
        open_data("mnist")


def test_what_is_missing_and_cannot_be_fetched_is_refused(small_mnist):
    (small_mnist / f"{named.TEST_Y}.gz").unlink()
    with pytest.raises(Refusal, match="SIMULACRA_DATA") as refused:
        open_data("mnist")
    assert refused.value.code == "DATA-050"


def test_a_download_is_checked_and_kept(small_mnist, monkeypatch, tmp_path):
    path = small_mnist / f"{named.TEST_Y}.gz"
    content = path.read_bytes()
    path.unlink()
    asked = []

    def answer(address, timeout):
        asked.append(address)
        return open(tmp_path / "answer", "rb")

    monkeypatch.setattr(named.urllib.request, "urlopen", answer)
    (tmp_path / "answer").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(Refusal, match="is not the file it should be"):
        open_data("mnist")
    (tmp_path / "answer").write_bytes(content)
    open_data("mnist")
    open_data("mnist")
    assert asked == [f"https://example.invalid/{named.TEST_Y}.gz"] * 2


def test_dynamic_binarisation_changes_in_training_only(small_mnist):
    data, plain = open_data("mnist", view="dynamic"), open_data("mnist")
    assert data.space == Images(1, 6, 6, levels=2)
    which = torch.arange(54)
    draws = torch.stack([data.train.take(which, seed) for seed in range(400)]).float()
    assert torch.equal(data.train.take(which, 3), data.train.take(which, 3))
    error = (draws.mean(0) - plain.train.all().x / 255).abs().max()
    assert error < 5 * 0.5 / 20
    for part in (data.valid, data.test):
        assert torch.equal(part.take(torch.arange(4), 0), part.take(torch.arange(4), 9))


def test_the_test_part_is_binarised_by_the_published_rule(small_mnist):
    data = open_data("mnist", view="dynamic")
    with gzip.open(small_mnist / f"{named.TEST_X}.gz") as file:
        x = np.frombuffer(file.read()[16:], np.uint8).reshape(20, 6, 6)
    expected = np.random.default_rng(0).random(x.shape) < x / 255.0
    order = data.test.index.argsort()
    assert np.array_equal(data.test.all().x[order, 0].numpy(), expected)


def test_a_threshold_gives_the_upper_half():
    x = torch.arange(256).reshape(1, 1, 16, 16)
    assert int(views.thresholded(x, 256).sum()) == 128
    assert views.thresholded(torch.tensor([8, 9]), 17).tolist() == [0, 1]


def test_resizing_averages(small_mnist):
    small, plain = open_data("mnist", size=3), open_data("mnist")
    assert small.space == Images(1, 3, 3)
    means = plain.everything().all().x.double().reshape(80, 1, 3, 2, 3, 2).mean((3, 5))
    assert (small.everything().all().x - means).abs().max() <= 0.5


def test_views_that_do_not_fit_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((20, 3)))
    with pytest.raises(Refusal, match="the view binary is one of images"):
        open_data(tmp_path / "a.npy", view="binary")
    with pytest.raises(Refusal, match="choose one of"):
        open_data("digits", view="sepia")


def test_resizing_leaves_other_kinds_alone():
    raw = Raw(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), Images(1, 2, 2), Survey("images"))
    assert views.resized(raw, 2) is raw
