"""Puts new layers into a graph and gives their parameters a place in the optimizer; see `surgery.edits.insertion`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.edits.insertion import Insertion, NewNode, NewPort, NewTensor, Place
from surgery.errors import PlanMismatch
from surgery.graph.modules import KIND
from surgery.interface import Interface, Port
from surgery.optimizer import OptimizerState, ParamGroup, slots_of_each

_TYPES = {
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "float32": ir.DataType.FLOAT,
    "float64": ir.DataType.DOUBLE,
    "int64": ir.DataType.INT64,
    "bool": ir.DataType.BOOL,
}


def insert(model: ir.Model, insertions: Sequence[Insertion], *, seed: int, double: bool = False) -> None:
    """Put new layers into a graph, in place, one after the other.

    Args:
      model: the graph.
      insertions: each may go behind the result of an earlier one.
      seed: of their random numbers. double: make their tensors in float64, for proofs.

    Raises:
      PlanMismatch: a value that is not there, or a name that is taken.
    """
    for insertion in insertions:
        names = _values(model)
        for port in insertion.ports:
            if port.side == "input":
                names[port.name] = _new_input(model, port, names)
        for tensor in insertion.tensors:
            names[tensor.name] = _register(model, tensor, names, seed, double)
        for place in insertion.places:
            _put(model, place, names)
        for port in insertion.ports:
            if port.side == "output":
                _new_output(model, port, names)


def _values(model: ir.Model) -> dict[str, ir.Value]:
    graph = model.graph
    named = {str(v.name): v for v in [*graph.inputs, *graph.initializers.values()]}
    return named | {str(v.name): v for node in graph for v in node.outputs if v.name}


def _new_input(model: ir.Model, port: NewPort, names: Mapping[str, ir.Value]) -> ir.Value:
    _free(port.name, names)
    value = ir.Value(name=port.name, shape=ir.Shape(port.shape), type=ir.TensorType(_TYPES[port.dtype]))
    model.graph.inputs.append(value)
    return value


def _new_output(model: ir.Model, port: NewPort, names: Mapping[str, ir.Value]) -> None:
    if port.name not in names:
        raise PlanMismatch(f"the plan makes an output of '{port.name}', which nothing computes")
    value = names[port.name]
    value.shape, value.type = ir.Shape(port.shape), ir.TensorType(_TYPES[port.dtype])
    model.graph.outputs.append(value)


def _register(
    model: ir.Model, tensor: NewTensor, names: Mapping[str, ir.Value], seed: int, double: bool
) -> ir.Value:
    _free(tensor.name, names)
    dtype = _TYPES[tensor.dtype]
    if double and dtype.is_floating_point():
        dtype = ir.DataType.DOUBLE

    def compute() -> ir.TensorProtocol:
        return ir.Tensor(tensor.values(seed, dtype.numpy()), dtype=dtype, name=tensor.name)

    shape, small = ir.Shape(tensor.shape), math.prod(tensor.shape) <= 1 << 20
    held = compute() if tensor.start == "numbers" else ir.LazyTensor(
        compute, dtype=dtype, shape=shape, name=tensor.name, cache=small
    )  # fmt: skip
    value = ir.Value(name=tensor.name, shape=shape, type=ir.TensorType(dtype), const_value=held)
    if tensor.like is not None:
        value.metadata_props[KIND] = "PARAMETER"
    model.graph.register_initializer(value)
    return value


def _put(model: ir.Model, place: Place, names: dict[str, ir.Value]) -> None:
    """The nodes of one place, behind the node that makes its value."""
    graph, value = model.graph, names.get(place.value)
    producer = None if value is None else value.producer()
    if value is None or producer is None or producer.graph is not graph:
        raise PlanMismatch(f"the plan puts a layer behind '{place.value}', which no node here computes")
    readers = [(use.node, use.idx) for use in value.uses()]
    nodes = [_node(new, names) for new in place.nodes]
    graph.insert_after(producer, nodes)
    result = names[place.result]
    result.shape, result.type = value.shape, value.type
    for node, index in readers:
        node.replace_input_with(index, result)
    if value.is_graph_output():
        for k, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[k] = result
        value.name, result.name = f"{place.result}.before", value.name
        names[place.result] = result


def _node(new: NewNode, names: dict[str, ir.Value]) -> ir.Node:
    inputs = []
    for name in new.inputs:
        if name and name not in names:
            raise PlanMismatch(f"a new {new.operator} reads '{name}', which is not here")
        inputs.append(names[name] if name else None)
    for name in new.outputs:
        if name:
            _free(name, names)
    attributes: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value for name, value in new.attributes.items()
    }
    node = ir.node(new.operator, inputs, attributes, num_outputs=len(new.outputs), name=new.outputs[0])
    for value, name in zip(node.outputs, new.outputs, strict=True):
        value.name = name
        if name:
            names[name] = value
    return node


def _free(name: str, names: Mapping[str, ir.Value]) -> None:
    if name in names:
        raise PlanMismatch(
            f"the plan makes '{name}', which this checkpoint has already",
            hint="it may have been applied before",
        )


def with_states(interface: Interface, insertions: Sequence[Insertion]) -> Interface:
    """The interface with the recurrent states that new layers bring."""
    ports = [port for insertion in insertions for port in insertion.ports]
    inputs, outputs = (
        tuple(Port(port.name, "state", declared=True) for port in ports if port.side == side)
        for side in ("input", "output")
    )
    return Interface((*interface.inputs, *inputs), (*interface.outputs, *outputs))


def join_optimizer(state: OptimizerState, insertions: Sequence[Insertion]) -> OptimizerState:
    """An optimizer that also trains the new layers: zero state, no step yet, in the group of the layer they follow."""
    new = [
        (t.name, t.shape, t.like) for insertion in insertions for t in insertion.tensors if t.like is not None
    ]
    return joined(state, new)


def joined(state: OptimizerState, new: Sequence[tuple[str, Sequence[int], str]]) -> OptimizerState:
    """An optimizer that also trains other parameters, from zero state (TensorFlow's RMSProp: one) and step 0.

    Args:
      state: with at least one group.
      new: name, shape, and the parameter whose group it joins (the largest group, if that is in none) of each.
    """
    groups, steps = list(state.groups), dict(state.steps)
    slots: dict[str, dict[str, ir.TensorProtocol]] = {slot: dict(held) for slot, held in state.slots.items()}
    for name, shape, like in new:
        k = _group(state.groups, like)
        if k is None:
            continue
        groups[k] = replace(groups[k], parameters=(*groups[k].parameters, name))
        for slot, held in slots.items():
            if any(known in held for known in state.groups[k].parameters):
                begun = slot == "square_avg" and groups[k].hyper.get("starts_at_one")
                held[name] = _filled(name, shape, held, 1.0 if begun else 0.0)
        if steps:
            steps[name] = 0.0
    return state.replace(slots=slots, steps=steps, groups=tuple(groups))


def _group(groups: Sequence[ParamGroup], like: str) -> int | None:
    for k, group in enumerate(groups):
        if like in group.parameters:
            return k
    return max(range(len(groups)), key=lambda k: len(groups[k].parameters), default=None)


def _filled(
    name: str, shape: Sequence[int], held: Mapping[str, ir.TensorProtocol], number: float
) -> ir.TensorProtocol:
    dtype = next(iter(held.values())).dtype
    return ir.Tensor(np.full(tuple(shape), number, dtype.numpy()), dtype=dtype, name=name)


def slot_counts(state: OptimizerState | None, insertions: Sequence[Insertion]) -> dict[str, int]:
    """How many optimizer slots each new parameter gets."""
    if state is None:
        return {}
    names = [name for insertion in insertions for name in insertion.trained]
    return slots_of_each(join_optimizer(state, insertions), names)
