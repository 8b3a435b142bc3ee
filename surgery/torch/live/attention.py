"""Widths that the code of attention can have: heads grow in number, and PyTorch's have as many units as outside."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from surgery.edits.parts import TensorEdit
from surgery.edits.plan import Plan
from surgery.graph import layout
from surgery.graph.layout import Layout, Units

HEAD_SIZE = "heads grow in number, and keep their size"
ONE_WIDTH = "nn.MultiheadAttention has one width, for its heads and outside"


def rows_of(edit: TensorEdit) -> Layout:
    """The rows of one projection, of a matrix that holds all three or of one of its own: heads, then head size."""
    return _rows(edit.axes[0])[0]


def _rows(axis: Layout) -> list[Layout]:
    """Those of all projections on an axis; keys and values may be parts of one."""
    if axis and isinstance(axis[0], layout.Sum):
        return [rows for part in axis[0].parts for rows in _rows(part)]
    return [axis[1:] if axis and axis[0] == 3 else axis]


def split(axis: Layout, heads: int) -> tuple[Layout, Layout]:
    """The outer part of an axis, which has `heads` elements, and the rest; without such a part, it is empty."""
    ends = (end for end in range(1, len(axis) + 1) if layout.size(axis[:end]) == heads)
    end = next(ends, 0)
    return axis[:end], axis[end:]


def fitted(network: nn.Module, plan: Plan) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The widths of a plan, changed such that heads keep their size and grow in number.

    Code scales by 1/√d of that size, or derives it from the units outside. PyTorch's own attention has one width: its
    heads grow with the units outside, and where either cannot grow, neither does.

    Returns:
      space -> width, and the spaces that were left out with the reason.
    """
    widths = {edit.space: edit.after for edit in plan.spaces}
    left: dict[str, str] = {}
    edits = {tensor.name: tensor for tensor in plan.tensors}
    layers = [(path, m) for path, m in network.named_modules() if isinstance(m, nn.MultiheadAttention)]
    for _ in range(len(widths) + 1):  # what one layer needs may change what another has
        before = dict(widths)
        for path, module in layers:
            names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
            for edit in (edits[f"{path}.{name}"] for name in names if f"{path}.{name}" in edits):
                for rows in _rows(edit.axes[0]):
                    _fit(rows, edit.axes[1], int(module.num_heads), widths, left)
        if widths == before:
            break
    for number, sizes in (found for t in plan.tensors for axis in t.axes for found in _heads(axis)):
        for size in sizes if number in widths else ():
            _leave(size, HEAD_SIZE, widths, left)
    return widths, sorted((space, reason) for space, reason in left.items() if space not in widths)


def _heads(axis: Layout) -> Iterator[tuple[str, set[str]]]:
    """Spaces whose units are groups, and the spaces of the units in them."""
    match [factor.space for factor in axis if isinstance(factor, Units)]:
        case [number, *sizes]:
            yield number, set(sizes) - {number}
    for factor in axis:
        if isinstance(factor, layout.Sum):
            for part in factor.parts:
                yield from _heads(part)


def _fit(rows: Layout, columns: Layout, heads: int, widths: dict[str, int], left: dict[str, str]) -> None:
    outer, inner = split(rows, heads)
    for part in layout.units(inner):
        _leave(part.space, HEAD_SIZE, widths, left)
    size = layout.size(inner)
    match outer, columns:
        case (Units() as number,), (Units() as model,) if model.space in widths and number.space in widths:
            widths[model.space] = -(-widths[model.space] // size) * size
            widths[number.space] = widths[model.space] // size
        case _:
            for part in (*layout.units(outer), *layout.units(columns)):
                _leave(part.space, ONE_WIDTH, widths, left)


def _leave(space: str, reason: str, widths: dict[str, int], left: dict[str, str]) -> None:
    if widths.pop(space, None) is not None:
        left[space] = reason
