"""How the rows of new outputs, and of units under a normaliser, start: as the mean of the old ones, or at zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from surgery.arrays import Array
from surgery.edits.arithmetic import SpaceEdit
from surgery.graph.layout import Factor, Layout, Sum, Units
from surgery.graph.layout import size as layout_size
from surgery.graph.spaces import Fill


def start_rows(new: Array, layouts: Sequence[Layout], fill: Fill, edits: Mapping[str, SpaceEdit]) -> Array:
    """Set the entries that make fresh units with a start of their own: the edit's, or that of their role.

    Args:
      new: the edited tensor, changed in place.
      layouts: of each axis, before the edit.
      fill: what the tensor is for; biases ("zero") also get the start's bias.
      edits: of the spaces.

    Returns:
      `new`.
    """
    for k, layout in enumerate(layouts):
        for space, kind in _starts(layout, edits).items():
            edit = edits[space]
            rest, fresh = _labels(layout, edit, edits)
            rows, places = np.moveaxis(new, k, 0), np.flatnonzero(fresh)
            if kind != "split":  # those are copies already
                rows[places] = (
                    _means(rows, rest, fresh)[rest[places]].astype(new.dtype) if kind == "mean" else 0
                )
            if fill == "zero" and edit.start is not None and edit.start.bias:
                rows[places] += np.asarray(edit.start.bias, new.dtype)
    return new


def _means(rows: Array, rest: Array, fresh: Array) -> Array:
    """The mean over the old units, for every index that the axis has beside them."""
    total = np.zeros((int(rest.max()) + 1, *rows.shape[1:]))
    np.add.at(total, rest[~fresh], rows[~fresh])
    return total / np.bincount(rest[~fresh]).reshape((-1,) + (1,) * (rows.ndim - 1))


def _starts(layout: Layout, edits: Mapping[str, SpaceEdit]) -> dict[str, str]:
    """The spaces that an axis makes fresh units of, and how they start there."""
    found: dict[str, str] = {}
    for factor in layout:
        if isinstance(factor, Sum):
            for part in factor.parts:
                found |= _starts(part, edits)
        elif isinstance(factor, Units) and factor.space in edits:
            start = edits[factor.space].start
            if factor.role in ("mean", "zero"):
                found[factor.space] = factor.role
            elif factor.role == "out" and start is not None:
                found[factor.space] = start.kind
    return found


def _labels(layout: Layout, edit: SpaceEdit, edits: Mapping[str, SpaceEdit]) -> tuple[Array, Array]:
    """Per element of the new axis: its index with the space left out, and whether it is of a fresh unit."""
    labels, fresh = np.zeros(1, np.int64), np.zeros(1, bool)
    for factor in layout:
        own, mask, size = _factor(factor, edit, edits)
        labels = np.add.outer(labels * size, own).reshape(-1)
        fresh = np.logical_or.outer(fresh, mask).reshape(-1)
    return labels, fresh


def _factor(factor: Factor, edit: SpaceEdit, edits: Mapping[str, SpaceEdit]) -> tuple[Array, Array, int]:
    if isinstance(factor, Sum):
        parts = [_labels(part, edit, edits) for part in factor.parts]
        sizes = [int(labels.max()) + 1 for labels, _ in parts]
        offsets = np.cumsum([0, *sizes[:-1]])
        labels = np.concatenate([own + offset for (own, _), offset in zip(parts, offsets, strict=True)])
        return labels, np.concatenate([mask for _, mask in parts]), sum(sizes)
    if isinstance(factor, Units) and factor.space == edit.space:
        return np.zeros(edit.after, np.int64), edit.started, 1
    size = layout_size((factor,), {name: other.after for name, other in edits.items()})
    return np.arange(size), np.zeros(size, bool), size
