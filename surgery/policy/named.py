"""Outputs that name an action themselves, in several whole numbers at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx_ir as ir

from surgery.envs.actions import ActionSpace, MultiBinary, MultiDiscrete
from surgery.errors import ArgumentError, shape_text
from surgery.policy.arrays import Arrays, Read
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

    def reader(self, arrays: Arrays) -> Read:
        return partial(self._read, arrays)

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

    def _read(self, arrays: Arrays, outputs: Mapping[str, Any], count: int) -> Any:  # noqa: ANN401
        """(n, choices) whole numbers."""
        output = outputs[self.output]
        if tuple(output.shape) != (count, self.actions):
            raise ArgumentError(
                f"output '{self.output}' gives {shape_text(output.shape)} for {count} observations: not "
                f"{self.actions} choices each"
            )
        return arrays.cast(output, ir.DataType.INT64)
