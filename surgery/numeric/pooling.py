"""Pooling, one tap of all windows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from surgery.arrays import Array
from surgery.numeric import dual
from surgery.numeric.call import Call, Kernel
from surgery.numeric.movement import padded
from surgery.numeric.window import Window, window


def _reach(x: Array, geometry: Window) -> list[tuple[int, int]]:
    """The padding with which every window lies inside, those that rounding up has added too."""
    pairs = [(0, 0), (0, 0)]
    zipped = zip(x.shape[2:], geometry.sizes, geometry.strides, geometry.spans, geometry.before, strict=True)
    for size, count, stride, span, before in zipped:
        pairs.append((before, (count - 1) * stride + span - size - before))
    return pairs


def _taps(x: Array, geometry: Window, fill: Array) -> Iterator[Array]:
    """The element under each tap of all windows, (N, C, *O) each."""
    x = padded(x, _reach(x, geometry), "constant", fill)
    for offset in np.ndindex(geometry.kernel):
        yield x[(slice(None), slice(None), *geometry.at(offset))]


def max_pool(call: Call) -> tuple[Array, ...]:
    """The largest of each window, and on request where it was (as an index into the flat operand)."""
    x = call[0]
    geometry = window(call, x.shape[2:], call.integers("kernel_shape"))
    real = x.real.dtype
    lowest = np.asarray(-np.inf if real.kind == "f" else np.iinfo(real).min, real)
    if len(call.node.outputs) < 2:
        taps = _taps(x, geometry, lowest)
        best = next(taps).copy()
        for tap in taps:
            best = dual.maximum(best, tap)
        return (best,)
    if call.integer("storage_order"):
        raise call.refuse("column-major indices have no kernel")
    positions = np.arange(x.size, dtype=np.int64).reshape(x.shape)
    best = np.full((*x.shape[:2], *geometry.sizes), lowest, x.dtype)
    where = np.full(best.shape, -1, np.int64)
    places = _taps(positions, geometry, np.asarray(-1))
    for tap, position in zip(_taps(x, geometry, lowest), places, strict=True):
        better = (tap.real > best.real) | (np.isnan(tap.real) & ~np.isnan(best.real)) | (where < 0)
        best, where = np.where(better, tap, best), np.where(better, position, where)
    return best, where


def average_pool(call: Call) -> Array:
    """The mean of each window; the padding asked for counts with `count_include_pad`, no other does."""
    x = call[0]
    geometry = window(call, x.shape[2:], call.integers("kernel_shape"))
    real = x.real.dtype
    inside = np.ones((1, 1, *x.shape[2:]), real)
    if call.integer("count_include_pad"):
        pairs = [(0, 0), (0, 0), *zip(geometry.before, geometry.after, strict=True)]
        around = padded(inside, pairs, "constant", np.ones((), real))
        unpadded = (0,) * len(geometry.before)
        bare = replace(geometry, before=unpadded, after=unpadded)
        counts = sum(_taps(around, bare, np.zeros((), real)))
    else:
        counts = sum(_taps(inside, geometry, np.zeros((), real)))
    return np.asarray(sum(_taps(x, geometry, np.zeros((), real))) / counts)


def lp_pool(call: Call) -> Array:
    """(Σ |x|^p)^(1/p) of each window."""
    x, p = call[0], call.integer("p", 2)
    geometry = window(call, x.shape[2:], call.integers("kernel_shape"))
    return _root(np.asarray(sum(_taps(_power(x, p), geometry, np.zeros((), x.real.dtype)))), p)


def _power(x: Array, p: int) -> Array:
    return dual.power(dual.absolute(x), np.asarray(p, x.real.dtype))


def _root(x: Array, p: int) -> Array:
    return dual.sqrt(x) if p == 2 else dual.power(x, np.asarray(1 / p, x.real.dtype))


def _spatial(x: Array) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def global_lp_pool(call: Call) -> Array:
    """`lp_pool` over all spatial axes."""
    x, p = call[0], call.integer("p", 2)
    return _root(np.asarray(_power(x, p).sum(axis=_spatial(x), keepdims=True)), p)


KERNELS: dict[str, Kernel] = {
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "LpPool": lp_pool,
    "GlobalAveragePool": lambda call: call[0].mean(axis=_spatial(call[0]), keepdims=True),
    "GlobalMaxPool": lambda call: dual.largest(call[0], _spatial(call[0]), keepdims=True),
    "GlobalLpPool": global_lp_pool,
}
