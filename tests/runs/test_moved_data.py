"""A run finds its own data from anywhere, and with them moved; never others for them."""

import json
import shutil
from pathlib import Path

import pytest

from simulacra.refusals import Refusal
from simulacra.runs.recipe import SEEN, Recipe, own_data, seen_from
from simulacra.runs.training import resume, train

TABLE = "a,b\n" + "".join(f"{row % 7},{row}\n" for row in range(60))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a table and a run of it, trained from there; one works elsewhere by now."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "rows.csv").write_text(TABLE)
    monkeypatch.chdir(folder)
    recipe = Recipe("independent", data="rows.csv", budget="5steps")
    train(recipe, folder / "runs" / "one", device="cpu")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


def card_of(run):
    return json.loads((run / "card.json").read_text(encoding="utf-8"))


def test_a_run_is_used_from_anywhere_and_its_project_may_move(project):
    fingerprint = card_of(project / "runs" / "one")["data"]["fingerprint"]
    assert own_data(project / "runs" / "one").fingerprint == fingerprint
    moved = project.rename(project.parent / "moved")
    assert own_data(moved / "runs" / "one").fingerprint == fingerprint


def test_the_card_holds_what_was_typed_and_no_path_from_the_root(project):
    card = card_of(project / "runs" / "one")
    assert card["recipe"]["data"] == "rows.csv"
    assert card[SEEN] == "../../rows.csv"
    assert str(project) not in json.dumps(card)


def test_training_goes_on_from_elsewhere_and_the_card_still_knows_the_way(project):
    run = project / "runs" / "one"
    resume(run, budget="9steps", device="cpu")
    assert card_of(run)[SEEN] == "../../rows.csv"
    assert own_data(run).name == "rows.csv"


def test_a_copy_of_the_run_elsewhere_is_told_the_way_anew(project):
    run, copy = project / "runs" / "one", project / "one"
    assert seen_from(copy, "rows.csv", known=run) == {SEEN: "../rows.csv"}
    assert seen_from(copy, "digits", known=run) == {}


def test_other_data_in_the_place_of_the_runs_own_are_refused(project):
    (project / "rows.csv").write_text(TABLE.replace(",59", ",95"))
    with pytest.raises(Refusal, match="are not those that"):
        own_data(project / "runs" / "one")


def test_data_that_are_gone_are_named_with_the_run_and_the_place(project):
    run = project / "runs" / "one"
    (project / "rows.csv").unlink()
    with pytest.raises(Refusal) as refused:
        own_data(run)
    assert refused.value.code == "CKPT-014"
    for path in ("rows.csv", run, project / "rows.csv"):
        assert repr(str(path))[-40:] in refused.value.line()


def test_a_run_from_before_opens_from_where_it_was_trained(project, monkeypatch):
    run = project / "runs" / "one"
    card = card_of(run)
    del card[SEEN]
    (run / "card.json").write_text(json.dumps(card))
    with pytest.raises(Refusal, match="work in the folder that it was trained from"):
        own_data(run)
    monkeypatch.chdir(project)
    assert own_data(run).name == "rows.csv"


def test_data_named_by_a_link_are_found_when_both_are_moved(tmp_path, monkeypatch):
    store, folder = tmp_path / "store.csv", tmp_path / "project"
    store.write_text(TABLE)
    folder.mkdir()
    (folder / "rows.csv").symlink_to(store)
    monkeypatch.chdir(folder)
    train(Recipe("independent", data="rows.csv", budget="5steps"), folder / "one", device="cpu")
    monkeypatch.chdir(tmp_path)
    shutil.move(folder, tmp_path / "deeper" / "project")
    assert own_data(tmp_path / "deeper" / "project" / "one").name == "rows.csv"


def test_a_file_of_the_same_name_elsewhere_is_not_taken_for_the_data(project):
    run = project / "runs" / "one"
    Path("rows.csv").write_text("x\n" + "\n".join(map(str, range(50))) + "\n")
    assert own_data(run).fingerprint == card_of(run)["data"]["fingerprint"]
