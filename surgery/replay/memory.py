"""Memory that a replay needs, checked before it is made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from surgery.errors import ArgumentError
from surgery.replay.sequences import Window

ROW = 4 + 8 + 1 + 1 + 1 + 1
"""Bytes of a row besides its frame: reward, action, three flags, kind."""
TREE = 32
"""Bytes of a row in a sum tree: leaves and nodes in float64, at most doubled by rounding up to a power of 2."""

MACHINE, GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
"""Where Linux says what is available, of the machine and of the control group that a container is."""


def estimate(
    rows: int,
    frame: Sequence[int],
    dtype: DTypeLike,
    *,
    prioritised: bool = False,
    scores: int = 0,
    window: Window | None = None,
) -> int:
    """Bytes that a replay of `rows` frames, with a teacher's scores of so many actions, takes once it is full."""
    size = int(np.prod(frame, dtype=np.int64)) * np.dtype(dtype).itemsize
    states = 0 if window is None else 4 * window.state * (rows // window.stride)
    return rows * (size + ROW + 4 * scores + (TREE if prioritised else 0)) + states


def available() -> int | None:
    """Bytes of host memory that can still be taken, of the machine or of the control group; None if unknown."""
    found = [amount for amount in (_machine(), _group()) if amount is not None]
    return min(found, default=None)


def check_memory(frames: int, needed: int, *, beside: int = 0, setting: str | None = "replay") -> None:
    """Refuse a replay that would not fit.

    Args:
      frames: its capacity.
      needed: the bytes it takes, from `estimate`.
      beside: the bytes that another one takes at the same time.
      setting: the name of its capacity; None: it holds a recording.

    Raises:
      ArgumentError: more than nine tenths of what is available; says both numbers and a capacity that fits.
    """
    free = available()
    if free is None or needed + beside <= 0.9 * free:
        return
    fits = max(1, int(frames * (0.9 * free - beside) / needed))
    other = f" and {beside / 1e9:.1f} GB are taken by another one" if beside else ""
    raise ArgumentError(
        f"a replay of {frames:,} frames takes {needed / 1e9:.1f} GB of memory{other}, {free / 1e9:.1f} GB is available",
        hint=f"at most {fits:,} recorded frames fit"
        if setting is None
        else f"keep fewer frames: --set {setting}={fits}",
    )


def _machine() -> int | None:
    try:
        lines = MACHINE.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def _group() -> int | None:
    try:
        limit, used, kinds = ((GROUP / f"memory.{name}").read_text() for name in ("max", "current", "stat"))
    except OSError:
        return None
    if not limit.strip().isdecimal():
        return None
    held = dict(line.split() for line in kinds.splitlines())
    cached = int(held["active_file"]) + int(held["inactive_file"])  # given back where memory runs short
    return int(limit) - int(used) + cached
