"""Inputs that hold the numbers of rows, as of an embedding, and how many rows there are."""

from __future__ import annotations

import onnx_ir as ir

from surgery.graph.facts import constant_tensor
from surgery.tensors import shape_of

_MOVES = frozenset(
    {
        "Identity",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Transpose",
        "Slice",
        "Split",
        "Expand",
        "Cast",
    }
)


def rows_to_choose(model: ir.Model) -> dict[str, int]:
    """The integer inputs whose numbers choose a row of a table or a place of a one-hot vector, and from how many.

    Of several tables the smallest one counts. A number that is computed with on its way is not followed.
    """
    found: dict[str, int] = {}
    for value in model.graph.inputs:
        counts = [count for each in _moved(value) for count in _counts(each)]
        if counts and value.name:
            found[value.name] = min(counts)
    return found


def _moved(value: ir.Value) -> set[ir.Value]:
    """A whole number, and what only moves it; nothing for other inputs."""
    pending, seen = [value] if value.dtype is not None and value.dtype.is_integer() else [], set[ir.Value]()
    while pending:
        value = pending.pop()
        if value not in seen:
            seen.add(value)
            moving = (use.node for use in value.uses() if use.idx == 0 and _moves(use.node))
            pending += [result for node in moving for result in node.outputs]
    return seen


def _moves(node: ir.Node) -> bool:
    whole = node.op_type != "Cast" or ir.DataType(node.attributes.get_int("to", 0)).is_integer()
    return node.op_type in _MOVES and whole


def _counts(value: ir.Value) -> list[int]:
    """How many rows the nodes choose from that read a value as numbers of rows."""
    found = []
    for node, place in value.uses():
        if node.op_type == "Gather" and place == 1 and (shape := _shape(node.inputs[0])):
            found.append(shape[node.attributes.get_int("axis", 0)])
        elif node.op_type == "OneHot" and place == 0 and (depth := _constant(node.inputs[1])) is not None:
            found.append(int(depth.numpy().reshape(-1)[0]))
        elif node.op_type == "Equal" and (other := _constant(node.inputs[1 - place])) is not None:
            numbers = other.numpy().reshape(-1)
            if numbers.tolist() == list(
                range(len(numbers))
            ):  # a one-hot vector as PyTorch's exporter writes it
                found.append(len(numbers))
    return found


def _constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "Constant":
        return constant_tensor(producer)
    return None if value is None else value.const_value


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    tensor = _constant(value)
    return () if tensor is None else shape_of(tensor)
