"""Evaluate a graph node by node, holding only what is still needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from surgery.arrays import Array
from surgery.errors import GraphError, SurgeryError, UnknownName
from surgery.numeric import kernels
from surgery.numeric.call import Body, Call, Unsupported, Value, is_floating
from surgery.numeric.dual import is_dual

Scope = ir.Graph | ir.Function
Steps = list[tuple[ir.Node, list[ir.Value]]]


def run(
    model: ir.Model,
    inputs: Mapping[str, Array],
    *,
    dtype: npt.DTypeLike = np.float64,
    parameters: Mapping[str, Array | ir.TensorProtocol] | None = None,
    outputs: Sequence[str] | None = None,
) -> dict[str, Array]:
    """Evaluate a model in one precision.

    Only nodes that the outputs depend on are evaluated; an initializer is read when its first reader comes,
    once, and every value is dropped after its last reader.

    Args:
      model: any model of the default ONNX domain, with model-local functions.
      inputs: graph input name -> array; floats are cast to `dtype`, complex arrays are not.
      dtype: float32, float64, or complex128, whose imaginary parts are infinitesimal tangents (step 1e-30).
      parameters: initializer name -> what replaces the stored one, read as late, used in the precision it has.
      outputs: names of values to return, anywhere in the main graph; None for the graph's outputs.

    Returns:
      name -> array, in the order asked for. They may share memory with the model: treat them as read-only.

    Raises:
      Unsupported: a node has no kernel.
      UnknownName: an input, parameter or output that the graph does not have.
      GraphError: an input is missing, or a node does not fit its operands.
    """
    precision = np.dtype(dtype)
    graph = model.graph
    wanted = graph.outputs if outputs is None else _named_values(graph, outputs)
    replaced = dict(parameters or {})
    for name in replaced:
        if name not in graph.initializers:
            raise UnknownName("initializer", name, graph.initializers)
    # A real array is a dual without tangent: a complex run needs complex arrays only where something moves.
    working = np.dtype(np.float64) if precision.kind == "c" else precision
    evaluation = Evaluation(model.functions, {graph.initializers[n]: x for n, x in replaced.items()}, working)
    frame = Frame(graph, versions=graph.opset_imports)
    frame.values.update(_bound_inputs(graph, inputs, evaluation))
    with np.errstate(all="ignore"):
        results = evaluation.evaluate(frame, wanted)
    named = zip((str(v.name) for v in wanted), results, strict=True)
    return {name: _result(name, x, precision) for name, x in named}


def compute(node: ir.Node, inputs: Sequence[Array | None], version: int) -> tuple[Array, ...]:
    """Evaluate one node in the types that it states.

    Args:
      node: any node; its attributes and its number of outputs are used, its input values are not.
      inputs: the operands in order, None for an optional one that is absent.
      version: opset version of the node's domain.

    Returns:
      One array per output of the node.

    Raises:
      Unsupported: the operator has no kernel, or its body reads values from outside.
      GraphError: the operands do not fit.
    """
    evaluation = Evaluation({}, {}, None)
    scope = Frame(ir.Graph((), (), nodes=()), versions={node.domain: version, "": version})
    with np.errstate(all="ignore"):
        results = evaluation.call(node, tuple(inputs), scope)
    if any(not isinstance(result, np.ndarray) for result in results):
        raise Unsupported("the result is not a tensor", where={"node": node.name, "operator": node.op_type})
    return tuple(result for result in results if isinstance(result, np.ndarray))


@dataclass
class Frame:
    """The values of one evaluation of one graph, and where to look for those of the graph around it."""

    scope: Scope
    versions: Mapping[str, int]
    values: dict[ir.Value, Value] = field(default_factory=dict)
    parent: Frame | None = None
    attributes: Mapping[str, ir.Attr] = field(default_factory=dict)

    def chain(self) -> Iterator[Frame]:
        """This frame and those around it, innermost first."""
        frame: Frame | None = self
        while frame is not None:
            yield frame
            frame = frame.parent


@dataclass
class Evaluation:
    """What is the same for all frames of one run.

    Attributes:
      functions: model-local functions by (domain, name, overload).
      parameters: initializer -> replacement.
      dtype: the precision, or None to keep the types that the graph states.
    """

    functions: Mapping[ir.OperatorIdentifier, ir.Function]
    parameters: Mapping[ir.Value, Array | ir.TensorProtocol]
    dtype: np.dtype[Any] | None
    _steps: dict[tuple[int, ...], Steps] = field(default_factory=dict)

    def evaluate(self, frame: Frame, wanted: Sequence[ir.Value]) -> list[Value]:
        """The wanted values of the frame's graph, whose inputs are already in the frame."""
        key = (id(frame.scope), *map(id, wanted))
        if key not in self._steps:
            self._steps[key] = _schedule(frame.scope, wanted)
        for node, dead in self._steps[key]:
            # In one expression, so that no operand outlives its last reader in a local name.
            frame.values.update(
                zip(node.outputs, self.call(node, self._operands(node, frame), frame), strict=True)
            )
            for v in dead:
                frame.values.pop(v, None)
        return [self._find(v, frame) for v in wanted]

    def _operands(self, node: ir.Node, frame: Frame) -> tuple[Value, ...]:
        return tuple(None if v is None else self._find(v, frame) for v in node.inputs)

    def call(self, node: ir.Node, operands: tuple[Value, ...], frame: Frame) -> tuple[Value, ...]:
        """One node on its operands: one value per output."""
        attributes = _resolved(node, frame.attributes)
        function = self.functions.get(node.op_identifier())
        if function is not None:
            return self._call_function(function, operands, attributes)
        graphs = {name: a.value for name, a in attributes.items() if a.type == ir.AttributeType.GRAPH}
        bodies = {name: self._body(graph, frame) for name, graph in graphs.items()}
        version = node.version or frame.versions.get(node.domain, 1)
        call = Call(node, operands, version, self.dtype, attributes, bodies)
        try:
            results = kernels.find(call)(call)
        except SurgeryError as error:
            raise error.within(**call.where) from error
        except (ValueError, TypeError, LookupError) as error:
            message = f"the operands of {node.op_type} do not fit: {error}"
            raise GraphError(message, where={**call.where, "operands": _shapes(operands)}) from error
        outputs = results if isinstance(results, tuple) else (results,)
        if len(outputs) < len(node.outputs):
            raise call.refuse(f"it has {len(outputs)} outputs here, the graph asks for {len(node.outputs)}")
        asked = outputs[: len(node.outputs)]
        return tuple(x if x is None or isinstance(x, list) else np.asarray(x) for x in asked)

    def _call_function(
        self, function: ir.Function, operands: tuple[Value, ...], attributes: Mapping[str, ir.Attr]
    ) -> tuple[Value, ...]:
        defaults = {name: a for name, a in function.attributes.items() if a.value is not None}
        frame = Frame(function, function.opset_imports, attributes={**defaults, **attributes})
        padded = operands + (None,) * (len(function.inputs) - len(operands))
        frame.values.update(zip(function.inputs, padded, strict=True))
        return tuple(self.evaluate(frame, function.outputs))

    def _body(self, graph: ir.Graph, outer: Frame) -> Body:
        # Constants of the body are kept between the turns of a loop, in a frame around those of the turns.
        kept = Frame(graph, outer.versions, parent=outer, attributes=outer.attributes)

        def body(*arguments: Value) -> tuple[Value, ...]:
            frame = Frame(graph, outer.versions, parent=kept, attributes=outer.attributes)
            frame.values.update(zip(graph.inputs, arguments, strict=True))
            return tuple(self.evaluate(frame, graph.outputs))

        return body

    def _find(self, v: ir.Value, frame: Frame) -> Value:
        owner = frame
        for candidate in frame.chain():
            if v in candidate.values:
                return candidate.values[v]
            if candidate.scope is v.graph:
                owner = candidate
        if v.is_initializer():
            owner.values[v] = self._initializer(v)
            return owner.values[v]
        if not v.name:
            return None
        raise Unsupported(f"nothing here computes the value '{v.name}'")

    def _initializer(self, v: ir.Value) -> Array:
        if v in self.parameters:
            given = self.parameters[v]
            # arithmetic on an array without axes gives a number of NumPy's
            return np.asarray(given if isinstance(given, np.ndarray | np.generic) else given.numpy())
        if v.const_value is None:
            raise GraphError(f"the initializer '{v.name}' has no data")
        stored = v.const_value.numpy()
        if self.dtype is None or not is_floating(stored.dtype):
            return stored
        return np.asarray(stored, dtype=self.dtype)


def _schedule(scope: Scope, wanted: Sequence[ir.Value]) -> Steps:
    """The nodes that `wanted` depends on, in order, each with the values that nobody needs after it."""
    needed = set(wanted)
    steps: Steps = []
    for node in reversed(list(scope)):
        if not needed.intersection(node.outputs):
            continue
        unused = [v for v in node.outputs if v not in needed]
        read = dict.fromkeys(reads(node))
        steps.append((node, unused + [v for v in read if v not in needed]))
        needed.update(read)
    steps.reverse()
    return steps


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """The values a node reads, those that its subgraphs capture included."""
    yield from (v for v in node.inputs if v is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH and attribute.value is not None:
            for inner in attribute.value:
                yield from reads(inner)
            yield from attribute.value.outputs


def _resolved(node: ir.Node, enclosing: Mapping[str, ir.Attr]) -> dict[str, ir.Attr]:
    """The attributes of a node; one that refers to an attribute which the caller left out is absent too."""
    resolved = {}
    for name, attribute in node.attributes.items():
        if not attribute.is_ref():
            resolved[name] = attribute
        elif attribute.ref_attr_name in enclosing:
            found = enclosing[str(attribute.ref_attr_name)]
            resolved[name] = ir.Attr(name, found.type, found.value)
    return resolved


def _named_values(graph: ir.Graph, names: Sequence[str]) -> list[ir.Value]:
    known = {str(v.name): v for v in graph.initializers.values()}
    known |= {str(v.name): v for v in graph.inputs}
    known |= {v.name: v for node in graph for v in node.outputs if v.name}
    for name in names:
        if name not in known:
            raise UnknownName("value", name, known)
    return [known[name] for name in names]


def _bound_inputs(
    graph: ir.Graph, inputs: Mapping[str, Array], evaluation: Evaluation
) -> dict[ir.Value, Value]:
    known = {str(v.name): v for v in graph.inputs}
    for name in inputs:
        if name not in known:
            raise UnknownName("input", name, known)
    for name, v in known.items():
        if name not in inputs and not v.is_initializer():
            raise GraphError(f"no array is given for the input '{name}'")
    given = ((known[name], np.asarray(x)) for name, x in inputs.items())
    return {v: _as_stated(x, v, evaluation.dtype) for v, x in given}


def _as_stated(x: Array, v: ir.Value, dtype: np.dtype[Any] | None) -> Array:
    stated = x.dtype if v.dtype is None or v.dtype == ir.DataType.STRING else v.dtype.numpy()
    if is_floating(stated):
        return x if is_dual(x) or dtype is None else x.astype(dtype, copy=False)
    return x.astype(stated, copy=False)


def _result(name: str, x: Value, dtype: np.dtype[Any]) -> Array:
    if not isinstance(x, np.ndarray):
        raise Unsupported(f"the output '{name}' is not a tensor")
    return x.astype(dtype) if dtype.kind == "c" and is_floating(x.dtype) else x


def _shapes(operands: Sequence[Value]) -> str:
    return ", ".join(
        f"{x.dtype}{list(x.shape)}" if isinstance(x, np.ndarray) else "absent" if x is None else "sequence"
        for x in operands
    )
