"""Operators that work unit by unit: operands are aligned at the right and unified; size 1 imposes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import onnx_ir as ir

from surgery.graph.atoms import UNIT, Atom, Axis, leaves
from surgery.graph.labels import full_label
from surgery.graph.operands import data_of, operands
from surgery.graph.ranges import bounds, finite
from surgery.graph.rules.table import Table
from surgery.graph.trace import Trace

RULES = Table()

FLAT = frozenset(["Relu", "Abs", "Round", "Floor", "Ceil", "Sign", "Shrink", "ThresholdedRelu"])
"""Functions with f(0) = 0 whose slope is zero there, as frameworks have it: what starts at zero stays there."""


@RULES(
    "Relu", "LeakyRelu", "Abs", "Neg", "Identity", "Dropout",
    axes="all axes: pointwise, zero and scale pass back",
)  # fmt: skip
def homogeneous(t: Trace, node: ir.Node) -> None:
    """f(s·x) = s·f(x) for s > 0."""
    if node.op_type in ("Relu", "LeakyRelu", "Abs"):
        flat = node.op_type in FLAT
        t.put(node.outputs[0], t.broadcast(node, [data_of(node)], linear=False, flat=flat))
        return
    members = t.sequence(data_of(node))
    if members is not None:
        t.put_sequence(node.outputs[0], members)
        return
    for value in node.outputs:
        t.put(value, t.axes(data_of(node)))


@RULES(
    "Tanh", "Sin", "Tan", "Asin", "Atan", "Sinh", "Asinh", "Atanh", "Erf", "Gelu", "Swish", "HardSwish",
    "Mish", "Softsign", "Elu", "Selu", "Celu", "Sqrt", "Round", "Floor", "Ceil", "Sign", "Shrink",
    "ThresholdedRelu",
    axes="all axes: pointwise, zero passes back",
)  # fmt: skip
def through_zero(t: Trace, node: ir.Node) -> None:
    """f(0) = 0."""
    _limited_domain(t, node, data_of(node))
    t.put(node.outputs[0], t.broadcast(node, [data_of(node)], passes=1, flat=node.op_type in FLAT))


@RULES(
    "Sigmoid", "HardSigmoid", "Softplus", "Exp", "Log", "Cos", "Cosh", "Acos", "Acosh", "Reciprocal", "Not",
    "IsNaN", "IsInf", "BitwiseNot", "Clip",
    axes="all axes: pointwise",
)  # fmt: skip
def unary(t: Trace, node: ir.Node) -> None:
    """Any other function of one operand (bounds are scalars)."""
    _limited_domain(t, node, data_of(node))
    t.put(node.outputs[0], t.broadcast(node, [data_of(node)], passes=0))


@RULES("Cast", "CastLike", axes="all axes: pointwise, zero and scale pass back between floating types")
def cast(t: Trace, node: ir.Node) -> None:
    """A change of type; only between floating types does a scale survive."""
    like = node.inputs[1] if node.op_type == "CastLike" else None
    to = t.facts.dtype(like) if like else node.attributes.get_int("to", int(ir.DataType.FLOAT))
    passes = 2 if ir.DataType(to).is_floating_point() else 0
    t.put(node.outputs[0], t.broadcast(node, [data_of(node)], passes=passes))


@RULES("Add", "Sub", "Sum", "Mean", axes="all axes: pointwise, zero and scale pass back to all operands")
def additive(t: Trace, node: ir.Node) -> None:
    """x + y; a constant operand beside an activation is a bias."""
    values = operands(node)
    _say(t, values, "bias")
    columns = t.columns(node, [(value, t.axes(value)) for value in values])
    # where one operand is repeated (x + 1), neither zero nor scale passes back
    out = [t.merge(node, column, passes=2 if len(column) == len(values) else 0) for column in columns]
    t.put(node.outputs[0], out)


@RULES("Mul", axes="all axes: pointwise, zero and scale pass back to one operand")
def multiply(t: Trace, node: ir.Node) -> None:
    """x · y; a constant operand beside an activation is a scale."""
    values = operands(node)
    _say(t, values, "scale")
    # an activation is asked before a constant: derive() tries origins in order
    ordered = sorted(values, key=t.constant)
    t.put(node.outputs[0], t.broadcast(node, ordered, mode="any"))


@RULES("Div", "PRelu", axes="all axes: pointwise, zero and scale pass back to the first operand")
def divide(t: Trace, node: ir.Node) -> None:
    """x / y and x·slope for x < 0: homogeneous in x alone."""
    x, y = _two(node)
    _say(t, [x, y], "scale")
    _limited_domain(t, node, y)
    whole = t.broadcast(node, [x, y], passes=0)
    t.put(node.outputs[0], _homogeneous_in(t, x, y, whole))


def _homogeneous_in(t: Trace, x: ir.Value, y: ir.Value, whole: list[Axis]) -> list[Axis]:
    """Let the results' units remember x as their only origin where x has the axis, unless y depends on what x does."""
    axes, others = t.axes(x), t.axes(y)
    for k, axis in enumerate(reversed(whole)):
        own = axes[-1 - k] if k < len(axes) else UNIT
        other = others[-1 - k] if k < len(others) else UNIT
        if own and len(own) == len(axis) and not _vanishing(own) & _behind(other):
            for atom, origin in zip(axis, own, strict=True):
                if origin.size == atom.size:
                    atom.origins, atom.link = (origin,), replace(atom.link, passes=2)
    return whole


def _vanishing(axis: Axis) -> set[Atom]:
    """Everything that makes units of an axis zero when it is zero itself."""
    return _behind(axis, lambda atom: atom.link.passes > 0)


def _behind(axis: Axis, passes: Callable[[Atom], bool] = lambda atom: True) -> set[Atom]:
    """Everything that units of an axis were computed from, through the occurrences that pass."""
    found, stack = set[Atom](), list(leaves(axis))
    while stack:
        atom = stack.pop()
        if atom not in found:
            found.add(atom)
            if passes(atom):
                stack.extend(leaves(atom.origins))
    return found


@RULES(
    "Pow", "Mod", "Min", "Max", "And", "Or", "Xor", "Equal", "Less", "LessOrEqual", "Greater",
    "GreaterOrEqual", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Where",
    axes="all axes: pointwise",
)  # fmt: skip
def other(t: Trace, node: ir.Node) -> None:
    """Any other function of several operands."""
    values = operands(node)
    for value in values:
        _limited_domain(t, node, value)
    _say(t, values, "scale")
    power = t.scalar(node.inputs[1]) if node.op_type == "Pow" else None
    zero = power is not None and bool((power > 0).all())
    flat = power is not None and bool((power > 1).all())
    t.put(node.outputs[0], t.broadcast(node, values, passes=1 if zero else 0, flat=flat))


LIMITED = frozenset(["Log", "Sqrt", "Asin", "Acos", "Acosh", "Atanh", "Reciprocal", "Pow", "Mod", "Div"])
"""Functions that are not finite everywhere: a random unit there can give NaN, which no zero weight removes."""

_CRITICAL = {"Div": 1, "Mod": 1}
"""The operand that decides."""


def _limited_domain(t: Trace, node: ir.Node, value: ir.Value) -> None:
    if node.op_type not in LIMITED or (node.op_type == "Pow" and _whole_power(t, node)):
        return
    at = node.inputs[_CRITICAL.get(node.op_type, 0)]
    if at is not None and finite(node.op_type, bounds(at, t.facts)):
        return
    axes = [axis for axis in t.axes(_unrepeated(value)) if axis]
    if t.constant(value):
        t.domains.extend((axis, f"zeros may not be finite after {full_label(node)}") for axis in axes)
        return
    reason = f"random units may not be finite after {full_label(node)}"
    t.limits.extend((axis, "zero", reason) for axis in axes)


def _unrepeated(value: ir.Value) -> ir.Value:
    """What an Expand repeats: along an axis that it makes, a new unit holds what every old one does."""
    while (node := value.producer()) is not None and node.op_type == "Expand":
        value = data_of(node)
    return value


def _whole_power(t: Trace, node: ir.Node) -> bool:
    power = t.scalar(node.inputs[1])
    return power is not None and bool((power >= 0).all() and (power == power.round()).all())


def _say(t: Trace, values: list[ir.Value], kind: str) -> None:
    if not all(t.constant(value) for value in values):
        for value in values:
            if t.constant(value):
                t.use(kind, value, t.axes(value))  # type: ignore[arg-type]


def _two(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    x, y = node.inputs[0], node.inputs[1]
    assert x is not None and y is not None
    return x, y
