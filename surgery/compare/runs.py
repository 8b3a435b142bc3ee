"""Reading run directories: what `config.json` says was run, and what `metrics.jsonl` says came of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from surgery.arrays import Array
from surgery.errors import CorruptFile, FileError
from surgery.files import check_readable, read_error
from surgery.json_values import Json, loads

CONFIG, METRICS = "config.json", "metrics.jsonl"


@dataclass(frozen=True, eq=False)
class Run:
    """One run.

    Attributes:
      folder: where it is.
      method: what learned.
      game: the environment's id.
      seed: of the run.
      budget: frames that it is to take; None if its configuration does not say.
      frames: (k,) of its evaluations, rising; 0: before the first online step.
      returns: (k,) mean return of each.
      random: mean return of random play, as it measured it; None if it did not.
      teacher: mean return of its teacher; None without one.
      seconds: that it took so far.
      config: all of `config.json`.
    """

    folder: Path
    method: str
    game: str
    seed: int
    budget: int | None
    frames: Array
    returns: Array
    random: float | None
    teacher: float | None
    seconds: float
    config: Mapping[str, Json]

    def at(self, frames: Array) -> Array:
        """Mean returns after so many frames (any shape), between evaluations on the straight line."""
        return np.interp(frames, self.frames, self.returns)


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Run directories: each path, or those anywhere beneath it.

    Raises:
      FileError: a path that does not exist, or that holds no run.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise FileError(f"{path} is not a run directory", hint=f"a run holds {CONFIG} and {METRICS}")
        beneath = [path] if (path / METRICS).is_file() else sorted(one.parent for one in path.rglob(METRICS))
        if not beneath:
            raise FileError(f"{path} holds no run", hint=f"a run holds {CONFIG} and {METRICS}")
        found.update(dict.fromkeys(beneath))
    return list(found)


def read_run(folder: Path) -> Run | None:
    """A run directory; None if the run was not evaluated yet.

    Raises:
      FileError: a file is missing or cannot be read.
      CorruptFile: a file is damaged.
    """
    check_readable(folder / CONFIG)
    config = loads(_text(folder / CONFIG), CONFIG)
    settings, environment = config.get("settings"), config.get("environment")
    if not isinstance(settings, Mapping) or not isinstance(environment, Mapping):
        raise CorruptFile(f"{folder / CONFIG} does not say what was run")
    evaluations: dict[int, float] = {}
    measured: dict[str, float] = {}
    seconds = 0.0
    for line in _lines(folder / METRICS):
        seconds = max(seconds, _number(line.get("seconds")) or 0.0)
        if line.get("kind") == "evaluation" and (mean := _number(line.get("return"))) is not None:
            evaluations[int(_number(line.get("frames")) or 0)] = mean
        for name in ("random", "teacher"):
            if line.get("kind") == "event" and (value := _number(line.get(name))) is not None:
                measured[name] = value
    if not evaluations:
        return None
    frames = sorted(evaluations)
    budget, skip = _number(settings.get("budget")), _number(settings.get("skip")) or 1
    return Run(
        folder=folder,
        method=str(settings.get("method", "unknown")),
        game=str(environment.get("id", "unknown")),
        seed=int(_number(settings.get("seed")) or 0),
        budget=None if budget is None else int(budget * skip),
        frames=np.array(frames, np.int64),
        returns=np.array([evaluations[one] for one in frames], np.float64),
        random=measured.get("random"),
        teacher=measured.get("teacher"),
        seconds=seconds,
        config=config,
    )


def _lines(path: Path) -> Iterator[Mapping[str, Json]]:
    """The lines; the last one may be cut short: the run is going on, or was killed as it wrote."""
    check_readable(path)
    lines = _text(path).split("\n")
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except ValueError as error:
            if number == len(lines):
                return
            raise CorruptFile(f"line {number} of {path} is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise CorruptFile(f"line {number} of {path} is not a JSON object")
        yield value


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise read_error(error, path) from error
    except UnicodeDecodeError as error:
        raise CorruptFile(f"{path} is not text") from error


def _number(value: Json) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(cast(float, value)) if number else None
