"""Inputs that hold the numbers of rows, as of an embedding, and how many rows there are."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from surgery.tensors import shape_of

_MOVES = frozenset({
    "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Slice", "Split", "Expand", "Cast",
})  # fmt: skip


def rows_to_choose(model: ir.Model) -> dict[str, int]:
    """The integer inputs whose numbers choose a row of a table or a place of a one-hot vector, and from how many.

    Of several tables the smallest one counts, else the most places. A number that is computed with is not followed.
    """
    found: dict[str, int] = {}
    for value in model.graph.inputs:
        if value.name and (counts := choosing(value)):
            tables = [count for node, count in counts.items() if node.op_type == "Gather"]
            found[value.name] = min(tables) if tables else max(counts.values())
    return found


def choosing(value: ir.Value) -> dict[ir.Node, int]:
    """The nodes that choose by an integer input, and from how many rows or places."""
    return {node: count for each in _moved(value) for node, count in _counts(each)}


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


def _counts(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """The nodes that read a value as numbers of rows, and how many these are."""
    for node, place in value.uses():
        if node.op_type == "Gather" and place == 1 and (shape := _shape(node.inputs[0])):
            yield node, shape[node.attributes.get_int("axis", 0)]
        elif node.op_type == "OneHot" and place == 0 and (depth := _constant(node.inputs[1])) is not None:
            yield node, int(depth.numpy().reshape(-1)[0])
        elif node.op_type == "Equal" and (other := _constant(node.inputs[1 - place])) is not None:
            numbers = other.numpy().reshape(-1).tolist()
            if len(numbers) > 1 and numbers == list(
                range(len(numbers))
            ):  # a one-hot vector as PyTorch writes it
                yield node, len(numbers)


def _constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    return None if value is None else ir.convenience.get_const_tensor(value)


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    tensor = _constant(value)
    return () if tensor is None else shape_of(tensor)
