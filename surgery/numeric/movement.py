"""Operators that only move elements: shapes, slices, joins, padding. They are linear: duals pass through."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from surgery.arrays import Array
from surgery.numeric.call import Call, Kernel


def reshape(call: Call) -> Array:
    """0 keeps the size of that axis (unless `allowzero`), -1 takes what is left."""
    x, target = call[0], call.setting("shape", 1) or []
    if not call.integer("allowzero"):
        target = [x.shape[at] if size == 0 else size for at, size in enumerate(target)]
    return x.reshape(target)


def flatten(call: Call) -> Array:
    """A matrix: the axes before `axis`, and the others."""
    x = call[0]
    axis = call.axis(1, x.ndim)
    return x.reshape(int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis:])))


def transpose(call: Call) -> Array:
    """Axes in the order of `perm`, reversed by default."""
    return call[0].transpose(call.attribute("perm"))


def squeeze(call: Call) -> Array:
    """Without the named axes of size 1, or without all of them."""
    axes = call.setting("axes", 1)
    return np.squeeze(call[0], None if axes is None else tuple(axes))


def unsqueeze(call: Call) -> Array:
    """New axes of size 1, counted in the result."""
    return np.expand_dims(call[0], tuple(call.setting("axes", 1) or ()))


def concat(call: Call) -> Array:
    """The operands after one another along `axis`."""
    return np.concatenate(call.tensors, axis=call.integer("axis", 1))


def split(call: Call) -> tuple[Array, ...]:
    """Parts of the given sizes, or equal ones with a smaller last part."""
    x = call[0]
    axis = call.axis(0, x.ndim)
    sizes = call.setting("split", 1)
    if sizes is None:
        count = call.integer("num_outputs", len(call.node.outputs))
        step = -(-x.shape[axis] // count)
        bounds = [min(step * at, x.shape[axis]) for at in range(1, count)]
    else:
        if sum(sizes) != x.shape[axis]:
            raise ValueError(f"parts {sizes} of an axis of {x.shape[axis]}")
        bounds = [int(bound) for bound in np.cumsum(sizes)[:-1]]
    return tuple(np.split(x, bounds, axis=axis))


def slices(call: Call) -> Array:
    """x[start:end:step] on the named axes; bounds beyond the axis are cut to it."""
    x = call[0]
    starts, ends = call.setting("starts", 1) or [], call.setting("ends", 2) or []
    axes = call.setting("axes", 3)
    steps = call.setting("steps", 4) or [1] * len(starts)
    chosen = [slice(None)] * x.ndim
    axes = list(range(len(starts))) if axes is None else axes
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        chosen[axis] = _bounded(start, end, step, x.shape[axis])
    return x[tuple(chosen)]


def _bounded(start: int, end: int, step: int, size: int) -> slice:
    low, high = (0, size) if step > 0 else (-1, size - 1)
    first = min(max(start + size if start < 0 else start, max(low, 0)), high)
    last = min(max(end + size if end < 0 else end, low), high)
    if first < 0:  # an empty axis walked backwards
        return slice(0, 0, step)
    return slice(first, None if last < 0 else last, step)


def tile(call: Call) -> Array:
    """The operand repeated along every axis."""
    return np.tile(call[0], [int(count) for count in call[1]])


def expand(call: Call) -> Array:
    """Broadcast to a shape, in both directions."""
    x, target = call[0], tuple(int(size) for size in call[1])
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, target))


def pad(call: Call) -> Array:
    """Widths before and after each axis; a negative width cuts."""
    x, axes = call[0], call.get(3)
    widths = call.setting("pads", 1) or []
    named = range(x.ndim) if axes is None else [int(axis) % x.ndim for axis in axes]
    pairs = [(0, 0)] * x.ndim
    for at, axis in enumerate(named):
        pairs[axis] = (widths[at], widths[at + len(widths) // 2])
    fill = call.get(2)
    value = call.number("value", 0.0) if fill is None else fill.reshape(())
    return padded(
        x, pairs, call.text("mode", "constant"), np.asarray(value, x.dtype if fill is None else None)
    )


def padded(x: Array, pairs: Sequence[tuple[int, int]], mode: str, value: Array) -> Array:
    """`x` with (before, after) widths per axis."""
    cut = tuple(
        slice(max(-before, 0), size - max(-after, 0))
        for (before, after), size in zip(pairs, x.shape, strict=True)
    )
    widths = [(max(before, 0), max(after, 0)) for before, after in pairs]
    x = x[cut]
    if mode == "constant":
        shape = [size + sum(width) for size, width in zip(x.shape, widths, strict=True)]
        out = np.full(shape, value, np.result_type(x.dtype, value.dtype))
        out[
            tuple(slice(before, before + size) for (before, _), size in zip(widths, x.shape, strict=True))
        ] = x
        return out
    if mode == "reflect":
        return np.pad(x, widths, mode="reflect")
    return np.pad(x, widths, mode="wrap") if mode == "wrap" else np.pad(x, widths, mode="edge")


def depth_to_space(call: Call) -> Array:
    """Channels into b x b blocks; the block index is the outer part of a channel (DCR) or the inner (CRD)."""
    x, block = call[0], call.integer("blocksize", 1)
    n, c, h, w = x.shape
    if call.text("mode", "DCR") == "DCR":
        moved = x.reshape(n, block, block, -1, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        moved = x.reshape(n, -1, block, block, h, w).transpose(0, 1, 4, 2, 5, 3)
    return moved.reshape(n, c // block**2, h * block, w * block)


def space_to_depth(call: Call) -> Array:
    """b x b blocks into channels, the block index outermost."""
    x, block = call[0], call.integer("blocksize", 1)
    n, c, h, w = x.shape
    moved = x.reshape(n, c, h // block, block, w // block, block).transpose(0, 3, 5, 1, 2, 4)
    return moved.reshape(n, c * block**2, h // block, w // block)


KERNELS: dict[str, Kernel] = {
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
    "SpaceToDepth": space_to_depth,
}
