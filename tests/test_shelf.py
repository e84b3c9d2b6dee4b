"""The shelf finds, builds, keeps and opens; what does not belong is refused by name."""

import contextlib
import json

import pytest
import torch

from simulacra import shelf
from simulacra.refusals import Refusal
from simulacra.spaces import Column, Images, Labels, Table, Tokens, Vectors

FLOOR = "independent"


def test_every_model_has_a_name_a_family_and_a_line():
    entries = shelf.entries()
    assert len({entry.name for entry in entries}) == len(entries) >= 3
    for entry in entries:
        assert entry.summary.endswith(".") or entry.summary
        assert entry.capabilities
        assert isinstance(entry.cls.toy(), entry.cls)
        assert shelf.find(entry.name) is entry


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(Refusal, match=FLOOR) as refusal:
        shelf.find("transformer-9000")
    assert refusal.value.exit_code == 78


def test_a_space_that_does_not_fit_is_refused():
    entry = next(one for one in shelf.entries() if not one.fits(Tokens(3, 4)))
    with pytest.raises(Refusal, match="for these data choose") as refusal:
        shelf.build(entry.name, Tokens(3, 4))
    assert refusal.value.code == "CFG-031"


def test_a_condition_that_does_not_fit_is_refused():
    with pytest.raises(Refusal, match="cannot be conditioned"):
        shelf.build(FLOOR, Images(1, 2, 2), condition=Labels(3))


@pytest.mark.parametrize(
    "settings", [{"prior": 1.0}, {"prior_weight": "1"}, {"prior_weight": True}]
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(Refusal):
        shelf.build(FLOOR, Vectors(2), settings=settings)


@pytest.mark.parametrize(("model", "settings"), [("vae", {"latent": -3}), ("nade", {"hidden": -1})])
def test_what_is_counted_is_not_negative(model, settings):
    with pytest.raises(Refusal, match="no negative number"):
        shelf.build(model, Images(1, 4, 4, levels=2), settings=settings)


def test_settings_count():
    assert shelf.build(FLOOR, Vectors(2), settings={"prior_weight": 3}).config.prior_weight == 3.0


def test_building_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    for entry in shelf.entries():
        space = entry.cls.toy().space
        torch.set_rng_state(before)
        for count in (100, 10_000):
            shelf.build(entry.name, space, num_examples=count)
        table = Table((Column("a"), Column("b", "category", ("x", "y"))))
        others = (Images(1, 4, 4, levels=2), Images(1, 4, 4, levels=4), Vectors(2), table)
        built = []
        for other in filter(entry.fits, others):
            # Some models refuse two levels, and some any other number of them.
            with contextlib.suppress(Refusal):
                built.append(shelf.build(entry.name, other))
        assert built
        assert torch.equal(before, torch.get_rng_state())


@pytest.fixture
def folder(tmp_path):
    return shelf.save_pretrained(shelf.build(FLOOR, Images(1, 2, 2, levels=3)), tmp_path / "run")


def test_a_kept_model_opens(folder):
    model = shelf.from_pretrained(folder)
    assert model.space == Images(1, 2, 2, levels=3)
    assert not any("pickle" in path.suffix for path in folder.iterdir())


def test_no_run_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(Refusal) as refusal:
            shelf.from_pretrained(path)
        assert refusal.value.code == "FILE-010"


@pytest.mark.parametrize("damage", ["model", "config", "space", "condition"])
def test_a_card_that_lacks_something_is_refused(folder, damage):
    card = json.loads((folder / "card.json").read_text())
    del card[damage]
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(Refusal, match=damage):
        shelf.from_pretrained(folder)


@pytest.mark.parametrize(
    ("entry", "value"),
    [("model", "os.system"), ("config", {"eval": "1"}), ("space", {"space": "Path"})],
)
def test_a_card_names_only_what_is_on_the_shelf(folder, entry, value):
    card = json.loads((folder / "card.json").read_text())
    card[entry] = value
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(Refusal):
        shelf.from_pretrained(folder)


def test_other_weights_are_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(shelf.packed_weights(torch.nn.Linear(2, 3)))
    with pytest.raises(Refusal) as refusal:
        shelf.from_pretrained(folder)
    assert refusal.value.code == "CKPT-003"
    path.unlink()
    with pytest.raises(Refusal) as refusal:
        shelf.from_pretrained(folder)
    assert refusal.value.code == "CKPT-001"


def test_settings_that_change_the_weights_are_named_and_the_weights_not_called_damaged(tmp_path):
    """And weights that fit no better without those settings still are."""
    folder = shelf.save_pretrained(shelf.build("vae", Images(1, 2, 2, levels=3)), tmp_path)
    settings = {"latent": 3, "importance_samples": 3}
    with pytest.raises(Refusal, match="'latent=3', 'importance_samples=3'; leave out") as refusal:
        shelf.from_pretrained(folder, settings=settings)
    assert refusal.value.code == "CKPT-013"
    assert shelf.from_pretrained(folder, settings={"importance_samples": 3})
    (folder / "model.safetensors").write_bytes(shelf.packed_weights(torch.nn.Linear(2, 3)))
    with pytest.raises(Refusal) as refusal:
        shelf.from_pretrained(folder, settings=settings)
    assert refusal.value.code == "CKPT-003"


def test_a_long_reason_is_cut_between_words(folder):
    shape = (1,) * 40
    model = torch.nn.Linear(2, 3)
    torch.nn.Module.register_buffer(model, "some_tensor", torch.zeros(shape))
    path = folder / "model.safetensors"
    path.write_bytes(shelf.packed_weights(model))
    other = torch.nn.Linear(2, 3)
    torch.nn.Module.register_buffer(other, "some_tensor", torch.zeros(1, *shape))
    with pytest.raises(Refusal, match=r"1, …\);"):
        shelf.load_weights(other, path)


def test_every_changed_bit_of_the_weights_is_found(folder):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    for position in range(0, len(content), max(1, len(content) // 500)):
        for bit in (1, 0x80):
            changed = bytearray(content)
            changed[position] ^= bit
            path.write_bytes(changed)
            with pytest.raises(Refusal, match=r"changed after|does not hold"):
                shelf.from_pretrained(folder)
    path.write_bytes(content[:-5])
    with pytest.raises(Refusal, match="changed after"):
        shelf.from_pretrained(folder)
