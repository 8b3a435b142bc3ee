"""Arithmetic, comparison and logic, element by element with broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import numpy as np
import onnx_ir as ir

from surgery.arrays import Array
from surgery.numeric import dual
from surgery.numeric.call import Call, Kernel
from surgery.numeric.dual import Unary

Binary = Callable[[Array, Array], Array]


def unary(function: Unary) -> Kernel:
    """A kernel of one operand."""
    return lambda call: function(call[0])


def binary(function: Binary) -> Kernel:
    """A kernel of two operands."""
    return lambda call: np.asarray(function(call[0], call[1]))


def by_value(function: Binary) -> Kernel:
    """A kernel of two operands that looks at their values only, not at how they move."""
    return lambda call: np.asarray(function(call[0].real, call[1].real))


def variadic(function: Binary) -> Kernel:
    """A kernel of any number of operands."""
    return lambda call: np.asarray(reduce(function, call.tensors))


def divide(a: Array, b: Array) -> Array:
    """a / b; integers are truncated towards zero."""
    if a.dtype.kind not in "iu":
        return dual.divide(a, b)
    quotient: Array = a // b
    if a.dtype.kind == "u":
        return quotient
    return np.asarray(quotient + ((a % b != 0) & ((a < 0) != (b < 0)))).astype(a.dtype)


def power(call: Call) -> Array:
    """a ** b in the type of a."""
    a, b = call[0], call[1]
    if a.dtype.kind in "iu":
        return np.asarray(np.power(a, b.real)).astype(a.dtype)
    if b.dtype.kind in "iu":
        b = b.astype(a.real.dtype)
    return dual.power(a, b)


def modulo(call: Call) -> Array:
    """a - b·q, the quotient q rounded down (the sign of b), or towards zero with `fmod` (the sign of a)."""
    a, b = call[0], call[1]
    quotient: Binary = np.fmod if call.integer("fmod") else np.mod
    real = np.asarray(quotient(a.real, b.real))
    if not (dual.is_dual(a) or dual.is_dual(b)):
        return real
    turns = np.rint((a.real - real) / b.real)
    return dual.join(real, a.imag - dual.along(turns, b.imag))


def mean(call: Call) -> Array:
    """The mean of all operands."""
    total = reduce(np.add, call.tensors)
    return np.asarray(total / np.asarray(len(call.inputs), total.real.dtype))


def clip(call: Call) -> Array:
    """min(max(x, low), high); the bounds are attributes up to opset 10, operands after."""
    x, low, high = call[0], call.get(1), call.get(2)
    if "min" in call.attributes:
        low = np.asarray(call.number("min", 0.0), x.real.dtype)
    if "max" in call.attributes:
        high = np.asarray(call.number("max", 0.0), x.real.dtype)
    if low is not None:
        x = dual.maximum(x, low)
    return x if high is None else dual.minimum(x, high)


def is_inf(call: Call) -> Array:
    """Which elements are infinite, of the signs asked for."""
    x = call[0].real
    above = np.isposinf(x) & bool(call.integer("detect_positive", 1))
    return np.asarray(above | (np.isneginf(x) & bool(call.integer("detect_negative", 1))))


def bit_shift(call: Call) -> Array:
    """a shifted by b bits."""
    shift = np.left_shift if call.text("direction", "LEFT") == "LEFT" else np.right_shift
    return np.asarray(shift(call[0], call[1]))


def cast(call: Call) -> Array:
    """To the type of the attribute `to`."""
    return call.cast(call[0], ir.DataType(call.integer("to")))


def cast_like(call: Call) -> Array:
    """To the type of the second operand."""
    like = call[1].real.dtype if dual.is_dual(call[1]) else call[1].dtype
    return call.cast(call[0], ir.DataType.from_numpy(like))


def dropout(call: Call) -> tuple[Array, Array]:
    """Identity and a mask of ones: nothing is dropped outside training."""
    ratio, training = call.get(1), call.get(2)
    if training is not None and bool(training) and (ratio is None or ratio.real != 0):
        raise call.refuse("it drops at random in training mode")
    return call[0], np.ones(call[0].shape, np.bool_)


KERNELS: dict[str, Kernel] = {
    "Add": binary(np.add),
    "Sub": binary(np.subtract),
    "Mul": binary(dual.multiply),
    "Div": binary(divide),
    "Pow": power,
    "Mod": modulo,
    "Min": variadic(dual.minimum),
    "Max": variadic(dual.maximum),
    "Sum": variadic(np.add),
    "Mean": mean,
    "Clip": clip,
    "Where": lambda call: np.where(call[0], call[1], call[2]),
    "Equal": by_value(np.equal),
    "Less": by_value(np.less),
    "LessOrEqual": by_value(np.less_equal),
    "Greater": by_value(np.greater),
    "GreaterOrEqual": by_value(np.greater_equal),
    "And": binary(np.logical_and),
    "Or": binary(np.logical_or),
    "Xor": binary(np.logical_xor),
    "Not": unary(np.logical_not),
    "BitShift": bit_shift,
    "BitwiseAnd": binary(np.bitwise_and),
    "BitwiseOr": binary(np.bitwise_or),
    "BitwiseXor": binary(np.bitwise_xor),
    "BitwiseNot": unary(np.bitwise_not),
    "IsNaN": lambda call: np.isnan(call[0].real),
    "IsInf": is_inf,
    "Neg": unary(np.negative),
    "Abs": unary(dual.absolute),
    "Sign": unary(dual.lift(np.sign)),
    "Floor": unary(dual.lift(np.floor)),
    "Ceil": unary(dual.lift(np.ceil)),
    "Round": unary(dual.lift(np.rint)),
    "Reciprocal": unary(dual.reciprocal),
    "Exp": unary(dual.exp),
    "Log": unary(dual.log),
    "Sqrt": unary(dual.sqrt),
    "Sin": unary(dual.lift(np.sin, lambda x, y: np.cos(x))),
    "Cos": unary(dual.lift(np.cos, lambda x, y: -np.sin(x))),
    "Tan": unary(dual.lift(np.tan, lambda x, y: 1 + y * y)),
    "Asin": unary(dual.lift(np.arcsin, lambda x, y: 1 / np.sqrt(1 - x * x))),
    "Acos": unary(dual.lift(np.arccos, lambda x, y: -1 / np.sqrt(1 - x * x))),
    "Atan": unary(dual.lift(np.arctan, lambda x, y: 1 / (1 + x * x))),
    "Sinh": unary(dual.lift(np.sinh, lambda x, y: np.cosh(x))),
    "Cosh": unary(dual.lift(np.cosh, lambda x, y: np.sinh(x))),
    "Asinh": unary(dual.lift(np.arcsinh, lambda x, y: 1 / np.sqrt(x * x + 1))),
    "Acosh": unary(dual.lift(np.arccosh, lambda x, y: 1 / np.sqrt(x * x - 1))),
    "Atanh": unary(dual.lift(np.arctanh, lambda x, y: 1 / (1 - x * x))),
    "Identity": lambda call: (call.inputs[0],),
    "Cast": cast,
    "CastLike": cast_like,
    "Dropout": dropout,
}
