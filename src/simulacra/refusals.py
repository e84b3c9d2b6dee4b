"""Refusals: the one way in which Simulacra says no.

A refusal names the input, the reason and the way out, in one line. The command line prints it
and exits with its code (the sysexits numbers where one exists); Python code sees an exception.
"""

from __future__ import annotations

from typing import Final

EXIT_CODES: Final = {
    "USE": 2,  # a verb or an option that there is not
    "CFG": 78,  # configuration
    "DATA": 65,  # bad data
    "FILE": 66,  # an input that is not there, or not what it should be
    "CKPT": 66,  # a checkpoint or a run folder that cannot be used
    "CAN": 78,  # a capability that this model does not have
    "NUM": 80,  # training diverged
    "IO": 74,  # disk full, input or output error
    "DEP": 69,  # something optional that is not installed, a device that is not there
    "STOP": 75,  # stopped early, and resumable
    "BUG": 70,
}

KEPT_IN: Final = "SIMULACRA_REFUSAL"
"""The environment variable with the path of a file that a command keeps the line of its refusal in, so
that whoever started it knows why it failed while its error stream goes to the terminal."""


class Refusal(Exception):
    """What came and why it cannot be used, the way out, and a stable code ``AREA-NNN``."""

    def __init__(self, code: str, reason: str, *, way_out: str) -> None:
        super().__init__(f"{reason}; {way_out}")
        self.code = code
        self.reason = reason
        self.way_out = way_out

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.code.split("-")[0]]

    def line(self) -> str:
        """The whole message on one line, ready for the terminal."""
        text = " ".join(f"{self.reason}: {self.way_out}".split())
        return f"error[{self.code}]: {text}"


def shown(value: object, limit: int = 80) -> str:
    """A user's value made safe to print: quoted, no control characters, its middle left out if long."""
    text = repr(str(value))
    return (
        text if len(text) <= limit else f"{text[: limit // 3]}…{text[-(limit - limit // 3 - 1) :]}"
    )
