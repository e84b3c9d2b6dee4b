"""Kill training at random times, resume it, and compare with a run that was never stopped.

    python benchmarks/kills.py 20 > benchmarks/results/kills.json
    python benchmarks/kills.py 5 vq-vae aae

The models named, or the best known of each family, take turns. The weights, the averages, the
optimisers and the clock of the newest checkpoint, and the model as it is used, have to be the same bit
for bit.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from simulacra import shelf

STEPS = 60


def digest(run: Path) -> str:
    """SHA-256 of the newest checkpoint's tensors and of the model."""
    last = max((run / "checkpoints").glob("step-*"))
    content = (last / "state.safetensors").read_bytes()
    return hashlib.sha256(content + (run / "model.safetensors").read_bytes()).hexdigest()


def newest(run: Path) -> int:
    """The round of the newest checkpoint, -1 before there is one."""
    return max((int(one.name[5:]) for one in run.glob("checkpoints/step-*")), default=-1)


def command(*words: str) -> list[str]:
    """The command line, in this very environment."""
    return [sys.executable, "-m", "simulacra", "train", *words]


def quiet(words: list[str]) -> int:
    """Run to the end; the exit code."""
    return subprocess.run(words, check=False, capture_output=True).returncode


def main() -> None:
    """Kill ``sys.argv[1]`` runs in mid-training, and print one JSON object.

    A run that ended before its kill does not count, and its model is killed earlier the next time.
    """
    count, chance = int(sys.argv[1]), random.Random(0)
    best_known = [entry.name for entry in shelf.entries() if entry.representative]
    names = sys.argv[2:] or best_known
    kills: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as home:
        common = [
            "digits",
            "--budget",
            f"{STEPS}steps",
            "--batch-size",
            "16",
            "--save-every",
            "0.05",
        ]
        whole: dict[str, str] = {}
        for name in names:
            folder = Path(home) / f"{name}-whole"
            assert quiet(command(name, *common, "--out", str(folder))) == 0, name
            whole[name] = digest(folder)
        reach = dict.fromkeys(names, STEPS)
        for number in itertools.count():
            if sum(bool(one["killed"]) for one in kills) == count:
                break
            name = names[number % len(names)]
            folder = Path(home) / f"{name}-{number}"
            child = subprocess.Popen(
                command(name, *common, "--out", str(folder)),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            target, deadline = chance.randrange(reach[name]), time.monotonic() + 60
            while newest(folder) < target and child.poll() is None and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.001 * reach[name] * chance.random())
            child.send_signal(signal.SIGKILL)
            code = child.wait()
            if code == 0:
                reach[name] = max(1, reach[name] // 4)
            elif shelf.read_card(folder)["status"] != "finished":
                assert quiet(command("--resume", str(folder))) == 0, folder
            same = digest(folder) == whole[name]
            kills.append({"model": name, "round": target, "killed": code != 0, "identical": same})
            print(kills[-1], file=sys.stderr, flush=True)
    stopped = sum(bool(one["killed"]) for one in kills)
    identical = sum(bool(one["identical"]) for one in kills)
    print(
        json.dumps(
            {"runs": count, "killed": stopped, "identical": identical, "each": kills}, indent=1
        )
    )


if __name__ == "__main__":
    main()
