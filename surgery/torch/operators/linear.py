"""Contractions: Gemm, MatMul, Einsum."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from surgery.torch.call import Call, Ref, Results, Translation
from surgery.torch.operators.fused_attention import scaled_dot_product


def affine(
    a: Tensor, b: Tensor, c: Tensor | None, alpha: float, beta: float, turned: tuple[bool, bool]
) -> Tensor:
    """α·A'·B' + β·C, each of A', B' transposed if `turned` says so."""
    y = (a.t() if turned[0] else a) @ (b.t() if turned[1] else b)
    y = y if alpha == 1 else alpha * y
    return y if c is None else y + (c if beta == 1 else beta * c)


def gemm(call: Call) -> Results:
    """Y = α·A'·B' + β·C: a linear layer in nearly every graph."""
    alpha, beta = call.number("alpha", 1.0), call.number("beta", 1.0)
    turned = bool(call.integer("transA")), bool(call.integer("transB"))
    plain = alpha == 1 and (beta == 1 or not call.has(2)) and not turned[0]
    if plain and (not call.has(2) or call.shape(2) == [call.size(1, 0 if turned[1] else 1)]):
        return linear(call, call[0], call[1], turned[1], call.get(2))
    return call.emit(affine, call[0], call[1], call.get(2), alpha, beta, turned)


def linear(call: Call, x: Ref, weight: Ref, turned: bool, bias: Ref | None) -> Ref:
    """x·W + b; the weight is (out, in) if `turned`, else (in, out)."""
    matrix = weight if turned else Ref(f"{weight}.t()")
    return call.emit(F.linear, x, matrix, *(() if bias is None else (bias,)))


def matmul(call: Call) -> Results:
    """A linear layer where the second operand is a stored matrix, with the bias that is added next."""
    weight, turned = call.emitter.matrix(call.node.inputs[1])
    if weight is None:
        fused = scaled_dot_product(call)
        return call.emit(torch.matmul, call[0], call[1]) if fused is None else fused
    bias = call.emitter.added_bias(call.node)
    if bias is None:
        return linear(call, call[0], weight, turned, None)
    y = linear(replace(call, node=bias[0]), call[0], weight, turned, bias[1])
    call.emitter.merge(bias[0], y)
    return y


def einsum(call: Call) -> Results:
    """Sum of products by index letters."""
    equation = call.text("equation", "").replace(" ", "")
    return call.emit(torch.einsum, equation, *(call[index] for index in range(len(call.operands))))


TRANSLATIONS: dict[str, Translation] = {
    "Gemm": gemm,
    "MatMul": matmul,
    "Einsum": einsum,
}
