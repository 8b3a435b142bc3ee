"""Which axes of size 1 are units: the only action, observation, channel or unit of a layer, which may get company.

Such an axis is followed through the operators below, whose rules know of it. Any other one reads it as the length that
it has, and it drops out, as it does where it meets a longer axis and is repeated along that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from surgery.graph.atoms import PORTS, Axis, Freeze, factors, freeze, leaves, size_of
from surgery.graph.labels import full_label
from surgery.graph.operands import operands, readers

Column = list[tuple[ir.Value, Axis]]
"""Operands with the axis of each that meets those of the others."""

_FOLLOWED = frozenset({
    "Gemm", "MatMul", "Conv", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Concat", "Expand",
    "Identity", "Dropout", "Cast", "CastLike", "Clip", "Where", "Min", "Max", "Pow",
    "Add", "Sub", "Sum", "Mean", "Mul", "Div", "Neg", "Abs", "Sqrt", "Exp", "Log", "Reciprocal",
    "Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Gelu", "Mish", "Swish", "HardSwish", "HardSigmoid",
    "Tanh", "Sigmoid", "Softplus", "Softsign", "Erf",
})  # fmt: skip

_CONTRACTIONS = frozenset({"Gemm", "MatMul", "Conv"})


def follows(node: ir.Node) -> bool:
    """Whether the rule of a node tells one unit from an axis that is repeated."""
    return node.op_type in _FOLLOWED and not node.domain


def may_grow(value: ir.Value) -> bool:
    """Whether an axis of size 1 of a stored tensor may be units; a number inside the graph is one number for all."""
    floating = value.dtype is not None and value.dtype.is_floating_point()
    return floating and value.producer() is None and all(follows(node) for node in readers(value))


def is_single(axis: Axis) -> bool:
    """Whether an axis is one unit."""
    return size_of(axis) == 1 and bool(factors(axis))


def alone(node: ir.Node, axis: Axis, how: str) -> None:
    """What is done to it fixes the length of an axis of size 1."""
    if size_of(axis) == 1:
        freeze(axis, Freeze("single", f"{how} by {full_label(node)}"))


def one_each(node: ir.Node, axes: Sequence[Axis]) -> None:
    """Units that are one each, alone or beside others in an axis, stay so: they are read as that."""
    for leaf in (leaf for leaf in leaves(*axes) if leaf.size == 1):
        alone(node, (leaf,), "its length of 1 is read")


def meeting(node: ir.Node, column: Sequence[tuple[ir.Value, Axis]], constant: Sequence[bool]) -> Column:
    """Those of the axes that meet at a node, and are not repeated along the others.

    One unit is repeated along a longer axis. That of a parameter stays one beside a value that is computed and has none
    there.
    """
    wide = [(value, axis) for value, axis in column if size_of(axis) != 1]
    singles = [(value, axis) for value, axis in column if is_single(axis)]
    computed = [axis for (_, axis), fixed in zip(column, constant, strict=True) if not fixed]
    if wide or (computed and not any(is_single(axis) for axis in computed)):
        how = "it is repeated along another axis" if wide else "it meets an axis that cannot grow"
        for _, axis in singles:
            alone(node, axis, how)
        return wide
    return singles


def fixed(graph: ir.Graph, trace_of: Callable[[ir.Value], Sequence[Axis] | None], output: str) -> str | None:
    """Why the one number that an output holds stays one: the reason that is nearest to the output."""
    waiting = [value for value in graph.outputs if value.name == output]
    seen = set(waiting)
    for value in waiting:
        if (why := held(trace_of(value) or ())) is not None:
            return why
        node = value.producer()
        read = [] if node is None or node.op_type in _CONTRACTIONS else operands(node)
        waiting += [v for v in read if v not in seen]
        seen.update(read)
    return None


def held(axes: Sequence[Axis]) -> str | None:
    """Why an axis of size 1 among these is no units any more; None if there is none."""
    singles = (atom for axis in axes for atom in axis if atom.single and atom.dropped)
    return next((why.reason for atom in singles for why in atom.frozen if why.kind not in PORTS), None)
