"""Bounds on every value of a graph that hold for all inputs in a range: interval arithmetic in float64.

What has equal bounds is constant whatever is observed: the units of a layer with zero incoming weights, and those that
a ReLU never lets through (Moore, Kearfott, Cloud, *Introduction to Interval Analysis*, SIAM, 2009; for networks:
Gowal et al., arXiv:1810.12715). Operators without a rule give unbounded results, never wrong ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.arrays import Array
from surgery.errors import GraphError
from surgery.numeric.call import Unsupported
from surgery.numeric.evaluate import Evaluation, Frame

SLACK = 1e-12
"""Relative width added to bounds that were computed with rounding; equal bounds stay equal."""

_RISING = frozenset({
    "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Exp", "Softplus", "Elu", "Selu", "Celu", "HardSigmoid", "Clip",
    "Identity", "Floor", "Ceil", "Round", "Log", "Sqrt", "Erf", "Softsign", "ThresholdedRelu",
    "Sign", "Dropout",
})  # fmt: skip
_MOVING = frozenset({
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "Split", "Expand", "Tile",
    "Pad", "DepthToSpace", "SpaceToDepth", "MaxPool", "GlobalMaxPool", "AveragePool", "GlobalAveragePool",
    "ReduceMax", "ReduceMin", "ReduceMean", "ReduceSum",
})  # fmt: skip
_JOINING = frozenset(["Concat", "Max", "Min", "Sum", "Add", "Mean"])
_POINTWISE = frozenset({
    "Abs", "Cos", "Sin", "Gelu", "Mish", "HardSwish", "Swish", "Pow", "Where", "Sub", "Mul", "Div", "Neg", "Atan",
    "Reciprocal", "Not", "And", "Or", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Cast", "CastLike",
})  # fmt: skip
_LINEAR = frozenset(["Gemm", "MatMul", "Conv"])
_EXACT = _MOVING | {"Concat", "Max", "Min", "Relu", "Identity", "Clip"}
"""Their bounds need no slack."""


def spread(end: tuple[float | None, ...] | float, shape: Sequence[int], unbounded: float) -> Array:
    """An end of the declared range as an array that broadcasts: per feature it lies along channels or the last axis.

    Args:
      end: one for all features, or one per feature; None where there is none.
      shape: of the input, [batch, …].
      unbounded: what stands for None.
    """
    if not isinstance(end, tuple):
        return np.asarray(end, np.float64)
    vector = np.array([unbounded if value is None else value for value in end], np.float64)
    if len(shape) > 2 and shape[1] == len(vector):
        return vector.reshape((-1,) + (1,) * (len(shape) - 2))
    return vector


@dataclass(frozen=True)
class Bounds:
    """The range of a tensor; where `low` equals `high` it is constant."""

    low: Array
    high: Array

    @property
    def constant(self) -> Array:
        """Mask of the elements that have one value only."""
        return np.asarray((self.low == self.high) & np.isfinite(self.low))

    @property
    def fixed(self) -> bool:
        """Whether all of them have."""
        return self.low is self.high or bool(np.array_equal(self.low, self.high))


def bounds(model: ir.Model, inputs: Mapping[str, Bounds], wanted: Sequence[str]) -> dict[str, Bounds | None]:
    """Ranges of some values of the main graph, for all inputs in the given ranges.

    Args:
      model: any model; functions inlined.
      inputs: input name -> its range, in one concrete shape.
      wanted: names of values.

    Returns:
      name -> its range, of the value's shape; None where not even the shape could be found.
    """
    found: dict[ir.Value, Bounds | None] = {}
    evaluation = Evaluation(model.functions, {}, np.dtype(np.float64))
    frame = Frame(model.graph, versions=model.graph.opset_imports)
    for value in model.graph.inputs:
        name = value.name or ""
        if name in inputs:
            found[value] = _wide(inputs[name])
    for value in model.graph.initializers.values():
        if value.const_value is not None and value not in found:
            array = value.const_value.numpy()
            array = array.astype(np.float64) if value.const_value.dtype.is_floating_point() else array
            found[value] = Bounds(array, array)
    names, step = set(wanted), _Step(evaluation, frame)
    with np.errstate(all="ignore"):
        for node in model.graph:
            operands = [None if v is None else found.get(v) for v in node.inputs]
            known = all(v is None or b is not None for v, b in zip(node.inputs, operands, strict=True))
            results = step.ranges(node, operands) if known else [None] * len(node.outputs)
            found.update(zip(node.outputs, results, strict=True))
    return {str(v.name): b for v, b in found.items() if v.name in names}


@dataclass(frozen=True)
class _Step:
    """One node at a time."""

    evaluation: Evaluation
    frame: Frame

    def run(self, node: ir.Node, operands: Sequence[Array | None]) -> list[Array]:
        results = self.evaluation.call(node, tuple(operands), self.frame)
        if any(not isinstance(x, np.ndarray) for x in results):
            raise Unsupported("a sequence")
        return [x for x in results if isinstance(x, np.ndarray)]

    def ranges(self, node: ir.Node, operands: Sequence[Bounds | None]) -> list[Bounds | None]:
        try:
            return list(self._rule(node, operands))
        except (Unsupported, GraphError):
            return [None] * len(node.outputs)

    def _rule(self, node: ir.Node, operands: Sequence[Bounds | None]) -> list[Bounds]:
        if node.op_type == "CastLike":
            operands = [operands[0], _zeros(operands[1])]  # only its type counts
        if node.op_type in ("Shape", "Size") or all(b is None or b.fixed for b in operands):
            return [Bounds(x, x) for x in self.run(node, _lows(operands))]
        moving = [k for k, b in enumerate(operands) if b is not None and not b.fixed]
        if node.op_type == "Gather" and moving == [1]:
            return [self._chosen(node, operands)]
        if node.op_type in _JOINING or (moving == [0] and _rises(node)):
            return self._ends(node, operands)
        if node.op_type in ("Cast", "CastLike"):
            return [self._cast(node, operands)]
        if node.op_type == "BatchNormalization" and moving == [0]:
            return [_ordered(b) for b in self._ends(node, operands)]
        if node.op_type in _LINEAR and len(moving) == 1 and moving[0] < 2:
            return [self._linear(node, operands, moving[0])]
        if node.op_type in ("Sub", "Mul", "Div", "Neg"):
            return [_slack(self._corners(node, operands))]
        return self._anything(node, operands)

    def _ends(self, node: ir.Node, operands: Sequence[Bounds | None]) -> list[Bounds]:
        """Of a function that rises with every operand."""
        low = self.run(node, _lows(operands))
        high = self.run(node, [None if b is None else b.high for b in operands])
        found = [_defined(a, b) for a, b in zip(low, high, strict=True)]
        return found if node.op_type in _EXACT else [_slack(b) for b in found]

    def _cast(self, node: ir.Node, operands: Sequence[Bounds | None]) -> Bounds:
        """Whole numbers wrap around where they cannot hold an end; all that is not zero is true."""
        [found], given = self._ends(node, operands), operands[0]
        assert given is not None
        if found.low.dtype.kind == "b":
            zero = (given.low <= 0) & (given.high >= 0)
            return Bounds(~zero, (given.low != 0) | (given.high != 0))
        if found.low.dtype.kind == "f":
            return found
        info = np.iinfo(found.low.dtype)
        held = (given.low >= info.min) & (given.high < float(info.max) + (info.bits < 64))
        return Bounds(np.where(held, found.low, info.min), np.where(held, found.high, info.max))

    def _chosen(self, node: ir.Node, operands: Sequence[Bounds | None]) -> Bounds:
        """Of the rows of a table, whichever they are."""
        table, indices = operands[0], operands[1]
        assert table is not None and indices is not None
        at = node.attributes.get_int("axis", 0) % table.low.ndim
        first = np.zeros_like(indices.low)
        ends = [
            np.broadcast_to(end, table.low.shape)
            for end in (table.low.min(at, keepdims=True), table.low.max(at, keepdims=True))
        ]
        return Bounds(*(self.run(node, [end, first])[0] for end in ends))

    def _corners(self, node: ir.Node, operands: Sequence[Bounds | None]) -> Bounds:
        """Of a function that is monotone in each operand: its extremes lie in the corners."""
        first, second = operands[0], operands[1] if len(operands) > 1 else None
        assert first is not None
        ends = [
            (a, b) for a in (first.low, first.high) for b in (second and (second.low, second.high)) or (None,)
        ]
        if (
            node.op_type == "Div"
            and second is not None
            and bool(((second.low <= 0) & (second.high >= 0)).any())
        ):
            return self._anything(node, operands)[0]
        found = [self.run(node, [x for x in pair if x is not None])[0] for pair in ends]
        if node.op_type == "Mul":
            # zero times anything is zero, however far its bounds reach
            found = [np.where(np.isnan(x), 0.0, x) if x.dtype.kind == "f" else x for x in found]
        return _defined(np.min(found, axis=0), np.max(found, axis=0))

    def _linear(self, node: ir.Node, operands: Sequence[Bounds | None], at: int) -> Bounds:
        """Gemm, MatMul, Conv with one constant factor W: W⁺ low + W⁻ high, and W⁺ high + W⁻ low."""
        data, factor = operands[at], operands[1 - at]
        assert data is not None and factor is not None

        def of(x: Array, w: Array, bias: bool = False) -> Array:
            pair = [x, w] if at == 0 else [w, x]
            rest = _lows(operands[2:]) if bias else [None] * len(operands[2:])
            return self.run(node, [*pair, *rest])[0]

        alpha = node.attributes.get_float("alpha", 1.0) if node.op_type == "Gemm" else 1.0
        up, down = (
            np.maximum(alpha * factor.low, 0) / (alpha or 1),
            np.minimum(alpha * factor.low, 0) / (alpha or 1),
        )
        low, high = (np.where(np.isfinite(end), end, 0.0) for end in (data.low, data.high))
        below = of(low, up, bias=True) + of(high, down)
        above = of(high, up, bias=True) + of(low, down)
        ones = (up != 0) * 1.0, (down != 0) * 1.0
        free_low, free_high = (data.low == -np.inf) * 1.0, (data.high == np.inf) * 1.0
        sign = np.sign(alpha) or 1.0
        endless_below = sign * (of(free_low, ones[0]) + of(free_high, ones[1])) > 0
        endless_above = sign * (of(free_high, ones[0]) + of(free_low, ones[1])) > 0
        found = Bounds(np.where(endless_below, -np.inf, below), np.where(endless_above, np.inf, above))
        return _slack(found)

    def _anything(self, node: ir.Node, operands: Sequence[Bounds | None]) -> list[Bounds]:
        """No bounds; but a pointwise function of constants is one."""
        finite = [
            None if x is None else np.where(np.isfinite(x), x, 0).astype(x.dtype) for x in _lows(operands)
        ]
        results = self.run(node, finite)
        still = np.zeros((), bool)
        if node.op_type in _POINTWISE | _RISING:
            still = np.asarray(True)
            for b in operands:
                still = still if b is None else still & b.constant
        return [_unbounded(x, still) for x in results]


def _rises(node: ir.Node) -> bool:
    """Whether the results of a node never fall when its first operand rises."""
    places = node.op_type == "MaxPool" and len(node.outputs) > 1
    falls = node.attributes.get_float("alpha", 1.0) < 0
    return node.op_type in _MOVING | _RISING and not places and not falls


def _wide(given: Bounds) -> Bounds:
    if given.low.dtype.kind != "f":
        return given
    return Bounds(given.low.astype(np.float64), given.high.astype(np.float64))


def _zeros(like: Bounds | None) -> Bounds | None:
    zero = None if like is None else np.zeros_like(like.low)
    return None if zero is None else Bounds(zero, zero)


def _lows(operands: Sequence[Bounds | None]) -> list[Array | None]:
    return [None if b is None else b.low for b in operands]


def _unbounded(x: Array, still: Array) -> Bounds:
    kind = x.dtype.kind
    if kind == "b":
        return Bounds(np.where(still, x, False), np.where(still, x, True))
    if kind in "iu":
        info = np.iinfo(x.dtype)
        return Bounds(np.where(still, x, info.min), np.where(still, x, info.max))
    if kind != "f":
        raise Unsupported(f"values of type {x.dtype}")
    return Bounds(np.where(still, x, -np.inf), np.where(still, x, np.inf))


def _defined(low: Array, high: Array) -> Bounds:
    """NaN bounds nothing."""
    if low.dtype.kind != "f":
        return Bounds(low, high)
    return Bounds(np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high))


def _ordered(ends: Bounds) -> Bounds:
    return Bounds(np.minimum(ends.low, ends.high), np.maximum(ends.low, ends.high))


def _slack(ends: Bounds) -> Bounds:
    if ends.low.dtype.kind != "f":
        return ends
    width: Any = SLACK * np.maximum(np.abs(ends.low), np.abs(ends.high))
    width = np.where((ends.low == ends.high) | ~np.isfinite(width), 0.0, width)
    return Bounds(ends.low - width, ends.high + width)
