#!/usr/bin/env python3
"""Set everything up and run it, from nothing but Python 3.11 to 3.13.

    ./go demo    compare seven models on real digits; the page's path is printed last
    ./go test    lint, types, import layers, tests
    ./go run …   the `simulacra` command with any arguments

On Windows: `python go demo`. The environment is made in .venv once, and again only when
pyproject.toml or constraints.txt changed. Only the standard library is used here.
"""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
HOME = ROOT / ".venv"
BIN = HOME / ("Scripts" if os.name == "nt" else "bin")
STAMP = HOME / "installed.sha256"


def digest(kind: str) -> str:
    """What the environment was made from; another digest means making it again."""
    files = (ROOT / "pyproject.toml", ROOT / "constraints.txt")
    content = b"".join(file.read_bytes() for file in files)
    return hashlib.sha256(content + kind.encode() + sys.version.encode()).hexdigest()


def install(kind: str) -> None:
    """Make .venv with everything in it, unless it is there already."""
    stamps = STAMP.read_text().split() if STAMP.is_file() else []
    if digest(kind) in stamps or digest("test") in stamps:
        return
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        sys.exit(f"Python {sys.version.split()[0]} is not supported: use 3.11, 3.12 or 3.13")
    print(f"setting up {HOME.name} (once)", file=sys.stderr, flush=True)
    venv.create(HOME, with_pip=True, clear=not BIN.exists())
    python = str(BIN / ("python.exe" if os.name == "nt" else "python"))
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    extra = "[test]" if kind == "test" else ""
    wanted = ["-c", str(ROOT / "constraints.txt"), "-e", f"{ROOT}{extra}"]
    has_uv = subprocess.run([*pip, "uv"], check=False).returncode == 0
    links = wheel_folders()
    if has_uv:
        command = [python, "-m", "uv", "pip", "install", "--quiet", "--python", python]
        # A torch wheel that the machine offers is the right one for it; elsewhere uv looks for a GPU.
        offered = any("torch-" in name.name for link in links for name in Path(link).glob("*.whl"))
        backend = [] if offered else ["--torch-backend=auto"]
        environment = {**os.environ, "UV_FIND_LINKS": ",".join(links)} if links else os.environ
        done = subprocess.run([*command, *backend, *wanted], env=environment, check=False)
        has_uv = done.returncode == 0
    if not has_uv:
        subprocess.run([*pip, *wanted], check=True)
    STAMP.write_text("\n".join([*stamps, digest(kind)]))


def wheel_folders() -> list[str]:
    """Folders of wheels that pip is set up with; uv does not read pip's settings by itself."""
    for name in ("UV_FIND_LINKS", "PIP_FIND_LINKS"):
        if os.environ.get(name):
            return os.environ[name].replace(",", " ").split()
    asked = [sys.executable, "-m", "pip", "config", "get", "global.find-links"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    return answer.stdout.split() if answer.returncode == 0 else []


def call(*words: str) -> int:
    """Run one tool of the environment in the repository's root."""
    program, *rest = words
    print(f"$ {' '.join(words)}", file=sys.stderr, flush=True)
    return subprocess.run([str(BIN / program), *rest], cwd=ROOT, check=False).returncode


def demo() -> int:
    """The comparison on the embedded digits."""
    return call("simulacra", "compare", "digits", "--budget", "45s", "--out", "runs/demo")


def test() -> int:
    """Everything that has to hold before a change lands."""
    checks = (
        ("ruff", "format", "--check", "."),
        ("ruff", "check", "."),
        ("mypy",),
        ("lint-imports",),
        ("pytest", "-n", "2"),
    )
    return next((code for check in checks if (code := call(*check))), 0)


def main() -> int:
    """Do what the first word says."""
    verb, *rest = sys.argv[1:] or [""]
    if verb not in ("demo", "test", "run"):
        print(__doc__, file=sys.stderr)
        return 2
    install("test" if verb == "test" else "use")
    if verb == "run":
        return call("simulacra", *rest)
    return {"demo": demo, "test": test}[verb]()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
