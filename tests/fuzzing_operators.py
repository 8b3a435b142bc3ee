"""One small drawing per operator, or family of operators, with the parameters and literals that it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests.fuzzing import Sketch, words
from tests.fuzzing_weights import bias, weight


@dataclass(frozen=True)
class Drawing:
    """Adds some nodes to a graph.

    Attributes:
      draw: raises Unfit if it cannot. operators: that it may add. share: how often it is drawn.
    """

    draw: Callable[[Sketch], None]
    operators: frozenset[str]
    share: float


DRAWINGS: list[Drawing] = []

Decorated = Callable[[Callable[[Sketch], None]], Callable[[Sketch], None]]


def draws(operators: str, share: float = 1.0) -> Decorated:
    """Register a drawing."""

    def register(function: Callable[[Sketch], None]) -> Callable[[Sketch], None]:
        DRAWINGS.append(Drawing(function, frozenset(operators.split()), share))
        return function

    return register


# ---- elementwise ------------------------------------------------------------------------------------------------

SMOOTH = words(
    "Relu LeakyRelu Tanh Sigmoid Elu Selu Celu Softplus Softsign Erf Gelu Mish HardSwish HardSigmoid"
)
OTHER = words(
    "Abs Neg Identity Dropout Sin Cos Sinh Cosh Tan Atan Asinh Exp Sqrt Round Floor Ceil Sign Shrink ThresholdedRelu "
    "Reciprocal Log Asin Acos Atanh Acosh Clip Cast CastLike Swish"
)
INSIDE = {"Log": "Sigmoid", "Sqrt": "Sigmoid", "Asin": "Sigmoid", "Acos": "Tanh", "Atanh": "Erf", "Acosh": "Cosh",
          "Reciprocal": "Cosh"}  # fmt: skip
"""What brings values into an operator's domain."""


def unary(s: Sketch, kind: str, x: str) -> str:
    """One elementwise operator of one operand."""
    if kind in INSIDE and s.chance(0.8):
        x = s.op(INSIDE[kind], x)
    if kind == "Clip":
        return s.op(kind, x, s.scalar(-0.4) if s.chance(0.7) else None, s.scalar(0.6))
    if kind == "Cast":
        return s.op("Cast", s.op("Cast", x, to=int(s.choice([6, 7, 9, 11, 11]))), to=1)
    if kind == "CastLike":
        return s.op(kind, x, s.scalar(0.0))
    if kind == "ThresholdedRelu":
        return s.op(kind, x, alpha=0.2)
    return s.op(kind, x)


@draws(" ".join(SMOOTH), 5)
def activation(s: Sketch) -> None:
    s.keep(unary(s, s.choice(SMOOTH), s.pick()))


@draws(" ".join(OTHER), 3)
def other_unary(s: Sketch) -> None:
    s.keep(unary(s, s.choice(OTHER), s.pick()))


def beside(s: Sketch, x: str, positive: bool = False) -> str:
    """Something that broadcasts against x: an activation, a parameter with axes of size 1, a number."""
    shape = s.shape(x)
    roll = s.rng.random()
    if roll < 0.45:

        def fits(other: np.ndarray) -> bool:  # fmt: skip
            pairs = zip(other.shape[::-1], shape[::-1], strict=False)
            return all(a == b or 1 in (a, b) for a, b in pairs) and other.ndim <= len(shape) + 1

        other = s.choice([name for name in s.pool if fits(s.values[name])])
        return s.op("Exp", s.op("Tanh", other)) if positive else other  # type: ignore[no-any-return]
    if roll < 0.6:
        return s.scalar(s.number(0.3, 1.5))
    first = 1 if s.symbolic else 0
    kept = [1 if (k == 0 and first) or s.chance(0.45) else n for k, n in enumerate(shape)]
    while kept and (kept[0] == 1 and s.chance(0.8)):
        kept = kept[1:]
    if not kept:
        return s.scalar(0.5)
    return weight(s, *kept, positive=positive) if positive or s.chance(0.5) else bias(s, *kept)


def _two(s: Sketch, x: str, y: str) -> list[str]:
    return [x, y] if s.chance(0.7) else [y, x]


@draws("Add Sub Mul", 6)
def arithmetic(s: Sketch) -> None:
    x = s.pick()
    s.keep(s.op(s.choice(["Add", "Add", "Sub", "Mul", "Mul"]), *_two(s, x, beside(s, x))))


@draws("Div Pow Mod PRelu", 1.5)
def uneven(s: Sketch) -> None:
    x, kind = s.pick(), s.choice(["Div", "Div", "Pow", "Mod", "PRelu"])
    if kind == "PRelu":
        s.keep(s.op(kind, x, weight(s, *[n if s.chance(0.5) else 1 for n in s.shape(x)[1:]], positive=True)))
    elif kind == "Pow":
        square = s.chance(0.5)
        s.keep(s.op(kind, x if square else s.op("Softplus", x), s.scalar(2.0) if square else beside(s, x)))
    elif kind == "Mod":
        s.keep(s.op(kind, x, beside(s, x, positive=True), fmod=1))
    else:
        one, other = x, beside(s, x, positive=True)
        s.keep(s.op(kind, one, other) if s.chance(0.8) else s.op(kind, other, s.op("Cosh", one)))


@draws("Min Max Sum Mean", 2)
def several(s: Sketch) -> None:
    x = s.pick()
    s.keep(s.op(s.choice(words("Min Max Sum Mean")), x, *[beside(s, x) for _ in range(s.rng.integers(1, 3))]))


@draws("Equal Less LessOrEqual Greater GreaterOrEqual And Or Xor Not IsNaN IsInf Where", 1.5)
def masks(s: Sketch) -> None:
    x = s.pick()
    if s.chance(0.6) or not s.masks:
        s.keep(s.op(s.choice(words("Less LessOrEqual Greater GreaterOrEqual Equal")), x, beside(s, x)))
    mask = s.choice(s.masks)
    if s.chance(0.3):
        kind = s.choice(words("And Or Xor Not IsNaN IsInf"))
        mask = (
            s.op(kind, x)
            if kind in ("IsNaN", "IsInf")
            else s.op(kind, *([mask] * (1 if kind == "Not" else 2)))
        )
        s.keep(mask)
    shape = s.shape(mask)
    like = s.pick(where=lambda a: a.ndim <= len(shape) and a.shape == shape[len(shape) - a.ndim :])
    if s.chance(0.3):
        s.keep(s.op("Cast", mask, to=1))
    else:
        other = s.scalar(s.choice([0.0, 0.0, -2.0, 0.5])) if s.chance(0.4) else beside(s, like)
        s.keep(s.op("Where", mask, like, other))


@draws("BitwiseAnd BitwiseOr BitwiseXor BitwiseNot BitShift", 0.3)
def bits(s: Sketch) -> None:
    x = s.op("Mul", s.pick(), s.scalar(4.0))
    shift = s.chance(0.3)
    whole = s.op("Cast", s.op("Abs", x) if shift else x, to=13 if shift else 7)
    kind = "BitShift" if shift else s.choice(words("BitwiseAnd BitwiseOr BitwiseXor BitwiseNot"))
    more = {"direction": "LEFT"} if shift else {}
    operands = (
        [whole]
        if kind == "BitwiseNot"
        else [whole, whole if not shift else s.op("Cast", s.scalar(1.0), to=13)]
    )
    s.keep(s.op("Cast", s.op(kind, *operands, **more), to=1))


# ---- products ---------------------------------------------------------------------------------------------------


@draws("Gemm", 5)
def gemm(s: Sketch) -> None:
    x = s.pick(2)
    (m, k), n, turned = s.shape(x), s.width(), s.chance(0.5)
    if s.chance(0.12) and not s.symbolic:
        w = weight(s, n, m)
        s.keep(s.op("Gemm", w, x) if s.chance(0.5) else s.op("Gemm", x, weight(s, m, n), transA=1))
        return
    options = [bias(s, n), bias(s, 1, n), s.scalar(0.3), None] if s.chance(0.5) else [bias(s, n)]
    more = {"alpha": 0.5, "beta": 2.0} if s.chance(0.2) else {}
    w = weight(s, n, k) if turned else weight(s, k, n)
    s.keep(s.op("Gemm", x, w, *[c for c in [s.choice(options)] if c], transB=int(turned), **more))


@draws("MatMul", 5)
def matmul(s: Sketch) -> None:
    x = s.pick(where=lambda a: a.ndim >= 1)
    shape = s.shape(x)
    if len(shape) >= 2 and s.chance(0.15) and not (s.symbolic and len(shape) == 2):
        s.keep(s.op("MatMul", weight(s, s.width(), shape[-2]), x))
        return
    if len(shape) >= 3 and s.chance(0.15):
        batch = [1 if s.symbolic and k == 0 else n for k, n in enumerate(shape[:-2])]
        s.keep(s.op("MatMul", x, weight(s, *batch[int(s.chance(0.5)) :], shape[-1], s.width())))
        return
    y = s.op("MatMul", x, weight(s, shape[-1], s.width()) if s.chance(0.95) else weight(s, shape[-1]))
    s.keep(s.op("Add", y, bias(s, s.shape(y)[-1])) if s.chance(0.5) and s.rank(y) else y)


@draws("MatMul Transpose", 1.5)
def product_of_activations(s: Sketch) -> None:
    """Queries and keys, outer products, a value with itself."""
    x = s.pick(where=lambda a: a.ndim >= 3)
    shape = s.shape(x)

    def fits(a: np.ndarray) -> bool:
        return a.ndim == len(shape) and a.shape[:-2] == shape[:-2]

    y = s.pick(where=lambda a: fits(a) and shape[-1] in a.shape[-2:])
    if s.shape(y)[-2] != shape[-1] or s.chance(0.5):
        order = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
        y = s.transpose(y, order)
    s.keep(s.op("MatMul", x, y))


EQUATIONS = words(
    "ab,bc->ac ab,cb->ac abc,cd->abd abc,dc->abd abc,cde->abde abc,bcd->abd abc,abd->acd abc,adc->abd abc,abc->ab "
    "ab,ab->a ab,ac->abc ab,b->ab abc->ac abc->cab abcd,cde->abe abcd,ebd->aecb abc,c->ab ...a,ba->...b abc,db->adc "
    "abcd,aecd->abec abcd,abed->abce abcd,de->abce abcde,ed->abcd abc,bd,bce->ade abc,d->abd ab,cb "
    "ab,bc,cd->ad ab,cbd,ad->ac ab,cb,db->acd abc,cd,de->abe"
)


@draws("Einsum", 2.5)
def einsum(s: Sketch) -> None:
    equation = s.choice(EQUATIONS)
    terms = equation.split("->")[0].split(",")
    x = s.pick(where=lambda a: a.ndim == len(terms[0]) or "..." in terms[0])
    turn = -1 if "..." in terms[0] else 1
    size = dict(zip(terms[0][::turn], s.shape(x)[::turn], strict=False))
    operands = [x]
    for term in terms[1:]:
        for letter in term:
            size.setdefault(letter, s.width())
        shape = tuple(size[letter] for letter in term.replace("...", ""))
        same = [name for name in s.pool if s.shape(name) == shape]
        if ("a" in term and "..." not in term) or (same and s.chance(0.2)):
            operands.append(s.choice(same))
        else:
            operands.append(weight(s, *shape))
    s.keep(s.op("Einsum", *operands, equation=equation))
