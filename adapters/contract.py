"""Contract and lineage as a member of a framework's own file, which has no other place for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from surgery.checkpoint import Checkpoint
from surgery.errors import CorruptFile
from surgery.interface import Environment, LineageStep

SCHEMA = 1


def notes_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the file is to carry; nothing if there is nothing to say."""
    if not checkpoint.lineage and checkpoint.environment == Environment():
        return {}
    return {
        "schema": SCHEMA,
        "environment": checkpoint.environment.to_json(),
        "lineage": [step.to_json() for step in checkpoint.lineage],
    }


def read_notes(notes: Mapping[str, Any]) -> tuple[Environment, tuple[LineageStep, ...]]:
    """The inverse of `notes_of`.

    Raises:
      CorruptFile: the notes are damaged, or of a later version.
    """
    if not notes:
        return Environment(), ()
    steps = notes.get("lineage")
    if notes.get("schema") != SCHEMA or not isinstance(steps, list):
        raise CorruptFile("the notes in the file are damaged, or of a later version of this program")
    return Environment.from_json(notes.get("environment")), tuple(map(LineageStep.from_json, steps))
