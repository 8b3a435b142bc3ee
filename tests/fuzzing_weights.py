"""Parameters as networks have them: fresh, shared, tied, fused, or computed in the graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tests.fuzzing import Sketch, Unfit


def weight(s: Sketch, *shape: int, positive: bool = False) -> str:
    """A parameter of this shape, or something that is computed from parameters."""
    if positive:
        return fresh(s, shape, s.rng.uniform(0.3, 0.9, shape))
    ways = [way for way, share in WAYS for _ in range(share)]
    try:
        with s.attempt():
            made: str = s.choice(ways)(s, shape)
            if s.shape(made) != tuple(shape):
                raise Unfit("another shape")
            return made
    except Unfit:
        return fresh(s, shape)


def bias(s: Sketch, *shape: int) -> str:
    """A parameter, or one number everywhere, perhaps shared by several layers."""
    if s.chance(0.3):
        value = s.choice([0.0, 0.0, 1.0])
        same = [
            k for k, x in s.tensors.items() if x.shape == shape and x.dtype.kind == "f" and (x == value).all()
        ]
        return s.choice(same) if same and s.chance(0.7) else fresh(s, shape, np.full(shape, value), "bias")  # type: ignore[no-any-return]
    return fresh(s, shape, 0.3 * s.rng.standard_normal(shape), "bias") if s.chance(0.8) else weight(s, *shape)


def fresh(s: Sketch, shape: Sequence[int], array: object = None, part: str = "weight") -> str:
    """A tensor of its own."""
    if array is None:
        fan = max(int(np.prod(shape[1:])) if len(shape) > 1 else 2, 1)
        array = s.rng.standard_normal(shape) * 1.2 / np.sqrt(fan)
    name = f"{s.name('layer')}.{part}"
    return s.tensor(np.asarray(array).astype(np.float32).reshape(shape), name)


def _floats(s: Sketch, fits: Callable[[tuple[int, ...]], bool]) -> str:
    return s.choice([k for k, x in s.tensors.items() if x.dtype.kind == "f" and fits(x.shape)])  # type: ignore[no-any-return]


def _shared(s: Sketch, shape: tuple[int, ...]) -> str:
    return _floats(s, lambda other: other == tuple(shape))


def _tied(s: Sketch, shape: tuple[int, ...]) -> str:
    other = _floats(s, lambda other: len(shape) > 1 and other == tuple(shape[::-1]))
    return s.transpose(other, range(len(shape))[::-1])


def _noisy(s: Sketch, shape: tuple[int, ...]) -> str:
    noise = s.op("Mul", fresh(s, shape, part="sigma"), fresh(s, shape, part="epsilon"))
    return s.op("Add", fresh(s, shape, part="mu"), noise)


def _normed(s: Sketch, shape: tuple[int, ...]) -> str:
    """v / |v| · g, by any of the operators that give a norm."""
    v, axes = fresh(s, shape, part="direction"), list(range(len(shape)))[1:] or [0]
    kind = s.choice(["ReduceL2", "ReduceSumSquare", "Pow", "LpNormalization"])
    if kind == "LpNormalization":
        return s.op(kind, v, axis=int(s.choice(axes)), p=2)
    if kind == "Pow":
        norm = s.reduce(
            "ReduceSum", s.op("Mul", v, v) if s.chance(0.5) else s.op("Pow", v, s.scalar(2.0)), axes
        )
    else:
        norm = s.reduce(kind, v, axes)
    norm = norm if kind == "ReduceL2" else s.op("Sqrt", norm)
    gain = fresh(s, [n if k not in axes else 1 for k, n in enumerate(shape)], part="gain")
    return s.op("Mul", s.op("Div", v, norm), gain)


def _spectral(s: Sketch, shape: tuple[int, ...]) -> str:
    """v over its largest singular value, as two vectors that nobody trains tell it; centred and scaled rows."""
    v, flat = fresh(s, shape, part="original"), [shape[0], int(np.prod(shape[1:]))]
    if len(shape) < 2 or s.chance(0.4):
        axes = list(range(len(shape)))[1:] or [0]
        centred = s.op("Sub", v, s.reduce("ReduceMean", v, axes))
        variance = s.reduce("ReduceMean", s.op("Mul", centred, centred), axes)
        return s.op("Div", centred, s.op("Sqrt", s.op("Add", variance, s.scalar(0.1))))
    left, right = (s.tensor(np.ones(n, np.float32) / np.float32(np.sqrt(n)), "vector") for n in flat)
    size = s.op("MatMul", left, s.op("MatMul", s.reshape(v, flat) if len(shape) > 2 else v, right))
    return s.op("Div", v, s.op("Add", s.op("Abs", size), s.scalar(0.5)))


def _fused(s: Sketch, shape: tuple[int, ...]) -> str:
    """A part of a larger tensor whose other part another layer may use (it is shared, too)."""
    at = int(s.rng.integers(len(shape)))

    def fits(other: tuple[int, ...]) -> bool:
        same = len(other) == len(shape) and all(other[k] == n or k == at for k, n in enumerate(shape))
        return same and other[at] > shape[at]

    more = int(s.choice([shape[at], s.width()]))
    larger = [n + more * (k == at) for k, n in enumerate(shape)]
    whole = _floats(s, fits) if s.chance(0.5) else fresh(s, larger)
    n, rest = shape[at], s.shape(whole)[at] - shape[at]
    way = s.choice(["Split", "Slice", "Gather"])
    if way == "Split":
        return s.node("Split", [whole, s.ints(n, rest)], 2, axis=at)[0]
    start = int(s.choice([0, rest]))
    if way == "Gather":
        return s.op("Gather", whole, s.ints(*range(start, start + n)), axis=at)
    return s.op("Slice", whole, s.ints(start), s.ints(start + n), s.ints(at))


def _turned(s: Sketch, shape: tuple[int, ...]) -> str:
    order = s.rng.permutation(len(shape))
    return s.transpose(fresh(s, [shape[k] for k in order]), np.argsort(order).tolist())


def _flat(s: Sketch, shape: tuple[int, ...]) -> str:
    other = [int(np.prod(shape))] if s.chance(0.5) else [shape[0], int(np.prod(shape[1:]))]
    return s.reshape(fresh(s, other), shape)


def _joined(s: Sketch, shape: tuple[int, ...]) -> str:
    at = int(s.rng.integers(len(shape)))
    if shape[at] < 2:
        raise Unfit("nothing to join")
    first = int(s.rng.integers(1, shape[at]))
    parts = [
        weight(s, *(n if k != at else m for k, n in enumerate(shape))) for m in (first, shape[at] - first)
    ]
    return s.op("Concat", *parts, axis=at)


def _repeated(s: Sketch, shape: tuple[int, ...]) -> str:
    small = [1 if s.chance(0.4) else n for n in shape]
    if s.chance(0.5):
        return s.op("Expand", fresh(s, small), s.ints(*shape))
    return s.op("Tile", fresh(s, small), s.ints(*(n // m for n, m in zip(shape, small, strict=True))))


def _scaled(s: Sketch, shape: tuple[int, ...]) -> str:
    return s.op("Mul", fresh(s, shape), s.scalar(s.number(0.5, 1.5)))


def _permuted(s: Sketch, shape: tuple[int, ...]) -> str:
    at = int(s.rng.integers(len(shape)))
    order = (
        np.roll(np.arange(shape[at]), int(s.rng.integers(3)))
        if s.chance(0.6)
        else s.rng.permutation(shape[at])
    )
    return s.op("Gather", fresh(s, shape), s.ints(*order.tolist()), axis=at)


def _passed(s: Sketch, shape: tuple[int, ...]) -> str:
    if s.chance(0.5):
        return s.op("Identity", weight(s, *shape))
    return s.op("Cast", s.op("Cast", fresh(s, shape), to=11), to=1)


def _literal(s: Sketch, shape: tuple[int, ...]) -> str:
    return s.tensor((0.5 * s.rng.standard_normal(shape)).astype(np.float32), "weights")


WAYS: list[tuple[Callable[[Sketch, tuple[int, ...]], str], int]] = [
    (fresh, 60),
    (_shared, 8),
    (_tied, 6),
    (_noisy, 4),
    (_normed, 4),
    (_spectral, 3),
    (_fused, 6),
    (_turned, 4),
    (_flat, 3),
    (_joined, 2),
    (_repeated, 3),
    (_scaled, 2),
    (_permuted, 3),
    (_passed, 3),
    (_literal, 3),
]
"""Ways to come by a weight, with their relative frequency."""
