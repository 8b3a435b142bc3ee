"""What only some commands need, and what to type where it is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from surgery.errors import MissingDependency


@contextmanager
def playing_in(framework: str, install: str) -> Iterator[None]:
    """Import what plays in a framework.

    Raises:
      MissingDependency: it, or something that it needs for that, is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise MissingDependency(
            f"this plays in {framework}, which is not installed: {error}", hint=install
        ) from error
