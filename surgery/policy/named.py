"""Outputs that name an action themselves, in several whole numbers at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from surgery.envs.actions import ActionSpace, MultiBinary, MultiDiscrete
from surgery.errors import ArgumentError, shape_text
from surgery.policy.arrays import Arrays
from surgery.policy.laws import Law, Named


@dataclass(frozen=True)
class Names:
    """The output that names a value of each choice; actions: how many choices there are."""

    output: str
    actions: int

    kind = "action"
    draws = scored = False
    allowed = None
    temperature = 1.0

    @property
    def outputs(self) -> tuple[str, ...]:
        return (self.output,)

    def reader(self, arrays: Arrays) -> Reading:
        return Reading(self, arrays)

    def law(self, space: ActionSpace | None, temperature: float) -> Law:
        """Raises: ArgumentError: the environment takes other actions."""
        if isinstance(space, MultiDiscrete | MultiBinary):
            choices = len(space.counts) if isinstance(space, MultiDiscrete) else space.size
            if choices == self.actions:
                return Named(self.output, space)
        raise ArgumentError(
            f"output '{self.output}' names {self.actions} choices at once, the environment takes "
            f"{'nothing that is known yet' if space is None else space}"
        )


@dataclass(frozen=True)
class Reading:
    """The output as (n, choices) whole numbers."""

    head: Names
    arrays: Arrays

    def __call__(self, outputs: Mapping[str, Any], count: int) -> Any:  # noqa: ANN401
        """Raises: ArgumentError: the output is of another size."""
        output, choices = outputs[self.head.output], self.head.actions
        if tuple(output.shape) != (count, choices):
            raise ArgumentError(
                f"output '{self.head.output}' gives {shape_text(output.shape)} for {count} observations: no {choices} "
                "choices each"
            )
        return self.arrays.cast(output, ir.DataType.INT64)
