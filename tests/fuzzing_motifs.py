"""Whole constructs as networks have them, drawn at once because chance alone would hardly make them."""

from __future__ import annotations

import math

import numpy as np

from tests.fuzzing import Sketch, Unfit
from tests.fuzzing_operators import draws
from tests.fuzzing_weights import bias, fresh, weight


def linear(s: Sketch, x: str, n: int) -> str:
    """x W + b over the last axis."""
    k = s.shape(x)[-1]
    if s.rank(x) == 2 and s.chance(0.5):
        return s.op("Gemm", x, weight(s, n, k), bias(s, n), transB=1)
    y = s.op("MatMul", x, weight(s, k, n))
    return s.op("Add", y, bias(s, n)) if s.chance(0.7) else y


def _sequence(s: Sketch) -> str:
    return s.pick(3, lambda a: a.shape[1] > 1 and a.shape[2] > 1)


def _heads(s: Sketch, x: str, heads: int, d: int) -> str:
    """[n, t, heads·d] -> [n, heads, t, d]."""
    n, t, _ = s.shape(x)
    return s.transpose(s.reshape(x, [n, t, heads, d]), [0, 2, 1, 3])


def _scaled(s: Sketch, x: str, d: int) -> str:
    if s.chance(0.4):
        return s.op(*(["Div", x, s.scalar(math.sqrt(d))] if s.chance(0.5) else ["Mul", x, s.scalar(d**-0.5)]))
    if s.chance(0.3):
        return x
    width = s.op("Gather", s.op("Shape", x), s.index(-1))
    return s.op("Div", x, s.op("Sqrt", s.op("Cast", width, to=1)))


@draws("MatMul Reshape Transpose Softmax Split Shape Gather Cast Sqrt Div Where", 4)
def attention(s: Sketch) -> None:
    """Heads, fused or separate projections, grouped keys, masks, 1/√d as a number or from a shape."""
    x = _sequence(s)
    n, t, c = s.shape(x)
    heads, d = int(s.choice([1, 2, 2, 3])), int(s.choice([1, 2, 3, 4]))
    if s.chance(0.5):
        fused = linear(s, x, 3 * heads * d)
        if s.chance(0.5):
            parts = s.node("Split", [fused, s.ints(*[heads * d] * 3)], 3, axis=2)
            q, k, v = (_heads(s, part, heads, d) for part in parts)
        else:
            five = s.transpose(s.reshape(fused, [n, t, 3, heads, d]), [2, 0, 3, 1, 4])
            q, k, v = (s.op("Gather", five, s.index(j), axis=0) for j in range(3))
    else:
        groups = 1 if s.chance(0.25) else heads
        q = _heads(s, linear(s, x, heads * d), heads, d)
        k, v = (_heads(s, linear(s, x, groups * d), groups, d) for _ in range(2))
        if groups != heads and s.chance(0.5):
            k, v = (s.op("Expand", y, s.ints(1, heads, 1, 1)) for y in (k, v))
    q = _scaled(s, q, d) if s.chance(0.5) else q
    if s.chance(0.25):
        scores = s.op("Einsum", q, k, equation="bhqd,bhkd->bhqk")
    else:
        scores = s.op("MatMul", q, s.transpose(k, [0, 1, 3, 2]))
    if s.chance(0.3):
        mask = s.tensor(np.tril(np.ones((t, t), bool)), "mask")
        scores = s.op("Where", mask, scores, s.scalar(-20.0))
    mixed = s.op("MatMul", s.op("Softmax", _scaled(s, scores, d) if s.chance(0.3) else scores, axis=-1), v)
    joined = s.reshape(s.transpose(mixed, [0, 2, 1, 3]), [n, t, heads * d])
    y = linear(s, joined, c if s.chance(0.7) else s.width())
    s.keep(s.op("Add", x, y) if s.shape(y) == s.shape(x) and s.chance(0.8) else y)


@draws("Add Gemm MatMul Conv Relu", 5)
def residual(s: Sketch) -> None:
    """x + f(x), f of one or two layers."""
    x = s.pick(where=lambda a: a.ndim >= 2)
    if s.rank(x) == 4 and s.chance(0.8):
        c, hidden = s.shape(x)[1], s.width()
        y = s.op("Relu", s.op("Conv", x, weight(s, hidden, c, 3, 3), bias(s, hidden), pads=[1, 1, 1, 1]))
        s.keep(s.op("Add", x, s.op("Conv", y, weight(s, c, hidden, 1, 1))))
        return
    y = s.op(s.choice(["Relu", "Tanh", "Gelu" if s.opset >= 20 else "Elu"]), linear(s, x, s.width()))
    if s.chance(0.3):
        s.keep(y)
    y = linear(s, y, s.shape(x)[-1])
    s.keep(s.op("Add", *s.choice([[x, y], [y, x]])))


@draws("Gemm MatMul Relu Tanh", 5)
def dense(s: Sketch) -> None:
    """A layer and its activation, kept both or only the last."""
    x = linear(s, s.pick(where=lambda a: a.ndim >= 2), s.width())
    if s.chance(0.3):
        s.keep(x)
    s.keep(s.op(s.choice(["Relu", "Tanh", "Sigmoid", "LeakyRelu"]), x))


@draws("Mul Add Sigmoid Split GlobalAveragePool", 2)
def gates(s: Sketch) -> None:
    """Squeeze and excite, gated linear units, FiLM."""
    x = s.pick(where=lambda a: a.ndim >= 2)
    form = s.choice(["glu", "film", "excite"])
    if form == "glu":
        y = linear(s, x, 2 * s.width())
        a, b = s.node("Split", [y, s.ints(*[s.shape(y)[-1] // 2] * 2)], 2, axis=-1)
        s.keep(s.op("Mul", a, s.op("Sigmoid", b)))
    elif form == "film":
        c = s.shape(x)[1]
        z = linear(s, s.pick(2), 2 * c)
        gain, shift = s.node("Split", [z, s.ints(c, c)], 2, axis=1)
        for _ in range(s.rank(x) - 2):
            gain, shift = (s.op("Unsqueeze", y, s.ints(-1)) for y in (gain, shift))
        s.keep(s.op("Add", s.op("Mul", x, gain), shift))
    else:
        if s.rank(x) != 4:
            raise Unfit("no image")
        c = s.shape(x)[1]
        y = s.op("Flatten", s.op("GlobalAveragePool", x))
        y = s.op("Sigmoid", linear(s, s.op("Relu", linear(s, y, s.width())), c))
        s.keep(s.op("Mul", x, s.reshape(y, [s.shape(x)[0], c, 1, 1])))


@draws("ReduceMean Sub Mul Pow Sqrt Div Add Reciprocal", 2.5)
def norm_written_out(s: Sketch) -> None:
    """LayerNorm or RMS norm, from their parts."""
    x = s.pick(where=lambda a: a.ndim >= 2)
    axes = [-1] if s.chance(0.75) else [1]
    centred = s.op("Sub", x, s.reduce("ReduceMean", x, axes)) if s.chance(0.5) else x
    square = s.op("Mul", centred, centred) if s.chance(0.5) else s.op("Pow", centred, s.scalar(2.0))
    deviation = s.op("Sqrt", s.op("Add", s.reduce("ReduceMean", square, axes), s.scalar(0.01)))
    y = (
        s.op("Div", centred, deviation)
        if s.chance(0.6)
        else s.op("Mul", centred, s.op("Reciprocal", deviation))
    )
    if axes == [-1]:
        y = s.op("Mul", y, weight(s, s.shape(x)[-1], positive=True))
        y = s.op("Add", y, bias(s, s.shape(x)[-1])) if s.chance(0.5) else y
    s.keep(y)


@draws("ReduceMin ReduceMax Sub Div Add", 1.5)
def between_zero_and_one(s: Sketch) -> None:
    """EfficientZero's latent state: minus the smallest unit, by the distance to the largest; over any axes."""
    x = s.pick(where=lambda a: a.ndim >= 2)
    axes = [k for k in range(1, s.rank(x)) if s.chance(0.6)] or [s.rank(x) - 1]
    low, high = (s.reduce(kind, x, axes) for kind in ("ReduceMin", "ReduceMax"))
    s.keep(s.op("Div", s.op("Sub", x, low), s.op("Add", s.op("Sub", high, low), s.scalar(0.1))))


@draws("ReduceMax ReduceMean Concat Conv Sigmoid Mul", 1)
def weighed_pixels(s: Sketch) -> None:
    """The second half of CBAM: pixels are weighed by the largest of their channels, and their mean."""
    x = s.pick(4)
    kinds = s.choice([["ReduceMax"], ["ReduceMax", "ReduceMin"], ["ReduceMax", "ReduceMean"]])
    seen = [s.reduce(kind, x, [1]) for kind in kinds]
    seen = [s.op("Concat", *seen, axis=1)] if len(seen) > 1 else seen
    gate = s.op("Conv", seen[0], weight(s, 1, len(kinds), 3, 3), pads=[1, 1, 1, 1])
    s.keep(s.op("Mul", x, s.op("Sigmoid", gate)))


@draws("Reshape InstanceNormalization Mul Add", 1)
def group_norm_written_out(s: Sketch) -> None:
    """As exporters do it: reshape to groups, instance norm, reshape back, scale and shift."""
    x = s.pick(4)
    n, c, h, w = s.shape(x)
    groups = int(s.choice([d for d in range(1, c + 1) if c % d == 0]))
    y = s.reshape(x, [n, groups, c // groups * h * w])
    ones, zeros = (s.tensor(np.full(groups, v, np.float32), "unit") for v in (1.0, 0.0))
    y = s.reshape(s.op("InstanceNormalization", y, ones, zeros), [n, c, h, w])
    y = s.op("Mul", y, fresh(s, [c, 1, 1]))
    s.keep(s.op("Add", y, fresh(s, [c, 1, 1])) if s.chance(0.6) else y)


@draws("Reshape Transpose Conv", 1.5)
def shuffle(s: Sketch) -> None:
    """Channel shuffle, or pixels shuffled by reshapes."""
    x = s.pick(4)
    n, c, h, w = s.shape(x)
    if c % 4 == 0 and s.chance(0.5):
        y = s.transpose(s.reshape(x, [n, c // 4, 2, 2, h, w]), [0, 1, 4, 2, 5, 3])
        s.keep(s.reshape(y, [n, c // 4, 2 * h, 2 * w]))
        return
    groups = int(s.choice([d for d in range(2, c + 1) if c % d == 0]))
    y = s.transpose(s.reshape(x, [n, groups, c // groups, h, w]), [0, 2, 1, 3, 4])
    s.keep(s.reshape(y, [n, c, h, w]))


@draws("Split Concat Reshape Transpose Conv MatMul", 2)
def repeated_shuffle(s: Sketch) -> None:
    """Units of ShuffleNet V2: one half is transformed, both are shuffled, again and again; of channels or features."""
    x = s.pick(where=lambda a: a.ndim in (2, 4))
    n = int(s.rng.integers(2, 8))
    if s.chance(0.5) or s.shape(x)[1] % 2:
        x = s.op("Concat", *(_transformed(s, x, n) for _ in range(2)), axis=1)
    n = s.shape(x)[1] // 2
    for _ in range(int(s.rng.integers(1, 6))):
        left, right = s.node("Split", [x, s.ints(n, n)], 2, axis=1)
        x = s.op("Concat", left, _transformed(s, right, n), axis=1)
        batch, _, *space = s.shape(x)
        order = [0, 2, 1, *range(3, 3 + len(space))]
        x = s.reshape(s.transpose(s.reshape(x, [batch, 2, n, *space]), order), [batch, 2 * n, *space])
        if s.chance(0.2):
            s.keep(x)
    s.keep(x)


def _transformed(s: Sketch, x: str, n: int) -> str:
    c = s.shape(x)[1]
    y = s.op("MatMul", x, weight(s, c, n)) if s.rank(x) == 2 else s.op("Conv", x, weight(s, n, c, 1, 1))
    return s.op(s.choice(["Relu", "Tanh", "LeakyRelu"]), y)


@draws("If Shape Gather Equal", 0.5)
def settled_branch(s: Sketch) -> None:
    """An If whose condition is a constant, or compares a size."""
    x = s.pick()
    k = s.rank(x) - 1
    if s.chance(0.7):
        size = s.op("Gather", s.op("Shape", x), s.index(k))
        yes = s.op("Equal", size, s.index(s.shape(x)[k]))
    else:
        yes = s.tensor(np.array(True), "yes")
    s.keep(s.branch(yes, x, s.choice(["Relu", "Tanh", "Identity"]), "Sigmoid"))


@draws("LSTM GRU RNN Reshape", 0.7)
def batch_first(s: Sketch) -> None:
    """A recurrent operator with layout 1."""
    x = _sequence(s)
    n, t, c = s.shape(x)
    kind = s.choice(["LSTM", "GRU", "RNN"])
    gates, hidden, d = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], int(s.choice(s.sizes)), int(s.choice([1, 1, 2]))
    operands = [x, weight(s, d, gates * hidden, c), weight(s, d, gates * hidden, hidden)]
    way = "bidirectional" if d == 2 else s.choice(["forward", "reverse"])
    if s.opset < 14:
        raise Unfit("no layout")
    more = {"hidden_size": hidden, "direction": way, "layout": 1}
    y, last = s.node(kind, [*operands, bias(s, d, 2 * gates * hidden)], 2, **more)
    s.keep(s.reshape(y, [n, t, d * hidden]))
    if s.chance(0.5):
        s.keep(s.reshape(last, [n, d * hidden]))


@draws("LSTM GRU RNN Transpose Squeeze Unsqueeze Reshape", 3)
def recurrent(s: Sketch) -> None:
    """A recurrent operator with or without biases, initial states, directions."""
    x = s.transpose(_sequence(s), [1, 0, 2])
    t, n, c = s.shape(x)
    kind = s.choice(["LSTM", "GRU", "RNN"])
    gates, hidden = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], int(s.choice(s.sizes))
    way = s.choice(["forward", "forward", "reverse", "bidirectional"])
    d = 1 + (way == "bidirectional")
    operands: list[str | None] = [x, weight(s, d, gates * hidden, c), weight(s, d, gates * hidden, hidden)]
    operands.append(bias(s, d, 2 * gates * hidden) if s.chance(0.7) else None)
    operands.append(None)
    for _ in range((2 if kind == "LSTM" else 1) if s.chance(0.4) else 0):
        operands.append(_initial(s, d, n, hidden, x))
    while operands[-1] is None:
        operands.pop()
    more = {"linear_before_reset": 1} if kind == "GRU" and s.chance(0.6) else {}
    ys = s.node(kind, operands, 3 if kind == "LSTM" else 2, hidden_size=hidden, direction=way, **more)
    y, last = ys[0], s.choice(ys[1:])
    if s.chance(0.6):
        if d == 1:
            s.keep(s.op("Squeeze", y, s.ints(1)))
        else:
            s.keep(s.reshape(s.transpose(y, [0, 2, 1, 3]), [t, n, d * hidden]))
        if not s.symbolic or s.chance(0.7):
            s.keep(s.transpose(s.pool.pop(), [1, 0, 2]))
    if s.chance(0.6):
        s.keep(
            s.op("Squeeze", last, s.ints(0))
            if d == 1
            else s.reshape(s.transpose(last, [1, 0, 2]), [n, d * hidden])
        )


def _initial(s: Sketch, d: int, n: int, hidden: int, x: str) -> str:
    if s.chance(0.4):
        made = linear(s, s.reduce("ReduceMean", x, [0], False), hidden)
        one = s.op("Unsqueeze", made, s.ints(0))
        return s.op("Concat", one, one, axis=0) if d == 2 else one
    state = bias(s, d, 1, hidden)
    if s.symbolic:
        dim = s.op("Unsqueeze", s.op("Gather", s.op("Shape", x), s.index(1)), s.ints(0))
        return s.op("Expand", state, s.op("Concat", s.ints(d), dim, s.ints(hidden), axis=0))
    return s.op("Expand", state, s.ints(d, n, hidden))


@draws("Gemm MatMul Add Split Sigmoid Tanh Mul", 2)
def unrolled_cell(s: Sketch) -> None:
    """A cell applied two or three times with the same weights, its state an input of the graph or zero."""
    x = s.pick(2)
    hidden, kind = int(s.choice(s.sizes)), s.choice(["lstm", "rnn"])
    gates, steps = 4 if kind == "lstm" else 1, int(s.rng.integers(1, 4))
    w, u, b = (
        weight(s, gates * hidden, s.shape(x)[1]),
        weight(s, gates * hidden, hidden),
        bias(s, gates * hidden),
    )
    stateful = s.chance(0.5) and "state_in" not in s.names
    if stateful:
        h = s.input("state_in", s.batch, hidden)
    else:
        h = (
            s.op("Tanh", linear(s, x, hidden))
            if s.chance(0.5)
            else s.op("Mul", linear(s, x, hidden), s.scalar(0.0))
        )
    c = h
    for _ in range(steps):
        z = s.op("Add", s.op("Gemm", x, w, b, transB=1), s.op("Gemm", h, u, transB=1))
        if kind == "rnn":
            h = s.op("Tanh", z)
            continue
        i, f, g, o = s.node("Split", [z, s.ints(*[hidden] * 4)], 4, axis=1)
        c = s.op("Add", s.op("Mul", s.op("Sigmoid", f), c), s.op("Mul", s.op("Sigmoid", i), s.op("Tanh", g)))
        h = s.op("Mul", s.op("Sigmoid", o), s.op("Tanh", c))
    s.keep(h)
    if stateful:
        s.outputs.append(h)


@draws("Slice Concat Unsqueeze Reshape Tanh", 0.7)
def window(s: Sketch) -> None:
    """The last few values of some units, as a state that is shifted by one or two in every step."""
    if "state_in" in s.names:
        raise Unfit("one state")
    x = s.pick(2)
    c, steps = s.shape(x)[1], int(s.choice([1, 1, 2]))
    kept = steps * int(s.rng.integers(1, 4))
    old = s.input("state_in", s.batch, kept + steps, c)
    rest = s.op("Slice", old, s.ints(steps), s.ints(kept + steps), s.ints(1))
    fresh = [s.op("Unsqueeze", s.op("Tanh", x), s.ints(1)) for _ in range(steps)]
    new = s.op("Concat", rest, *fresh, axis=1)
    s.outputs.append(new)
    s.keep(new if s.chance(0.5) else s.reshape(new, [s.batch, (kept + steps) * c]))


@draws("Gemm Add Sub ReduceMean Softmax Reshape MatMul Unsqueeze", 2)
def heads_of_values(s: Sketch) -> None:
    """Dueling, distributions over atoms."""
    x = s.pick(2)
    if s.chance(0.5):
        v, a = linear(s, x, 1), linear(s, x, int(s.choice([2, 3, 4])))
        s.keep(s.op("Sub", s.op("Add", v, a), s.reduce("ReduceMean", a, [1])))
        return
    actions, atoms = int(s.choice([2, 3])), int(s.choice([3, 5]))
    p = s.op("Softmax", s.reshape(linear(s, x, actions * atoms), [s.shape(x)[0], actions, atoms]), axis=2)
    support = s.tensor(np.linspace(-1, 1, atoms).astype(np.float32), "support")
    if s.chance(0.5):
        s.keep(s.op("MatMul", p, support))
    else:
        s.keep(s.reduce("ReduceSum", s.op("Mul", p, support), [2], False))


@draws("MatMul Transpose Relu", 1)
def tied(s: Sketch) -> None:
    """An auto-encoder that decodes with its own weights."""
    x = s.pick(where=lambda a: a.ndim >= 2)
    w = fresh(s, [s.shape(x)[-1], s.width()])
    z = s.op("Relu", s.op("MatMul", x, w))
    s.keep(s.op("MatMul", z, s.transpose(w, [1, 0])))


@draws("Concat MatMul Relu", 2)
def dense_block(s: Sketch) -> None:
    """[x, f(x)], again and again."""
    x = s.pick(where=lambda a: a.ndim >= 2)
    for _ in range(int(s.rng.integers(1, 3))):
        x = s.op("Concat", x, s.op("Relu", linear(s, x, s.width())), axis=-1)
    s.keep(x)


@draws("MatMul Gemm Conv", 2)
def twice(s: Sketch) -> None:
    """One layer used on two values (a shared encoder), the results compared or joined."""
    x = s.pick(where=lambda a: a.ndim >= 2)
    y = s.pick(where=lambda a: a.shape == s.shape(x))
    w = weight(s, s.shape(x)[-1], s.width())
    a, b = s.op("MatMul", x, w), s.op("Tanh", s.op("MatMul", s.op("Neg", y) if x == y else y, w))
    s.keep(s.op(s.choice(["Sub", "Add", "Mul"]), a, b) if s.chance(0.6) else s.op("Concat", a, b, axis=-1))


@draws("Expand Concat Shape Gather Add", 1)
def class_token(s: Sketch) -> None:
    """A learned row before a sequence, and learned positions."""
    x = _sequence(s)
    n, t, c = s.shape(x)
    token = fresh(s, [1, 1, c])
    if s.symbolic:
        dim = s.op("Unsqueeze", s.op("Gather", s.op("Shape", x), s.index(0)), s.ints(0))
        row = s.op("Expand", token, s.op("Concat", dim, s.ints(1), s.ints(1), axis=0))
    else:
        row = s.op("Expand", token, s.ints(n, 1, 1))
    y = s.op("Concat", row, x, axis=1)
    y = s.op("Add", y, fresh(s, [t + 1, c] if s.chance(0.5) else [1, t + 1, c]))
    s.keep(y)
    if s.chance(0.6):
        s.keep(s.op("Gather", y, s.index(0), axis=1))


# ---- beginning and end ------------------------------------------------------------------------------------------


def begin(s: Sketch) -> None:
    """Inputs, and a layer for each so that there are units to grow."""
    for _ in range(int(s.choice([1, 1, 2]))):
        form = s.choice(["vector", "vector", "image", "sequence", "line"])
        shape = {
            "vector": (s.width(),),
            "image": (int(s.choice([1, 2, 3])), *(int(n) for n in s.rng.choice([3, 4, 5], 2))),
            "sequence": (int(s.choice([2, 3, 5])), s.width()),
            "line": (int(s.choice([1, 2, 3])), int(s.choice([4, 6]))),
        }[form]
        x = s.input("x", s.batch, *shape)
        s.keep(x)
        if form == "image":
            c = s.width()
            x = s.op("Conv", x, weight(s, c, shape[0], 3, 3), bias(s, c), pads=[1, 1, 1, 1])
        elif form == "line":
            c = s.width()
            x = s.op("Conv", x, weight(s, c, shape[0], 3), pads=[1, 1])
        else:
            x = linear(s, x, s.width())
        s.keep(s.op("Relu", x) if s.chance(0.5) else x)


def end(s: Sketch) -> None:
    """Heads: mostly something that contracts, so that what is before them can grow."""
    read = {name for node in s.nodes for name in node.input}
    loose = [name for name in s.pool if name not in read and name not in s.inputs]
    s.rng.shuffle(loose)
    for x in loose[: int(s.choice([1, 2, 3, 6]))]:
        try:
            with s.attempt():
                s.outputs.append(_head(s, x))
        except Unfit:
            s.outputs.append(x)


def _head(s: Sketch, x: str) -> str:
    rank, roll = s.rank(x), s.rng.random()
    if rank < 2 or roll < 0.08:
        return x
    if rank == 4 and roll < 0.25:
        x = s.op("GlobalAveragePool", x)
    elif rank > 2 and roll < 0.4:
        x = s.reduce(
            s.choice(["ReduceMean", "ReduceSum", "ReduceMax"]), x, [int(s.rng.integers(1, rank))], False
        )
    elif roll < 0.5:
        return s.op(
            "Einsum", x, weight(s, s.shape(x)[1], 3), equation="bc,cd->bd" if rank == 2 else "bc...,cd->bd..."
        )
    if s.rank(x) > 2 and s.chance(0.75):
        x = s.op("Flatten", x)
    return linear(s, x, int(s.choice([1, 2, 3])))
