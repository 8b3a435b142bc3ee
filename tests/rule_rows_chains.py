"""Rows of several nodes: where roles, demands and literals of different rules meet."""

from __future__ import annotations

from tests.rule_graphs import activation, ints, mask, number, positive, real, row, weight

_HEADS = """q = MatMul(x, wq)
k = MatMul(x, wk)
v = MatMul(x, wv)
q1 = Reshape(q, s)
k1 = Reshape(k, s)
v1 = Reshape(v, s)
q2 = Transpose<perm=[0,2,1,3]>(q1)
k2 = Transpose<perm=[0,2,3,1]>(k1)
v2 = Transpose<perm=[0,2,1,3]>(v1)
a = MatMul(q2, k2)
b = Div(a, root)
p = Softmax<axis=-1>(b)
c = MatMul(p, v2)
d = Transpose<perm=[0,2,1,3]>(c)
e = Reshape(d, u)
y = MatMul(e, wo)"""

_FLAT = {"q": activation("N", 4, 6), "k": activation("N", 5, 6), "v": activation("N", 5, 14)}
_APART = {"q": activation("N", 2, 4, 3), "k": activation("N", 2, 5, 3), "v": activation("N", 2, 5, 7)}
_GROUPS = {"q": activation("N", 6, 4, 3), "k": activation("N", 2, 5, 3), "v": activation("N", 2, 5, 7)}
ATTENTION = [
    row("y = Attention<q_num_heads=2, kv_num_heads=2>(q, k, v)", [2, 3, 7], **_FLAT, opsets=(23,)),
    row("y = Attention(q, k, v)", [2, 3, 7], **_APART, opsets=(23,)),
    row("y = Attention<scale=0.3, is_causal=1>(q, k, v)", [2, 3, 7], **_APART, opsets=(23,)),
    row("y = Attention(q, k, v)", [2, 3, 3, 7], **_GROUPS, opsets=(23,)),
    row("y = Attention(q, k, v, m)", [2, 3, 7], **_APART, m=mask(4, 5), opsets=(23,)),
    row("y = Attention(q, k, v, m)", [2, 3, 7], **_APART, m=weight(2, 4, 5), opsets=(23,)),
    row("y = Attention(q, k, v, m)", [2, 3, 7], **_APART, m=weight(1, 4, 5), opsets=(23,)),
]  # fmt: skip

ROWS = [
    *ATTENTION,
    # an average over a·b + c: a and b would have to grow by one multiple together
    row("h = MatMul(x, w)\nm = LayerNormalization<axis=-1>(h, g)\na, c = Split<axis=-1>(m, s)\n"
        "d = Reshape(a, t)\ny = MatMul(d, u)\nz = MatMul(c, v)", [5, 7, 11], x=activation("N", 5), w=weight(5, 8),
        g=weight(8), s=ints(6, 2), t=ints(0, 2, 3), u=weight(3, 7), v=weight(2, 11), opsets=(20,)),
    # scales of a resize that are a bias, too
    row('y = Resize<mode="nearest">(x,, s)\nz = Gemm<transB=1>(a, w, s)', [2, 3, 7], x=activation(7, 3, 2),
        s=real((1.0, 1.0, 2.0)), a=activation("N", 2), w=weight(3, 2), opsets=(20,)),
    # a weight divided by its own norm, or by itself: no row of it can start at zero
    row("n = ReduceSumSquare<axes=[1], keepdims=1>(a)\nu = Div(a, n)\n"
        "m = MatMul(x, a)\ny = MatMul(m, w)\nz = MatMul(x, u)",
        [2], x=activation("N", 3), a=weight(3, 5), w=weight(5, 2), opsets=(13,)),
    row("u = Div(a, a)\ny = MatMul(x, u)\nz = MatMul(x, a)", [5], x=activation("N", 3), a=weight(3, 5), opsets=(20,)),
    # one weight made of two; a weight norm written out
    row("v = MatMul(a, b)\ny = MatMul(x, v)", [3, 5, 7], x=activation("N", 3), a=weight(3, 5), b=weight(5, 7)),
    row("n = ReduceL2<keepdims=1>(v, k)\nd = Div(v, n)\nw = Mul(g, d)\ny = MatMul(x, w)", [3, 7], x=activation("N", 3),
        v=weight(3, 7), g=weight(1, 7), k=ints(0), only={"zero": (3,)}),
    # tied to its own transpose: one axis makes units that the same axis consumes; unlike an unrolled recurrence
    row("h = MatMul(x, w)\nt = Transpose(w)\ny = MatMul(h, t)", [], x=activation("N", 5), w=weight(5, 7)),
    row("h = MatMul(x, w)\nr = Relu(h)\ny = MatMul(r, w)", [5], x=activation("N", 5), w=weight(5, 5)),
    # a row of the recurrence is the first state, too, repeated as often as an input says; one that is repeated only
    row("a, b = Split<axis=1>(r, s)\nn = Shape<start=1, end=2>(x)\nc = Concat<axis=0>(k, n, m)\nh = Expand(a, c)\n"
        "y, y1 = RNN<hidden_size=6>(x, w, r,,, h)", [4], x=activation(2, "N", 4), w=weight(1, 6, 4), r=weight(1, 6, 6),
        s=ints(1, 5), k=ints(1), m=ints(6)),
    row("n = Shape<start=0, end=1>(x)\nc = Concat<axis=0>(n, k)\ne = Expand(w, c)\ny = MatMul(x, e)", [3, 5, 7],
        x=activation("N", 3, 5), w=weight(1, 5, 7), k=ints(5, 7)),
    # members of a sequence: one is summed over, and so asked for a share that another does not expect
    row("h = MatMul(x, w)\nq = SplitToSequence<axis=1>(h)\na = SequenceAt(q, i)\nb = SequenceAt(q, j)\n"
        "y = MatMul(a, u)\nz = ReduceSum<keepdims=0>(b, k)", [2, 5, 7], x=activation("N", 3, 2), w=weight(2, 5),
        i=number(0), j=number(1), u=weight(5, 7), k=ints(2), only={"zero": (5,)}),
    # a weight that meets itself: a share of it would count twice, and zeros would stay
    row('t = Transpose(w)\ny = Einsum<equation="ab,bc,cd->ad">(x, w, t)', [], x=activation("N", 5), w=weight(5, 7)),
    # queries and keys of one weight: a share cannot be given to one of them alone, and zeros in both would stay
    row("q = MatMul(x, w)\nk = MatMul(z, w)\nt = Transpose(k)\ny = MatMul(q, t)", [3], x=activation("N", 3),
        z=activation("N", 3), w=weight(3, 5)),
    row("p = MatMul(x, w)\nq = MatMul(z, w)\nm = Mul(p, q)\ns = Sigmoid(v)\ny = MatMul(m, s)", [3, 7],
        x=activation("N", 3), z=activation("N", 3), w=weight(3, 5), v=activation(5, 7)),
    # both operands through a sigmoid: neither can be zero; through a tanh: zero but no share
    row("a = Sigmoid(q)\nb = Sigmoid(k)\ny = MatMul(a, b)", [3, 7], q=activation(3, 5), k=activation(5, 7)),
    row("a = Tanh(q)\nb = Sigmoid(k)\ny = MatMul(a, b)", [3, 5, 7], q=activation(3, 5), k=activation(5, 7),
        only={"zero": (5,)}),
    # a ReLU has no slope where units are zero: they would stay so
    row("a = Relu(q)\nb = Sigmoid(k)\ny = MatMul(a, b)", [3, 5, 7], q=activation(3, 5), k=activation(5, 7),
        only={"net2net": (5,)}),
    row("a = Relu(q)\nb = Tanh(k)\ny = MatMul(a, b)", [3, 5, 7], q=activation(3, 5), k=activation(5, 7),
        only={"zero": (5,)}),
    row("a = Add(q, c)\nb = Sigmoid(k)\ny = MatMul(a, b)", [3, 5, 7], q=activation(3, 5), k=activation(5, 7),
        c=weight(5)),
    row("a = Add(q, c)\nb = Sigmoid(k)\ny = MatMul(a, b)", [3, 7], q=activation(3, 5), k=activation(5, 7),
        c=real(0.5)),
    # squared distances: zeros add nothing to them, and have no slope there
    row("d = Sub(q, k)\np = Pow(d, e)\ny = ReduceSum<keepdims=0>(p, i)", [3], q=activation("N", 3, 5),
        k=activation("N", 1, 5), e=real(2.0), i=ints(-1)),
    # functions that are undefined, or infinite, for some numbers: random new units may not reach them
    *[
        row(f"h = MatMul(x, v)\na = {text}\ny = MatMul(a, w)", [2, 5, 7], x=positive("N", 2), w=weight(7, 5),
            v=weight(2, 7, low=0.1, high=0.4), e=real(0.5), only={"net2net": (7,)})
        for text in (*(f"{name}(h)" for name in ("Log", "Sqrt", "Asin", "Acos", "Atanh")), "Pow(h, e)")
    ],
    # a vector divided by its own norm, repeated or not: the norm of zeros is added to it, and to no other vector;
    # where a divisor is repeated along one axis, it has units of its own along the others
    row("n = ReduceL2<keepdims=1>(q, i)\nm = Clip(n, e)\nr = Expand(m, s)\nd = Div(q, r)\ny = MatMul(d, k)", [3, 5, 7],
        q=activation("N", 3, 5), k=activation("N", 5, 7), i=ints(-1), e=real(1e-3), s=ints(1, 1, 5),
        only={"zero": (5,)}),
    row("n = ReduceL2<keepdims=1>(q, i)\nm = Clip(n, e)\nd = Div(q, m)\ny = MatMul(d, k)", [3, 5, 7],
        q=activation("N", 3, 5), k=activation("N", 5, 7), i=ints(-1), e=real(1e-3), only={"zero": (5,)}),
    row("n = ReduceL2<keepdims=1>(q, i)\nd = Div(q, n)\ny = MatMul(d, k)", [3, 5, 7],
        q=activation("N", 3, 5), k=activation("N", 5, 7), i=ints(-1), only={"zero": (5,), "net2net": (3,)}),
    # what keeps away from such numbers, whatever its operands are, takes random units
    *[
        row(f"h = MatMul(x, v)\n{text}\ny = MatMul(a, w)", [2, 5, 7], x=positive("N", 2), w=weight(7, 5),
            v=weight(2, 7), e=real(0.5), f=real(1.5))
        for text in (
            "b = Exp(h)\nc = Add(b, e)\na = Log(c)", "b = Mul(h, h)\nc = Add(e, b)\na = Sqrt(c)",
            "b = Tanh(h)\nc = Add(b, f)\na = Reciprocal(c)", "b = Sigmoid(h)\nc = Max(b, e)\na = Div(h, c)",
            "b = Abs(h)\nc = Clip(b, e)\na = Pow(c, e)", "b = Softsign(h)\nc = Mul(b, e)\nd = Clip(c,, e)\ng = Neg(e)\n"
            "i = Clip(d, g)\nj = Clip(i, g, e)\na = Asin(j)",
        )
    ],
    # queries under an RMS norm of their own: heads
    row("s = Mul(x, x)\nm = ReduceMean<keepdims=1>(s, k)\nc = Add(m, e)\nr = Sqrt(c)\nd = Div(x, r)\ny = MatMul(d, w)",
        [2, 3, 5, 7], x=activation("N", 3, 2, 5), w=weight(3, 5, 7), k=ints(-1), e=real(1e-5), only={"net2net": (5,)}),
    row("r = Expand(n, s)\ny = Div(q, r)", [3, 5], q=activation("N", 3, 5), n=positive("N", 3, 1), s=ints(1, 1, 5),
        only={"net2net": (3,)}),
    row("r = Expand(n, s)\ny = Div(q, r)", [3, 5], q=activation("N", 3, 5), n=positive("N", 3, 1), s=ints(5),
        only={"net2net": (3,)}),
    # a normaliser whose shift stands between the demand and the units of another axis
    row("n = BatchNormalization(x, s, b, m, v)\nk = Sigmoid(z)\ny = MatMul(n, k)", [2, 3, 7], x=activation(2, 3, 5),
        s=weight(3), b=weight(3), m=weight(3), v=weight(3, low=0.5), z=activation(5, 7)),
    # units that a normaliser scales and shifts can be made zero, or be scaled, there
    row("n = BatchNormalization(x, s, b, m, v)\nk = Sigmoid(z)\ny = MatMul(n, k)", [5, 7], x=activation("N", 5),
        s=weight(5), b=weight(5), m=weight(5), v=weight(5, low=0.5), z=activation(5, 7)),
    row("n = InstanceNormalization(x, s, b)\np = Transpose<perm=[0,2,1]>(n)\nk = Sigmoid(z)\ny = MatMul(p, k)",
        [2, 3, 5, 7], x=activation(2, 5, 3), s=weight(5), b=weight(5), z=activation(5, 7), only={"net2net": (3,)}),
    row("n = BatchNormalization(x, s, b, m, v)\nk = Sigmoid(z)\ny = MatMul(n, k)\nu = Mul(s, c)", [5, 7],
        x=activation("N", 5), s=weight(5), b=weight(5), m=weight(5), v=weight(5, low=0.5), z=activation(5, 7),
        c=activation("N", 5), only={"zero": (5,)}),
    # heads
    row(_HEADS, [2, 3, 3, 5, 7], x=activation("N", "T", 5), wq=weight(5, 6), wk=weight(5, 6), wv=weight(5, 6),
        wo=weight(6, 7), s=ints(0, 0, 2, 3), u=ints(0, 0, 6), root=real(1.7)),
    row("f = MatMul(x, w)\nq, k, v = Split<axis=2, num_outputs=3>(f)\nt = Transpose<perm=[0,2,1]>(k)\n"
        "a = MatMul(q, t)\np = Softmax<axis=-1>(a)\nc = MatMul(p, v)\ny = MatMul(c, o)", [4, 4, 5, 7],
        x=activation("N", "T", 5), w=weight(5, 12), o=weight(4, 7)),
    # RMS norm written out
    row("s = Mul(x, x)\nm = ReduceMean<keepdims=1>(s, k)\ne = Add(m, h)\nr = Sqrt(e)\nd = Div(x, r)\n"
        "y = Mul(d, g)", [5], x=activation("N", 5), k=ints(-1), h=real(1e-5), g=weight(5), only={"net2net": (5,)}),
    # a mean over copies: dueling
    row("m = ReduceMean<keepdims=1>(a, k)\nd = Sub(a, m)\ny = Add(d, v)", [5], a=activation("N", 5), k=ints(1),
        v=activation("N", 1), only={"net2net": (5,)}),
    # gates
    row("h = MatMul(x, w)\na, b = Split<axis=1, num_outputs=2>(h)\ns = Sigmoid(b)\nm = Mul(a, s)\ny = MatMul(m, o)",
        [3, 5, 7], x=activation("N", 3), w=weight(3, 10), o=weight(5, 7)),
    # residual stream with blocks, flattened into a head
    row("h = Conv(x, w)\nr = Relu(h)\nc = Conv<pads=[1,1,1,1]>(r, v)\ns = Add(h, c)\nf = Flatten(s)\ny = MatMul(f, o)",
        [3, 5, 7], x=activation("N", 3, 4, 4), w=weight(5, 3, 3, 3), v=weight(5, 5, 3, 3), o=weight(20, 7)),
    # a size that is used as a number
    row("f = Shape(x)\ni = Constant<value=int64 {1}>()\nn = Gather(f, i)\nd = Cast<to=1>(n)\nq = Sqrt(d)\n"
        "y = Div(x, q)", [5], x=activation("N", 5)),
    row("n = Size(x)\nd = Cast<to=1>(n)\nm = Div(x, d)\ny = Relu(m)", [3, 5], x=activation(3, 5)),
]  # fmt: skip
