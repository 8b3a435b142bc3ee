"""Bounds of values that follow from the graph alone, and on which of them an activation is the identity."""

from __future__ import annotations

import math

import onnx_ir as ir

from surgery.graph.facts import Facts
from surgery.graph.operands import operands

Range = tuple[float, float]
EVERYTHING: Range = (-math.inf, math.inf)
_NONNEGATIVE: Range = (0.0, math.inf)
_FIXED: dict[str, Range] = {
    "Relu": _NONNEGATIVE,
    "Abs": _NONNEGATIVE,
    "Exp": _NONNEGATIVE,
    "Softplus": _NONNEGATIVE,
    "ReduceL1": _NONNEGATIVE,
    "ReduceL2": _NONNEGATIVE,
    "ReduceSumSquare": _NONNEGATIVE,
    "Sigmoid": (0.0, 1.0),
    "HardSigmoid": (0.0, 1.0),
    "Softmax": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
    "Softsign": (-1.0, 1.0),
    "Sin": (-1.0, 1.0),
    "Cos": (-1.0, 1.0),
    "Elu": (-1.0, math.inf),
}
_MOVES = frozenset(
    ["Identity", "Dropout", "Cast", "Transpose", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Slice",
     "Split", "Gather", "Expand", "MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin", "DepthToSpace",
     "SpaceToDepth", "Tile"]
)  # fmt: skip
"""Operators whose results are among the elements of their first operand."""

_MEANS = frozenset({"ReduceMean", "GlobalAveragePool", "Mean"})
"""Operators whose results lie between elements of their operands."""

_DEPTH = 40


def bounds(value: ir.Value, facts: Facts, depth: int = _DEPTH) -> Range:
    """Numbers between which all elements of a value lie, whatever the inputs and the parameters of the graph are.

    Of parameters only those of one element are known, which no edit of units changes.
    """
    if value not in facts.ranges:
        facts.ranges[value] = _bounds(value, facts, depth)
    return facts.ranges[value]


def _bounds(value: ir.Value, facts: Facts, depth: int) -> Range:
    node = value.producer()
    if value in facts.known and facts.known[value].size:
        return float(facts.known[value].min()), float(facts.known[value].max())
    if node is None or not depth or node.domain:
        return EVERYTHING
    kind, inputs = node.op_type, operands(node)
    if kind == "Elu" and node.attributes.get_float("alpha", 1.0) > 1:
        return -node.attributes.get_float("alpha", 1.0), math.inf
    if kind in _FIXED:
        return _FIXED[kind]
    if kind == "Clip":
        low, high = limits(node, facts)
        inner = bounds(inputs[0], facts, depth - 1)
        return min(max(low, inner[0]), high), min(max(low, inner[1]), high)
    if kind in _MOVES and inputs:
        return bounds(inputs[0], facts, depth - 1)
    if kind in ("Max", "Min", "Concat", "Add", "Where") or kind in _MEANS:
        among = inputs[1:] if kind == "Where" else inputs[:1] if kind.startswith("Reduce") else inputs
        return _joined(kind, *zip(*(bounds(v, facts, depth - 1) for v in among), strict=True))
    if kind in ("Mul", "Pow", "Sqrt", "ReduceSum"):
        return _nonnegative(kind, inputs, facts, depth)
    return EVERYTHING


def _nonnegative(kind: str, inputs: list[ir.Value], facts: Facts, depth: int) -> Range:
    """Squares, and what is made of numbers that are not negative."""
    ends = [bounds(v, facts, depth - 1) for v in inputs]
    low = ends[0][0]
    if kind == "Mul" and len(inputs) == 2:
        if inputs[0] is inputs[1]:
            return _NONNEGATIVE
        return (low * ends[1][0], math.inf) if min(low, ends[1][0]) >= 0 else EVERYTHING
    if kind == "Pow":
        power = facts.known.get(inputs[1])
        even = power is not None and bool((power % 2 == 0).all()) and bool((power >= 0).all())
        return _NONNEGATIVE if even or low >= 0 else EVERYTHING
    return (math.sqrt(low) if kind == "Sqrt" else low, math.inf) if low >= 0 else EVERYTHING


def _joined(kind: str, lows: tuple[float, ...], highs: tuple[float, ...]) -> Range:
    match kind:
        case "Max":
            return max(lows), max(highs)
        case "Min":
            return min(lows), min(highs)
        case "Add":
            return sum(lows), sum(highs)
    return min(lows), max(highs)


def limits(node: ir.Node, facts: Facts) -> Range:
    """The limits of a Clip."""
    ends = []
    for k, name, default in ((1, "min", -math.inf), (2, "max", math.inf)):
        operand = node.inputs[k] if k < len(node.inputs) else None
        if name in node.attributes:
            ends.append(node.attributes.get_float(name, default))
        elif operand is None:
            ends.append(default)
        elif operand in facts.known and facts.known[operand].size == 1:
            ends.append(float(facts.known[operand].reshape(-1)[0]))
        else:
            ends.append(math.nan)
    return ends[0], ends[1]


def finite(kind: str, within: Range) -> bool:
    """Whether a function has a finite value and a finite slope for every number of a range (a divisor, a base)."""
    low, high = within
    match kind:
        case "Div" | "Mod" | "Reciprocal":
            return low > 0 or high < 0
        case "Log" | "Sqrt" | "Pow":
            return low > 0
        case "Acosh":
            return low > 1
        case "Asin" | "Acos" | "Atanh":
            return low > -1 and high < 1
    return False


def keeps(node: ir.Node, within: Range, facts: Facts) -> bool:
    """Whether an activation returns every number of a range as it is: φ(x) = x for all x in it."""
    low, high = within
    match node.op_type:
        case "Relu" | "LeakyRelu" | "PRelu" | "Elu" | "Celu" | "Abs":
            return low >= 0
        case "Clip":
            least, most = limits(node, facts)
            return low >= least and high <= most
        case "Max" | "Min":
            others = [v for v in operands(node) if v in facts.constant]
            ends = [bounds(v, facts) for v in others]
            above = all(low >= end[1] for end in ends)
            return above if node.op_type == "Max" else all(high <= end[0] for end in ends)
        case "Identity":
            return True
    return False
