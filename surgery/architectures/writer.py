"""Layers written as an ONNX graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from surgery.architectures.initialise import Initialiser
from surgery.architectures.layers import (
    Activation,
    Attention,
    Convolution,
    Dense,
    Flatten,
    Layer,
    Mean,
    Norm,
    Padding,
    Pool,
    Recurrent,
    Residual,
    Shape,
)
from surgery.arrays import Array
from surgery.builder import GraphBuilder

NOISE = ("noise_in", "noise_out")
"""What a noisy layer's noise is called: zero in a file, drawn anew by whoever trains the network."""
SPREAD = 0.5
"""σ₀ of factorised noise."""
NEXT = "_next"
"""The state that goes in as NAME comes out as NAME_next."""


class Writer:
    """Appends layers to a graph, one after the other.

    Attributes:
      graph: the graph in the making. x: what the next layer reads. shape: of one example of it.
      noisy: whether dense layers on vectors are noisy ones.
      states: the recurrent states that went in, with their names, and the values that shall come out.
    """

    def __init__(
        self, graph: GraphBuilder, start: Initialiser, x: ir.Value, shape: Shape, *, noisy: bool = False
    ) -> None:
        self.graph, self.start, self.x, self.shape, self.noisy = graph, start, x, shape, noisy
        self.states: list[tuple[str, ir.Value, int]] = []

    def add(self, layers: Sequence[Layer], prefix: str = "") -> None:
        """Append layers, which must be resolved for the shape that is there."""
        for layer in layers:
            self._layer(layer, prefix)

    def dense(self, name: str, width: int, gain: float = math.sqrt(2)) -> None:
        """Append `x Wᵀ + b` over the last axis."""
        fan_in = self.shape[-1]
        weight = self.start.weight(f"{name}.weight", (width, fan_in), gain=gain)
        bias = self.start.bias(f"{name}.bias", width, fan_in)
        if len(self.shape) == 1 and self.noisy:
            self.x = self._noisy(name, weight, bias)
        elif len(self.shape) == 1:
            self.x = self.graph.linear(self.x, name, weight, bias)
        else:
            turned = self.graph.op("Transpose", self.graph.parameter(f"{name}.weight", weight), perm=[1, 0])
            product = self.graph.op("MatMul", self.x, turned)
            self.x = self.graph.op("Add", product, self.graph.parameter(f"{name}.bias", bias))
        self.shape = (*self.shape[:-1], width)

    def _noisy(self, name: str, weight: Array, bias: Array) -> ir.Value:
        """`(μ + σ ∘ f(ε_out) f(ε_in)ᵀ) x + …`: a dense layer with factorised Gaussian noise.

        Fortunato et al. 2018, "Noisy Networks for Exploration", arXiv:1706.10295, §3: means start as the plain layer
        does, σ at σ₀/√fan-in. f(ε) is stored as it is applied; with zeros the layer is its mean.
        """
        graph, (width, fan_in) = self.graph, weight.shape
        spread = SPREAD / math.sqrt(fan_in)
        y = graph.op(
            "Gemm", self.x, graph.parameter(f"{name}.weight_mu", weight), graph.parameter(f"{name}.bias_mu", bias),
            transB=1,
        )  # fmt: skip
        sigma = np.full((width, fan_in), spread, np.float32), np.full(width, spread, np.float32)
        noise_in, noise_out = (
            graph.parameter(f"{name}.{end}", np.zeros(size, np.float32))
            for end, size in zip(NOISE, (fan_in, width), strict=True)
        )
        z = graph.op(
            "Gemm", graph.op("Mul", self.x, noise_in),
            graph.parameter(f"{name}.weight_sigma", sigma[0]), graph.parameter(f"{name}.bias_sigma", sigma[1]),
            transB=1,
        )  # fmt: skip
        return graph.op("Add", y, graph.op("Mul", z, noise_out))

    def _layer(self, layer: Layer, prefix: str) -> None:
        match layer:
            case Convolution():
                self._convolution(layer, f"{prefix}{layer.name}")
            case Dense(width=width, name=name):
                self.dense(f"{prefix}{name}", width)
            case Activation(kind=kind):
                self.x = _ACTIVATE.get(kind, _plain(kind))(self.graph, self.x)
            case Pool():
                self._pool(layer)
            case Flatten(order=order):
                x = self.graph.op("Transpose", self.x, perm=[0, 2, 3, 1]) if order == "hwc" else self.x
                self.x, self.shape = self.graph.op("Flatten", x, axis=1), (math.prod(self.shape),)
            case Mean():
                self._mean()
            case Norm(name=name):
                self._norm(f"{prefix}{name}")
            case Attention():
                self._attention(layer, f"{prefix}{layer.name}")
            case Recurrent():
                self._recurrent(layer, f"{prefix}{layer.name}")
            case Residual(body=body, name=name):
                before = self.x
                self.add(body, f"{prefix}{name}.")
                self.x = self.graph.op("Add", before, self.x)

    def _convolution(self, layer: Convolution, name: str) -> None:
        channels, fan_in = self.shape[0], self.shape[0] * math.prod(layer.kernel)
        weight = self.start.weight(f"{name}.weight", (layer.channels, channels, *layer.kernel))
        bias = self.start.bias(f"{name}.bias", layer.channels, fan_in)
        self.x = self.graph.op(
            "Conv", self.x,
            self.graph.parameter(f"{name}.weight", weight), self.graph.parameter(f"{name}.bias", bias),
            kernel_shape=list(layer.kernel), strides=list(layer.stride), pads=_numbers(layer.padding),
        )  # fmt: skip
        self.shape = (layer.channels, *self._slid(layer))

    def _slid(self, layer: Convolution | Pool) -> tuple[int, int]:
        top, left, bottom, right = _numbers(layer.padding)
        height = (self.shape[1] + top + bottom - layer.kernel[0]) // layer.stride[0] + 1
        return height, (self.shape[2] + left + right - layer.kernel[1]) // layer.stride[1] + 1

    def _pool(self, layer: Pool) -> None:
        self.x = self.graph.op(
            "MaxPool" if layer.kind == "max" else "AveragePool", self.x,
            kernel_shape=list(layer.kernel), strides=list(layer.stride), pads=_numbers(layer.padding),
        )  # fmt: skip
        self.shape = (self.shape[0], *self._slid(layer))

    def _mean(self) -> None:
        axes = [1] if len(self.shape) == 2 else [2, 3]
        self.x = self.graph.op("ReduceMean", self.x, self.graph.constant(axes), keepdims=0)
        self.shape = self.shape[1:] if len(self.shape) == 2 else self.shape[:1]

    def _norm(self, name: str) -> None:
        width = self.shape[-1]
        scale = self.graph.parameter(f"{name}.weight", np.ones(width, np.float32))
        shift = self.graph.parameter(f"{name}.bias", np.zeros(width, np.float32))
        self.x = self.graph.op("LayerNormalization", self.x, scale, shift, axis=-1, epsilon=1e-5)

    def _attention(self, layer: Attention, name: str) -> None:
        """softmax(Q Kᵀ / √d) V, for each head of size d."""
        count, heads, size = self.shape[0], layer.heads, layer.width // layer.heads
        x, shape, parts = self.x, self.shape, {}
        for part in ("query", "key", "value"):
            self.x, self.shape = x, shape
            self.dense(f"{name}.{part}", layer.width)
            apart = self.graph.op("Reshape", self.x, self.graph.constant([-1, count, heads, size]))
            parts[part] = self.graph.op(
                "Transpose", apart, perm=[0, 2, 3, 1] if part == "key" else [0, 2, 1, 3]
            )
        score = self.graph.op("MatMul", parts["query"], parts["key"])
        score = self.graph.op("Mul", score, self.graph.constant(1 / math.sqrt(size), "float32"))
        mixed = self.graph.op("MatMul", self.graph.op("Softmax", score, axis=-1), parts["value"])
        joined = self.graph.op("Transpose", mixed, perm=[0, 2, 1, 3])
        self.x = self.graph.op("Reshape", joined, self.graph.constant([-1, count, layer.width]))
        self.shape = (count, layer.width)
        self.dense(f"{name}.out", shape[-1])

    def _recurrent(self, layer: Recurrent, name: str) -> None:
        """One step: ONNX's operator over a sequence of length one."""
        gates, width, inputs = 4 if layer.kind == "lstm" else 3, layer.width, self.shape[-1]
        weights = [
            self.start.recurrent(f"{name}.weight_input", (gates * width, inputs), width),
            self.start.recurrent(f"{name}.weight_state", (gates * width, width), width),
            np.concatenate([self.start.bias(f"{name}.bias.{k}", gates * width, width) for k in range(2)]),
        ]
        labels = ("weight_input", "weight_state", "bias")
        parameters = [
            self.graph.parameter(f"{name}.{label}", weight[None])
            for label, weight in zip(labels, weights, strict=True)
        ]
        kinds = ("hidden", "cell") if layer.kind == "lstm" else ("hidden",)
        number = sum(kind.startswith("hidden") for kind, _, _ in self.states) + 1
        names = [f"{kind}{number}" if number > 1 else kind for kind in kinds]
        inside = [self._unsqueezed(self.graph.input(own, (width,))) for own in names]
        x = self._unsqueezed(self.x)
        own_form: dict[str, int] = {} if layer.kind == "lstm" else {"linear_before_reset": 1}
        outputs = self.graph.ops(
            layer.kind.upper(), x, *parameters, None, *inside,
            outputs=1 + len(kinds), hidden_size=width, **own_form,
        )  # fmt: skip
        after = [self.graph.op("Squeeze", value, self.graph.constant([0])) for value in outputs[1:]]
        self.states += [(own, value, width) for own, value in zip(names, after, strict=True)]
        # what comes out of the steps, not the state after the last of them: there may be more steps one day
        self.x = self.graph.op("Squeeze", outputs[0], self.graph.constant([0, 1]))
        self.shape = (width,)

    def _unsqueezed(self, value: ir.Value) -> ir.Value:
        return self.graph.op("Unsqueeze", value, self.graph.constant([0]))


def _numbers(padding: Padding) -> list[int]:
    assert not isinstance(padding, str), "layers are resolved before they are written"
    return list(padding)


def _plain(kind: str) -> Callable[[GraphBuilder, ir.Value], ir.Value]:
    return lambda graph, x: graph.op(kind, x)


_ACTIVATE: Mapping[str, Callable[[GraphBuilder, ir.Value], ir.Value]] = {
    "Silu": lambda graph, x: graph.op("Mul", x, graph.op("Sigmoid", x)),
}
