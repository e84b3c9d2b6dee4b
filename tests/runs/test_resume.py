"""Runs that are killed at random go on as if they had never been."""

import hashlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from simulacra import shelf
from simulacra.refusals import Refusal
from simulacra.runs.recipe import Recipe
from simulacra.runs.selfcheck import resume_is_exact
from simulacra.runs.training import resume, train


def test_a_stop_in_between_changes_no_bit(tmp_path):
    told = dict(resume_is_exact(tmp_path, shelf.entries()))
    assert set(told) == {entry.name for entry in shelf.entries()}
    assert all(told.values()), told


def simulacra(*words: str) -> list[str]:
    return [sys.executable, "-m", "simulacra", *words]


def digest(run: Path) -> str:
    newest = max((run / "checkpoints").glob("step-*"))
    state = (newest / "state.safetensors").read_bytes()
    return hashlib.sha256((run / "model.safetensors").read_bytes() + state).hexdigest()


@pytest.mark.parametrize("asked", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_resumes_bit_for_bit(tmp_path, asked):
    average = (one for one in shelf.entries() if one.cls.toy().game().average)
    model = next(one.name for one in average if one.representative)
    steps = "60steps"
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    common = ["digits", "--budget", steps, "--save-every", "0.05", "--batch-size", "16"]
    subprocess.run(simulacra("train", model, *common, "--out", str(whole)), check=True)
    child = subprocess.Popen(simulacra("train", model, *common, "--out", str(cut)))
    chance = random.Random(0)
    for _ in range(600):
        if list((cut / "checkpoints").glob("step-*")) or child.poll() is not None:
            break
        time.sleep(0.05)
    time.sleep(chance.random() * 0.5)
    child.send_signal(asked)
    code = child.wait()
    if code != 0:
        assert code == (75 if asked == signal.SIGTERM else -signal.SIGKILL)
        subprocess.run(simulacra("train", "--resume", str(cut)), check=True)
    assert digest(cut) == digest(whole)


def test_a_finished_run_goes_on_when_its_budget_grows(tmp_path):
    run = tmp_path / "run"
    train(Recipe("vae", budget="5steps"), run)
    with pytest.raises(Refusal, match="has finished its budget"):
        resume(run)
    numbers = resume(run, budget="9steps")
    assert numbers["rounds"] == 9


def test_other_data_than_the_runs_own_are_refused(tmp_path):
    data = tmp_path / "x.npy"
    np.save(data, np.random.default_rng(0).normal(size=(50, 3)))
    train(Recipe("vae", data=str(data), budget="5steps"), tmp_path / "run")
    np.save(data, np.random.default_rng(1).normal(size=(50, 3)))
    with pytest.raises(Refusal, match="are not those that"):
        resume(tmp_path / "run", budget="9steps")
