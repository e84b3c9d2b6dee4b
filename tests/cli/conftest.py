"""The `simulacra` command for tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def simulacra(tmp_path_factory):
    """Runs a command in a process of its own; gives back the finished process."""
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("forks.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
    )
    streams = tmp_path_factory.mktemp("streams")
    out, err = streams / "out", streams / "err"

    def command(*words, cwd):
        asked = {"words": [*map(str, words)], "cwd": str(cwd), "out": str(out), "err": str(err)}
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(words, code, out.read_text(), err.read_text())

    yield command
    server.stdin.close()
    server.wait(timeout=10)
    server.stdout.close()
