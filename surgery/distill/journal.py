"""The log of a run: `metrics.jsonl`, TensorBoard files, and a status for the live line."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from surgery.files import write_error
from surgery.json_values import Json

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Status:
    """Progress of a phase, for the live line.

    Attributes:
      phase: `collecting`, `offline` or `online`.
      done: of `total`, in the unit of the phase.
      total: how many there are.
      unit: `frames` or `updates`.
      rate: per second.
      mean_return: newest mean return of the student; None before the first.
      weight: λ.
      seconds_left: of this phase, at this rate; None before it is known.
    """

    phase: str
    done: int
    total: int
    unit: str
    rate: float
    mean_return: float | None
    weight: float
    seconds_left: float | None


class Journal:
    """One JSON object a line; the same numbers for TensorBoard.

    Every line has `kind` (`train`, `evaluation` or `event`), `phase`, `step` (agent steps online), `frames`, `updates`
    and `seconds`. A line of kind `evaluation` has `return`, `episodes`, `score` and `returns`; one of kind `train`
    has `return` and `episodes` of the episodes that ended since the line before, λ, rates and the parts of the loss.

    Args:
      folder: the run's.
      size: bytes of `metrics.jsonl` that belong to the run so far: what lies beyond is dropped.

    Raises:
      FileError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, *, size: int = 0) -> None:
        self._path, self._shown = folder / METRICS, folder / "tensorboard"
        try:
            self._file: IO[bytes] = self._path.open("ab")
            if self._file.tell() > size:
                self._file.truncate(size)
                self._file.seek(size)  # `size` is asked before anything is written
        except OSError as error:
            raise write_error(error, self._path) from error
        self._boards: dict[Path, SummaryWriter | None] = {}

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def write(self, record: Mapping[str, Json]) -> None:
        """Append one line, at once.

        Raises:
          FileError: the disk is full.
        """
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in record.items()
        }
        try:
            self._file.write(json.dumps(finite, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise write_error(error, self._path) from error
        self._show(record)

    def _show(self, record: Mapping[str, Json]) -> None:
        """Gradient steps offline are no frames: in a folder of their own, or a restart online would take them away."""
        offline = record.get("phase") == "offline"
        folder = self._shown / "offline" if offline else self._shown
        name = f"{record['kind']}_offline" if offline else record["kind"]
        step = record["updates" if offline else "frames"]
        if folder not in self._boards:
            self._boards[folder] = _board(folder, cast(int, step))
        board = self._boards[folder]
        for key, value in record.items():
            if board is not None and isinstance(value, float):
                board.add_scalar(f"{name}/{key}", value, step)

    def close(self) -> None:
        self._file.close()
        for board in self._boards.values():
            if board is not None:
                board.close()


def _board(folder: Path, step: int) -> SummaryWriter | None:
    """What shows numbers from a step on, without those that a dead process has left behind it.

    None where TensorBoard is not installed: the numbers are in `metrics.jsonl` too.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step, flush_secs=60)


class Pace:
    """The speed of a phase, and when to show it next."""

    def __init__(self) -> None:
        self._said = 0.0
        self._phase = ""
        self._begun: tuple[float, int] = (0.0, 0)

    def due(self, seconds: float) -> bool:
        """Whether so much time has passed since this was last true."""
        now = time.monotonic()
        if now - self._said < seconds:
            return False
        self._said = now
        return True

    def rate(self, phase: str, done: int) -> float | None:
        """Per second since the phase was first seen; None before there is anything to divide."""
        now = time.monotonic()
        if phase != self._phase:
            self._phase, self._begun = phase, (now, done)
            return None
        elapsed = now - self._begun[0]
        return (done - self._begun[1]) / elapsed if elapsed > 0 else None
