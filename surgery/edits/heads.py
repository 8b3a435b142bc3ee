"""How the rows of new outputs, and of units under a normaliser, start: as the mean of the old ones, or at zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from surgery.arrays import Array
from surgery.edits.arithmetic import SpaceEdit
from surgery.edits.axis_maps import units_along
from surgery.graph.layout import Layout, Sum, Units, resized
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
    sizes = {name: edit.after for name, edit in edits.items()}
    for k, layout in enumerate(layouts):
        for space, kind in _starts(layout, edits).items():
            edit = edits[space]
            unit, rest = units_along(resized(layout, sizes), space)
            fresh = (unit >= 0) & edit.started[unit]
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
