"""What torch.compile is given, and what it has no way to."""

import pytest
from torch import nn

from simulacra.data.open import open_data
from simulacra.runs.conductor import Run
from simulacra.runs.recipe import Recipe
from simulacra.runs.training import train
from simulacra.shelf import build


@pytest.fixture
def compiled(monkeypatch):
    """Parts that are compiled, by a compiler that generates no code."""
    parts, real = [], nn.Module.compile

    def quickly(part, **options):
        parts.append(part)
        real(part, backend="aot_eager", **options)

    monkeypatch.setattr(nn.Module, "compile", quickly)
    return parts


def test_a_gan_whose_critic_is_differentiated_twice_trains_compiled(compiled, tmp_path):
    recipe = Recipe(model="gan", data="ring", budget="4steps", compile=True)
    numbers = train(recipe, tmp_path / "run")
    assert numbers["rounds"] == 4
    assert any("not compiled: critic" in line for line in numbers["warnings"])
    names = {type(part).__name__ for part in compiled}
    assert "Sequential" in names
    assert "DenseCritic" not in names


@pytest.mark.parametrize(
    ("model", "settings", "expected"),
    [
        ("dcgan", {"regulariser": "none"}, {"generator", "critic"}),
        ("dcgan", {"regulariser": "none", "unrolled": 1}, {"generator"}),
        ("stylegan2", {"path_length": 2.0}, set()),
        ("stylegan2", {"path_length": 0.0}, {"generator"}),
    ],
)
def test_parts_with_slopes_in_a_loss_are_left_as_they_are(compiled, model, settings, expected):
    data = open_data("digits")
    built = build(model, data.space, settings=settings, num_examples=len(data.train))
    Run(built, data, Recipe(model=model, settings=settings, compile=True), None)
    names = {name for name, part in built.named_children() for one in compiled if one is part}
    assert names & {"generator", "critic"} == expected
