"""A checkpoint is whole or not there: killed, cut, flipped, or out of disk."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from simulacra.refusals import Refusal
from simulacra.runs import checkpoint

TENSORS = {"model/weight": torch.arange(6.0).reshape(2, 3), "average/weight": torch.ones(2)}
PLAIN = {"clock": {"rounds": 3}, "seconds": 1.5}


def newest(run: Path) -> dict:
    found = checkpoint.load_newest(run, lambda text: None)
    assert found is not None
    return found[1]


def test_saved_state_comes_back_exactly(tmp_path):
    checkpoint.save(tmp_path, 3, TENSORS, PLAIN)
    tensors, plain = checkpoint.load_newest(tmp_path, pytest.fail)
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert {key: plain[key] for key in PLAIN} == PLAIN


def test_two_newest_are_kept(tmp_path):
    for rounds in range(5):
        checkpoint.save(tmp_path, rounds, TENSORS, PLAIN | {"seconds": rounds})
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000000003", "step-000000004"]
    assert newest(tmp_path)["seconds"] == 4


def test_never_saved_is_none_and_all_damaged_is_refused(tmp_path):
    assert checkpoint.load_newest(tmp_path, pytest.fail) is None
    path = checkpoint.save(tmp_path, 1, TENSORS, PLAIN)
    (path / "state.json").unlink()
    with pytest.raises(Refusal, match="every checkpoint"):
        checkpoint.load_newest(tmp_path, lambda text: None)


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json"])
def test_every_changed_byte_is_found_and_the_older_one_is_used(tmp_path, name):
    checkpoint.save(tmp_path, 1, TENSORS, PLAIN | {"seconds": 1})
    path = checkpoint.save(tmp_path, 2, TENSORS, PLAIN | {"seconds": 2})
    content = (path / name).read_bytes()
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1
        (path / name).write_bytes(bytes(changed))
        told: list[str] = []
        _, plain = checkpoint.load_newest(tmp_path, told.append)
        # A changed blank in the manifest changes nothing that it says.
        meaning = name == "manifest.json" and told == []
        if meaning:
            assert json.loads(bytes(changed)) == json.loads(content)
        else:
            assert plain["seconds"] == 1
            assert "step-000000002" in told[0]
    (path / name).write_bytes(content[: len(content) // 2])
    assert newest(tmp_path)["seconds"] == 1


KILLED = """
import json, os, sys
from pathlib import Path
import torch
from simulacra.runs import checkpoint

tensors = {"model/weight": torch.arange(6.0).reshape(2, 3)}
removing = ("os.remove", "os.rmdir", "shutil.rmtree")


def save(run, fatal, how):
    calls = 0

    def watched(event, arguments):
        nonlocal calls
        changes = event in ("os.rename", "os.mkdir") or (event in removing and how == "kill")
        if event == "open" and isinstance(arguments[2], int):
            changes = bool(arguments[2] & (os.O_WRONLY | os.O_CREAT))
        if changes:
            calls += 1
            if calls == fatal:
                if how == "kill":
                    os.kill(os.getpid(), 9)
                raise OSError(28, "No space left on device")

    for rounds in (1, 2):
        checkpoint.save(run, rounds, tensors, {"seconds": rounds})
    sys.addaudithook(watched)
    try:
        checkpoint.save(run, 3, tensors, {"seconds": 3})
    except Exception as error:
        return 74 if type(error).__name__ == "Refusal" else 70
    return 0 if calls < fatal else 1


# One fork a save: each is a process that can be killed, and none has to load torch again.
folder, how = Path(sys.argv[1]), sys.argv[2]
for fatal in range(1, 60):
    child = os.fork()
    if child == 0:
        os._exit(save(folder / str(fatal), fatal, how))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(code, flush=True)
    if code == 0:
        break
"""


@pytest.mark.parametrize("how", ["kill", "full"])
def test_a_kill_or_a_full_disk_at_every_write_loses_nothing(tmp_path, how):
    command = [sys.executable, "-c", KILLED, str(tmp_path), how]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    codes = [int(line) for line in ended.stdout.split()]
    for fatal, code in enumerate(codes, 1):
        kept = newest(tmp_path / str(fatal))["seconds"]
        assert kept in (2, 3), (fatal, ended)
        # Exit 1: the failed call did no harm (making a folder that is there), and the save went on.
        assert code in (0, -9) if how == "kill" else (0, 1, 74), (fatal, ended)
        assert code != 1 or kept == 3
    assert codes[-1] == 0, "the save never came to its end"
    assert len(codes) > 5
    assert set(codes) > {0}


def test_a_save_that_cannot_fit_is_refused_before_it_starts(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, TENSORS, PLAIN)
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(Refusal) as caught:
        checkpoint.save(tmp_path, 2, TENSORS, PLAIN)
    assert caught.value.exit_code == 74
    assert os.listdir(tmp_path / "checkpoints") == ["step-000000001"]
