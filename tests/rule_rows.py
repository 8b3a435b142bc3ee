"""Rows for operators that work unit by unit, contract, convolve, reduce or normalise."""

from __future__ import annotations

from tests.rule_graphs import (
    Operand,
    Row,
    activation,
    index,
    ints,
    mask,
    number,
    positive,
    real,
    row,
    weight,
)

UNARY = [
    *[
        "Abs",
        "Neg",
        "Identity",
        "Relu",
        "LeakyRelu",
        "Tanh",
        "Sin",
        "Tan",
        "Asin",
        "Atan",
        "Sinh",
        "Asinh",
        "Atanh",
        "Erf",
        "Elu",
        "Selu",
        "Celu",
        "Sqrt",
        "Round",
        "Floor",
        "Ceil",
    ],
    *[
        "Sign",
        "Shrink",
        "ThresholdedRelu",
        "Sigmoid",
        "HardSigmoid",
        "Softplus",
        "Softsign",
        "Exp",
        "Log",
        "Cos",
        "Cosh",
        "Acos",
        "Reciprocal",
        "HardSwish",
    ],
]
NEW_UNARY = {"Gelu": 20, "Mish": 18, "Swish": 24, "Dropout": 13, "IsNaN": 13, "IsInf": 10}
COMPARE = ["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"]


# undefined or infinite somewhere: random new units may not reach them
SINGULAR = {"Asin", "Acos", "Atanh", "Acosh", "Sqrt", "Log", "Reciprocal"}


def _unary(operator: str, opset: int = 20, operand: Operand | None = None) -> Row:
    only = {"net2net": (3, 5)} if operator in SINGULAR else {}
    return row(f"y = {operator}(x)", [3, 5], x=operand or positive(3, 5), opsets=(opset,), only=only)


ELEMENTWISE = [
    *[_unary(operator) for operator in UNARY],
    *[_unary(operator, opset) for operator, opset in NEW_UNARY.items()],
    _unary("Acosh", operand=activation(3, 5, low=1.5, high=3.0)),
    _unary("Not", operand=mask(3, 5)),
    row("k = Cast<to=7>(x)\ny = BitwiseNot(k)", [3, 5], x=activation(3, 5, high=9)),
    row("y = Clip(x, low, high)", [3, 5], x=activation(3, 5), low=real(-0.3), high=real(0.4), opsets=(11, 20)),
    row("y = Clip<min=-0.3, max=0.4>(x)", [3, 5], x=activation(3, 5), opsets=(9,)),
    row("y = Clip(x,, high)", [3, 5], x=activation("N", 3, 5), high=real(0.4)),
    row("y = Cast<to=10>(x)", [3, 5], x=activation(3, 5)),
    row("y = Cast<to=6>(x)", [3, 5], x=activation(3, 5, high=9)),
    row("y = CastLike(x, like)", [3, 5], x=activation(3, 5), like=real(0)),
    # broadcasting in every position
    row("y = Add(a, b)", [3, 5], a=activation(3, 5), b=activation(3, 5), opsets=(9, 20)),
    row("y = Add(a, b)", [3, 5], a=activation(3, 5), b=activation(5)),
    row("y = Add(a, b)", [3, 5], a=activation(5), b=weight(3, 1)),
    row("y = Sub(a, b)", [3, 5], a=activation(3, 1), b=activation(1, 5)),
    row("y = Sub(a, b)", [3, 5, 7], a=activation(3, 1, 7), b=activation(5, 1)),
    row("y = Mul(a, b)", [3, 5, 7], a=activation(3, 1, 7), b=weight(5, 7)),
    row("y = Mul(a, b)", [3, 5], a=activation(3, 5), b=real(2.5)),
    row("y = Mul(a, b)", [3, 5], a=activation("N", 3, 1), b=activation("N", 1, 5)),
    row("y = Mul(a, a)", [3, 5], a=activation(3, 5)),
    row("y = Div(a, b)", [3, 5], a=activation(3, 5), b=positive(5), only={"net2net": (5,)}),
    row("y = Div(a, b)", [3, 5], a=activation(5), b=positive(3, 1), only={"net2net": (3,)}),
    row("y = Div(a, b)", [3, 5], a=real(2.0), b=positive(3, 5), only={"net2net": (3, 5)}),
    row("y = PRelu(a, b)", [2, 3, 5], a=activation(3, 5, 2), b=weight(5, 1)),
    row("y = Pow(a, b)", [3, 5], a=positive(3, 5), b=activation(5), only={"net2net": (3, 5)}),
    row("y = Pow(a, b)", [3, 5], a=positive(3, 5), b=real(2.0)),
    row("y = Mod<fmod=1>(a, b)", [3, 5], a=activation(3, 5), b=positive(3, 1),
        only={"net2net": (3, 5)}),
    row("y = Min(a, b, c)", [3, 5], a=activation(3, 5), b=activation(5), c=weight(3, 1)),
    row("y = Max(a, b)", [3, 5], a=activation(3, 5), b=real(0.0)),
    row("y = Sum(a, b, c)", [3, 5], a=activation(3, 5), b=activation(5), c=activation(3, 1)),
    row("y = Mean(a, b)", [3, 5], a=activation(3, 5), b=activation(3, 5)),
    *[row(f"y = {op}(a, b)", [3, 5], a=activation(3, 5), b=activation(1, 5)) for op in COMPARE],
    *[row(f"y = {op}(a, b)", [3, 5], a=mask(3, 5), b=mask(3, 1)) for op in ("And", "Or", "Xor")],
    *[
        row(f"y = {op}(a, b)", [3, 5], a=index(3, 5, below=9), b=index(5, below=9))
        for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")
    ],
    row(
        "k = Cast<to=12>(a)\nn = Cast<to=12>(b)\ny = BitShift<direction=\"LEFT\">(k, n)", [3, 5],
        a=index(3, 5, below=9), b=index(5, below=3), opsets=(11,),
    ),
    row("y = Where(c, a, b)", [3, 5, 7], c=mask(3, 1, 7), a=activation(5, 1), b=activation(3, 5, 7)),
    row("y = Where(c, a, b)", [3, 5], c=mask(3, 5), a=real(0.0), b=activation(3, 5)),
]  # fmt: skip

LINEAR = [
    row("y = Gemm(a, b)", [3, 5, 7], a=activation(3, 5), b=weight(5, 7), opsets=(11, 20)),
    row("y = Gemm<transB=1>(a, b, c)", [3, 5, 7], a=activation(3, 5), b=weight(7, 5), c=weight(7)),
    row("y = Gemm<transA=1>(a, b, c)", [3, 5, 7], a=activation(5, 3), b=weight(5, 7), c=weight(3, 1)),
    row("y = Gemm<alpha=2.0, beta=0.5>(a, b, c)", [3, 5, 7], a=activation(3, 5), b=weight(5, 7), c=weight(3, 7)),
    row("y = Gemm(a, b, c)", [3, 5, 7], a=activation(3, 5), b=activation(5, 7), c=weight(1)),
    row("y = Gemm(a, b, c)", [5, 7], a=activation("N", 5), b=weight(5, 7), c=real(0.5)),
    row("y = MatMul(a, b)", [3, 5, 7], a=activation(3, 5), b=weight(5, 7), opsets=(9, 20)),
    row("y = MatMul(a, b)", [3, 5, 7], a=activation(3, 5), b=activation(5, 7)),
    row("y = MatMul(a, b)", [5, 7], a=activation(5), b=weight(5, 7)),
    row("y = MatMul(a, b)", [3, 5], a=activation(3, 5), b=weight(5)),
    row("y = MatMul(a, b)", [5], a=activation(5), b=activation(5)),
    row("y = MatMul(a, b)", [2, 3, 5, 7], a=activation(2, 3, 5), b=activation(2, 5, 7)),
    row("y = MatMul(a, b)", [2, 3, 5, 7, 11], a=activation(2, 1, 3, 5), b=activation(11, 5, 7)),
    row("y = MatMul(a, b)", [3, 5, 7, 11], a=activation("N", 11, 3, 5), b=weight(1, 5, 7)),
    row("y = MatMul(a, a)", [5], a=activation(5, 5), only={"zero": (5,)}),
    row('y = Einsum<equation="ij,jk->ik">(a, b)', [3, 5, 7], a=activation(3, 5), b=weight(5, 7)),
    row('y = Einsum<equation="ij,kj->ki">(a, b)', [3, 5, 7], a=activation(3, 5), b=activation(7, 5)),
    row('y = Einsum<equation="ij,jk">(a, b)', [3, 5, 7], a=activation(3, 5), b=weight(5, 7)),
    row('y = Einsum<equation="bhqd,bhkd->bhqk">(a, b)', [2, 3, 5, 7], a=activation("N", 2, 3, 5),
        b=activation("N", 2, 7, 5)),
    row('y = Einsum<equation="...i,oi->...o">(a, b)', [2, 3, 5, 7], a=activation(2, 3, 5), b=weight(7, 5)),
    row('y = Einsum<equation="...ij,...jk->...ik">(a, b)', [2, 3, 5, 7, 11], a=activation(11, 2, 3, 5),
        b=activation(2, 5, 7)),
    row('y = Einsum<equation="ij->ji">(a)', [3, 5], a=activation(3, 5)),
    row('y = Einsum<equation="ij->i">(a)', [3, 5], a=activation(3, 5)),
    row('y = Einsum<equation="i,j->ij">(a, b)', [3, 5], a=activation(3), b=activation(5)),
    row('y = Einsum<equation="ij,ij->">(a, b)', [3, 5], a=activation(3, 5), b=weight(3, 5)),
    row('y = Einsum<equation="ii->i">(a)', [], a=activation(5, 5)),
    row('y = Einsum<equation="bi,ij,bj->b">(a, b, c)', [3, 5], a=activation("N", 3), b=weight(3, 5),
        c=activation("N", 5)),
    row('y = Einsum<equation="bi,oij,bj->bo">(a, b, c)', [2, 3, 5, 7], a=activation(2, 3), b=weight(7, 3, 5),
        c=activation(2, 5)),
    row('y = Einsum<equation="bi,ci,di->bcd">(a, b, c)', [2, 3, 5, 7], a=activation(2, 3), b=weight(5, 3),
        c=activation(7, 3)),
    row('y = Einsum<equation="ij,jk,kl,lm->im">(a, b, c, d)', [2, 3, 5, 7, 11], a=activation(2, 3), b=weight(3, 5),
        c=weight(5, 7), d=weight(7, 11)),
]  # fmt: skip

CONVOLUTION = [
    row("y = Conv(x, w)", [2, 3, 5], x=activation(2, 3, 6, 7), w=weight(5, 3, 4, 2), opsets=(9, 20)),
    row("y = Conv<strides=[2,1], pads=[1,0,1,0]>(x, w, b)", [3, 5], x=activation("N", 3, 7, 7),
        w=weight(5, 3, 3, 3), b=weight(5)),
    row("y = Conv(x, w)", [2, 3, 5], x=activation(2, 3, 9), w=weight(5, 3, 4)),
    row("y = Conv(x, w)", [3, 5], x=activation(1, 3, 6, 6), w=activation(5, 3, 2, 2)),
    # depthwise: the group grows; grouped: groups, and channels within a group, on both sides
    row("y = Conv<group=3>(x, w, b)", [3], x=activation("N", 3, 6, 6), w=weight(3, 1, 2, 2), b=weight(3)),
    row("y = Conv<group=3>(x, w)", [2, 3], x=activation("N", 3, 6, 6), w=weight(6, 1, 2, 2)),
    row("y = Conv<group=2>(x, w, b)", [2, 3, 5], x=activation("N", 6, 6, 6), w=weight(10, 3, 2, 2), b=weight(10)),
    row("y = ConvTranspose(x, w)", [2, 3, 5], x=activation(2, 3, 6, 7), w=weight(3, 5, 4, 2), opsets=(11, 20)),
    row("y = ConvTranspose<strides=[2,2], output_padding=[1,1]>(x, w, b)", [3, 5], x=activation("N", 3, 4, 4),
        w=weight(3, 5, 3, 3), b=weight(5)),
    row("y = ConvTranspose<group=2>(x, w, b)", [2, 3, 5], x=activation("N", 6, 4, 4), w=weight(6, 5, 2, 2),
        b=weight(10)),
    row("y = ConvTranspose<group=3>(x, w)", [3], x=activation("N", 3, 4, 4), w=weight(3, 1, 2, 2)),
    row("y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)", [2, 3], x=activation(2, 3, 6, 8), opsets=(8, 20)),
    row("y, i = MaxPool<kernel_shape=[2,2]>(x)\nz = Neg(y)", [3], x=activation("N", 3, 6, 8)),
    row("y = AveragePool<kernel_shape=[3], count_include_pad=1, pads=[1,1]>(x)", [2, 3], x=activation(2, 3, 7)),
    row("y = LpPool<kernel_shape=[2,2]>(x)", [2, 3], x=activation(2, 3, 6, 8)),
    *[row(f"y = {op}(x)", [2, 3, 6, 8], x=activation(2, 3, 6, 8), only={"net2net": (6, 8)})
      for op in ("GlobalAveragePool", "GlobalMaxPool", "MaxPool<kernel_shape=[6,8], strides=[6,8]>",
                 "AveragePool<kernel_shape=[6,8], auto_pad=\"VALID\">")],
    row("y = MaxPool<kernel_shape=[6], pads=[1, 1]>(x)", [2, 3], x=activation(2, 3, 6)),
    row("y = GlobalLpPool(x)", [2, 3], x=activation(2, 3, 6, 8)),
    row('s = Constant<value=float[4] {1, 1, 2, 2}>()\ny = Resize<mode="nearest">(x,, s)', [2, 3],
        x=activation(2, 3, 4, 5)),
    # scaled by 1.1, an axis of 4 keeps its size and still is interpolated
    row('s = Constant<value=float[3] {1, 1, 1.1}>()\ny = Resize<mode="linear">(x,, s)', [3], x=activation("N", 3, 4)),
    row('y = Resize<mode="linear">(x,,, s)', [2, 3, 5], x=activation(2, 3, 4, 5), s=ints(2, 3, 7, 5)),
    row('e = Constant<value=float[0] {}>()\ny = Resize<mode="nearest">(x, e, e, s)', [2, 3], x=activation(2, 3, 4, 5),
        s=ints(2, 3, 8, 10), opsets=(11,)),
    row('y = Resize<mode="nearest", axes=[2,3]>(x,,, s)', [3], x=activation("N", 3, 4, 5), s=ints(8, 10)),
    row('s = Constant<value=float[4] {1, 1, 2, 2}>()\ny = Upsample<mode="nearest">(x, s)', [2, 3],
        x=activation(2, 3, 4, 5), opsets=(9,)),
    row("y = DepthToSpace<blocksize=2>(x)", [3, 4, 5], x=activation("N", 12, 4, 5)),
    row('y = DepthToSpace<blocksize=2, mode="CRD">(x)', [3, 4, 5], x=activation("N", 12, 4, 5), opsets=(11, 20)),
    row("y = SpaceToDepth<blocksize=2>(x)", [2, 3, 3], x=activation("N", 3, 4, 6)),
]  # fmt: skip

# a sum takes both initialisations; a mean or an extreme grows by copies, a norm by zeros, a product not at all
REDUCED: dict[str, tuple[bool, str]] = {"Sum": (True, "")}
REDUCED |= dict.fromkeys(("Mean", "Max", "Min"), (True, "net2net"))
REDUCED |= dict.fromkeys(("L1", "L2", "SumSquare"), (True, "zero"))
REDUCED |= dict.fromkeys(("Prod", "LogSum", "LogSumExp"), (False, ""))


def _reduce(
    text: str, rest: list[int], size: int, kind: str, *, opsets: tuple[int, ...] = (20,), **other: Operand
) -> Row:
    grows, only = REDUCED[kind]
    return row(text, [*rest, *[size] * grows], opsets=opsets, only={only: (size,)} if only else {},
               x=positive(2, 3, 5), **other)  # fmt: skip


REDUCTION = [
    *[_reduce(f"y = Reduce{kind}<axes=[2]>(x)", [2, 3], 5, kind, opsets=(11,)) for kind in REDUCED],
    *[_reduce(f"y = Reduce{kind}<keepdims=0>(x, axes)", [2, 5], 3, kind, axes=ints(-2)) for kind in REDUCED],
    row("y = ReduceSum<keepdims=0>(x)", [2, 3], x=activation(2, 3)),
    row("y = ReduceMean(x)", [2, 3], x=activation(2, 3), only={"net2net": (2, 3)}),
    row("y = ReduceSum<noop_with_empty_axes=1>(x)", [2, 3], x=activation(2, 3)),
    row("y = ReduceSum<noop_with_empty_axes=1>(x, axes)", [2, 3], x=activation(2, 3), axes=ints()),
    row("y = ReduceSum<axes=[1], keepdims=0>(x)", [2, 3], x=activation(2, 3), opsets=(9,)),
    row("y = ReduceMean(x, axes)", [2, 3, 5, 7], x=activation(2, 3, 5, 7), axes=ints(2, -1),
        only={"net2net": (5, 7)}),
    *[
        case
        for kind in ("Softmax", "LogSoftmax", "Hardmax")
        for case in (
            row(f"y = {kind}(x)", [2, 3], x=activation(2, 3, 5), opsets=(13, 20)),
            row(f"y = {kind}<axis=1>(x)", [2, 5], x=activation(2, 3, 5)),
            row(f"y = {kind}(x)", [2], x=activation(2, 3, 5), opsets=(9, 11)),
            row(f"y = {kind}<axis=2>(x)", [2, 3], x=activation(2, 3, 5), opsets=(11,)),
        )
    ],
    row("y = ArgMax<axis=1>(x)", [2, 5], x=activation(2, 3, 5), opsets=(11, 20)),
    row("y = ArgMin<axis=-1, keepdims=0>(x)", [2, 3], x=activation(2, 3, 5)),
    row("y = ArgMax<keepdims=0>(x)", [3], x=activation(2, 3)),
    row("y, y2 = TopK<axis=1>(x, k)", [2, 5], x=activation(2, 7, 5), k=ints(3)),
    row("y, y2 = TopK(x, k)", [2, 7], x=activation(2, 7, 5), k=ints(3), opsets=(10, 20)),
    row("y = CumSum(x, at)", [2, 5], x=activation(2, 3, 5), at=number(1)),
    row("y = CumSum<reverse=1>(x, at)", [2, 3], x=activation(2, 3, 5), at=number(-1)),
]  # fmt: skip

NORMALISER = [
    row("y = BatchNormalization(x, s, b, m, v)", [2, 3, 5], x=activation(2, 3, 5), s=weight(3), b=weight(3),
        m=weight(3), v=weight(3, low=0.5), opsets=(9, 14, 20)),
    row("y = BatchNormalization(x, s, b, m, v)", [3], x=activation("N", 3), s=weight(3), b=weight(3), m=weight(3),
        v=weight(3, low=0.5)),
    row("y, y1, y2 = BatchNormalization<training_mode=1>(x, s, b, m, v)", [2, 3, 5], x=activation(2, 3, 5), s=weight(3),
        b=weight(3), m=weight(3), v=weight(3, low=0.5), only={"net2net": (2, 5)}),
    row("y = InstanceNormalization(x, s, b)", [2, 3, 4, 5], x=activation(2, 3, 4, 5), s=weight(3), b=weight(3),
        only={"net2net": (4, 5)}),
    row("r = Reshape(x, t)\ni = InstanceNormalization(r, s, b)\nq = Reshape(i, u)\ny = Mul(q, w)", [2, 3, 4],
        w=weight(6, 1), x=activation("N", 6, 4), t=ints(0, 3, -1), u=ints(0, 6, 4), s=weight(3), b=weight(3),
        only={"net2net": (2, 4)}),
    row("y = LayerNormalization(x, s)", [2, 3, 5], x=activation(2, 3, 5), s=weight(5), only={"net2net": (5,)}),
    row("y = LayerNormalization(x, s)", [2, 3, 5], x=activation(2, 3, 5), s=weight(2, 1, 5), only={"net2net": (5,)}),
    row("y = LayerNormalization<axis=1>(x, s, b)", [3, 5], x=activation("N", 3, 5), s=weight(3, 5), b=weight(5),
        only={"net2net": (3, 5)}),
    row("y = Concat<axis=-1>(a, b)", [3, 5], a=activation("N", 3), b=activation("N", 5), opsets=(9, 20)),
    row("c = Concat<axis=1>(a, b)\ny = LayerNormalization(c, s)", [3, 5], a=activation("N", 3), b=activation("N", 5),
        s=weight(8), only={"net2net": (3, 5)}),
    # a part that cannot grow keeps the rest of the mean from growing
    row("c = Pad(x, p)\ny = LayerNormalization(c, s)", [], x=activation("N", 3), p=ints(0, 0, 0, 2), s=weight(5)),
    row("c = Concat<axis=1>(x, z)\ny = ReduceMean<keepdims=0>(c, k)", [], x=activation("N", 3), z=activation("N", 1),
        k=ints(1)),
    row("y = RMSNormalization(x, s)", [2, 5], x=activation(2, 5), s=weight(5), only={"net2net": (5,)}, opsets=(23,)),
    row("y = GroupNormalization<num_groups=3>(x, s, b)", [2, 3, 4], x=activation("N", 6, 4), s=weight(6), b=weight(6),
        only={"net2net": (2, 4)}, opsets=(21,)),
    row("y = GroupNormalization<num_groups=3>(x, s, b)", [2, 3, 4], x=activation("N", 6, 4), s=weight(3), b=weight(3),
        only={"net2net": (2, 4)}, opsets=(18, 20)),
    row("y = GroupNormalization<num_groups=1>(x, s, b)", [4, 6], x=activation("N", 6, 4), s=weight(6), b=weight(6),
        only={"net2net": (4, 6)}, opsets=(21,)),
    row("y = MeanVarianceNormalization(x)", [2, 3, 4, 5], x=activation(2, 3, 4, 5), only={"net2net": (2, 4, 5)}),
    row("y = MeanVarianceNormalization<axes=[1]>(x)", [2, 3], x=activation(2, 3), only={"net2net": (3,)}),
    row("y = LpNormalization(x)", [2, 3], x=activation(2, 3), only={"zero": (3,)}),
    row("y = LpNormalization<axis=0, p=1>(x)", [2, 3], x=activation(2, 3), only={"zero": (2,)}),
]  # fmt: skip

_LSTM = {"x": activation(6, 2, 3), "w": weight(1, 20, 3), "r": weight(1, 20, 5), "b": weight(1, 40)}
_BOTH = {"x": activation(6, 2, 3), "w": weight(2, 20, 3), "r": weight(2, 20, 5), "b": weight(2, 40)}
_STATES = {"h": activation(1, 2, 5), "c": activation(1, 2, 5)}
_GRU = {"x": activation("T", "N", 3), "w": weight(1, 15, 3), "r": weight(1, 15, 5), "b": weight(1, 30)}
RECURRENT = [
    row("y = LSTM<hidden_size=5>(x, w, r)", [2, 3, 5], **{k: _LSTM[k] for k in "xwr"}, opsets=(9, 20)),
    row("y, y1, y2 = LSTM<hidden_size=5>(x, w, r, b)", [2, 3, 5], **_LSTM),
    row("y, y1, y2 = LSTM<hidden_size=5>(x, w, r, b,, h, c)", [2, 3, 5], **_LSTM, **_STATES),
    row("y, y1, y2 = LSTM<hidden_size=5>(x, w, r, b,, h, c, p)", [2, 3, 5], **_LSTM, **_STATES, p=weight(1, 15)),
    row('y, y1 = LSTM<hidden_size=5, direction="bidirectional">(x, w, r, b)', [2, 3, 5], **_BOTH),
    row('y = LSTM<hidden_size=5, direction="reverse">(x, w, r, b)', [2, 3, 5], **_LSTM),
    row("t = Transpose<perm=[1,0,2]>(v)\ny = LSTM<hidden_size=5>(t, w, r)", [3, 5], v=activation("N", "T", 3),
        w=weight(1, 20, 3), r=weight(1, 20, 5)),
    row("z, y1 = LSTM<hidden_size=5>(x, w, r, b)\ny = MatMul(z, o)", [2, 3, 5, 7], **_LSTM, o=weight(5, 7)),
    row("y, y1 = GRU<hidden_size=5>(x, w, r, b)", [3, 5], **_GRU, opsets=(9, 20)),
    row("y, y1 = GRU<hidden_size=5, linear_before_reset=1>(x, w, r, b)", [3, 5], **_GRU),
    row("y = GRU<hidden_size=5>(x, w, r, b,, h)", [2, 3, 5], **{**_GRU, "x": activation("T", 2, 3)}, h=weight(1, 2, 5)),
    row("y, y1 = RNN<hidden_size=5>(x, w, r, b)", [2, 3, 5], x=activation(4, 2, 3), w=weight(1, 5, 3),
        r=weight(1, 5, 5), b=weight(1, 10)),
    # the batch first
    row("y, y1, y2 = LSTM<hidden_size=5, layout=1>(x, w, r, b,, h, c)", [2, 3, 5],
        **{**_LSTM, "x": activation(2, 6, 3)}, h=activation(2, 1, 5), c=activation(2, 1, 5), opsets=(14, 20)),
    row('y, y1 = LSTM<hidden_size=5, layout=1, direction="bidirectional">(x, w, r, b)', [2, 3, 5],
        **{**_BOTH, "x": activation(2, 6, 3)}, opsets=(14,)),
    row("z, y1 = GRU<hidden_size=5, layout=1>(x, w, r, b)\ny = MatMul(z, o)", [3, 5, 7],
        **{**_GRU, "x": activation("N", "T", 3)}, o=weight(5, 7), opsets=(14,)),
    row("y, y1 = RNN<hidden_size=5, layout=1>(x, w, r)", [2, 3, 5], x=activation(2, 4, 3), w=weight(1, 5, 3),
        r=weight(1, 5, 5), opsets=(14,)),
]  # fmt: skip

ROWS = [*ELEMENTWISE, *LINEAR, *CONVOLUTION, *REDUCTION, *NORMALISER, *RECURRENT]
