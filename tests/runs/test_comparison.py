"""A comparison on real data: the same split, one page, nothing done twice, interruptions survived."""

import json
import re
import shlex
import sys
from itertools import islice
from pathlib import Path

import pytest
import typer.main

from simulacra import shelf
from simulacra.cli.main import app
from simulacra.refusals import Refusal
from simulacra.runs import comparison
from simulacra.runs.conductor import Run
from simulacra.runs.judging import READINGS, Judgement, judge
from simulacra.runs.report import _free_parameters
from simulacra.runs.show import Show

CHOICES = {"budget": "20steps", "num_samples": 200}
MODELS = "independent,vae"


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    out = tmp_path_factory.mktemp("comparison") / "out"
    page = comparison.compare(MODELS, out, **CHOICES)
    return out, page


def test_the_page_stands_alone_and_shows_everything(compared):
    out, page = compared
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == 3
    assert " 0 parameters" not in text
    for word in ("independent", "vae", "held-out", "sampling", "density", "anomaly", "features"):
        assert word in text
    outside = re.findall(r'(?:src|href)="(?!data:)[^"]*"', text)
    assert not outside
    assert "= " in text
    assert "≤ " in text
    assert json.loads((out / "features" / "features.json").read_text())["sha256"][:16] in text


def test_every_number_has_its_unit_kind_count_and_interval(compared):
    out, _ = compared
    for model, kind in (("independent", "exact"), ("vae", "lower")):
        readings = {one.name: one for one in Judgement.read(out / model).readings}
        bits = readings["bits per dimension"]
        assert bits.kind == kind
        assert bits.unit == "bits/dim"
        assert bits.low < bits.value < bits.high
        assert bits.count == 180
        distance = readings["Fréchet distance"]
        assert distance.floor < distance.control
        assert distance.count == {"samples": 200, "real": 180}


def test_all_models_saw_the_same_split(compared):
    out, _ = compared
    cards = [json.loads((out / model / "card.json").read_text()) for model in MODELS.split(",")]
    assert cards[0]["data"] == cards[1]["data"]


def test_what_is_finished_is_not_done_twice_and_what_is_missing_is(compared):
    out, page = compared
    before = (out / "vae" / "card.json").stat().st_mtime_ns
    (out / "vae" / READINGS).unlink()
    page.unlink()
    told: list[str] = []
    assert comparison.compare(MODELS, out, show=Show(line=told.append), **CHOICES) == page
    assert (out / "vae" / "card.json").stat().st_mtime_ns == before
    assert (out / "vae" / READINGS).is_file()
    assert any("independent: done before" in line for line in told)


def test_an_interrupted_training_goes_on_where_it_stopped(compared, tmp_path):
    """Half the rounds, a stop, and the same command again: the weights of the whole training."""
    out, _ = compared
    plan = comparison.Plan(models=("vae",), **CHOICES)
    recipe, data = plan.recipe("vae"), plan.recipe("vae").open_data()
    comparison._claim(tmp_path / "out", plan)
    model = shelf.build("vae", data.space, num_examples=len(data.train), seed=recipe.seed)
    run = Run(model, data, recipe, tmp_path / "out" / "vae", device="cpu")
    for _ in islice(run.play.rounds(run.stream, run.used), 9):
        pass
    run.save()
    comparison.compare("vae", tmp_path / "out", **CHOICES)
    weights = [(folder / "vae" / "model.safetensors") for folder in (out, tmp_path / "out")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def options(command):
    """What the command line makes of a printed command."""
    program, verb, *words = shlex.split(command)
    assert (program, verb) == ("simulacra", "compare")
    return typer.main.get_command(app).commands["compare"].make_context("compare", words).params


def test_the_printed_command_goes_on_with_this_very_comparison(compared):
    out, page = compared
    told = options(json.loads((out / comparison.NUMBERS).read_text())["command"])
    wanted = {**CHOICES, "models": MODELS, "data": "digits", "out": out, "features": None}
    assert {key: told[key] for key in wanted} == wanted
    assert comparison.compare(told["models"], told["out"], **{k: told[k] for k in CHOICES}) == page
    assert "--num-samples 200" in page.read_text(encoding="utf-8")


def test_every_choice_is_in_the_printed_command():
    choices = {"data": "my data/a'b.csv", "view": "binary", "size": 8, "conditional": True}
    choices |= {"budget": "2 s", "seed": 3, "num_samples": 50, "skip_bad": 2, "label": "the class"}
    choices |= {"features": "my eyes.safetensors"}
    plan = comparison.Plan(models=("vae", "gan"), **choices)
    told = options(comparison._command(plan, Path("some where/out"), device="cpu"))
    wanted = choices | {"features": Path("my eyes.safetensors"), "models": "vae,gan"}
    wanted |= {"out": Path("some where/out"), "device": "cpu", "seeds": None}
    assert {key: told[key] for key in wanted} == wanted
    assert options(comparison._command(plan, Path("out"), "0,1"))["seeds"] == "0,1"


def test_eyes_once_given_stay_in_the_plan_and_in_the_command(tmp_path):
    plan = comparison.Plan(models=("vae",), features="eyes.safetensors")
    assert comparison._claim(tmp_path, plan) == plan
    assert comparison._claim(tmp_path, comparison.Plan(models=("vae",))) == plan


def test_another_plan_in_the_same_folder_is_refused(compared):
    out, _ = compared
    with pytest.raises(Refusal, match="another budget"):
        comparison.compare(MODELS, out, **{**CHOICES, "budget": "30steps"})


WHY = "error[NUM-001]: vae has diverged: use a lower --learning-rate"


def failing(monkeypatch, *models):
    """Let the training of these models fail."""
    real = comparison._train

    def train(plan, model, data, out, device):
        return WHY if model in models else real(plan, model, data, out, device)

    monkeypatch.setattr(comparison, "_train", train)


def test_a_model_that_fails_leaves_the_others_and_is_named(tmp_path, monkeypatch):
    failing(monkeypatch, "vae")
    told: list[str] = []
    page = comparison.compare(MODELS, tmp_path / "out", show=Show(line=told.append), **CHOICES)
    text = page.read_text(encoding="utf-8")
    assert "<h1>1 generative model on digits</h1>" in text
    parts = {part.split("</h2>")[0]: part for part in text.split("<h2>")}
    for part in (text.split("<h2>")[0], parts["Real data and samples"], parts["The ruler"]):
        assert WHY in part
    assert "1 model failed and is not compared here" in text.split("<h2>")[0]
    assert f"<li>vae failed: {WHY}</li>" in text
    assert told[-1] == f"vae failed: {WHY}"
    assert json.loads((tmp_path / "out" / comparison.NUMBERS).read_text())["failures"] == {
        "vae": WHY
    }


def test_a_comparison_of_which_nothing_is_left_fails(tmp_path, monkeypatch):
    failing(monkeypatch, "vae", "independent")
    with pytest.raises(
        Refusal, match=r"no model to compare.*independent failed.*diverged"
    ) as refused:
        comparison.compare(MODELS, tmp_path / "out", **CHOICES)
    assert refused.value.exit_code == 80
    assert (
        "<h1>No generative models on digits</h1>" in (tmp_path / "out" / "report.html").read_text()
    )


def test_why_a_model_failed_with_one_of_the_seeds_is_told(tmp_path, monkeypatch):
    failing(monkeypatch, "vae")
    seeds, choices = (0, 1), {"budget": "5steps", "num_samples": 50}
    page = comparison.compare_seeds(MODELS, tmp_path / "out", seeds, **choices)
    assert f"): {WHY}</li>" in page.read_text(encoding="utf-8")


def test_a_conditional_comparison_says_who_ran_without_the_condition(tmp_path):
    """Nothing else on the page tells a model that was asked for classes from one that was not."""
    choices = {"budget": "5steps", "num_samples": 50, "conditional": True}
    page = comparison.compare(MODELS, tmp_path / "out", **choices)
    told = json.loads((tmp_path / "out" / comparison.NUMBERS).read_text(encoding="utf-8"))
    assert told["without the condition"] == ["independent"]
    assert "ran without it: independent.</p>" in page.read_text(encoding="utf-8")


def test_the_line_of_a_refusal_comes_back_from_the_process_that_trains():
    command = [sys.executable, "-m", "simulacra", "train", "vea", "digits"]
    code, line = comparison._wait_for(command)
    assert code == 78
    assert line.startswith("error[CFG-030]: no model is called 'vea'")


def test_a_run_can_be_judged_again_with_other_settings(compared, tmp_path):
    out, _ = compared
    few = {one.name: one for one in Judgement.read(out / "vae").readings}
    settings = {"importance_samples": 50}
    judged = judge(out / "vae", num_samples=100, settings=settings, ruler=out)
    many = {one.name: one for one in judged.readings}
    assert many["bits per dimension"].value < few["bits per dimension"].value
    told = judge(out / "vae", num_samples=50, ruler=out)
    (line,) = [one for one in told.refused if "Fréchet distance" in one]
    assert "read the kernel distance (KID)" in line
    assert Judgement.read(out / "vae") == told
    assert "(KID)" in comparison.show_run(out / "vae", told).read_text(encoding="utf-8")
    with pytest.raises(Refusal):
        judge(out / "vae", settings={"hidden": 7}, ruler=out)
    with pytest.raises(Refusal, match="budget of 5steps"):
        judge(out / "vae", budget="5steps", ruler=out)


def test_several_seeds_show_their_spread(tmp_path):
    choices = {"budget": "10steps", "num_samples": 150}
    page = comparison.compare_seeds("independent,vae", tmp_path / "out", (0, 1), **choices)
    text = page.read_text(encoding="utf-8")
    assert "mean of 2 training seeds" in text
    assert "seeds 0, 1 (numbers are means over them" in text
    assert "<small>seeds " in text
    told = json.loads((tmp_path / "out" / comparison.NUMBERS).read_text(encoding="utf-8"))
    singles = [
        {
            one.name: one.value
            for one in Judgement.read(tmp_path / "out" / f"seed-{seed}" / "vae").readings
        }
        for seed in (0, 1)
    ]
    for reading in told["models"]["vae"]["readings"]:
        values = [one[reading["name"]] for one in singles]
        assert reading["value"] == pytest.approx(sum(values) / 2)
        assert reading["low"] <= min(values) + 1e-9
        assert reading["high"] >= max(values) - 1e-9
        assert reading["each"] == values
        if reading["unit"] == "share":
            assert 0 <= reading["low"] <= reading["high"] <= 1
    assert told["ruler"]["checks"]
    assert {one["use"] for one in told["verdicts"]} >= {"sampling", "density"}
    splits = [
        json.loads((tmp_path / "out" / f"seed-{seed}" / "vae" / "card.json").read_text())["data"]
        for seed in (0, 1)
    ]
    assert splits[0] == splits[1]
    with pytest.raises(Refusal, match="no spread"):
        comparison.compare_seeds("vae", tmp_path / "one", (0,), **choices)


def test_a_ruler_that_fails_its_test_ranks_nobody(compared):
    out, _ = compared
    told = json.loads((out / "ladder.json").read_text())
    told["checks"][0]["passed"] = False
    kept = (out / "ladder.json").read_text()
    try:
        (out / "ladder.json").write_text(json.dumps(told))
        text = comparison.compare(MODELS, out, **CHOICES).read_text(encoding="utf-8")
    finally:
        (out / "ladder.json").write_text(kept)
    assert "The ruler failed its own test on these data" in text
    assert "draws the most lifelike samples" not in text


def test_binary_data_show_how_many_numbers_a_model_takes():
    card = {"space": {"space": "Images", "channels": 1, "height": 2, "width": 3, "levels": 2}}
    cards = {name: {**card, "parameters": 0} for name in ("independent", "markov-chain")}
    judged = {
        name: Judgement((), {"free parameters": free})
        for name, free in (("independent", 6.0), ("markov-chain", 11.0))
    }
    table = _free_parameters(cards, judged)
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", table)
    assert cells == ["independent", "6", "markov-chain", "11", "table of all states", "63"]
    grey = {"independent": {**cards["independent"], "space": {**card["space"], "levels": 17}}}
    assert not _free_parameters(grey, judged)
