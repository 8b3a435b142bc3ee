"""PyTorch's own layers as graphs, by the class and the attributes that a whole module has in a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir

from surgery.builder import GraphBuilder
from surgery.errors import CorruptFile, Refused
from surgery_adapters.containers.module_tree import ModuleNode
from surgery_adapters.networks.layers import HINT, Layers

_NOTHING = ("Identity", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout")
"""What a network that is not being trained passes on as it is."""


def write(layers: Layers, x: ir.Value, module: ModuleNode, prefix: str) -> ir.Value:
    """Append a layer, or a sequence of layers, to a graph.

    Args:
      layers: the graph in the making, and the parameters. x: what the layer reads.
      module: the layer. prefix: of its parameters' names, with the dot.

    Raises:
      Refused: what a layer does is not known: its class is not PyTorch's, or has no rule here.
      CorruptFile: an attribute is missing or damaged.
    """
    if module.kind == "Sequential":
        for name, child in module.children.items():
            x = write(layers, x, child, f"{prefix}{name}.")
        return x
    if module.kind in _NOTHING:
        return x
    if (rule := _RULES.get(module.kind)) is None:
        raise Refused(
            f"the file does not say what '{prefix.rstrip('.') or module.kind}', a {module.kind}, computes",
            hint=HINT,
        )
    return rule(_Layer(layers, module, prefix), x)


def activates(module: ModuleNode) -> bool:
    """Whether what comes out of a sequence has been through an activation."""
    if module.kind == "Sequential":
        last = [child for child in module.children.values() if child.kind not in (*_NOTHING, "Flatten")]
        return bool(last) and activates(last[-1])
    return module.kind in _ACTIVATIONS


class _Layer:
    """A layer that is being written."""

    def __init__(self, layers: Layers, module: ModuleNode, prefix: str) -> None:
        self.layers, self.kind = layers, module.kind
        self.graph: GraphBuilder = layers.graph
        self._module, self._prefix = module, prefix

    @property
    def name(self) -> str:
        return self._prefix.rstrip(".")

    def parameter(self, leaf: str) -> ir.Value | None:
        """A parameter or buffer; None if the layer goes without."""
        full = f"{self._prefix}{leaf}"
        return self.layers.parameter(full) if full in self.layers else None

    def required(self, leaf: str) -> ir.Value:
        return self.layers.parameter(f"{self._prefix}{leaf}")

    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return self.layers.shape(f"{self._prefix}weight")

    def value(self, name: str, *kinds: type) -> Any:  # noqa: ANN401
        found = self._module.attributes.get(name)
        if not isinstance(found, kinds) or (isinstance(found, bool) and bool not in kinds):
            raise CorruptFile(f"'{self.name}' has no valid '{name}'")
        return found

    def number(self, name: str) -> float:
        return float(self.value(name, int, float))

    def numbers(self, name: str, count: int) -> list[int]:
        """One number per axis of the image, which may be given as one for all."""
        found = self.value(name, int, tuple, list)
        each = [found] * count if isinstance(found, int) else list(found)
        if len(each) != count or not all(type(n) is int and 0 <= n < 1 << 20 for n in each):
            raise CorruptFile(f"'{self.name}' has no valid '{name}'")
        return each

    def only(self, **wanted: object) -> None:
        """Refuse what has no rule."""
        for name, value in wanted.items():
            if self._module.attributes.get(name, value) != value:
                raise Refused(
                    f"'{self.name}', a {self._module.kind} with {name} {self._module.attributes[name]}, has no rule",
                    hint=HINT,
                )


def _linear(layer: _Layer, x: ir.Value) -> ir.Value:
    return layer.layers.linear(x, layer.name)


def _convolution(layer: _Layer, x: ir.Value) -> ir.Value:
    layer.only(padding_mode="zeros")
    kernel = layer.shape()[2:]
    axes = len(kernel)
    dilations = layer.numbers("dilation", axes)
    match layer.value("padding", int, tuple, list, str):
        case "same":  # PyTorch puts the odd one at the end
            total = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
            pads = [n // 2 for n in total] + [n - n // 2 for n in total]
        case "valid":
            pads = [0] * (2 * axes)
        case _:
            pads = layer.numbers("padding", axes) * 2
    weight, bias = layer.required("weight"), layer.parameter("bias")
    operands = [weight] if bias is None else [weight, bias]
    return layer.graph.op(
        "Conv", x, *operands, kernel_shape=list(kernel), strides=layer.numbers("stride", axes), pads=pads,
        dilations=dilations, group=layer.value("groups", int),
    )  # fmt: skip


def _batch_norm(layer: _Layer, x: ir.Value) -> ir.Value:
    layer.only(affine=True, track_running_stats=True)
    operands = [layer.required(leaf) for leaf in ("weight", "bias", "running_mean", "running_var")]
    return layer.graph.op("BatchNormalization", x, *operands, epsilon=layer.number("eps"))


def _layer_norm(layer: _Layer, x: ir.Value) -> ir.Value:
    layer.only(elementwise_affine=True)
    bias = layer.parameter("bias")
    operands = [layer.required("weight")] if bias is None else [layer.required("weight"), bias]
    return layer.graph.op(
        "LayerNormalization", x, *operands, axis=-len(layer.shape()), epsilon=layer.number("eps")
    )


def _pool(layer: _Layer, x: ir.Value) -> ir.Value:
    layer.only(ceil_mode=False, return_indices=False, divisor_override=None)
    kernel = layer.numbers("kernel_size", 2)
    attributes: dict[str, Any] = {
        "kernel_shape": kernel, "strides": layer.numbers("stride", 2), "pads": layer.numbers("padding", 2) * 2,
    }  # fmt: skip
    if layer.kind == "MaxPool2d":
        return layer.graph.op("MaxPool", x, dilations=layer.numbers("dilation", 2), **attributes)
    return layer.graph.op(
        "AveragePool", x, count_include_pad=int(layer.value("count_include_pad", bool)), **attributes
    )


def _flatten(layer: _Layer, x: ir.Value) -> ir.Value:
    layer.only(start_dim=1, end_dim=-1)
    return layer.graph.op("Flatten", x, axis=1)


def _softplus(layer: _Layer, x: ir.Value) -> ir.Value:
    layer.only(beta=1)
    return layer.graph.op("Softplus", x)


def _clip(low: str, high: str) -> Callable[[_Layer, ir.Value], ir.Value]:
    def rule(layer: _Layer, x: ir.Value) -> ir.Value:
        bounds = [layer.graph.constant(layer.number(name), "float32") for name in (low, high)]
        return layer.graph.op("Clip", x, *bounds)

    return rule


def _plain(operator: str) -> Callable[[_Layer, ir.Value], ir.Value]:
    return lambda layer, x: layer.graph.op(operator, x)


_ACTIVATIONS: Mapping[str, Callable[[_Layer, ir.Value], ir.Value]] = {
    "ELU": lambda layer, x: layer.graph.op("Elu", x, alpha=layer.number("alpha")),
    "GELU": lambda layer, x: layer.graph.op("Gelu", x, approximate=layer.value("approximate", str)),
    "Hardtanh": _clip("min_val", "max_val"),
    "LeakyReLU": lambda layer, x: layer.graph.op("LeakyRelu", x, alpha=layer.number("negative_slope")),
    "Mish": _plain("Mish"),
    "ReLU": _plain("Relu"),
    "ReLU6": _clip("min_val", "max_val"),
    "SELU": _plain("Selu"),
    "SiLU": lambda layer, x: layer.graph.op("Mul", x, layer.graph.op("Sigmoid", x)),
    "Sigmoid": _plain("Sigmoid"),
    "Softplus": _softplus,
    "Softsign": _plain("Softsign"),
    "Tanh": _plain("Tanh"),
}
_RULES: Mapping[str, Callable[[_Layer, ir.Value], ir.Value]] = {
    **_ACTIVATIONS,
    "AvgPool2d": _pool,
    "BatchNorm1d": _batch_norm,
    "BatchNorm2d": _batch_norm,
    "Conv1d": _convolution,
    "Conv2d": _convolution,
    "Flatten": _flatten,
    "LayerNorm": _layer_norm,
    "Linear": _linear,
    "MaxPool2d": _pool,
}
