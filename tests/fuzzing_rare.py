"""Drawings of what few graphs have: attention as one operator, operators of old versions, operands kept in a domain."""

from __future__ import annotations

import numpy as np

from tests.fuzzing import Sketch, Unfit, words
from tests.fuzzing_motifs import linear
from tests.fuzzing_operators import draws
from tests.fuzzing_weights import weight


@draws("Attention", 10)
def attention_operator(s: Sketch) -> None:
    """Heads side by side in one axis, or apart; grouped keys; masks."""
    if s.opset < 23:
        raise Unfit("no such operator yet")
    x = s.pick(3, lambda a: a.shape[1] > 1)
    n, t, _ = s.shape(x)
    groups, many, d, e = (int(k) for k in s.rng.integers(1, 4, 4))
    heads = groups * many
    q, k, v = (linear(s, x, size) for size in (heads * d, groups * d, groups * e))
    more: dict[str, object] = {"scale": s.number(0.2, 1.0)} if s.chance(0.5) else {}
    more |= {"is_causal": 1} if s.chance(0.3) else {}
    mask = []
    if s.chance(0.3) and not more.get("is_causal"):
        shape = s.choice([(t, t), (1, t, t), (heads, t, t)])
        mask = [weight(s, *shape) if s.chance(0.7) else s.tensor(np.tril(np.ones((t, t), bool)), "mask")]
    if s.chance(0.5):
        y = s.op("Attention", q, k, v, *mask, q_num_heads=heads, kv_num_heads=groups, **more)
    else:
        rows = ((q, heads, d), (k, groups, d), (v, groups, e))
        apart = [s.transpose(s.reshape(part, [n, t, h, size]), [0, 2, 1, 3]) for part, h, size in rows]
        y = s.op("Attention", *apart, *mask, **more)
        y = s.reshape(s.transpose(y, [0, 2, 1, 3]), [n, t, heads * e])
    s.keep(linear(s, y, s.width()))


@draws("Scatter Upsample", 10)
def of_old_versions(s: Sketch) -> None:
    """Operators that later versions have renamed."""
    if s.opset >= 10:
        raise Unfit("no such operator any more")
    if s.chance(0.5):
        x = s.pick(where=lambda a: 3 <= a.ndim <= 4)
        scales = [1.0, 1.0, *(s.choice([1.0, 2.0]) for _ in s.shape(x)[2:])]
        s.keep(s.op("Upsample", x, s.tensor(np.array(scales, np.float32), "scales"), mode="nearest"))
        return
    if s.symbolic:
        raise Unfit("indices of a symbolic batch")
    x = s.pick(where=lambda a: a.ndim >= 2)
    shape, at = s.shape(x), int(s.rng.integers(s.rank(x)))
    indices = s.tensor(s.rng.integers(0, shape[at], shape), "indices")
    s.keep(s.op("Scatter", x, indices, weight(s, *shape), axis=at))


@draws("Add Clip Div Exp Log Max Mul Neg Pow ReduceL2 Sigmoid Sqrt Tanh", 1.5)
def kept_in_a_domain(s: Sketch) -> None:
    """Divisors, roots and logarithms of what the graph itself keeps away from zero."""
    x = s.pick(where=lambda a: a.ndim >= 2)
    e = s.scalar(0.5)
    kind = s.choice(words("norm root log power divisor"))
    if kind == "norm":
        size = s.reduce("ReduceL2", x, [-1])
        s.keep(s.op("Div", x, s.op("Max", size, e) if s.chance(0.5) else s.op("Clip", size, e)))
    elif kind == "root":
        square = s.op("Mul", x, x) if s.chance(0.5) else s.op("Pow", x, s.scalar(2.0))
        s.keep(s.op("Sqrt", s.op("Add", square, e)))
    elif kind == "log":
        s.keep(s.op("Log", s.op("Add", s.op("Exp", s.op("Tanh", x)), e)))
    elif kind == "power":
        s.keep(s.op("Pow", s.op("Max", s.op("Sigmoid", x), e), e))
    else:
        same = [name for name in s.pool if s.shape(name) == s.shape(x)]
        s.keep(s.op("Div", s.choice(same), s.op("Add", s.op("Abs", x), e)))
