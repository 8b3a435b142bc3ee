"""Convolution and its transpose in 1 to 3 dimensions, grouped, dilated, as matrix products."""

from __future__ import annotations

from functools import partial
from math import prod

import numpy as np

from surgery.arrays import Array
from surgery.numeric import dual
from surgery.numeric.call import Call, Kernel
from surgery.numeric.movement import padded
from surgery.numeric.window import Window, window

# Images are taken together while their unfolded windows fit in this many bytes.
UNFOLDED_BYTES = 1 << 25


def conv(call: Call) -> Array:
    """y[n, m, o] = b[m] + Σ w[m, c, k] · x[n, c, o·stride + k·dilation] over the channels of m's group."""
    x, w = call[0], call[1]
    geometry = window(call, x.shape[2:], call.integers("kernel_shape") or w.shape[2:])
    y = dual.bilinear(partial(correlate, geometry=geometry, groups=call.integer("group", 1)), x, w)
    return _with_bias(y, call.get(2))


def _with_bias(y: Array, bias: Array | None) -> Array:
    if bias is None:
        return y
    return np.asarray(y + bias.reshape(-1, *(1,) * (y.ndim - 2)))


def correlate(x: Array, w: Array, geometry: Window, groups: int) -> Array:
    """The sum of `conv` without bias, for real x (N, C, *S) and w (M, C/groups, *K): (N, M, *O)."""
    batch, channels = x.shape[:2]
    if channels != w.shape[1] * groups or w.shape[0] % groups:
        raise ValueError(f"weight {w.shape} in {groups} groups over {channels} channels")
    if any(geometry.before) or any(geometry.after):
        pairs = [(0, 0), (0, 0), *zip(geometry.before, geometry.after, strict=True)]
        x = padded(x, pairs, "constant", np.zeros((), x.dtype))
    taps, spots = prod(geometry.kernel), prod(geometry.sizes)
    matrix = w.reshape(groups, w.shape[0] // groups, w.shape[1] * taps)
    out = np.empty((batch, groups, matrix.shape[1], spots), np.result_type(x.dtype, w.dtype))
    together = max(1, UNFOLDED_BYTES // max(1, channels * taps * spots * x.itemsize))
    for first in range(0, batch, together):
        part = slice(first, first + together)
        columns = _unfold(x[part], geometry).reshape(-1, groups, w.shape[1] * taps, spots)
        np.matmul(matrix, columns, out=out[part])
    return out.reshape(batch, w.shape[0], *geometry.sizes)


def _unfold(x: Array, geometry: Window) -> Array:
    """Padded images (N, C, *S) to their windows (N, C, *K, *O), as a view."""
    if not prod(geometry.sizes):
        return np.empty((*x.shape[:2], *geometry.kernel, *geometry.sizes), x.dtype)
    rank = len(geometry.kernel)
    windows = np.lib.stride_tricks.sliding_window_view(x, geometry.spans, axis=tuple(range(2, x.ndim)))
    steps = [slice(None, None, step) for step in (*geometry.strides, *geometry.dilations)]
    spots = tuple(range(2, 2 + rank))
    return windows[(slice(None), slice(None), *steps)].transpose(0, 1, *(at + rank for at in spots), *spots)


def conv_transpose(call: Call) -> Array:
    """The adjoint of `conv` in x: every element adds its multiple of the kernel to the result."""
    x, w = call[0], call[1]
    rank = x.ndim - 2
    strides = call.integers("strides") or [1] * rank
    dilations = call.integers("dilations") or [1] * rank
    spans = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    extra = call.integers("output_padding") or [0] * rank
    full = [
        (n - 1) * stride + span + more
        for n, stride, span, more in zip(x.shape[2:], strides, spans, extra, strict=True)
    ]
    before, sizes = _transposed_extent(call, full, [n * s for n, s in zip(x.shape[2:], strides, strict=True)])
    reach = [max(f, b + n) for f, b, n in zip(full, before, sizes, strict=True)]
    geometry = Window(w.shape[2:], tuple(strides), tuple(dilations), (0,) * rank, (0,) * rank, x.shape[2:])
    spread = partial(_spread, geometry=geometry, groups=call.integer("group", 1), reach=reach)
    y = dual.bilinear(spread, x, w)
    kept = tuple(slice(b, b + n) for b, n in zip(before, sizes, strict=True))
    return _with_bias(y[(slice(None), slice(None), *kept)], call.get(2))


def _transposed_extent(call: Call, full: list[int], same: list[int]) -> tuple[list[int], list[int]]:
    """What is cut before the result, and the size of the result, per axis."""
    rank, mode = len(full), call.text("auto_pad", "NOTSET")
    sizes = call.integers("output_shape")[-rank:] or (same if mode.startswith("SAME") else [])
    if sizes:
        totals = [max(f - n, 0) for f, n in zip(full, sizes, strict=True)]
        return [t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in totals], sizes
    pads = (call.integers("pads") if mode == "NOTSET" else []) or [0] * (2 * rank)
    return pads[:rank], [f - b - a for f, b, a in zip(full, pads[:rank], pads[rank:], strict=True)]


def _spread(x: Array, w: Array, geometry: Window, groups: int, reach: list[int]) -> Array:
    """Real x (N, C, *S) through w (C, M/groups, *K) onto axes of the sizes `reach`, nothing cut."""
    batch, channels = x.shape[:2]
    taps, spots = prod(geometry.kernel), prod(geometry.sizes)
    matrix = w.reshape(groups, channels // groups, w.shape[1] * taps).transpose(0, 2, 1)
    columns = np.matmul(matrix, x.reshape(batch, groups, channels // groups, spots))
    columns = columns.reshape(batch, groups * w.shape[1], *geometry.kernel, *geometry.sizes)
    out = np.zeros((batch, groups * w.shape[1], *reach), columns.dtype)
    for offset in np.ndindex(geometry.kernel):
        out[(slice(None), slice(None), *geometry.at(offset))] += columns[(slice(None), slice(None), *offset)]
    return out


KERNELS: dict[str, Kernel] = {"Conv": conv, "ConvTranspose": conv_transpose}
