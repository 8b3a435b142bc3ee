"""A widened parameter in the coordinates of the small network it came from.

A weight is w' = s·w and its gradient g' = t·g, element by element, with s the product of the shares of the axes that
consume units (and of the tensor's own scale), and t that of the axes that make them (over that scale); see
docs/mathematics.md, sections 5 and 12. Both are kept as broadcast products of vectors, one per axis, so that they cost
next to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from surgery.arrays import Array
from surgery.edits.arithmetic import AxisMap, SpaceEdit, axis_maps
from surgery.edits.parts import TensorEdit


@dataclass(frozen=True)
class Factors:
    """How one widened parameter relates to its original; every tensor broadcasts to the parameter's shape.

    Attributes:
      value: s. gradient: t. part: 1 over the number of copies of an element, 1 for a fresh one.
      scaled, graded: whether s, or t, is anything but 1.
      made, read: entries that make fresh units, and those through which old units read them; None without any.
    """

    value: Tensor
    gradient: Tensor
    part: Tensor
    scaled: bool
    graded: bool
    made: Tensor | None
    read: Tensor | None

    @property
    def fresh(self) -> Tensor | None:
        """Entries without an original."""
        found = [mask for mask in (self.made, self.read) if mask is not None]
        return reduce(torch.logical_or, found) if found else None


def factors(edit: TensorEdit, edits: Mapping[str, SpaceEdit], like: Tensor) -> Factors:
    """The factors of a parameter.

    Args:
      edit: of the parameter. edits: of the spaces in it.
      like: a tensor of the dtype and device that they are used with.
    """
    maps = axis_maps(edit.axes, edits)
    vectors = {
        "value": [None if axis is None else axis.value for axis in maps],
        "gradient": [None if axis is None else axis.grad for axis in maps],
        "part": [None if axis is None else _part(axis) for axis in maps],
    }
    made = [None if axis is None else axis.fresh_out for axis in maps]
    read = [None if axis is None else axis.fresh_in for axis in maps]
    value, gradient, part = (_product(found, like) for found in vectors.values())
    if edit.scale != 1:  # γ of a normaliser whose statistic changes
        value, gradient = value * edit.scale, gradient / edit.scale
    scaled, graded = (bool((factor != 1).any()) for factor in (value, gradient))
    return Factors(value, gradient, part, scaled, graded, _any(made, like), _any(read, like))


def later_copies(edit: SpaceEdit) -> frozenset[int]:
    """All copies but the first of every unit; fresh units are none."""
    kept = [k for k in range(edit.after) if k not in edit.fresh]
    first = {edit.source[k]: k for k in reversed(kept)}
    return frozenset(kept) - frozenset(first.values())


def _part(axis: AxisMap) -> Array:
    fresh = axis.fresh_in | axis.fresh_out
    copies = np.bincount(axis.source[~fresh], minlength=axis.before)
    return np.where(fresh, 1.0, 1.0 / np.maximum(copies[axis.source], 1))


Vectors = Sequence["Array | None"]


def _along(vectors: Vectors, like: Tensor, dtype: torch.dtype) -> list[Tensor]:
    rank = len(vectors)
    return [
        torch.as_tensor(vector, dtype=dtype, device=like.device).reshape(
            [-1 if k == axis else 1 for k in range(rank)]
        )
        for axis, vector in enumerate(vectors)
        if vector is not None
    ]


def _product(vectors: Vectors, like: Tensor) -> Tensor:
    wide = _along(vectors, like, torch.float64)
    one = torch.ones([1] * len(vectors), dtype=torch.float64, device=like.device)
    return reduce(torch.mul, wide, one).to(like.dtype)


def _any(masks: Vectors, like: Tensor) -> Tensor | None:
    found = [mask for mask in _along(masks, like, torch.bool) if bool(mask.any())]
    return reduce(torch.logical_or, found) if found else None
