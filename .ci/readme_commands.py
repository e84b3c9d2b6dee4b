"""Run the README's own commands, in order, as a reader would; the first that fails ends it."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def blocks(kind: str) -> list[str]:
    """The README's fenced blocks of one language."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def main() -> None:
    """Shell lines first, each on its own; then the Python blocks."""
    path = os.pathsep.join([str(ROOT / ".venv" / "bin"), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path}
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]
    commands = [line.split() for line in lines if line != "./go test"]
    commands += [["python", "-c", block] for block in blocks("python")]
    for command in commands:
        started = time.monotonic()
        print("$", " ".join(command).partition("\n")[0], flush=True)
        code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        print(f"  {time.monotonic() - started:.0f} s", flush=True)
        if code:
            sys.exit(f"the README's command failed with exit code {code}: {' '.join(command)}")
    print(f"{len(commands)} passed, 0 failed")


if __name__ == "__main__":
    main()
