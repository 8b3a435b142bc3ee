"""All kernels by operator name, and where to look for one that is not here."""

from __future__ import annotations

from collections.abc import Mapping

from surgery.numeric import (
    activation,
    attention,
    control,
    convolution,
    elementwise,
    indexing,
    linear,
    movement,
    normalise,
    pooling,
    recurrent,
    reduction,
    resize,
    shapes,
)
from surgery.numeric.call import Call, Kernel

FAMILIES = (
    linear,
    elementwise,
    activation,
    shapes,
    movement,
    indexing,
    reduction,
    convolution,
    pooling,
    resize,
    normalise,
    recurrent,
    attention,
    control,
)

KERNELS: Mapping[str, Kernel] = {
    name: kernel for family in FAMILIES for name, kernel in family.KERNELS.items()
}

RANDOM = {
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli",
}  # fmt: skip
"""Operators that give other numbers every time; the evaluator is deterministic, and has none of them."""


def supported(op_type: str) -> bool:
    """Whether there is a kernel for an operator of ONNX, ours or the reference implementation's."""
    if op_type in RANDOM:
        return False
    if op_type in KERNELS:
        return True
    from surgery.numeric import reference

    return reference.known(op_type)


def find(call: Call) -> Kernel:
    """The kernel for a call.

    Raises:
      Unsupported: there is none.
    """
    node = call.node
    if node.domain:
        raise call.refuse(f"no kernel in the domain '{node.domain}'")
    if node.op_type in RANDOM:
        raise call.refuse("its result is random")
    kernel = KERNELS.get(node.op_type)
    if kernel is not None:
        return kernel
    from surgery.numeric import reference

    return reference.evaluate
