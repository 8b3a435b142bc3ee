"""Resize and Upsample: interpolation, one axis at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from surgery.arrays import Array
from surgery.numeric.call import Call, Kernel

_RADIUS = {"linear": 1, "cubic": 2}


@dataclass(frozen=True)
class Axis:
    """What happens to one axis.

    Attributes:
      size, target: before and after.
      scale: target over size, as the graph states it (the product may be no integer).
      start, end: the part that `tf_crop_and_resize` looks at, as fractions of the axis.
    """

    size: int
    target: int
    scale: float
    start: float = 0.0
    end: float = 1.0


def resize(call: Call) -> Array:
    """Opset 10 has (x, scales) and the coordinates of Upsample; later (x, roi, scales, sizes)."""
    if call.version < 11:
        return upsample(call)
    x = call[0]
    coordinates = call.text("coordinate_transformation_mode", "half_pixel")
    for axis, plan in _axes(call, x).items():
        if plan.size != plan.target or plan.scale != 1 or coordinates == "tf_crop_and_resize":
            x = _resized(call, x, axis, plan, coordinates, call.text("nearest_mode", "round_prefer_floor"))
    return x


def upsample(call: Call) -> Array:
    """By factors, from an attribute up to opset 8: output i looks at i/scale, rounded down if nearest."""
    x, operand = call[0], call.get(1)
    factors = call.attribute("scales") if operand is None else operand
    for axis, factor in enumerate(factors):
        plan = Axis(x.shape[axis], int(np.floor(x.shape[axis] * float(factor))), float(factor))
        if plan.scale != 1:
            x = _resized(call, x, axis, plan, "asymmetric", "floor")
    return x


def _axes(call: Call, x: Array) -> dict[int, Axis]:
    """Axis -> what happens to it."""
    named = [axis % x.ndim for axis in call.integers("axes", range(x.ndim))]
    sizes = call.get(3)
    old = [x.shape[axis] for axis in named]
    if sizes is not None and sizes.size:
        targets = [int(size) for size in sizes]
        factors = [target / size for target, size in zip(targets, old, strict=True)]
        policy = call.text("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            factors = [min(factors) if policy == "not_larger" else max(factors)] * len(factors)
            targets = [int(size * factor + 0.5) for size, factor in zip(old, factors, strict=True)]
    else:
        factors = [float(factor) for factor in call[2]]
        targets = [int(np.floor(size * factor)) for size, factor in zip(old, factors, strict=True)]
    starts, ends = _fractions(call, len(named))
    parts = zip(old, targets, factors, starts, ends, strict=True)
    return {axis: Axis(*part) for axis, part in zip(named, parts, strict=True)}


def _fractions(call: Call, count: int) -> tuple[list[float], list[float]]:
    """Start and end of the part of each axis that is looked at: all of it, except in a crop."""
    if call.text("coordinate_transformation_mode", "half_pixel") != "tf_crop_and_resize":
        return [0.0] * count, [1.0] * count
    stated = [float(fraction) for fraction in call[1].real]
    return stated[:count], stated[count:]


def _resized(call: Call, x: Array, axis: int, plan: Axis, coordinates: str, rounding: str) -> Array:
    """`x` interpolated along one axis."""
    at = _source(plan, coordinates)
    mode = call.text("mode", "nearest")
    if mode == "nearest":
        y = np.take(x, np.clip(_rounded(at, rounding), 0, plan.size - 1), axis=axis)
    else:
        y = _interpolated(call, x, axis, plan, at, mode)
    if coordinates == "tf_crop_and_resize":
        outside = ((at < 0) | (at > plan.size - 1)).reshape(_along(axis, x.ndim))
        y = np.where(outside, np.asarray(call.number("extrapolation_value", 0.0), x.real.dtype), y)
    return y


def _along(axis: int, rank: int) -> Sequence[int]:
    return [-1 if at == axis else 1 for at in range(rank)]


def _source(plan: Axis, coordinates: str) -> Array:
    """Where on the old axis every new position lies."""
    i = np.arange(plan.target, dtype=np.float64)
    last, steps = plan.size - 1, max(plan.target - 1, 1)
    match coordinates:
        case "half_pixel":
            return (i + 0.5) / plan.scale - 0.5
        case "half_pixel_symmetric":
            offset = plan.size / 2 * (1 - plan.target / (plan.scale * plan.size))
            return offset + (i + 0.5) / plan.scale - 0.5
        case "pytorch_half_pixel":
            return (i + 0.5) / plan.scale - 0.5 if plan.target > 1 else 0 * i
        case "align_corners":
            return i * last / steps
        case "asymmetric":
            return i / plan.scale
        case "tf_half_pixel_for_nn":
            return (i + 0.5) / plan.scale
        case "tf_crop_and_resize":
            if plan.target > 1:
                return plan.start * last + i * (plan.end - plan.start) * last / steps
            return 0 * i + 0.5 * (plan.start + plan.end) * last
    raise ValueError(f"no coordinates '{coordinates}'")


def _rounded(at: Array, rounding: str) -> Array:
    rounded = {
        "round_prefer_floor": lambda: np.ceil(at - 0.5),
        "round_prefer_ceil": lambda: np.floor(at + 0.5),
        "floor": lambda: np.floor(at),
        "ceil": lambda: np.ceil(at),
    }[rounding]()
    return np.asarray(rounded).astype(np.int64)


def _interpolated(call: Call, x: Array, axis: int, plan: Axis, at: Array, mode: str) -> Array:
    """The sum over the neighbours of each position, the border repeated beyond itself."""
    shrink = min(plan.scale, 1.0) if call.integer("antialias") else 1.0
    first = int(np.floor(-_RADIUS[mode] / shrink)) + 1
    base = np.ceil(at) - 1
    offsets = np.arange(first, 2 - first)
    neighbours = (base[:, None] + offsets).astype(np.int64)  # (target, taps)
    weights = _filter(shrink * (offsets - (at - base)[:, None]), mode, call.number("cubic_coeff_a", -0.75))
    if call.integer("exclude_outside"):
        weights = np.where((neighbours < 0) | (neighbours >= plan.size), 0.0, weights)
    if call.integer("exclude_outside") or shrink < 1:
        weights = weights / weights.sum(axis=1, keepdims=True)
    weights = weights.astype(x.real.dtype)
    neighbours = np.clip(neighbours, 0, plan.size - 1)
    shape = _along(axis, x.ndim)
    taps = zip(neighbours.T, weights.T, strict=True)
    return np.asarray(sum(np.take(x, near, axis=axis) * weight.reshape(shape) for near, weight in taps))


def _filter(distance: Array, mode: str, a: float) -> Array:
    """The weight of a neighbour by its distance: a triangle, or the cubic of Keys, 1981."""
    d = np.abs(distance)
    if mode == "linear":
        return np.asarray(np.clip(1 - d, 0, 1))
    near: Array = ((a + 2) * d - (a + 3)) * d * d + 1
    far: Array = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


KERNELS: dict[str, Kernel] = {"Resize": resize, "Upsample": upsample}
