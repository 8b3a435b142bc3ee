"""How far a run has come: plain numbers, kept in every checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, cast

from surgery.errors import CorruptFile
from surgery.json_values import Json

PHASES = ("measuring", "collecting", "offline", "online", "done")


@dataclass
class Progress:
    """Counts since the beginning of a run; changed by the loop alone.

    Attributes:
      phase: one of `PHASES`.
      collected: transitions of the teacher.
      offline: gradient steps on them.
      steps: agent steps online.
      updates: gradient steps in all.
      owed: fraction of a gradient step that is due.
      episodes: of the student, ended online.
      evaluated: evaluations online.
      seconds: spent, over all processes.
      saved: checkpoints written.
      starts: processes that have worked on it.
      teacher: mean return of the teacher and its standard error; None before it is measured, or without one.
      teacher_length: mean length of the teacher's episodes in agent steps.
      random: mean return of random play and its standard error.
      mean_return: of the student's newest evaluation.
      best_return: of its best one, the newest of equals.
      best_steps: agent steps online before that.
      recent: returns of training episodes since the last line of metrics.
    """

    phase: str = "measuring"
    collected: int = 0
    offline: int = 0
    steps: int = 0
    updates: int = 0
    owed: float = 0.0
    episodes: int = 0
    evaluated: int = 0
    seconds: float = 0.0
    saved: int = 0
    starts: int = 0
    teacher: list[float] | None = None
    teacher_length: float | None = None
    random: list[float] | None = None
    mean_return: float | None = None
    best_return: float | None = None
    best_steps: int | None = None
    recent: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Json]:
        return asdict(self)

    @staticmethod
    def from_json(record: Json) -> Progress:
        """Raises: CorruptFile."""
        known = {one.name for one in fields(Progress)}
        if not isinstance(record, Mapping) or set(record) != known or record["phase"] not in PHASES:
            raise CorruptFile("the checkpoint's progress is not that of this version")
        return Progress(**cast("dict[str, Any]", dict(record)))
