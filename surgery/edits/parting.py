"""Fused tensors in parts: what a plan says of one, and how it is done.

    W = [W₁; W₂; …]        slot(W) = [slot(W₁); slot(W₂); …]

The graph puts the parts together again before it computes: its operators get the same numbers, bit by bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from surgery.errors import PlanMismatch, Refused
from surgery.optimizer import OptimizerState
from surgery.tensors import shape_of


@dataclass(frozen=True, slots=True)
class Parted:
    """One tensor that is cut.

    Attributes:
      tensor: its name. axis: along which it is cut.
      sizes: of the parts, in order. names: of the new tensors.
    """

    tensor: str
    axis: int
    sizes: tuple[int, ...]
    names: tuple[str, ...]

    def describe(self) -> str:
        """One line."""
        parts = ", ".join(f"{name} {size}" for name, size in zip(self.names, self.sizes, strict=True))
        return f"  {self.tensor} is cut along axis {self.axis}: {parts}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; `from_json` gives an equal value."""
        return {
            "tensor": self.tensor,
            "axis": self.axis,
            "sizes": list(self.sizes),
            "names": list(self.names),
        }


def from_json(data: Mapping[str, Any]) -> Parted:
    """Raises: KeyError, TypeError, ValueError: not one."""
    texts, numbers = (data["tensor"], *data["names"]), (data["axis"], *data["sizes"])
    if not all(isinstance(text, str) and text for text in texts):
        raise TypeError("a tensor and its parts have names")
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
        raise TypeError("an axis and sizes are whole numbers")
    count = len(data["names"])
    if count < 2 or count != len(data["sizes"]) or len(set(texts)) != count + 1 or 0 in data["sizes"]:
        raise ValueError("two parts or more, each with a size and a name of its own")
    return Parted(data["tensor"], data["axis"], tuple(data["sizes"]), tuple(data["names"]))


def part(model: ir.Model, parted: Parted) -> None:
    """Replace a tensor by its parts, in place; a Concat of them takes its name.

    Raises:
      PlanMismatch: no such tensor, or one of another size.
    """
    graph = model.graph
    value = graph.initializers.get(parted.tensor)
    whole = None if value is None else value.const_value
    if value is None or whole is None or not _fits(parted, whole):
        raise PlanMismatch(
            f"the plan cuts '{parted.tensor}' into {list(parted.sizes)} along axis {parted.axis}, "
            "which this checkpoint does not have",
        )
    pieces = []
    for name, tensor in _pieces(parted, whole).items():
        piece = ir.Value(name=name, shape=ir.Shape(shape_of(tensor)), type=value.type, const_value=tensor)
        graph.register_initializer(piece)
        pieces.append(piece)
    node = ir.node("Concat", pieces, attributes={"axis": parted.axis})
    together = node.outputs[0]
    together.shape, together.type = value.shape, value.type
    graph.insert_before(graph[0], node)
    value.replace_all_uses_with(together)
    del graph.initializers[parted.tensor]
    together.name = parted.tensor


def parted_state(state: OptimizerState, parted: tuple[Parted, ...]) -> OptimizerState:
    """The optimizer state that follows: every slot is cut like its tensor, step counts and groups are those of it.

    Raises:
      Refused: a slot that is not in the shape of its tensor (factored, preconditioned).
    """
    groups, steps = list(state.groups), dict(state.steps)
    slots: dict[str, dict[str, ir.TensorProtocol]] = {slot: dict(held) for slot, held in state.slots.items()}
    for one in parted:
        for slot, held in slots.items():
            if one.tensor in held:
                whole = held.pop(one.tensor)
                if not _fits(one, whole):
                    raise Refused(
                        f"slot '{slot}' of '{one.tensor}' has another shape: it cannot be cut like it"
                    )
                held.update(_pieces(one, whole))
        if one.tensor in steps:
            count = steps.pop(one.tensor)
            steps.update(dict.fromkeys(one.names, count))
        for k, group in enumerate(groups):
            names = [n for old in group.parameters for n in (one.names if old == one.tensor else (old,))]
            groups[k] = replace(group, parameters=tuple(names))
    return state.replace(slots=slots, steps=steps, groups=tuple(groups))


def _fits(parted: Parted, tensor: ir.TensorProtocol) -> bool:
    shape = shape_of(tensor)
    return len(shape) > parted.axis and shape[parted.axis] == sum(parted.sizes)


def _pieces(parted: Parted, whole: ir.TensorProtocol) -> dict[str, ir.TensorProtocol]:
    shape, start, pieces = list(shape_of(whole)), 0, dict[str, ir.TensorProtocol]()
    for name, size in zip(parted.names, parted.sizes, strict=True):
        rows = (*(slice(None),) * parted.axis, slice(start, start + size))
        form = ir.Shape([*shape[: parted.axis], size, *shape[parted.axis + 1 :]])
        pieces[name] = ir.LazyTensor(_Piece(whole, rows, name), dtype=whole.dtype, shape=form, name=name)
        start += size
    return pieces


@dataclass(frozen=True)
class _Piece:
    """Reads a part of a tensor when it is called."""

    whole: ir.TensorProtocol
    rows: tuple[slice, ...]
    name: str

    def __call__(self) -> ir.TensorProtocol:
        return ir.Tensor(self.whole.numpy()[self.rows].copy(), dtype=self.whole.dtype, name=self.name)
