"""Anomaly maps: they sum to their scores, and are bright where something was pasted in."""

import functools
import math

import pytest
import torch

from simulacra.data.dataset import Dataset, Part
from simulacra.evaluation.anomaly import area_under_curve
from simulacra.evaluation.scores import default_score, make_score, with_maps
from simulacra.games import Batch
from simulacra.refusals import Refusal
from simulacra.runs.conductor import Run
from simulacra.runs.recipe import Recipe
from simulacra.shelf import build
from simulacra.spaces import Column, Images, Table, Vectors

SPACE = Images(1, 8, 8, 2)
TABLE = Table((Column("a"), Column("b"), Column("c", "category", ("x", "y", "z"))))
SMALL = {
    "pixelcnn": {"channels": 8, "blocks": 2, "head": 16, "dropout": 0.0, "learning_rate": 0.01}
}
PATCH = (slice(None), slice(3, 7), slice(2, 6))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def stripes(count, seed):
    """Stripes across or along with 2 % of the pixels turned over, and which of the two."""
    which = torch.randint(2, (count,), generator=seeded(seed))
    rows = (torch.arange(8) // 2 % 2).expand(8, 8)
    clean = torch.stack([rows, rows.T])[which][:, None]
    flipped = torch.rand(clean.shape, generator=seeded(seed + 1)) < 0.02
    return (clean ^ flipped).to(torch.uint8), which


@functools.cache
def trained(name, budget="80steps", space=SPACE):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = stripes(600, 0)[0] if space is SPACE else table_rows(600, 0)
        model = build(name, space, settings=SMALL.get(name, {}), num_examples=600)
        index = torch.arange(600)
        train, held = Part(x, index[:500], space), Part(x, index[500:], space)
        data = Dataset("made", space, train, held, held)
        Run(model, data, Recipe(name, budget=budget, batch_size=50), None, device="cpu").go()
    return model.eval()


def table_rows(count, seed):
    x = torch.randn((count, 3), generator=seeded(seed))
    x[:, 1] = 1000 * x[:, 0] + x[:, 1]
    x[:, 2] = (x[:, 0] > 0).float() + (x[:, 2] > 1)
    return x


@pytest.mark.parametrize(("name", "score"), [("pixelcnn", "likelihood"), ("vae", "reconstruction")])
def test_what_was_pasted_in_is_bright(name, score):
    model = trained(name)
    x, which = stripes(200, 7)
    donors = x[which.argsort(stable=True)].flip(0)
    other = which[which.argsort(stable=True)].flip(0) != which
    x, donors = x[other], donors[other]
    pasted = x.clone()
    pasted[:, *PATCH] = donors[:, *PATCH]
    assert default_score(model, maps=True) == score
    found = make_score(score, model)
    maps = found.maps(Batch(pasted), seeded(0))
    # Where both kinds of stripes agree, nothing is out of place.
    changed = pasted != x
    assert area_under_curve(maps[changed], maps[~changed])[0] > 0.8
    assert maps[changed].mean() > 3 * maps[~changed].mean()


def test_maps_sum_to_their_scores_in_every_space():
    for name, space in (("independent", TABLE), ("vae", TABLE), ("pixelcnn", SPACE)):
        model = trained(name, "20steps", space)
        x = space.random(250, seeded(3))
        clean = Batch(space.random(500, seeded(4)))
        for score in with_maps(model):
            made = make_score(score, model, background=model).fit(clean, seeded(0))
            maps = made.maps(Batch(x), seeded(1))
            assert maps.shape == x.shape
            sums = maps.flatten(1).sum(1)
            torch.testing.assert_close(sums, made.of(Batch(x), seeded(1)), rtol=1e-5, atol=1e-5)
            if score == "ratio":
                assert not maps.any()


def test_columns_of_any_size_and_sort_count_alike():
    """A column of thousands does not drown one of ones, and a wrong category is one error."""
    model = trained("vae", "20steps", TABLE)
    score = make_score("reconstruction", model).fit(Batch(table_rows(500, 1)), seeded(0))
    maps = score.maps(Batch(table_rows(400, 2)), seeded(0))
    assert set(maps[:, 2].tolist()) <= {0.0, 1.0}
    assert math.log10(maps[:, 0].mean() / maps[:, 1].mean()) == pytest.approx(0, abs=1)


def test_where_there_is_no_map_it_is_said_who_has_one():
    vae, flow = trained("vae"), build("realnvp", Vectors(3)).eval()
    with pytest.raises(
        Refusal, match=r"likelihood score of VAE has no map.*--score reconstruction"
    ):
        make_score("likelihood", vae).maps(Batch(stripes(3, 0)[0]), seeded(0))
    with pytest.raises(Refusal, match=r"complexity score of PixelCNN.*likelihood or ratio"):
        make_score("complexity", trained("pixelcnn")).maps(Batch(stripes(3, 0)[0]), seeded(0))
    with pytest.raises(Refusal, match="that is no flow"):
        make_score("reconstruction", flow).maps(Batch(table_rows(3, 0)), seeded(0))
    with pytest.raises(Refusal, match="RealNVP has no map of entries"):
        default_score(flow, maps=True)
    ratio = make_score("ratio", trained("pixelcnn"), background=trained("pixelcnn"))
    ratio.background = vae
    with pytest.raises(Refusal, match="ratio score of VAE"):
        ratio.maps(Batch(stripes(3, 0)[0]), seeded(0))
