"""Two networks in one graph, with a gate between them, and one of them taken out again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from surgery.errors import Refused
from surgery.graph.modules import KIND
from surgery.graph.operands import operands

PREFIX = "sidecar."
"""Of every name of the new network, as long as the old one is there."""

_OLDEST = 13
_EXTENDED = frozenset(
    ["Reshape", "Cast", "CastLike", "Identity", "Shape", "Constant", "ConstantOfShape", "Flatten", "Transpose",
     "Squeeze", "Unsqueeze", "Concat", "Relu", "Add", "Sub", "Mul", "Div", "Equal", "Where", "Pow", "Size",
     "LSTM", "GRU", "RNN", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "IsNaN", "Expand", "Pad",
     "BatchNormalization", "ScatterND", "If", "Loop", "Scan", "AveragePool", "LpPool", "QuantizeLinear"]
)  # fmt: skip
"""Operators of which later sets, from 14 to 20, allow more, and mean the same by what they allowed before."""


def absorb(
    model: ir.Model, other: ir.Model, inputs: Mapping[str, str], zeroed: Collection[str]
) -> dict[str, ir.Value]:
    """Take another network into a graph, in place, every name with the prefix.

    Args:
      model: the graph. other: left as it is.
      inputs: inputs of the other network that are inputs of the graph; further ones are returned, to be declared.
      zeroed: tensors of the other network to put in as zeros.

    Returns:
      The other network's inputs and outputs by name, as values of the graph.

    Raises:
      Refused: operator sets of two versions between which an operator of one of them has changed.
    """
    guest = other.clone()
    if guest.functions:
        guest = InlinePass()(guest).model
    _same_version(model, guest)
    graph, own = guest.graph, {str(v.name): v for v in model.graph.inputs}
    ports = {str(v.name): v for v in (*graph.inputs, *graph.outputs)}
    for name, partner in inputs.items():
        ports[name].replace_all_uses_with(own[partner], replace_graph_outputs=True)
    outputs = {
        str(name): value for name, value in zip(_names(other.graph.outputs), graph.outputs, strict=True)
    }
    nodes, initializers = list(graph), list(graph.initializers.values())
    free = [v for v in graph.inputs if v.name not in inputs and not v.is_initializer()]
    graph.outputs.clear()
    graph.inputs.clear()
    graph.remove(nodes)
    graph.initializers.clear()
    _prefix(nodes, initializers, free)
    for value in initializers:
        if value.name is not None and value.name.removeprefix(PREFIX) in zeroed:
            value.const_value = _zeros(value)
        model.graph.register_initializer(value)
    model.graph.extend(nodes)
    return {**{str(v.name).removeprefix(PREFIX): v for v in free}, **outputs}


def _names(values: Sequence[ir.Value]) -> list[str]:
    return [str(value.name) for value in values]


def _prefix(nodes: Sequence[ir.Node], initializers: Sequence[ir.Value], free: Sequence[ir.Value]) -> None:
    for node in nodes:
        node.name = PREFIX + (node.name or "")
        for value in node.outputs:
            if value.name:
                value.name = PREFIX + value.name
    for value in (*initializers, *free):
        value.name = PREFIX + str(value.name)
        if value.const_value is not None:
            value.const_value.name = value.name


def _zeros(value: ir.Value) -> ir.TensorProtocol:
    tensor = value.const_value
    assert tensor is not None
    return ir.Tensor(
        np.zeros(tuple(tensor.shape.numpy()), tensor.dtype.numpy()), dtype=tensor.dtype, name=value.name
    )


def _same_version(model: ir.Model, guest: ir.Model) -> None:
    """Bring both graphs to the later operator set of the two, where their operators mean the same in it."""
    versions = [m.opset_imports.get("", 1) for m in (model, guest)]
    wanted = max(versions)
    for part, version in zip((model, guest), versions, strict=True):
        for node in part.graph.all_nodes():
            if not node.domain and version != wanted and _changed(node.op_type, version, wanted):
                raise Refused(
                    f"the networks use operator sets {versions[0]} and {versions[1]}, between which '{node.op_type}' "
                    "has changed",
                    hint="export both with the same opset",
                )
    for domain, version in guest.opset_imports.items():
        if domain and model.opset_imports.get(domain, version) != version:
            raise Refused(f"the networks use two versions of the operators of '{domain}'")
        model.opset_imports.setdefault(domain, version)
    model.opset_imports[""] = wanted


def _changed(operator: str, version: int, wanted: int) -> bool:
    if version >= _OLDEST and operator in _EXTENDED:
        return False
    try:
        first, second = (onnx.defs.get_schema(operator, v).since_version for v in (version, wanted))
    except onnx.defs.SchemaError:
        return True
    return bool(first != second)


def blend(model: ir.Model, outputs: Mapping[str, ir.Value], gate: str) -> None:
    """Make outputs of a graph (1 − g) · old + new, in place, with g = 0.

    Args:
      outputs: output -> the new network's value for it.
      gate: name of the gate.
    """
    graph = model.graph
    kind = next(iter(outputs.values())).dtype or ir.DataType.FLOAT
    ones = {name: _number(graph, name, kind, n) for name, n in ((gate, 0), (f"{PREFIX}one", 1))}
    rest = ir.node("Sub", [ones[f"{PREFIX}one"], ones[gate]], name=f"{PREFIX}rest")
    rest.outputs[0].name = f"{PREFIX}rest"
    graph.append(rest)
    for k, old in enumerate(graph.outputs):
        name = str(old.name)
        if name not in outputs:
            continue
        kept = ir.node("Mul", [rest.outputs[0], old], name=f"{PREFIX}{name}/kept")
        total = ir.node("Add", [kept.outputs[0], outputs[name]], name=f"{PREFIX}{name}/sum")
        kept.outputs[0].name, result = f"{PREFIX}{name}/kept", total.outputs[0]
        graph.extend([kept, total])
        graph.outputs[k] = result
        result.shape, result.type = old.shape, old.type
        old.name, result.name = f"{PREFIX}{name}/old", name


def _number(graph: ir.Graph, name: str, kind: ir.DataType, number: float) -> ir.Value:
    tensor = ir.Tensor(np.full(1, number, kind.numpy()), dtype=kind, name=name)
    value = ir.Value(name=name, shape=ir.Shape([1]), type=ir.TensorType(kind), const_value=tensor)
    value.metadata_props[KIND] = "BUFFER"
    graph.register_initializer(value)
    return value


# ---- and apart ------------------------------------------------------------------------------------------------


def drop_old(model: ir.Model, gate: str, states: Collection[str]) -> list[tuple[str, str]]:
    """Take the old network out of a graph, in place: what its outputs are without it, and nothing else.

    Args:
      model: a graph that `blend` has made, its gate at 1.
      states: names of recurrent inputs and outputs.

    Returns:
      The (side, name) of the old network's states, which are gone.

    Raises:
      Refused: an output that is not of the form that `blend` gives it.
    """
    graph, gone = model.graph, list[tuple[str, str]]()
    for k in reversed(range(len(graph.outputs))):
        value = graph.outputs[k]
        name = str(value.name)
        if name in states:
            if not name.startswith(PREFIX):
                gone.insert(0, ("output", name))
                graph.outputs.pop(k)
            continue
        new = _new_part(value, gate)
        if new.is_graph_output() or new.producer() is None:
            node = ir.node("Identity", [new], name=f"{PREFIX}{name}/new")
            graph.append(node)
            new = node.outputs[0]
        graph.outputs[k] = new
        new.shape, new.type = value.shape, value.type
        value.name, new.name = None, name
    _drop_dead(graph)
    for value in list(graph.inputs):
        if value.name in states and not str(value.name).startswith(PREFIX):
            if value.uses():
                raise Refused(f"the new network reads the old one's state '{value.name}'")
            gone.insert(0, ("input", str(value.name)))
            graph.inputs.remove(value)
    return gone


def _new_part(value: ir.Value, gate: str) -> ir.Value:
    """`new` of (1 − g) · old + new."""
    total = value.producer()
    parts = [] if total is None or total.op_type != "Add" else list(total.inputs)
    for k, part in enumerate(parts):
        kept = None if part is None else part.producer()
        if kept is None or kept.op_type != "Mul":
            continue
        rests = [v.producer() for v in operands(kept)]
        if any(r is not None and r.op_type == "Sub" and r.inputs[1] is not None and r.inputs[1].name == gate
               for r in rests):  # fmt: skip
            other = parts[1 - k]
            assert other is not None
            return other
    raise Refused(
        f"output '{value.name}' is not what a sidecar makes of two networks: (1 − g) · old + new",
        hint="finish the file that training wrote, not one that another program has rewritten",
    )


def _drop_dead(graph: ir.Graph) -> None:
    """Remove nodes and initializers that no output depends on."""
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def plain_names(model: ir.Model) -> dict[str, str]:
    """Take the prefix off every name, in place, where the plain one is free; old name -> new name."""
    graph = model.graph
    values = [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)]
    taken, names = {str(value.name) for value in values}, dict[str, str]()
    for node in graph:
        node.name = (node.name or "").removeprefix(PREFIX)
    for value in values:
        name = str(value.name)
        plain = name.removeprefix(PREFIX)
        if plain == name or plain in taken:
            continue
        value.name = names[name] = plain
        taken.add(plain)
        if value.const_value is not None:
            value.const_value.name = plain
    return names
