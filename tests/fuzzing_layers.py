"""Drawings of layers that mix: convolutions, pooling, normalisers, reductions."""

from __future__ import annotations

import numpy as np

from tests.fuzzing import Sketch, Unfit, words
from tests.fuzzing_operators import draws
from tests.fuzzing_weights import bias, fresh, weight

# ---- convolution ------------------------------------------------------------------------------------------------


def _groups(s: Sketch, channels: int) -> int:
    divisors = [d for d in range(1, channels + 1) if channels % d == 0]
    return int(s.choice([1, 1, channels, s.choice(divisors)]))


@draws("Conv", 5)
def conv(s: Sketch) -> None:
    x = s.pick(where=lambda a: 3 <= a.ndim <= 5)
    _, c, *space = s.shape(x)
    group = _groups(s, c)
    out = group * int(s.rng.integers(1, 4)) if group > 1 else s.width()
    kernel = [int(s.rng.integers(1, min(n, 3) + 1)) for n in space]
    more: dict[str, object] = {"group": group} if group > 1 or s.chance(0.3) else {}
    if s.chance(0.5):
        more["pads"] = [k // 2 for k in kernel] * 2
    if s.chance(0.3):
        more["strides"] = [2] * len(space)
    s.keep(
        s.op(
            "Conv", x, weight(s, out, c // group, *kernel), *([bias(s, out)] if s.chance(0.6) else []), **more
        )
    )


@draws("ConvTranspose", 1)
def conv_transpose(s: Sketch) -> None:
    x = s.pick(where=lambda a: 3 <= a.ndim <= 4)
    _, c, *space = s.shape(x)
    group = _groups(s, c)
    out = int(s.rng.integers(1, 4)) if group > 1 else s.width()
    kernel = [int(s.rng.integers(1, 4)) for _ in space]
    more: dict[str, object] = {"strides": [2] * len(space)} if s.chance(0.4) else {}
    b = [bias(s, out * group)] if s.chance(0.5) else []
    s.keep(s.op("ConvTranspose", x, weight(s, c, out, *kernel), *b, group=group, **more))


@draws("MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool", 2)
def pool(s: Sketch) -> None:
    x = s.pick(where=lambda a: 3 <= a.ndim <= 5)
    kind = s.choice(words("MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool"))
    if kind.startswith("Global"):
        y = s.op(kind, x)
        rest = list(range(2, s.rank(y)))
        s.keep(
            s.op("Squeeze", y, s.ints(*rest)) if s.chance(0.4) else s.op("Flatten", y) if s.chance(0.4) else y
        )
        return
    whole = s.chance(0.3)
    kernel = [n if whole else min(2, n) for n in s.shape(x)[2:]]
    s.keep(s.op(kind, x, kernel_shape=kernel, strides=kernel if s.chance(0.5) else [1] * len(kernel)))


@draws("DepthToSpace SpaceToDepth", 1)
def pixels(s: Sketch) -> None:
    x = s.pick(4)
    if s.chance(0.5) and s.shape(x)[1] % 4 == 0:
        s.keep(s.op("DepthToSpace", x, blocksize=2, mode=s.choice(["DCR", "CRD"])))
    else:
        s.keep(s.op("SpaceToDepth", x, blocksize=2))


@draws("Resize", 0.7)
def resize(s: Sketch) -> None:
    x = s.pick(where=lambda a: 3 <= a.ndim <= 4)
    shape = s.shape(x)
    if s.chance(0.4):
        sizes = [*shape[:2], *(int(s.choice([n, 2 * n])) for n in shape[2:])]
        if s.symbolic:
            raise Unfit("sizes of a symbolic batch")
        s.keep(s.op("Resize", x, None, None, s.ints(*sizes), mode=s.choice(["nearest", "linear"])))
        return
    scales = s.tensor(np.array([1.0, 1.0, *(s.choice([1.0, 2.0]) for _ in shape[2:])], np.float32), "scales")
    s.keep(s.op("Resize", x, None, scales, mode=s.choice(["nearest", "linear"])))


# ---- normalisers ------------------------------------------------------------------------------------------------


@draws("BatchNormalization", 1.5)
def batch_norm(s: Sketch) -> None:
    x = s.pick(where=lambda a: a.ndim >= 2)
    c = s.shape(x)[1]
    b, mean = (bias(s, c) for _ in range(2))
    scale = weight(s, c, positive=True)
    s.keep(s.op("BatchNormalization", x, scale, b, mean, fresh(s, [c], s.rng.uniform(0.5, 1.5, c), "var")))


@draws("InstanceNormalization GroupNormalization", 1.2)
def channel_norm(s: Sketch) -> None:
    x = s.pick(where=lambda a: 3 <= a.ndim <= 4)
    c = s.shape(x)[1]
    if s.chance(0.5) or s.opset < 18:
        s.keep(s.op("InstanceNormalization", x, weight(s, c, positive=True), bias(s, c)))
        return
    groups = int(s.choice([d for d in range(1, c + 1) if c % d == 0]))
    n = groups if s.opset < 21 else c
    s.keep(s.op("GroupNormalization", x, weight(s, n, positive=True), bias(s, n), num_groups=groups))


@draws("LayerNormalization RMSNormalization", 2)
def layer_norm(s: Sketch) -> None:
    x = s.pick(where=lambda a: a.ndim >= 2)
    if s.opset < 17:
        raise Unfit("no such operator yet")
    at = int(s.choice([-1, -1, -1, -2])) if s.rank(x) > 2 else -1
    shape = s.shape(x)[at:]
    if s.opset >= 23 and s.chance(0.5):
        s.keep(s.op("RMSNormalization", x, weight(s, *shape, positive=True), axis=at))
        return
    b = [bias(s, *shape)] if s.chance(0.6) else []
    s.keep(s.op("LayerNormalization", x, weight(s, *shape, positive=True), *b, axis=at))


@draws("MeanVarianceNormalization LpNormalization", 0.6)
def plain_norm(s: Sketch) -> None:
    x = s.pick(where=lambda a: a.ndim >= 2)
    if s.chance(0.5):
        axes = sorted({int(k) for k in s.rng.integers(int(s.symbolic), s.rank(x), 2)})
        s.keep(s.op("MeanVarianceNormalization", x, axes=axes))
    else:
        s.keep(s.op("LpNormalization", x, axis=int(s.rng.integers(s.rank(x))), p=int(s.choice([1, 2]))))


# ---- reductions -------------------------------------------------------------------------------------------------

REDUCTIONS = words("Sum Mean Max Min Prod L1 L2 SumSquare LogSum LogSumExp")


@draws(" ".join(f"Reduce{kind}" for kind in REDUCTIONS), 3)
def reduce(s: Sketch) -> None:
    x = s.pick(where=lambda a: a.ndim >= 1)
    kind = s.choice([*REDUCTIONS, "Sum", "Mean", "Mean", "Max"])
    drawn = s.rng.integers(0, s.rank(x), int(s.rng.integers(1, 3))).tolist()
    axes = sorted(set(drawn) - ({0} if s.chance(0.8) else set()))
    if kind == "LogSum":
        x = s.op("Sigmoid", x)
    signed = [k - s.rank(x) if s.chance(0.3) else k for k in axes]
    if signed:
        s.keep(s.reduce(f"Reduce{kind}", x, signed, s.chance(0.6)))


@draws("Softmax LogSoftmax Hardmax", 1.5)
def softmax(s: Sketch) -> None:
    x = s.pick(where=lambda a: a.ndim >= 2)
    s.keep(
        s.op(
            s.choice(words("Softmax Softmax LogSoftmax Hardmax")), x, axis=int(s.rng.integers(-1, s.rank(x)))
        )
    )


@draws("ArgMax ArgMin TopK CumSum", 0.8)
def ordered(s: Sketch) -> None:
    x = s.pick(where=lambda a: a.ndim >= 2)
    axis, kind = int(s.rng.integers(int(s.symbolic), s.rank(x))), s.choice(words("ArgMax ArgMin TopK CumSum"))
    if kind == "CumSum":
        s.keep(s.op(kind, x, s.index(axis), exclusive=int(s.chance(0.2))))
    elif kind == "TopK":
        found = s.node(kind, [x, s.ints(int(s.rng.integers(1, s.shape(x)[axis] + 1)))], 2, axis=axis)
        s.keep(found[0])
    else:
        s.keep(s.op("Cast", s.op(kind, x, axis=axis, keepdims=int(s.chance(0.5))), to=1))
