"""Runs commands in forks of itself: processes of their own that need not load torch again.

Reads a line of JSON a command from standard input, {"words", "cwd", "out", "err"}, and answers each
with a line that holds its exit code.
"""

import importlib
import json
import os
import sys

from simulacra import shelf
from simulacra.cli.main import main

# Loaded before the forks, for all of them.
shelf.entries()
for name in ("runs.comparison", "runs.judging", "runs.using"):
    importlib.import_module(f"simulacra.{name}")
for name in ("sklearn.linear_model", "sklearn.manifold", "torch._dynamo"):
    importlib.import_module(name)


def run(words: list[str], cwd: str, out: str, err: str) -> None:
    """Be the command, with its streams in files."""
    os.chdir(cwd)
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), stream)
    sys.argv = ["simulacra", *words]
    try:
        main()
    except SystemExit as stopped:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(stopped.code or 0))


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        run(**json.loads(line))
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
