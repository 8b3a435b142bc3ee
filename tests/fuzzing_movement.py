"""Drawings that regroup, join, cut and select axes; the risky part of a graph."""

from __future__ import annotations

import numpy as np

from tests.fuzzing import Sketch, Unfit, words
from tests.fuzzing_operators import draws
from tests.fuzzing_weights import weight


def regrouped(s: Sketch, shape: tuple[int, ...]) -> list[int]:
    """Another shape of as many elements: neighbours multiplied, axes split; the first stays if it is symbolic."""
    dims, fixed = list(shape), int(s.symbolic)
    for _ in range(int(s.rng.integers(1, 4))):
        if len(dims) - fixed >= 2 and s.chance(0.5):
            k = int(s.rng.integers(fixed, len(dims) - 1))
            dims[k : k + 2] = [dims[k] * dims[k + 1]]
        elif len(dims) > fixed and len(dims) < 6:
            k = int(s.rng.integers(fixed, len(dims)))
            divisors = [d for d in range(1, dims[k] + 1) if dims[k] % d == 0]
            d = int(s.choice(divisors))
            dims[k : k + 1] = [d, dims[k] // d]
    return dims


@draws("Reshape Shape Gather Concat", 4)
def reshape(s: Sketch) -> None:
    x = s.pick()
    s.keep(s.reshape(x, regrouped(s, s.shape(x))))


@draws("Flatten", 1.5)
def flatten(s: Sketch) -> None:
    x = s.pick(where=lambda a: a.ndim >= 2)
    s.keep(s.op("Flatten", x, axis=int(s.choice([1, 1, 1, 2, -1])) if s.rank(x) > 2 else 1))


@draws("Transpose", 3)
def transpose(s: Sketch) -> None:
    x = s.pick(where=lambda a: a.ndim >= 2)
    rank, fixed = s.rank(x), int(s.symbolic or s.chance(0.8))
    s.keep(s.transpose(x, [*range(fixed), *(s.rng.permutation(rank - fixed) + fixed).tolist()]))


@draws("Transpose Flatten Reshape", 1)
def channels_last(s: Sketch) -> None:
    """NHWC flatten."""
    x = s.pick(4)
    y = s.transpose(x, [0, 2, 3, 1])
    n, *rest = s.shape(y)
    s.keep(s.op("Flatten", y) if s.chance(0.5) else s.reshape(y, [n, int(np.prod(rest))]))


@draws("Squeeze Unsqueeze", 1.5)
def squeeze(s: Sketch) -> None:
    x = s.pick(where=lambda a: a.ndim >= 1)
    ones = [k for k, n in enumerate(s.shape(x)) if n == 1 and k >= int(s.symbolic)]
    if ones and s.chance(0.5):
        s.keep(s.op("Squeeze", x, s.ints(int(s.choice(ones)))))
    elif s.rank(x) < 5:
        s.keep(s.op("Unsqueeze", x, s.ints(int(s.choice([-1, *range(int(s.symbolic), s.rank(x) + 1)])))))


@draws("Concat", 4)
def concat(s: Sketch) -> None:
    """Activations and, sometimes, a parameter; also the same value twice."""
    x = s.pick(where=lambda a: a.ndim >= 1)
    shape = s.shape(x)
    at = int(s.rng.integers(int(s.symbolic and len(shape) > 1), len(shape)))

    def fits(a: np.ndarray) -> bool:
        return a.ndim == len(shape) and all(a.shape[k] == n or k == at for k, n in enumerate(shape))

    parts = [x, *(s.pick(where=fits) for _ in range(int(s.rng.integers(1, 4))))]
    if s.chance(0.15) and not s.symbolic:
        parts.append(weight(s, *(n if k != at else int(s.rng.integers(1, 4)) for k, n in enumerate(shape))))
    s.keep(s.op("Concat", *[parts[k] for k in s.rng.permutation(len(parts))], axis=at))


def _axis(s: Sketch, x: str) -> int:
    """An axis with something to cut, the last or the second most often."""
    axes = [k for k, n in enumerate(s.shape(x)) if n > 1 and not (s.symbolic and k == 0)]
    return int(s.choice(axes))


def pieces(s: Sketch, n: int) -> list[int]:
    """Sizes that add up to n, equal ones half of the time."""
    divisors = [d for d in range(2, n + 1) if n % d == 0]
    if s.chance(0.5):
        d = int(s.choice(divisors))
        return [n // d] * d
    cuts = sorted({int(k) for k in s.rng.integers(1, n, int(s.rng.integers(1, 3)))})
    return [b - a for a, b in zip([0, *cuts], [*cuts, n], strict=True)]


@draws("Split", 2.5)
def split(s: Sketch) -> None:
    x = s.pick(where=lambda a: a.ndim >= 1)
    at = _axis(s, x)
    sizes = pieces(s, s.shape(x)[at])
    if len(set(sizes)) == 1 and s.chance(0.5):
        more = {"num_outputs": len(sizes)} if s.opset >= 18 else {}
        s.keep(*s.node("Split", [x], len(sizes), axis=at, **more))
    else:
        s.keep(*s.node("Split", [x, s.ints(*sizes)], len(sizes), axis=at))


@draws("SplitToSequence SequenceAt", 0.8)
def split_to_sequence(s: Sketch) -> None:
    """A sequence has no array: both nodes are drawn at once."""
    x = s.pick(where=lambda a: a.ndim >= 1)
    at = _axis(s, x)
    n = s.shape(x)[at]
    sizes = pieces(s, n)
    even = len({*sizes[:-1], max(sizes)}) == 1
    operand = s.index(sizes[0]) if even and s.chance(0.6) else s.ints(*sizes)
    name = s.name("sequence")
    place = s.index(int(s.rng.integers(len(sizes))))
    s.sequence(x, operand, name, at)
    for k, part in enumerate(np.split(s.values[x], np.cumsum(sizes)[:-1], axis=at)):
        if k == int(s.values[place]):
            s.keep(s.member(name, place, part))
        elif s.chance(0.6):
            s.keep(s.member(name, s.index(k if s.chance(0.7) else k - len(sizes)), part))


@draws("Slice", 3)
def slice_(s: Sketch) -> None:
    x = s.pick(where=lambda a: a.ndim >= 1)
    at = _axis(s, x)
    n = s.shape(x)[at]
    if s.chance(0.25):
        step = int(s.choice([2, 2, 3, -1]))
        begin = n - 1 if step < 0 else int(s.rng.integers(0, min(step, n)))
        end = -(1 << 40) if step < 0 else int(s.choice([n, 1 << 40]))
        s.keep(s.op("Slice", x, s.ints(begin), s.ints(end), s.ints(at), s.ints(step)))
        return
    begin = int(s.rng.integers(0, n))
    end = int(s.rng.integers(begin + 1, n + 1))
    if s.chance(0.5):
        begin, end = s.choice([(0, end), (begin, n)])
    starts = s.ints(begin - n if s.chance(0.2) else begin)
    ends = s.ints(end - n if s.chance(0.2) and end < n else 1 << 40 if end == n and s.chance(0.5) else end)
    s.keep(s.op("Slice", x, starts, ends, s.ints(at - s.rank(x) if s.chance(0.3) else at)))


@draws("Slice Concat", 1)
def halves_swapped(s: Sketch) -> None:
    """Two parts of a value, the other way round, perhaps one negated (rotary embeddings)."""
    x = s.pick(where=lambda a: a.ndim >= 1)
    at = _axis(s, x)
    n = s.shape(x)[at]
    middle = n // 2 if s.chance(0.6) else int(s.rng.integers(1, n))
    axes = s.ints(at)
    first = s.op("Slice", x, s.ints(0), s.ints(middle), axes)
    second = s.op("Slice", x, s.ints(middle), s.ints(int(s.choice([n, 1 << 40]))), axes)
    s.keep(s.op("Concat", s.op("Neg", second) if s.chance(0.5) else second, first, axis=at))


@draws("Gather", 3)
def gather(s: Sketch) -> None:
    x = s.pick(where=lambda a: a.ndim >= 1)
    at = _axis(s, x)
    n = s.shape(x)[at]
    form = s.choice(["scalar", "subset", "permutation", "roll", "repeat", "all", "table"])
    if form == "scalar":
        s.keep(s.op("Gather", x, s.index(int(s.rng.integers(-n, n))), axis=at))
        return
    chosen = {
        "subset": lambda: np.sort(s.rng.permutation(n)[: int(s.rng.integers(1, n + 1))]),
        "permutation": lambda: s.rng.permutation(n),
        "roll": lambda: np.roll(np.arange(n), int(s.rng.integers(n))),
        "repeat": lambda: s.rng.integers(0, n, int(s.rng.integers(1, 7))),
        "all": lambda: np.arange(n),
        "table": lambda: s.rng.integers(0, n, (2, 2)),
    }[form]()
    s.keep(s.op("Gather", x, s.tensor(np.asarray(chosen, np.int64), "indices"), axis=at))


@draws("Gather Cast ArgMax", 0.8)
def embedding(s: Sketch) -> None:
    """Rows of a table chosen at run time."""
    x = s.pick(where=lambda a: a.ndim >= 2)
    axis = int(s.rng.integers(1, s.rank(x)))
    chosen = s.op("ArgMax", x, axis=axis, keepdims=int(s.chance(0.3)))
    s.keep(s.op("Gather", weight(s, s.shape(x)[axis], s.width()), chosen))


@draws("Pad", 1.5)
def pad(s: Sketch) -> None:
    x = s.pick(where=lambda a: a.ndim >= 1)
    rank, at = s.rank(x), _axis(s, x)
    pads = [0] * 2 * rank
    pads[at], pads[at + rank] = (int(k) for k in s.rng.integers(-1 if s.chance(0.2) else 0, 3, 2))
    mode = s.choice(["constant", "constant", "edge", "reflect"])
    value = [s.tensor(np.array(s.number(-1, 1), np.float32), "fill")] if s.chance(0.3) else []
    s.keep(s.op("Pad", x, s.ints(*pads), *value, mode=mode))


@draws("Expand Tile", 2)
def repeat(s: Sketch) -> None:
    x = s.pick()
    shape = s.shape(x)
    if s.chance(0.4):
        repeats = [1 if (s.symbolic and k == 0) or s.chance(0.6) else 2 for k in range(len(shape))]
        s.keep(s.op("Tile", x, s.ints(*repeats)))
        return
    target = [s.width() if n == 1 and s.chance(0.7) else 1 if s.chance(0.3) else n for n in shape]
    if s.symbolic and target:
        target[0] = 1
    if s.chance(0.3) and not s.symbolic:
        target = [s.width(), *target]
    other = [name for name in s.pool if s.rank(name) == len(shape) and s.chance(0.5)]
    if other and s.chance(0.4):
        s.keep(s.op("Expand", x, s.op("Shape", s.choice(other))))
    else:
        s.keep(s.op("Expand", x, s.ints(*target)))


@draws("ConstantOfShape Shape", 0.6)
def filled(s: Sketch) -> None:
    """Zeros or ones in the shape of an activation, added or joined to it."""
    from onnx import helper

    x = s.pick(where=lambda a: a.ndim >= 1)
    value = helper.make_tensor("value", 1, [1], [s.choice([0.0, 1.0, 0.5])])
    full = s.op("ConstantOfShape", s.op("Shape", x), value=value)
    if s.chance(0.5):
        s.keep(s.op(s.choice(["Add", "Mul", "Sub"]), full, x))
    else:
        s.keep(s.op("Concat", x, full, axis=_axis(s, x)))


@draws("Shape Gather Cast Sqrt Div Mul", 1)
def by_its_size(s: Sketch) -> None:
    """x / √d, with d read from a shape."""
    x = s.pick(where=lambda a: a.ndim >= 2)
    at = int(s.rng.integers(int(s.symbolic), s.rank(x)))
    d = s.op("Gather", s.op("Shape", x), s.index(at))
    number = s.op("Cast", d, to=1)
    if s.chance(0.8):
        number = s.op("Sqrt", number)
    if s.chance(0.4):
        s.keep(s.op("Mul", x, s.op("Div", s.scalar(1.0), number)))
    else:
        s.keep(s.op("Div", x, number))


@draws("GatherElements GatherND ScatterElements ScatterND Trilu OneHot Range Size NonZero Compress", 0.6)
def unusual(s: Sketch) -> None:
    """Operators that may have no rule."""
    x = s.pick(where=lambda a: a.ndim >= 2)
    shape, at = s.shape(x), _axis(s, x)
    kind = s.choice(words("GatherElements ScatterElements ScatterND GatherND Trilu OneHot Size Compress"))
    if kind == "Trilu":
        s.keep(s.op(kind, x))
    elif kind == "Size":
        s.keep(s.op("Div", x, s.op("Cast", s.op(kind, x), to=1)))
    elif kind == "Compress":
        keep = np.arange(shape[at]) != int(s.rng.integers(shape[at]))
        s.keep(s.op(kind, x, s.tensor(keep, "condition"), axis=at))
    elif kind == "OneHot":
        off_on = s.tensor(np.array([0.0, 1.0], np.float32), "values")
        s.keep(s.op(kind, s.op("ArgMax", x, axis=at, keepdims=0), s.index(s.width()), off_on))
    elif s.symbolic:
        raise Unfit("indices of a symbolic batch")
    elif kind == "ScatterND":
        s.keep(s.op(kind, x, s.tensor(np.zeros((1, 1), np.int64), "indices"), weight(s, 1, *shape[1:])))
    elif kind == "GatherND":
        s.keep(s.op(kind, x, s.tensor(np.array([[0], [shape[0] - 1]], np.int64), "indices")))
    else:
        indices = s.tensor(s.rng.integers(0, shape[at], shape), "indices")
        more = [weight(s, *shape)] if kind == "ScatterElements" else []
        s.keep(s.op(kind, x, indices, *more, axis=at))
