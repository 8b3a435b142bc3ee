"""A run that is to be carried out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from surgery.checkpoint import Checkpoint
from surgery.distill.methods import Method, method_named
from surgery.distill.settings import Settings
from surgery.interface import Environment, LineageStep
from surgery.json_values import Json
from surgery.replay import Transitions


@dataclass(frozen=True)
class Job:
    """A student, its teacher, their environment and all numbers.

    Attributes:
      folder: the run directory.
      student: what learns: untrained, or to be fine-tuned.
      made_as: the `architecture` of an untrained one, its `head`, and whether it is `noisy`.
      whole: the model that it was cut out of, to be given back with it; None: it is all there is.
      teacher: who is imitated; None: nobody.
      environment: the completed contract.
      settings: all numbers.
      device: `cpu` or `cuda`.
      precision: of the student's products; None: what pays here.
      optimizer: `adam` or `rmsprop`.
      allowed: which of its actions a student may take, as the model's contract says; None: all.
      recorded: the teacher's transitions, where they are not to be collected; in fine-tuning those of the model's
        own training, which its replay begins with.
      lineage: what the student's file will say of how it was made.
      save_seconds: time between checkpoints.
    """

    folder: Path
    student: Checkpoint
    teacher: Checkpoint | None
    environment: Environment
    settings: Settings
    device: str = "cpu"
    precision: torch.dtype | None = None
    optimizer: str = "adam"
    recorded: Transitions | None = None
    whole: Checkpoint | None = None
    lineage: LineageStep | None = None
    allowed: tuple[bool, ...] | None = None
    save_seconds: float = 120.0
    made_as: Mapping[str, Json] = field(default_factory=dict)

    @property
    def method(self) -> Method:
        return method_named(self.settings.method)
