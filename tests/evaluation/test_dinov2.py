"""DINOv2 from a local file: its sizes, its two namings, its resizing, and what is refused. Its agreement
with transformers' own network is measured in benchmarks/references.py."""

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch.nn import functional

from simulacra.data.open import open_data
from simulacra.evaluation.dinov2 import (
    CLASS,
    DINOv2,
    Sizes,
    dinov2_of,
    hugging_face_names,
    positions,
    resized,
)
from simulacra.evaluation.features import FeatureNet, learn_features
from simulacra.evaluation.pretrained import open_pretrained
from simulacra.games import Batch
from simulacra.refusals import Refusal
from simulacra.runs.judging import LADDER, ruler_features
from simulacra.spaces import Images

GREY, COLOUR = Images(1, 8, 8, levels=17), Images(3, 20, 16)
TINY = Sizes(width=128, depth=2, hidden=256, patch=56, grid=5)


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    drawn = {
        name: 0.05 * torch.randn_like(one) for name, one in DINOv2(GREY, TINY).state_dict().items()
    }
    return drawn | {"embeddings.mask_token": torch.zeros(1, 128)}


@pytest.fixture
def weights(state, tmp_path):
    path = tmp_path / "dinov2.safetensors"
    safetensors.torch.save_file(state, path)
    return path


def published(state):
    """The same tensors by the published code's names."""
    renamed = {}
    for name, one in state.items():
        parts = name.replace("embeddings.", "").replace("position_", "pos_").split(".")
        if parts[:2] == ["encoder", "layer"]:
            rest = ".".join(parts[3:]).replace("layer_scale", "ls").replace("lambda1", "gamma")
            rest = rest.replace("attention.output.dense", "attn.proj")
            if rest.startswith("attention.attention"):
                if "query" not in rest:
                    continue
                three = [state[name.replace("query", part)] for part in ("query", "key", "value")]
                rest, one = f"attn.qkv.{parts[-1]}", torch.cat(three)
            renamed[f"blocks.{parts[2]}.{rest}"] = one
    return renamed | {
        "cls_token": state["embeddings.cls_token"],
        "pos_embed": state["embeddings.position_embeddings"],
        "mask_token": state["embeddings.mask_token"],
        "patch_embed.proj.weight": state["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": state["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": state["layernorm.weight"],
        "norm.bias": state["layernorm.bias"],
    }


def test_features_of_grey_and_colour_images(weights, tmp_path):
    for space in (GREY, COLOUR):
        x = space.random(3, torch.Generator().manual_seed(0))
        net = learn_features(space, train=Batch(x), weights=weights)
        found = net.features(x)
        assert found.shape == (3, net.dimension) == (3, 128)
        assert found.std(0).min() > 0
        assert torch.equal(net.features(x), found)
        assert net.identity.startswith("dinov2 ")
        net.save(tmp_path / str(space.channels))
        again = FeatureNet.load(tmp_path / str(space.channels))
        assert torch.equal(again.features(x), found)
        assert again.describe() == net.describe()


def test_both_namings_are_the_same_network(state):
    x = COLOUR.random(2, torch.Generator().manual_seed(1))
    one, other = dinov2_of(state, COLOUR), dinov2_of(published(state), COLOUR)
    with torch.no_grad():
        assert torch.equal(one(x), other(x))


def by_hand(state, pixels):
    """The same network in the plainest words, with the attention of each head written out."""
    named = {name: one.double() for name, one in state.items()}

    def linear(x, name):
        return x @ named[f"{name}.weight"].T + named[f"{name}.bias"]

    def normed(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * named[f"{name}.weight"] + named[f"{name}.bias"]

    patch = "embeddings.patch_embeddings.projection"
    rows = functional.unfold(pixels.double(), 56, stride=56).transpose(1, 2)
    tokens = rows @ named[f"{patch}.weight"].flatten(1).T + named[f"{patch}.bias"]
    tokens = torch.cat([named[CLASS].expand(len(pixels), 1, -1), tokens], 1)
    x = tokens + positions(named["embeddings.position_embeddings"], 4)
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        inner, heads = normed(x, f"{layer}.norm1"), []
        q, k, v = (
            linear(inner, f"{layer}.attention.attention.{part}")
            for part in ("query", "key", "value")
        )
        for head in (slice(0, 64), slice(64, 128)):
            chances = torch.softmax(q[..., head] @ k[..., head].transpose(1, 2) / 8, -1)
            heads.append(chances @ v[..., head])
        out = linear(torch.cat(heads, -1), f"{layer}.attention.output.dense")
        x = x + out * named[f"{layer}.layer_scale1.lambda1"]
        out = functional.gelu(linear(normed(x, f"{layer}.norm2"), f"{layer}.mlp.fc1"))
        x = x + linear(out, f"{layer}.mlp.fc2") * named[f"{layer}.layer_scale2.lambda1"]
    return normed(x[:, 0], "layernorm")


def test_agrees_with_the_network_written_out(state):
    pixels = torch.randn((2, 3, 224, 224), generator=torch.Generator().manual_seed(2))
    # Weights of a common size hide what a small one adds: make each part matter.
    loud = {name: 4 * one for name, one in state.items()}
    with torch.no_grad():
        found = dinov2_of(loud, COLOUR).class_token(pixels)
        torch.testing.assert_close(found.double(), by_hand(loud, pixels), rtol=1e-4, atol=1e-5)


def test_resized_and_standardised_as_published(state):
    """One channel of one image, through Pillow and by hand."""
    x = torch.randint(256, (1, 3, 20, 16), generator=torch.Generator().manual_seed(0)).byte()
    picture = Image.fromarray(x[0, 1].numpy())
    wanted = np.asarray(picture.resize((224, 224), Image.Resampling.BICUBIC))
    assert np.array_equal(resized(x)[0, 1].numpy(), wanted)
    seen = DINOv2(COLOUR, TINY).pixels(x)
    assert torch.allclose(seen[0, 1], (torch.from_numpy(wanted / 255) - 0.456).float() / 0.224)
    whole = torch.zeros((1, 3, 224, 224), dtype=torch.uint8)
    assert resized(whole) is whole


def test_positions_keep_the_class_and_a_plain_slope():
    table = torch.cat([torch.full((1, 1, 2), 7.0), torch.ones((1, 37 * 37, 2))], 1)
    moved = positions(table, 16)
    assert moved.shape == (1, 257, 2)
    assert torch.equal(moved[:, 0], table[:, 0])
    torch.testing.assert_close(moved[:, 1:], torch.ones((1, 256, 2)))
    assert positions(table, 37) is table
    slope = torch.arange(37.0).repeat(37)[None, :, None]
    row = positions(torch.cat([slope[:, :1], slope], 1), 16)[0, 1:17, 0]
    # Half-pixel centres of a step of 37 / 16.1, away from the edges; a step of 37 / 16 is 0.2 off.
    expected = (torch.arange(16) + 0.5) * 37 / 16.1 - 0.5
    torch.testing.assert_close(row[2:-2], expected[2:-2], rtol=0, atol=6e-2)


def test_sizes_of_the_published_networks():
    for width, depth, count in ((384, 12, 22_056_192), (768, 12, 86_579_712)):
        with torch.device("meta"):
            net = DINOv2(COLOUR, Sizes(width, depth, 4 * width, 14, 37))
        # As published, less the mask token, which no image is seen with.
        assert sum(one.numel() for one in net.parameters()) == count
        assert Sizes.of(net.state_dict()) == Sizes(width, depth, 4 * width, 14, 37)


def test_half_precision_is_read_as_single(state):
    halved = hugging_face_names({name: one.half() for name, one in state.items()})
    assert {one.dtype for one in halved.values()} == {torch.float32}


def damaged(state):
    without = {k: v for k, v in state.items() if "layer.1.norm2.bias" not in k}
    wide = state | {CLASS: torch.zeros(1, 1, 100)}
    giant = state | {"encoder.layer.0.mlp.weights_in.weight": torch.zeros(2, 2)}
    lines = state | {"embeddings.position_embeddings": torch.zeros(1, 11, 128)}
    registers = state | {"embeddings.register_tokens": torch.zeros(1, 4, 128)}
    return [
        (without, "norm2.bias"),
        (wide, "no multiple of 64"),
        (giant, "SwiGLU"),
        (lines, "no square grid"),
        (registers, "register_tokens"),
    ]


def test_what_is_no_dinov2_is_refused(state, weights, tmp_path):
    path = tmp_path / "damaged.safetensors"
    for tensors, told in damaged(state):
        safetensors.torch.save_file(tensors, path)
        with pytest.raises(Refusal, match=told):
            open_pretrained(path, COLOUR)
    path.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(Refusal, match="does not hold"):
        open_pretrained(path, COLOUR)
    with pytest.raises(Refusal, match="1 or 3 channels"):
        open_pretrained(weights, Images(2, 8, 8))


def test_other_weights_make_the_kept_eyes_and_their_ladder_anew(state, weights, tmp_path):
    """Two files of one kind are two pairs of eyes."""
    images = GREY.random(60, torch.Generator().manual_seed(4))
    np.save(tmp_path / "images.npy", images.numpy())
    data, out, seen = open_data(str(tmp_path / "images.npy")), tmp_path / "out", []
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file(state | {"layernorm.bias": state["layernorm.bias"] + 1}, other)
    for path in (weights, weights, other):
        net, _ = ruler_features(data, out, 0, weights=path)
        seen.append((net.identity, (out / LADDER).stat().st_mtime_ns))
    assert seen[0] == seen[1]
    assert seen[1][0] != seen[2][0]
    assert seen[1][1] != seen[2][1]
    # Without weights, what is kept is used.
    assert ruler_features(data, out, 0)[0].identity == seen[2][0]
