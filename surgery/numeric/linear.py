"""Contractions: Gemm, MatMul, Einsum."""

from __future__ import annotations

import numpy as np

from surgery.arrays import Array
from surgery.numeric import dual
from surgery.numeric.call import Call, Kernel


def gemm(call: Call) -> Array:
    """Y = α·A'·B' + β·C, each of A', B' transposed if asked."""
    a = call[0].T if call.integer("transA") else call[0]
    b = call[1].T if call.integer("transB") else call[1]
    y = _scaled(dual.matmul(a, b), call.number("alpha", 1.0))
    c = call.get(2)
    return y if c is None else np.asarray(y + _scaled(c, call.number("beta", 1.0)))


def _scaled(x: Array, factor: float) -> Array:
    return x if factor == 1 else np.asarray(x * np.asarray(factor).astype(x.real.dtype))


def einsum(call: Call) -> Array:
    """Sum of products by index letters; products go through BLAS where the letters allow it."""
    equation, many = call.text("equation", "").replace(" ", ""), len(call.tensors) > 1
    return dual.multilinear(lambda *x: np.asarray(np.einsum(equation, *x, optimize=many)), *call.tensors)


KERNELS: dict[str, Kernel] = {
    "Gemm": gemm,
    "MatMul": lambda call: dual.matmul(call[0], call[1]),
    "Einsum": einsum,
}
