"""How the rows of new outputs start: as the mean of the old ones, at zero, with a bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from surgery.edits import SpaceEdit
from surgery.graph.layout import Layout, Sum, Units
from surgery.graph.spaces import Fill

Array = np.ndarray[Any, np.dtype[Any]]


def start_rows(
    new: Array, old: Array, layouts: Sequence[Layout], fill: Fill, edits: Mapping[str, SpaceEdit]
) -> Array:
    """Set the entries that make fresh units of spaces with a start of their own.

    Args:
      new: the edited tensor, changed in place. old: the tensor before.
      layouts: of each axis, before the edit.
      fill: what the tensor is for; biases ("zero") also get the start's bias.
      edits: of the spaces.

    Returns:
      `new`.
    """
    for k, layout in enumerate(layouts):
        for edit in edits.values():
            if edit.start is None or edit.space not in _makers(layout):
                continue
            places, rest, old_rest = _places(layout, edit)
            rows, before = np.moveaxis(new, k, 0), np.moveaxis(old, k, 0)
            if edit.start.kind == "mean":
                total = np.zeros((int(old_rest.max()) + 1, *before.shape[1:]))
                np.add.at(total, old_rest, before)
                count = np.bincount(old_rest).reshape((-1,) + (1,) * (before.ndim - 1))
                if rows.shape[1:] != before.shape[1:]:
                    raise ValueError("a tensor of which two axes change cannot start at a mean")
                rows[places] = (total / count)[rest[places]].astype(new.dtype)
            else:
                rows[places] = 0
            if fill == "zero" and edit.start.bias:
                rows[places] += np.asarray(edit.start.bias, new.dtype)
    return new


def _makers(layout: Layout) -> set[str]:
    """The spaces that an axis makes units of."""
    found: set[str] = set()
    for factor in layout:
        if isinstance(factor, Units) and factor.role == "out":
            found.add(factor.space)
        elif isinstance(factor, Sum):
            found.update(*map(_makers, factor.parts))
    return found


def _places(layout: Layout, edit: SpaceEdit) -> tuple[Array, Array, Array]:
    """New elements of fresh units (their positions), and every element's index with the space left out, new and old."""
    new, old = _labels(layout, edit, after=True), _labels(layout, edit, after=False)
    return np.flatnonzero(new[1]), new[0], old[0]


def _labels(layout: Layout, edit: SpaceEdit, *, after: bool) -> tuple[Array, Array]:
    """Per element of an axis: its index with the space left out, and whether it is of a fresh unit."""
    labels, fresh, count = np.zeros(1, np.int64), np.zeros(1, bool), 1
    for factor in layout:
        own, mask, size = _factor(factor, edit, after=after)
        labels = np.add.outer(labels * size, own).reshape(-1)
        fresh = np.logical_or.outer(fresh, mask).reshape(-1)
        count *= size
    return labels, fresh


def _factor(factor: int | Units | Sum, edit: SpaceEdit, *, after: bool) -> tuple[Array, Array, int]:
    if isinstance(factor, Sum):
        parts = [_labels(part, edit, after=after) for part in factor.parts]
        sizes = [int(labels.max()) + 1 for labels, _ in parts]
        offsets = np.cumsum([0, *sizes[:-1]])
        labels = np.concatenate([own + offset for (own, _), offset in zip(parts, offsets, strict=True)])
        return labels, np.concatenate([mask for _, mask in parts]), sum(sizes)
    if isinstance(factor, Units) and factor.space == edit.space:
        size = edit.after if after else edit.before
        return np.zeros(size, np.int64), edit.is_fresh if after else np.zeros(size, bool), 1
    size = factor if isinstance(factor, int) else factor.size
    return np.arange(size), np.zeros(size, bool), size
