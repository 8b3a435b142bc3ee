"""Rows for operators that regroup, join, cut, choose and repeat."""

from __future__ import annotations

from tests.rule_graphs import activation, index, ints, number, row, weight

RESHAPE = [
    row("y = Reshape(x, s)", [2, 3, 5], x=activation(2, 15), s=ints(2, 3, 5)),
    row("y = Reshape(x, s)", [2, 3, 5], x=activation(2, 3, 5), s=ints(2, 15)),
    row("y = Reshape(x, s)", [2, 3, 5], x=activation(2, 3, 5), s=ints(2, -1)),
    row("y = Reshape(x, s)", [2, 3, 5], x=activation(2, 3, 5), s=ints(-1, 5)),
    row("y = Reshape(x, s)", [2, 3, 5], x=activation(2, 3, 5), s=ints(0, -1)),
    row("y = Reshape(x, s)", [2, 3, 5], x=activation(2, 3, 5), s=ints(0, 0, -1)),
    row("y = Reshape<allowzero=1>(x, s)", [2, 3, 5], x=activation(2, 15), s=ints(2, 3, 5)),
    row("y = Reshape(x, s)", [3, 5], x=activation("N", 15), s=ints(-1, 3, 5)),
    row("y = Reshape(x, s)", [3, 5], x=activation("N", 15), s=ints(0, 3, 5)),
    row("y = Reshape(x, s)", [3, 5], x=activation("N", 3, 5), s=ints(0, -1)),
    row("y = Reshape(x, s)", [3, 5], x=activation("N", "T", 3, 5), s=ints(0, 0, 15)),
    row("y = Reshape(x, s)", [5], x=activation("N", "T", 5), s=ints(-1, 5)),
    # an axis of 12 as 3 · 4 and as 4 · 3 has no common refinement; as 2 · 6 and 6 · 2 it has (2 · 3 · 2)
    row("a = Reshape(x, s)\nb = Reshape(x, t)\nc = Reshape(a, u)\nd = Reshape(b, u)\ny = Add(c, d)", [2, 2, 3],
        x=activation(12), s=ints(2, 6), t=ints(6, 2), u=ints(12)),
    row("a = Reshape(x, s)\nb = Relu(a)\nc = Reshape(x, t)\ny = Relu(c)", [], x=activation(12), s=ints(3, 4),
        t=ints(4, 3)),
    row("y = Reshape(x, s)", [], x=activation(6, 5), s=ints(10, 3)),
    row("y = Reshape(x, s)", [2, 2, 3], x=activation(4, 3), s=ints(2, 6)),
    row("y = Reshape(x, s)", [2, 3], x=activation(2, 1, 3), s=ints(1, 2, 3, 1)),
    row("y = Reshape(x, s)", [], x=activation(1, 1), s=ints()),
    # what exporters write for view(x.shape[0], -1) and its like
    row("f = Shape(x)\nz = Constant<value=int64[1] {0}>()\nn = Gather(f, z)\nr = Constant<value=int64[1] {-1}>()\n"
        "s = Concat<axis=0>(n, r)\ny = Reshape(x, s)", [3, 5], x=activation("N", 3, 5)),
    row("f = Shape(x)\nz = Constant<value=int64 {0}>()\nn = Gather(f, z)\na = Constant<value=int64[1] {0}>()\n"
        "u = Unsqueeze(n, a)\nd = Constant<value=int64[2] {3, 5}>()\ns = Concat<axis=0>(u, d)\ny = Reshape(x, s)",
        [3, 5], x=activation("N", 15)),
    row("f = Shape(x)\ny = Reshape(z, f)", [2, 2, 3, 3], x=activation(2, 3), z=activation(6)),
    row("f = Shape<start=0, end=1>(x)\nd = Constant<value=int64[1] {15}>()\ns = Concat<axis=0>(f, d)\n"
        "y = Reshape(x, s)", [3, 5], x=activation("N", 3, 5)),
    row("f = Shape(x)\ni = Constant<value=int64[1] {1}>()\nj = Constant<value=int64[1] {2}>()\na = Gather(f, i)\n"
        "b = Gather(f, j)\nm = Mul(a, b)\nk = Constant<value=int64[1] {-1}>()\ns = Concat<axis=0>(k, m)\n"
        "y = Reshape(x, s)", [3, 5], x=activation("N", 3, 5)),
    row("y = Flatten(x)", [2, 3, 5], x=activation(2, 3, 5), opsets=(9, 20)),
    row("y = Flatten<axis=0>(x)", [2, 3], x=activation(2, 3)),
    row("y = Flatten<axis=-1>(x)", [2, 3, 5], x=activation(2, 3, 5)),
    row("y = Flatten<axis=3>(x)", [2, 3, 5], x=activation(2, 3, 5)),
    row("y = Flatten<axis=2>(x)", [3, 5], x=activation("N", 3, 5)),
    row("y = Squeeze<axes=[1]>(x)", [2, 3], x=activation(2, 1, 3), opsets=(9, 11)),
    row("y = Squeeze(x, axes)", [2, 3], x=activation(2, 1, 3, 1), axes=ints(-1, 1)),
    row("y = Squeeze(x)", [2, 3], x=activation(1, 2, 1, 3)),
    row("y = Unsqueeze<axes=[0,2]>(x)", [2, 3], x=activation(2, 3), opsets=(11,)),
    row("y = Unsqueeze(x, axes)", [2, 3], x=activation(2, 3), axes=ints(-1, 1)),
    row("y = Transpose(x)", [2, 3, 5], x=activation(2, 3, 5)),
    row("y = Transpose<perm=[1,2,0]>(x)", [2, 3, 5], x=activation(2, 3, 5)),
    row("t = Transpose<perm=[0,2,3,1]>(x)\ny = Flatten(t)", [3, 4, 5], x=activation("N", 3, 4, 5)),
    # a channel shuffle: c = g · n read as n · g
    row("a = Reshape(x, s)\nb = Transpose<perm=[0,2,1]>(a)\ny = Reshape(b, t)", [3, 5], x=activation("N", 15),
        s=ints(0, 3, 5), t=ints(0, 15)),
]  # fmt: skip

JOIN = [
    *[row(f"y = Concat<axis={k}>(a, b)", [2, 3, 5, size], a=activation(2, 3, 5), b=activation(*other))
      for k, size, other in ((0, 7, (7, 3, 5)), (1, 7, (2, 7, 5)), (-1, 7, (2, 3, 7)))],
    row("y = Concat<axis=1>(a, b, a)", [2, 3, 5], a=activation(2, 3), b=activation(2, 5)),
    row("y = Concat<axis=-1>(a, b)", [3], a=activation("N", 3), b=activation("N", 1)),
    row("y = Concat<axis=0>(a, b)", [3, 5, 7], a=activation(7, 3), b=weight(5, 3)),
    row("y = Concat<axis=1>(a)", [2, 3], a=activation(2, 3)),
    row("c = Concat<axis=1>(a, b)\ny = Reshape(c, s)", [2, 5, 7], a=activation("N", 2, 5), b=activation("N", 7, 5),
        s=ints(0, 45)),
    row("c = Concat<axis=1>(a, b)\ny = Reshape(c, s)", [2, 5, 7], a=activation("N", 10), b=activation("N", 35),
        s=ints(0, 9, 5)),
    row("c = Concat<axis=1>(a, b)\nd = Concat<axis=1>(b, a)\ny = Add(c, d)", [], a=activation("N", 2),
        b=activation("N", 5)),
    row("c = Concat<axis=1>(a, b)\ny = MatMul(c, w)", [2, 5, 7], a=activation("N", 2), b=activation("N", 5),
        w=weight(7, 7)),
]  # fmt: skip

SPLIT = [
    row("y1, y2 = Split<axis=1>(x)", [2, 5, 5], x=activation(2, 10), opsets=(11, 13)),
    row("y1, y2, y3 = Split<axis=1, split=[2,3,5]>(x)", [2, 2, 3, 5], x=activation(2, 10), opsets=(9, 11)),
    row("y1, y2, y3 = Split<axis=-1>(x, s)", [2, 3, 5], x=activation("N", 10), s=ints(2, 3, 5), opsets=(13, 20)),
    row("y1, y2 = Split<axis=1, num_outputs=2>(x)", [5, 5], x=activation("N", 10)),
    row("y1, y2 = Split<axis=1, num_outputs=2>(x)", [5, 6], x=activation("N", 11)),
    row("y1, y2 = Split(x, s)", [2, 3, 7], x=activation(10, 2), s=ints(3, 7)),
    row("y1, y2 = Split<axis=1>(x, s)", [4], x=activation("N", 5), s=ints(4, 1)),
    row("a, b = Split<axis=1, num_outputs=2>(x)\ny = Mul(a, b)", [5], x=activation("N", 10)),
    row("c = Concat<axis=1>(a, b)\ny1, y2 = Split<axis=1>(c, s)", [3, 5], x=activation(1), a=activation("N", 3),
        b=activation("N", 5), s=ints(3, 5)),
    row("c = Concat<axis=1>(a, b)\ny1, y2 = Split<axis=1>(c, s)", [2, 3, 3], a=activation("N", 3),
        b=activation("N", 5), s=ints(5, 3)),
    # LSTM gates: cut into four, tied to one another; cut off the blocks of a product: refused
    row("g1, g2, g3, g4 = Split<axis=1, num_outputs=4>(x)\na = Mul(g1, g2)\nb = Mul(g3, g4)\ny = Add(a, b)", [3],
        x=activation("N", 12)),
    row("f = Flatten(x)\ny1, y2 = Split<axis=1>(f, s)", [2, 3, 3], x=activation("N", 5, 3), s=ints(6, 9)),
    row("f = Flatten(x)\ny1, y2 = Split<axis=1>(f, s)", [], x=activation("N", 5, 3), s=ints(7, 8)),
    row("q = SplitToSequence<axis=1, keepdims=1>(x, s)\ny = SequenceAt(q, k)", [2, 3, 5], x=activation("N", 10),
        s=ints(2, 3, 5), k=number(1)),
    row("q = SplitToSequence<axis=1>(x, s)\nk = Constant<value=int64 {-1}>()\ny = SequenceAt(q, k)", [5, 5],
        x=activation("N", 10), s=number(5)),
]  # fmt: skip

HUGE, INT_MAX = 2**63 - 1, 2**31 - 1
SLICE = [
    row("y = Slice<axes=[1], starts=[2], ends=[5]>(x)", [2, 2, 3, 5], x=activation(2, 10), opsets=(9,)),
    row("y = Slice<starts=[1,2], ends=[3,5]>(x)", [2, 2, 3, 5], x=activation(3, 10), opsets=(9,)),
    row("y = Slice(x, a, b, k)", [2, 8], x=activation("N", 10), a=ints(2), b=ints(INT_MAX), k=ints(1)),
    row("y = Slice(x, a, b, k)", [2, 8], x=activation("N", 10), a=ints(2), b=ints(HUGE), k=ints(-1), opsets=(11, 20)),
    row("y = Slice(x, a, b, k)", [3, 7], x=activation("N", 10), a=ints(-3), b=ints(HUGE), k=ints(1)),
    row("y = Slice(x, a, b, k)", [3, 7], x=activation("N", 10), a=ints(0), b=ints(-3), k=ints(1)),
    row("y = Slice(x, a, b, k)", [2, 3, 5], x=activation("N", 10), a=ints(-8), b=ints(-5), k=ints(1)),
    row("y = Slice(x, a, b)", [10, 3], x=activation(3, 10), a=ints(0, 0), b=ints(HUGE, HUGE)),
    row("y = Slice(x, a, b, k)", [2, 2, 3], x=activation(3, 5), a=ints(2), b=ints(3), k=ints(1)),
    row("y = Slice(x, a, b, k, t)", [5], x=activation("N", 10), a=ints(0), b=ints(HUGE), k=ints(1), t=ints(2)),
    row("y = Slice(x, a, b, k, t)", [5], x=activation("N", 15), a=ints(1), b=ints(HUGE), k=ints(1), t=ints(3)),
    row("y = Slice(x, a, b, k, t)", [], x=activation("N", 10), a=ints(-1), b=ints(-HUGE), k=ints(1), t=ints(-1)),
    row("y = Slice(x, a, b, k, t)", [], x=activation("N", 10), a=ints(0), b=ints(HUGE), k=ints(1), t=ints(3)),
    row("y = Slice(x, a, b, k)", [5], x=activation("N", "T", 5), a=ints(-1), b=ints(HUGE), k=ints(1)),
    row("f = Shape(x)\ni = Constant<value=int64[1] {1}>()\nn = Gather(f, i)\ny = Slice(z, a, n, i)", [3, 3, 4],
        x=activation("N", 3), z=activation("N", 7), a=ints(0)),
    row("p = Slice(x, a, b, k)\nq = Slice(x, b, c, k)\ny = Concat<axis=1>(q, p)", [3, 7], x=activation("N", 10),
        a=ints(0), b=ints(3), c=ints(HUGE), k=ints(1)),
]  # fmt: skip

SELECT = [
    row("y = Gather<axis=1>(x, k)", [2, 2, 3, 5], x=activation(2, 6, 5), k=number(2)),
    row("y = Gather<axis=1>(x, k)", [2, 5, 5], x=activation(2, 6, 5), k=ints(-1)),
    row("y = Gather<axis=1>(x, k)", [2, 3, 5], x=activation("N", 10), k=ints(2, 3, 4)),
    row("y = Gather<axis=1>(x, k)", [3, 5], x=activation("N", 8), k=ints(5, 6, 7, 0, 1, 2, 3, 4)),
    row("y = Gather<axis=1>(x, k)", [2, 2], x=activation("N", 4), k=ints(0, 1, 0, 1, 2, 3)),
    row("i = Constant<value=int64[1,6,1] {0,1,2,3,4,5}>()\ny = Gather<axis=1>(x, i)", [6], x=activation("N", 6)),
    row("i = Constant<value=int64[1,6] {3,4,5,0,1,2}>()\ny = Gather<axis=1>(x, i)", [3, 3], x=activation("N", 6)),
    row("y = Gather(w, k)", [5], w=weight(9, 5), k=index("N", below=9)),
    row("y = Gather(w, k)", [5], w=weight(9, 5), k=index("N", "T", below=9)),
    row("y = Gather<axis=1>(w, k)", [3, 4], w=weight(3, 9), k=index(4, below=9)),
    row("y = Gather<axis=1>(x, k)", [2, 3], x=activation("N", 5), k=ints(*range(5), *range(2))),
    row("y = Gather<axis=1>(x, k)", [2, 3, 5], x=activation(2, 3, 5), k=ints(0, 1, 2)),
    row("y = Pad(x, p)", [2, 3, 5], x=activation(2, 3, 5), p=ints(0, 0, 1, 0, 0, 2)),
    row("y = Pad<pads=[0,1,0,2]>(x)", [2, 3], x=activation(2, 3), opsets=(9,)),
    row("y = Pad(x, p,, k)", [2, 3], x=activation(2, 3), p=ints(1, 2), k=ints(-1)),
    row("y = Pad(x, p)", [2], x=activation(2, 3), p=ints(0, -1, 0, 1)),
    row('y = Pad<mode="reflect">(x, p)', [2], x=activation(2, 3), p=ints(0, 1, 0, 1)),
    row('y = Pad<mode="edge">(x, p)', [2], x=activation(2, 3), p=ints(0, 1, 0, 0)),
    row("y = Pad(x, p)", [3, 4, 4], x=activation("N", 3, 4, 4), p=ints(0, 0, 1, 1, 0, 0, 1, 1)),
]  # fmt: skip

_PLACES = {"i": index(2, 5, below=3), "u": activation(2, 5)}
INDEX = [
    row("y = GatherElements<axis=1>(x, i)", [3, 4], x=activation(3, 5), i=index(3, 4, below=5)),
    row("y = GatherElements(x, i)", [4, 5], x=activation(3, 5), i=index(4, 5, below=3), opsets=(11, 20)),
    row("y = GatherElements<axis=1>(x, i)", [4], x=activation(3, 5), i=index(2, 4, below=5)),
    row("y = GatherND(x, i)", [4, 5], x=activation(3, 5), i=index(4, 1, below=3), opsets=(11, 20)),
    row("i = Constant<value=int64[4,1] {4,0,1,-1}>()\ny = GatherND(x, i)", [2, 2, 5], x=activation(6, 5)),
    row("y = GatherND(x, i)", [4], x=activation(3, 5), i=index(4, 2, below=3)),
    row("y = GatherND<batch_dims=1>(x, i)", [2, 4, 5], x=activation(2, 3, 5), i=index(2, 4, 1, below=3)),
    # nothing may be listed twice: a reduction would count it twice
    row("y = ScatterElements(x, i, u)", [5], x=activation(3, 5), **_PLACES, opsets=(11, 20)),
    row("y = Scatter(x, i, u)", [5], x=activation(3, 5), **_PLACES, opsets=(9,)),
    row('y = ScatterElements<axis=1, reduction="add">(x, i, u)', [3], x=activation(3, 5),
        i=index(3, 4, below=5), u=activation(3, 4), opsets=(18,)),
    row("y = ScatterElements(x, i, u)", [], x=activation(3, 7), **_PLACES),
    row("y = ScatterND(x, i, u)", [5], x=activation(3, 5), i=index(2, 1, below=3), u=activation(2, 5)),
    row("y = ScatterND(x, i, u)", [5], x=activation(3, 5), i=ints(1), u=activation(5)),
    row("y = ScatterND(x, i, u)", [], x=activation(3, 5), i=index(4, 2, below=3), u=activation(4)),
    row("y = OneHot(i, n, v)", [4], i=index("N", 4, below=6), n=number(6), v=ints(0, 1)),
    row("y = OneHot<axis=1>(i, n, v)", [4], i=index("N", 4, below=6), n=number(6), v=ints(0, 1)),
    row("y = Trilu(x)", [2], x=activation(2, 3, 5), opsets=(14,)),
    row("y = Trilu<upper=0>(x, k)", [2], x=activation(2, 5, 5), k=number(1)),
]  # fmt: skip

REPEAT = [
    row("y = Expand(x, s)", [2], x=activation(2, 1), s=ints(2, 3)),
    row("y = Expand(x, s)", [3], x=activation(3), s=ints(2, 3)),
    row("y = Expand(x, s)", [2, 3], x=activation(2, 3), s=ints(1, 1)),
    row("f = Shape(x)\ny = Expand(w, f)", [3, 3], x=activation("N", 3), w=weight(1, 3)),
    row("e = Expand(x, s)\ny = Add(e, z)", [2, 3], x=activation(2, 1), z=activation(2, 3), s=ints(2, 3)),
    row("f = Shape(x)\nc = ConstantOfShape<value=float[1] {0.5}>(f)\ny = Add(c, x)", [3], x=activation("N", 3)),
    row("f = Shape(x)\ny = ConstantOfShape<value=float[1] {0.5}>(f)", [3], x=activation("N", 3)),
    row("y = Tile(x, r)", [2, 3], x=activation(2, 3), r=ints(1, 4)),
    row("y = Tile(x, r)", [2, 3], x=activation(2, 3, 1), r=ints(2, 1, 7)),
    row("y = Tile(x, r)", [3], x=activation("N", 3), r=ints(1, 2)),
]  # fmt: skip

ROWS = [*RESHAPE, *JOIN, *SPLIT, *SLICE, *SELECT, *INDEX, *REPEAT]
