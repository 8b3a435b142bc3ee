"""Layers over time and over entities that can be inserted without changing a function: branches that start at zero.

recurrent    x + P · LSTM(x, h), P = 0       (or GRU, or RNN)
attention    x + softmax(q kᵀ/√d) v P, P = 0
"""

from __future__ import annotations

import math

import onnx_ir as ir

from surgery.checkpoint import Checkpoint
from surgery.edits.insertion import Attribute, NewPort
from surgery.errors import ArgumentError, Refused
from surgery.graph.labels import label
from surgery.graph.layers import RECURRENT, Spot
from surgery.graph.rules.recurrent import GATES
from surgery.ops.blocks import Shape, Sketch

_IN_OUT = (1, 0)


def check_recurrent(places: list[Spot]) -> None:
    """Raise Refused unless the place tells what is time and what is batch."""
    spot = places[0]
    if len(places) > 1:
        raise Refused(
            f"layer '{spot.layer.module}' is used at several steps of time, and no state leads from one to the next",
            hint="export the model one step at a time, with the state as input and output",
        )
    node = spot.value.producer()
    if spot.rank == 2 and spot.axis == 1:
        return
    if node is None or node.op_type not in RECURRENT:
        raise Refused(
            f"'{spot.value.name}' has {spot.rank} axes: it is not known which of them is time",
            hint="put the layer behind a recurrent one, or where there is one vector for each member of the batch",
        )
    layout: int = node.attributes.get_int("layout", default=0)
    if layout or node.attributes.get_string("direction", "forward") != "forward":
        raise Refused(f"node '{label(node)}' runs in both directions, or has its batch first")


def recurrent(sketch: Sketch, value: str, shape: Shape, opens: bool) -> str:
    """x + P · cell(x, h), P = 0; behind a recurrent node with its cell, elsewhere an LSTM over one step.

    The cell reads [T, B, units]: results of all steps are [T, 1, B, units], the last state is [1, B, units], which is
    one step, and any other value [B, units].
    """
    spot, width = sketch.spot, shape.width
    producer = spot.value.producer()
    node = producer if producer is not None and producer.op_type in RECURRENT else None
    cell, over_time = "LSTM" if node is None else node.op_type, node is not None and spot.rank == 4
    x = value
    if over_time or node is None:
        axes = sketch.numbers("axes", (1,) if over_time else (0,))
        x = sketch.op("Squeeze" if over_time else "Unsqueeze", value, axes)
    gates, deviation = GATES[cell], 1 / math.sqrt(3 * width)
    weights = [
        sketch.tensor("W", "", (1, gates * width, spot.units), "normal", deviation=deviation),
        sketch.tensor("R", "", (1, gates * width, width), "normal", deviation=deviation),
        sketch.tensor("B", "", (1, 2 * gates * width), "zero"),
    ]
    lengths = node.inputs[4] if node is not None and over_time and len(node.inputs) > 4 else None
    states = _states(sketch, cell, width, node)
    operands = [x, *weights, "" if lengths is None else str(lengths.name), *(name for name, _ in states)]
    reset: dict[str, Attribute] = {"linear_before_reset": 1} if cell == "GRU" else {}
    y = sketch.node(cell, operands, {"hidden_size": width, **reset}, [after for _, after in states])
    if not over_time:
        y = sketch.op("Squeeze", y, sketch.numbers("both", (0, 1) if node is None else (1,)))
    project = sketch.tensor("weight", "project", (width, spot.units), "zero", axes=_IN_OUT)
    return sketch.op("Add", value, sketch.op("MatMul", y, project))


def _states(sketch: Sketch, cell: str, width: int, before: ir.Node | None) -> list[tuple[str, str]]:
    """The state as inputs and outputs of the graph: (before, after) each.

    None where the layer before starts at the same state in every call: so does the new one, at zero.
    """
    if before is not None and not any(_given(value) for value in before.inputs[5:7]):
        return []
    names = []
    batch, follows = sketch.batch
    for kind in ("h", "c") if cell == "LSTM" else ("h",):
        name = f"{sketch.names.module}.{kind}"
        sketch.ports += [
            NewPort("input", name, (1, batch, width), follows, sketch.dtype),
            NewPort("output", f"{name}_next", (1, batch, width), follows, sketch.dtype),
        ]
        names.append((name, f"{name}_next"))
    return names


def _given(value: ir.Value | None) -> bool:
    """Whether a value depends on an input of the graph, and not only on its shape."""
    pending, seen = [value], set[int]()
    while pending:
        current = pending.pop()
        if current is None or current.const_value is not None or id(current) in seen:
            continue
        seen.add(id(current))
        producer = current.producer()
        if producer is None:
            return True
        if producer.op_type not in ("Shape", "Size"):
            pending.extend(producer.inputs)
    return False


def batch_of(checkpoint: Checkpoint) -> tuple[int | str, tuple[str, int]]:
    """The size of the batch, or its symbol, and where it is found: the input and its axis."""
    states = {port.name for port in checkpoint.interface.inputs if port.kind == "state"}
    graph = checkpoint.model.graph
    inputs = [
        value for value in graph.inputs if value.name not in graph.initializers and value.shape is not None
    ]
    for value in sorted(inputs, key=lambda value: value.name not in states):
        axis = 1 if value.name in states and len(value.shape or ()) == 3 else 0
        dim = (value.shape or [None])[axis] if len(value.shape or ()) > axis else None
        if isinstance(dim, int):
            return dim, (str(value.name), axis)
        if dim is not None:
            return str(dim.value or "batch"), (str(value.name), axis)
    raise Refused("the model has no input that tells the size of a batch")


def check_attention(checkpoint: Checkpoint, places: list[Spot], heads: int | None, width: int) -> int:
    """The number of heads; raises where attention over the middle axis has no sense."""
    for spot in places:
        if spot.rank != 3 or spot.axis != 2:
            raise Refused(
                f"'{spot.value.name}' is not a sequence of vectors: {spot.rank} axes, units on axis {spot.axis}",
                hint="attention goes between vectors of shape batch×positions×units; --kind residual goes anywhere",
            )
    masks = [port.name for port in checkpoint.interface.inputs if port.kind == "mask"]
    if masks:
        raise Refused(f"the model has a mask '{masks[0]}', which a new attention layer would not obey")
    if any(node.op_type in RECURRENT for node in checkpoint.model.graph):
        raise Refused("the model is recurrent: attention would look into the future along its axis of time")
    if heads is not None and (heads < 1 or width % heads):
        raise ArgumentError(f"{width} units cannot be divided among {heads} heads")
    return heads or next(n for n in (8, 4, 2, 1) if not width % n and (width // n >= 8 or n == 1))


def attention(sketch: Sketch, value: str, shape: Shape, opens: bool) -> str:
    """x + softmax(q kᵀ/√d) v P over the middle axis, P = 0 (Vaswani et al., 2017, arXiv:1706.03762)."""
    units, width, heads = sketch.spot.units, shape.width, shape.heads
    split = sketch.numbers("heads", (0, 0, heads, width // heads))
    deviation = 1 / math.sqrt(units)

    def projected(part: str, perm: tuple[int, ...]) -> str:
        weight = sketch.tensor("weight", part, (units, width), "normal", deviation=deviation, axes=_IN_OUT)
        bias = sketch.tensor("bias", part, (width,), "zero")
        x = sketch.op("Add", sketch.op("MatMul", value, weight), bias)
        return sketch.op("Transpose", sketch.op("Reshape", x, split), perm=perm)

    scale = sketch.number("scale", 1 / math.sqrt(width // heads))
    q, k, v = (projected(p, perm) for p, perm in (("query", _Q), ("key", _K), ("value", _Q)))
    scores = sketch.op("Softmax", sketch.op("Mul", sketch.op("MatMul", q, k), scale), axis=-1)
    mixed = sketch.op("Transpose", sketch.op("MatMul", scores, v), perm=_Q)
    joined = sketch.op("Reshape", mixed, sketch.numbers("joined", (0, 0, width)))
    project = sketch.tensor("weight", "project", (width, units), "zero", axes=_IN_OUT)
    return sketch.op("Add", value, sketch.op("MatMul", joined, project))


_Q, _K = (0, 2, 1, 3), (0, 2, 3, 1)
