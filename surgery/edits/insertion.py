"""New layers in a graph: what a plan says of them, and how they are put in.

An insertion is a value of the graph, the nodes that compute another value of the same shape from it, and the tensors
that these nodes read. All who read the first value then read the second. Tensors are described by how they start, so
that a plan with insertions prints, serialises and can be carried out on every network with the same graph.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

import numpy as np

from surgery.arrays import Array
from surgery.edits.arithmetic import natural, tensor_rng
from surgery.errors import PlanMismatch, shape_text

Start = Literal["zero", "one", "identity", "normal", "fill", "numbers"]
STARTS: tuple[Start, ...] = ("zero", "one", "identity", "normal", "fill", "numbers")
Attribute = int | float | str | tuple[int, ...] | tuple[float, ...]

MOST_ELEMENTS = 1 << 31
_DTYPE = re.compile(r"float(16|32|64)|bfloat16|int64|bool")
_OPERATOR = re.compile(r"[A-Z]\w*")


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor of a new layer.

    Attributes:
      name: of its initializer.
      shape: its shape.
      start: "zero", "one", "normal" (deviation `deviation`), "identity" (one where the index along both of `axes` is
        the same, in the middle of every other axis), "fill" (the first of the `numbers` everywhere), or the
        `numbers` themselves.
      deviation: of "normal". axes: of "identity": those of what is made, and of what is read.
      stacked: of "identity": how many leading axes count networks, each of which gets one.
      numbers: of "numbers", flattened.
      dtype: numpy's name of its element type.
      like: the trained parameter whose param group it joins; None if it is not trained.
      drawn_as: the name that its random numbers are drawn under; its own if empty. Copies of a network get the numbers
        of the original.
    """

    name: str
    shape: tuple[int, ...]
    start: Start
    deviation: float = 0.0
    axes: tuple[int, int] = (0, 1)
    numbers: tuple[int | float, ...] = ()
    dtype: str = "float32"
    like: str | None = None
    drawn_as: str = ""
    stacked: int = 0

    def values(self, seed: int, dtype: np.dtype[Any]) -> Array:
        """Its numbers, in the precision given."""
        match self.start:
            case "zero":
                return np.zeros(self.shape, dtype)
            case "one":
                return np.ones(self.shape, dtype)
            case "fill":
                return np.full(self.shape, self.numbers[0], dtype)
            case "numbers":
                return np.array(self.numbers, dtype).reshape(self.shape)
            case "normal":
                rng = tensor_rng(seed, self.drawn_as or self.name)
                # drawn in float32, so that the proof in float64 is of the numbers that are stored
                drawn = self.deviation * rng.standard_normal(self.shape, dtype=np.float32)
                return drawn.astype(np.float32).astype(dtype)
        out = np.zeros(self.shape, dtype)
        moved = np.moveaxis(out, self.axes, (0, 1))
        middle = tuple((n - 1) // 2 for n in moved.shape[2 + self.stacked :])
        diagonal = np.arange(len(moved))
        moved[(diagonal, diagonal, *[slice(None)] * self.stacked, *middle)] = 1
        return out

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "name": self.name, "shape": list(self.shape), "start": self.start, "deviation": self.deviation,
            "axes": list(self.axes), "numbers": list(self.numbers), "dtype": self.dtype, "like": self.like,
            "drawn_as": self.drawn_as, **({"stacked": self.stacked} if self.stacked else {}),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class NewNode:
    """A node of a new layer.

    Attributes:
      operator: an operator of the default ONNX domain.
      inputs: names of values; empty for an optional operand that is absent.
      outputs: names of its results; the first one is the node's name, too.
      attributes: numbers and texts.
    """

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "operator": self.operator, "inputs": list(self.inputs), "outputs": list(self.outputs),
            "attributes": {k: list(v) if isinstance(v, tuple) else v for k, v in self.attributes.items()},
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    """Where a new layer goes: one for every use of a layer that is used several times.

    Attributes:
      value: the value behind which it goes. result: the value that takes its place for all who read it.
      nodes: what computes the result.
    """

    value: str
    result: str
    nodes: tuple[NewNode, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"value": self.value, "result": self.result, "nodes": [node.to_json() for node in self.nodes]}


@dataclass(frozen=True, slots=True)
class NewPort:
    """A graph input or output that a new layer brings: the state of a recurrent one.

    Attributes:
      side: "input" or "output". name: of the value.
      shape: sizes, and names of symbolic ones. dtype: numpy's name of the element type.
      follows: the input of the graph, and the axis of it, that symbolic sizes are equal to.
    """

    side: Literal["input", "output"]
    name: str
    shape: tuple[int | str, ...]
    follows: tuple[str, int]
    dtype: str = "float32"

    def zeros(self, inputs: Mapping[str, Array]) -> Array:
        """The state before the first step, for other inputs of the graph."""
        name, axis = self.follows
        shape = [inputs[name].shape[axis] if isinstance(n, str) else n for n in self.shape]
        return np.zeros(shape, self.dtype)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "side": self.side, "name": self.name, "shape": list(self.shape), "follows": list(self.follows),
            "dtype": self.dtype,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Insertion:
    """One new layer.

    Attributes:
      name: its module path. kind: what it is, in a word. units: how wide it is.
      places: where it goes; its tensors are shared among them.
      tensors: what its nodes read. ports: recurrent state that it brings.
    """

    name: str
    kind: str
    units: int
    places: tuple[Place, ...]
    tensors: tuple[NewTensor, ...]
    ports: tuple[NewPort, ...] = ()

    @property
    def trained(self) -> tuple[str, ...]:
        """The names of its parameters that an optimizer holds."""
        return tuple(tensor.name for tensor in self.tensors if tensor.like is not None)

    def describe(self) -> str:
        """One line."""
        where = ", ".join(f"'{place.value}'" for place in self.places)
        shapes = ", ".join(f"{t.name} {shape_text(t.shape)} {t.start}" for t in self.tensors)
        return f"{self.name} ({self.kind}) behind {where}: {shapes}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; `from_json` gives an equal insertion."""
        return {
            "name": self.name, "kind": self.kind, "units": self.units,
            "places": [place.to_json() for place in self.places],
            "tensors": [tensor.to_json() for tensor in self.tensors],
            "ports": [port.to_json() for port in self.ports],
        }  # fmt: skip


def from_json(data: Mapping[str, Any]) -> Insertion:
    """Read an insertion.

    Raises:
      PlanMismatch: if the data does not describe one.
    """
    try:
        return Insertion(
            _text(data["name"]),
            _text(data["kind"]),
            natural(data["units"]),
            tuple(_place(item) for item in data["places"]),
            tuple(_tensor(item) for item in data["tensors"]),
            tuple(_port(item) for item in data.get("ports", ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PlanMismatch(f"not a new layer: {data!r:.80} ({type(error).__name__}: {error})") from None


def _place(data: Mapping[str, Any]) -> Place:
    nodes = tuple(_node(node) for node in data["nodes"])
    result = _text(data["result"])
    if not any(result in node.outputs for node in nodes):
        raise ValueError(f"no node makes '{result}'")
    return Place(_text(data["value"]), result, nodes)


def _node(data: Mapping[str, Any]) -> NewNode:
    operator = _text(data["operator"])
    if not _OPERATOR.fullmatch(operator):
        raise ValueError(f"operator {operator!r}")
    inputs, outputs = (tuple(_text(name) for name in data[side]) for side in ("inputs", "outputs"))
    if not outputs or not outputs[0]:
        raise ValueError(f"a {operator} without a result")
    attributes = {_text(name): _attribute(value) for name, value in data["attributes"].items()}
    return NewNode(operator, inputs, outputs, attributes)


def _attribute(value: object) -> Attribute:
    if isinstance(value, str) or _is_integer(value):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, list) and all(map(_is_integer, value)):
        return tuple(value)
    if isinstance(value, list) and all(isinstance(n, float) and math.isfinite(n) for n in value):
        return tuple(value)
    raise TypeError(f"{value!r:.40} is not the value of an attribute")


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


def _tensor(data: Mapping[str, Any]) -> NewTensor:
    shape = tuple(natural(n) for n in data["shape"])
    numbers = tuple(_finite(n) for n in data["numbers"])
    axes, start, dtype = tuple(natural(n) for n in data["axes"]), data["start"], _text(data["dtype"])
    stacked = data.get("stacked", 0)
    if start not in STARTS or not _DTYPE.fullmatch(dtype):
        raise ValueError(f"start {start!r} of {dtype!r}")
    if 0 in shape or math.prod(shape) > MOST_ELEMENTS or len(axes) != 2:
        raise ValueError(f"shape {list(shape)}")
    if len(numbers) != {"numbers": math.prod(shape), "fill": 1}.get(start, 0):
        raise ValueError(f"{len(numbers)} numbers for the shape {list(shape)}")
    if start == "identity" and (max(axes) >= len(shape) or shape[axes[0]] != shape[axes[1]]):
        raise ValueError(f"no identity of shape {list(shape)}")
    if stacked and (start != "identity" or natural(stacked) > min(axes)):
        raise ValueError(f"{stacked} stacked axes of the shape {list(shape)}")
    like = data["like"]
    return NewTensor(
        _text(data["name"]), shape, start, float(_finite(data["deviation"])), (axes[0], axes[1]), numbers, dtype,
        None if like is None else _text(like), _text(data["drawn_as"]), int(stacked),
    )  # fmt: skip


def _port(data: Mapping[str, Any]) -> NewPort:
    side, dtype = data["side"], _text(data["dtype"])
    if side not in ("input", "output") or not _DTYPE.fullmatch(dtype):
        raise ValueError(f"side {side!r} of {dtype!r}")
    shape = tuple(n if isinstance(n, str) else natural(n) for n in data["shape"])
    source, axis = data["follows"]
    return NewPort(side, _text(data["name"]), shape, (_text(source), natural(axis)), dtype)


def _finite(value: object) -> int | float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise TypeError(f"{value!r} is not a finite number")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not text")
    return value


def chained(insertions: Sequence[Insertion]) -> None:
    """Raise PlanMismatch if two new layers would have parameters or results of one name."""
    made = [tensor.name for insertion in insertions for tensor in insertion.tensors]
    made += [
        name
        for insertion in insertions
        for place in insertion.places
        for node in place.nodes
        for name in node.outputs
        if name
    ]
    twice = sorted({name for name in made if made.count(name) > 1})
    if twice:
        raise PlanMismatch(f"a plan that makes '{twice[0]}' twice")
