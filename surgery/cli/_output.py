"""What a command prints: one JSON object, or text made from the same report; progress and log on stderr."""

from __future__ import annotations

import json
import logging
import math
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO

import click

from surgery.errors import number_text

UNBOUNDED = 10_000  # columns of a table that no terminal shows: nothing is wrapped, so that grep finds it


@dataclass(frozen=True)
class Output:
    """How a command prints.

    Args:
      as_json: one object on stdout instead of text.
      quiet: no text at all; the exit status is the answer.
    """

    as_json: bool
    quiet: bool

    @classmethod
    def start(cls, *, as_json: bool, quiet: bool, verbosity: int) -> Output:
        """Send the library's log to stderr: warnings, with 1 also information, with 2 everything."""
        level = (logging.ERROR if quiet else logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
        logging.basicConfig(
            level=level, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s", force=True
        )
        logging.captureWarnings(True)
        if not verbosity:
            warnings.simplefilter("ignore")  # what other libraries tell their callers is not for our user
        return cls(as_json=as_json, quiet=quiet)

    def show(self, report: Mapping[str, object], text: Callable[[], str]) -> None:
        """Print the result of the command, as an object or as text."""
        if self.as_json:
            click.echo(to_json(report))
        elif not self.quiet:
            click.echo(text())

    def note(self, text: str) -> None:
        """Print a line about the run, on stderr."""
        if not (self.quiet or self.as_json):
            click.echo(text, err=True)

    @contextmanager
    def step(self, label: str) -> Iterator[None]:
        """Show on a terminal's stderr what is being done."""
        if self.quiet or self.as_json or not sys.stderr.isatty():
            yield
            return
        from rich.console import Console

        with Console(stderr=True).status(label):
            yield

    @contextmanager
    def counting(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """Show on a terminal's stderr how many are done, and of how many."""
        if self.quiet or self.as_json or not sys.stderr.isatty():
            yield lambda done, total: None
            return
        from rich.console import Console

        with Console(stderr=True).status(label) as status:
            yield lambda done, total: status.update(f"{label}: {done:,} of {total:,}")


def to_json(report: Mapping[str, object]) -> str:
    """A report as JSON text with its schema number; numbers that JSON cannot hold become null."""
    return json.dumps(_finite({"schema": 1, **report}), indent=2, ensure_ascii=False, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns aligned by spaces: folded to a terminal, else of any length; empty ones are left out."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    columns = [
        (heading, cells)
        for heading, *cells in zip(headings, *rows, strict=True)
        if any(cell != "" for cell in cells)
    ]
    for heading, cells in columns:
        numeric = all(isinstance(cell, (int, float)) for cell in cells)
        grid.add_column(Text(heading), overflow="fold", justify="right" if numeric else "left")
    for row in zip(*(cells for _, cells in columns), strict=True):
        grid.add_row(
            *(Text(number_text(cell) if isinstance(cell, (int, float)) else str(cell)) for cell in row)
        )
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else UNBOUNDED
    console = Console(file=StringIO(), width=width, color_system=None)
    with console.capture() as text:
        console.print(grid)
    return "\n".join(line.rstrip() for line in text.get().splitlines())


def section(title: str, body: str) -> str:
    """A titled, indented block."""
    return "\n".join([title, *(f"  {line}" if line else "" for line in body.splitlines())])


def size(count: int) -> str:
    """A number of bytes, in decimal units as files are measured."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} TB"


def plural(count: int, noun: str) -> str:
    """`1 tensor`, `2 tensors`"""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
