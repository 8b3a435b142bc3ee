"""The arithmetic of an edit: how one tensor, and one optimizer slot of it, follow when spaces change.

Unit i of a space is copied to the new units j with source[j] = i and shares a_j, which sum to 1 over the copies;
or a new unit is *fresh*: random in the tensors that make it, zero where old units would read it.

    tensor            value      slot of gradient power p
    makes units       copied     · a^p
    consumes units    · a        copied
    both              · a_in     · a_out^p

Net2Net: Chen, Goodfellow, Shlens, 2016 (arXiv:1511.05641). Fresh units: OpenAI, 2019 (arXiv:1912.06680, app. B).
The slot rule is derived in docs/mathematics.md.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np

from surgery.errors import PlanMismatch
from surgery.graph.layout import Layout, Sum, Units, units
from surgery.graph.spaces import Fill

MOST_UNITS = 1 << 24
"""Largest number of units that a plan may give a space."""

Array = np.ndarray[Any, np.dtype[Any]]

BLOCK = 1 << 22
"""Bytes of a tensor that are worked on at once."""


@dataclass(frozen=True, slots=True)
class Start:
    """How the rows of new outputs start.

    Attributes:
      kind: "mean" of the old rows, or "zero".
      bias: added to the bias of each.
    """

    kind: Literal["mean", "zero"]
    bias: float = 0.0


@dataclass(frozen=True)
class SpaceEdit:
    """What happens to the units of one space.

    Attributes:
      space: its name.
      before: number of units now.
      source: for every new unit the old one that it copies (or, if fresh, borrows its scales from).
      fresh: positions of new units that no old unit may depend on.
      shares: for every new unit its part of the outgoing weights; None for equal parts among copies.
      start: how tensors that make the fresh units start, instead of as is usual for them.
    """

    space: str
    before: int
    source: tuple[int, ...]
    fresh: frozenset[int] = frozenset()
    shares: tuple[float, ...] | None = None
    start: Start | None = None

    @property
    def after(self) -> int:
        """Number of units afterwards."""
        return len(self.source)

    @property
    def share(self) -> Array:
        """Shares as float64, shape (after,); 1 for fresh units and single copies."""
        if self.shares is not None:
            return np.array(self.shares)
        source = np.array(self.source)
        copies = np.bincount(source[~self.is_fresh], minlength=self.before)
        return np.where(self.is_fresh, 1.0, 1.0 / np.maximum(copies[source], 1))

    @property
    def is_fresh(self) -> Array:
        """Boolean mask of fresh units, shape (after,)."""
        mask = np.zeros(self.after, bool)
        mask[list(self.fresh)] = True
        return mask

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; runs of consecutive numbers are written "a:b"."""
        return {
            "space": self.space,
            "from": self.before,
            "to": self.after,
            "source": _runs(self.source),
            "fresh": _runs(sorted(self.fresh)),
            "shares": None if self.shares is None else list(self.shares),
            "start": None if self.start is None else {"kind": self.start.kind, "bias": self.start.bias},
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> SpaceEdit:
        """The inverse of `to_json`.

        Raises:
          PlanMismatch: if the data does not describe an edit.
        """
        try:
            shares, after = data["shares"], natural(data["to"])
            if after > MOST_UNITS:
                raise ValueError(f"{after} units")
            edit = SpaceEdit(
                data["space"],
                natural(data["from"]),
                _numbers(data["source"], after),
                frozenset(_numbers(data["fresh"], after)),
                None if shares is None else tuple(float(share) for share in shares),
                _start(data["start"]),
            )
            if not isinstance(edit.space, str):
                raise TypeError("the name of a space is text")
            if edit.shares is not None and not all(map(math.isfinite, edit.shares)):
                raise ValueError("shares that are no numbers")
            if edit.after != after or (edit.shares is not None and len(edit.shares) != edit.after):
                raise ValueError("lengths differ")
            if any(not 0 <= k < edit.before for k in edit.source) or any(k >= edit.after for k in edit.fresh):
                raise ValueError("unit numbers out of range")
        except (KeyError, TypeError, ValueError) as error:
            raise PlanMismatch(f"not the edit of a space: {data!r:.80} ({error})") from None
        return edit


def _runs(numbers: Sequence[int]) -> list[int | str]:
    out: list[int | str] = []
    start = 0
    for k in range(1, len(numbers) + 1):
        if k == len(numbers) or numbers[k] != numbers[k - 1] + 1:
            out.append(numbers[start] if k - start == 1 else f"{numbers[start]}:{numbers[k - 1] + 1}")
            start = k
    return out


def _numbers(runs: Sequence[int | str], limit: int) -> tuple[int, ...]:
    """The inverse of `_runs`; at most `limit` numbers, none of them negative."""
    out: list[int] = []
    for run in runs:
        first, last = (
            (int(part) for part in run.split(":")) if isinstance(run, str) else (natural(run), run + 1)
        )
        if not 0 <= first < last or last - first > limit - len(out):
            raise ValueError(f"a run {run} in a space of {limit} units")
        out.extend(range(first, last))
    return tuple(out)


def _start(data: object) -> Start | None:
    match data:
        case None:
            return None
        case {"kind": "mean" | "zero" as kind, "bias": int() | float() as bias} if math.isfinite(bias):
            return Start(kind, float(bias))
    raise ValueError(f"a start {data!r:.60}")


def natural(value: object) -> int:
    """A whole number of JSON, 0 or more; raises TypeError for anything else."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{value!r} is not a whole number, 0 or more")
    return value


@dataclass(frozen=True)
class AxisMap:
    """The edit of one axis, element by element; all arrays have shape (new size,).

    Attributes:
      before: old size.
      source: old index of each new element.
      fresh_in, fresh_out: elements that consume, or make, fresh units.
      started: elements of `fresh_out` that start at a mean or at zero, so that something may read their units at once.
      value: factor of the weights. grad: factor of their gradients.
    """

    before: int
    source: Array
    fresh_in: Array
    fresh_out: Array
    started: Array
    value: Array
    grad: Array

    @property
    def shared(self) -> bool:
        """Whether weights along this axis are shared out among copies."""
        return bool((self.value != 1).any())


def axis_map(layout: Layout, edits: Mapping[str, SpaceEdit]) -> AxisMap:
    """The edit of an axis from the edits of the spaces in it."""
    return reduce(_outer, [_factor_map(factor, edits) for factor in layout] or [_still(1)])


def axis_maps(layouts: Sequence[Layout], edits: Mapping[str, SpaceEdit]) -> list[AxisMap | None]:
    """One map per axis of a tensor; None for an axis in which nothing changes."""
    return [
        axis_map(axis, edits) if any(part.space in edits for part in units(axis)) else None
        for axis in layouts
    ]


def _still(size: int) -> AxisMap:
    no, one = np.zeros(size, bool), np.ones(size)
    return AxisMap(size, np.arange(size), no, no, no, one, one)


def _factor_map(factor: int | Units | Sum, edits: Mapping[str, SpaceEdit]) -> AxisMap:
    if isinstance(factor, int):
        return _still(factor)
    if isinstance(factor, Sum):
        return _joined([axis_map(part, edits) for part in factor.parts])
    edit = edits.get(factor.space)
    if edit is None:
        return _still(factor.size)
    no, one = np.zeros(edit.after, bool), np.ones(edit.after)
    source, fresh = np.array(edit.source), edit.is_fresh
    if factor.role == "in":
        return AxisMap(edit.before, source, fresh, no, no, edit.share, one)
    started = fresh if factor.role in ("mean", "zero") else no
    return AxisMap(edit.before, source, no, fresh, started, one, edit.share)


def _joined(parts: Sequence[AxisMap]) -> AxisMap:
    offsets = np.cumsum([0, *(part.before for part in parts)])
    return AxisMap(
        int(offsets[-1]),
        np.concatenate([part.source + offset for part, offset in zip(parts, offsets, strict=False)]),
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("fresh_in", "fresh_out", "started", "value", "grad")
        ),
    )


def _outer(left: AxisMap, right: AxisMap) -> AxisMap:
    return AxisMap(
        left.before * right.before,
        np.add.outer(left.source * right.before, right.source).reshape(-1),
        np.logical_or.outer(left.fresh_in, right.fresh_in).reshape(-1),
        np.logical_or.outer(left.fresh_out, right.fresh_out).reshape(-1),
        np.logical_or.outer(left.started, right.started).reshape(-1),
        np.multiply.outer(left.value, right.value).reshape(-1),
        np.multiply.outer(left.grad, right.grad).reshape(-1),
    )


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
      rng: draws them, with the standard deviation of the tensor's own entries.
      noise: added to copies, as a fraction of that deviation; anything but 0 changes the function.
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
            block[fresh] = deviation * rng.standard_normal(int(fresh.sum()), dtype=np.float32)
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
    free = [k for k, axis in enumerate(maps) if axis is None or not axis.shared]
    if not free:
        return _taken(old.astype(dtype), maps)
    along, new = free[0], np.empty(shape, dtype)
    turned, lead = np.moveaxis(new, along, 0), maps[along]
    rest = [None if k == along else axis for k, axis in enumerate(maps)]
    for rows in _rows(turned):
        chosen = np.arange(shape[along])[rows] if lead is None else lead.source[rows]
        block = _taken(np.take(old, chosen, axis=along).astype(dtype), rest)
        turned[rows] = np.moveaxis(block, along, 0)
    return new


def _taken(old: Array, maps: Sequence[AxisMap | None]) -> Array:
    new = old
    for k, axis in enumerate(maps):
        if axis is not None:
            new = _share_out(new, k, axis) if axis.shared else np.take(new, axis.source, axis=k)
    return new


def _deviation(array: Array) -> float:
    """Standard deviation in float64."""
    mean = sum(float(array[rows].sum(dtype=np.float64)) for rows in _rows(array)) / array.size
    squares = sum(float(np.square(array[rows].astype(np.float64) - mean).sum()) for rows in _rows(array))
    return math.sqrt(squares / array.size)


def edit_slot(old: Array, maps: Sequence[AxisMap | None], power: int) -> Array:
    """An optimizer slot after the edit: a gradient statistic of the given power; fresh entries start at 0."""
    new = old
    for k, axis in enumerate(maps):
        if axis is None:
            continue
        new = np.take(new, axis.source, axis=k)
        factor = np.where(axis.fresh_in | axis.fresh_out, 0.0, axis.grad**power)
        if (factor != 1).any():
            new = (new * _along(factor, k, new.ndim)).astype(old.dtype)
    return np.ascontiguousarray(new)


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
