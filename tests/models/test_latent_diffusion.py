"""Latent diffusion: parts of its own against NumPy, and parts of the shelf, built, played and kept."""

import numpy as np
import pytest
import torch

from simulacra import shelf
from simulacra.data.dataset import Part, Stream
from simulacra.models.diffusion.latent_diffusion import Config, LatentDiffusion
from simulacra.play import Play
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels, Tokens, Vectors

SPACE = Images(1, 4, 4, levels=8)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def skewed(count=400):
    """Images of rank two and a little noise, and whether their first factor is positive."""
    factors = torch.randn(count, 2, generator=seeded())
    axes = torch.randn(2, 16, generator=seeded(1))
    values = 3.5 + factors @ axes + 0.1 * torch.randn(count, 16, generator=seeded(2))
    x = values.round().clamp(0, 7).to(SPACE.dtype).reshape(count, 1, 4, 4)
    return x, (factors[:, 0] > 0).long()


def played(model, rounds=6):
    x, which = skewed()
    part = Part(x, torch.arange(len(x)), SPACE, which)
    source = Stream(part, 64, seed=0, conditional=model.condition_space is not None)
    play = Play(model, model.game(), seed=0)
    list(play.rounds(source, lambda clock: clock.rounds / rounds))
    return model.eval()


def test_own_parts_are_principal_components_and_normals():
    model = played(LatentDiffusion(SPACE, Config("own", "own", code=2), condition=Labels(2)))
    x, which = skewed()
    flat = x.flatten(1).double().numpy() / 7
    _, _, axes = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    projected = (flat - flat.mean(0)) @ axes[:2].T @ axes[:2] + flat.mean(0)
    rebuilt = model.decode(model.encode(x)).flatten(1)
    wanted = torch.from_numpy(projected * 7).round().clamp(0, 7)
    assert float((rebuilt == wanted).double().mean()) > 0.99
    z = model.encode(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(2), rtol=0, atol=1e-3)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(2), rtol=0, atol=1e-3)
    for label in (0, 1):
        drawn = model.prior.sample(5000, condition=torch.full((5000,), label), generator=seeded())
        own = z[which == label]
        torch.testing.assert_close(drawn.mean(0), own.mean(0), rtol=0, atol=0.06)
        torch.testing.assert_close(torch.cov(drawn.T), torch.cov(own.T), rtol=0.1, atol=0.05)


SMALL = {"autoencoder": "vae", "autoencoder.hidden": 16, "autoencoder.latent": 3}
PARTS = [
    ({"prior": "flow-matching", "prior.channels": 8} | SMALL, None),
    ({"prior": "spline-flow", "prior.hidden": 8} | SMALL, Labels(2)),
    ({"prior": "gaussian-mixture"} | SMALL, None),
    (
        {
            "autoencoder": "autoencoder",
            "autoencoder.code": 5,
            "autoencoder.hidden": (16,),
            "prior": "own",
        },
        Labels(2),
    ),
    ({"autoencoder": "own", "code": 4, "prior": "flow-matching", "prior.channels": 8}, Labels(2)),
]


@pytest.mark.parametrize(("settings", "condition"), PARTS)
def test_parts_of_the_shelf_are_built_played_and_kept(settings, condition, tmp_path):
    model = shelf.build(
        "latent-diffusion", SPACE, settings=settings, condition=condition, num_examples=400
    )
    played(model)
    size = model.code_space.size
    assert model.prior.space == Vectors(size)
    assert size == settings.get("autoencoder.latent", settings.get("autoencoder.code", 4))
    x = model.sample(9, generator=seeded())
    assert SPACE.contains(x)
    shelf.save_pretrained(model, tmp_path)
    again = shelf.from_pretrained(tmp_path)
    assert torch.equal(again.sample(9, generator=seeded()), x)
    assert torch.equal(again.scale, model.scale)
    assert not torch.equal(model.scale, torch.ones(size))


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"autoencoder": "dcgan"}, "CFG-121"),
        ({"autoencoder": "vq-vae"}, "CFG-121"),
        ({"autoencoder": "vq-vae", "prior": "own"}, "CFG-224"),
        ({"prior": "pixelcnn"}, "CFG-121"),
        ({"prior": "nothing"}, "CFG-121"),
        ({"prior_share": 0.1}, "CFG-225"),
        ({"autoencoder": "own", "autoencoder.hidden": 3}, "CFG-120"),
    ],
)
def test_parts_that_do_not_fit_are_refused(settings, code):
    with pytest.raises(Refusal) as refusal:
        shelf.build("latent-diffusion", Images(1, 8, 8, 4), settings=settings, num_examples=400)
    assert refusal.value.code == code
    with pytest.raises(Refusal):
        shelf.build("latent-diffusion", Tokens(4, 3))
