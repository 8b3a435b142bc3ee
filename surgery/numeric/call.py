"""One evaluation of one node: what a kernel sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from surgery.arrays import Array
from surgery.errors import GraphError, SurgeryError
from surgery.numeric.dual import is_dual

Value: TypeAlias = "Array | list[Array] | None"  # a tensor, a sequence, or an absent optional
Outputs: TypeAlias = "Array | tuple[Value, ...]"
Body: TypeAlias = Callable[..., "tuple[Value, ...]"]


class Unsupported(SurgeryError):
    """An operator, or a variant of one, that cannot be evaluated here; names the node and the operator."""


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Whether the numbers are real floats of at least 16 bits (bfloat16 included)."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


class Attributes:
    """Reads the attributes of a node, references to those of an enclosing function resolved."""

    attributes: Mapping[str, ir.Attr]

    def attribute(self, name: str, default: Any = None) -> Any:  # noqa: ANN401
        """The value of an attribute, whatever its type."""
        found = self.attributes.get(name)
        return default if found is None else found.value

    def integer(self, name: str, default: int = 0) -> int:
        """An integer attribute."""
        return int(self.attribute(name, default))

    def number(self, name: str, default: float) -> float:
        """A float attribute; the standard's defaults are float32 numbers, as stated ones are once they are stored."""
        stated = self.attribute(name, None)
        return float(np.float32(default)) if stated is None else float(stated)

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        found = self.attribute(name, default)
        return found.decode() if isinstance(found, bytes) else str(found)

    def integers(self, name: str, default: Sequence[int] = ()) -> list[int]:
        """A list of integers."""
        return [int(number) for number in self.attribute(name, default)]


@dataclass(frozen=True)
class Call(Attributes):
    """A node with its operands.

    Attributes:
      node: the node; only its identity and its number of outputs matter, the rest is below.
      inputs: the operands in order, None where an optional one is absent.
      version: the opset version that gives the operator its meaning.
      dtype: the precision of the evaluation, or None to keep the types that the graph states.
      attributes: the attributes, references to those of an enclosing function resolved.
      bodies: attribute name -> the subgraph as a function of its inputs.
    """

    node: ir.Node
    inputs: tuple[Value, ...]
    version: int
    dtype: np.dtype[Any] | None = None
    attributes: Mapping[str, ir.Attr] = field(default_factory=dict)
    bodies: Mapping[str, Body] = field(default_factory=dict)

    def __getitem__(self, index: int) -> Array:
        """The tensor operand at `index`, which must be there."""
        operand = self.get(index)
        if operand is None:
            raise GraphError(f"operand {index} is missing", where=self.where)
        return operand

    def get(self, index: int) -> Array | None:
        """The tensor operand at `index`, or None where it is absent."""
        operand = self.inputs[index] if index < len(self.inputs) else None
        if isinstance(operand, list):
            raise GraphError(f"operand {index} is a sequence, wanted a tensor", where=self.where)
        return operand

    def sequence(self, index: int) -> list[Array]:
        """The sequence operand at `index`."""
        operand = self.inputs[index] if index < len(self.inputs) else None
        if not isinstance(operand, list):
            raise GraphError(f"operand {index} is not a sequence", where=self.where)
        return operand

    @property
    def tensors(self) -> list[Array]:
        """All operands of a variadic operator."""
        return [self[index] for index in range(len(self.inputs))]

    @property
    def where(self) -> dict[str, str]:
        """The node and its operator, for messages."""
        return {"node": self.node.name or "(unnamed)", "operator": self.node.op_type}

    def refuse(self, reason: str) -> Unsupported:
        """The error to raise for a variant that has no kernel."""
        return Unsupported(f"cannot evaluate {self.node.op_type}: {reason}", where=self.where)

    def setting(self, name: str, index: int) -> list[int] | None:
        """Integers that one opset states as the attribute `name` and a later one as operand `index`."""
        if name in self.attributes:
            return self.integers(name)
        operand = self.get(index)
        return None if operand is None else [int(number) for number in np.ravel(operand)]

    def axis(self, default: int, rank: int, name: str = "axis") -> int:
        """An axis attribute, counted from the front."""
        axis = self.integer(name, default)
        return axis + rank if axis < 0 else axis

    def floating(self, x: Array) -> Array:
        """`x` in the evaluation's precision if it holds floats; integers, booleans and duals stay."""
        if self.dtype is None or x.dtype == self.dtype or not is_floating(x.dtype):
            return x
        return x.astype(self.dtype)

    def cast(self, x: Array, kind: ir.DataType) -> Array:
        """`x` as the type `kind`: any float means the evaluation's precision, and keeps a tangent."""
        target = kind.numpy()
        if is_floating(target):
            target = target if self.dtype is None else self.dtype
            return x if is_dual(x) else x.astype(target)
        if target.kind not in "biuc":
            raise self.refuse(f"no cast to {kind.name}")
        return (x.real if is_dual(x) else x).astype(target)


Kernel: TypeAlias = Callable[[Call], Outputs]
