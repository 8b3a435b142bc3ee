"""Resize and Upsample: PyTorch's own interpolation where it is the same, else one axis at a time."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from surgery.torch.call import Call, Ref, Results, Translation
from surgery.torch.host import Size

_RADIUS = {"linear": 1, "cubic": 2}


def resize(call: Call) -> Results:
    """Opset 10 has (x, scales) and the coordinates of Upsample; later (x, roi, scales, sizes)."""
    if call.version < 11:
        return upsample(call)
    rank = call.rank(0)
    axes = [axis % rank for axis in call.integers("axes", range(rank))]
    coordinates = call.text("coordinate_transformation_mode", "half_pixel")
    sizes = call.sizes(3) if call.has(3) else None
    scales = call.sizes(2) if call.has(2) and not sizes else None
    region = call.known(1) if call.has(1) else None
    if coordinates == "tf_crop_and_resize" and region is None:
        raise call.refuse("its region is computed while it runs")
    settings: dict[str, Any] = {
        "mode": call.text("mode", "nearest"),
        "coordinates": coordinates,
        "rounding": call.text("nearest_mode", "round_prefer_floor"),
        "policy": call.text("keep_aspect_ratio_policy", "stretch"),
        "region": None if region is None or not region.size else tuple(float(x) for x in region),
        "antialias": bool(call.integer("antialias")),
        "cubic": call.number("cubic_coeff_a", -0.75),
        "exclude": bool(call.integer("exclude_outside")),
        "outside": call.number("extrapolation_value", 0.0),
    }
    if not sizes and not scales:
        return call[0]
    return call.emit(resized, call[0], tuple(axes), _plain(scales), _plain(sizes), **settings)


def _plain(numbers: Any) -> Any:  # noqa: ANN401
    return tuple(numbers) if isinstance(numbers, list) else numbers


def upsample(call: Call) -> Results:
    """By factors, from an attribute up to opset 8: output i looks at i/scale, rounded down if nearest."""
    stated = call.attribute("scales")
    scales = [float(x) for x in stated] if stated is not None else call.sizes(1)
    if isinstance(scales, Size):
        scales = Ref(scales.text)
    axes = tuple(range(call.rank(0)))
    mode = call.text("mode", "nearest")
    return call.emit(
        resized, call[0], axes, _plain(scales), None, mode=mode, coordinates="asymmetric", rounding="floor"
    )


def resized(
    x: Tensor, axes: tuple[int, ...], scales: tuple[float, ...] | None, sizes: tuple[int, ...] | None, *,
    mode: str, coordinates: str, rounding: str, policy: str = "stretch", region: tuple[float, ...] | None = None,
    antialias: bool = False, cubic: float = -0.75, exclude: bool = False, outside: float = 0.0,
) -> Tensor:  # fmt: skip
    """`x` interpolated along some axes, as the attributes of Resize say."""
    targets, factors = _targets(x, axes, scales, sizes, policy)
    native = _native(x, axes, targets, factors, mode, coordinates, rounding)
    if native is not None and not antialias and not exclude and (mode != "cubic" or cubic == -0.75):
        return native
    count = len(axes)
    for at, axis in enumerate(axes):
        part = (region[at], region[at + count]) if region else (0.0, 1.0)
        if targets[at] == x.shape[axis] and factors[at] == 1 and coordinates != "tf_crop_and_resize":
            continue
        place = _source(x.shape[axis], targets[at], factors[at], part, coordinates, x.device)
        if mode == "nearest":
            index = _rounded(place, rounding).clamp(0, x.shape[axis] - 1)
            y = x.index_select(axis, index)
        else:
            y = _interpolated(x, axis, place, mode, factors[at] if antialias else 1.0, cubic, exclude)
        if coordinates == "tf_crop_and_resize":
            beyond = (place < 0) | (place > x.shape[axis] - 1)
            y = torch.where(_along(beyond, axis, x.dim()), torch.full((), outside, dtype=y.dtype), y)
        x = y
    return x


def _targets(
    x: Tensor,
    axes: tuple[int, ...],
    scales: tuple[float, ...] | None,
    sizes: tuple[int, ...] | None,
    policy: str,
) -> tuple[list[int], list[float]]:
    old = [x.shape[axis] for axis in axes]
    if sizes is None:
        factors = [float(factor) for factor in scales or ()]
        return [math.floor(size * factor) for size, factor in zip(old, factors, strict=True)], factors
    factors = [target / size for target, size in zip(sizes, old, strict=True)]
    if policy == "stretch":
        return [int(size) for size in sizes], factors
    factors = [min(factors) if policy == "not_larger" else max(factors)] * len(factors)
    return [int(size * factor + 0.5) for size, factor in zip(old, factors, strict=True)], factors


def _native(
    x: Tensor,
    axes: tuple[int, ...],
    targets: list[int],
    factors: list[float],
    mode: str,
    coordinates: str,
    rounding: str,
) -> Tensor | None:
    """PyTorch's own kernel, where its coordinates are those asked for at these sizes."""
    by_axis = dict(zip(axes, zip(targets, factors, strict=True), strict=True))
    rest = [by_axis.get(axis, (x.shape[axis], 1.0)) for axis in (0, 1)]
    if x.dim() != 4 or rest != [(x.shape[0], 1.0), (x.shape[1], 1.0)]:
        return None
    target = [by_axis.get(axis, (x.shape[axis], 1.0)) for axis in (2, 3)]
    size = [n for n, _ in target]
    even = all(n == old * factor for (n, factor), old in zip(target, x.shape[2:], strict=True))
    if mode == "nearest" and coordinates == "asymmetric" and rounding == "floor" and even:
        return F.interpolate(x, size, mode="nearest")
    if mode == "linear" and even and coordinates in ("half_pixel", "align_corners"):
        return F.interpolate(x, size, mode="bilinear", align_corners=coordinates == "align_corners")
    if mode == "cubic" and even and coordinates in ("half_pixel", "align_corners"):
        return F.interpolate(x, size, mode="bicubic", align_corners=coordinates == "align_corners")
    return None


def _along(x: Tensor, axis: int, rank: int) -> Tensor:
    return x.reshape([-1 if at == axis else 1 for at in range(rank)])


def _source(
    size: int, target: int, scale: float, part: tuple[float, float], coordinates: str, device: torch.device
) -> Tensor:
    """Where on the old axis every new position lies."""
    i = torch.arange(target, dtype=torch.float64, device=device)
    last, steps = size - 1, max(target - 1, 1)
    if coordinates == "half_pixel" or (coordinates == "pytorch_half_pixel" and target > 1):
        return (i + 0.5) / scale - 0.5
    if coordinates == "pytorch_half_pixel":
        return 0 * i
    if coordinates == "half_pixel_symmetric":
        return size / 2 * (1 - target / (scale * size)) + (i + 0.5) / scale - 0.5
    if coordinates == "align_corners":
        return i * last / steps
    if coordinates == "asymmetric":
        return i / scale
    if coordinates == "tf_half_pixel_for_nn":
        return (i + 0.5) / scale
    start, end = part
    if target > 1:
        return start * last + i * (end - start) * last / steps
    return 0 * i + 0.5 * (start + end) * last


def _rounded(place: Tensor, rounding: str) -> Tensor:
    if rounding == "round_prefer_floor":
        return torch.ceil(place - 0.5).long()
    if rounding == "round_prefer_ceil":
        return torch.floor(place + 0.5).long()
    return (torch.floor(place) if rounding == "floor" else torch.ceil(place)).long()


def _interpolated(
    x: Tensor, axis: int, place: Tensor, mode: str, scale: float, cubic: float, exclude: bool
) -> Tensor:
    """The sum over the neighbours of each position, the border repeated beyond itself."""
    shrink = min(scale, 1.0)
    first = math.floor(-_RADIUS[mode] / shrink) + 1
    base = torch.ceil(place) - 1
    offsets = torch.arange(first, 2 - first, device=x.device)
    neighbours = (base[:, None] + offsets).long()  # (target, taps)
    weights = _filter(shrink * (offsets - (place - base)[:, None]), mode, cubic)
    if exclude:
        weights = torch.where((neighbours < 0) | (neighbours >= x.shape[axis]), 0.0, weights)
    if exclude or shrink < 1:
        weights = weights / weights.sum(1, keepdim=True)
    weights, neighbours = weights.to(x.dtype), neighbours.clamp(0, x.shape[axis] - 1)
    total = torch.zeros((), dtype=x.dtype, device=x.device)
    for tap in range(neighbours.shape[1]):
        near = x.index_select(axis, neighbours[:, tap])
        total = total + near * _along(weights[:, tap], axis, x.dim())
    return total


def _filter(distance: Tensor, mode: str, a: float) -> Tensor:
    """The weight of a neighbour by its distance: a triangle, or the cubic of Keys, 1981."""
    d = distance.abs()
    if mode == "linear":
        return torch.clamp(1 - d, 0, 1)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


TRANSLATIONS: dict[str, Translation] = {"Resize": resize, "Upsample": upsample}
