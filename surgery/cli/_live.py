"""The live line of a long run, on a terminal's stderr; elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from surgery.cli._output import Output
from surgery.errors import number_text

if TYPE_CHECKING:
    from surgery.distill import Status

QUIET_SECONDS = 60.0


@contextmanager
def live(output: Output) -> Iterator[Callable[[Status], None]]:
    """A callback that shows the progress of a run."""
    if output.quiet or output.as_json:
        yield lambda status: None
        return
    if not sys.stderr.isatty():
        yield _Sparse(output)
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as line:
        yield lambda status: line.update(text(status))


class _Sparse:
    """For logs: one line a minute."""

    def __init__(self, output: Output) -> None:
        self._output, self._said = output, time.monotonic()

    def __call__(self, status: Status) -> None:
        if time.monotonic() - self._said >= QUIET_SECONDS:
            self._said = time.monotonic()
            self._output.note(text(status))


def text(status: Status) -> str:
    """`online 12,000 of 51,587 frames · 310/s · return 4.2 · λ 0.43 · 2 min left`"""
    rate = f"{status.rate:,.0f}" if status.rate >= 10 else f"{status.rate:.2g}"
    parts = [f"{status.phase} {status.done:,} of {status.total:,} {status.unit}", f"{rate}/s"]
    if status.mean_return is not None:
        parts.append(f"return {number_text(status.mean_return, 4)}")
    parts.append(f"λ {status.weight:.2f}")
    if status.seconds_left is not None:
        parts.append(f"{duration(status.seconds_left)} left")
    return " · ".join(parts)


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 20 min`, `2 d 4 h`"""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"
