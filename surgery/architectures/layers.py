"""Networks as trees of layers: what a name stands for, and what is recognised in a graph.

    Nature's first layer     Convolution(32, (8, 8), (4, 4)), Activation("Relu")
    a residual block         Residual((Activation("Relu"), Convolution(16, (3, 3), padding="same"), …))

Two layers are equal if they are the same layer of two networks; names do not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from surgery.errors import ArgumentError, shape_text

Pair = tuple[int, int]
Pads = tuple[int, int, int, int]
"""Rows and columns added at the top, the left, the bottom and the right."""
Padding = Literal["valid", "same"] | Pads
Shape = tuple[int, ...]
"""Of one example: (channels, height, width), (entities, features) or (features,)."""
Order = Literal["chw", "hwc"]


@dataclass(frozen=True, slots=True)
class Convolution:
    """2-d convolution with bias; TensorFlow's "same" padding depends on the image (Dumoulin and Visin, 2016)."""

    channels: int
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Padding = "valid"
    name: str = field(default="", compare=False)

    def __str__(self) -> str:
        stride = "" if self.stride == (1, 1) else f"/{self.stride[0]}"
        return f"conv {self.channels} {self.kernel[0]}×{self.kernel[1]}{stride}"


@dataclass(frozen=True, slots=True)
class Dense:
    """`x Wᵀ + b` of the last axis."""

    width: int
    name: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"dense {self.width}"


@dataclass(frozen=True, slots=True)
class Activation:
    """A function of every number by itself, by its ONNX operator (`Silu` stands for x · sigmoid(x))."""

    kind: str

    def __str__(self) -> str:
        return self.kind.lower()


@dataclass(frozen=True, slots=True)
class Pool:
    """Pooling of every channel by itself; padding does not count in a maximum or a mean."""

    kind: Literal["max", "mean"]
    kernel: Pair
    stride: Pair
    padding: Padding = "valid"

    def __str__(self) -> str:
        return f"{self.kind}-pool {self.kernel[0]}×{self.kernel[1]}/{self.stride[0]}"


@dataclass(frozen=True, slots=True)
class Flatten:
    """An image as a vector, channels outermost ("chw", PyTorch) or innermost ("hwc", TensorFlow and JAX)."""

    order: Order = "chw"

    def __str__(self) -> str:
        return f"flatten {self.order}"


@dataclass(frozen=True, slots=True)
class Norm:
    """Layer normalisation over the last axis, or batch normalisation of every channel."""

    kind: Literal["layer", "batch"] = "layer"
    name: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.kind}-norm"


@dataclass(frozen=True, slots=True)
class Attention:
    """Self-attention among entities (Vaswani et al., 2017); width is that of all heads together."""

    width: int
    heads: int
    name: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"attention {self.heads}×{self.width // self.heads}"


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean over entities or over the image."""

    def __str__(self) -> str:
        return "mean"


@dataclass(frozen=True, slots=True)
class Recurrent:
    """An LSTM or GRU step; its state goes in and out of the network."""

    kind: Literal["lstm", "gru"]
    width: int
    name: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.kind} {self.width}"


@dataclass(frozen=True, slots=True)
class Residual:
    """`x + body(x)`; the names of the body's layers are relative to its own."""

    body: tuple[Layer, ...]
    name: str = field(default="", compare=False)

    def __str__(self) -> str:
        return (
            f"residual ({' · '.join(str(layer) for layer in self.body if not isinstance(layer, Activation))})"
        )


@dataclass(frozen=True, slots=True)
class Branches:
    """Several ways on from one value, until they meet again ("Add", "Concat", "dueling" …) or become outputs."""

    branches: tuple[tuple[Layer, ...], ...]
    join: str

    def __str__(self) -> str:
        inner = " | ".join(" · ".join(map(str, branch)) or "as it is" for branch in self.branches)
        return f"{self.join} ({inner})"


@dataclass(frozen=True, slots=True)
class Other:
    """Anything else, by its operators.

    Attributes:
      shapes: of its tensors.
    """

    operator: str
    shapes: tuple[Shape, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return self.operator


Layer = (
    Convolution
    | Dense
    | Activation
    | Pool
    | Flatten
    | Norm
    | Attention
    | Mean
    | Recurrent
    | Residual
    | Branches
    | Other
)
SCALING = Other("scaling by constants")
"""Arithmetic with constants, such as a division by 255."""
PLAIN = (Activation, Pool, Flatten, Mean, Branches, Other)
"""Layers without weights, and so without a name."""
ACTIVATIONS = ("Relu", "Tanh", "Elu", "Gelu", "Silu", "Sigmoid")


def passing(layer: Layer) -> bool:
    """Whether a layer says nothing of what a network can do: the order of units, one constant on all of them."""
    one = isinstance(layer, Other) and all(math.prod(shape) <= 1 for shape in layer.shapes)
    return isinstance(layer, Flatten) or (layer == SCALING and one)


def change(layers: Sequence[Layer], edit: Callable[[Layer], Layer]) -> tuple[Layer, ...]:
    """Every layer edited, those inside residual blocks first."""
    return tuple(
        edit(replace(layer, body=change(layer.body, edit)) if isinstance(layer, Residual) else layer)
        for layer in layers
    )


def walk(layers: Sequence[Layer], prefix: str = "") -> Iterator[tuple[str, Layer]]:
    """Every layer that is no residual block, with its full name, in order."""
    for layer in layers:
        own = "" if isinstance(layer, PLAIN) else layer.name
        if isinstance(layer, Residual):
            yield from walk(layer.body, f"{prefix}{own}.")
        else:
            yield f"{prefix}{own}" if own else "", layer


def resolved(layers: Sequence[Layer], shape: Shape) -> tuple[tuple[Layer, ...], Shape]:
    """The layers as they are for an input of a shape (paddings in numbers, needless flattens left out).

    Returns:
      The layers and the shape of what comes out.

    Raises:
      ArgumentError: a layer cannot take what comes in, such as an image that is smaller than a kernel.
    """
    out: list[Layer] = []
    for layer in layers:
        if isinstance(layer, Flatten) and len(shape) == 1:
            continue
        if isinstance(layer, Flatten) and len(shape) == 2:
            raise ArgumentError("a list of entities is not flattened", hint="take their mean")
        _check_rank(layer, shape, (1, 2, 3))
        done, shape = _resolved(layer, shape)
        out.append(done)
    return tuple(out), shape


def _resolved(layer: Layer, shape: Shape) -> tuple[Layer, Shape]:
    match layer:
        case Convolution(channels=channels):
            pads, size = _window(layer, shape)
            return replace(layer, padding=pads), (channels, *size)
        case Pool():
            pads, size = _window(layer, shape)
            return replace(layer, padding=pads), (shape[0], *size)
        case Flatten():
            return layer, (shape[0] * shape[1] * shape[2],)
        case Mean():
            _check_rank(layer, shape, (2, 3))
            return layer, shape[:1] if len(shape) == 3 else shape[1:]
        case Dense(width=width) | Attention(width=width):
            _check_rank(layer, shape, (1, 2) if isinstance(layer, Dense) else (2,))
            return layer, (*shape[:-1], shape[-1] if isinstance(layer, Attention) else width)
        case Recurrent(width=width):
            _check_rank(layer, shape, (1,))
            return layer, (width,)
        case Residual(body=body):
            inner, after = resolved(body, shape)
            if after != shape:
                raise ArgumentError(f"a residual branch turns {shape_text(shape)} into {shape_text(after)}")
            return replace(layer, body=inner), shape
    return layer, shape


def _check_rank(layer: Layer, shape: Shape, wanted: tuple[int, ...]) -> None:
    if len(shape) not in wanted:
        what = {1: "a vector", 2: "a list of entities", 3: "an image"}
        got = what.get(len(shape), "nothing")
        raise ArgumentError(
            f"'{layer}' takes {' or '.join(what[rank] for rank in wanted)}, not {got} of {shape_text(shape)}"
        )


def _window(layer: Convolution | Pool, shape: Shape) -> tuple[Pads, Pair]:
    """Pads in numbers, and the size of what comes out."""
    _check_rank(layer, shape, (3,))
    sides = []
    for axis, (size, kernel, stride) in enumerate(zip(shape[1:], layer.kernel, layer.stride, strict=True)):
        if layer.padding == "valid":
            before, after = 0, 0
        elif layer.padding == "same":
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            before, after = total // 2, total - total // 2
        else:
            before, after = layer.padding[axis], layer.padding[axis + 2]
        if size + before + after < kernel:
            raise ArgumentError(
                f"'{layer}' does not fit into an image of {shape[1]}×{shape[2]}",
                hint="choose an architecture for smaller images, such as minatar",
            )
        sides.append((before, after, (size + before + after - kernel) // stride + 1))
    (top, bottom, height), (left, right, width) = sides
    return (top, left, bottom, right), (height, width)
