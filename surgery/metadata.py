"""What a model's own file says of it: an entry of the metadata of an ONNX model, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from surgery.errors import CorruptFile
from surgery.interface import Environment, Interface, LineageStep
from surgery.json_values import Fields, Json, check_schema, dumps, loads

SCHEMA = 1
METADATA_KEY = "surgery"
"""The entry's name."""


@dataclass(frozen=True)
class Record:
    """What the metadata says.

    Attributes:
      interface: what inputs and outputs mean.
      environment: what the model was trained for.
      lineage: how it was made, oldest step first.
      source: what a framework needs to get it back.
      weights: the `file` beside the model that holds them, and its `digest`; None: they are inside.
      optimizer: the same of the optimizer's state; None: there is none.
      copies: prefix of parameter names -> prefix of those that they are a copy of.
    """

    interface: Interface
    environment: Environment = field(default_factory=Environment)
    lineage: tuple[LineageStep, ...] = ()
    source: Mapping[str, Json] = field(default_factory=dict)
    weights: Mapping[str, str] | None = None
    optimizer: Mapping[str, str] | None = None
    copies: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def parse(text: str) -> Record:
        """Raises: FileError: of a schema that this version does not know. CorruptFile."""
        try:
            record = loads(text, "surgery metadata")
        except CorruptFile as error:
            hint = f"if another program wrote it, remove the metadata entry '{METADATA_KEY}'"
            raise CorruptFile(error.message, hint=hint) from error
        check_schema(record, "surgery metadata", SCHEMA)
        fields = Fields(record, "surgery metadata")
        interface = Interface.from_json(fields.mapping("interface"))
        environment = Environment.from_json(fields.mapping("environment"))
        lineage = tuple(LineageStep.from_json(step) for step in fields.items("lineage"))
        source = fields.mapping("source")
        weights, optimizer = (_reference(fields.anything(name), name) for name in ("weights", "optimizer"))
        copies = Fields({"copies": fields.anything("copies") or {}}, "surgery metadata").mapping("copies")
        fields.done(ignore=("schema",))
        if not all(isinstance(original, str) for original in copies.values()):
            raise CorruptFile("the metadata lists a copy without naming what it copies")
        named = {copy: str(original) for copy, original in copies.items()}
        return Record(interface, environment, lineage, source, weights, optimizer, named)

    def text(self) -> str:
        """What `parse` reads."""
        return dumps(
            {
                "schema": SCHEMA,
                "interface": self.interface.to_json(),
                "environment": self.environment.to_json(),
                "lineage": [step.to_json() for step in self.lineage],
                "source": self.source,
                "weights": self.weights,
                "optimizer": self.optimizer,
                **({"copies": dict(self.copies)} if self.copies else {}),
            }
        )


def _reference(record: Json, what: str) -> Mapping[str, str] | None:
    if record is None:
        return None
    fields = Fields(record, f"reference to the {what}")
    reference = {"file": fields.text("file"), "digest": fields.text("digest")}
    fields.done()
    if Path(reference["file"]).name != reference["file"]:
        raise CorruptFile(f"the {what} file '{reference['file']}' is not in the model's own folder")
    return reference
