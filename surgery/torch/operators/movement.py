"""Operators that only move elements: shapes, slices, joins, padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from surgery.torch.call import Call, Ref, Results, Translation, source_of
from surgery.torch.host import Size


def reshape(call: Call) -> Results:
    """0 keeps the size of that axis (unless `allowzero`), -1 takes what is left."""
    x, target = call[0], call.sizes(1, "shape")
    if isinstance(target, Size):
        return call.emit(reshaped, x, target, bool(call.integer("allowzero")))
    if not call.integer("allowzero"):
        target = [Size(f"{x}.shape[{at}]") if size == 0 else size for at, size in enumerate(target)]
    if len(target) == 2 and target[1] == -1 and str(target[0]) == f"{x}.shape[0]":
        return call.emit(torch.flatten, x, 1)
    return call.method(x, "reshape", *target) if target else call.method(x, "reshape", ())


def reshaped(x: Tensor, target: list[int], allow_zero: bool) -> Tensor:
    """`x` in a shape that was computed; 0 keeps the size of that axis."""
    if not allow_zero:
        target = [x.shape[at] if size == 0 else size for at, size in enumerate(target)]
    return x.reshape(target)


def flatten(call: Call) -> Results:
    """A matrix: the axes before `axis`, and the others."""
    axis = call.integer("axis", 1)
    return call.emit(torch.flatten, call[0], 1) if axis == 1 else call.emit(matrix, call[0], axis)


def matrix(x: Tensor, axis: int) -> Tensor:
    """The axes before `axis` as rows, and the others as columns."""
    axis = axis + x.dim() if axis < 0 else axis
    rows = 1
    for size in x.shape[:axis]:
        rows *= size
    return x.reshape(rows, -1) if x.numel() else x.reshape(rows, x[(0,) * axis].numel() if rows else 0)


def transpose(call: Call) -> Results:
    """Axes in the order of `perm`, reversed by default."""
    order = call.integers("perm") or list(reversed(range(call.rank(0))))
    moved = [at for at, axis in enumerate(order) if at != axis]
    if len(moved) == 2:
        return call.method(call[0], "transpose", *moved)
    return call.method(call[0], "permute", *order) if moved else call[0]


def squeeze(call: Call) -> Results:
    """Without the named axes of size 1, or without all of them."""
    axes = call.axes(1)
    if axes is None:
        return call.method(call[0], "squeeze")
    return call.method(call[0], "squeeze", axes[0] if len(axes) == 1 else tuple(axes)) if axes else call[0]


def unsqueeze(call: Call) -> Results:
    """New axes of size 1, counted in the result."""
    axes = call.axes(1) or []
    if len(axes) == 1:
        return call.method(call[0], "unsqueeze", axes[0])
    if any(axis < 0 for axis in axes):
        rank = call.rank(0) + len(axes)
        axes = [axis % rank for axis in axes]
    y = call[0]
    for axis in sorted(axes):
        y = call.method(y, "unsqueeze", axis)
    return y


def concat(call: Call) -> Results:
    """The operands after one another along `axis`."""
    parts = [call[index] for index in range(len(call.operands))]
    return call.emit(torch.cat, parts, call.integer("axis", 1)) if len(parts) > 1 else parts[0]


def even_parts(x: Tensor, count: int, axis: int) -> tuple[Tensor, ...]:
    """`count` equal parts with a smaller, perhaps empty, last one."""
    size = x.shape[axis]
    step = -(-size // count)
    cuts = [min(step, max(size - step * at, 0)) for at in range(count)]
    return torch.split(x, cuts, dim=axis)


def split(call: Call) -> Results:
    """Parts of the given sizes, or equal ones with a smaller last part."""
    axis, sizes, count = call.integer("axis"), call.sizes(1, "split"), len(call.node.outputs)
    if sizes is None:
        total = call.size(0, axis)
        if total is not None and total % count == 0:
            return call.parts(call.emit(torch.chunk, call[0], count, axis), count)
        return call.parts(call.emit(even_parts, call[0], call.integer("num_outputs", count), axis), count)
    return call.parts(call.emit(torch.split, call[0], sizes, axis), count)


def strided(x: Tensor, axis: int, start: int, end: int, step: int) -> Tensor:
    """x[start:end:step] along an axis, backwards for a negative step."""
    if step > 0:
        return x[(slice(None),) * (axis % x.dim()) + (slice(start, end, step),)]
    size = x.shape[axis]
    first = min(max(start + size if start < 0 else start, -1), size - 1)
    last = max(end + size if end < 0 else end, -1)
    index = torch.arange(first, last, step, device=x.device) if first > last else None
    return x.narrow(axis, 0, 0) if index is None else x.index_select(axis, index)


def slices(call: Call) -> Results:
    """x[start:end:step] on the named axes; bounds beyond the axis are cut to it."""
    starts, ends, axes = call.sizes(1, "starts"), call.sizes(2, "ends"), call.sizes(3, "axes")
    steps = call.sizes(4, "steps")
    if any(isinstance(x, Size) for x in (starts, ends, axes, steps)):
        return call.emit(sliced, call[0], starts, ends, axes, steps)
    axes = list(range(len(starts))) if axes is None else [int(axis) for axis in axes]
    steps = [1] * len(starts) if steps is None else steps
    bounds = list(zip(axes, starts, ends, steps, strict=True))
    if any(isinstance(step, Size) or step < 0 for step in steps) or (
        min(axes, default=0) < 0 < len(axes) - 1
    ):
        y = call[0]
        for bound in bounds:
            y = call.emit(strided, y, *bound)
        return y
    if axes == [-1]:
        return Ref(_indexed(call, f"..., {_bounds(*bounds[0][1:])}"))
    rank = call.rank(0) if min(axes, default=0) < 0 else 0
    by_axis = {axis % rank if axis < 0 else axis: _bounds(*rest) for axis, *rest in bounds}
    chosen = [by_axis.get(axis, ":") for axis in range(max(by_axis, default=-1) + 1)]
    return Ref(_indexed(call, ", ".join(chosen))) if any(c != ":" for c in chosen) else call[0]


def _indexed(call: Call, index: str) -> str:
    return call.emitter.emit(f"{call[0]}[{index}]", call.name).text


def _bounds(start: Any, end: Any, step: int) -> str:  # noqa: ANN401
    first = "" if start == 0 else source_of(start)
    last = "" if isinstance(end, int) and end >= 2**31 - 1 else source_of(end)
    return f"{first}:{last}" + (f":{step}" if step != 1 else "")


def sliced(
    x: Tensor, starts: list[int], ends: list[int], axes: list[int] | None, steps: list[int] | None
) -> Tensor:
    """Slices whose bounds were computed."""
    for at, (start, end) in enumerate(zip(starts, ends, strict=True)):
        x = strided(x, at if axes is None else axes[at], start, end, 1 if steps is None else steps[at])
    return x


def tile(call: Call) -> Results:
    """The operand repeated along every axis."""
    return call.emit(torch.tile, call[0], call.sizes(1))


def expanded(x: Tensor, target: tuple[int, ...]) -> Tensor:
    """Broadcast to a shape, in both directions."""
    return x.expand(torch.broadcast_shapes(x.shape, tuple(target)))  # type: ignore[no-untyped-call]


def expand(call: Call) -> Results:
    """Broadcast to a shape, in both directions."""
    target, shape = call.sizes(1), call.shape(0)
    one_way = (
        shape is not None
        and not isinstance(target, Size)
        and len(shape) <= len(target)
        and all(old == 1 or old == new for old, new in zip(reversed(shape), reversed(target), strict=False))
    )
    if one_way:
        return call.method(call[0], "expand", *target)
    return call.emit(expanded, call[0], tuple(target) if isinstance(target, list) else target)


def pad(call: Call) -> Results:
    """Widths before and after each axis; a negative width cuts."""
    x, widths, rank = call[0], call.sizes(1, "pads"), call.rank(0)
    if isinstance(widths, Size):
        raise call.refuse("its widths are computed from data")
    named = call.axes(3) if call.has(3) else None
    axes = list(range(rank)) if named is None else [axis % rank for axis in named]
    pairs = {axis: (widths[at], widths[at + len(axes)]) for at, axis in enumerate(axes)}
    first = min((axis for axis, pair in pairs.items() if pair != (0, 0)), default=rank)
    flat = [width for axis in reversed(range(first, rank)) for width in pairs.get(axis, (0, 0))]
    mode = call.text("mode", "constant")
    if not flat:
        return x
    if mode != "constant":
        return call.emit(continued, x, flat, mode)
    fill = call.number("value", 0.0) if "value" in call.attributes else None
    if call.has(2):
        known = call.known(2)
        if known is None:
            return call.emit(filled, x, flat, call[2])
        fill = known.reshape(-1)[0].item()
    return call.emit(F.pad, x, tuple(flat), *(() if not fill else ("constant", fill)))


def filled(x: Tensor, widths: list[int], value: Tensor) -> Tensor:
    """Padding with a number that is a tensor."""
    inside = F.pad(torch.ones_like(x, dtype=torch.bool), widths)
    return torch.where(inside, F.pad(x, widths), value.reshape(()))


def continued(x: Tensor, widths: list[int], mode: str) -> Tensor:
    """Padding by the elements of the axis itself, one axis at a time; a negative width cuts."""
    for at in range(len(widths) // 2):
        before, after = widths[2 * at], widths[2 * at + 1]
        axis = x.dim() - 1 - at
        size = x.shape[axis]
        if (before, after) != (0, 0):
            places = torch.arange(-before, size + after, device=x.device)
            x = x.index_select(axis, _reflected(places, size, mode))
    return x


def _reflected(places: Tensor, size: int, mode: str) -> Tensor:
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places % size
    turn = max(2 * (size - 1), 1)
    places = places % turn
    return torch.where(places < size, places, turn - places)


def depth_to_space(call: Call) -> Results:
    """Channels into b x b blocks; the block index is the outer part of a channel (DCR) or the inner (CRD)."""
    block = call.integer("blocksize", 1)
    if call.text("mode", "DCR") == "CRD":
        return call.emit(F.pixel_shuffle, call[0], block)
    return call.emit(blocks_to_space, call[0], block)


def blocks_to_space(x: Tensor, block: int) -> Tensor:
    """[n, b·b·c, h, w] -> [n, c, h·b, w·b]."""
    n, c, h, w = x.shape
    moved = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return moved.reshape(n, c // block**2, h * block, w * block)


def space_to_blocks(x: Tensor, block: int) -> Tensor:
    """[n, c, h·b, w·b] -> [n, b·b·c, h, w]."""
    n, c, h, w = x.shape
    moved = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return moved.reshape(n, c * block**2, h // block, w // block)


TRANSLATIONS: dict[str, Translation] = {
    "Reshape": reshape,
    "Flatten": flatten,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Concat": concat,
    "Split": split,
    "Slice": slices,
    "Tile": tile,
    "Expand": expand,
    "Pad": pad,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": lambda call: call.emit(space_to_blocks, call[0], call.integer("blocksize", 1)),
}
