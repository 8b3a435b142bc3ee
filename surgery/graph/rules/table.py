"""The table that a family of rules fills."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from surgery.graph.trace import Trace

Function = Callable[[Trace, ir.Node], None]


@dataclass(frozen=True, slots=True)
class Rule:
    """How one operator treats its axes.

    Attributes:
      describe: reads the operands' axes from the trace and puts the results'.
      axes: the class of each axis, in words: pointwise, contraction, sum, mean, order, normaliser, frozen.
    """

    describe: Function
    axes: str


class Table(dict[str, Rule]):
    """Operator type -> rule; calling it registers a function under several operator types."""

    def __call__(self, *operators: str, axes: str) -> Callable[[Function], Function]:
        """Register a rule.

        Args:
          operators: ONNX operator types of the default domain.
          axes: what happens to each axis, as `surgery list operators` prints it.
        """

        def register(function: Function) -> Function:
            self.update(dict.fromkeys(operators, Rule(function, axes)))
            return function

        return register
