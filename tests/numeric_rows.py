"""The table of `test_numeric`: operators on fixed operands, one row per variant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper

FLOATS = (np.float32, np.float64)


@dataclass(frozen=True)
class Row:
    """One operator on fixed operands.

    Attributes:
      label: what the test is called.
      op, inputs, attributes, outputs, opset: the node.
      ort: whether onnxruntime has the variant.
      reference: how near the reference implementation is in float64; 0 where it lacks or misses the variant.
      moves: operands that the derivative is taken in; None for all floats.
      nan: whether a NaN in operand 0 has to come out.
    """

    label: str
    op: str
    inputs: tuple[Any, ...]
    attributes: dict[str, Any]
    outputs: int = 1
    opset: int = 17
    ort: bool = True
    reference: float = 1e-12
    moves: tuple[int, ...] | None = None
    nan: bool = True

    def __str__(self) -> str:
        return self.label


def row(
    op, *inputs, label="", outputs=1, opset=17, ort=True, reference=1e-12, moves=None, nan=True, **attributes
):
    shown = " ".join([op, label] if label else [op])
    shown = f"{shown} v{opset}" if opset != 17 else shown
    return Row(shown, op, inputs, attributes, outputs, opset, ort, reference, moves, nan)


def f(*shape, low=-2.0, high=2.0, seed=0):
    """Floats without ties, away from the kinks at 0 and ±1."""
    drawn = np.random.default_rng([seed, *shape]).uniform(low, high, shape)
    near = np.abs(drawn - np.rint(drawn)) < 1e-3
    return np.where(near, drawn + 0.01, drawn).astype(np.float32)


def i(*numbers):
    return np.array(numbers[0] if len(numbers) == 1 else numbers, np.int64)


def b(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).random(shape) < 0.5


UNARY = [
    row(op, f(3, 4))
    for op in ["Relu", "LeakyRelu", "Elu", "Selu", "HardSigmoid", "Softplus", "Softsign", "Sigmoid"]
]
UNARY += [
    row(op, f(3, 4))
    for op in ["Tanh", "Exp", "Reciprocal", "Neg", "Abs", "Sign", "Sin", "Cos", "Tan", "Atan", "Sinh", "Cosh"]
]
UNARY += [
    row(op, f(3, 4)) for op in ["Asinh", "Floor", "Ceil", "Round", "Celu", "ThresholdedRelu", "Identity"]
]
UNARY += [row(op, f(3, 4), reference=1e-6) for op in ("Erf", "HardSwish")]  # constants, or all, in float32
UNARY += [row(op, f(3, 4, low=0.1)) for op in ("Log", "Sqrt")]
UNARY += [row(op, f(3, 4, low=-0.9, high=0.9)) for op in ("Asin", "Acos", "Atanh")]
UNARY += [row("Acosh", f(3, 4, low=1.2, high=3)), row("Mish", f(3, 4), opset=18)]
UNARY += [row(op, f(3, 4), nan=False) for op in ("IsNaN", "IsInf")]
UNARY += [
    row("Gelu", f(3, 4), label=kind, approximate=kind, opset=20, reference=1e-6) for kind in ("none", "tanh")
]
UNARY += [row("Swish", f(3, 4), alpha=1.5, opset=24, ort=False), row("Not", b(3, 4), nan=False)]
UNARY += [
    row("Elu", f(3, 4), label="alpha", alpha=0.5),
    row("Selu", f(3, 4), label="both", alpha=1.2, gamma=0.7),
]
UNARY += [
    row("Dropout", f(3, 4)),
    row("Dropout", f(3, 4), opset=10),
    row("BitwiseNot", i(1, 2), opset=18, nan=False),
]

BINARY = [row(op, f(2, 3, 4), f(3, 1, seed=1)) for op in ("Add", "Sub", "Mul", "Div", "PRelu")]
BINARY += [row(op, f(3, 4), f(4, seed=1), f(3, 1, seed=2)) for op in ("Min", "Max", "Sum", "Mean")]
COMPARED = ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
BINARY += [row(op, f(3, 4), f(3, 4, seed=1), nan=False) for op in COMPARED]
BINARY += [row(op, b(3, 4), b(4, seed=1), nan=False) for op in ("And", "Or", "Xor")]
BINARY += [
    row("Pow", f(3, 4, low=0.1), f(4, seed=1)),
    row("Pow", f(3, 4), i(0, 1, 2, 3), label="integer", nan=False),
]
BINARY += [
    row("Pow", f(3, 4), np.float32(3), label="negative base"),
    row("Mod", i(-7, 7, 5), i(3, -3, 3), nan=False),
]
BINARY += [
    row("Mod", f(3, 4), f(4, seed=1), fmod=1),
    row("Div", i(-7, 7, 9), i(2, -2, 3), nan=False, reference=0),
]
BINARY += [
    row("Clip", f(3, 4), np.float32(-0.5), np.float32(1.2)),
    row("Clip", f(3, 4), None, np.float32(0.5)),
]
BINARY += [
    row("Clip", f(3, 4), min=-0.5, max=1.25, opset=10),
    row("Where", b(3, 4), f(3, 4), f(4, seed=1), nan=False),
]
SHIFTED = (np.array([1, 2, 4], np.uint8), np.array([1, 2, 1], np.uint8))
BINARY += [row("BitShift", *SHIFTED, direction=way, label=way, nan=False) for way in ("LEFT", "RIGHT")]
BINARY += [
    row(op, i(5, 6), i(3, 12), opset=18, nan=False) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")
]
BINARY += [row("Cast", f(3, 4), to=TensorProto.INT64, nan=False), row("CastLike", i(1, 2), f(1), nan=False)]

LINEAR = [
    row("MatMul", f(2, 3, 4), f(4, 5)),
    row("MatMul", f(4), f(2, 4, 3), label="vector"),
    row("MatMul", i([[1, 2], [3, 4]]), i([[1], [2]]), label="integer", nan=False),
    row("Gemm", f(3, 4), f(4, 5), f(5)),
    row("Gemm", f(4, 3), f(5, 4), f(3, 1), transA=1, transB=1, alpha=0.5, beta=2.0, label="both"),
    row("Einsum", f(2, 3, 4), f(2, 4, 5), equation="bij, bjk -> bik"),
    row("Einsum", f(3, 4), f(4, 5), f(5), equation="ij,jk,k->i", label="three"),
    row("Einsum", f(3, 3), equation="ii->i", label="diagonal"),
]

X1, X2, X3 = f(2, 4, 9), f(2, 4, 9, 8), f(2, 2, 5, 6, 7)
CONVOLUTION = [
    row("Conv", X2, f(6, 4, 3, 2), f(6)),
    row("Conv", X2, f(6, 4, 1, 1), label="1x1"),
    row("Conv", X2, f(6, 2, 3, 3), strides=[2, 1], pads=[1, 0, 2, 1], dilations=[1, 2], group=2, label="all"),
    row("Conv", X2, f(8, 1, 3, 3), group=4, pads=[1] * 4, label="depthwise"),
    row("Conv", X1, f(3, 4, 3), dilations=[2], label="1d"),
    row("Conv", X3, f(3, 2, 2, 3, 2), strides=[2, 1, 2], label="3d"),
    *[
        row("Conv", X2, f(3, 4, 4, 3), auto_pad=m, strides=[2, 2], label=m)
        for m in ("SAME_UPPER", "SAME_LOWER", "VALID")
    ],
    row("ConvTranspose", X2, f(4, 3, 3, 2), f(3)),
    row(
        "ConvTranspose",
        X2,
        f(4, 3, 3, 3),
        strides=[2, 3],
        pads=[1, 0, 0, 2],
        output_padding=[1, 2],
        label="all",
    ),
    row("ConvTranspose", X2, f(4, 3, 3, 3), group=2, dilations=[2, 1], label="grouped", reference=0),
    row(
        "ConvTranspose",
        X2,
        f(4, 3, 3, 3),
        strides=[2, 2],
        output_shape=[18, 16],
        label="output_shape",
        reference=0,
    ),
    row("ConvTranspose", X2, f(4, 3, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER", label="SAME_UPPER"),
    row("ConvTranspose", X1, f(4, 3, 3), label="1d"),
]
POOLED = {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}
POOLING = [
    *[row(op, X2, **POOLED) for op in ("MaxPool", "AveragePool", "LpPool")],
    row("MaxPool", X2, **POOLED, outputs=2, label="indices", reference=0),
    row(
        "MaxPool",
        X2,
        kernel_shape=[3, 2],
        dilations=[2, 1],
        ceil_mode=1,
        strides=[2, 3],
        label="dilated ceil",
    ),
    row("MaxPool", X2, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER", label="same"),
    row("MaxPool", X1, kernel_shape=[3], label="1d"),
    row("AveragePool", X2, **POOLED, count_include_pad=1, label="with padding"),
    row("AveragePool", X2, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, label="ceil"),
    row("AveragePool", X2, kernel_shape=[2, 3], dilations=[2, 1], opset=19, label="dilated"),
    row("LpPool", X2, kernel_shape=[2, 2], p=3, opset=18, label="p3"),
    *[row(op, X2) for op in ("GlobalAveragePool", "GlobalMaxPool")],
    row("GlobalLpPool", X2, p=3, reference=0),
]
STATISTICS = (f(4), f(4, seed=1), f(4, seed=2), f(4, low=0.5, seed=3))
NORMALISE = [
    row("BatchNormalization", X2, *STATISTICS, epsilon=1e-3),
    row(
        "BatchNormalization",
        X2,
        *STATISTICS,
        training_mode=1,
        outputs=3,
        momentum=0.7,
        label="training",
        ort=False,
    ),
    row("InstanceNormalization", X2, f(4), f(4, seed=1)),
    row("GroupNormalization", X2, f(2), f(2, seed=1), num_groups=2, opset=18, reference=0),
    row("GroupNormalization", X2, f(4), f(4, seed=1), num_groups=2, opset=21, reference=1e-4),
    row("LayerNormalization", X2, f(9, 8), f(9, 8, seed=1), axis=2, outputs=3),
    row("LayerNormalization", X1, f(9), label="no bias"),
    row("RMSNormalization", X2, f(9, 8), axis=-2, opset=23),
    row(
        "LRN", f(4, 4, 3, 2), size=3, alpha=0.1, bias=2.0, reference=1e-6
    ),  # it takes as many channels as images
    row("LRN", f(4, 4, 3, 2), size=2, alpha=0.1, label="even", ort=False),
    row("LpNormalization", X2, axis=1, p=1, reference=0),
    row("LpNormalization", X2),
    row("MeanVarianceNormalization", X2, reference=0),
]
SOFTMAX = [
    row(op, f(2, 3, 4), axis=1, opset=opset, reference=1e-12 * (opset > 11), nan=op != "Hardmax")
    for op in ("Softmax", "LogSoftmax", "Hardmax")
    for opset in (11, 17)
]

STEPS, BATCH, SIZE, UNITS = 5, 3, 4, 2
LENGTHS = np.array([5, 1, 3], np.int32)


def recurrent(op, gates, d=1, **rest):
    """A recurrent layer with `d` directions and, where asked for, lengths, initial states and peepholes."""
    x = f(BATCH, STEPS, SIZE) if rest.get("layout") else f(STEPS, BATCH, SIZE)
    state = f(BATCH, d, UNITS) if rest.get("layout") else f(d, BATCH, UNITS)
    operands = [x, f(d, gates * UNITS, SIZE), f(d, gates * UNITS, UNITS), f(d, 2 * gates * UNITS)]
    given = rest.pop("given", ())
    if given:
        operands += [None if "no lengths" in given else LENGTHS, state]
        operands += [state * 0.5] if op == "LSTM" else []
        operands += [f(d, 3 * UNITS)] if "peepholes" in given else []
    direction = "bidirectional" if d == 2 else rest.pop("direction", "forward")
    return row(
        op, *operands, hidden_size=UNITS, direction=direction, outputs=3 if op == "LSTM" else 2, **rest
    )


RECURRENT = []
for op, gates in (("RNN", 1), ("GRU", 3), ("LSTM", 4)):
    RECURRENT += [
        recurrent(op, gates),
        recurrent(op, gates, d=2, given=("lengths",), label="both ways", reference=0),
        recurrent(op, gates, direction="reverse", given=("lengths",), label="reverse", reference=0),
        recurrent(op, gates, layout=1, given=("no lengths",), label="layout", ort=False),
        recurrent(op, gates, clip=0.4, label="clip", reference=0),
    ]
RECURRENT += [
    recurrent("GRU", 3, linear_before_reset=1, given=("no lengths",), label="linear before reset"),
    recurrent("LSTM", 4, given=("no lengths", "peepholes"), label="peepholes"),
    recurrent("LSTM", 4, input_forget=1, label="coupled", reference=0),
    recurrent(
        "LSTM", 4, activations=["HardSigmoid", "LeakyRelu", "Softsign"], activation_alpha=[0.3, 0.1],
        activation_beta=[0.4], label="activations", reference=0,
    ),
]  # fmt: skip

Q, K, V = f(2, 4, 3, 6), f(2, 2, 5, 6, seed=1), f(2, 2, 5, 7, seed=2)
PAST = (f(2, 2, 4, 6, seed=3), f(2, 2, 4, 7, seed=4))
HEADS = {"q_num_heads": 4, "kv_num_heads": 2}
FLAT = (f(2, 3, 24), f(2, 5, 12, seed=1), f(2, 5, 14, seed=2))
MASK = b(3, 5, seed=1) | np.eye(3, 5, dtype=bool)
POSITIONS, ANGLES = i([[0, 1, 2], [3, 1, 7]]), (f(2, 3, 2), f(2, 3, 2, seed=1))
ATTENTION = [
    row("Attention", Q, K, V, opset=23),
    row("Attention", *FLAT, **HEADS, scale=0.3, softcap=2.0, opset=23, label="flat", reference=1e-6),
    row("Attention", Q, K, V, MASK, is_causal=1, opset=23, label="boolean causal"),
    row("Attention", Q, K, V, f(2, 1, 3, 5), opset=23, label="float mask"),
    row("Attention", Q, K, V, f(3, 9), *PAST, is_causal=1, outputs=4, opset=23, label="past", ort=False),
    row("Attention", Q, K, V, None, None, None, i(3, 5), is_causal=1, opset=24, label="cache", ort=False),
    row("Attention", Q, K, V, qk_matmul_output_mode=3, outputs=4, opset=23, label="weights", ort=False),
    row("RotaryEmbedding", f(2, 3, 24), f(8, 3), f(8, 3, seed=1), POSITIONS, num_heads=4, opset=23),
    row("RotaryEmbedding", f(2, 4, 3, 6), *ANGLES, interleaved=1, rotary_embedding_dim=4, opset=23),
]

X = f(2, 3, 4)
MOVEMENT = [
    row("Reshape", X, i(0, -1)),
    row("Reshape", f(0, 3), i(3, 0), allowzero=1, label="allowzero", nan=False),
    *[row("Flatten", X, axis=axis, label=str(axis)) for axis in (0, 2, -1)],
    row("Transpose", X, perm=[2, 0, 1]),
    row("Transpose", X, label="reversed"),
    row("Squeeze", f(1, 3, 1), i([-1])),
    row("Squeeze", f(1, 3, 1), axes=[0], opset=11, reference=0),
    row("Unsqueeze", X, i(0, -1)),
    row("Unsqueeze", X, axes=[1, 3], opset=11, reference=0),
    row("Concat", X, f(2, 1, 4), axis=-2),
    row("Split", X, i(1, 2), axis=1, outputs=2),
    row("Split", X, axis=-1, outputs=2, label="equal"),
    row("Split", f(7, 2), num_outputs=3, outputs=3, opset=18),
    row("Split", X, split=[1, 2], axis=1, outputs=2, opset=11, reference=0),
    row("Slice", f(6, 7), i(-2, 0), i(-100, 100), i(0, 1), i(-2, 3)),
    row("Slice", X, starts=[0, -9], ends=[-1, 3], axes=[1, 2], opset=9, reference=0),
    row("Tile", X, i(1, 2, 3)),
    row("Expand", f(3, 1), i(2, 1, 4)),
    row("Pad", X, i(0, 1, -1, 2, 0, 1), np.float32(0.5), reference=0, nan=False),
    *[row("Pad", f(3, 4), i(1, 2, 2, 1), label=mode, mode=mode) for mode in ("reflect", "edge")],
    row("Pad", f(3, 4), i(1, 2, 2, 1), opset=19, mode="wrap"),
    row("Pad", X, i(1, 2), None, i([-1]), opset=18),
    row("Pad", X, pads=[0, 1, 0, 0, 2, 1], value=1.5, opset=10, reference=0),
    *[row("DepthToSpace", f(1, 8, 2, 3), blocksize=2, mode=m, label=m) for m in ("DCR", "CRD")],
    row("SpaceToDepth", f(1, 2, 4, 6), blocksize=2),
]
SCATTERED = (X, i([[[1, 1, 1, -1]]]), f(1, 1, 4))
INDEXING = [
    row("Gather", X, i([[0, -1], [2, 1]]), axis=1),
    row("GatherElements", X, i([[[0, 1, 2, 0]], [[-1, 0, 1, 2]]]), axis=1),
    row("GatherND", X, i([[0, 1], [1, -1]]), nan=False),
    row("GatherND", X, i([[[0]], [[2]]]), batch_dims=1, label="batch"),
    row("ScatterElements", X, i([[[2, 1, 2, 0]]]), f(1, 1, 4), axis=1),
    row("ScatterElements", *SCATTERED, axis=2, reduction="add", opset=18),
    row("ScatterElements", *SCATTERED, axis=2, reduction="max", opset=18, moves=(), nan=False),
    row("Scatter", X, i([[[2, 1, 2, 0]]]), f(1, 1, 4), axis=1, opset=10, reference=0),
    row("ScatterND", X, i([[0, 1], [1, -1]]), f(2, 4)),
    row("ScatterND", X, i([[0, 1], [0, 1]]), f(2, 4), reduction="mul", opset=18),
    row("TopK", X, i([2]), axis=1, outputs=2),
    row("TopK", X, i([2]), largest=0, outputs=2, label="smallest", nan=False),
    row("ArgMax", X, axis=1, nan=False),
    row("ArgMin", i([[1, 2, 1], [0, 0, 3]]), axis=1, keepdims=0, select_last_index=1, nan=False),
    row("Compress", X, np.array([True, False, True]), axis=1),
    row("CumSum", X, i(1)),
    row("CumSum", X, i(-1), exclusive=1, reverse=1, label="exclusive reverse", nan=False),
    *[row("Trilu", f(3, 4, low=1), upper=u, label=str(u)) for u in (0, 1)],
    row("OneHot", i([[1, -1], [5, 0]]), i([4]), f(2), axis=1, nan=False, reference=0),
    row("NonZero", np.array([[1, 0, 2], [0, 3, 0]], np.float32), moves=(), nan=False),
    row("EyeLike", f(3, 4), k=1, nan=False),
    row("Shape", X, nan=False, start=-2, label="part"),
    row("Size", X, nan=False),
    row("Range", np.float32(1), np.float32(3), np.float32(0.5), nan=False, moves=()),
    row("ConstantOfShape", i(2, 3), nan=False, value=numpy_helper.from_array(np.array([7], np.int64))),
    row("Unique", np.array([2, 1, 2], np.float32), moves=(), nan=False),
]
REDUCED = ["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSumExp", "SumSquare"]
REDUCTION = [row(f"Reduce{kind}", X, i(0, 2), keepdims=0, opset=18) for kind in REDUCED]
REDUCTION += [
    row(f"Reduce{kind}", X, label="all", **({"axes": [-1]} if kind != "Sum" else {})) for kind in REDUCED
]
REDUCTION += [
    row("ReduceLogSum", f(2, 3, low=0.1), axes=[1]),
    row("ReduceSum", X, noop_with_empty_axes=1, label="none"),
]


def sized(mode, coordinates, *, scales=None, sizes=None, label="", **rest):
    operands = (None, None, i(*sizes)) if sizes else (None, np.array(scales, np.float32))
    rest |= {"mode": mode, "coordinate_transformation_mode": coordinates}
    label = f"{mode} {coordinates} {label}".strip()
    return row("Resize", f(1, 2, 5, 4), *operands, label=label, opset=18, moves=(0,), reference=1e-5, **rest)


UP, DOWN, FACTORS = (1, 1, 2, 1.5), (1, 1, 0.6, 0.75), np.array([1, 1, 2, 3], np.float32)
RESIZE = [sized(mode, kind, sizes=(1, 2, 8, 3)) for mode in ("nearest", "linear", "cubic")
          for kind in ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")]  # fmt: skip
RESIZE += [
    sized("nearest", "asymmetric", scales=UP, nearest_mode=m, label=m)
    for m in ("floor", "ceil", "round_prefer_ceil")
]
RESIZE += [
    sized("cubic", "half_pixel", scales=DOWN, exclude_outside=1, cubic_coeff_a=-0.5, label="exclude_outside")
]
RESIZE += [
    sized(m, "half_pixel", scales=DOWN, antialias=1, label="antialias", ort=False)
    for m in ("linear", "cubic")
]
RESIZE += [
    row("Upsample", f(1, 2, 3, 4), FACTORS, opset=9, mode=mode, label=mode, reference=0, moves=(0,))
    for mode in ("nearest", "linear")
]

ROWS = UNARY + BINARY + LINEAR + CONVOLUTION + POOLING + NORMALISE + SOFTMAX + RECURRENT + ATTENTION
ROWS += MOVEMENT + INDEXING + REDUCTION + RESIZE
