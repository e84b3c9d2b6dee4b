"""The command line: verbs, and the one place where refusals become exit codes.

Commands import what they need when they run, so that ``simulacra --help`` does not wait for torch.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import exceptions

from simulacra.cli import averaging, comparing, detecting, looking, sampling, training, using
from simulacra.refusals import KEPT_IN, Refusal

app = typer.Typer(
    help="Every family of generative model behind one contract, compared on one honest ruler.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        import simulacra

        typer.echo(simulacra.__version__)
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of refusals.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Every family of generative model behind one contract, compared on one honest ruler."""
    if debug:
        os.environ["SIMULACRA_DEBUG"] = "1"


for verbs in (comparing, training, averaging, sampling, using, detecting, looking):
    verbs.register(app)


def main() -> None:
    """Run a command; a refusal is one line on the error stream and an exit code, and no traceback."""
    try:
        code = app(standalone_mode=False)
    except Refusal as refusal:
        code = _told(refusal)
    except exceptions.Abort:
        code = 130
    except exceptions.TyperException as error:
        words = error.format_message().rstrip(".")
        code = _told(
            Refusal("USE-001", words, way_out="`simulacra VERB --help` shows what there is")
        )
    except KeyboardInterrupt:
        print("stopped before there was anything to keep", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if "SIMULACRA_DEBUG" in os.environ:
            raise
        bug = Refusal(
            "BUG-001",
            f"Simulacra failed with {type(error).__name__} ({error})",
            way_out="this is our bug: run again with `simulacra --debug …` and report what it prints",
        )
        code = _told(bug)
    sys.exit(code if isinstance(code, int) else 0)


def _told(refusal: Refusal) -> int:
    if KEPT_IN in os.environ:
        Path(os.environ[KEPT_IN]).write_text(refusal.line(), encoding="utf-8")
    if "SIMULACRA_DEBUG" in os.environ:
        raise refusal
    print(refusal.line(), file=sys.stderr)
    return refusal.exit_code
