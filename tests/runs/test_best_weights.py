"""Which weights a run ends with where there is no likelihood to tell."""

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch

from simulacra import shelf
from simulacra.data.open import open_data
from simulacra.models.latent.vae import VAE
from simulacra.runs.conductor import Run
from simulacra.runs.recipe import Recipe
from simulacra.runs.training import resume, train

SCORE = "held-out squared error of rebuilding"


def test_an_autoencoder_keeps_the_weights_that_rebuild_held_out_data_best(tmp_path):
    # At this rate units saturate, and what was learnt in the first rounds is lost.
    recipe = Recipe(
        model="autoencoder",
        budget="100steps",
        settings={"learning_rate": 0.05},
        optimiser={"schedule": "constant"},
    )
    train(recipe, tmp_path / "run")
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()
    ]
    measured = [line[SCORE] for line in lines if SCORE in line]
    assert min(measured) < measured[-1]
    model = shelf.from_pretrained(tmp_path / "run")
    held_out = open_data("digits").valid.all()
    assert float(model.anomaly_score(held_out.x).mean()) == pytest.approx(min(measured), rel=1e-4)
    assert shelf.read_card(tmp_path / "run")["numbers"]["held_out_nats"] is None


def test_patience_that_has_nothing_to_wait_for_says_so(tmp_path):
    numbers = train(Recipe(model="gan", budget="2steps", patience=3), tmp_path / "run")
    assert any("patience has no effect: gan" in line for line in numbers["warnings"])


def test_what_builds_on_a_stage_builds_on_its_best_weights(tmp_path):
    """Stopped early, the first stage leaves its best weights to the prior, which is still learnt."""
    recipe = Recipe(
        model="vae",
        budget="800steps",
        patience=2,
        settings={"prior": "gaussian-mixture", "learning_rate": 0.01, "dropout": 0.0},
    )
    numbers = train(recipe, tmp_path / "run")
    assert any("stopped early" in line for line in numbers["warnings"])
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()
    ]
    bits = [line["held-out bits/dim"] for line in lines if "held-out bits/dim" in line]
    worse = next(i for i, (one, then) in enumerate(itertools.pairwise(bits)) if then > one)
    best, last = bits[worse], bits[-1]
    model = shelf.from_pretrained(tmp_path / "run")
    assert model.fitted
    model.fitted.fill_(False)
    held_out = open_data("digits").valid.all().x
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        nats = float(-model.log_prob(held_out, generator=generator).double().mean())
    assert nats / 64 / math.log(2) == pytest.approx(best, rel=1e-4)
    assert last < best


def test_a_run_goes_on_as_it_was_built_whatever_is_recommended_today(tmp_path, monkeypatch):
    train(Recipe(model="vae", budget="4steps"), tmp_path / "run")
    kept = VAE.recommend
    monkeypatch.setattr(
        VAE,
        "recommend",
        classmethod(lambda _, *of: replace(kept(*of), hidden=99, prior="gaussian-mixture")),
    )
    resume(tmp_path / "run", budget="8steps")
    card = shelf.read_card(tmp_path / "run")
    assert card["numbers"]["rounds"] == 8
    assert card["config"]["hidden"] != 99


def test_processes_that_go_on_measure_where_they_would_have(tmp_path):
    """Of several, each knows from the first round how much of the seconds is used."""
    recipe = Recipe(model="vae", budget="1s")
    train(recipe, tmp_path / "run")
    data = open_data("digits")
    run = Run(shelf.untrained(tmp_path / "run"), data, recipe, tmp_path / "run", device="cpu")
    run.world = 2
    run.restore()
    assert run._share() == 1.0
