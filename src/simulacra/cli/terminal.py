"""What the command line shows while it works: a bar on a terminal, a few lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from simulacra.runs.show import Show


def say(text: str) -> None:
    """A line for people, on the error stream, so that standard output stays for results."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def showing(title: str) -> Iterator[Show]:
    """A ``Show`` that draws a bar on a terminal, or a line every fifth of the way."""
    if not sys.stderr.isatty():
        yield Show(say, _Lines(title))
        return
    from rich.console import Console

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%  {task.fields[words]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task(title, total=1.0, words="")
        yield Show(
            lambda text: bar.console.print(text, markup=False, highlight=False),
            lambda share, words: bar.update(task, completed=share, words=words),
        )


class _Lines:
    """A line of progress every fifth of the way, for logs."""

    def __init__(self, title: str) -> None:
        self.title, self.told = title, -1

    def __call__(self, share: float, words: str) -> None:
        if int(share * 5) > self.told:
            self.told = int(share * 5)
            say(f"{self.title}  {share:4.0%}  {words}")
