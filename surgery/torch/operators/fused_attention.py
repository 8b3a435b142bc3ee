"""Attention that an exporter has taken apart, put together again.

softmax((a·q)(b·k)ᵀ) v, as PyTorch's exporter writes its scaled dot products below opset 23, is PyTorch's own kernel
with the scale a·b: faster, and with no scores in memory. Only this form, without a mask and with nothing else reading
what lies between: a hidden row would be NaN there, and zero here.
"""

from __future__ import annotations

import onnx_ir as ir
from torch.nn import functional as F

from surgery.torch.call import Call, Emitter, Ref
from surgery.torch.host import Host


def scaled_dot_product(call: Call) -> Ref | None:
    """The result of softmax(scores)·v by the kernel, or None if the product is not one of this form."""
    weights, values = call.node.inputs
    softmax = _maker(weights, "Softmax")
    scores = None if softmax is None else _maker(softmax.inputs[0], "MatMul")
    if softmax is None or scores is None or softmax.attributes.get_int("axis", -1) not in (-1, 3):
        return None
    query, key = (_scaled(call.emitter, value) for value in scores.inputs)
    between = (softmax.outputs[0], scores.outputs[0])
    if query is None or key is None or values is None or any(len(list(v.uses())) > 1 for v in between):
        return None
    keys = _turned_back(call.emitter, key[0])
    sizes = [_sizes(call.emitter, value) for value in (query[0], keys, values)]
    if keys is None or any(
        s is None or s[1] is None or s[1:2] != (sizes[0] or [None] * 2)[1:2] for s in sizes
    ):
        return None
    q, k, v = (call.emitter.tensor(call.emitter.find(value)) for value in (query[0], keys, values))
    return call.emit(F.scaled_dot_product_attention, q, k, v, scale=query[1] * key[1])


def _maker(value: ir.Value | None, operator: str) -> ir.Node | None:
    """The node that makes a value, if it is such an operator."""
    node = None if value is None else value.producer()
    fits = node is not None and node.op_type == operator and not node.domain
    return node if fits else None


def _scaled(emitter: Emitter, value: ir.Value | None) -> tuple[ir.Value, float] | None:
    """What is multiplied by one known number, and the number."""
    node = _maker(value, "Mul")
    for at in (0, 1) if node is not None else ():
        assert node is not None
        factor, other = node.inputs[at], node.inputs[1 - at]
        found = None if factor is None else emitter.find(factor)
        if other is not None and isinstance(found, Host) and found.known and found.elements.size == 1:
            return other, float(found.scalar())
    return None


def _turned_back(emitter: Emitter, value: ir.Value) -> ir.Value | None:
    """The keys that were transposed: (batch, heads, length, size) for (batch, heads, size, length).

    The exporter does so with batch and heads as one axis, between two reshapes.
    """
    plain = _maker(value, "Transpose")
    if plain is not None and plain.attributes.get_ints("perm", ()) == (0, 1, 3, 2):
        return plain.inputs[0]
    last = _maker(value, "Reshape")
    turn = None if last is None else _maker(last.inputs[0], "Transpose")
    first = None if turn is None else _maker(turn.inputs[0], "Reshape")
    if turn is None or first is None or tuple(turn.attributes.get_ints("perm", ())) != (0, 2, 1):
        return None
    keys = first.inputs[0]
    before, middle, after = (_sizes(emitter, v) for v in (keys, first.outputs[0], value))
    if before is None or after is None or middle is None or len(middle) != 3 or None in before[1:]:
        return None
    return keys if before[1:2] == after[1:2] and before[2:] == middle[1:] == after[:1:-1] else None


def _sizes(emitter: Emitter, value: ir.Value | None) -> list[int | None] | None:
    """The sizes of a value with four axes, or three; None if they are not known."""
    shape = None if value is None else emitter.shape_of(value)
    return shape if shape is not None and len(shape) in (3, 4) else None
