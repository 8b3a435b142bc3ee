"""Gathering, scattering and ordering. Indices wrap once below zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from surgery.torch.call import Call, Results, Translation
from surgery.torch.host import Size


def gathered(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """Slices of `x` along `axis` at the indices, whose axes take its place."""
    axis = axis + x.dim() if axis < 0 else axis
    return x[(slice(None),) * axis + (index,)]


def gather(call: Call) -> Results:
    """Slices of the data at the indices: one slice, an embedding, or any."""
    axis, host = call.integer("axis"), call.host(1)
    if host is not None and host.elements.ndim == 0:
        return call.method(call[0], "select", axis, host.scalar())
    return call.emit(gathered, call[0], call[1], axis)


def wrapped(index: Tensor, size: int) -> Tensor:
    """Indices below zero counted from the end."""
    return torch.where(index < 0, index + size, index)


def elements_at(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """x[i, …, index[i, …, k], …, k]."""
    cut = x[tuple(slice(None) if at == axis % x.dim() else slice(n) for at, n in enumerate(index.shape))]
    return torch.gather(cut, axis, wrapped(index, x.shape[axis]).long())


def _tuples(index: Tensor, batch: int) -> tuple[Tensor, ...]:
    """The last axis of `index` as a tuple of index tensors, after `batch` leading axes in step."""
    rest = index.dim() - 1 - batch
    leading = []
    for axis in range(batch):
        steps = torch.arange(index.shape[axis], device=index.device)
        leading.append(steps.reshape([-1 if at == axis else 1 for at in range(batch)] + [1] * rest))
    return (*leading, *index.unbind(-1))


def slices_at(x: Tensor, index: Tensor, batch: int) -> Tensor:
    """x at index tuples, the first `batch` axes in step."""
    return x[_tuples(index, batch)]


_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scattered(x: Tensor, index: Tensor, updates: Tensor, axis: int, reduction: str) -> Tensor:
    """A copy of `x` with updates[i, …, k] put at index[i, …, k] along `axis`."""
    index = wrapped(index, x.shape[axis]).long()
    if reduction == "none":
        return x.scatter(axis, index, updates)
    if reduction == "add":
        return x.scatter_add(axis, index, updates)
    return x.scatter_reduce(axis, index, updates, _REDUCE[reduction])


def scatter_elements(call: Call) -> Results:
    """A copy of the data in which indexed elements are replaced or accumulated."""
    reduction = call.text("reduction", "none")
    return call.emit(scattered, call[0], call[1], call[2], call.integer("axis"), reduction)


def scattered_slices(x: Tensor, index: Tensor, updates: Tensor, reduction: str) -> Tensor:
    """A copy of `x` with updates put at index tuples."""
    if reduction in ("none", "add"):
        return x.index_put(_tuples(index, 0), updates, accumulate=reduction == "add")
    depth = index.shape[-1]
    flat, rows = x.reshape(-1, *x.shape[depth:]), torch.zeros_like(index[..., 0])
    for at in range(depth):
        rows = rows * x.shape[at] + wrapped(index[..., at], x.shape[at])
    merged = flat.index_reduce(0, rows.reshape(-1), updates.reshape(-1, *x.shape[depth:]), _REDUCE[reduction])
    return merged.reshape(x.shape)


def top_k(call: Call) -> Results:
    """The k largest (or smallest) along `axis` in order, and their indices."""
    stated = call.sizes(1, "k")
    k = 1 if stated is None else Size(f"{stated}[0]") if isinstance(stated, Size) else stated[0]
    if "k" in call.attributes:
        k = call.integer("k")
    axis, largest = call.integer("axis", -1), bool(call.integer("largest", 1))
    return call.parts(call.emit(ranked, call[0], k, axis, largest), 2)


def ranked(x: Tensor, k: int, axis: int, largest: bool) -> tuple[Tensor, Tensor]:
    """The k extreme elements, equal ones in their order, and their indices."""
    values, indices = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, k), indices.narrow(axis, 0, k)


def extreme(function: Callable[..., Any]) -> Translation:
    """The index of an extreme along an axis."""

    def translate(call: Call) -> Results:
        axis, keep = call.integer("axis"), bool(call.integer("keepdims", 1))
        if call.integer("select_last_index"):
            return call.emit(last_extreme, call[0], axis, keep, function is torch.argmax)
        return call.emit(function, call[0], axis, keep)

    return translate


def last_extreme(x: Tensor, axis: int, keep: bool, largest: bool) -> Tensor:
    """The last index of an extreme along an axis."""
    flipped = x.flip(axis)
    found = (torch.argmax if largest else torch.argmin)(flipped, axis, keep)
    return x.shape[axis] - 1 - found


def compress(call: Call) -> Results:
    """The slices along `axis` (elements without it) where the condition holds."""
    axis = call.attribute("axis")
    return call.emit(compressed, call[0], call[1], axis)


def compressed(x: Tensor, condition: Tensor, axis: int | None) -> Tensor:
    """Slices where a mask holds."""
    x = x.reshape(-1) if axis is None else x
    return x.index_select(axis or 0, condition.nonzero()[:, 0])


def accumulated(x: Tensor, axis: int, exclusive: bool, reverse: bool) -> Tensor:
    """Running sums along one axis, from the end if `reverse`, without the element itself if `exclusive`."""
    x = x.flip(axis) if reverse else x
    out = torch.cumsum(x, axis, dtype=x.dtype)
    if exclusive:
        out = torch.cat(
            [torch.zeros_like(out.narrow(axis, 0, 1)), out.narrow(axis, 0, out.shape[axis] - 1)], axis
        )
    return out.flip(axis) if reverse else out


def cumulative_sum(call: Call) -> Results:
    """Running sums along one axis."""
    axis, exclusive, reverse = call.whole(1), bool(call.integer("exclusive")), bool(call.integer("reverse"))
    if not exclusive and not reverse:
        return call.emit(torch.cumsum, call[0], axis)
    return call.emit(accumulated, call[0], axis, exclusive, reverse)


def unique(call: Call) -> Results:
    """Distinct elements (or slices), where each came from, and how often it came."""
    count = len(call.node.outputs)
    axis = call.attribute("axis")
    return call.parts(call.emit(distinct, call[0], axis, bool(call.integer("sorted", 1))), count)


def distinct(x: Tensor, axis: int | None, in_order: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distinct slices, the first index of each, the inverse, and the counts."""
    x = x.reshape(-1) if axis is None else x
    axis = axis or 0
    values, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True, dim=axis)
    places = torch.arange(inverse.numel(), device=x.device)
    first = torch.full_like(counts, inverse.numel()).scatter_reduce(0, inverse, places, "amin")
    if in_order:
        return values, first, inverse, counts
    order = torch.argsort(first)
    rank = torch.empty_like(order).scatter(0, order, torch.arange(order.numel(), device=x.device))
    return values.index_select(axis, order), first[order], rank[inverse], counts[order]


TRANSLATIONS: dict[str, Translation] = {
    "Gather": gather,
    "GatherElements": lambda call: call.emit(elements_at, call[0], call[1], call.integer("axis")),
    "GatherND": lambda call: call.emit(slices_at, call[0], call[1], call.integer("batch_dims")),
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": lambda call: call.emit(
        scattered_slices, call[0], call[1], call[2], call.text("reduction", "none")
    ),
    "TopK": top_k,
    "ArgMax": extreme(torch.argmax),
    "ArgMin": extreme(torch.argmin),
    "Compress": compress,
    "CumSum": cumulative_sum,
    "Unique": unique,
}
