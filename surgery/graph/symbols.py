"""Symbolic dimensions of graph inputs, and what a graph says about their sizes.

An exporter names them, or it does not: then two inputs that must have one length have two symbols, as far as the file
tells. Where a node needs two sizes to be equal, one of the symbols in them is *bound* to what the other size is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

import onnx_ir as ir

_MADE_UP = re.compile(r"unk__\d+|.*dynamic_axes_\d+|.*DynamicDimension\.\d+")
"""Names that exporters give to sizes which no one named (tf2onnx, torch, Paddle), another one for each input."""


def symbol(value: ir.Value, k: int) -> str:
    """The name of a symbolic dimension of a graph input.

    Where no one named it, it is the batch if it leads or is the input's only one: all batches are one.
    """
    assert value.shape is not None
    dim = value.shape[k]
    name = None if isinstance(dim, int) else dim.value
    if name is not None and not _MADE_UP.fullmatch(name):
        return name
    alone = sum(not isinstance(size, int) for size in value.shape) == 1
    return "batch" if k == 0 or alone else name or f"{value.name}[{k}]"


def bound(
    stand_ins: Mapping[str, int], known: Mapping[str, int], equations: Iterable[tuple[int, int]]
) -> dict[str, int]:
    """The known sizes, and that of one more symbol, from sizes that a graph needs to be equal.

    Args:
      stand_ins: every symbol, in order, and the number that stands for it: a large prime of its own, or its size.
      known: the symbols among them whose size is known.
      equations: pairs of sizes.
    """
    names = {size: name for name, size in stand_ins.items() if name not in known}
    found: list[tuple[int, int]] = []
    for left, right in equations:
        common = math.gcd(left, right)
        one, other = sorted((left // common, right // common))
        # the later symbol becomes what the earlier one is; all of them become a number that has no symbol
        found += [(other, one)] if other in names else [(one, other)] if one in names else []
    if not found:
        return dict(known)
    symbol, size = min(found, key=lambda pair: pair[1])
    same = {name for name, n in known.items() if n == symbol} | {names[symbol]}
    return {**known, **dict.fromkeys(same, size)}
