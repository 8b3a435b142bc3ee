"""Inputs and outputs that a plan changes: values of the old model carried over to the new one, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from surgery.edits import AxisMap, axis_maps
from surgery.errors import ArgumentError
from surgery.plan import Plan

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]


def grow(
    plan: Plan,
    arrays: Mapping[str, np.ndarray[Any, np.dtype[Any]]],
    rng: np.random.Generator | None = None,
) -> Arrays:
    """Values of the old model's inputs as inputs of the new one.

    Args:
      plan: what was done to the model.
      arrays: input name -> array in its old shape (hidden states of running rollouts, say); batch sizes are free.

      rng: fill fresh entries with other entries of the same array, drawn at random (to prove that they do not
        matter); None for zeros.

    Returns:
      The same with everything grown: copies hold what they copy, fresh units start at zero. Inputs that the plan
      leaves alone are returned as they are.

    Raises:
      ArgumentError: if an array does not have the old width.
    """
    edited = {port.name: port for port in plan.ports if port.side == "input"}
    out: Arrays = {}
    for name, array in arrays.items():
        grown = array
        if name in edited:
            for k, axis in enumerate(axis_maps(edited[name].axes, plan.edits)):
                if axis is None:
                    continue
                if grown.shape[k] != axis.before:
                    raise ArgumentError(
                        f"axis {k} of '{name}' has {grown.shape[k]} units, the plan expects {axis.before}"
                    )
                fresh = (axis.fresh_in | axis.fresh_out).reshape((-1,) + (1,) * (grown.ndim - k - 1))
                taken = np.take(grown, axis.source, axis=k)
                other = np.zeros((), grown.dtype) if rng is None else rng.permuted(taken)
                grown = np.where(fresh, other, taken)
        out[name] = grown
    return out


def shrink(
    plan: Plan, arrays: Mapping[str, np.ndarray[Any, np.dtype[Any]]], *, weighted: bool = False
) -> Arrays:
    """The part of the new model's outputs that the old one has.

    Args:
      weighted: give for every old unit the mean of its copies, weighted by their shares, instead of the first copy:
        the two have the same value, but only the mean has the derivative of the old unit.
    """
    edited = {port.name: port for port in plan.ports if port.side == "output"}
    out: Arrays = {}
    for name, array in arrays.items():
        old = array
        if name in edited:
            for k, axis in enumerate(axis_maps(edited[name].axes, plan.edits)):
                if axis is not None and weighted:
                    old = _collected(old, k, axis)
                elif axis is not None:
                    kept = np.flatnonzero(~(axis.fresh_in | axis.fresh_out))
                    first = kept[np.unique(axis.source[kept], return_index=True)[1]]
                    old = np.take(old, first, axis=k)
        out[name] = old
    return out


def _collected(
    array: np.ndarray[Any, np.dtype[Any]], k: int, axis: AxisMap
) -> np.ndarray[Any, np.dtype[Any]]:
    """Sum of copies times shares along one axis; fresh units are left out."""
    moved = np.moveaxis(array, k, 0)
    shares = np.where(axis.fresh_in | axis.fresh_out, 0.0, axis.value * axis.grad)
    total = np.zeros((axis.before, *moved.shape[1:]), moved.dtype)
    np.add.at(total, axis.source, moved * shares.reshape((-1,) + (1,) * (moved.ndim - 1)))
    return np.moveaxis(total, 0, k)
