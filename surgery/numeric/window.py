"""The geometry of a window that slides over spatial axes: convolution and pooling share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from surgery.numeric.call import Call


@dataclass(frozen=True)
class Window:
    """One entry per spatial axis.

    Attributes:
      kernel: taps.
      strides: steps between windows.
      dilations: steps between taps.
      before, after: padding.
      sizes: number of windows, the size of the result.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def spans(self) -> tuple[int, ...]:
        """What one window covers, gaps included."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def at(self, offset: Sequence[int]) -> tuple[slice, ...]:
        """Where the tap `offset` of all windows lies on the padded axes."""
        return tuple(
            slice(o * d, o * d + (n - 1) * s + 1, s)
            for o, d, n, s in zip(offset, self.dilations, self.sizes, self.strides, strict=True)
        )


def window(call: Call, spatial: Sequence[int], kernel: Sequence[int]) -> Window:
    """The window that the attributes of `call` describe.

    Args:
      call: has `strides`, `dilations`, `pads`, `auto_pad`, `ceil_mode`, each with its default.
      spatial: sizes of the spatial axes of the operand.
      kernel: taps along each.
    """
    rank = len(spatial)
    strides = call.integers("strides") or [1] * rank
    dilations = call.integers("dilations") or [1] * rank
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    rounding = -1 if call.integer("ceil_mode") else 1
    before, after = _padding(call, spatial, spans, strides)
    sizes = []
    for size, span, stride, ahead, behind in zip(spatial, spans, strides, before, after, strict=True):
        count = rounding * ((rounding * (size + ahead + behind - span)) // stride) + 1
        if rounding < 0 and (count - 1) * stride >= size + ahead:
            count -= 1  # no window starts in the padding behind
        sizes.append(max(count, 0))
    return Window(tuple(kernel), tuple(strides), tuple(dilations), tuple(before), tuple(after), tuple(sizes))


def _padding(
    call: Call, spatial: Sequence[int], spans: Sequence[int], strides: Sequence[int]
) -> tuple[list[int], list[int]]:
    rank, mode = len(spatial), call.text("auto_pad", "NOTSET")
    if mode == "VALID":
        return [0] * rank, [0] * rank
    if mode == "NOTSET":
        pads = call.integers("pads") or [0] * (2 * rank)
        return pads[:rank], pads[rank:]
    totals = [
        max((-(-size // stride) - 1) * stride + span - size, 0)
        for size, span, stride in zip(spatial, spans, strides, strict=True)
    ]
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return (small, large) if mode == "SAME_UPPER" else (large, small)
