"""Convolution and its transpose."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from surgery.torch.call import Call, Ref, Results, Translation

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def spatial(call: Call) -> int:
    """The number of spatial axes.

    Raises:
      Unsupported: it is not known, or PyTorch has no such convolution.
    """
    shape = call.shape(1) or call.shape(0)
    rank = len(shape) - 2 if shape else len(call.integers("kernel_shape"))
    if rank not in CONV:
        raise call.refuse(f"PyTorch has it for 1 to 3 spatial axes, not for {rank}")
    return rank


def same_widths(
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    upper: bool,
) -> list[int]:
    """The padding (last axis first, before and after) with which the result has ceil(size/stride) elements."""
    widths: list[int] = []
    for size, k, stride, dilation in reversed(list(zip(sizes, kernel, strides, dilations, strict=True))):
        total = max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        small = total // 2
        widths += [small, total - small] if upper else [total - small, small]
    return widths


def padded_same(
    x: Tensor,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    upper: bool,
    value: float = 0.0,
) -> Tensor:
    """`x` with the padding that `auto_pad` asks for at its size."""
    return F.pad(x, same_widths(x.shape[2:], kernel, strides, dilations, upper), value=value)


def short(numbers: list[int]) -> Any:  # noqa: ANN401
    """Equal numbers as one."""
    return numbers[0] if len(set(numbers)) == 1 else tuple(numbers)


def bias_of(call: Call) -> Ref | None:
    """The bias; none where it is a constant zero, as exporters write what has none."""
    known = call.known(2)
    return None if known is not None and not known.any() else call.get(2)


def conv(call: Call) -> Results:
    """PyTorch's own convolution; padding that is not the same on both sides is put on before."""
    rank = spatial(call)
    strides = call.integers("strides") or [1] * rank
    dilations = call.integers("dilations") or [1] * rank
    x, mode = call[0], call.text("auto_pad", "NOTSET")
    pads = call.integers("pads") or [0] * (2 * rank)
    if mode.startswith("SAME"):
        kernel = call.integers("kernel_shape") or [int(n) for n in (call.shape(1) or [])[2:] if n is not None]
        if len(kernel) != rank:
            raise call.refuse("its kernel's size is not known")
        upper = mode == "SAME_UPPER"
        x = call.emit(padded_same, x, tuple(kernel), tuple(strides), tuple(dilations), upper)
    if mode != "NOTSET":
        pads = [0] * (2 * rank)
    before, after = pads[:rank], pads[rank:]
    if before != after:
        flat = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
        x, before = call.emit(F.pad, x, tuple(flat)), [0] * rank
    named = {
        "stride": (short(strides), 1),
        "padding": (short(before), 0),
        "dilation": (short(dilations), 1),
        "groups": (call.integer("group", 1), 1),
    }
    stated = {name: number for name, (number, default) in named.items() if number != default}
    bias = bias_of(call)
    return call.emit(CONV[rank], x, call[1], *(() if bias is None else (bias,)), **stated)


def conv_transpose(call: Call) -> Results:
    """PyTorch's own; what is cut before and after the result, and its size, are worked out at its size."""
    rank = spatial(call)
    strides = call.integers("strides") or [1] * rank
    dilations = call.integers("dilations") or [1] * rank
    pads = call.integers("pads") or [0] * (2 * rank)
    extra = call.integers("output_padding") or [0] * rank
    mode, shape = call.text("auto_pad", "NOTSET"), call.integers("output_shape")[-rank:]
    groups = call.integer("group", 1)
    fits = all(e < max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True))
    if mode == "NOTSET" and not shape and pads[:rank] == pads[rank:] and fits:
        named = {
            "bias": (bias_of(call), None),
            "stride": (short(strides), 1),
            "padding": (short(pads[:rank]), 0),
            "output_padding": (short(extra), 0),
            "groups": (groups, 1),
            "dilation": (short(dilations), 1),
        }
        stated = {name: number for name, (number, default) in named.items() if number != default}
        return call.emit(TRANSPOSED[rank], call[0], call[1], **stated)
    pads = pads if mode == "NOTSET" else [0] * (2 * rank)
    geometry = (tuple(strides), tuple(dilations), tuple(pads), tuple(extra), tuple(shape), mode)
    return call.emit(transposed, call[0], call[1], call.get(2), groups, *geometry)


def transposed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    pads: tuple[int, ...],
    extra: tuple[int, ...],
    shape: tuple[int, ...],
    mode: str,
) -> Tensor:
    """The whole result of a transposed convolution, then cut (or extended by the bias) to what is asked for."""
    rank = len(strides)
    full = TRANSPOSED[rank](x, weight, None, strides, 0, 0, groups, dilations)
    sizes = [n + e for n, e in zip(full.shape[2:], extra, strict=True)]
    if shape or mode.startswith("SAME"):
        wanted = list(shape) or [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
        totals = [max(f - n, 0) for f, n in zip(sizes, wanted, strict=True)]
        before = [t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in totals]
    else:
        before = list(pads[:rank])
        wanted = [n - b - a for n, b, a in zip(sizes, before, pads[rank:], strict=True)]
    widths: list[int] = []
    for size, b, n in reversed(list(zip(full.shape[2:], before, wanted, strict=True))):
        widths += [-b, n + b - size]
    y = F.pad(full, widths)
    return y if bias is None else y + bias.reshape(-1, *(1,) * rank)


TRANSLATIONS: dict[str, Translation] = {"Conv": conv, "ConvTranspose": conv_transpose}
