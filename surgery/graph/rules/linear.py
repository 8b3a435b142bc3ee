"""Products summed over an axis: Gemm, MatMul and Einsum share `contract`."""

from __future__ import annotations

import onnx_ir as ir

from surgery.graph.atoms import UNIT, Axis, factors
from surgery.graph.operands import operands
from surgery.graph.rules.table import Table
from surgery.graph.singles import alone, is_single
from surgery.graph.trace import Opaque, Trace

RULES = Table()

Row = tuple[ir.Value, list[Axis]]


@RULES("Gemm", axes="k: contraction; m, n: pointwise, zero and scale pass back")
def gemm(t: Trace, node: ir.Node) -> None:
    """Y[m, n] = α Σ_k A[m, k] B[k, n] + β C[m, n]."""
    a, b = node.inputs[0], node.inputs[1]
    c = node.inputs[2] if len(node.inputs) > 2 else None
    assert a is not None and b is not None
    left, right = t.axes(a), t.axes(b)
    m, k = left[::-1] if node.attributes.get_int("transA", 0) else left
    k2, n = right[::-1] if node.attributes.get_int("transB", 0) else right
    t.contract(node, (a, k), (b, k2))
    rows, columns, whole = [(a, m)], [(b, n)], 2
    if c is not None:
        shape = _added(t, node, t.axes(c), (m, n))
        t.use("bias", c, t.axes(c))
        rows += [(c, shape[0])] if shape[0] else []
        columns += [(c, shape[1])] if shape[1] else []
        whole = 2 if shape[1] else 0
    _weights(t, (a, left), (b, right))
    out = [
        t.merge(node, rows, passes=0 if c is not None and len(rows) < 2 else 2),
        t.merge(node, columns, passes=whole),
    ]
    t.put(node.outputs[0], out)


def _added(t: Trace, node: ir.Node, c: list[Axis], sums: tuple[Axis, Axis]) -> tuple[Axis, Axis]:
    """The two axes of what is added to a product; none where it is repeated."""
    m, n = [UNIT, UNIT, *c][-2:]
    for own, other in zip((m, n), sums, strict=True):
        if is_single(own) and not is_single(other):
            alone(node, own, "it is repeated along another axis")
    return (m if factors(m) else UNIT), (n if factors(n) else UNIT)


@RULES("MatMul", axes="k: contraction; batch, m, n: pointwise, zero and scale pass back")
def matmul(t: Trace, node: ir.Node) -> None:
    """Y[…, m, n] = Σ_k A[…, m, k] B[…, k, n]."""
    a, b = node.inputs[0], node.inputs[1]
    assert a is not None and b is not None
    left, right = t.axes(a), t.axes(b)
    if not left or not right:
        raise Opaque("a product with a scalar")
    t.contract(node, (a, left[-1]), (b, right[-2] if len(right) > 1 else right[-1]))
    _weights(t, (a, left), (b, right))
    out = [t.merge(node, column, mode="any") for column in t.columns(node, [(a, left[:-2]), (b, right[:-2])])]
    if len(left) > 1:
        out.append(t.merge(node, [(a, left[-2])]))
    if len(right) > 1:
        out.append(t.merge(node, [(b, right[-1])]))
    t.put(node.outputs[0], out)


def _weights(t: Trace, *rows: Row) -> None:
    for value, axes in rows:
        t.use("weight", value, axes)


@RULES(
    "Einsum",
    axes="missing in the result, of several operands: contraction; missing in it, of one: sum; "
    "other axes: pointwise, zero and scale pass back to one operand",
)
def einsum(t: Trace, node: ir.Node) -> None:
    """Einstein summation: products of all operands, summed over the letters that the result lacks."""
    equation = node.attributes["equation"].as_string().replace(" ", "")
    values = operands(node)
    rows, result = _subscripts(t, equation, values)
    found: dict[str, list[tuple[ir.Value, Axis]]] = {}
    for value, subscripts in zip(values, rows, strict=True):
        if len(set(subscripts)) < len(subscripts):
            raise Opaque("a diagonal in an Einsum")
        for letter, axis in zip(subscripts, t.axes(value), strict=True):
            found.setdefault(letter, []).append((value, axis))
        t.use("weight", value, t.axes(value))
    for letter, columns in found.items():
        if letter in result:
            continue
        wide = [(value, axis) for value, axis in columns if axis]
        if len(wide) > 1:
            t.contract(node, *wide)
        elif wide:
            t.mix(node, "sum", *wide[0])
    t.put(node.outputs[0], [t.merge(node, found[letter], mode="any") for letter in result])


def _subscripts(t: Trace, equation: str, values: list[ir.Value]) -> tuple[list[list[str]], list[str]]:
    """One label per axis for each operand and for the result; an ellipsis becomes labels of its own."""
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    ranks = [len(t.axes(value)) for value in values]
    dots = max(
        [rank - len(term) + 3 for term, rank in zip(terms, ranks, strict=True) if "..." in term] or [0]
    )

    def labels(term: str, rank: int | None) -> list[str]:
        if "..." not in term:
            return list(term)
        head, tail = term.split("...")
        count = dots if rank is None else rank - len(head) - len(tail)
        return [*head, *(f".{k}" for k in range(dots - count, dots)), *tail]

    rows = [labels(term, rank) for term, rank in zip(terms, ranks, strict=True)]
    if arrow:
        return rows, labels(right, None)
    letters = [letter for row in rows for letter in row]
    once = sorted(
        letter for letter in set(letters) if letters.count(letter) == 1 and not letter.startswith(".")
    )
    return rows, [*(f".{k}" for k in range(dots)), *once]
