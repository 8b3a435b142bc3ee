"""Layers of Keras as nodes of a graph: dense ones, normalisations, shapes; values keep Keras's own axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from surgery.errors import Refused
from surgery_adapters.keras.activations import activate
from surgery_adapters.keras.config import Layer
from surgery_adapters.keras.network import HINT, Build, Network, Value, Values

Arguments = Mapping[str, Any]


def require(layer: Layer, setting: str, *wanted: object) -> None:
    """Refuse a layer with a setting that there is no rule for."""
    found = layer.config.get(setting)
    if found not in wanted:
        raise Refused(f"there is no rule for '{layer.name}' ({layer.kind}) with {setting}={found}", hint=HINT)


def biased(net: Network, x: Value, layer: Layer) -> Value:
    """Its bias, if it has one, and its activation."""
    if layer.config.get("use_bias", True) and "bias" in layer.variables:
        x = net.op("Add", x, net.parameter(f"{layer.name}.bias"))
    return activate(net, x, layer.config.get("activation"), layer.name)


def _dense(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    if layer.config.get("quantization_config"):
        raise Refused(
            f"'{layer.name}' is quantised: its units are whole numbers, which no edit shares out",
            hint="operate on the model as it was before, and quantise the result",
        )
    if layer.config.get("lora_rank"):
        raise Refused(f"'{layer.name}' has an adapter of low rank", hint=HINT)
    return [biased(net, net.op("MatMul", inputs[0], net.parameter(f"{layer.name}.kernel")), layer)]


def _einsum_dense(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    equation = str(layer.config["equation"]).replace(" ", "")
    y = net.op("Einsum", inputs[0], net.parameter(f"{layer.name}.kernel"), equation=equation)
    if layer.config.get("bias_axes") is not None:
        y = net.op("Add", y, net.parameter(f"{layer.name}.bias"))
    return [activate(net, y, layer.config.get("activation"), layer.name)]


def _embedding(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    require(layer, "mask_zero", False)
    places = net.op("Cast", inputs[0], to=7)
    return [net.op("Gather", net.parameter(f"{layer.name}.embeddings"), places, axis=0)]


def _axis(layer: Layer, rank: int) -> int:
    axis = layer.config.get("axis", -1)
    [axis] = axis if isinstance(axis, list) and len(axis) == 1 else [axis]
    if not isinstance(axis, int):
        raise Refused(f"there is no rule for '{layer.name}' over the axes {axis}", hint=HINT)
    return axis % rank


def _normalised(net: Network, x: Value, axis: int, four: Sequence[Value], epsilon: float) -> Value:
    """`BatchNormalization` with the channels on any axis."""
    rank = net.rank(x)
    order = [0, axis, *(k for k in range(1, rank) if k != axis)]
    y = net.op("BatchNormalization", net.transpose(x, order), *four, epsilon=epsilon)
    return net.transpose(y, [int(k) for k in np.argsort(order)])


def filled(net: Network, name: str, size: int, number: float) -> Value:
    """A constant that a node needs and the file does not have."""
    return net.graph.parameter(name, np.full(size, number, np.float32))


def _batch_norm(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    size = net.size(f"{layer.name}.moving_mean")[0]
    four = [
        net.parameter(f"{layer.name}.{leaf}") if leaf in layer.variables
        else filled(net, f"{layer.name}.{leaf}.none", size, leaf == "gamma")
        for leaf in ("gamma", "beta", "moving_mean", "moving_variance")
    ]  # fmt: skip
    axis = _axis(layer, net.rank(inputs[0]))
    return [_normalised(net, inputs[0], axis, four, float(layer.config["epsilon"]))]


def _normalization(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    """`(x − mean)/max(σ, 1e-7)`; statistics that were given in code stand in the configuration."""
    require(layer, "invert", False)
    x = net.op("Cast", inputs[0], to=1)
    axis = _axis(layer, net.rank(x))
    if not layer.variables:
        mean, variance = (np.ravel(layer.config[what]).astype(np.float32) for what in ("mean", "variance"))
        deviation = np.maximum(np.sqrt(variance), np.float32(1e-7))
        rank = net.rank(x)
        shape = [-1 if k == axis else 1 for k in range(1, rank)]
        mean, deviation = (np.reshape(array, shape) for array in (mean, deviation))
        return [net.op("Div", net.op("Sub", x, net.number(mean.tolist())), net.number(deviation.tolist()))]
    two = [net.parameter(f"{layer.name}.{what}") for what in ("mean", "variance")]
    mean, variance = (net.tensors[f"{layer.name}.{what}"].numpy() for what in ("mean", "variance"))
    if variance.min(initial=1.0) < 1e-14 or mean.ndim != 1:
        raise Refused(f"the statistics of '{layer.name}' are of features that are constant", hint=HINT)
    one, zero = (
        filled(net, f"{layer.name}.{what}.none", mean.size, what == "gamma") for what in ("gamma", "beta")
    )
    return [_normalised(net, x, axis, [one, zero, *two], 0.0)]


def _layer_norm(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    require(layer, "rms_scaling", False, None)
    rank = net.rank(inputs[0])
    if _axis(layer, rank) != rank - 1:
        raise Refused(f"'{layer.name}' normalises over another axis than the last one", hint=HINT)
    size = net.shape(inputs[0])[-1] or 1
    two = [
        net.parameter(f"{layer.name}.{leaf}") if leaf in layer.variables
        else filled(net, f"{layer.name}.{leaf}.none", size, leaf == "gamma")
        for leaf in ("gamma", "beta")
    ]  # fmt: skip
    return [net.op("LayerNormalization", inputs[0], *two, axis=-1, epsilon=float(layer.config["epsilon"]))]


def _rescaling(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    x = net.op("Cast", inputs[0], to=1)
    scale, offset = layer.config["scale"], layer.config.get("offset", 0.0)
    x = net.op("Mul", x, net.number(scale))
    return [net.op("Add", x, net.number(offset)) if np.any(offset) else x]


def _flatten(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    rank = net.rank(inputs[0])
    x = inputs[0]
    if layer.config.get("data_format") == "channels_first" and rank > 2:
        x = net.transpose(x, [0, *range(2, rank), 1])
    return [x if rank == 2 else net.op("Flatten", x, axis=1)]


def reshaped(net: Network, layer: Layer, x: Value, sizes: Sequence[int]) -> Value:
    """(batch, …) of other sizes, one of which may be −1."""
    total = math.prod(size or 1 for size in net.shape(x)[1:])
    known = -math.prod(sizes)
    filled_in = [total // known if size == -1 else size for size in sizes]
    y = net.op("Reshape", x, net.integers([-1, *filled_in]))
    net.literals[layer.name] = str(y.name)
    return y


def _reshape(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    return [reshaped(net, layer, inputs[0], layer.config["target_shape"])]


def _permute(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    return [net.transpose(inputs[0], [0, *layer.config["dims"]])]


def _concatenate(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    return [net.op("Concat", *inputs, axis=layer.config.get("axis", -1))]


def _merged(kind: str) -> Build:
    def build(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
        x = inputs[0]
        for y in inputs[1:]:
            x = net.op(kind, x, y)
        return [x]

    return build


def _average(net: Network, layer: Layer, inputs: Values, arguments: Arguments) -> Values:
    [total] = _merged("Add")(net, layer, inputs, arguments)
    return [net.op("Mul", total, net.number(1.0 / len(inputs)))]


def _same(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    return inputs


def _activation(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    return [activate(net, inputs[0], layer.config.get("activation"), layer.name)]


def _relu(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    require(layer, "threshold", 0, 0.0, None)
    slope, top = layer.config.get("negative_slope") or 0.0, layer.config.get("max_value")
    if slope and top is not None:
        require(layer, "max_value", None)
    if slope:
        return [net.op("LeakyRelu", inputs[0], alpha=float(slope))]
    if top is not None:
        return [net.op("Clip", inputs[0], net.number(0.0), net.number(float(top)))]
    return [net.op("Relu", inputs[0])]


def _with(kind: str, **settings: str) -> Build:
    def build(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
        attributes = {ours: float(layer.config[theirs]) for ours, theirs in settings.items()}
        return [net.op(kind, inputs[0], **attributes)]

    return build


def _softmax(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    axis = layer.config.get("axis", -1)
    if len(inputs) > 1 or not isinstance(axis, int):
        raise Refused(
            f"there is no rule for '{layer.name}', a softmax over {axis} or under a mask", hint=HINT
        )
    return [net.op("Softmax", inputs[0], axis=axis)]


def _prelu(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    return [net.op("PRelu", inputs[0], net.parameter(f"{layer.name}.alpha"))]


def _time_distributed(net: Network, layer: Layer, inputs: Values, arguments: Arguments) -> Values:
    [inner] = layer.children
    if inner.kind not in ("Dense", "Activation", "Dropout", "LayerNormalization"):
        raise Refused(f"there is no rule for a {inner.kind} at every step, as in '{layer.name}'", hint=HINT)
    return net.run(inner, inputs, arguments)


def _repeat(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    count = int(layer.config["n"])
    return [net.op("Tile", net.op("Unsqueeze", inputs[0], net.integers([1])), net.integers([1, count, 1]))]


_IDENTITIES = (
    "ActivityRegularization", "AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise", "Identity",
    "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D",
)  # fmt: skip

LAYERS: Mapping[str, Build] = {
    "Activation": _activation,
    "Add": _merged("Add"),
    "Average": _average,
    "BatchNormalization": _batch_norm,
    "Concatenate": _concatenate,
    "Dense": _dense,
    "ELU": _with("Elu", alpha="alpha"),
    "EinsumDense": _einsum_dense,
    "Embedding": _embedding,
    "Flatten": _flatten,
    "LayerNormalization": _layer_norm,
    "LeakyReLU": _with("LeakyRelu", alpha="negative_slope"),
    "Maximum": _merged("Max"),
    "Minimum": _merged("Min"),
    "Multiply": _merged("Mul"),
    "Normalization": _normalization,
    "PReLU": _prelu,
    "Permute": _permute,
    "ReLU": _relu,
    "RepeatVector": _repeat,
    "Rescaling": _rescaling,
    "Reshape": _reshape,
    "Softmax": _softmax,
    "Subtract": _merged("Sub"),
    "TimeDistributed": _time_distributed,
    **dict.fromkeys(_IDENTITIES, _same),
}
"""Class -> how it is written."""
