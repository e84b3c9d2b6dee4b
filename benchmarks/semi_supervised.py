"""What a few labels come to with and without the rest of the data, and how near codes are to a prior.

    simulacra train --recipe recipes/aae-semi-supervised-mnist.toml --out runs/aae-semi-mnist
    python benchmarks/semi_supervised.py labels runs/aae-semi-mnist
    python benchmarks/semi_supervised.py codes runs/aae-mnist

``labels``: the test error of a run's classifier, beside those of two controls: the same encoder, taught
by its classification turn alone on the same rows for ``--rounds``, moved about as in the run and not.

``codes``: the accuracy of a fresh network (and of neighbours) between codes of test data and draws of the
prior, as many of either; 0.5 is what a perfect match gets.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simulacra import shelf
from simulacra.data.dataset import Dataset, Stream
from simulacra.evaluation.intervals import wilson
from simulacra.evaluation.two_sample import TwoSample
from simulacra.games import Descent, Game, Stage
from simulacra.play import Play
from simulacra.probability.noise import row_noise
from simulacra.probability.two_sample import neighbour_accuracy
from simulacra.runs.recipe import Recipe
from simulacra.spaces import Vectors

AT_ONCE = 500
Model = Any


def opened(folder: Path) -> tuple[Model, Dataset]:
    """A trained run's model, and the data that it was trained on."""
    data = Recipe.from_json(shelf.read_card(folder)["recipe"]).open_data()
    return shelf.from_pretrained(folder), data


def test_error(model: Model, data: Dataset) -> dict[str, Any]:
    """The share of test data that are put into a wrong class, with its 95 % interval."""
    batch = data.test.all()
    assert batch.condition is not None
    said = torch.cat([model.predict(x).argmax(1) for x in batch.x.split(AT_ONCE)])
    wrong = int((said != batch.condition).sum())
    low, high = wilson(wrong, len(said))
    return {"error": wrong / len(said), "low": low, "high": high, "count": len(said)}


def labels_alone(model: Model, data: Dataset, rounds: int, **other: Any) -> Model:
    """A control: a model of the same kind whose classification turn is all that is played; ``other``
    settings go over the run's own."""
    settings = shelf.describe(model)["config"] | other
    name, labels = shelf.name_of(model), model.condition_space
    control = shelf.build(name, data.space, settings=settings, condition=labels, seed=0)
    game = control.game()
    (teach,) = [
        turn
        for turn in game.stages[-1].turns
        if isinstance(turn, Descent) and turn.players[0].name == "classifier"
    ]
    stages = [*game.stages[:-1], Stage([replace(teach, batches=1)], rounds=rounds)]
    play = Play(control, Game(stages, game.batch_size, average=game.average, keep="last"))
    stream = Stream(data.train, game.batch_size, seed=0, conditional=True)
    for report in play.rounds(stream, lambda clock: 0.0):
        if report.clock.rounds % 500 == 0:
            print(f"control: round {report.clock.rounds}", file=sys.stderr, flush=True)
    with play.averaged():
        state = {name: value.clone() for name, value in control.state_dict().items()}
    control.load_state_dict(state)
    return control.eval()


def by_labels(folder: Path, rounds: int) -> dict[str, Any]:
    """Both errors; the rows that show their label have to be the same."""
    model, data = opened(folder)
    controls = {
        "labels alone": labels_alone(model, data, rounds),
        "labels alone, not moved": labels_alone(model, data, rounds, shift=0.0),
    }
    for control in controls.values():
        assert torch.equal(control.shown_labels, model.shown_labels), "other rows show their label"
    return {
        "labels shown": len(model.shown_labels),
        "of each class": torch.bincount(model.shown_labels).tolist(),
        "run": test_error(model, data),
        "rounds of the controls": rounds,
        **{told: test_error(control, data) for told, control in controls.items()},
    }


@torch.no_grad()
def codes_and_prior(model: Model, x: Tensor) -> tuple[Tensor, Tensor]:
    """z of test data, and as many draws of p(z)."""
    start = model.classes
    codes = torch.cat([model.encode(part)[:, start:] for part in x.split(AT_ONCE)])
    noise = row_noise(len(codes), torch.Generator().manual_seed(5))
    return codes, model._prior_style(noise)


def by_codes(folder: Path) -> dict[str, Any]:
    """Accuracies between codes and prior, and of the prior against itself."""
    model, data = opened(folder)
    codes, prior = codes_and_prior(model, data.test.all().x)
    noise = row_noise(len(codes), torch.Generator().manual_seed(6))
    test = TwoSample(Vectors(codes.shape[1]))
    test.update(samples=codes, real=prior, other_real=model._prior_style(noise))
    (found,) = test.compute()
    return {
        "network": found.value,
        "interval": [found.low, found.high],
        "prior against itself": found.floor,
        "neighbours": neighbour_accuracy(codes[:2000], prior[:2000]),
        "count": found.count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("labels", "codes"))
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=400, help="Of the controls.")
    given = parser.parse_args()
    asked = by_labels(given.run, given.rounds) if given.what == "labels" else by_codes(given.run)
    print(json.dumps(asked, indent=2))


if __name__ == "__main__":
    main()
