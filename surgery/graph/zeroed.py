"""Which tensors have to be zero so that the outputs of a network are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from surgery.errors import Refused
from surgery.graph.facts import constant_tensor
from surgery.graph.operands import operands

_ALL = frozenset({"Add", "Sub", "Concat", "Sum", "Mean", "Max", "Min"})
_FIRST = frozenset(
    ["Identity", "Cast", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Expand",
     "Gather", "Dropout", "Neg", "Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Tanh", "Abs", "Sin", "Softsign",
     "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "Div", "Tile", "HardSwish", "Gelu", "Mish",
     "GlobalAveragePool", "AveragePool", "MaxPool", "CastLike"]
)  # fmt: skip
"""Operators that make zero of a first operand that is zero."""

_CONTRACTIONS = frozenset({"Gemm", "MatMul", "Conv", "ConvTranspose", "Einsum"})


def zeroed_for(model: ir.Model, outputs: Sequence[str]) -> frozenset[str]:
    """The tensors that must be zero for some outputs to be: the weights and biases of their last layers.

    Raises:
      Refused: an output that zeros in the last layer do not make zero, with the node.
    """
    values = {str(v.name): v for v in model.graph.outputs}
    found, readers = set[ir.Value](), set[ir.Node]()
    for name in outputs:
        _trace(name, values[name], found, readers)
    for value in found:
        others = [use.node for use in value.uses() if use.node not in readers]
        if others:
            raise Refused(
                f"'{value.name}' is not only in the last layer: node '{others[0].name}' reads it, too",
                hint=f"untie it first, in Python: surgery.untie(checkpoint, '{value.name}')",
            )
    return frozenset(str(value.name) for value in found)


def _trace(output: str, value: ir.Value, found: set[ir.Value], readers: set[ir.Node]) -> None:
    """Walk back from a value that shall be zero, and collect the tensors that make it so."""
    node = value.producer()
    if node is None and value.const_value is not None:
        found.add(value)
        return
    if node is None:
        raise Refused(f"output '{output}' of the new network is not made by a layer that could start at zero")
    if node.op_type == "Constant":
        if np.any(constant_tensor(node).numpy()):
            raise Refused(
                f"output '{output}' of the new network adds a number of its own (node '{node.name}')"
            )
        return
    readers.add(node)
    for part in _zero_operands(output, node):
        _trace(output, part, found, readers)


def _zero_operands(output: str, node: ir.Node) -> list[ir.Value]:
    """The operands of a node that are to be zero so that its result is.

    Raises:
      Refused: zeros do not make it zero.
    """
    inputs = operands(node)
    if node.op_type in _CONTRACTIONS:
        weight = [v for v in inputs[1:2] if _constant(v)] or [v for v in inputs[:1] if _constant(v)]
        if not weight:
            raise Refused(
                f"output '{output}' is a product of two activations (node '{node.name}', {node.op_type})"
            )
        return weight + inputs[2:]
    if node.op_type == "Mul":
        changing = [v for v in inputs if not _constant(v)]
        return (changing or inputs)[:1]
    if node.op_type in _ALL:
        return inputs
    if node.op_type == "Where":
        return inputs[1:]
    if node.op_type in _FIRST or (node.op_type == "Clip" and _holds_zero(node)):
        return inputs[:1]
    raise Refused(
        f"output '{output}' of the new network does not start at zero when its last layer does: "
        f"node '{node.name}' ({node.op_type})",
        hint="end both networks before that node: logits instead of probabilities",
    )


def _constant(value: ir.Value) -> bool:
    pending = [value]
    while pending:
        value = pending.pop()
        node = value.producer()
        if node is None:
            if value.const_value is None:
                return False
            continue
        pending.extend(operands(node))
    return True


def _holds_zero(node: ir.Node) -> bool:
    """Whether zero lies between the limits of a Clip."""
    ends = []
    for k, name in ((1, "min"), (2, "max")):
        operand = node.inputs[k] if k < len(node.inputs) else None
        tensor = None if operand is None else ir.convenience.get_const_tensor(operand)
        number = float(tensor.numpy().reshape(-1)[0]) if tensor is not None else None
        ends.append(node.attributes.get_float(name, 0.0) if number is None else number)
    return ends[0] <= 0 <= ends[1]
