"""Where the elements of a value come from, if a graph only moves those of its stored tensors about.

Exporters reorder the gates of recurrent layers in the graph. A kernel that wants them in their first order is given the
stored tensors themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.arrays import Array
from surgery.numeric import compute
from surgery.torch.call import Operand, Ref
from surgery.torch.host import Host

MOVED = frozenset(
    [
        *("Gather", "Slice", "Concat", "Split", "Transpose", "Expand"),
        *("Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten"),
    ]
)


@dataclass
class Stored:
    """A tensor of the graph that the module keeps.

    Attributes:
      name: as the graph has it. text: the expression that reads it. shape: its sizes.
      offset: its first number in an origin.
    """

    name: str
    text: str
    shape: tuple[int, ...]
    offset: int = 0


def traced(
    stored: Mapping[ir.Value, Stored],
    versions: Mapping[str, int],
    find: Callable[[ir.Value], Operand],
    value: ir.Value | None,
) -> Array | None:
    """Element by element, which number of which stored tensor a value is; None if it is computed.

    Args:
      stored: the tensors, numbered one after the other by their offsets.
      versions: opset versions by domain.
      find: what a value is now; the operands that say where elements go must be constants.
      value: any value.
    """
    if value is None:
        return None
    if value in stored:
        offset, shape = stored[value].offset, stored[value].shape
        return np.arange(offset, offset + int(np.prod(shape)), dtype=np.int64).reshape(shape)
    node = value.producer()
    if node is None or node.op_type not in MOVED:
        return None
    arrays: list[Array | None] = []
    for at, operand in enumerate(node.inputs):
        if at == 0 or node.op_type == "Concat":
            moved = traced(stored, versions, find, operand)
            if moved is None:
                return None
            arrays.append(moved)
            continue
        found = None if operand is None else find(operand)
        if operand is not None and not (isinstance(found, Host) and found.known):
            return None
        arrays.append(found.elements if isinstance(found, Host) else None)
    results = compute(node, arrays, node.version or versions.get(node.domain, 1))
    return results[list(node.outputs).index(value)]


def whole(stored: Mapping[ir.Value, Stored], origin: Array) -> Ref | None:
    """The stored tensor that consists of these elements in this order and shape; None if there is none."""
    for value, tensor in stored.items():
        if tensor.shape == origin.shape and origin.size and int(origin.flat[0]) == tensor.offset:
            wanted = np.arange(tensor.offset, tensor.offset + origin.size).reshape(origin.shape)
            return Ref(tensor.text, value) if np.array_equal(origin, wanted) else None
    return None
