"""Translate a graph, node by node in its order, into the source of a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from surgery.arrays import Array
from surgery.errors import GraphError, SurgeryError
from surgery.graph.facts import Facts, constant_tensor
from surgery.numeric import compute
from surgery.numeric.evaluate import reads
from surgery.torch import host as arithmetic
from surgery.torch import origins
from surgery.torch.call import Call, Function, Operand, Ref
from surgery.torch.host import Host, Size
from surgery.torch.operators import TRANSLATIONS
from surgery.torch.origins import MOVED, Stored
from surgery.torch.source import Block, Line, Names
from surgery.torch.stored import torch_dtype

FOLDED = 1 << 21
OTHER_PRIMES = (
    2003, 2011, 2017, 2027, 2029, 2039, 2053, 2063, 2069, 2081, 2083, 2087, 2089, 2099, 2111, 2113,
)  # fmt: skip


@dataclass
class Program:
    """What is the same for a graph and the subgraphs inside it.

    Attributes:
      stored: initializers that are kept as tensors.
      keep: registers a constant as a buffer and gives the expression that reads it.
      single: the type that FLOAT stands for.
      functions: helpers that the source calls, by name.
    """

    stored: dict[ir.Value, Stored]
    keep: Callable[[Array], str]
    single: torch.dtype | None
    names: Names
    versions: dict[str, int]
    facts: tuple[Facts, Facts] | None
    functions: dict[str, Function] = field(default_factory=dict)
    constants: dict[int, tuple[Host, Ref]] = field(default_factory=dict)
    first_input: str = ""


def facts_of(model: ir.Model) -> tuple[Facts, Facts] | None:
    """Shapes under two choices of the symbolic sizes: what is equal in both does not depend on them."""
    try:
        both = Facts(model), Facts(model, primes=OTHER_PRIMES)
        for node in model.graph:
            for facts in both:
                facts.step(node)
    except GraphError:
        return None
    return both


class Scope:
    """One graph under translation; the emitter that operators see."""

    def __init__(self, program: Program, graph: ir.Graph, parent: Scope | None = None) -> None:
        self.program, self.graph, self.parent = program, graph, parent
        self.values: dict[ir.Value, Operand] = {}
        self.block = Block()
        self._merged: dict[ir.Node, Ref] = {}
        self._sizes: dict[tuple[str, int], Size] = {}

    def run(self) -> None:
        """Translate the nodes that the results depend on."""
        for node in _needed(self.graph):
            self._node(node)

    def _node(self, node: ir.Node) -> None:
        if node in self._merged:
            self.values[node.outputs[0]] = self._merged[node]
            return
        operands = tuple(None if v is None else self.find(v) for v in node.inputs)
        version = node.version or self.program.versions.get(node.domain, 1)
        call, before = Call(node, version, operands, self, node.attributes), len(self.block.lines)
        try:
            results = self._results(call)
        except SurgeryError as error:
            raise error.within(**call.where) from error
        except (ValueError, TypeError, LookupError, AssertionError) as error:
            raise call.refuse(f"a form that its translation does not know ({error})") from error
        first = None if not node.inputs or node.inputs[0] is None else self.shape_of(node.inputs[0])
        for line in self.block.lines[before:]:
            line.rank = None if first is None else len(first)
        listed = results if isinstance(results, list) else [results]
        for value, result in zip(node.outputs, listed, strict=False):
            self.values[value] = result

    def _results(self, call: Call) -> Operand | list[Operand]:
        node = call.node
        if node.domain:
            raise call.refuse(f"it is of the domain '{node.domain}'")
        if node.op_type == "Constant":
            return self._constant(call)
        hosted = self._hosted(call)
        if hosted is not None:
            return hosted
        if node.op_type not in TRANSLATIONS:
            raise call.refuse("no operator of the table (docs/operators.md)")
        return TRANSLATIONS[node.op_type](call)

    def _constant(self, call: Call) -> Host:
        if any(name in call.attributes for name in ("value_string", "value_strings", "sparse_value")):
            raise call.refuse("it holds no numbers")
        array = np.asarray(constant_tensor(call.node).numpy())
        return Host(array, array.dtype)

    def _hosted(self, call: Call) -> Operand | list[Operand] | None:
        """The results on the host, where they are known or are shape arithmetic."""
        op = call.node.op_type
        if op in ("Shape", "Size") and call.operands[0] is not None:
            return self._shape(call)
        operands = [x for x in call.operands if x is not None]
        if op == "CastLike":
            operands = operands[:1]
        hosts = [x for x in operands if isinstance(x, Host)]
        if not hosts or len(hosts) < len(operands):
            return None
        if op == "CastLike":
            to = self.value_type(call.node.inputs[1])
            return None if to is None else arithmetic.computed(op, hosts, to.numpy())
        if all(x.known for x in hosts):
            return self._folded(call)
        return self._symbolic(call, hosts)

    def _folded(self, call: Call) -> list[Operand] | None:
        arrays = [x.elements if isinstance(x, Host) else None for x in call.operands]
        if call.node.op_type in ("ConstantOfShape", "Expand", "Tile", "Range", "OneHot", "Pad", "Resize"):
            if self._large(call):
                return None
        elif sum(x.size for x in arrays if x is not None) > FOLDED:
            return None
        try:
            results = compute(call.node, arrays, call.version)
        except SurgeryError:
            return None
        return [Host(x, x.dtype) for x in results]

    def _large(self, call: Call) -> bool:
        """Whether a constant is better made while the module runs."""
        shape = self.shape_of(call.node.outputs[0])
        return shape is None or None in shape or int(np.prod([n or 0 for n in shape])) > FOLDED

    def _symbolic(self, call: Call, hosts: list[Host]) -> Operand | list[Operand] | None:
        op, node = call.node.op_type, call.node
        if op in ("Cast",):
            return arithmetic.computed(op, hosts, ir.DataType(call.integer("to")).numpy())
        if op in MOVED and all(isinstance(x, Host) and x.known for x in call.operands[1:] if op != "Concat"):
            arrays = [x.elements if isinstance(x, Host) else None for x in call.operands]
            arrays = [x.astype(object) if x is not None and at == 0 else x for at, x in enumerate(arrays)]
            results = compute(node, arrays, call.version)
            return [Host.of(x, hosts[0].dtype) for x in results]
        if op in arithmetic.REDUCED and (call.axes(1) in (None, [0]) and hosts[0].elements.ndim <= 1):
            return arithmetic.reduced(op, hosts[0], bool(call.integer("keepdims", 1)))
        return arithmetic.computed(op, hosts, None)

    def _shape(self, call: Call) -> Host | None:
        shape = call.shape(0)
        if shape is None:
            return None
        x = call.operands[0]
        text = x.text if isinstance(x, Ref) else ""
        sizes = [self._size(text, axis) if n is None else n for axis, n in enumerate(shape)]
        if call.node.op_type == "Size":
            total: Any = 1
            for n in sizes:
                total = arithmetic.multiply(total, n)
            return Host.of(total, np.int64)
        return Host.of(sizes[slice(call.attribute("start"), call.attribute("end"))], np.int64)

    def _size(self, x: str, axis: int) -> Size:
        """A size that depends on the inputs, read once."""
        if (x, axis) not in self._sizes:
            name = self.emit(f"{x}.shape[{axis}]", f"size_{x}_{axis}").text
            self._sizes[x, axis] = Size(name)
        return self._sizes[x, axis]

    def find(self, value: ir.Value) -> Operand:
        """What a value is now."""
        scope: Scope | None = self
        while scope is not None:
            if value in scope.values:
                return scope.values[value]
            scope = scope.parent
        if value.is_initializer() and value.const_value is not None:
            return self._initializer(value)
        if not value.name:
            return None
        raise GraphError(f"nothing computes the value '{value.name}'")

    def _initializer(self, value: ir.Value) -> Operand:
        if value in self.program.stored:
            return Ref(self.program.stored[value].text, value)
        assert value.const_value is not None
        array = np.asarray(value.const_value.numpy())
        result = self.values[value] = Host(array, array.dtype)
        return result

    # What operators see (surgery.torch.call.Emitter):

    def argument(self, value: ir.Value) -> str:
        """The name of an input in the source."""
        name = self.program.names.new(str(value.name))
        self.values[value] = Ref(name)
        return name

    def emit(self, expression: str, name: str) -> Ref:
        """A line of source."""
        target = self.program.names.new(name)
        self.block.lines.append(Line(target, expression))
        return Ref(target)

    def tensor(self, x: Operand) -> Ref:
        """An operand as a tensor: a constant becomes a buffer, a size is made one where the inputs are."""
        if isinstance(x, Ref):
            return x
        if not isinstance(x, Host):
            raise GraphError("a sequence where a tensor is wanted")
        if x.known:
            kept = self.program.constants.get(id(x))
            if kept is None:
                kept = self.program.constants[id(x)] = (x, Ref(self.program.keep(x.elements)))
            return kept[1]
        numbers = ", ".join(arithmetic.text(n) for n in x.flat())
        kind = self.dtype(ir.DataType.from_numpy(x.dtype))
        if x.elements.ndim == 0:
            return self.emit(f"torch.tensor({numbers}, dtype={kind}, device={self.device()})", "number")
        made = f"torch.tensor([{numbers}], dtype={kind}, device={self.device()})"
        shape = f".reshape({x.elements.shape})" if x.elements.ndim > 1 else ""
        return self.emit(made + shape, "numbers")

    def source(self, function: Function) -> str:
        """The name of a function in the source."""
        name, module = function.__name__, function.__module__ or ""
        if getattr(torch, name, None) is function:
            return f"torch.{name}"
        if getattr(torch.nn.functional, name, None) is function:
            return f"F.{name}"
        if getattr(torch.linalg, name, None) is function:
            return f"torch.linalg.{name}"
        if not module.startswith("surgery.torch.operators."):
            raise TypeError(f"{function} has no name in the source")
        self.program.functions[name] = function
        return name

    def shape_of(self, value: ir.Value) -> list[int | None] | None:
        """The sizes of a value, None for those that depend on the inputs."""
        if value.const_value is not None:
            return [int(n) for n in value.const_value.shape]  # type: ignore[arg-type]
        if self.program.facts is not None:
            one, other = (facts.shapes.get(value) for facts in self.program.facts)
            if one is not None and other is not None and len(one) == len(other):
                return [a if a == b else None for a, b in zip(one, other, strict=True)]
        found = self.values.get(value)
        if isinstance(found, Host):
            return list(found.elements.shape)
        return None if value.shape is None else [None] * len(value.shape)

    def value_type(self, value: ir.Value | None) -> ir.DataType | None:
        """The element type of a value, if it is known."""
        if value is None:
            return None
        if value.const_value is not None:
            return value.const_value.dtype
        found = self.values.get(value)
        if isinstance(found, Host):
            return ir.DataType.from_numpy(found.dtype)
        if self.program.facts is not None and value in self.program.facts[0].dtypes:
            return ir.DataType(self.program.facts[0].dtypes[value])
        return value.dtype

    def body(self, graph: ir.Graph, host: Sequence[int] = ()) -> str:
        """Define a subgraph as a function inside this one."""
        inner = Scope(self.program, graph, self)
        arguments = []
        for at, value in enumerate(graph.inputs):
            name = self.program.names.new(str(value.name))
            arguments.append(name)
            kind = np.dtype(np.int64 if at == 0 else np.bool_)
            inner.values[value] = Host.of(np.array(Size(name), object), kind) if at in host else Ref(name)
        inner.run()
        results = []
        for at, value in enumerate(graph.outputs):
            found = inner.find(value)
            scalar = isinstance(found, Host) and found.elements.ndim == 0 and host and at == 0
            results.append(arithmetic.text(found.scalar()) if scalar else inner.tensor(found).text)  # type: ignore[union-attr]
        inner.block.returned = f"({', '.join(results)}{',' if len(results) == 1 else ''})"
        name = self.program.names.new("body")
        self.block.lines.append(Line(name, ", ".join(arguments), inner.block))
        return name

    def device(self) -> str:
        """The device of the first input."""
        return f"{self.program.first_input}.device" if self.program.first_input else "None"

    def dtype(self, kind: ir.DataType) -> str:
        """A PyTorch type."""
        if kind == ir.DataType.FLOAT and self.program.single is not None:
            return str(self.program.single)
        return str(torch_dtype(kind))

    def origin(self, value: ir.Value | None) -> Array | None:
        """Element by element, which number of which stored tensor a value is."""
        return origins.traced(self.program.stored, self.program.versions, self.find, value)

    def whole(self, origin: Array) -> Ref | None:
        """The stored tensor that consists of these elements in this order and shape."""
        return origins.whole(self.program.stored, origin)

    def matrix(self, value: ir.Value | None) -> tuple[Ref | None, bool]:
        """The stored matrix behind a value, and whether it is (out, in)."""
        node = None if value is None else value.producer()
        turned = node is not None and node.op_type == "Transpose" and self.parent is None
        source = node.inputs[0] if node is not None and turned else value
        if source is None or not source.is_initializer():
            return None, False
        found = self.find(source)
        if not isinstance(found, Ref) or len(self.program.stored[source].shape) != 2:
            return None, False
        if turned and node is not None and list(node.attributes.get_ints("perm", [1, 0])) != [1, 0]:
            return None, False
        return found, turned

    def added_bias(self, node: ir.Node) -> tuple[ir.Node, Ref] | None:
        """The only reader of a result, if it adds a stored vector of its last axis."""
        result = node.outputs[0]
        uses = list(result.uses())
        if len(uses) != 1 or result.is_graph_output() or uses[0].node.op_type != "Add":
            return None
        addition = uses[0].node
        if addition.graph is not node.graph or addition.domain:
            return None
        other = addition.inputs[1 - uses[0].idx]
        stored = self.program.stored.get(other) if other is not None else None
        shape = self.shape_of(result)
        if stored is None or shape is None or len(shape) < 2 or list(stored.shape) != shape[-1:]:
            return None
        return addition, Ref(stored.text, other)

    def merge(self, node: ir.Node, result: Ref) -> None:
        """Take a result for that of a later node."""
        self._merged[node] = result


def _needed(graph: ir.Graph) -> list[ir.Node]:
    """The nodes that the outputs depend on, in order."""
    needed, kept = set(graph.outputs), []
    for node in reversed(list(graph)):
        if needed.intersection(node.outputs):
            needed.update(reads(node))
            kept.append(node)
    return kept[::-1]
