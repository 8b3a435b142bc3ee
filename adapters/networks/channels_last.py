"""Layers as flax and TensorFlow hold them, as a graph: kernels (height, width, in, out) and (in, out).

Images are flattened with the channels innermost. Inside the graph they have the channels first, as ONNX wants them; the
parameters stay as the file has them, and are turned where they are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from surgery.builder import GraphBuilder
from surgery.errors import Refused
from surgery.tensors import shape_of

Tensors = Mapping[str, ir.TensorProtocol]
Padding = Literal["SAME", "VALID"]


@dataclass(frozen=True)
class Layer:
    """The names of a layer's parameters; a layer without a bias has None."""

    kernel: str
    bias: str | None = None


@dataclass(frozen=True)
class Image:
    """A value (batch, channels, height, width), and its size."""

    value: ir.Value
    height: int
    width: int


class ChannelsLast:
    """A graph in the making, and the tensors that its layers take."""

    def __init__(self, graph: GraphBuilder, tensors: Tensors) -> None:
        self.graph, self.tensors = graph, tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return shape_of(self.tensors[name])

    def parameter(self, name: str) -> ir.Value:
        return self.graph.parameter(name, self.tensors[name])

    def image(self, x: ir.Value, height: int, width: int) -> Image:
        """(batch, height, width, channels) as an image of the graph."""
        return Image(self.graph.op("Transpose", x, perm=[0, 3, 1, 2]), height, width)

    def convolution(self, x: Image, layer: Layer, stride: int, padding: Padding) -> Image:
        """2-d convolution with a kernel (height, width, in, out).

        Raises:
          Refused: the kernel has other axes.
        """
        kernel = self.shape(layer.kernel)
        if len(kernel) != 4:
            raise Refused(f"'{layer.kernel}' is {list(kernel)}, which is not the kernel of a 2-d convolution")
        pads, height, width = _window(x, kernel[:2], stride, padding)
        turned = self.graph.op("Transpose", self.parameter(layer.kernel), perm=[3, 2, 0, 1])
        bias = [] if layer.bias is None else [self.parameter(layer.bias)]
        value = self.graph.op(
            "Conv", x.value, turned, *bias, kernel_shape=list(kernel[:2]), strides=[stride, stride], pads=pads
        )
        return Image(value, height, width)

    def max_pool(self, x: Image, size: int, stride: int, padding: Padding) -> Image:
        """The largest of every window; what is padded never is."""
        pads, height, width = _window(x, (size, size), stride, padding)
        value = self.graph.op(
            "MaxPool", x.value, kernel_shape=[size, size], strides=[stride, stride], pads=pads
        )
        return Image(value, height, width)

    def relu(self, x: Image) -> Image:
        return Image(self.graph.op("Relu", x.value), x.height, x.width)

    def flatten(self, x: Image) -> ir.Value:
        """(batch, height · width · channels)"""
        return self.graph.op("Flatten", self.graph.op("Transpose", x.value, perm=[0, 2, 3, 1]), axis=1)

    def dense(self, x: ir.Value, layer: Layer) -> ir.Value:
        """`x K + b`, x (…, in), K (in, out).

        Raises:
          Refused: the kernel has other axes.
        """
        if len(self.shape(layer.kernel)) != 2:
            raise Refused(
                f"'{layer.kernel}' is {list(self.shape(layer.kernel))}, which is not the shape of a dense layer"
            )
        y = self.graph.op("MatMul", x, self.parameter(layer.kernel))
        return y if layer.bias is None else self.graph.op("Add", y, self.parameter(layer.bias))

    def layer_norm(self, x: ir.Value, path: str) -> ir.Value:
        """Over the last axis, with flax's names and its ε (flax/linen/normalization.py)."""
        scale, bias = (self.parameter(f"{path}.{leaf}") for leaf in ("scale", "bias"))
        return self.graph.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-6)


def _window(x: Image, kernel: tuple[int, ...], stride: int, padding: Padding) -> tuple[list[int], int, int]:
    """Pads as ONNX has them, and the size of what comes out (Dumoulin and Visin, 2016, for TensorFlow's SAME)."""
    before, after, sizes = [], [], []
    for size, width in zip((x.height, x.width), kernel, strict=True):
        out = -(-size // stride) if padding == "SAME" else (size - width) // stride + 1
        total = max((out - 1) * stride + width - size, 0)
        before.append(total // 2)
        after.append(total - total // 2)
        sizes.append(out)
    return [*before, *after], sizes[0], sizes[1]
