"""The arithmetic of an edit: how one tensor, and one optimizer slot of it, follow when spaces change.

Unit i of a space is copied to the new units j with source[j] = i and shares a_j, which sum to 1 over the copies;
or a new unit is *fresh*: random in the tensors that make it, zero where old units would read it.

    tensor            value      slot of gradient power p
    makes units       copied     · a^p
    consumes units    · a        copied
    both              · a_in     · a_out^p

Duplicates are merged by the inverse: outgoing weights are added up, and so are the gradients of the incoming ones.

Net2Net: Chen, Goodfellow, Shlens, 2016 (arXiv:1511.05641). Fresh units: OpenAI, 2019 (arXiv:1912.06680, app. B).
The slot rule is derived in docs/mathematics.md.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

import numpy as np

from surgery.arrays import Array
from surgery.edits.axis_maps import AxisMap as AxisMap
from surgery.edits.axis_maps import axis_map as axis_map
from surgery.edits.axis_maps import axis_maps as axis_maps
from surgery.edits.units import MOST_UNITS as MOST_UNITS
from surgery.edits.units import SpaceEdit as SpaceEdit
from surgery.edits.units import Start as Start
from surgery.edits.units import natural as natural
from surgery.graph.spaces import Fill

BLOCK = 1 << 22
"""Bytes of a tensor that are worked on at once."""


SPREAD = 0.3
"""Standard deviation of fresh weights, by that of their tensor: benchmarks/dip_after_surgery.py has what decided it."""


def edit_weight(
    old: Array,
    maps: Sequence[AxisMap | None],
    fill: Fill,
    rng: np.random.Generator,
    noise: float = 0.0,
    dtype: np.dtype[Any] | None = None,
) -> Array:
    """A tensor after the edit.

    Args:
      old: the tensor; it is read in blocks, and beside it only the result is held whole.
      maps: one per axis.
      fill: how entries that make fresh units start.
      rng: draws them, with `SPREAD` times the standard deviation of the tensor's own entries.
      noise: added to copies, as a fraction of that standard deviation; anything but 0 changes the function.
      dtype: precision to compute and return it in; None for its own.

    Returns:
      The new tensor. Shares are rounded such that the copies of a column sum to the stored original where the
      precision allows it.
    """
    if all(axis is None for axis in maps):
        return np.ascontiguousarray(old, dtype)
    new = _copied(old, maps, dtype or old.dtype)
    made, read = _mask(maps, "fresh_out"), _mask(maps, "fresh_in")
    random = fill == "random" and (made is not None or noise > 0)
    deviation = _deviation(old) if random else 0.0
    if noise and fill == "random":
        new += (noise * deviation * rng.standard_normal(new.shape) * _is_copy(maps)).astype(new.dtype)
    for rows in _rows(new):
        block, fresh = new[rows], None if made is None else np.broadcast_to(made, new.shape)[rows]
        if fresh is not None and fill == "random":
            block[fresh] = SPREAD * deviation * rng.standard_normal(int(fresh.sum()), dtype=np.float32)
        elif fresh is not None and fill == "zero":
            block[fresh] = 0
        if read is not None:
            zero = np.broadcast_to(read, new.shape)[rows]
            block[zero if fresh is None else zero & ~fresh] = 0
    return new


def _rows(array: Array) -> Iterator[slice]:
    """Slices of the first axis of at most `BLOCK` bytes, or of one row."""
    step = max(1, BLOCK * len(array) // max(1, array.nbytes))
    return (slice(start, start + step) for start in range(0, len(array), step))


def _copied(old: Array, maps: Sequence[AxisMap | None], dtype: np.dtype[Any]) -> Array:
    """Copies times shares, block by block along an axis that is not shared out."""
    shape = [n if axis is None else len(axis.source) for n, axis in zip(old.shape, maps, strict=True)]
    free = [k for k, axis in enumerate(maps) if axis is None or not (axis.shared or axis.summed)]
    if not free:
        return _taken(old.astype(dtype, copy=False), maps)
    along, new = free[0], np.empty(shape, dtype)
    turned, lead = np.moveaxis(new, along, 0), maps[along]
    rest = [None if k == along else axis for k, axis in enumerate(maps)]
    for rows in _rows(turned):
        chosen = np.arange(shape[along])[rows] if lead is None else lead.source[rows]
        block = _taken(np.take(old, chosen, axis=along).astype(dtype, copy=False), rest)
        turned[rows] = np.moveaxis(block, along, 0)
    return new


def _taken(old: Array, maps: Sequence[AxisMap | None]) -> Array:
    new = old
    for k, axis in enumerate(maps):
        if axis is not None:
            new = _along_axis(new, k, axis)
    return new


def _along_axis(old: Array, k: int, axis: AxisMap) -> Array:
    new = _share_out(old, k, axis) if axis.shared else np.take(old, axis.source, axis=k)
    if not axis.summed:
        return new
    # wider than the tensor, so that shares which sum to the original give it back
    total = np.moveaxis(new.astype(np.longdouble if old.dtype == np.float64 else np.float64), k, 0)
    np.add.at(total, axis.more_value[0], np.moveaxis(old, k, 0)[axis.more_value[1]])
    return np.moveaxis(total.astype(old.dtype), 0, k)


def _deviation(array: Array) -> float:
    """Standard deviation in float64."""
    mean = sum(float(array[rows].sum(dtype=np.float64)) for rows in _rows(array)) / array.size
    squares = sum(float(np.square(array[rows].astype(np.float64) - mean).sum()) for rows in _rows(array))
    return math.sqrt(squares / array.size)


def edit_slot(old: Array, maps: Sequence[AxisMap | None], power: int) -> Array:
    """An optimizer slot after the edit: a gradient statistic of the given power; fresh entries start at 0.

    The gradient of merged units is the sum of theirs. Its second moment is known where their gradients are
    proportional, (Σ √v)²; elsewhere that is an upper bound (Minkowski), so that steps become smaller, never larger.
    """
    new = old
    for k, axis in enumerate(maps):
        if axis is None:
            continue
        new = _merged_slot(new, k, axis, power)
        factor = np.where(axis.fresh_in | axis.fresh_out, 0.0, axis.grad**power)
        if np.isin(factor, (0.0, 1.0)).all():
            np.moveaxis(new, k, 0)[factor == 0] = 0
        else:  # in the precision of the factor, and in place: nothing is held twice
            np.multiply(new, _along(factor, k, new.ndim), out=new, casting="unsafe")
    return np.ascontiguousarray(new)


def _merged_slot(old: Array, k: int, axis: AxisMap, power: int) -> Array:
    if not axis.more_grad.size:
        return np.take(old, axis.source, axis=k)
    moved = np.moveaxis(old.astype(np.float64), k, 0)
    roots = np.sqrt(np.maximum(moved, 0)) if power == 2 else moved
    total = np.take(roots, axis.source, axis=0)
    np.add.at(total, axis.more_grad[0], roots[axis.more_grad[1]])
    if power == 0:  # of preconditioned steps, which no scale changes
        total /= _along(1.0 + np.bincount(axis.more_grad[0], minlength=len(total)), 0, total.ndim)
    merged = np.square(total) if power == 2 else total
    return np.moveaxis(merged, 0, k).astype(old.dtype)


def unknown_history(maps: Sequence[AxisMap | None]) -> Array | bool:
    """Mask of entries whose gradients no state records: they read fresh units, or make such as are read at once."""
    made, read, started = (_mask(maps, name) for name in ("fresh_out", "fresh_in", "started"))
    if read is not None and made is not None:
        read = read & ~made
    masks = [mask for mask in (read, started) if mask is not None]
    return reduce(np.logical_or, masks) if masks else False


def tensor_rng(seed: int, name: str) -> np.random.Generator:
    """A generator of its own for every tensor, so that the order of the edits does not matter."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _along(vector: Array, axis: int, rank: int) -> Array:
    return vector.reshape((-1,) + (1,) * (rank - axis - 1))


def _mask(maps: Sequence[AxisMap | None], name: str) -> Array | None:
    """Elements that are fresh along any axis, as a broadcastable mask; None if there are none."""
    found = [
        _along(getattr(axis, name), k, len(maps))
        for k, axis in enumerate(maps)
        if axis is not None and getattr(axis, name).any()
    ]
    return reduce(np.logical_or, found) if found else None


def _is_copy(maps: Sequence[AxisMap | None]) -> Array:
    """Elements of repeated copies (not the first) along any axis that makes units."""
    mask = np.zeros((1,) * len(maps), bool)
    for k, axis in enumerate(maps):
        if axis is not None and (axis.grad != 1).any():
            first = np.zeros(len(axis.source), bool)
            first[np.unique(axis.source, return_index=True)[1]] = True
            mask = mask | _along(~first, k, len(maps))
    return mask


def _share_out(old: Array, k: int, axis: AxisMap) -> Array:
    """Copies times shares along one axis; the last copy is what the others leave of the original."""
    moved = np.moveaxis(old, k, 0)
    new = (np.take(moved, axis.source, axis=0) * _along(axis.value, 0, moved.ndim)).astype(old.dtype)
    copies = np.bincount(axis.source, minlength=axis.before)
    total = np.bincount(axis.source, weights=axis.value, minlength=axis.before)
    split = np.flatnonzero((copies > 1) & (np.abs(total - 1) < 1e-9))
    order, ends = np.argsort(axis.source, kind="stable"), np.cumsum(copies)
    # wider than the tensor, so that what is left is exact until it is stored
    rest: Array = moved[split].astype(np.longdouble if old.dtype == np.float64 else np.float64)
    for rank in range(int(copies[split].max(initial=1)) - 1):
        more = copies[split] > rank + 1
        rest[more] = rest[more] - new[order[(ends - copies)[split[more]] + rank]]
    new[order[ends[split] - 1]] = rest.astype(old.dtype)
    return np.moveaxis(new, 0, k)
