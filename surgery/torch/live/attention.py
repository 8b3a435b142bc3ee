"""Widths that PyTorch's attention can have: as many units in its heads as outside."""

from __future__ import annotations

from torch import nn

from surgery.edits.parts import TensorEdit
from surgery.edits.plan import Plan
from surgery.graph import layout
from surgery.graph.layout import Layout, Units

HEAD_SIZE = "the heads of nn.MultiheadAttention grow in number, and keep their size"
ONE_WIDTH = "nn.MultiheadAttention has one width, for its heads and outside"


def rows_of(edit: TensorEdit) -> Layout:
    """The rows of one projection, of a matrix that holds all three or of one of its own: heads, then head size."""
    axis = edit.axes[0]
    if axis and isinstance(axis[0], layout.Sum):
        return axis[0].parts[0]
    return axis[1:] if axis and axis[0] == 3 else axis


def split(axis: Layout, heads: int) -> tuple[Layout, Layout]:
    """The outer part of an axis, which has `heads` elements, and the rest; without such a part, it is empty."""
    ends = (end for end in range(1, len(axis) + 1) if layout.size(axis[:end]) == heads)
    end = next(ends, 0)
    return axis[:end], axis[end:]


def fitted(network: nn.Module, plan: Plan) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The widths of a plan, changed such that every attention of the network has one width.

    Heads keep their size and grow in number with the units outside; where either cannot grow, neither does.

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
            edit = edits.get(f"{path}.in_proj_weight") or edits.get(f"{path}.q_proj_weight")
            if edit is not None:
                _fit(edit, int(module.num_heads), widths, left)
        if widths == before:
            break
    return widths, sorted((space, reason) for space, reason in left.items() if space not in widths)


def _fit(edit: TensorEdit, heads: int, widths: dict[str, int], left: dict[str, str]) -> None:
    outer, inner = split(rows_of(edit), heads)
    for part in layout.units(inner):
        _leave(part.space, HEAD_SIZE, widths, left)
    size, columns = layout.size(inner), edit.axes[1]
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
