"""Numbers of the host: shape arithmetic as Python ints, known now or once the input sizes are."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from surgery.arrays import Array
from surgery.numeric.call import Unsupported

Number = "int | float | bool | Size"


@dataclass(frozen=True)
class Size:
    """A number that is known once the module runs, as a Python expression."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Host:
    """An ONNX tensor whose elements live on the host.

    Attributes:
      elements: an array of its shape: of its own type if all elements are known, of objects (Python numbers and
        `Size`) if not.
      dtype: the type that ONNX gives it.
    """

    elements: Array
    dtype: np.dtype[Any]

    @staticmethod
    def of(elements: Any, dtype: Any) -> Host:  # noqa: ANN401
        """From Python numbers and sizes; becomes an array of `dtype` when all are numbers."""
        array = np.asarray(elements, dtype=object)
        if any(isinstance(x, Size) for x in array.flat):
            return Host(array, np.dtype(dtype))
        return Host(np.asarray(array, dtype), np.dtype(dtype))

    @property
    def known(self) -> bool:
        """Whether every element is a number."""
        return self.elements.dtype != object

    def flat(self) -> list[Any]:
        """All elements in order, as Python numbers and sizes."""
        return list(self.elements.reshape(-1).tolist())

    def scalar(self) -> Any:  # noqa: ANN401
        """The only element."""
        (number,) = self.flat()
        return number


def text(x: Any) -> str:  # noqa: ANN401
    """A number or size as source."""
    return x.text if isinstance(x, Size) else repr(x)


def _symbolic(*xs: object) -> bool:
    return any(isinstance(x, Size) for x in xs)


def _infix(symbol: str, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def apply(a: Any, b: Any) -> Any:  # noqa: ANN401
        return Size(f"({text(a)} {symbol} {text(b)})") if _symbolic(a, b) else function(a, b)

    return apply


def add(a: Any, b: Any) -> Any:  # noqa: ANN401
    """a + b."""
    if _symbolic(a, b) and 0 in (a, b):
        return b if a == 0 else a
    return _infix("+", operator.add)(a, b)


def multiply(a: Any, b: Any) -> Any:  # noqa: ANN401
    """a · b."""
    if _symbolic(a, b) and 1 in (a, b):
        return b if a == 1 else a
    return _infix("*", operator.mul)(a, b)


def _call(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(*xs: Any) -> Any:  # noqa: ANN401
        return Size(f"{name}({', '.join(map(text, xs))})") if _symbolic(*xs) else function(*xs)

    return apply


def _truncated(a: Any, b: Any) -> Any:  # noqa: ANN401
    """a / b rounded towards zero; sizes are not negative, so that rounding down is the same."""
    if _symbolic(a, b):
        return a if b == 1 else Size(f"({text(a)} // {text(b)})")
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def divide(whole: bool) -> Callable[[Any, Any], Any]:
    """a / b, of whole numbers or of floats."""
    return _truncated if whole else _infix("/", operator.truediv)


def choose(condition: Any, a: Any, b: Any) -> Any:  # noqa: ANN401
    """a where the condition holds."""
    if isinstance(condition, Size):
        return a if a == b else Size(f"({text(a)} if {condition} else {text(b)})")
    return a if condition else b


def _cast(x: Any, to: np.dtype[Any]) -> Any:  # noqa: ANN401
    kind = {"f": "float", "i": "int", "u": "int", "b": "bool"}.get(to.kind, "float")
    if isinstance(x, Size):
        return x if kind == "int" and not _fractional(x) else Size(f"{kind}({x})")
    return {"float": float, "int": int, "bool": bool}[kind](x)


def _fractional(x: Size) -> bool:
    return any(sign in x.text for sign in (".", "/ ", "float", "sqrt")) or " < " in x.text


BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": add,
    "Sub": _infix("-", operator.sub),
    "Mul": multiply,
    "Mod": _infix("%", operator.mod),
    "Pow": _infix("**", operator.pow),
    "Min": _call("min", min),
    "Max": _call("max", max),
    "Equal": _infix("==", operator.eq),
    "Less": _infix("<", operator.lt),
    "LessOrEqual": _infix("<=", operator.le),
    "Greater": _infix(">", operator.gt),
    "GreaterOrEqual": _infix(">=", operator.ge),
    "And": _infix("and", lambda a, b: a and b),
    "Or": _infix("or", lambda a, b: a or b),
}
COMPARED = {"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Not"}
UNARY: dict[str, Callable[[Any], Any]] = {
    "Neg": lambda x: Size(f"(-{x})") if _symbolic(x) else -x,
    "Abs": _call("abs", abs),
    "Not": lambda x: Size(f"(not {x})") if _symbolic(x) else not x,
    "Floor": _call("math.floor", math.floor),
    "Ceil": _call("math.ceil", math.ceil),
    "Sqrt": _call("math.sqrt", math.sqrt),
    "Reciprocal": lambda x: Size(f"(1.0 / {x})") if _symbolic(x) else 1.0 / x,
    "Identity": lambda x: x,
}
REDUCED: dict[str, Callable[[Any, Any], Any]] = {
    "ReduceProd": multiply,
    "ReduceSum": add,
    "ReduceMax": BINARY["Max"],
    "ReduceMin": BINARY["Min"],
}


def elementwise(function: Callable[..., Any], *operands: Array) -> Array:
    """A function of Python numbers and sizes on broadcast operands."""
    objects = [x.astype(object) for x in operands]
    shape = np.broadcast_shapes(*(x.shape for x in objects))
    flat = zip(*(np.broadcast_to(x, shape).reshape(-1).tolist() for x in objects), strict=True)
    out = np.empty(math.prod(shape), dtype=object)
    for at, xs in enumerate(flat):
        out[at] = function(*xs)
    return out.reshape(shape)


def computed(op: str, operands: list[Host], to: np.dtype[Any] | None) -> Host | None:
    """The result of arithmetic on the host; None if the operator is none that the host knows."""
    arrays, dtype = [x.elements for x in operands], operands[0].dtype
    if op in ("Add", "Mul", "Min", "Max", "And", "Or") or (op in BINARY and len(operands) == 2):
        function = BINARY[op]
        result = reduce(lambda a, b: elementwise(function, a, b), arrays)
        return Host.of(result, np.bool_ if op in COMPARED else dtype)
    if op == "Div":
        return Host.of(elementwise(divide(dtype.kind in "iu"), *arrays), dtype)
    if op in UNARY:
        return Host.of(elementwise(UNARY[op], *arrays), dtype)
    if op in ("Cast", "CastLike") and to is not None and to.kind in "fiub":
        return Host.of(elementwise(lambda x: _cast(x, to), arrays[0]), to)
    if op == "Where":
        return Host.of(elementwise(choose, *arrays), operands[1].dtype)
    return None


def reduced(op: str, operand: Host, keepdims: bool) -> Host:
    """A reduction over all elements."""
    if not operand.elements.size:
        raise Unsupported(f"{op} of no number")
    total = reduce(REDUCED[op], operand.flat())
    return Host.of(np.full((1,) * operand.elements.ndim if keepdims else (), total, object), operand.dtype)
