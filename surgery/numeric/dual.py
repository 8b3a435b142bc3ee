"""Dual numbers: a complex array is value + i·h·tangent, with h so small that h² is nothing.

Every function here gives f(x) + i·f'(x)·x.imag for complex x and plain f(x) for real x. The real part is
computed by the same real operations as without tangent, so it equals the float64 result bit for bit, and
an infinite or undefined tangent never reaches it (numpy's own complex product would mix the two). A real
array among complex ones is a constant, and costs no complex arithmetic.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from surgery.arrays import Array

Unary: TypeAlias = Callable[[Array], Array]


def is_dual(x: Array) -> bool:
    """Whether `x` carries a tangent."""
    return x.dtype.kind == "c"


def value(x: Array) -> Array:
    """The real part, close together in the order of `x` where that is dual; `x` itself where it is not."""
    return x.real.copy(order="K") if is_dual(x) else x


def tangent(x: Array) -> Array:
    """The imaginary part of a dual array, close together in the order of that."""
    return x.imag.copy(order="K")


def join(real: Array, imaginary: Array) -> Array:
    """real + i·imaginary, without touching one by the other."""
    real = np.asarray(real)
    imaginary = np.asarray(imaginary)
    shape = np.broadcast_shapes(real.shape, imaginary.shape)
    out = np.empty(shape, np.result_type(real.dtype, imaginary.dtype, np.complex64))
    out.real = real
    out.imag = imaginary
    return out


def along(slope: Array, direction: Array) -> Array:
    """slope · direction, where a direction of exactly zero does not move even at an infinite slope."""
    product = np.asarray(slope * direction)
    if not np.isfinite(product).all():
        product = np.where(direction == 0, np.zeros((), product.dtype), product)
    return product


def lift(function: Unary, slope: Callable[[Array, Array], Array] | None = None) -> Unary:
    """A real function with its derivative as a function on duals.

    Args:
      function: y = f(x), elementwise.
      slope: f'(x) from (x, y); None for a function that is constant in pieces, whose result is real.
    """

    def lifted(x: Array) -> Array:
        if not is_dual(x):
            return function(x)
        real = value(x)
        y = function(real)
        return y if slope is None else join(y, along(slope(real, y), tangent(x)))

    return lifted


def bilinear(product: Callable[[Array, Array], Array], a: Array, b: Array) -> Array:
    """A function that is linear in each of two arguments (product, convolution, contraction)."""
    return multilinear(product, a, b)


def multilinear(product: Callable[..., Array], *operands: Array) -> Array:
    """A function that is linear in each of its arguments."""
    moving = [k for k, x in enumerate(operands) if is_dual(x)]
    if not moving:
        return product(*operands)
    real = [value(x) for x in operands]
    moved = [product(*real[:k], tangent(operands[k]), *real[k + 1 :]) for k in moving]
    return join(product(*real), functools.reduce(operator.add, moved))


def multiply(a: Array, b: Array) -> Array:
    """a · b, elementwise with broadcasting."""
    if not (is_dual(a) or is_dual(b)):
        return np.asarray(np.multiply(a, b))
    moved: Any = 0.0
    if is_dual(a):
        moved = along(b.real, a.imag)
    if is_dual(b):
        moved = moved + along(a.real, b.imag)
    return join(a.real * b.real, moved)


def divide(a: Array, b: Array) -> Array:
    """a / b, elementwise with broadcasting, floating."""
    if not (is_dual(a) or is_dual(b)):
        return np.asarray(np.divide(a, b))
    quotient = np.asarray(a.real / b.real)
    moved: Any = 0.0
    if is_dual(a):
        moved = along(1 / b.real, a.imag)
    if is_dual(b):
        moved = moved - along(quotient / b.real, b.imag)
    return join(quotient, moved)


def power(a: Array, b: Array) -> Array:
    """a ** b for floating a; the derivative in b is taken only where b moves."""
    if not (is_dual(a) or is_dual(b)):
        return np.asarray(np.power(a, b))
    base, exponent = value(a), value(b)
    y = np.asarray(np.power(base, exponent))
    moved: Any = 0.0
    if is_dual(a):
        slope = np.where(exponent == 0, 0.0, exponent * np.power(base, exponent - 1))
        moved = along(slope, a.imag)
    if is_dual(b):
        moved = moved + along(y * np.log(base), b.imag)
    return join(y, moved)


LARGE = 1 << 20
"""Elements from which a dual matrix is multiplied where it lies: taking its parts apart would copy it twice."""


def matmul(a: Array, b: Array) -> Array:
    """`numpy.matmul` on duals; of sequences and a matrix as one product, where numpy makes one for every sequence."""
    if b.ndim == 2 and a.ndim > 2:
        rows = a.reshape(math.prod(a.shape[:-1]), a.shape[-1])
        return matmul(rows, b).reshape(*a.shape[:-1], b.shape[1])
    if is_dual(b) and b.ndim == a.ndim == 2 and b.size > LARGE and a.real.dtype == b.real.dtype:
        y = _large_matmul(a, b)
        if y is not None:
            return y
    return bilinear(np.matmul, a, b)


def _large_matmul(a: Array, b: Array) -> Array | None:
    """a · b for a large dual matrix b, whose memory is read as that of a real one, parts side by side.

    Rows of a are spread out with zeros between, so that no part touches the other. None where that does not hold
    (0 · ∞), and for a matrix whose memory is neither its rows nor its columns.
    """
    if b.flags.c_contiguous:
        both = np.concatenate([a.real, a.imag]) if is_dual(a) else a
        with np.errstate(invalid="ignore", over="ignore"):
            y = (both @ b.view(b.real.dtype)).view(b.dtype)
        value, moved = y[: len(a)], y[len(a) :].real
    elif b.T.flags.c_contiguous:
        wide = np.zeros((3 if is_dual(a) else 2, len(a), b.shape[0], 2), b.real.dtype)
        wide[0, :, :, 0] = wide[1, :, :, 1] = a.real
        if is_dual(a):
            wide[2, :, :, 0] = a.imag
        with np.errstate(invalid="ignore", over="ignore"):
            y = wide.reshape(-1, 2 * b.shape[0]) @ b.T.view(b.real.dtype).T
        value, moved = join(y[: len(a)], y[len(a) : 2 * len(a)]), y[2 * len(a) :]
    else:
        return None
    if not np.isfinite(y).all():
        return None
    return join(value.real, value.imag + moved) if is_dual(a) else value


def maximum(a: Array, b: Array) -> Array:
    """The larger by real part; NaN if either is."""
    if not (is_dual(a) or is_dual(b)):
        return np.asarray(np.maximum(a, b))
    return np.where((a.real >= b.real) | np.isnan(a.real), a, b)


def minimum(a: Array, b: Array) -> Array:
    """The smaller by real part; NaN if either is."""
    if not (is_dual(a) or is_dual(b)):
        return np.asarray(np.minimum(a, b))
    return np.where((a.real <= b.real) | np.isnan(a.real), a, b)


def largest(x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    """The maximum over `axes` by real part; NaN if any is NaN."""
    if not is_dual(x):
        return np.asarray(np.max(x, axis=axes, keepdims=keepdims))
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    flat = x.transpose([*kept, *axes]).reshape([x.shape[axis] for axis in kept] + [-1])
    best = np.take_along_axis(flat, np.argmax(value(flat), axis=-1)[..., None], axis=-1)[..., 0]
    shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
    return best.reshape(shape) if keepdims else best


def _logistic(x: Array) -> Array:
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1, small) / (1 + small), dtype=x.dtype)


absolute = lift(np.abs, lambda x, y: np.sign(x))
exp = lift(np.exp, lambda x, y: y)
log = lift(np.log, lambda x, y: 1 / x)
log1p = lift(np.log1p, lambda x, y: 1 / (1 + x))
sqrt = lift(np.sqrt, lambda x, y: 0.5 / y)
square = lift(np.square, lambda x, y: 2 * x)
reciprocal = lift(np.reciprocal, lambda x, y: -y * y)
tanh = lift(np.tanh, lambda x, y: 1 - y * y)
sigmoid = lift(_logistic, lambda x, y: y * (1 - y))
relu = lift(lambda x: np.maximum(x, 0), lambda x, y: (x > 0).astype(x.dtype))
softplus = lift(lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))), lambda x, y: _logistic(x))
