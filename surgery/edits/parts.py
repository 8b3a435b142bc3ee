"""The parts of a plan: a tensor, an operand, a port, a place where constants go; each is JSON and back."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from surgery.edits.arithmetic import natural
from surgery.graph import layout
from surgery.graph.layout import Layout
from surgery.graph.spaces import Fill

_MOST_OPERANDS = 64


@dataclass(frozen=True, slots=True)
class TensorEdit:
    """One tensor that follows the edited spaces.

    Attributes:
      name: the tensor.
      axes: the layout of each axis before the edit.
      fill: how entries that make fresh units start.
      scale: factor of all entries (γ of a normaliser whose statistic changes); gradients are divided by it.
    """

    name: str
    axes: tuple[Layout, ...]
    fill: Fill
    scale: float = 1.0

    def starts_at_mean(self, spaces: Collection[str]) -> bool:
        """Whether new units of some spaces start at the mean of the old: the two then share a gradient."""
        return any(u.role == "mean" and u.space in spaces for u in layout.units(*self.axes))

    def makes(self, spaces: Collection[str]) -> bool:
        """Whether it makes units of some spaces."""
        return any(u.role == "out" and u.space in spaces for u in layout.units(*self.axes))

    @property
    def before(self) -> tuple[int, ...]:
        """The shape that the tensor must have."""
        return tuple(layout.size(axis) for axis in self.axes)

    def after(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape that it will have."""
        return tuple(layout.size(axis, sizes) for axis in self.axes)

    def to_json(self) -> dict[str, Any]:
        axes = [layout.to_json(axis) for axis in self.axes]
        return {
            "name": self.name,
            "axes": axes,
            "fill": self.fill,
            **({"scale": self.scale} if self.scale != 1 else {}),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> TensorEdit:
        """Raises: ValueError, TypeError, KeyError, if the data is no such edit; so do the others here."""
        if data["fill"] not in ("random", "zero", "donor"):
            raise ValueError("unknown fill")
        axes = tuple(layout.from_json(axis) for axis in data["axes"])
        return TensorEdit(str(data["name"]), axes, data["fill"], nonnegative(data.get("scale", 1.0)))


@dataclass(frozen=True, slots=True)
class OperandEdit:
    """Numbers in the graph that follow: an operand or an attribute of a node.

    Attributes:
      node: the node, by the name of its first output.
      where: input index, or attribute name.
      value: the new numbers; None keeps what the graph computes there (a symbolic dimension).
      scalar: whether the operand is one number without an axis.
    """

    node: str
    where: int | str
    value: tuple[int | float | None, ...]
    scalar: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"node": self.node, "where": self.where, "value": list(self.value), "scalar": self.scalar}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> OperandEdit:
        where = data["where"] if isinstance(data["where"], str) else natural(data["where"])
        value, scalar = tuple(_number(number) for number in data["value"]), data["scalar"]
        if not value or not isinstance(scalar, bool) or (scalar and len(value) != 1):
            raise ValueError(f"an operand without numbers, or a scalar of several: {data!r:.80}")
        if isinstance(where, int) and where > _MOST_OPERANDS:
            raise ValueError(f"operand {where} of a node")
        return OperandEdit(str(data["node"]), where, value, scalar)


@dataclass(frozen=True, slots=True)
class PortEdit:
    """An input or output that follows: recurrent state grows with its layer, an observation is extended.

    Attributes:
      side: "input" or "output". name: of the graph's input or output.
      axes: the layout of each axis before the edit; empty for an axis that stays as it is.
      labels: the names of its features afterwards; empty if they have none.
    """

    side: Literal["input", "output"]
    name: str
    axes: tuple[Layout, ...]
    labels: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        axes = [layout.to_json(axis) for axis in self.axes]
        return {"side": self.side, "name": self.name, "axes": axes, "labels": list(self.labels)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> PortEdit:
        if data["side"] not in ("input", "output"):
            raise ValueError("unknown side of a port")
        axes = tuple(layout.from_json(axis) for axis in data["axes"])
        return PortEdit(data["side"], str(data["name"]), axes, tuple(str(label) for label in data["labels"]))


@dataclass(frozen=True, slots=True)
class Fold:
    """One place where constant units leave their contribution behind: it is added to a bias.

    Attributes:
      node: the node that reads the units, by the name of its first output.
      operand: index of the input through which it does.
      axis: of that input, along which they lie. layout: of that axis, before the edit.
      bias: (node, operand) of the constant that is added; None if there is none, and the contribution must be zero.
      sign: −1 where it is subtracted.
    """

    node: str
    operand: int
    axis: int
    layout: Layout
    bias: tuple[str, int] | None
    sign: int = 1

    def to_json(self) -> dict[str, Any]:
        return {
            "node": self.node, "operand": self.operand, "axis": self.axis, "layout": layout.to_json(self.layout),
            "bias": None if self.bias is None else list(self.bias), "sign": self.sign,
        }  # fmt: skip

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Fold:
        bias = None
        if data["bias"] is not None:
            name, operand = data["bias"]
            bias = str(name), natural(operand)
        if data["sign"] not in (1, -1):
            raise ValueError(f"sign {data['sign']!r}")
        return Fold(
            str(data["node"]),
            natural(data["operand"]),
            natural(data["axis"]),
            layout.from_json(data["layout"]),
            bias,
            data["sign"],
        )


def _number(value: object) -> int | float | None:
    if value is None or isinstance(value, float):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63:
        return value
    raise TypeError(f"{value!r} is not a number")


def nonnegative(value: object) -> float:
    """A finite number, 0 or more; raises TypeError."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise TypeError(f"{value!r} is not a finite number, 0 or more")
    return float(value)
