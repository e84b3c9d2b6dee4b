"""The shelf: every model by name, built from a space, kept in and opened from a folder.

A model is on the shelf because its file is in ``models/``: the file's name is the model's name, and
the file's one class with a ``game`` is the model. Nothing here, or anywhere outside ``models/``,
names a particular one.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Protocol, get_args, get_origin, get_type_hints

import safetensors
import safetensors.torch
from torch import nn

import simulacra.models
from simulacra.contract import Component, capabilities
from simulacra.files import read_json, sha256, write_bytes, write_json
from simulacra.games import Game
from simulacra.probability.noise import global_noise
from simulacra.refusals import Refusal, shown
from simulacra.spaces import Space, space_from_json

CARD = "card.json"
WEIGHTS = "model.safetensors"
CHECKSUM = "sha256 of the tensors"
MISFIT = "CKPT-003"
"""The refusal of weights whose names or shapes are not the model's own."""


class Model(Protocol):
    """What every class on the shelf has besides its capabilities (it is a torch module, too)."""

    spaces: ClassVar[tuple[type[Space], ...]]
    conditions: ClassVar[tuple[type[Space], ...]]
    space: Space
    condition_space: Space | None
    config: Any

    def __init__(
        self, space: Space, config: Any = None, *, condition: Space | None = None
    ) -> None: ...

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Any: ...

    @classmethod
    def toy(cls) -> Any: ...

    def game(self) -> Game: ...


@dataclass(frozen=True)
class Entry:
    """One model of the shelf: its name, its family (the folder), its class and its first line."""

    name: str
    family: str
    cls: type[Any]
    summary: str

    @property
    def capabilities(self) -> list[str]:
        return capabilities(self.cls)

    @property
    def representative(self) -> bool:
        """Whether a comparison that names no models takes this one for its family."""
        return bool(getattr(self.cls, "representative", False))

    @property
    def supervised(self) -> bool:
        """Whether it learns labels, and has nothing to learn without them."""
        return bool(getattr(self.cls, "supervised", False))

    def fits(self, space: Space) -> bool:
        return isinstance(space, self.cls.spaces)


@cache
def entries() -> tuple[Entry, ...]:
    """Everything on the shelf, by family and name."""
    found = []
    prefix = simulacra.models.__name__ + "."
    for module in pkgutil.walk_packages(simulacra.models.__path__, prefix):
        if module.ispkg:
            continue
        loaded = importlib.import_module(module.name)
        family, stem = module.name.removeprefix(prefix).split(".")
        for value in vars(loaded).values():
            own = isinstance(value, type) and value.__module__ == module.name
            if own and issubclass(value, nn.Module) and hasattr(value, "game"):
                summary = (loaded.__doc__ or "").strip().partition("\n")[0]
                found.append(Entry(stem.replace("_", "-"), family, value, summary))
    return tuple(sorted(found, key=lambda entry: (entry.family, entry.name)))


def find(name: str) -> Entry:
    """The entry of that name; a refusal lists the names there are."""
    for entry in entries():
        if entry.name == name:
            return entry
    names = ", ".join(entry.name for entry in entries())
    raise Refusal("CFG-030", f"no model is called {shown(name)}", way_out=f"choose one of {names}")


def name_of(model: object) -> str:
    """The shelf's name of a model."""
    return next(entry.name for entry in entries() if entry.cls is type(model))


def build(
    name: str,
    space: Space,
    *,
    settings: Mapping[str, Any] | None = None,
    condition: Space | None = None,
    num_examples: int = 10_000,
    seed: int = 0,
) -> Any:
    """A new model of ``space``, with the config recommended for it and ``settings`` on top.

    Settings of a model that it is made of stand after that one's name and a dot: ``prior.width``.
    Starting weights come from ``seed``; the global generator is left as it was.
    """
    entry = find(name)
    _require_fit(entry, space, condition)
    own, others = _apart(settings or {})
    config = entry.cls.recommend(space, num_examples)
    config = config_from_json(type(config), asdict(config) | own)
    _require_counts(config, own)
    wanted = components_of(entry.cls, space, config, condition)
    _require_components(entry, wanted, others)
    built: dict[str, Any] = {}
    for key, one in wanted.items():
        built[key] = build(
            one.model,
            _space_for(key, _among(built, one)),
            settings=others.get(key, {}),
            condition=one.condition,
            num_examples=num_examples,
            seed=seed,
        )
    return _constructed(entry, space, config, condition, seed, built)


def components_of(
    cls: type[Any], space: Space, config: Any, condition: Space | None
) -> Mapping[str, Component]:
    """What a model is made of besides itself; most are made of nothing else."""
    ask = getattr(cls, "components", None)
    wanted: Mapping[str, Component] = {} if ask is None else ask(space, config, condition)
    return wanted


def _among(built: Mapping[str, Any], wanted: Component) -> Component:
    """The component with its spaces, where these are the codes of one that stands already."""
    if not wanted.codes_of:
        return wanted
    return replace(wanted, spaces=(built[wanted.codes_of].code_space,))


def _apart(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """A model's own settings, and by component those of what it is made of."""
    own: dict[str, Any] = {}
    others: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        component, dot, rest = name.partition(".")
        if dot:
            others.setdefault(component, {})[rest] = value
        else:
            own[name] = value
    return own, others


def _require_components(
    entry: Entry, wanted: Mapping[str, Component], told: Mapping[str, object]
) -> None:
    """Refuse settings of what the model is not made of, and models that cannot play their part."""
    for key in told:
        if key not in wanted:
            names = ", ".join(f"{one}.NAME" for one in wanted) or "names without a dot"
            reason = f"{entry.name} is not made of anything called {shown(key)}"
            raise Refusal("CFG-120", reason, way_out=f"set {names}")
    for key, one in wanted.items():
        if not one.codes_of:
            _space_for(key, one)


def _space_for(key: str, wanted: Component) -> Space:
    """The first space that the named model fits; a refusal names the models that could be taken."""
    named = next((entry for entry in entries() if entry.name == wanted.model), None)
    refuse, missing = "", []
    if named is None:
        refuse = "is not on the shelf"
    elif missing := [n.__name__ for n in wanted.needs if not issubclass(named.cls, n)]:
        refuse = f"is no {' and no '.join(missing)}"
    elif not any(map(named.fits, wanted.spaces)):
        refuse = f"cannot model {wanted.spaces[0]}"
    elif not (wanted.condition is None or isinstance(wanted.condition, named.cls.conditions)):
        refuse = f"cannot be conditioned on {wanted.condition}"
    if named is None or refuse:
        able = ", ".join(entry.name for entry in entries() if _able(entry, wanted))
        raise Refusal(
            "CFG-121",
            f"the {key} {shown(wanted.model)} {refuse}",
            way_out=f"set {key} to one of {able}",
        )
    return next(space for space in wanted.spaces if named.fits(space))


def _able(entry: Entry, wanted: Component) -> bool:
    return (
        all(issubclass(entry.cls, one) for one in wanted.needs)
        and any(map(entry.fits, wanted.spaces))
        and (wanted.condition is None or isinstance(wanted.condition, entry.cls.conditions))
    )


def _require_fit(entry: Entry, space: Space, condition: Space | None) -> None:
    if not entry.fits(space):
        able = ", ".join(kind.__name__ for kind in entry.cls.spaces)
        others = ", ".join(other.name for other in entries() if other.fits(space)) or "no model yet"
        raise Refusal(
            "CFG-031",
            f"{entry.name} models {able}, and cannot model {space}",
            way_out=f"for these data choose one of {others}",
        )
    if condition is not None and not isinstance(condition, entry.cls.conditions):
        able_names = ", ".join(o.name for o in entries() if isinstance(condition, o.cls.conditions))
        raise Refusal(
            "CFG-032",
            f"{entry.name} cannot be conditioned on {condition}",
            way_out=f"leave --conditional out, or choose one of {able_names}",
        )


def _constructed(
    entry: Entry,
    space: Space,
    config: Any,
    condition: Space | None,
    seed: int,
    components: Mapping[str, Any],
) -> Any:
    with global_noise(seed):
        return entry.cls(space, config, condition=condition, **components)


def _require_counts(config: Any, given: Mapping[str, Any]) -> None:
    """Refuse whole numbers below nought: whatever a model's settings count, there is no less of it."""
    for name in given:
        value = getattr(config, name)
        if type(value) is int and value < 0:
            reason = f"the setting {name} is {value}"
            raise Refusal("CFG-034", reason, way_out="it counts something: give no negative number")


def config_from_json(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """A config dataclass from plain data: unknown names and wrong types are refused by name."""
    assert is_dataclass(kind)
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise Refusal(
            "CFG-033",
            f"there is no setting {shown(unknown[0])}",
            way_out=f"choose among {', '.join(known)}",
        )
    return kind(**{name: _as_type(name, value, hints[name]) for name, value in values.items()})


def _as_type(name: str, value: Any, wanted: Any) -> Any:
    """``value`` as ``wanted``: whole numbers stand for reals, lists for tuples; all else is refused."""
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin is tuple and isinstance(value, list | tuple):
        inner = arguments[0] if arguments else object
        return tuple(_as_type(name, one, inner) for one in value)
    if str(origin).endswith("Literal"):
        if value in arguments:
            return value
        choices = ", ".join(map(str, arguments))
        reason = f"the setting {name} is {shown(value)}"
        raise Refusal("CFG-034", reason, way_out=f"choose one of {choices}")
    if arguments and type(None) in arguments:
        if value is None:
            return None
        return _as_type(name, value, next(one for one in arguments if one is not type(None)))
    if wanted is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(wanted, type) and type(value) is wanted:
        return value
    expected = getattr(wanted, "__name__", str(wanted))
    reason = f"the setting {name} is {shown(value)}"
    raise Refusal("CFG-034", reason, way_out=f"it has to be of type {expected}")


def describe(model: Any) -> dict[str, Any]:
    """What a card says of a model: enough to build it again."""
    condition = model.condition_space
    told = {
        "model": name_of(model),
        "config": asdict(model.config),
        "space": model.space.to_json(),
        "condition": None if condition is None else condition.to_json(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "capabilities": capabilities(model),
    }
    made_of = components_of(type(model), model.space, model.config, condition)
    components = {key: describe(getattr(model, key)) for key in made_of}
    return told | ({"components": components} if components else {})


def save_pretrained(model: Any, folder: Path | str, *, card: Mapping[str, Any] = {}) -> Path:
    """Keep ``model`` in ``folder`` as card.json and model.safetensors; ``card`` adds to the card."""
    folder = Path(folder)
    write_bytes(folder / WEIGHTS, packed_weights(model))
    write_json(folder / CARD, {**card, **describe(model)})
    return folder


def packed_weights(model: nn.Module) -> bytes:
    """A model's weights as a safetensors file that carries the SHA-256 of its own tensors."""
    state = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    checksum = sha256(_tensors_of(safetensors.torch.save(state)))
    packed: bytes = safetensors.torch.save(state, metadata={CHECKSUM: checksum})
    return packed


def _tensors_of(content: bytes) -> bytes:
    """What follows a safetensors file's header, whose length stands in its first eight bytes."""
    return content[8 + int.from_bytes(content[:8], "little") :]


def _require_checksum(content: bytes, path: Path) -> None:
    """Refuse a weights file whose tensors are not those that were written."""
    header = content[8 : len(content) - len(_tensors_of(content))]
    try:
        expected = json.loads(header)["__metadata__"][CHECKSUM]
    except (ValueError, KeyError, TypeError, RecursionError):
        expected = ""
    if sha256(_tensors_of(content)) != expected:
        reason = f"{shown(path)} was changed after it was written"
        way_out = "use an undamaged copy of the folder, or go on with `simulacra train --resume`"
        raise Refusal("CKPT-004", reason, way_out=way_out)


def from_pretrained(folder: Path | str, *, settings: Mapping[str, Any] = {}) -> Any:
    """The model that ``folder`` holds, ready to be used.

    ``settings`` go over the kept config: more importance samples, fewer denoising steps. One that
    changes the weights' shapes is refused.
    """
    folder = Path(folder)
    card = read_card(folder)
    model = _as_described(card, settings, folder)
    try:
        load_weights(model, folder / WEIGHTS)
    except Refusal as refusal:
        if refusal.code != MISFIT or not settings:
            raise
        # Weights that do not fit the run's own settings either are refused as damaged.
        load_weights(_as_described(card, {}, folder), folder / WEIGHTS)
        told = ", ".join(shown(f"{name}={value}") for name, value in settings.items())
        reason = f"the weights in {shown(folder)} were trained with other settings than {told}"
        raise Refusal(
            "CKPT-013",
            reason,
            way_out="leave out those that change the weights' shapes, or train anew with them",
        ) from refusal
    return model.eval()


def untrained(folder: Path) -> Any:
    """The model of a run as it was built, whatever is recommended today, with weights of no meaning."""
    return _as_described(read_card(folder), {}, folder)


def _as_described(card: Mapping[str, Any], settings: Mapping[str, Any], folder: Path) -> Any:
    """The model that ``describe`` told of, with what it is made of, and weights of no meaning."""
    entry = find(str(card["model"]))
    condition = None if card["condition"] is None else space_from_json(card["condition"])
    space = space_from_json(card["space"])
    _require_fit(entry, space, condition)
    own, others = _apart(settings)
    kind = type(entry.cls.recommend(space, 1))
    config = config_from_json(kind, {**card["config"], **own})
    _require_counts(config, own)
    wanted = components_of(entry.cls, space, config, condition)
    _require_components(entry, wanted, others)
    told = card.get("components", {})
    for key, one in wanted.items():
        if not isinstance(told.get(key), Mapping) or told[key].get("model") != one.model:
            reason = f"{shown(folder)} was not trained with {shown(one.model)} as its {key}"
            raise Refusal("CKPT-005", reason, way_out=f"leave {key} as it is, or train anew")
        _require_card(told[key], folder)
    built: dict[str, Any] = {}
    for key, one in wanted.items():
        if space_from_json(told[key]["space"]) not in _among(built, one).spaces:
            raise Refusal("CKPT-002", f"{shown(folder)} has a damaged card", way_out="use a copy")
        built[key] = _as_described(told[key], others.get(key, {}), folder)
    return _constructed(entry, space, config, condition, 0, built)


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a run folder; anything that is no run is refused."""
    if not (folder / CARD).is_file():
        exists = "is no run: it has no card.json" if folder.exists() else "is not there"
        raise Refusal(
            "FILE-010",
            f"{shown(folder)} {exists}",
            way_out="give the folder that `simulacra train` or `compare` printed",
        )
    card = read_json(folder / CARD)
    _require_card(card, folder)
    return card


def _require_card(card: Mapping[str, Any], folder: Path) -> None:
    """Refuse a card, or what it says of a component, that does not say what to build."""
    missing = [key for key in ("model", "config", "space", "condition") if key not in card]
    if missing:
        reason = f"{shown(folder / CARD)} lacks {', '.join(missing)}"
        raise Refusal("CKPT-002", reason, way_out="it is no card of a run; restore it from a copy")


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill ``model`` from a safetensors file whose names and shapes have to be exactly its own."""
    if not path.is_file():
        reason = f"{shown(path)} is not there"
        raise Refusal("CKPT-001", reason, way_out="go on training with `simulacra train --resume`")
    content = path.read_bytes()
    _require_checksum(content, path)
    try:
        state = safetensors.torch.load(content)
        model.load_state_dict(state)
    except (safetensors.SafetensorError, RuntimeError) as error:
        first = textwrap.shorten(str(error).strip().splitlines()[-1], 120, placeholder=" …")
        reason = f"{shown(path)} does not hold the weights of this model ({first})"
        way_out = (
            "use an undamaged copy of the folder, or the version that trained it, or train anew"
        )
        raise Refusal(MISFIT, reason, way_out=way_out) from error
