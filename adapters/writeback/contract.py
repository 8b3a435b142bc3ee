"""Contract, lineage and meaning as a member of a framework's own file, which has no other place for them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from surgery.checkpoint import Checkpoint
from surgery.errors import CorruptFile
from surgery.interface import Environment, Interface, LineageStep

NAME = "surgery.json"
SCHEMA = 1


@dataclass(frozen=True)
class Notes:
    """What a file says of itself.

    Attributes:
      environment: the contract. lineage: how it came to be.
      interface: what inputs and outputs mean; None if only the framework's file says so.
    """

    environment: Environment = field(default_factory=Environment)
    lineage: tuple[LineageStep, ...] = ()
    interface: Interface | None = None

    @staticmethod
    def parse(content: bytes | None) -> Notes:
        """The inverse of `notes_of`.

        Raises:
          CorruptFile: the notes are damaged, or of a later version.
        """
        if content is None:
            return Notes()
        try:
            record = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise CorruptFile(f"the member '{NAME}' is not JSON: {error}") from error
        steps = record.get("lineage") if isinstance(record, Mapping) else None
        if not isinstance(record, Mapping) or record.get("schema") != SCHEMA or not isinstance(steps, list):
            raise CorruptFile(f"the member '{NAME}' is damaged, or of a later version of this program")
        meaning = record.get("interface")
        return Notes(
            Environment.from_json(record.get("environment")),
            tuple(map(LineageStep.from_json, steps)),
            None if meaning is None else Interface.from_json(meaning),
        )

    def meaning(self, found: Interface) -> Interface:
        """The noted interface, if it is about the inputs and outputs that were found."""
        if self.interface is None or _names(self.interface) != _names(found):
            return found
        return self.interface


def notes_of(checkpoint: Checkpoint, found: Interface) -> bytes | None:
    """What the file is to carry; None if there is nothing to say.

    Args:
      found: the interface that the framework's file itself tells.
    """
    meaning = None if checkpoint.interface == found else checkpoint.interface
    if not checkpoint.lineage and checkpoint.environment == Environment() and meaning is None:
        return None
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "environment": checkpoint.environment.to_json(),
        "lineage": [step.to_json() for step in checkpoint.lineage],
        "interface": None if meaning is None else meaning.to_json(),
    }
    return json.dumps(record).encode()


def since(checkpoint: Checkpoint) -> Sequence[LineageStep]:
    """What was done since the file was read, as `source["seen"]` steps of lineage tell."""
    seen = checkpoint.source.get("seen", 0)
    return checkpoint.lineage[seen if isinstance(seen, int) else 0 :]


def bare(interface: Interface) -> Interface:
    """An interface without what only a person can have said."""
    inputs, outputs = (
        tuple(replace(port, low=None, high=None, labels=None) for port in ports)
        for ports in (interface.inputs, interface.outputs)
    )
    return Interface(inputs, outputs)


def _names(interface: Interface) -> list[str]:
    return [port.name for port in (*interface.inputs, *interface.outputs)]
