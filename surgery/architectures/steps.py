"""A graph as steps: nodes that belong together made one, nodes that compute shapes and weights left out.

Exporters write one layer in many ways: a bias as an operand or as an Add of its own, a Relu as Max(x, 0), channels
behind the image with a transposition before every convolution. As steps they are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from surgery.architectures.layers import (
    SCALING,
    Activation,
    Convolution,
    Dense,
    Flatten,
    Layer,
    Mean,
    Norm,
    Other,
    Pads,
    Pair,
    Pool,
    Recurrent,
)
from surgery.graph.layout import Layout, Units, units
from surgery.graph.modules import modules
from surgery.graph.spaces import Analysis

_PASSIVE = frozenset(["Identity", "Cast", "CastLike", "Dropout", "Squeeze", "Unsqueeze", "Transpose"])
_ARITHMETIC = frozenset(["Add", "Sub", "Mul", "Div"])
_READS = dict.fromkeys(("LSTM", "GRU", "RNN", "CastLike", "Reshape", "Expand"), 1)
"""Operators whose further operands are weights, states, types or shapes -> how many are data."""
_NAMES = {"Relu": "Relu", "Tanh": "Tanh", "Sigmoid": "Sigmoid", "Elu": "Elu", "Gelu": "Gelu", "Swish": "Silu"}
CENTRED = "dueling"


@dataclass
class Step:
    """One layer, or one node that is none.

    Attributes:
      layer: what it is; None if it only moves elements.
      inputs: the values that it reads, constants left out. outputs: those that it makes.
      weights: its tensors, the matrix or the kernel first.
      units: the layout of the axis of its units; empty if it has no weights.
    """

    layer: Layer | None
    inputs: list[ir.Value]
    outputs: list[ir.Value]
    weights: list[str] = field(default_factory=list)
    units: Layout = ()


class Steps:
    """The steps of a graph on the way to its outputs (recurrent state left out) or to one of them, in order.

    Attributes:
      sources: the inputs that are read. steps: in graph order.
      outputs: the outputs in order, with the value of each.
    """

    def __init__(self, analysis: Analysis, states: frozenset[str], only: str | None = None) -> None:
        self._analysis, self._facts = analysis, analysis.trace.facts
        graph = analysis.model.graph
        named = [(str(v.name), v) for v in graph.outputs if v.name not in states]
        self.outputs = [(name, value) for name, value in named if only in (None, name)]
        self._modules = modules(analysis.model, analysis.trace)
        self._fixed = self._not_moving()
        self._path = live = self._live(value for _, value in self.outputs)
        self._of: dict[ir.Value, Step] = {}
        self.steps: list[Step] = []
        for node in graph:
            if any(value in live for value in node.outputs):
                self._take(node)
        self.sources = [v for v in graph.inputs if v in live]

    def _live(self, ends: Iterator[ir.Value]) -> set[ir.Value]:
        pending, seen = list(ends), set[ir.Value]()
        while pending:
            value = pending.pop()
            if value in seen:
                continue
            seen.add(value)
            producer = value.producer()
            if producer is not None:
                pending.extend(self._moving(producer))
        return seen

    def _moving(self, node: ir.Node) -> list[ir.Value]:
        """The operands that depend on the observation, each once; of a recurrent layer only the first."""
        operands = node.inputs[: _READS.get(node.op_type, len(node.inputs))]
        return list(dict.fromkeys(v for v in operands if v is not None and v not in self._fixed))

    def _not_moving(self) -> set[ir.Value]:
        """The values that depend on weights and shapes only."""
        fixed = {*self._facts.constant, *self._facts.known}
        for node in self._analysis.model.graph:
            operands = node.inputs[: _READS.get(node.op_type, len(node.inputs))]
            if node.op_type in ("Shape", "Size") or all(v is None or v in fixed for v in operands):
                fixed.update(node.outputs)
        return fixed

    def _take(self, node: ir.Node) -> None:
        """Add a node as a step, or to the step that it belongs to."""
        moving = self._moving(node)
        if not moving:
            return
        for fuse in (self._bias, self._swish, self._dueling):
            if fuse(node, moving):
                return
        layer, weights = self._layer(node, moving)
        step = Step(layer, moving, [v for v in node.outputs if v in self._path], weights)
        if weights and not isinstance(layer, Norm):
            step.units = self._units(weights[0])
        self._add(step)

    def _add(self, step: Step) -> None:
        self.steps.append(step)
        for value in step.outputs:
            self._of[value] = step

    # ---- nodes that belong to the step before -----------------------------------------------------------------

    def _bias(self, node: ir.Node, moving: Sequence[ir.Value]) -> bool:
        """A constant vector that is added to what a layer without bias makes."""
        step = self._of.get(moving[0])
        if node.op_type != "Add" or len(moving) != 1 or step is None or step.outputs != [moving[0]]:
            return False
        if (
            not isinstance(step.layer, (Dense, Convolution))
            or len(step.weights) != 1
            or self._uses(moving[0]) > 1
        ):
            return False
        tensors = [
            name for v in node.inputs if v is not None and v is not moving[0] for name in self._tensors(v)
        ]
        if not tensors:
            return False
        step.weights += tensors[:1]
        self._extend(step, node)
        return True

    def _swish(self, node: ir.Node, moving: Sequence[ir.Value]) -> bool:
        """`x · sigmoid(x)`"""
        for value in moving if node.op_type == "Mul" and len(moving) == 2 else ():
            step, other = self._of.get(value), next(v for v in moving if v is not value)
            if step is not None and step.layer == Activation("Sigmoid") and step.inputs == [other]:
                step.layer = Activation("Silu")
                self._extend(step, node)
                return True
        return False

    def _dueling(self, node: ir.Node, moving: Sequence[ir.Value]) -> bool:
        """`V + A − mean A`, in whatever order it is written: one step that reads V and A."""
        if node.op_type not in ("Add", "Sub"):
            return False
        terms, inside = self._terms(node)
        means = [value for value, sign in terms if sign < 0]
        kept = [value for value, sign in terms if sign > 0]
        step = self._of.get(means[0]) if len(means) == 1 else None
        if step is None or not isinstance(step.layer, Mean) or len(kept) != 2:
            return False
        advantage = self._past(step.inputs[0])
        pasts = [self._past(value) for value in kept]
        if advantage not in pasts:
            return False
        value = kept[1 - pasts.index(advantage)]
        gone = {id(step), *(id(part) for part in inside)}
        self.steps = [part for part in self.steps if id(part) not in gone]
        self._add(Step(Other(CENTRED), [value, kept[pasts.index(advantage)]], [node.outputs[0]]))
        return True

    def _terms(self, node: ir.Node) -> tuple[list[tuple[ir.Value, int]], list[Step]]:
        """The signed terms of a sum of sums, and the steps inside it."""
        terms: list[tuple[ir.Value, int]] = []
        inside: list[Step] = []
        for k, value in enumerate(node.inputs):
            if value is None:
                continue
            sign = -1 if node.op_type == "Sub" and k else 1
            producer = value.producer()
            own = self._of.get(value)
            sums = producer is not None and producer.op_type in ("Add", "Sub")
            if producer is not None and sums and own is not None and self._alone(own, value):
                inner, deeper = self._terms(producer)
                terms += [(part, sign * own_sign) for part, own_sign in inner]
                inside += [own, *deeper]
            else:
                terms.append((value, sign))
        return terms, inside

    def _alone(self, step: Step, value: ir.Value) -> bool:
        """Whether a step is a sum of two values that one node reads."""
        return isinstance(step.layer, Other) and len(step.inputs) == 2 and self._uses(value) == 1

    def _past(self, value: ir.Value) -> ir.Value:
        """The value before steps that only move elements."""
        step = self._of.get(value)
        while step is not None and step.layer is None and len(step.inputs) == 1:
            value = step.inputs[0]
            step = self._of.get(value)
        return value

    def _extend(self, step: Step, node: ir.Node) -> None:
        step.outputs = list(node.outputs)
        for value in node.outputs:
            self._of[value] = step

    @staticmethod
    def _uses(value: ir.Value) -> int:
        return len({use.node for use in value.uses()}) + value.is_graph_output()

    # ---- what a node is ---------------------------------------------------------------------------------------

    def _layer(self, node: ir.Node, moving: Sequence[ir.Value]) -> tuple[Layer | None, list[str]]:
        kind, weights = node.op_type, self._weights(node)
        if node.domain:
            return Other(f"{node.domain}.{kind}"), weights
        if kind in _PASSIVE:
            return None, []
        if kind in ("Reshape", "Flatten"):
            return self._reshaped(node), []
        if kind == "Conv" and weights:
            return self._convolution(node, weights), weights
        if kind in ("Gemm", "MatMul", "Einsum") and len(moving) == 1 and weights:
            plain = len(self._analysis.tensors[weights[0]]) == 2
            return (
                Dense(self._shape(node.outputs[0])[-1], self._name(weights[0])) if plain else Other(kind)
            ), weights
        if kind in ("LSTM", "GRU") and weights and _text(node, "direction", "forward") == "forward":
            recurrent = Recurrent("lstm" if kind == "LSTM" else "gru", _integer(node, "hidden_size", 0))
            return Recurrent(recurrent.kind, recurrent.width, self._name(weights[0])), weights
        if kind in ("LayerNormalization", "BatchNormalization"):
            return Norm(
                "layer" if kind[0] == "L" else "batch", self._name(weights[0]) if weights else ""
            ), weights
        return self._unweighted(node, moving), weights

    def _unweighted(self, node: ir.Node, moving: Sequence[ir.Value]) -> Layer:
        kind = node.op_type
        if kind in _NAMES:
            return Activation(_NAMES[kind])
        if kind in ("Max", "Clip") and len(moving) == 1 and self._rectifies(node):
            return Activation("Relu")
        if kind in ("MaxPool", "AveragePool"):
            return self._pool(node)
        if kind in ("GlobalAveragePool", "ReduceMean"):
            return Mean()
        if (
            kind in _ARITHMETIC
            and len(moving) == 1
            and len(node.inputs) == 2
            and node.inputs[0] is not node.inputs[1]
        ):
            return SCALING
        return Other(kind)

    def _rectifies(self, node: ir.Node) -> bool:
        """max(x, 0)"""
        bounds = [
            None if v is None else self._facts.small(v)
            for v in node.inputs[1 if node.op_type == "Clip" else 0 :]
        ]
        if node.op_type == "Clip":
            low = bounds[0] if bounds else None
            high = bounds[1] if len(bounds) > 1 else None
            return low is not None and not low.any() and high is None
        found = [bound for bound in bounds if bound is not None]
        return len(found) == 1 and not found[0].any()

    def _reshaped(self, node: ir.Node) -> Layer | None:
        """A flatten if axes of units and of the image become one; None if no axis of units changes."""
        before, after = (self._layouts(v) for v in (node.inputs[0], node.outputs[0]))
        if before is None or after is None:
            return Other(node.op_type)
        known = [axis for axis in before if any(True for _ in units(axis))]
        new = [axis for axis in after if any(True for _ in units(axis)) and axis not in known]
        if not new:
            return None
        if len(new) == 1 and len(new[0]) > 1 and len(after) < len(before):
            innermost = isinstance(new[0][-1], Units) and not isinstance(new[0][0], Units)
            return Flatten("hwc" if innermost else "chw")
        return Other(node.op_type)

    def _layouts(self, value: ir.Value | None) -> list[Layout] | None:
        axes = None if value is None else self._analysis.trace.described(value)
        return None if axes is None else [self._analysis.layout(axis) for axis in axes]

    def _convolution(self, node: ir.Node, weights: Sequence[str]) -> Layer:
        shape = self._shape(node.inputs[1])
        if (
            len(shape) != 4
            or _integer(node, "group", 1) != 1
            or set(_integers(node, "dilations", [1])) != {1}
        ):
            return Other("Conv of another kind")
        kernel, stride = (shape[2], shape[3]), _pair(_integers(node, "strides", [1, 1]))
        pads = self._pads(node, kernel, stride)
        return Convolution(shape[0], kernel, stride, pads, self._name(weights[0]))

    def _pool(self, node: ir.Node) -> Layer:
        kernel = _integers(node, "kernel_shape", [])
        special = _integer(node, "ceil_mode", 0) or set(_integers(node, "dilations", [1])) != {1}
        if len(kernel) != 2 or special or _integer(node, "count_include_pad", 0):
            return Other(f"{node.op_type} of another kind")
        size, stride = _pair(kernel), _pair(_integers(node, "strides", [1, 1]))
        return Pool(
            "max" if node.op_type == "MaxPool" else "mean", size, stride, self._pads(node, size, stride)
        )

    def _pads(self, node: ir.Node, kernel: Pair, stride: Pair) -> Pads:
        automatic = _text(node, "auto_pad", "NOTSET")
        if automatic in ("NOTSET", "VALID"):
            pads = _integers(node, "pads", [0, 0, 0, 0]) if automatic == "NOTSET" else [0, 0, 0, 0]
            return pads[0], pads[1], pads[2], pads[3]
        sides = []
        for size, k, step in zip(self._shape(node.inputs[0])[2:], kernel, stride, strict=True):
            total = max((-(-size // step) - 1) * step + k - size, 0)
            small, large = total // 2, total - total // 2
            sides.append((small, large) if automatic == "SAME_UPPER" else (large, small))
        return sides[0][0], sides[1][0], sides[0][1], sides[1][1]

    def _shape(self, value: ir.Value | None) -> tuple[int, ...]:
        return (self._facts.shapes.get(value) or ()) if value is not None else ()

    # ---- weights ----------------------------------------------------------------------------------------------

    def _weights(self, node: ir.Node) -> list[str]:
        """The tensors of a node's constant operands, a matrix before a bias."""
        found = [
            name
            for value in node.inputs
            if value is not None and value in self._fixed
            for name in self._tensors(value)
        ]
        return sorted(dict.fromkeys(found), key=lambda name: len(self._analysis.tensors[name]) == 1)

    def _tensors(self, value: ir.Value) -> Iterator[str]:
        """The parameters that a constant is computed from."""
        pending, seen = [value], set[ir.Value]()
        while pending:
            value = pending.pop(0)
            if value in seen:
                continue
            seen.add(value)
            producer = value.producer()
            if value.name in self._analysis.tensors:
                yield str(value.name)
            elif producer is not None:
                operands = producer.inputs[: _READS.get(producer.op_type, len(producer.inputs))]
                pending.extend(v for v in operands if v is not None and v in self._fixed)

    def _units(self, tensor: str) -> Layout:
        """The layout of the axis that makes units."""
        for axis in self._analysis.tensors[tensor]:
            if any(part.role == "out" for part in units(axis)):
                return axis
        return ()

    def _name(self, tensor: str) -> str:
        return self._modules[tensor]


def _integer(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _integers(node: ir.Node, name: str, default: list[int]) -> list[int]:
    attribute = node.attributes.get(name)
    return default if attribute is None else list(attribute.as_ints())


def _text(node: ir.Node, name: str, default: str) -> str:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()


def _pair(numbers: Sequence[int]) -> Pair:
    return numbers[0], numbers[1]
