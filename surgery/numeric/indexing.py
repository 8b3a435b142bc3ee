"""Gathering, scattering and ordering. Indices wrap once below zero; order looks at real parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from surgery.arrays import Array
from surgery.numeric import dual
from surgery.numeric.call import Call, Kernel


def gather(call: Call) -> Array:
    """Slices of `data` along `axis` at the indices, whose axes take its place."""
    return np.asarray(np.take(call[0], call[1], axis=call.integer("axis")))


def _cells(indices: Array, axis: int) -> tuple[Array, ...]:
    """The index of every element of `indices`, with its value in place of its position along `axis`."""
    grid: list[Any] = list(np.ogrid[tuple(slice(size) for size in indices.shape)])
    grid[axis] = indices
    return tuple(grid)


def gather_elements(call: Call) -> Array:
    """data[i, …, indices[i, …, k], …, k]."""
    return np.asarray(call[0][_cells(call[1], call.axis(0, call[0].ndim))])


def _nd_cells(indices: Array, batch: int) -> tuple[Any, ...]:
    """The last axis of `indices` as a tuple of index arrays, after `batch` leading axes in step."""
    leading = np.ogrid[tuple(slice(size) for size in indices.shape[:batch])] if batch else ()
    rest = indices.ndim - 1 - batch
    steps = [np.reshape(step, step.shape + (1,) * rest) for step in leading]
    return (*steps, *(indices[..., at] for at in range(indices.shape[-1])))


def gather_nd(call: Call) -> Array:
    """data at index tuples, the first `batch_dims` axes in step."""
    return np.asarray(call[0][_nd_cells(call[1], call.integer("batch_dims"))])


def _scatter(call: Call, cells: tuple[Any, ...]) -> Array:
    data, updates = call[0], call[2]
    reduction = call.text("reduction", "none")
    out = data.astype(np.result_type(data.dtype, updates.dtype))
    if reduction == "none":
        out[cells] = updates
        return out
    if dual.is_dual(out) and reduction in ("max", "min"):
        raise call.refuse(f"no derivative through the reduction '{reduction}'")
    accumulate: dict[str, Callable[..., None]] = {
        "add": np.add.at,
        "mul": np.multiply.at,
        "max": np.maximum.at,
        "min": np.minimum.at,
    }
    accumulate[reduction](out, cells, updates)
    return out


def scatter_elements(call: Call) -> Array:
    """A copy of `data` with updates[i, …, k] put at indices[i, …, k] along `axis`."""
    return _scatter(call, _cells(call[1], call.axis(0, call[0].ndim)))


def scatter_nd(call: Call) -> Array:
    """A copy of `data` with updates put at index tuples."""
    return _scatter(call, _nd_cells(call[1], 0))


def _ranking(x: Array, axis: int, largest: bool) -> Array:
    """Indices that sort along `axis`, equal ones in their order."""
    if not largest:
        return np.argsort(x.real, axis=axis, kind="stable")
    backwards = np.flip(np.argsort(np.flip(x.real, axis), axis=axis, kind="stable"), axis)
    return np.asarray(x.shape[axis] - 1 - backwards)


def top_k(call: Call) -> tuple[Array, Array]:
    """The k largest (or smallest) along `axis` in order, and their indices."""
    x = call[0]
    axis = call.axis(-1, x.ndim)
    count = (call.setting("k", 1) or [1])[0]
    order = _ranking(x, axis, bool(call.integer("largest", 1)))
    indices = np.take(order, range(count), axis=axis).astype(np.int64)
    return np.take_along_axis(x, indices, axis=axis), indices


def _extreme(call: Call, choose: Callable[..., Any]) -> Array:
    x = call[0].real
    axis = call.axis(0, x.ndim)
    if call.integer("select_last_index"):
        found = x.shape[axis] - 1 - choose(np.flip(x, axis), axis=axis, keepdims=True)
    else:
        found = choose(x, axis=axis, keepdims=True)
    found = np.asarray(found, np.int64)
    return found if call.integer("keepdims", 1) else np.squeeze(found, axis)


def compress(call: Call) -> Array:
    """The slices along `axis` (elements without it) where the condition holds."""
    axis = call.attribute("axis")
    x = np.ravel(call[0]) if axis is None else call[0]
    return np.take(x, np.flatnonzero(call[1]), axis=0 if axis is None else int(axis))


KERNELS: dict[str, Kernel] = {
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "TopK": top_k,
    "ArgMax": lambda call: _extreme(call, np.argmax),
    "ArgMin": lambda call: _extreme(call, np.argmin),
    "Compress": compress,
}
