"""Pooling."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from surgery.torch.call import Call, Results, Translation
from surgery.torch.operators.convolution import same_widths, short

MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
MEAN = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _geometry(call: Call) -> tuple[list[int], list[int], list[int], list[int], str, bool]:
    kernel = call.integers("kernel_shape")
    rank = len(kernel)
    if rank not in MAX:
        raise call.refuse(f"PyTorch has it for 1 to 3 spatial axes, not for {rank}")
    strides = call.integers("strides") or [1] * rank
    dilations = call.integers("dilations") or [1] * rank
    pads = call.integers("pads") or [0] * (2 * rank)
    return kernel, strides, dilations, pads, call.text("auto_pad", "NOTSET"), bool(call.integer("ceil_mode"))


def _native(kernel: list[int], pads: list[int], mode: str, ceil: bool) -> bool:
    """Whether PyTorch's own padding is what is asked for."""
    rank = len(kernel)
    before, after = pads[:rank], pads[rank:]
    small = all(2 * b <= k for b, k in zip(before, kernel, strict=True))
    plain = mode == "NOTSET" or (mode == "VALID" and not any(pads))
    return plain and before == after and small and not ceil


def max_pool(call: Call) -> Results:
    """The largest of each window, and on request where it was (as an index into the flat operand)."""
    kernel, strides, dilations, pads, mode, ceil = _geometry(call)
    rank, indices = len(kernel), len(call.node.outputs) > 1
    if indices and call.integer("storage_order"):
        raise call.refuse("column-major indices have no translation")
    if _native(kernel, pads, mode, ceil) and not indices:
        stated = {
            name: number
            for name, number, default in (
                ("padding", short(pads[:rank]), 0),
                ("dilation", short(dilations), 1),
            )
            if number != default
        }
        return call.emit(MAX[rank], call[0], short(kernel), short(strides), **stated)
    geometry = (tuple(kernel), tuple(strides), tuple(dilations), tuple(pads), mode, ceil)
    pooled = call.emit(largest_with_indices if indices else largest_of_windows, call[0], *geometry)
    return call.parts(pooled, 2) if indices else pooled


def reach(
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    pads: tuple[int, ...],
    mode: str,
    ceil: bool,
) -> tuple[list[int], list[int]]:
    """The padding (last axis first) with which every window lies inside, and that of the last axis first asked for."""
    rank = len(kernel)
    if mode == "VALID":
        pads = (0,) * (2 * rank)
    asked = [pads[at + side * rank] for at in reversed(range(rank)) for side in (0, 1)]
    if mode.startswith("SAME"):
        asked = same_widths(sizes, kernel, strides, dilations, mode == "SAME_UPPER")
    full = []
    for at in range(rank):
        axis = rank - 1 - at
        before, after = asked[2 * at], asked[2 * at + 1]
        span, size, stride = (kernel[axis] - 1) * dilations[axis] + 1, sizes[axis], strides[axis]
        room = size + before + after - span
        count = (-(-room // stride) if ceil else room // stride) + 1
        if ceil and (count - 1) * stride >= size + before:
            count -= 1  # no window starts in the padding behind
        full += [before, (count - 1) * stride + span - size - before]
    return full, asked


def largest_of_windows(
    x: Tensor,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    pads: tuple[int, ...],
    mode: str,
    ceil: bool,
) -> Tensor:
    """Max pooling with any padding."""
    widths, _ = reach(x.shape[2:], kernel, strides, dilations, pads, mode, ceil)
    lowest = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    return MAX[len(kernel)](F.pad(x, widths, value=lowest), kernel, strides, 0, dilations)


def largest_with_indices(
    x: Tensor,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    pads: tuple[int, ...],
    mode: str,
    ceil: bool,
) -> tuple[Tensor, Tensor]:
    """Max pooling with any padding, and flat indices into `x`."""
    rank = len(kernel)
    widths, _ = reach(x.shape[2:], kernel, strides, dilations, pads, mode, ceil)
    around = F.pad(x, widths, value=-math.inf)
    best, index = MAX[rank](around, kernel, strides, 0, dilations, return_indices=True)
    place = torch.zeros_like(index)
    step = 1
    for at in range(rank):
        axis = x.dim() - 1 - at
        coordinate = index % around.shape[axis] - widths[2 * at]
        index = torch.div(index, around.shape[axis], rounding_mode="floor")
        place = place + coordinate * step
        step = step * x.shape[axis]
    planes = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(*x.shape[:2], *(1,) * rank)
    return best, place + planes * step


def average_pool(call: Call) -> Results:
    """The mean of each window; the padding asked for counts with `count_include_pad`, no other does."""
    kernel, strides, dilations, pads, mode, ceil = _geometry(call)
    rank, count = len(kernel), bool(call.integer("count_include_pad"))
    if _native(kernel, pads, mode, ceil) and set(dilations) == {1}:
        stated = {"padding": short(pads[:rank]), "count_include_pad": count} if any(pads) else {}
        return call.emit(MEAN[rank], call[0], short(kernel), short(strides), **stated)
    geometry = (tuple(kernel), tuple(strides), tuple(dilations), tuple(pads), mode, ceil)
    return call.emit(mean_of_windows, call[0], *geometry, count)


def window_sums(
    x: Tensor, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> Tensor:
    """Σ over each window of padded `x`, channel by channel."""
    rank = len(kernel)
    for at in range(rank):
        axis = x.dim() - rank + at
        span = (kernel[at] - 1) * dilations[at] + 1
        windows = x.unfold(axis, span, strides[at])
        x = windows[..., :: dilations[at]].sum(-1)
    return x


def mean_of_windows(
    x: Tensor,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    pads: tuple[int, ...],
    mode: str,
    ceil: bool,
    count_padding: bool,
) -> Tensor:
    """Average pooling with any padding and dilation."""
    widths, asked = reach(x.shape[2:], kernel, strides, dilations, pads, mode, ceil)
    inside = torch.ones_like(x[:1, :1])
    if count_padding:
        inside = F.pad(inside, asked, value=1.0)
        inside = F.pad(inside, [full - part for full, part in zip(widths, asked, strict=True)])
    else:
        inside = F.pad(inside, widths)
    return window_sums(F.pad(x, widths), kernel, strides, dilations) / window_sums(
        inside, kernel, strides, dilations
    )


def lp_pool(call: Call) -> Results:
    """(Σ |x|^p)^(1/p) of each window."""
    kernel, strides, dilations, pads, mode, ceil = _geometry(call)
    geometry = (tuple(kernel), tuple(strides), tuple(dilations), tuple(pads), mode, ceil)
    return call.emit(norm_of_windows, call[0], *geometry, call.integer("p", 2))


def norm_of_windows(
    x: Tensor,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    pads: tuple[int, ...],
    mode: str,
    ceil: bool,
    p: int,
) -> Tensor:
    """The p-norm of each window."""
    widths, _ = reach(x.shape[2:], kernel, strides, dilations, pads, mode, ceil)
    return window_sums(F.pad(x.abs() ** p, widths), kernel, strides, dilations) ** (1 / p)


def global_mean(x: Tensor) -> Tensor:
    """The mean over all spatial axes, which stay with size 1."""
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


def global_max(x: Tensor) -> Tensor:
    """The maximum over all spatial axes."""
    return x.amax(tuple(range(2, x.dim())), keepdim=True)


def global_norm(x: Tensor, p: int) -> Tensor:
    """The p-norm over all spatial axes."""
    norm: Tensor = torch.linalg.vector_norm(x, p, tuple(range(2, x.dim())), keepdim=True)
    return norm


TRANSLATIONS: dict[str, Translation] = {
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "LpPool": lp_pool,
    "GlobalAveragePool": lambda call: call.emit(global_mean, call[0]),
    "GlobalMaxPool": lambda call: call.emit(global_max, call[0]),
    "GlobalLpPool": lambda call: call.emit(global_norm, call[0], call.integer("p", 2)),
}
