"""What the package imports is what it declares: an install without the test tools has to run."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def imported():
    """The top-level names of other people's modules that the package imports anywhere."""
    names = set()
    for path in (ROOT / "src" / "simulacra").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names - {"simulacra"}


def declared():
    """The names of the distributions that an install brings, with the optional ones for users."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    users = [one for name, several in extras.items() if name != "test" for one in several]
    return {
        re.split(r"[<>=\[ ]", one)[0].lower().replace("_", "-")
        for one in (*project["dependencies"], *users)
    }


def test_everything_imported_is_declared():
    known = packages_distributions()
    undeclared = {
        name
        for name in imported()
        if not {one.lower().replace("_", "-") for one in known.get(name, [name])} & declared()
    }
    assert not undeclared
