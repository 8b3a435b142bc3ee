"""What the translation of one operator sees: its operands as they are known now, and where its source goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import onnx_ir as ir

from surgery.arrays import Array
from surgery.errors import GraphError
from surgery.numeric.call import Attributes, Unsupported
from surgery.torch.host import Host, Size


@dataclass(frozen=True)
class Ref:
    """A tensor of the running module, as a Python expression.

    Attributes:
      text: the expression, a name or an attribute.
      stored: the initializer that it is, if it is one.
    """

    text: str
    stored: ir.Value | None = None

    def __str__(self) -> str:
        return self.text


Operand: TypeAlias = "Ref | Host | tuple[Ref, ...] | None"
Results: TypeAlias = "Operand | list[Operand]"
Function: TypeAlias = "Callable[..., Any]"


class Emitter(Protocol):
    """Where source is written."""

    def emit(self, expression: str, name: str) -> Ref:
        """A line `name = expression`; the reference to its result."""
        ...

    def tensor(self, x: Operand) -> Ref:
        """An operand as a tensor, whatever it is now."""
        ...

    def find(self, value: ir.Value) -> Operand:
        """What any value before this node is now."""
        ...

    def source(self, function: Function) -> str:
        """The name under which the source calls a function."""
        ...

    def shape_of(self, value: ir.Value) -> list[int | None] | None:
        """The sizes of a value that do not depend on the inputs, None for those that do; None if unknown."""
        ...

    def value_type(self, value: ir.Value | None) -> ir.DataType | None:
        """The element type of a value, None if it is not known."""
        ...

    def body(self, graph: ir.Graph, host: Sequence[int] = ()) -> str:
        """Define a subgraph as a function; its name."""
        ...

    def device(self) -> str:
        """An expression for the device that the inputs are on."""
        ...

    def dtype(self, kind: ir.DataType) -> str:
        """An expression for the type of tensors."""
        ...

    def origin(self, value: ir.Value | None) -> Array | None:
        """Which element of which stored tensor every element of a value is; None if it is computed."""
        ...

    def whole(self, origin: Array) -> Ref | None:
        """The stored tensor whose elements these are, all and in order; None if there is none."""
        ...

    def matrix(self, value: ir.Value | None) -> tuple[Ref | None, bool]:
        """The stored matrix that a value is, and whether the value is its transpose; None if it is computed."""
        ...

    def added_bias(self, node: ir.Node) -> tuple[ir.Node, Ref] | None:
        """The addition that alone reads the result of a node, and the stored vector that it adds."""
        ...

    def merge(self, node: ir.Node, result: Ref) -> None:
        """Take a result for that of a later node, which needs no translation of its own."""
        ...


@dataclass(frozen=True)
class Call(Attributes):
    """A node to be translated.

    Attributes:
      node: the node. version: the opset that gives it its meaning. operands: in order, None where absent.
      emitter: where source is written. attributes: of the node.
    """

    node: ir.Node
    version: int
    operands: tuple[Operand, ...]
    emitter: Emitter
    attributes: Mapping[str, ir.Attr] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the result is called."""
        return str(self.node.outputs[0].name or self.node.op_type)

    def has(self, index: int) -> bool:
        """Whether an operand is there."""
        return index < len(self.operands) and self.operands[index] is not None

    def __getitem__(self, index: int) -> Ref:
        """The operand at `index` as a tensor."""
        if not self.has(index):
            raise GraphError(f"operand {index} is missing", where=self.where)
        return self.emitter.tensor(self.operands[index])

    def get(self, index: int) -> Ref | None:
        """The operand as a tensor, None where it is absent."""
        return self[index] if self.has(index) else None

    def host(self, index: int) -> Host | None:
        """The operand if its numbers are on the host."""
        operand = self.operands[index] if self.has(index) else None
        return operand if isinstance(operand, Host) else None

    def known(self, index: int) -> Array | None:
        """The operand's array if it is a constant."""
        host = self.host(index)
        return host.elements if host is not None and host.known else None

    def number_or_tensor(self, index: int, beside: int | None = None) -> Ref | Any:  # noqa: ANN401
        """A Python number where the operand is one on the host, else a tensor.

        Args:
          index: of the operand.
          beside: of another one that it is broadcast to: a single number may then have axes, too.
        """
        host = self.host(index)
        if host is None or host.elements.size != 1:
            return self[index]
        axes = host.elements.ndim
        other = None if beside is None or axes == 0 else self.shape(beside)
        return host.scalar() if axes == 0 or (other is not None and len(other) >= axes) else self[index]

    def floating(self, index: int) -> bool:
        """Whether an operand is known to hold floats."""
        kind = self.emitter.value_type(self.node.inputs[index])
        return kind is not None and kind.is_floating_point()

    def sizes(self, index: int, attribute: str | None = None) -> Any:  # noqa: ANN401
        """Whole numbers that an attribute or an operand states: a list of ints and sizes; None if absent.

        Where a tensor holds them, they are read from it at run time: one `Size` for the whole list.
        """
        if attribute is not None and attribute in self.attributes:
            return self.integers(attribute)
        if not self.has(index):
            return None
        host = self.host(index)
        return Size(f"{self[index]}.tolist()") if host is None else host.flat()

    def whole(self, index: int, default: Any = None) -> Any:  # noqa: ANN401
        """One whole number, read from the tensor if it is one."""
        if not self.has(index):
            return default
        host = self.host(index)
        return Size(f"{self[index]}.item()") if host is None else host.scalar()

    def axes(self, index: int, attribute: str = "axes") -> list[int] | None:
        """Axes, which must be known."""
        stated = self.sizes(index, attribute)
        if stated is None:
            return None
        if isinstance(stated, Size) or any(isinstance(axis, Size) for axis in stated):
            raise self.refuse("its axes are computed while it runs")
        return [int(axis) for axis in stated]

    def shape(self, index: int) -> list[int | None] | None:
        """The operand's sizes where they do not depend on the inputs."""
        operand = self.operands[index] if self.has(index) else None
        if isinstance(operand, Host):
            return list(operand.elements.shape)
        value = self.node.inputs[index]
        return None if value is None else self.emitter.shape_of(value)

    def size(self, index: int, axis: int) -> int | None:
        """One of its sizes, None if it is not known or depends on the inputs."""
        shape = self.shape(index)
        return shape[axis] if shape else None

    def rank(self, index: int) -> int:
        """The number of axes of an operand.

        Raises:
          Unsupported: it cannot be known before the module runs.
        """
        shape = self.shape(index)
        if shape is None:
            raise self.refuse(f"the number of axes of operand {index} is not known")
        return len(shape)

    def emit(self, function: Function | str, *arguments: Any, **named: Any) -> Ref:  # noqa: ANN401
        """A call of a function on references and Python values."""
        called = function if isinstance(function, str) else self.emitter.source(function)
        parts = [source_of(x) for x in arguments]
        parts += [f"{key}={source_of(x)}" for key, x in named.items()]
        return self.emitter.emit(f"{called}({', '.join(parts)})", self.name)

    def method(self, x: Ref, name: str, *arguments: Any, **named: Any) -> Ref:  # noqa: ANN401
        """A call of a method of a tensor."""
        return self.emit(f"{x}.{name}", *arguments, **named)

    def infix(self, a: Any, symbol: str, b: Any) -> Ref:  # noqa: ANN401
        """a symbol b."""
        return self.emitter.emit(f"{source_of(a)} {symbol} {source_of(b)}", self.name)

    def parts(self, whole: Ref, count: int) -> list[Operand]:
        """The first members of a tuple."""
        return [self.emitter.emit(f"{whole}[{at}]", f"{self.name}_{at}") for at in range(count)]

    @property
    def where(self) -> dict[str, str]:
        """The node and its operator, for messages."""
        return {"node": self.node.name or "(unnamed)", "operator": self.node.op_type}

    def refuse(self, reason: str) -> Unsupported:
        """The error for a form that has no translation."""
        return Unsupported(f"cannot translate {self.node.op_type}: {reason}", where=self.where)


Translation: TypeAlias = "Callable[[Call], Results]"


def source_of(x: Any) -> str:  # noqa: ANN401
    """A Python value, a reference or a size as source; tuples and lists of them too."""
    if isinstance(x, Ref | Size):
        return x.text
    if isinstance(x, tuple | list):
        inner = ", ".join(source_of(part) for part in x)
        return f"[{inner}]" if isinstance(x, list) else f"({inner}{',' if len(x) == 1 else ''})"
    if isinstance(x, float | np.floating):
        return repr(float(x)) if np.isfinite(x) else f"float('{float(x)}')"
    if isinstance(x, bool | np.bool_):
        return repr(bool(x))
    if isinstance(x, int | np.integer):
        return repr(int(x))
    if x is None or isinstance(x, str):
        return repr(x)
    raise TypeError(f"{type(x).__name__} has no source")
