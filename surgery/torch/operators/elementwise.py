"""Arithmetic, comparison and logic, element by element with broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from surgery.torch.call import Call, Operand, Ref, Results, Translation
from surgery.torch.host import Size


def unary(function: Callable[..., Any]) -> Translation:
    """A function of one tensor."""
    return lambda call: call.emit(function, call[0])


def infix(symbol: str) -> Translation:
    """Two operands with a sign between them; scalars of the host stay numbers."""

    def translate(call: Call) -> Results:
        a, b = call.number_or_tensor(0, 1), call.number_or_tensor(1, 0)
        if not isinstance(a, Ref) and not isinstance(b, Ref):
            a = call[0]
        return call.infix(a, symbol, b)

    return translate


def binary(function: Callable[..., Any]) -> Translation:
    """A function of two tensors."""
    return lambda call: call.emit(function, call[0], call[1])


def variadic(fold: Callable[[Call, Any, Any], Ref]) -> Translation:
    """A function of any number of tensors, two at a time."""

    def translate(call: Call) -> Results:
        total = call[0]
        for index in range(1, len(call.operands)):
            total = fold(call, total, call[index])
        return total

    return translate


def truncated(a: Tensor, b: Tensor) -> Tensor:
    """a / b; whole numbers are rounded towards zero."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def divide(call: Call) -> Results:
    """a / b."""
    divisor = call.number_or_tensor(1, 0)
    if isinstance(divisor, float) or call.floating(0) or call.floating(1):
        return call.infix(call[0], "/", divisor)
    return call.emit(truncated, call[0], call[1])


def power(call: Call) -> Results:
    """a ** b in the type of a."""
    exponent = call.number_or_tensor(1, 0)
    if isinstance(exponent, int | float):
        whole = float(exponent).is_integer()
        return call.emit(torch.pow, call[0], int(exponent) if whole else exponent)
    return call.emit(raised, call[0], call[1])


def raised(a: Tensor, b: Tensor) -> Tensor:
    """a ** b in the type of a."""
    return torch.pow(a, b).to(a.dtype)


def modulo(call: Call) -> Results:
    """The remainder with the sign of b, or with `fmod` that of a."""
    return call.emit(torch.fmod if call.integer("fmod") else torch.remainder, call[0], call[1])


def mean(call: Call) -> Results:
    """The mean of all operands."""
    total = variadic(lambda c, a, b: c.infix(a, "+", b))(call)
    return call.infix(total, "/", len(call.operands))


def clip(call: Call) -> Results:
    """min(max(x, low), high); the bounds are attributes up to opset 10, operands after."""
    low, high = (
        call.number(name, 0.0)
        if name in call.attributes
        else call.number_or_tensor(index)
        if call.has(index)
        else None
        for index, name in ((1, "min"), (2, "max"))
    )
    if low is None and high is None:
        return call[0]
    if isinstance(low, Ref) != isinstance(high, Ref) and low is not None and high is not None:
        low, high = call[1], call[2]
    return call.emit(torch.clamp, call[0], low, high)


def where(call: Call) -> Results:
    """a where the condition holds, else b."""
    a, b = call.number_or_tensor(1), call.number_or_tensor(2)
    if not isinstance(a, Ref) and not isinstance(b, Ref):
        a, b = call[1], call[2]
    return call.emit(torch.where, call[0], a, b)


def is_inf(call: Call) -> Results:
    """Which elements are infinite, of the signs asked for."""
    above, below = call.integer("detect_positive", 1), call.integer("detect_negative", 1)
    if above and below:
        return call.emit(torch.isinf, call[0])
    if not above and not below:
        return call.emit(torch.zeros_like, call[0], dtype=Size("torch.bool"))
    return call.emit(torch.isposinf if above else torch.isneginf, call[0])


def bit_shift(call: Call) -> Results:
    """a shifted by b bits."""
    left = call.text("direction", "LEFT") == "LEFT"
    return call.emit(torch.bitwise_left_shift if left else torch.bitwise_right_shift, call[0], call[1])


def cast(call: Call) -> Results:
    """To the type of the attribute `to`."""
    return call.method(call[0], "to", Size(call.emitter.dtype(ir.DataType(call.integer("to")))))


def cast_like(call: Call) -> Results:
    """To the type of the second operand."""
    return call.method(call[0], "type_as", call[1])


def dropped(x: Tensor, ratio: float, training: bool) -> tuple[Tensor, Tensor]:
    """`x` with elements dropped in training, and which were kept."""
    if not training or ratio == 0:
        return x, torch.ones_like(x, dtype=torch.bool)
    kept = torch.rand_like(x, dtype=torch.float32) >= ratio
    return x * kept / (1 - ratio), kept


def dropout(call: Call) -> Results:
    """Drops while the module is in training mode, as the layer that it was exported from did."""
    ratio = call.number("ratio", 0.5) if "ratio" in call.attributes or not call.has(1) else call.whole(1)
    training = Size("self.training")
    if len(call.node.outputs) < 2:
        return call.emit(torch.nn.functional.dropout, call[0], ratio, training)
    return call.parts(call.emit(dropped, call[0], ratio, training), 2)


def identity(call: Call) -> Operand:
    """The operand itself."""
    return call.operands[0]


def not_either(name: str) -> Translation:
    """A logical function of two masks."""
    return lambda call: call.emit(f"torch.logical_{name}", call[0], call[1])


TRANSLATIONS: dict[str, Translation] = {
    "Add": infix("+"),
    "Sub": infix("-"),
    "Mul": infix("*"),
    "Div": divide,
    "Pow": power,
    "Mod": modulo,
    "Min": variadic(lambda c, a, b: c.emit(torch.minimum, a, b)),
    "Max": variadic(lambda c, a, b: c.emit(torch.maximum, a, b)),
    "Sum": variadic(lambda c, a, b: c.infix(a, "+", b)),
    "Mean": mean,
    "Clip": clip,
    "Where": where,
    "Equal": infix("=="),
    "Less": infix("<"),
    "LessOrEqual": infix("<="),
    "Greater": infix(">"),
    "GreaterOrEqual": infix(">="),
    "And": not_either("and"),
    "Or": not_either("or"),
    "Xor": not_either("xor"),
    "Not": unary(torch.logical_not),
    "BitShift": bit_shift,
    "BitwiseAnd": binary(torch.bitwise_and),
    "BitwiseOr": binary(torch.bitwise_or),
    "BitwiseXor": binary(torch.bitwise_xor),
    "BitwiseNot": unary(torch.bitwise_not),
    "IsNaN": unary(torch.isnan),
    "IsInf": is_inf,
    "Neg": unary(torch.neg),
    "Abs": unary(torch.abs),
    "Sign": unary(torch.sign),
    "Floor": unary(torch.floor),
    "Ceil": unary(torch.ceil),
    "Round": unary(torch.round),
    "Reciprocal": unary(torch.reciprocal),
    "Exp": unary(torch.exp),
    "Log": unary(torch.log),
    "Sqrt": unary(torch.sqrt),
    "Sin": unary(torch.sin),
    "Cos": unary(torch.cos),
    "Tan": unary(torch.tan),
    "Asin": unary(torch.asin),
    "Acos": unary(torch.acos),
    "Atan": unary(torch.atan),
    "Sinh": unary(torch.sinh),
    "Cosh": unary(torch.cosh),
    "Asinh": unary(torch.asinh),
    "Acosh": unary(torch.acosh),
    "Atanh": unary(torch.atanh),
    "Erf": unary(torch.erf),
    "Identity": identity,
    "Cast": cast,
    "CastLike": cast_like,
    "Dropout": dropout,
}
