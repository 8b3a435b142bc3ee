"""Networks as graphs, from the tensors of a state dict: layers in a line each, parameters under their own names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import onnx_ir as ir

from surgery.adapters import SHARED
from surgery.builder import GraphBuilder
from surgery.errors import ArgumentError, CorruptFile, Refused, UnknownName
from surgery.tensors import shape_of

Tensors = Mapping[str, ir.TensorProtocol]
HINT = "say which code makes it: surgery convert FILE --module PKG:CALLABLE -o OUT.onnx"

Geometry = Sequence[tuple[int, int, int]]
"""Kernel, stride and padding of convolutions."""

NATURE: Geometry = ((8, 4, 0), (4, 2, 0), (3, 1, 0))
"""The Nature DQN's (Mnih et al., 2015)."""

ACTIVATIONS: Mapping[str, Callable[[GraphBuilder, ir.Value], ir.Value]] = {
    "elu": lambda graph, x: graph.op("Elu", x, alpha=1.0),
    "gelu": lambda graph, x: graph.op("Gelu", x),
    "identity": lambda graph, x: x,
    "leaky_relu": lambda graph, x: graph.op("LeakyRelu", x, alpha=0.01),
    "mish": lambda graph, x: graph.op("Mish", x),
    "relu": lambda graph, x: graph.op("Relu", x),
    "selu": lambda graph, x: graph.op("Selu", x),
    "sigmoid": lambda graph, x: graph.op("Sigmoid", x),
    "silu": lambda graph, x: graph.op("Mul", x, graph.op("Sigmoid", x)),
    "softplus": lambda graph, x: graph.op("Softplus", x),
    "tanh": lambda graph, x: graph.op("Tanh", x),
}
"""Activation -> how a graph writes it, with the settings that PyTorch's module has by default."""

_CLASSES = {
    "ELU": "elu", "GELU": "gelu", "Identity": "identity", "LeakyReLU": "leaky_relu", "Mish": "mish", "ReLU": "relu",
    "SELU": "selu", "Sigmoid": "sigmoid", "SiLU": "silu", "Softplus": "softplus", "Tanh": "tanh",
}  # fmt: skip


def activation_of(name: str) -> str:
    """The activation that a class or a person's word names.

    Raises:
      UnknownName: there is no such activation.
    """
    word = _CLASSES.get(name.rpartition(".")[2], name.lower().replace("-", "_"))
    word = {"swish": "silu", "leakyrelu": "leaky_relu", "none": "identity", "linear": "identity"}.get(
        word, word
    )
    if word not in ACTIVATIONS:
        raise UnknownName("activation", name, ACTIVATIONS)
    return word


GATES: Mapping[str, tuple[int, ...]] = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}
"""ONNX's gates (i, o, f, c; z, r, h) by their places among PyTorch's (i, f, g, o; r, z, n)."""


class Layers:
    """A graph in the making, and the tensors that its layers take.

    Attributes:
      graph: what is built.
      tensors: name -> tensor. Of a tensor with several names the first is the graph's.
    """

    def __init__(self, name: str, tensors: Tensors) -> None:
        self.graph = GraphBuilder(name)
        self.tensors = tensors
        self._first: dict[object, str] = {}
        for key, tensor in tensors.items():
            self._first.setdefault(_view(key, tensor), key)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def unread(self) -> list[str]:
        """The tensors that no layer has taken; of a tensor with several names the first."""
        read = self.graph.model().graph.initializers
        return [name for name in dict.fromkeys(self._first.values()) if name not in read]

    def modules(self, prefix: str) -> Iterator[str]:
        """The children of a module that have parameters, in the file's order."""
        seen = dict.fromkeys(
            key.removeprefix(prefix).partition(".")[0] for key in self.tensors if key.startswith(prefix)
        )
        return iter(seen)

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises: ArgumentError if there is no such tensor."""
        if name not in self.tensors:
            raise ArgumentError(f"the file has no tensor '{name}', which its kind of network has")
        return shape_of(self.tensors[name])

    def check_width(self, module: str, width: int) -> None:
        """Raises: CorruptFile: a layer is not as wide as the configuration of its file says."""
        if (found := self.shape(f"{module}.weight")[0]) != width:
            raise CorruptFile(f"'{module}' is {found} wide, the configuration says {width}")

    def parameter(self, name: str) -> ir.Value:
        """A tensor as a parameter of the graph, under its first name."""
        self.shape(name)
        first = self._first[_view(name, self.tensors[name])]
        return self.graph.parameter(first, self.tensors[first])

    def linear(self, x: ir.Value, module: str) -> ir.Value:
        """`x Wᵀ + b`, x (batch, in), W (out, in)."""
        bias = [self.parameter(f"{module}.bias")] if f"{module}.bias" in self else []
        return self.graph.op("Gemm", x, self.parameter(f"{module}.weight"), *bias, transB=1)

    def convolution(
        self, x: ir.Value, module: str, stride: int = 1, pads: Sequence[int] = (0, 0, 0, 0)
    ) -> ir.Value:
        """2-d convolution, x (batch, in, H, W), W (out, in, k, k)."""
        weight = self.shape(f"{module}.weight")
        bias = [self.parameter(f"{module}.bias")] if f"{module}.bias" in self else []
        return self.graph.op(
            "Conv", x, self.parameter(f"{module}.weight"), *bias,
            kernel_shape=list(weight[2:]), strides=[stride, stride], pads=list(pads),
        )  # fmt: skip

    def batch_norm(self, x: ir.Value, module: str) -> ir.Value:
        """Batch-norm with its running statistics, x (batch, in, …)."""
        names = ("weight", "bias", "running_mean", "running_var")
        parameters = [self.parameter(f"{module}.{name}") for name in names]
        return self.graph.op("BatchNormalization", x, *parameters, epsilon=1e-5)

    def layer_norm(self, x: ir.Value, module: str, epsilon: float = 1e-5) -> ir.Value:
        """Layer-norm over the last axis."""
        parameters = [self.parameter(f"{module}.{name}") for name in ("weight", "bias")]
        return self.graph.op("LayerNormalization", x, *parameters, axis=-1, epsilon=epsilon)

    def activate(self, x: ir.Value, kind: str) -> ir.Value:
        """An activation of `ACTIVATIONS`."""
        return ACTIVATIONS[kind](self.graph, x)

    def places(self, prefix: str) -> list[int]:
        """The numbers of the layers with weights in an `nn.Sequential`."""
        numbers = [int(name) for name in self.modules(prefix) if name.isdecimal()]
        return sorted(number for number in numbers if f"{prefix}{number}.weight" in self)

    def mlp(self, x: ir.Value, prefix: str, activation: str, *, last: bool) -> ir.Value:
        """A dense `nn.Sequential`: linear layers with one activation after each.

        Args:
          x: (batch, in).
          prefix: of the names, with the dot.
          activation: between the layers.
          last: whether there is one after the last layer too.

        Raises:
          Refused: it has other layers, whose order the names do not tell.
        """
        places = self.places(prefix)
        for place in places:
            if len(self.shape(f"{prefix}{place}.weight")) != 2:
                raise Refused(f"'{prefix}{place}' is not a linear layer: its shape does not say what it does")
        if any(later - earlier > 2 for earlier, later in pairwise(places)):
            raise Refused(
                f"'{prefix.rstrip('.')}' has layers without parameters that its names do not reveal"
            )
        for place in places:
            x = self.linear(x, f"{prefix}{place}")
            if place != places[-1] or last:
                x = self.activate(x, activation)
        return x

    def convolutions(self, x: ir.Value, prefix: str, geometry: Geometry) -> ir.Value:
        """An `nn.Sequential` of convolutions, each with a ReLU behind it, flattened; any number of channels.

        Args:
          x: (batch, in, H, W). prefix: of the names, with the dot.
          geometry: kernel, stride and padding of each.

        Raises:
          Refused: the weights are of other convolutions.
        """
        places = self.places(prefix)
        if len(places) != len(geometry):
            raise Refused(
                f"'{prefix}' has {len(places)} convolutions, not {len(geometry)}: this is no Nature CNN"
            )
        for place, (kernel, stride, padding) in zip(places, geometry, strict=True):
            shape = self.shape(f"{prefix}{place}.weight")
            if len(shape) != 4 or shape[2:] != (kernel, kernel):
                raise Refused(f"'{prefix}{place}' is no {kernel}×{kernel} convolution: this is no Nature CNN")
            x = self.activate(self.convolution(x, f"{prefix}{place}", stride, (padding,) * 4), "relu")
        return self.graph.op("Flatten", x, axis=1)

    def lstm(
        self, x: ir.Value, module: str, hidden: Sequence[ir.Value], cell: Sequence[ir.Value]
    ) -> tuple[ir.Value, list[ir.Value], list[ir.Value]]:
        """One step of `torch.nn.LSTM`, gates input, forget, cell, output.

        Args:
          x: (batch, in). module: whose parameters are `weight_ih_l0` …
          hidden, cell: the state of each layer, (batch, H).

        Returns:
          the output of the last layer, and the new hidden and cell states.
        """
        graph, hiddens, cells = self.graph, [], []
        front = graph.constant([0])
        x = graph.op("Unsqueeze", x, front)
        for layer, (h, c) in enumerate(zip(hidden, cell, strict=True)):
            operands = self._recurrent(module, layer, "LSTM", front)
            before = [graph.op("Unsqueeze", value, front) for value in (h, c)]
            size = self.shape(f"{module}.weight_hh_l{layer}")[1]
            _, *after = graph.ops("LSTM", x, *operands, None, *before, outputs=3, hidden_size=size)
            x = after[0]
            hiddens.append(graph.op("Squeeze", after[0], front))
            cells.append(graph.op("Squeeze", after[1], front))
        return hiddens[-1], hiddens, cells

    def gru(self, x: ir.Value, module: str, hidden: Sequence[ir.Value]) -> tuple[ir.Value, list[ir.Value]]:
        """One step of `torch.nn.GRU`, gates reset, update, new.

        Args:
          x: (batch, in). module: whose parameters are `weight_ih_l0` …
          hidden: the state of each layer, (batch, H).

        Returns:
          the output of the last layer, and the new states.
        """
        graph, after = self.graph, []
        front = graph.constant([0])
        x = graph.op("Unsqueeze", x, front)
        for layer, h in enumerate(hidden):
            operands = self._recurrent(module, layer, "GRU", front)
            size = self.shape(f"{module}.weight_hh_l{layer}")[1]
            before = graph.op("Unsqueeze", h, front)
            _, x = graph.ops(
                "GRU", x, *operands, None, before, outputs=2, hidden_size=size, linear_before_reset=1
            )
            after.append(graph.op("Squeeze", x, front))
        return after[-1], after

    def _recurrent(self, module: str, layer: int, kind: str, front: ir.Value) -> list[ir.Value]:
        """Both weights and the bias of a recurrent layer, as ONNX's operator takes them."""
        graph = self.graph
        weights = [
            graph.op("Unsqueeze", self._gates(f"{module}.weight_{side}_l{layer}", kind), front)
            for side in ("ih", "hh")
        ]
        sides = [self._gates(f"{module}.bias_{side}_l{layer}", kind) for side in ("ih", "hh")]
        return [*weights, graph.op("Unsqueeze", graph.op("Concat", *sides, axis=0), front)]

    def _gates(self, name: str, kind: str) -> ir.Value:
        """A tensor whose leading axis holds the gates in PyTorch's order, in ONNX's."""
        order = GATES[kind]
        parts = self.graph.ops(
            "Split", self.parameter(name), outputs=len(order), axis=0, num_outputs=len(order)
        )
        return self.graph.op("Concat", *(parts[place] for place in order), axis=0)


def _view(key: str, tensor: ir.TensorProtocol) -> object:
    return tensor.meta.get(SHARED, key)
