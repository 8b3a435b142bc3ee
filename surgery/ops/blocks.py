"""The layers that can be inserted without changing a function, as nodes and tensors.

identity     φ(I x)                      where φ returns x as it is          Net2Net, arXiv:1511.05641
residual     x + W₂ φ(W₁ φ(x)), W₂ = 0   anywhere                            Fixup, arXiv:1901.09321
rezero       x + α W₂ φ(W₁ φ(x)), α = 0  anywhere                            ReZero, arXiv:2003.04887
batchnorm    x + γ BN(W₂ φ(BN(W₁ φ(x)))), γ = 0                              Goyal et al., arXiv:1706.02677
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from surgery.edits.insertion import Attribute, Insertion, NewNode, NewPort, NewTensor, Place, Start
from surgery.graph.layers import CONVOLUTIONS, Spot
from surgery.ops.naming import Names

EPSILON = 1e-5
"""Of new batch normalisations."""

_GAIN = {"Relu": 2.0, "Clip": 2.0, "LeakyRelu": 2.0, "Max": 2.0, "Elu": 2.0}
"""Variance of a weight times its fan-in: 2 for rectifiers (He et al., 2015), else 1 (LeCun et al., 1998)."""


@dataclass(frozen=True)
class Shape:
    """The wanted form of a new layer.

    Attributes:
      width: of the inside of a residual branch. kernel: size of its convolutions.
      parts: names of its layers within it.
      heads: of attention.
    """

    width: int
    kernel: int
    parts: tuple[str, str]
    heads: int = 1


@dataclass
class Sketch:
    """Nodes and tensors of a layer in the making, at one place.

    Attributes:
      names: of its tensors. original: the names that their random numbers are drawn under.
      spot: where it goes. at: which use of the layer this is.
      activation: the node whose activation it takes over; None for a Relu.
      dtype: of its tensors. like: the parameter that it joins in the optimizer.
      batch: the size or symbol of a batch, and the input and axis of the graph that have it.
    """

    names: Names
    original: Names
    spot: Spot
    at: int
    activation: ir.Node | None
    dtype: str
    like: str | None
    batch: tuple[int | str, tuple[str, int]] = ("batch", ("", 0))
    nodes: list[NewNode] = field(default_factory=list)
    tensors: list[NewTensor] = field(default_factory=list)
    ports: list[NewPort] = field(default_factory=list)

    def op(self, operator: str, *inputs: str, **attributes: Attribute) -> str:
        """A node; the name of its result."""
        return self.node(operator, inputs, attributes)

    def node(
        self,
        operator: str,
        inputs: Sequence[str],
        attributes: Mapping[str, Attribute],
        results: Sequence[str] = (),
    ) -> str:
        """A node, and the names of its further results; the name of its first one."""
        where = f".{self.at}" if self.at else ""
        name = f"{self.names.module}/{operator}_{len(self.nodes)}{where}"
        self.nodes.append(NewNode(operator, tuple(inputs), (name, *results), dict(attributes)))
        return name

    def tensor(
        self, kind: str, part: str, shape: Sequence[int], start: Start, *, deviation: float = 0.0,
        axes: tuple[int, int] = (0, 1), numbers: tuple[float, ...] = (), trained: bool = True,
        stacked: bool = False,
    ) -> str:  # fmt: skip
        """A tensor; its name."""
        name, drawn = self.names.tensor(kind, part), self.original.tensor(kind, part)
        like = self.like if trained else None
        self.tensors.append(
            NewTensor(
                name,
                tuple(shape),
                start,
                deviation,
                axes,
                numbers,
                dtype=self.dtype,
                like=like,
                drawn_as="" if drawn == name else drawn,
                stacked=int(stacked and start == "identity"),
            )
        )
        return name

    def numbers(self, kind: str, numbers: Sequence[int]) -> str:
        """Whole numbers that a node reads."""
        name = f"{self.names.module}/{kind}"
        if all(tensor.name != name for tensor in self.tensors):
            self.tensors.append(
                NewTensor(name, (len(numbers),), "numbers", numbers=tuple(numbers), dtype="int64")
            )
        return name

    def number(self, kind: str, number: float) -> str:
        """One number that a node reads, in the precision of the layer; it is no parameter."""
        name = f"{self.names.module}/{kind}"
        if all(tensor.name != name for tensor in self.tensors):
            self.tensors.append(NewTensor(name, (), "numbers", numbers=(number,), dtype=self.dtype))
        return name

    def activate(self, value: str) -> str:
        """The activation, with the operands and attributes that it has in the model."""
        node = self.activation
        if node is None:
            return self.op("Relu", value)
        inputs = [
            value if _varies(operand) else "" if operand is None else str(operand.name)
            for operand in node.inputs
        ]
        return self.node(node.op_type, inputs, attributes_of(node))

    @property
    def gain(self) -> float:
        """Variance of a weight times its fan-in."""
        return _GAIN.get("Relu" if self.activation is None else self.activation.op_type, 1.0)

    def weighted(self, value: str, part: str, units: tuple[int, int], start: Start, kernel: int) -> str:
        """A dense layer or convolution from units[0] to units[1], with a bias of zeros."""
        if self.spot.spatial:
            return self._convolution(value, part, units, start, kernel)
        return self._dense(value, part, units, start)

    def _convolution(self, value: str, part: str, units: tuple[int, int], start: Start, kernel: int) -> str:
        count = self.spot.rank - 2
        inside = (kernel,) * count
        deviation = math.sqrt(self.gain / (units[0] * kernel**count))
        weight = self.tensor("weight", part, (units[1], units[0], *inside), start, deviation=deviation)
        bias = self.tensor("bias", part, (units[1],), "zero")
        before, after = (kernel - 1) // 2, kernel // 2
        return self.op(
            "Conv", value, weight, bias, kernel_shape=inside, strides=(1,) * count,
            pads=(before,) * count + (after,) * count,
        )  # fmt: skip

    def _dense(self, value: str, part: str, units: tuple[int, int], start: Start) -> str:
        if self.spot.stack:
            return self._stacked(value, part, units, start)
        node, deviation = self.spot.layer.node, math.sqrt(self.gain / units[0])
        gemm = node.op_type == "Gemm" and self.spot.rank == 2
        rows = _rows(node)
        shape, axes = ((units[1], units[0]), (0, 1)) if rows else ((units[0], units[1]), (1, 0))
        weight = self.tensor("weight", part, shape, start, deviation=deviation, axes=axes)
        bias = self.tensor("bias", part, (units[1],), "zero")
        if gemm:
            return self.op("Gemm", value, weight, bias, transB=int(rows))
        matrix = self.op("Transpose", weight, perm=(1, 0)) if rows else weight
        return self.op("Add", self.op("MatMul", value, matrix), bias)

    def _stacked(self, value: str, part: str, units: tuple[int, int], start: Start) -> str:
        """A dense layer of every network that stands along the first axis of the value."""
        count, deviation = self.spot.stack, math.sqrt(self.gain / units[0])
        rows = _rows(self.spot.layer.node)
        shape, axes = ((units[1], units[0]), (1, 2)) if rows else (units, (2, 1))
        weight = self.tensor(
            "weight", part, (count, *shape), start, deviation=deviation, axes=axes, stacked=True
        )
        bias = self.tensor("bias", part, (count, units[1]), "zero")
        matrix = self.op("Transpose", weight, perm=(0, 2, 1)) if rows else weight
        front = self.numbers("axis", (1,))
        return self.op("Add", self.op("MatMul", value, matrix), self.op("Unsqueeze", bias, front))

    def normalised(self, value: str, part: str, units: int, start: Start, *, scale: float = 1.0) -> str:
        """Batch normalisation with running statistics 0 and 1; its scale starts so, or is `scale` everywhere."""
        operands = [
            self.tensor("weight", part, (units,), start, numbers=(scale,) if start == "fill" else ()),
            self.tensor("bias", part, (units,), "zero"),
            self.tensor("running_mean", part, (units,), "zero", trained=False),
            self.tensor("running_var", part, (units,), "one", trained=False),
        ]
        return self.op("BatchNormalization", value, *operands, epsilon=EPSILON, momentum=0.9)


def dtype_of(model: ir.Model, tensor: str) -> str:
    """Numpy's name of a tensor's element type; float32 where there is none of that name."""
    value = model.graph.initializers.get(tensor)
    held = None if value is None else value.const_value
    return "float32" if held is None else str(held.dtype.numpy())


def _rows(node: ir.Node) -> bool:
    """Whether the model's dense weights are (out, in): as they are, or through a transposition."""
    if node.op_type == "Gemm":
        return bool(node.attributes.get_int("transB", 0))
    if node.op_type in CONVOLUTIONS:
        return True
    producers = [value.producer() for value in node.inputs[:2] if value is not None]
    return any(p is not None and p.op_type == "Transpose" and not _varies(p.inputs[0]) for p in producers)


def _varies(value: ir.Value | None) -> bool:
    """Whether a value depends on an input of the graph."""
    pending = [value]
    while pending:
        value = pending.pop()
        if value is None or value.const_value is not None:
            continue
        producer = value.producer()
        if producer is None:
            return True
        pending.extend(producer.inputs)
    return False


def attributes_of(node: ir.Node) -> dict[str, Attribute]:
    """A node's numbers and texts."""
    out: dict[str, Attribute] = {}
    for name, attribute in node.attributes.items():
        value = attribute.value
        if isinstance(value, int | float | str):
            out[name] = value
        elif isinstance(value, Sequence) and all(isinstance(n, int | float) for n in value):
            out[name] = tuple(value)
    return out


Branch = Callable[[Sketch, str, Shape, bool], str]
"""What computes the new value: (sketch, value with its units last or channels second, shape, whether it starts with an
activation)."""


def identity(sketch: Sketch, value: str, shape: Shape, opens: bool) -> str:
    """φ(I x)"""
    units = sketch.spot.units
    return sketch.activate(sketch.weighted(value, "", (units, units), "identity", shape.kernel))


def residual(sketch: Sketch, value: str, shape: Shape, opens: bool) -> str:
    """x + W₂ φ(W₁ φ(x)), W₂ = 0; the inner φ only where x is not what an activation made."""
    return sketch.op("Add", value, _branch(sketch, value, shape, opens, last="zero"))


def rezero(sketch: Sketch, value: str, shape: Shape, opens: bool) -> str:
    """x + α W₂ φ(W₁ φ(x)), α = 0"""
    stack = sketch.spot.stack
    scale = sketch.tensor("alpha", "", (stack, 1, 1) if stack else (), "zero")
    return sketch.op(
        "Add", value, sketch.op("Mul", scale, _branch(sketch, value, shape, opens, last="normal"))
    )


def _branch(sketch: Sketch, value: str, shape: Shape, opens: bool, last: Start) -> str:
    units, (first, second) = sketch.spot.units, shape.parts
    x = sketch.activate(value) if opens else value
    x = sketch.weighted(x, first, (units, shape.width), "normal", shape.kernel)
    return sketch.weighted(sketch.activate(x), second, (shape.width, units), last, shape.kernel)


def batchnorm(sketch: Sketch, value: str, shape: Shape, opens: bool) -> str:
    """x + BN₂(W₂ φ(BN₁(W₁ φ(x)))), the scale of BN₂ 0"""
    units, (first, second) = sketch.spot.units, shape.parts
    x = sketch.activate(value) if opens else value
    x = sketch.weighted(x, first, (units, shape.width), "normal", shape.kernel)
    x = sketch.activate(sketch.normalised(x, _norm(first, 1), shape.width, "one"))
    x = sketch.weighted(x, second, (shape.width, units), "normal", shape.kernel)
    return sketch.op("Add", value, sketch.normalised(x, _norm(second, 2), units, "zero"))


def _norm(part: str, number: int) -> str:
    return (
        part.replace("conv", "bn").replace("fc", "bn") if part.startswith(("conv", "fc")) else f"bn{number}"
    )


def inserted(
    kind: str, branch: Branch, sketches: Sequence[Sketch], values: Sequence[str], shape: Shape, *, opens: bool
) -> Insertion:
    """A new layer at every use of the layer before it; its tensors are those of the first use."""
    places = []
    for sketch, value in zip(sketches, values, strict=True):
        turned = _turned(sketch, value)
        result = branch(sketch, turned, shape, opens)
        result = result if turned == value else sketch.op("Transpose", result, perm=_back(sketch.spot))
        places.append(Place(value, result, tuple(sketch.nodes)))
    first = sketches[0]
    return Insertion(
        first.names.module, kind, first.spot.units, tuple(places), tuple(first.tensors), tuple(first.ports)
    )


def _turned(sketch: Sketch, value: str) -> str:
    """The value with its units where the operators want them: second for convolutions, else last."""
    spot = sketch.spot
    wanted = 1 if spot.spatial else spot.rank - 1
    return value if spot.axis == wanted else sketch.op("Transpose", value, perm=_there(spot))


def _there(spot: Spot) -> tuple[int, ...]:
    rest = [k for k in range(spot.rank) if k != spot.axis]
    return (rest[0], spot.axis, *rest[1:]) if spot.spatial else (*rest, spot.axis)


def _back(spot: Spot) -> tuple[int, ...]:
    there = _there(spot)
    return tuple(there.index(k) for k in range(spot.rank))
