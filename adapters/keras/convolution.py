"""Convolutions and pooling of Keras as nodes of a graph, with its kernels (k…, in, out) turned in front of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from surgery.errors import Refused
from surgery_adapters.keras.activations import activate
from surgery_adapters.keras.config import Layer
from surgery_adapters.keras.layers import require
from surgery_adapters.keras.network import HINT, Build, Network, Value, Values

Arguments = Mapping[str, Any]


def _many(value: object, count: int) -> list[int]:
    return [int(n) for n in value] if isinstance(value, list) else [int(value)] * count  # type: ignore[call-overload]


def _first(net: Network, layer: Layer, x: Value) -> Value:
    """The channels behind the batch, as ONNX has them."""
    rank = net.rank(x)
    return x if _channels_first(layer) else net.transpose(x, [0, rank - 1, *range(1, rank - 1)])


def _last(net: Network, layer: Layer, x: Value) -> Value:
    rank = net.rank(x)
    return x if _channels_first(layer) else net.transpose(x, [0, *range(2, rank), 1])


def _channels_first(layer: Layer) -> bool:
    return bool(layer.config.get("data_format") == "channels_first")


def _pads(
    net: Network,
    layer: Layer,
    x: Value,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """Begin and end of every axis of (batch, channels, …); `same` as TensorFlow has it."""
    padding = layer.config.get("padding", "valid")
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    if padding == "valid":
        return [0] * (2 * len(reach))
    if padding == "causal":
        return [reach[0] - 1, 0]
    if padding != "same":
        raise Refused(f"there is no rule for '{layer.name}' with padding={padding}", hint=HINT)
    total = []
    for size, k, s in zip(net.shape(x)[2:], reach, strides, strict=True):
        if size is None and s > 1:
            raise Refused(f"the padding of '{layer.name}' depends on a size that is not fixed", hint=HINT)
        total.append(max((math.ceil((size or 0) / s) - 1) * s + k - (size or 0), 0))
    return [n // 2 for n in total] + [n - n // 2 for n in total]


def _convolved(net: Network, layer: Layer, x: Value, weight: Value, group: int) -> Value:
    """One convolution of (batch, channels, …); weight (out, in, k…)."""
    kernel = list(net.shape_of(weight))[2:]
    strides, dilation = (
        _many(layer.config.get(what, 1), len(kernel)) for what in ("strides", "dilation_rate")
    )
    pads = _pads(net, layer, x, kernel, strides, dilation)
    return net.op(
        "Conv", x, weight, kernel_shape=kernel, strides=strides, dilations=dilation, pads=pads, group=group
    )


def _finished(net: Network, layer: Layer, x: Value) -> Value:
    """The bias along the channels, Keras's axes, and the activation."""
    x = _last(net, layer, x)
    if layer.config.get("use_bias", True):
        bias = net.parameter(f"{layer.name}.bias")
        if _channels_first(layer):
            bias = net.op("Unsqueeze", bias, net.integers(range(1, net.rank(x) - 1)))
        x = net.op("Add", x, bias)
    return activate(net, x, layer.config.get("activation"), layer.name)


def _turned(net: Network, name: str) -> Value:
    """(k…, in, out) as (out, in, k…)."""
    rank = len(net.size(name))
    return net.op("Transpose", net.parameter(name), perm=[rank - 1, rank - 2, *range(rank - 2)])


def _convolution(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    weight = _turned(net, f"{layer.name}.kernel")
    y = _convolved(net, layer, _first(net, layer, inputs[0]), weight, int(layer.config.get("groups", 1)))
    return [_finished(net, layer, y)]


def _depthwise(net: Network, layer: Layer, x: Value, name: str) -> Value:
    """A kernel (k…, channels, multiplier) on every channel by itself."""
    *kernel, channels, multiplier = net.size(name)
    rank = len(kernel) + 2
    turned = net.op("Transpose", net.parameter(name), perm=[rank - 2, rank - 1, *range(rank - 2)])
    weight = net.op("Reshape", turned, net.integers([channels * multiplier, 1, *kernel]))
    return _convolved(net, layer, x, weight, channels)


def _depthwise_convolution(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    y = _depthwise(net, layer, _first(net, layer, inputs[0]), f"{layer.name}.kernel")
    return [_finished(net, layer, y)]


def _separable(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    y = _depthwise(net, layer, _first(net, layer, inputs[0]), f"{layer.name}.depthwise_kernel")
    ones = [1] * (len(net.size(f"{layer.name}.pointwise_kernel")) - 2)
    y = net.op("Conv", y, _turned(net, f"{layer.name}.pointwise_kernel"), kernel_shape=ones)
    return [_finished(net, layer, y)]


def _transposed(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    """A kernel (k…, out, in); the padding is that of the convolution whose gradient it is."""
    require(layer, "output_padding", None)
    name = f"{layer.name}.kernel"
    *kernel, _out, _in = net.size(name)
    rank = len(kernel) + 2
    strides, dilation = (
        _many(layer.config.get(what, 1), len(kernel)) for what in ("strides", "dilation_rate")
    )
    require(layer, "dilation_rate", 1, [1] * len(kernel))
    require(layer, "padding", "valid", "same")
    over = [k - s for k, s in zip(kernel, strides, strict=True)]
    total = [max(n, 0) if layer.config["padding"] == "same" else 0 for n in over]
    y = net.op(
        "ConvTranspose", _first(net, layer, inputs[0]),
        net.op("Transpose", net.parameter(name), perm=[rank - 1, rank - 2, *range(rank - 2)]),
        kernel_shape=kernel, strides=strides, dilations=dilation, output_padding=[max(-n, 0) for n in over],
        pads=[n // 2 for n in total] + [n - n // 2 for n in total],
    )  # fmt: skip
    return [_finished(net, layer, y)]


def _pooling(kind: str) -> Build:
    def build(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
        x = _first(net, layer, inputs[0])
        size = _many(layer.config["pool_size"], net.rank(x) - 2)
        strides = _many(layer.config.get("strides") or layer.config["pool_size"], len(size))
        pads = _pads(net, layer, x, size, strides, [1] * len(size))
        return [_last(net, layer, net.op(kind, x, kernel_shape=size, strides=strides, pads=pads))]

    return build


def _global(kind: str) -> Build:
    def build(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
        rank = net.rank(inputs[0])
        axes = range(2, rank) if _channels_first(layer) else range(1, rank - 1)
        keep = int(bool(layer.config.get("keepdims", False)))
        return [net.op(kind, inputs[0], net.integers(axes), keepdims=keep)]

    return build


def _padded(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    sides = [pair if isinstance(pair, list) else [pair, pair] for pair in _sides(layer, "padding")]
    around = [[0, 0], *sides] if _channels_first(layer) else [*sides, [0, 0]]
    pads = [0, *(a for a, _ in around), 0, *(b for _, b in around)]
    return [net.op("Pad", inputs[0], net.integers(pads))]


def _cropped(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    sides = [pair if isinstance(pair, list) else [pair, pair] for pair in _sides(layer, "cropping")]
    start = 2 if _channels_first(layer) else 1
    sizes = net.shape(inputs[0])[start : start + len(sides)]
    if None in sizes:
        raise Refused(f"'{layer.name}' crops an axis whose size is free", hint=HINT)
    ends = [(size or 0) - b for size, (_, b) in zip(sizes, sides, strict=True)]
    bounds = [[a for a, _ in sides], ends, list(range(start, start + len(sides)))]
    return [net.op("Slice", inputs[0], *map(net.integers, bounds))]


def _sides(layer: Layer, setting: str) -> list[Any]:
    """A pair for every axis; one axis has its pair alone."""
    found = layer.config[setting]
    return [found] if layer.kind.endswith("1D") else list(found)


_RANKS = ("1D", "2D", "3D")

LAYERS: Mapping[str, Build] = {
    **{f"Conv{rank}": _convolution for rank in _RANKS},
    **{f"Conv{rank}Transpose": _transposed for rank in _RANKS},
    **{f"DepthwiseConv{rank}": _depthwise_convolution for rank in _RANKS[:2]},
    **{f"SeparableConv{rank}": _separable for rank in _RANKS[:2]},
    **{f"AveragePooling{rank}": _pooling("AveragePool") for rank in _RANKS},
    **{f"MaxPooling{rank}": _pooling("MaxPool") for rank in _RANKS},
    **{f"GlobalAveragePooling{rank}": _global("ReduceMean") for rank in _RANKS},
    **{f"GlobalMaxPooling{rank}": _global("ReduceMax") for rank in _RANKS},
    **{f"ZeroPadding{rank}": _padded for rank in _RANKS},
    **{f"Cropping{rank}": _cropped for rank in _RANKS},
}
"""Class -> how it is written."""
