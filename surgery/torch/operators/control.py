"""Control flow, which becomes Python's, and sequences of tensors, whose lengths must be known."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from surgery.torch.call import Call, Operand, Ref, Results, Translation
from surgery.torch.host import Size

Body = Callable[..., tuple[Any, ...]]


def branch(call: Call) -> Results:
    """One of two subgraphs."""
    condition = call.whole(0)
    known = isinstance(condition, bool | int)
    wanted = ["then_branch" if condition else "else_branch"] if known else ["then_branch", "else_branch"]
    bodies = [Size(call.emitter.body(_graph(call, name))) for name in wanted]
    if known:
        return call.parts(call.emit(str(bodies[0])), len(call.node.outputs))
    chosen = call.emitter.emit(f"({bodies[0]} if {condition} else {bodies[1]})()", call.name)
    return call.parts(chosen, len(call.node.outputs))


def _graph(call: Call, name: str) -> ir.Graph:
    graph = call.attribute(name)
    if not isinstance(graph, ir.Graph):
        raise call.refuse(f"it has no {name}")
    return graph


def loop(call: Call) -> Results:
    """A subgraph that carries values from turn to turn; its further outputs are stacked."""
    graph = _graph(call, "body")
    carried = [call[index] for index in range(2, len(call.operands))]
    body = Size(call.emitter.body(graph, host=(0, 1)))
    outputs = graph.outputs[1 + len(carried) :]
    limit, condition = call.whole(0), call.whole(1, True)
    empty = [_empty(call, v) for v in outputs]
    return call.parts(
        call.emit(repeated, limit, condition, carried, body, empty, Size(call.emitter.device())),
        len(call.node.outputs),
    )


def _empty(call: Call, v: ir.Value) -> tuple[tuple[int, ...], Size]:
    """The shape and type of a stacked output of no turn at all."""
    sizes = tuple(size if isinstance(size, int) else 0 for size in v.shape) if v.shape is not None else ()
    return sizes, Size(call.emitter.dtype(v.dtype or ir.DataType.FLOAT))


def repeated(
    limit: int | None, more: bool | Tensor, carried: list[Tensor], body: Body,
    empty: list[tuple[tuple[int, ...], torch.dtype]], device: torch.device,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The carried values after the last turn, and the stacked ones of all turns."""
    stacks: list[list[Tensor]] = [[] for _ in empty]
    for turn in count():
        if not more or (limit is not None and turn >= limit):
            break
        more, *results = body(turn, bool(more), *carried)
        carried = results[: len(carried)]
        for stack, x in zip(stacks, results[len(carried) :], strict=True):
            stack.append(x)
    return (*carried, *(_stacked(s, kind, device) for s, kind in zip(stacks, empty, strict=True)))


def _stacked(
    stack: list[Tensor], kind: tuple[tuple[int, ...], torch.dtype], device: torch.device, axis: int = 0
) -> Tensor:
    if stack:
        return torch.stack(stack, axis)
    return torch.zeros(kind[0], dtype=kind[1], device=device).unsqueeze(axis).narrow(axis, 0, 0)


def scan(call: Call) -> Results:
    """A subgraph on every slice of some operands, that carries the others from turn to turn (opset 9 on)."""
    if call.version < 9:
        raise call.refuse("the form of opset 8, which has a batch of its own")
    graph, scanned = _graph(call, "body"), call.integer("num_scan_inputs")
    operands = [call[index] for index in range(len(call.operands))]
    states, rows = operands[: len(operands) - scanned], operands[len(operands) - scanned :]
    outputs = graph.outputs[len(states) :]
    settings = {
        "axes": tuple(call.integers("scan_input_axes") or [0] * scanned),
        "turned": tuple(call.integers("scan_input_directions") or [0] * scanned),
        "out_axes": tuple(call.integers("scan_output_axes") or [0] * len(outputs)),
        "out_turned": tuple(call.integers("scan_output_directions") or [0] * len(outputs)),
        "empty": [_empty(call, v) for v in outputs],
        "device": Size(call.emitter.device()),
    }
    body = Size(call.emitter.body(graph))
    return call.parts(call.emit(swept, states, rows, body, **settings), len(call.node.outputs))


def swept(
    states: list[Tensor], rows: list[Tensor], body: Body, *, axes: tuple[int, ...], turned: tuple[int, ...],
    out_axes: tuple[int, ...], out_turned: tuple[int, ...],
    empty: list[tuple[tuple[int, ...], torch.dtype]], device: torch.device,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The last states, and the results of all turns along an axis of their own."""
    slices = [
        (x.flip(axis) if back else x).unbind(axis) for x, axis, back in zip(rows, axes, turned, strict=True)
    ]
    stacks: list[list[Tensor]] = [[] for _ in empty]
    for parts in zip(*slices, strict=True):
        results = body(*states, *parts)
        states = list(results[: len(states)])
        for stack, x in zip(stacks, results[len(states) :], strict=True):
            stack.append(x)
    gathered = [
        _stacked(stack[::-1] if back else stack, kind, device, axis)
        for stack, kind, axis, back in zip(stacks, empty, out_axes, out_turned, strict=True)
    ]
    return (*states, *gathered)


def _sequence(call: Call, index: int = 0) -> tuple[Ref, ...]:
    operand = call.operands[index]
    if not isinstance(operand, tuple):
        raise call.refuse("the length of its sequence is not known")
    return operand


def _position(call: Call, index: int, default: int) -> int:
    position = call.whole(index, default)
    if isinstance(position, Size):
        raise call.refuse("its position is computed while it runs")
    return int(position)


def split_to_sequence(call: Call) -> Results:
    """Parts along `axis`: of one size, of listed sizes, or single slices (whose axis `keepdims` 0 drops)."""
    axis, parts = call.integer("axis"), call.known(1)
    size = call.size(0, axis)
    if call.has(1) and parts is None:
        raise call.refuse("its parts are computed while it runs")
    if parts is not None and parts.ndim:
        sizes = [int(part) for part in parts]
    elif size is None:
        raise call.refuse("the size of the axis that it splits is not known")
    else:
        step = 1 if parts is None else int(parts)
        sizes = [min(step, size - at) for at in range(0, size, step)]
    if parts is None and not call.integer("keepdims", 1):
        return _members(call, call.emit(torch.unbind, call[0], axis), len(sizes))
    return _members(call, call.emit(torch.split, call[0], sizes, axis), len(sizes))


def _members(call: Call, whole: Ref, count: int) -> Operand:
    return tuple(part for part in call.parts(whole, count) if isinstance(part, Ref))


def concat_from_sequence(call: Call) -> Results:
    """All tensors of a sequence joined along `axis`, a new one if asked."""
    join = torch.stack if call.integer("new_axis") else torch.cat
    return call.emit(join, list(_sequence(call)), call.integer("axis"))


def sequence_insert(call: Call) -> Operand:
    """With one tensor more, before a position or at the end."""
    sequence = _sequence(call)
    at = _position(call, 2, len(sequence))
    at = at + len(sequence) if at < 0 else at
    return (*sequence[:at], call[1], *sequence[at:])


def sequence_erase(call: Call) -> Operand:
    """Without the tensor at a position, the last by default."""
    members = list(_sequence(call))
    del members[_position(call, 1, -1)]
    return tuple(members)


def sequence_length(call: Call) -> Results:
    """The number of tensors."""
    return call.emit(torch.tensor, len(_sequence(call)), device=Size(call.emitter.device()))


TRANSLATIONS: dict[str, Translation] = {
    "If": branch,
    "Loop": loop,
    "Scan": scan,
    "SequenceConstruct": lambda call: tuple(call[index] for index in range(len(call.operands))),
    "SequenceEmpty": lambda call: (),
    "SequenceInsert": sequence_insert,
    "SequenceErase": sequence_erase,
    "SequenceLength": sequence_length,
    "SequenceAt": lambda call: _sequence(call)[_position(call, 1, 0)],
    "SplitToSequence": split_to_sequence,
    "ConcatFromSequence": concat_from_sequence,
}
