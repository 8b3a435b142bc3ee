"""Reductions over axes, which are an attribute in older opsets and an operand in newer ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from surgery.torch.call import Call, Results, Translation


def reducing(function: Callable[..., Any], method: str | None = None) -> Translation:
    """All axes if none are named, unless `noop_with_empty_axes`; then it acts on each element alone.

    Args:
      function: of a tensor, the axes, and whether they are kept.
      method: of a tensor of floats, that does the same.
    """

    def translate(call: Call) -> Results:
        axes, keep = call.axes(1), bool(call.integer("keepdims", 1))
        if not axes:
            if call.integer("noop_with_empty_axes"):
                return call.emit(function, call.method(call[0], "unsqueeze", 0), 0, False)
            axes = list(range(call.rank(0)))
        if not axes:
            return call.emit(function, call.method(call[0], "unsqueeze", 0), 0, False)
        reduced = axes[0] if len(axes) == 1 else tuple(axes)
        if method is not None and call.floating(0):
            return call.method(call[0], method, reduced, **({"keepdim": True} if keep else {}))
        return call.emit(function, call[0], reduced, keep)

    return translate


def total(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Σ x in the type of x."""
    return torch.sum(x, axes, keep, dtype=x.dtype)


def average(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """The mean, in the type of x."""
    if x.is_floating_point():
        return torch.mean(x, axes, keep)
    return torch.mean(x.double(), axes, keep).to(x.dtype)


def product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Π x, one axis at a time."""
    ordered = sorted(((axes,) if isinstance(axes, int) else axes), key=lambda axis: axis % x.dim())
    for axis in reversed([axis % x.dim() for axis in ordered]):
        x = torch.prod(x, axis, keep, dtype=x.dtype)
    return x


def largest(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """The maximum; gradients are shared among equal ones."""
    if x.dtype == torch.bool:
        return torch.any(x, axes, keep)
    return torch.amax(x, axes, keep)


def smallest(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """The minimum."""
    if x.dtype == torch.bool:
        return torch.all(x, axes, keep)
    return torch.amin(x, axes, keep)


def absolute_sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Σ |x|."""
    return torch.sum(torch.abs(x), axes, keep, dtype=x.dtype)


def euclidean(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """√Σ x², with derivative 0 at 0."""
    norm: Tensor = torch.linalg.vector_norm(x, 2, axes, keep)
    return norm


def log_total(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """log Σ x."""
    return torch.log(torch.sum(x, axes, keep))


def square_sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Σ x²."""
    return torch.sum(x * x, axes, keep, dtype=x.dtype)


TRANSLATIONS: dict[str, Translation] = {
    "ReduceSum": reducing(total, "sum"),
    "ReduceMean": reducing(average, "mean"),
    "ReduceMax": reducing(largest, "amax"),
    "ReduceMin": reducing(smallest, "amin"),
    "ReduceProd": reducing(product),
    "ReduceL1": reducing(absolute_sum),
    "ReduceL2": reducing(euclidean),
    "ReduceLogSum": reducing(log_total),
    "ReduceLogSumExp": reducing(torch.logsumexp),
    "ReduceSumSquare": reducing(square_sum),
}
