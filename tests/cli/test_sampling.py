"""Sampling step by step from the command line: its settings, trajectories, and starts from given data."""

import numpy as np
import pytest
import torch
from PIL import Image

from simulacra import shelf
from simulacra.cli.sampling import sample
from simulacra.models.diffusion.ddpm import DDPM, Config
from simulacra.refusals import Refusal
from simulacra.runs.recipe import Recipe
from simulacra.runs.using import CHUNK
from simulacra.spaces import Images, Labels

SPACE = Images(1, 8, 8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of an untrained model; its last layer is not nought, so that labels matter."""
    folder = tmp_path_factory.mktemp("ddpm")
    config = Config(channels=8, blocks=1, num_inference_steps=6, label_dropout=0.1)
    model = DDPM(SPACE, config, condition=Labels(10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return shelf.save_pretrained(model, folder, card={"recipe": Recipe("ddpm", "digits").to_json()})


def drawn(run, folder, **options):
    sample(run, num_samples=3, condition="4", out=folder / "x.npy", **options)
    return np.load(folder / "x.npy")


def test_settings_of_sampling_are_options(run, tmp_path):
    plain = drawn(run, tmp_path)
    assert (drawn(run, tmp_path) == plain).all()
    for options in (
        {"sampler": "heun"},
        {"num_inference_steps": 3},
        {"eta": 1.0},
        {"guidance_scale": 2.0},
        {"settings": ["spacing=log-snr"]},
    ):
        assert (drawn(run, tmp_path, **options) != plain).any(), options


def test_what_a_model_cannot_be_told_is_refused(run, tmp_path):
    independent = shelf.build("independent", SPACE)
    other = shelf.save_pretrained(independent, tmp_path / "other")
    with pytest.raises(Refusal, match="independent has no guidance_scale"):
        drawn(other, tmp_path, guidance_scale=1.0)
    with pytest.raises(Refusal, match="Gradual"):
        sample(other, num_samples=2, trajectory=True)
    with pytest.raises(Refusal, match="sampler"):
        drawn(run, tmp_path, sampler="plms")
    with pytest.raises(Refusal, match="eta"):
        drawn(run, tmp_path, sampler="heun", eta=0.5)


def test_a_trajectory_is_a_strip_and_an_animation(run, tmp_path):
    sample(run, num_samples=4, condition="1", trajectory=True)
    with Image.open(run / "trajectory-0.png") as strip:
        assert strip.width > strip.height
    with Image.open(run / "trajectory-0.gif") as moving:
        assert moving.n_frames == 7
    sample(run, num_samples=3, condition="4", trajectory=True, out=tmp_path / "way.npy")
    states = np.load(tmp_path / "way.npy")
    assert states.shape == (7, 3, 1, 8, 8)
    assert (states[-1] == drawn(run, tmp_path)).all()
    with pytest.raises(Refusal, match="hold a trajectory"):
        sample(run, num_samples=3, trajectory=True, out=tmp_path / "way.csv")


def test_samples_start_from_given_data(run, tmp_path):
    x, given = SPACE.random(8, torch.Generator().manual_seed(0)), tmp_path / "given.npy"
    np.save(given, x.numpy())
    sample(
        run, num_samples=8, condition="3", from_=str(given), strength=0.5, out=tmp_path / "v.npy"
    )
    pairs = np.load(tmp_path / "v.npy")
    assert pairs.shape == (16, 1, 8, 8)
    assert (pairs[:8] == x.numpy()).all()
    assert (pairs[:8] != pairs[8:]).any()
    with pytest.raises(Refusal, match="strength"):
        sample(run, num_samples=2, condition="3", from_=str(given), strength=0.0)


@pytest.mark.parametrize("name", ["vae", "ladder-vae", "vq-vae"])
def test_means_are_what_samples_scatter_about(name, tmp_path):
    settings = {"prior": "own"} if name == "vq-vae" else {}
    model = shelf.build(name, SPACE, settings=settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    run = shelf.save_pretrained(model, tmp_path / "run", card={})

    def written(**options):
        sample(run, num_samples=CHUNK + 40, out=tmp_path / "x.npy", **options)
        return np.load(tmp_path / "x.npy").astype(float)

    means, others = written(mean=True), written(mean=True, seed=1)
    near, far = abs(written() - means).mean(), abs(written() - others).mean()
    assert 0 < near < far
    with torch.no_grad():
        model.head.log_scale.fill_(-7)
    shelf.save_pretrained(model, tmp_path / "run", card={})
    # A likelihood as narrow as a level: the codes of all chunks are those of the samples.
    assert abs(written() - written(mean=True)).max() <= 1


def test_means_are_refused_where_there_are_none(run, tmp_path):
    with pytest.raises(Refusal, match="MeanSampler"):
        drawn(run, tmp_path, mean=True)
    vae = shelf.save_pretrained(shelf.build("vae", SPACE), tmp_path / "vae")
    with pytest.raises(Refusal, match="--from"):
        sample(vae, mean=True, from_="digits")
