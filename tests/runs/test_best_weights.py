"""Which weights a run ends with where there is no likelihood to tell."""

import json

import pytest

from simulacra import shelf
from simulacra.data.open import open_data
from simulacra.runs.conductor import train
from simulacra.runs.recipe import Recipe

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
