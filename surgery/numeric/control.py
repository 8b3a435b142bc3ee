"""Control flow and sequences of tensors."""

from __future__ import annotations

from itertools import count

import numpy as np
import onnx_ir as ir

from surgery.arrays import Array
from surgery.errors import GraphError
from surgery.numeric.call import Call, Kernel, Value


def branch(call: Call) -> tuple[Value, ...]:
    """One of two subgraphs."""
    return call.bodies["then_branch" if bool(call[0].real.reshape(())) else "else_branch"]()


def loop(call: Call) -> tuple[Value, ...]:
    """A subgraph that carries values from turn to turn; its further outputs are stacked."""
    limit, condition = call.get(0), call.get(1)
    carried = call.inputs[2:]
    body = call.bodies["body"]
    more = True if condition is None else bool(condition.reshape(()))
    stacks: list[list[Array]] = [[] for _ in range(len(call.node.outputs) - len(carried))]
    for turn in count():
        if not more or (limit is not None and turn >= int(limit.reshape(()))):
            break
        results = body(np.asarray(turn, np.int64), np.asarray(more), *carried)
        more = bool(_tensor(results[0]).real.reshape(()))
        carried = results[1 : 1 + len(carried)]
        for stack, x in zip(stacks, results[1 + len(carried) :], strict=True):
            stack.append(_tensor(x))
    outputs = call.attribute("body").outputs[1 + len(carried) :]
    return (*carried, *(_stacked(call, stack, v) for stack, v in zip(stacks, outputs, strict=True)))


def _tensor(x: Value) -> Array:
    if not isinstance(x, np.ndarray):
        raise GraphError("a loop can only stack tensors")
    return x


def _stacked(call: Call, stack: list[Array], v: ir.Value, axis: int = 0) -> Array:
    """The values of all turns along a new axis; after no turn at all, an empty one of the declared shape."""
    if stack:
        return np.stack(stack, axis=axis)
    sizes = [size if isinstance(size, int) else 0 for size in v.shape] if v.shape is not None else []
    empty = np.zeros(sizes, np.float32 if v.dtype is None else v.dtype.numpy())
    return call.floating(np.stack([empty], axis=axis).take([], axis=axis))


def scan(call: Call) -> tuple[Value, ...]:
    """A subgraph on every slice of some operands, that carries the others from turn to turn (opset 9 on)."""
    scanned = call.integer("num_scan_inputs")
    states: tuple[Value, ...] = call.inputs[: len(call.inputs) - scanned]
    operands = [call[index] for index in range(len(states), len(call.inputs))]
    axes = call.integers("scan_input_axes") or [0] * scanned
    turned = call.integers("scan_input_directions") or [0] * scanned
    rows = [
        np.moveaxis(np.flip(x, axis) if back else x, axis, 0)
        for x, axis, back in zip(operands, axes, turned, strict=True)
    ]
    outputs = call.attribute("body").outputs[len(states) :]
    stacks: list[list[Array]] = [[] for _ in outputs]
    for slices in zip(*rows, strict=True):
        results = call.bodies["body"](*states, *(np.asarray(x) for x in slices))
        states = results[: len(states)]
        for stack, x in zip(stacks, results[len(states) :], strict=True):
            stack.append(_tensor(x))
    out_axes = call.integers("scan_output_axes") or [0] * len(outputs)
    out_turned = call.integers("scan_output_directions") or [0] * len(outputs)
    gathered = [
        _stacked(call, stack[::-1] if back else stack, v, axis)
        for stack, v, axis, back in zip(stacks, outputs, out_axes, out_turned, strict=True)
    ]
    return (*states, *gathered)


def split_to_sequence(call: Call) -> tuple[Value, ...]:
    """Parts along `axis`: of one size, of listed sizes, or single slices (whose axis `keepdims` 0 drops)."""
    x, parts = call[0], call.get(1)
    axis = call.axis(0, x.ndim)
    size = x.shape[axis]
    if parts is None:
        slices = np.split(x, size, axis=axis) if size else []
        return ([s if call.integer("keepdims", 1) else s.squeeze(axis) for s in slices],)
    if parts.ndim == 0:
        bounds = list(range(int(parts), size, int(parts)))
    else:
        bounds = [int(bound) for bound in np.cumsum(parts)[:-1]]
    return (list(np.split(x, bounds, axis=axis)),)


def concat_from_sequence(call: Call) -> Array:
    """All tensors of a sequence joined along `axis`, a new one if asked."""
    join = np.stack if call.integer("new_axis") else np.concatenate
    return np.asarray(join(call.sequence(0), axis=call.integer("axis")))


def _position(call: Call, index: int, default: int) -> int:
    position = call.get(index)
    return default if position is None else int(position.reshape(()))


def sequence_insert(call: Call) -> tuple[Value, ...]:
    """With one tensor more, before a position or at the end."""
    sequence = call.sequence(0)
    at = _position(call, 2, len(sequence))
    at = at + len(sequence) if at < 0 else at
    return ([*sequence[:at], call[1], *sequence[at:]],)


def sequence_erase(call: Call) -> tuple[Value, ...]:
    """Without the tensor at a position, the last by default."""
    sequence = list(call.sequence(0))
    del sequence[_position(call, 1, -1)]
    return (sequence,)


KERNELS: dict[str, Kernel] = {
    "If": branch,
    "Loop": loop,
    "Scan": scan,
    "SequenceConstruct": lambda call: (call.tensors,),
    "SequenceEmpty": lambda call: ([],),
    "SequenceInsert": sequence_insert,
    "SequenceErase": sequence_erase,
    "SequenceLength": lambda call: np.asarray(len(call.sequence(0)), np.int64),
    "SequenceAt": lambda call: call.sequence(0)[_position(call, 1, 0)],
    "SplitToSequence": split_to_sequence,
    "ConcatFromSequence": concat_from_sequence,
}
