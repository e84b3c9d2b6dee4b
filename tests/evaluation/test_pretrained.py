"""Inception from a local file: its parts, its resizing, and what is refused. Its agreement with
torch-fidelity's own network is measured in benchmarks/references.py."""

import pytest
import safetensors.torch
import torch

from simulacra.evaluation.features import FeatureNet, learn_features
from simulacra.evaluation.pretrained import Inception, as_in_tensorflow, open_pretrained
from simulacra.games import Batch
from simulacra.refusals import Refusal
from simulacra.spaces import Images

GREY, COLOUR = Images(1, 8, 8, levels=17), Images(3, 20, 16)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    state = Inception(COLOUR).state_dict()
    state["fc.weight"] = torch.zeros(2, 2)
    path = tmp_path_factory.mktemp("weights") / "inception.safetensors"
    safetensors.torch.save_file(state, path)
    return path


def test_features_of_grey_and_colour_images(weights, tmp_path):
    for space in (GREY, COLOUR):
        x = space.random(3, torch.Generator().manual_seed(0))
        net = learn_features(space, train=Batch(x), weights=weights)
        found = net.features(x)
        assert found.shape == (3, 2048)
        assert net.identity.startswith("inception ")
        net.save(tmp_path / str(space.channels))
        again = FeatureNet.load(tmp_path / str(space.channels))
        assert torch.equal(again.features(x), found)


def test_as_many_parameters_as_published():
    # 23.85 million of Inception-v3 with its classifier of 1,008 classes, less that classifier.
    assert sum(one.numel() for one in Inception(COLOUR).parameters()) == 21_785_568


def test_resizing_keeps_what_it_must():
    x = torch.arange(24.0).reshape(1, 1, 4, 6)
    assert torch.equal(as_in_tensorflow(x, 12)[0, 0, ::3, ::2], x[0, 0])
    flat = torch.full((1, 3, 7, 5), 9.0)
    assert torch.equal(as_in_tensorflow(flat, 13), torch.full((1, 3, 13, 13), 9.0))


def test_what_is_no_inception_is_refused(weights, tmp_path):
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, other)
    with pytest.raises(Refusal, match=r"Conv2d_1a_3x3.*embeddings.cls_token"):
        open_pretrained(other, COLOUR)
    with pytest.raises(Refusal, match="is not there"):
        open_pretrained(tmp_path / "none.safetensors", COLOUR)
    with pytest.raises(Refusal, match="1 or 3 channels"):
        open_pretrained(weights, Images(2, 8, 8))
