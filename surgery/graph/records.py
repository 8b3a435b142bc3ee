"""What rules record of a graph beside its axes: where units are mixed, and which of its numbers must follow them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from surgery.graph.atoms import Axis

Kind = Literal["contract", "sum", "mean", "extreme", "norm", "order"]
"""How units are mixed."""

Resize = Callable[[Axis], int]
"""New size of an axis after an edit."""

Number = int | float | None
"""A number in the graph; None stands for what the graph computes itself."""


class Computed(int):
    """A dimension that depends on a symbolic one: the graph should compute it, and this is what it must give."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Operand:
    """A number written in the graph that must follow the axes: an input operand or an attribute of a node.

    Attributes:
      node: the node that holds it.
      where: input index, or attribute name.
      value: new size of an axis -> the numbers; None entries are dimensions that stay symbolic.
      shape: the numbers are a shape: what counts is the shape that comes of them (-1, 0 and computed entries may
        already give the right one).
    """

    node: ir.Node
    where: int | str
    value: Callable[[Resize], Sequence[Number]]
    shape: bool = False


@dataclass(frozen=True, slots=True)
class Site:
    """A place where units of an axis are mixed.

    Attributes:
      kind: "contract" (a sum of products of two operands, or more), "sum", "mean", "extreme" (the largest or smallest:
        copies change nothing), "norm" (zero units change nothing), "order" (top-k, arg-max, soft-max).
      node: the node that mixes.
      operands: which inputs of the node are mixed; None for what it keeps from step to step.
      axes: the mixed axis in each operand (unified already).
      constant: per operand, whether it is computed from parameters only.
    """

    kind: Kind
    node: ir.Node
    operands: tuple[int | None, ...]
    axes: tuple[Axis, ...]
    constant: tuple[bool, ...]
