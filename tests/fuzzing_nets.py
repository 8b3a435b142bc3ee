"""What networks of today are put together from: rotated heads, experts, scans written by hand, gated convolutions."""

from __future__ import annotations

import numpy as np

from tests.fuzzing import Sketch, Unfit
from tests.fuzzing_motifs import linear
from tests.fuzzing_operators import draws
from tests.fuzzing_weights import bias, fresh, weight


def _silu(s: Sketch, x: str) -> str:
    return s.op("Mul", x, s.op("Sigmoid", x))


def _rms(s: Sketch, x: str) -> str:
    """x / √(mean x² + ε) · γ over the last axis."""
    square = s.op("Mul", x, x)
    deviation = s.op("Sqrt", s.op("Add", s.reduce("ReduceMean", square, [-1]), s.scalar(0.01)))
    return s.op("Mul", s.op("Div", x, deviation), weight(s, s.shape(x)[-1], positive=True))


def _part(s: Sketch, x: str, start: int, end: int, step: int = 1) -> str:
    """A slice of the last axis."""
    return s.op("Slice", x, s.ints(start), s.ints(end), s.ints(-1), s.ints(step))


def _rotated(s: Sketch, x: str, paired: bool) -> str:
    """Su et al. 2021: units of two halves, or neighbours, are turned by an angle of their position."""
    t, d = s.shape(x)[-2:]
    angles = np.arange(t)[:, None] * 0.5 ** np.arange(d // 2)
    angles = np.repeat(angles, 2, -1) if paired else np.concatenate([angles, angles], -1)
    cos, sin = (s.tensor(f(angles).astype(np.float32), "table") for f in (np.cos, np.sin))
    if paired:
        even, odd = _part(s, x, 0, d, 2), _part(s, x, 1, d, 2)
        columns = [s.op("Unsqueeze", y, s.ints(s.rank(x))) for y in (s.op("Neg", odd), even)]
        turned = s.reshape(s.op("Concat", *columns, axis=-1), s.shape(x))
    else:
        turned = s.op("Concat", s.op("Neg", _part(s, x, d // 2, d)), _part(s, x, 0, d // 2), axis=-1)
    return s.op("Add", s.op("Mul", x, cos), s.op("Mul", turned, sin))


@draws("MatMul Reshape Transpose Softmax Slice Neg Concat Mul Add Expand Unsqueeze", 2)
def rotated_heads(s: Sketch) -> None:
    """Attention with rotations by position, few keys for many queries, and norms of both."""
    if s.opset < 13:
        raise Unfit("axes as attributes")
    x = s.pick(3, lambda a: a.shape[1] > 1 and a.shape[2] > 1)
    n, t, c = s.shape(x)
    groups, many, d = int(s.choice([1, 2])), int(s.choice([1, 2])), int(s.choice([2, 4]))
    heads = groups * many
    q, k, v = (
        s.transpose(s.reshape(linear(s, x, h * d), [n, t, h, d]), [0, 2, 1, 3])
        for h in (heads, groups, groups)
    )
    if s.chance(0.3):
        q, k = _rms(s, q), _rms(s, k)
    if s.chance(0.8):
        paired = s.chance(0.4)
        q, k = _rotated(s, q, paired), _rotated(s, k, paired)
    if many > 1:
        k, v = (
            s.reshape(
                s.op("Expand", s.op("Unsqueeze", y, s.ints(2)), s.ints(1, 1, many, 1, 1)), [n, heads, t, d]
            )
            for y in (k, v)
        )
    scores = s.op("Mul", s.op("MatMul", q, s.transpose(k, [0, 1, 3, 2])), s.scalar(0.5))
    mixed = s.op("MatMul", s.op("Softmax", scores, axis=-1), v)
    y = linear(s, s.reshape(s.transpose(mixed, [0, 2, 1, 3]), [n, t, heads * d]), c)
    s.keep(s.op("Add", x, y) if s.chance(0.8) else y)


@draws("MatMul Mul Sigmoid Split Add ReduceMean Sqrt Div", 2)
def gated_block(s: Sketch) -> None:
    """x + γ · W (silu(U x) · V x), mostly behind a norm; U and V are one weight or two."""
    x = s.pick(where=lambda a: a.ndim >= 2 and a.shape[-1] > 1)
    h, y = s.width(), _rms(s, x) if s.chance(0.6) else x
    if s.chance(0.5):
        a, b = s.node("Split", [linear(s, y, 2 * h), s.ints(h, h)], 2, axis=-1)
    else:
        a, b = linear(s, y, h), linear(s, y, h)
    y = linear(s, s.op("Mul", _silu(s, a), b), s.shape(x)[-1])
    if s.chance(0.4):
        y = s.op("Mul", y, s.scalar(0.3) if s.chance(0.4) else weight(s, s.shape(x)[-1]))
    s.keep(s.op("Add", x, y))


@draws("MatMul Einsum Softmax Relu Add Unsqueeze Mul ReduceSum", 2)
def experts(s: Sketch) -> None:
    """All experts, weighed by a softmax: in one weight each layer, or side by side."""
    x = s.pick(2)
    c, count, h, out = s.shape(x)[1], int(s.choice([2, 3])), s.width(), s.width()
    gate = s.op("Softmax", linear(s, x, count), axis=-1)
    if s.chance(0.5):
        first, second = weight(s, count, c, h), weight(s, count, h, out)
        y = s.op("Relu", s.op("Einsum", x, first, equation="bi,eih->beh"))
        s.keep(
            s.op("Einsum", gate, s.op("Einsum", y, second, equation="beh,eho->beo"), equation="be,beo->bo")
        )
        return
    each = [linear(s, s.op("Relu", linear(s, x, h)), out) for _ in range(count)]
    stacked = s.op("Concat", *[s.op("Unsqueeze", y, s.ints(1)) for y in each], axis=1)
    s.keep(s.reduce("ReduceSum", s.op("Mul", stacked, s.op("Unsqueeze", gate, s.ints(2))), [1], False))


@draws("Unsqueeze Mul Cos MatMul Relu ReduceMean", 1)
def quantile_embedding(s: Sketch) -> None:
    """Dabney et al. 2018: cosines of fractions, a layer of them, times the units."""
    x = s.pick(2)
    c, many = s.shape(x)[1], int(s.choice([2, 4]))
    fractions = s.input("tau", s.batch, 3, low=0.0)
    waves = s.tensor((np.pi * np.arange(many)).astype(np.float32), "waves")
    code = s.op("Cos", s.op("Mul", s.op("Unsqueeze", fractions, s.ints(2)), waves))
    y = s.op("Mul", s.op("Unsqueeze", x, s.ints(1)), s.op("Relu", linear(s, code, c)))
    s.keep(y if s.chance(0.5) else s.reduce("ReduceMean", linear(s, y, s.width()), [1], False))


@draws("Conv Split Sigmoid Tanh Mul Add Concat", 1)
def gated_convolutions(s: Sketch) -> None:
    """ConvLSTM: the gates are convolutions of the input and of what the last step gave."""
    x = s.pick(4)
    c, hidden = s.shape(x)[1], s.width()
    first = s.op("Conv", x, weight(s, hidden, c, 3, 3), pads=[1] * 4)
    h, cell = s.op("Tanh", first), s.op("Mul", first, s.scalar(0.0)) if s.chance(0.5) else first
    w, b = weight(s, 4 * hidden, c + hidden, 3, 3), bias(s, 4 * hidden)
    for _ in range(int(s.rng.integers(1, 3))):
        z = s.op("Conv", s.op("Concat", x, h, axis=1), w, b, pads=[1] * 4)
        i, f, g, o = s.node("Split", [z, s.ints(*[hidden] * 4)], 4, axis=1)
        kept = s.op("Mul", s.op("Sigmoid", f), cell)
        cell = s.op("Add", kept, s.op("Mul", s.op("Sigmoid", i), s.op("Tanh", g)))
        h = s.op("Mul", s.op("Sigmoid", o), s.op("Tanh", cell))
    s.keep(h)


@draws("Gather Exp Softplus Neg Mul Add Unsqueeze ReduceSum MatMul Concat", 1.5)
def selective_scan(s: Sketch) -> None:
    """Gu and Dao 2023, step by step: states of each unit decay as fast as the input says."""
    x = s.pick(3, lambda a: 1 < a.shape[1] <= 4)
    _, t, c = s.shape(x)
    states = int(s.choice([2, 3]))
    decay, skip, h = fresh(s, [c, states]), weight(s, c), None
    write, read = weight(s, c, states), weight(s, c, states)
    rates, done = weight(s, c, c), []
    for step in range(t):
        u = s.op("Gather", x, s.index(step), axis=1)
        rate = s.op("Unsqueeze", s.op("Softplus", s.op("MatMul", u, rates)), s.ints(2))
        new = s.op("Unsqueeze", s.op("MatMul", u, write), s.ints(1))
        new = s.op("Mul", s.op("Mul", rate, new), s.op("Unsqueeze", u, s.ints(2)))
        if h is not None:
            kept = s.op("Exp", s.op("Neg", s.op("Mul", rate, s.op("Exp", decay))))
            new = s.op("Add", s.op("Mul", kept, h), new)
        h = new
        seen = s.op("Unsqueeze", s.op("MatMul", u, read), s.ints(1))
        y = s.reduce("ReduceSum", s.op("Mul", h, seen), [2], False)
        done.append(s.op("Unsqueeze", s.op("Add", y, s.op("Mul", u, skip)), s.ints(1)))
    s.keep(s.op("Concat", *done, axis=1))


@draws("Conv Pad PRelu", 1.5)
def causal_convolution(s: Sketch) -> None:
    """Borders of unequal width, in the convolution or in front of it; gaps in the kernel; a slope for each channel."""
    x = s.pick(where=lambda a: 3 <= a.ndim <= 4)
    _, c, *space = s.shape(x)
    gap, out = int(s.choice([1, 2])), s.width()
    before, after = ([int(k) for k in s.rng.integers(0, 3, len(space))] for _ in range(2))
    before = [max(b, 2 * gap + 1 - n - a) for b, a, n in zip(before, after, space, strict=True)]
    w, more = weight(s, out, c, *[3 if gap == 1 else 2] * len(space)), {"dilations": [gap] * len(space)}
    if s.chance(0.5) and s.opset >= 11:
        y = s.op("Conv", s.op("Pad", x, s.ints(0, 0, *before, 0, 0, *after)), w, **more)
    else:
        y = s.op("Conv", x, w, pads=[*before, *after], **more)
    s.keep(s.op("PRelu", y, weight(s, out, *[1] * len(space), positive=True)) if s.chance(0.5) else y)


@draws("Gemm MatMul Reshape ReduceMean Sub Add Softmax Mul ReduceSum", 1)
def dueling_distribution(s: Sketch) -> None:
    """Rainbow's head: values and advantages of every atom, and the expectation over them."""
    x = s.pick(2)
    n, actions, atoms = s.shape(x)[0], int(s.choice([2, 3])), int(s.choice([3, 5]))
    v = s.reshape(linear(s, x, atoms), [n, 1, atoms])
    a = s.reshape(linear(s, x, actions * atoms), [n, actions, atoms])
    y = s.op("Sub", s.op("Add", v, a), s.reduce("ReduceMean", a, [1]))
    p = s.op("Softmax", y, axis=2)
    support = s.tensor(np.linspace(-1, 1, atoms).astype(np.float32), "support")
    s.keep(y if s.chance(0.3) else s.reduce("ReduceSum", s.op("Mul", p, support), [2], False))


@draws("Abs Reshape MatMul Elu Squeeze Unsqueeze", 1)
def made_weights(s: Sketch) -> None:
    """Rashid et al. 2018: layers of one value are the weights by which another one is read."""
    x, y = s.pick(2), s.pick(2)
    n, c, h = s.shape(x)[0], s.shape(x)[1], s.width()
    made = s.reshape(linear(s, y, c * h), [n, c, h])
    made = s.op("Abs", made) if s.chance(0.6) else made
    z = s.op("MatMul", s.op("Unsqueeze", x, s.ints(1)), made)
    z = s.op("Elu", s.op("Squeeze", z, s.ints(1)))
    s.keep(s.op("Add", z, linear(s, y, h)) if s.chance(0.6) else z)


@draws("MatMul Reshape ReduceMax ReduceMin", 1)
def pieces(s: Sketch) -> None:
    """Maxout, and the sorted pairs of Anil et al. 2019."""
    x, h, many = s.pick(2), s.width(), int(s.choice([2, 3]))
    n = s.shape(x)[0]
    y = s.reshape(linear(s, x, many * h), [n, h, many] if s.chance(0.5) else [n, many, h])
    axis = s.shape(y).index(many) if many != h else 2
    largest = s.reduce("ReduceMax", y, [axis], s.chance(0.3))
    s.keep(largest)
    if s.chance(0.3):
        s.keep(s.op("Concat", largest, s.reduce("ReduceMin", y, [axis], s.rank(largest) == 3), axis=-1))


@draws("Elu Add MatMul Transpose ReduceSum Div", 1)
def linear_attention(s: Sketch) -> None:
    """Katharopoulos et al. 2020: keys times values first, and a norm by the sum of the keys."""
    x = s.pick(3, lambda a: a.shape[1] > 1)
    d, e = s.width(), s.width()
    q, k = (s.op("Add", s.op("Elu", linear(s, x, d)), s.scalar(1.0)) for _ in range(2))
    y = s.op("MatMul", q, s.op("MatMul", s.transpose(k, [0, 2, 1]), linear(s, x, e)))
    total = s.op("MatMul", q, s.transpose(s.reduce("ReduceSum", k, [1]), [0, 2, 1]))
    s.keep(s.op("Div", y, s.op("Add", total, s.scalar(0.5))) if s.chance(0.7) else y)


@draws("Expand Shape Slice Concat MatMul Softmax Transpose", 1)
def learned_queries(s: Sketch) -> None:
    """Perceiver: a parameter, as many times as the batch is large, reads a sequence."""
    x = s.pick(3, lambda a: a.shape[1] > 1)
    n, _, c = s.shape(x)
    many = int(s.choice([2, 3]))
    rows = fresh(s, [1, many, c])
    size = s.op("Slice", s.op("Shape", x), s.ints(0), s.ints(1)) if s.symbolic else s.ints(n)
    q = s.op("Expand", rows, s.op("Concat", size, s.ints(1, 1), axis=0))
    k = x if s.chance(0.5) else linear(s, x, c)
    scores = s.op("MatMul", q, s.transpose(k, [0, 2, 1]))
    if s.chance(0.3):
        s.keep(s.op("Relu", scores))
    mixed = s.op("MatMul", s.op("Softmax", scores, axis=-1), x)
    s.keep(s.op("Add", mixed, q) if s.chance(0.4) else mixed)
