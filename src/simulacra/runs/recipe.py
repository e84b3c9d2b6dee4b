"""A recipe: everything that a run is made from, as data."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from simulacra import shelf
from simulacra.data.dataset import Dataset
from simulacra.data.named import NAMES
from simulacra.data.open import open_data
from simulacra.files import read_json
from simulacra.games import Descent, Game
from simulacra.optimisation import Optimiser
from simulacra.refusals import Refusal, shown
from simulacra.runs.budget import Budget
from simulacra.runs.snapshots import require_count
from simulacra.shelf import config_from_json
from simulacra.spaces import Space

SEEN = "data as seen from this folder"
"""The entry of a run's card with the way from its folder to its data."""


@dataclass(frozen=True)
class Recipe:
    """What to train on what, for how long.

    ``settings`` override the model's recommended config, ``optimiser`` the optimisers of all its
    players. ``patience``: stop after so many measures on held-out data without a better one, 0 for
    never; the best weights by that measure are kept in any case. ``snapshots``: how many times two
    weight averages are kept on the way, so that `simulacra average` can choose another length, 0 for
    never. ``label`` is the column of a table that holds the labels, or the columns of metadata.csv that
    images go with.
    """

    model: str
    data: str = "digits"
    view: Literal["8bit", "binary", "dynamic"] = "8bit"
    size: int | None = None
    conditional: bool = False
    budget: str = "3m"
    seed: int = 0
    batch_size: int | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    patience: int = 0
    skip_bad: int = 0
    snapshots: int = 0
    label: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    optimiser: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """A recipe from a .toml file, or from the .json that a run keeps."""
        if path.suffix == ".json":
            return cls.from_json(read_json(path))
        if not path.is_file():
            raise Refusal("FILE-001", f"{shown(path)} is not there", way_out="see recipes/")
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            reason = f"{shown(path)} is no TOML file ({error})"
            raise Refusal("FILE-003", reason, way_out="write it like those in recipes/") from error
        return cls.from_json(values)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Recipe:
        """A recipe from plain data; unknown entries and wrong types are refused by name."""
        plain = {k: v for k, v in values.items() if k not in ("settings", "optimiser")}
        if "model" not in plain:
            raise Refusal("CFG-041", "the recipe names no model", way_out='add model = "…"')
        recipe: Recipe = config_from_json(cls, plain)
        Budget.parse(recipe.budget)
        require_count(recipe.snapshots)
        settings, optimiser = (dict(values.get(key, {})) for key in ("settings", "optimiser"))
        return replace(recipe, settings=settings, optimiser=optimiser)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"settings": dict(self.settings), "optimiser": dict(self.optimiser)}

    def open_data(self) -> Dataset:
        """The data set that the recipe names, in its view and size."""
        return self.open_as(self.data)

    def open_as(
        self, what: str, *, like: Space | None = None, like_condition: Space | None = None
    ) -> Dataset:
        """Other data, read as this recipe reads its own; ``like`` is a trained model's space, and
        ``like_condition`` that of its conditions."""
        return open_data(
            what,
            view=self.view,
            size=self.size,
            skip_bad=self.skip_bad,
            conditional=self.conditional,
            label=self.label,
            like=like,
            like_condition=like_condition,
        )


def own_data(folder: Path) -> Dataset:
    """The data that the run in ``folder`` was trained on, as it read them; refused where they are others
    by now."""
    recipe = Recipe.from_json(shelf.read_card(folder)["recipe"])
    data = recipe.open_as(own_path(folder))
    require_same_data(folder, data)
    return data


def own_path(folder: Path) -> str:
    """Where the data of the run in ``folder`` are: as they are seen from the folder, which holds wherever
    one works and when both are moved together, or else as its recipe names them."""
    card = shelf.read_card(folder)
    what = str(card["recipe"]["data"])
    if what in NAMES:
        return what
    way_out = "bring them back, or work in the folder that it was trained from"
    if SEEN in card:
        seen = folder / card[SEEN]
        # As ``Path.exists`` does not, this says no of what lies below a folder that is closed to us.
        if os.path.exists(seen):
            return str(seen)
        way_out += f", or put them at {shown(os.path.normpath(seen))}"
    if os.path.exists(what):
        return what
    raise Refusal(
        "CKPT-014",
        f"the data {shown(what)} of the run {shown(folder)} are not there",
        way_out=way_out,
    )


def seen_from(folder: Path, what: str, *, known: Path) -> dict[str, str]:
    """The entry of a card in ``folder`` that says how to get from there to the data ``what``.

    None for data that have a name, or that are neither to be found from here nor by the card, if there is
    one, of the run in the folder ``known``.
    """
    path = Path(what)
    if what in NAMES:
        return {}
    if not os.path.exists(path):
        before = shelf.read_card(known).get(SEEN) if (known / shelf.CARD).is_file() else None
        if before is None:
            return {}
        path = known / before
    try:
        # The data's own name may be a link, which is kept: what it points to may be moved as well.
        way = os.path.relpath(path.parent.resolve() / path.name, folder.resolve())
    except ValueError:
        # Windows knows no way from one drive to another.
        return {}
    return {SEEN: Path(way).as_posix()}


def require_same_data(folder: Path, data: Dataset) -> None:
    """Refuse data that are not those whose fingerprint stands on a run's card."""
    before = shelf.read_card(folder).get("data", {}).get("fingerprint", data.fingerprint)
    if before != data.fingerprint:
        raise Refusal(
            "DATA-060",
            f"the data {shown(data.name)} are not those that {shown(folder)} was trained on",
            way_out="bring those back, or train anew with another --out",
        )


def with_optimiser(game: Game, changes: Mapping[str, Any], base: float | None = None) -> Game:
    """The same game with every player's optimiser changed as told.

    ``base`` is the model's own learning rate: a player with a multiple of it keeps that multiple.
    """
    if not changes:
        return game
    changed: dict[int, Any] = {}

    def player(old: Any) -> Any:
        if id(old) not in changed:
            new = config_from_json(Optimiser, asdict(old.optimiser) | dict(changes))
            if base and "learning_rate" in changes:
                multiple = old.optimiser.learning_rate / base
                new = replace(new, learning_rate=multiple * new.learning_rate)
            changed[id(old)] = replace(old, optimiser=new)
        return changed[id(old)]

    def turn(old: Any) -> Any:
        if not isinstance(old, Descent):
            return old
        return replace(old, players=tuple(player(one) for one in old.players))

    # One turn may stand in the list several times and has to stay one turn.
    stages = [replace(stage, turns=[turn(one) for one in stage.turns]) for stage in game.stages]
    return replace(game, stages=stages)
