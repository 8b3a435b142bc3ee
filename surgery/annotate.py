"""What a person knows of a model and the file does not say."""

from __future__ import annotations

from collections.abc import Mapping

from surgery.checkpoint import Checkpoint
from surgery.interface import Environment, PortPatch
from surgery.json_values import Json


def annotate(
    checkpoint: Checkpoint,
    *,
    inputs: Mapping[str, PortPatch] | None = None,
    outputs: Mapping[str, PortPatch] | None = None,
    environment: str | Environment | None = None,
    settings: Mapping[str, Json] | None = None,
) -> Checkpoint:
    """Declare what inputs and outputs mean, and the environment.

    Args:
      checkpoint: left as it is.
      inputs: input name -> what to declare about it.
      outputs: output name -> what to declare about it.
      environment: its id, or an `Environment` that replaces the one recorded.
      settings: added to the environment's settings.

    Raises:
      UnknownName: a port that the model does not have.
      ArgumentError: a kind that the port cannot have, bounds out of order, a label twice, a setting with a
        value that it cannot have.
    """
    known = environment if isinstance(environment, Environment) else checkpoint.environment
    name = environment if isinstance(environment, str) else known.id
    return checkpoint.replace(
        interface=checkpoint.interface.annotated(inputs or {}, outputs or {}),
        environment=Environment(name, {**known.settings, **(settings or {})}),
    )
