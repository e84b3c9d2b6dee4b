"""Budgets and recipes are data: read, refused by name, and applied to a game."""

import pytest

from simulacra import shelf
from simulacra.games import Clock
from simulacra.models.adversarial.gan import GAN
from simulacra.models.adversarial.gan import Config as GANConfig
from simulacra.refusals import Refusal
from simulacra.runs.budget import Budget
from simulacra.runs.recipe import Recipe, with_optimiser
from simulacra.spaces import Vectors


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("3m", 180, "seconds"),
        ("90s", 90, "seconds"),
        ("1.5h", 5400, "seconds"),
        ("5000 steps", 5000, "steps"),
        ("1 step", 1, "steps"),
        ("1e6examples", 1e6, "examples"),
    ],
)
def test_budgets_are_read(text, amount, unit):
    assert Budget.parse(text) == Budget(amount, unit)


@pytest.mark.parametrize(
    "text", ["", "3", "m", "-1m", "0s", "3 weeks", "1e400steps", "nan s", "..s"]
)
def test_other_budgets_are_refused(text):
    with pytest.raises(Refusal, match="budget"):
        Budget.parse(text)


def test_a_budget_says_what_is_used():
    clock = Clock(rounds=25, examples=50)
    assert Budget.parse("100steps").used(clock, 9.0) == 0.25
    assert Budget.parse("100examples").used(clock, 9.0) == 0.5
    assert Budget.parse("10s").used(clock, 9.0) == 0.9


def test_a_recipe_comes_back_from_its_json_and_from_toml(tmp_path):
    recipe = Recipe(
        "vae", view="dynamic", settings={"latent": 8}, optimiser={"learning_rate": 0.01}
    )
    assert Recipe.from_json(recipe.to_json()) == recipe
    file = tmp_path / "r.toml"
    file.write_text(
        'model = "vae"\nview = "dynamic"\n[settings]\nlatent = 8\n[optimiser]\nlearning_rate = 0.01\n'
    )
    assert Recipe.read(file) == recipe


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "names no model"),
        ({"model": "vae", "bugdet": "3m"}, "bugdet"),
        ({"model": "vae", "view": "sepia"}, "sepia"),
        ({"model": "vae", "seed": "zero"}, "seed"),
        ({"model": "vae", "budget": "soon"}, "soon"),
    ],
)
def test_wrong_recipes_are_refused_by_name(values, said):
    with pytest.raises(Refusal, match=said):
        Recipe.from_json(values)


def test_a_learning_rate_leaves_players_their_multiples_of_it():
    model = GAN(Vectors(2), GANConfig(learning_rate=1e-3, critic_rate=4.0))
    for changes, expected in (
        ({"learning_rate": 1e-2}, (0.04, 0.01)),
        ({"name": "sgd"}, (0.004, 0.001)),
    ):
        players = with_optimiser(model.game(), changes, model.config.learning_rate).players()
        rates = [players[name].optimiser.learning_rate for name in ("critic", "generator")]
        assert rates == pytest.approx(expected)


def test_an_optimiser_change_reaches_every_player_once():
    for entry in shelf.entries():
        game = entry.cls.toy().game()
        changed = with_optimiser(game, {"name": "radam", "learning_rate": 0.5})
        assert len(changed.players()) == len(game.players())
        for player in changed.players().values():
            assert (player.optimiser.name, player.optimiser.learning_rate) == ("radam", 0.5)
