"""Reductions over axes, which are an attribute in older opsets and an operand in newer ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from surgery.arrays import Array
from surgery.numeric import dual
from surgery.numeric.call import Call, Kernel

Reduce: TypeAlias = Callable[[Array, tuple[int, ...], bool], Array]


def reducing(reduce: Reduce) -> Kernel:
    """All axes if none are named, unless `noop_with_empty_axes`."""

    def kernel(call: Call) -> Array:
        x, axes = call[0], call.setting("axes", 1)
        if not axes:
            if call.integer("noop_with_empty_axes"):
                return reduce(x[None], (0,), False)
            axes = list(range(x.ndim))
        return reduce(x, tuple(axis % x.ndim for axis in axes), bool(call.integer("keepdims", 1)))

    return kernel


def total(x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    """The sum, in the type of `x`."""
    return np.asarray(np.sum(x, axis=axes, keepdims=keepdims, dtype=x.dtype))


def mean(x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    """The mean, in the type of `x`."""
    return np.asarray(np.mean(x, axis=axes, keepdims=keepdims)).astype(x.dtype)


def product(x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    """The product, in the type of `x`."""
    return np.asarray(np.prod(x, axis=axes, keepdims=keepdims, dtype=x.dtype))


def largest(x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    """The maximum; NaN if any is NaN."""
    if x.dtype.kind == "b":
        return np.asarray(np.any(x, axis=axes, keepdims=keepdims))
    if x.size == 0 and x.dtype.kind == "f":
        return np.asarray(np.max(x, axis=axes, keepdims=keepdims, initial=-np.inf))
    return dual.largest(x, axes, keepdims)


def smallest(x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    """The minimum; NaN if any is NaN."""
    if x.dtype.kind in "fc":
        return np.negative(largest(np.negative(x), axes, keepdims))
    return np.asarray(np.min(x, axis=axes, keepdims=keepdims))


def sum_of_squares(x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    """Σ x²."""
    return total(dual.multiply(x, x), axes, keepdims)


def log_sum_exp(x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    """log Σ exp(x), without overflow."""
    peak = np.max(x.real, axis=axes, keepdims=True)
    peak = np.where(np.isfinite(peak), peak, np.zeros((), peak.dtype))
    summed = np.asarray(dual.log(total(dual.exp(x - peak), axes, True)) + peak)
    return summed if keepdims else np.squeeze(summed, axes)


def cumulative_sum(call: Call) -> Array:
    """Running sums along one axis, from the end if `reverse`, without the element itself if `exclusive`."""
    x, axis = call[0], int(call[1].reshape(()))
    if call.integer("reverse"):
        x = np.flip(x, axis)
    out = np.asarray(np.cumsum(x, axis=axis, dtype=x.dtype))
    if call.integer("exclusive"):
        shifted = np.zeros_like(out)
        ahead = np.moveaxis(shifted, axis, 0)
        ahead[1:] = np.moveaxis(out, axis, 0)[:-1]
        out = shifted
    return np.flip(out, axis) if call.integer("reverse") else out


KERNELS: dict[str, Kernel] = {
    "ReduceSum": reducing(total),
    "ReduceMean": reducing(mean),
    "ReduceMax": reducing(largest),
    "ReduceMin": reducing(smallest),
    "ReduceProd": reducing(product),
    "ReduceL1": reducing(lambda x, axes, keep: total(dual.absolute(x), axes, keep)),
    "ReduceL2": reducing(lambda x, axes, keep: dual.sqrt(sum_of_squares(x, axes, keep))),
    "ReduceLogSum": reducing(lambda x, axes, keep: dual.log(total(x, axes, keep))),
    "ReduceLogSumExp": reducing(log_sum_exp),
    "ReduceSumSquare": reducing(sum_of_squares),
    "CumSum": cumulative_sum,
}
