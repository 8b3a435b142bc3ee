"""Functions of `keras.ops` that stand in functional models, as nodes of a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import onnx_ir as ir

from surgery.errors import Refused
from surgery_adapters.keras.config import Layer
from surgery_adapters.keras.layers import reshaped
from surgery_adapters.keras.network import HINT, Build, Network, Value, Values

Arguments = Mapping[str, Any]
_END = 2**31 - 1


def _operands(net: Network, layer: Layer, arguments: Arguments) -> Values:
    """Both sides of an operator, numbers among them."""
    given = list(arguments["args"]) + [arguments[key] for key in ("x1", "x2") if key in arguments]
    return [value if isinstance(value, ir.Value) else net.number(_literal(layer, value)) for value in given]


def _literal(layer: Layer, value: object) -> Any:  # noqa: ANN401
    """A number, or an array that stands in the configuration."""
    if isinstance(value, Mapping) and value.get("class_name") == "__numpy__":
        value = value["config"]["value"]
    if isinstance(value, bool) or not isinstance(value, int | float | list):
        raise Refused(f"there is no rule for an operand of '{layer.name}' ({layer.kind})", hint=HINT)
    return value


def _binary(kind: str) -> Build:
    def build(net: Network, layer: Layer, inputs: Values, arguments: Arguments) -> Values:
        return [net.op(kind, *_operands(net, layer, arguments))]

    return build


def _unary(kind: str) -> Build:
    def build(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
        return [net.op(kind, inputs[0])]

    return build


def _reduced(kind: str) -> Build:
    def build(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
        axis, keep = layer.config.get("axis"), int(bool(layer.config.get("keepdims")))
        axes = range(net.rank(inputs[0])) if axis is None else axis if isinstance(axis, list) else [axis]
        return [net.op(kind, inputs[0], net.integers([int(k) for k in axes]), keepdims=keep)]

    return build


def _along(kind: str) -> Build:
    def build(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
        return [net.op(kind, *inputs, axis=int(layer.config.get("axis", -1)))]

    return build


def _cast(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    kinds = {"float32": 1, "int32": 6, "int64": 7}
    dtype = str(layer.config.get("dtype"))
    if dtype not in kinds:
        raise Refused(f"there is no rule for '{layer.name}', a conversion to {dtype}", hint=HINT)
    return [net.op("Cast", inputs[0], to=kinds[dtype])]


def _clip(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    bounds = (net.number(float(layer.config[side])) for side in ("x_min", "x_max"))
    return [net.op("Clip", inputs[0], *bounds)]


def _reshape(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    first, *sizes = layer.config["newshape"]
    if first not in (-1, None) or None in sizes:
        raise Refused(f"'{layer.name}' changes the batch", hint=HINT)
    return [reshaped(net, layer, inputs[0], sizes)]


def _axes(kind: str) -> Build:
    def build(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
        axis = layer.config.get("axis")
        if axis is None:
            raise Refused(f"'{layer.name}' does not say which axis", hint=HINT)
        return [net.op(kind, inputs[0], net.integers(axis if isinstance(axis, list) else [axis]))]

    return build


def _transpose(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    axes = layer.config.get("axes") or list(range(net.rank(inputs[0])))[::-1]
    if axes[0] != 0:
        raise Refused(f"'{layer.name}' moves the batch", hint=HINT)
    return [net.transpose(inputs[0], axes)]


def _stack(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    axis = int(layer.config.get("axis", 0))
    parts = [net.op("Unsqueeze", value, net.integers([axis])) for value in inputs]
    return [net.op("Concat", *parts, axis=axis)]


def _split(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    axis = int(layer.config.get("axis", 0))
    parts, size = layer.config["indices_or_sections"], net.shape(inputs[0])[axis]
    if isinstance(parts, int):
        return net.graph.ops("Split", inputs[0], outputs=parts, axis=axis, num_outputs=parts)
    if size is None:
        raise Refused(f"'{layer.name}' splits an axis whose size is free", hint=HINT)
    ends = [0, *parts, size]
    sizes = net.integers([b - a for a, b in pairwise(ends)])
    return net.graph.ops("Split", inputs[0], sizes, outputs=len(ends) - 1, axis=axis)


def _item(net: Network, layer: Layer, inputs: Values, arguments: Arguments) -> Values:
    """`x[…]` of whole numbers, slices and an ellipsis."""
    keys = arguments["args"][1] if len(arguments["args"]) > 1 else arguments.get("key")
    keys = keys if isinstance(keys, list) else [keys]
    rank, x, dropped = net.rank(inputs[0]), inputs[0], []
    dots = [
        k
        for k, key in enumerate(keys)
        if isinstance(key, Mapping) and key.get("class_name") == "__ellipsis__"
    ]
    if dots:
        missing: Sequence[object] = [None] * (rank - len(keys) + 1)
        keys = [*keys[: dots[0]], *missing, *keys[dots[0] + 1 :]]
    for axis, key in enumerate(keys):
        if isinstance(key, int) and not isinstance(key, bool):
            x = net.op("Slice", x, *map(net.integers, ([key], [key + 1 or _END], [axis])))
            dropped.append(axis)
        elif isinstance(key, Mapping) and key.get("class_name") == "__slice__":
            x = _sliced(net, layer, x, axis, key["config"])
        elif key is not None:
            raise Refused(f"there is no rule for what '{layer.name}' reads", hint=HINT)
    return [net.op("Squeeze", x, net.integers(dropped)) if dropped else x]


def _sliced(net: Network, layer: Layer, x: Value, axis: int, bounds: Mapping[str, Any]) -> Value:
    start, stop, step = (bounds.get(key) for key in ("start", "stop", "step"))
    if start is None and stop is None and step in (None, 1):
        return x
    if not all(value is None or isinstance(value, int) for value in (start, stop, step)) or (step or 1) < 0:
        raise Refused(f"there is no rule for what '{layer.name}' reads", hint=HINT)
    ends = ([start or 0], [_END if stop is None else stop], [axis], [step or 1])
    return net.op("Slice", x, *map(net.integers, ends))


def _gelu(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    return [
        net.op("Gelu", inputs[0], approximate="tanh" if layer.config.get("approximate", True) else "none")
    ]


def _silu(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    return [net.op("Mul", inputs[0], net.op("Sigmoid", inputs[0]))]


def _square(net: Network, layer: Layer, inputs: Values, _: Arguments) -> Values:
    return [net.op("Mul", inputs[0], inputs[0])]


OPERATIONS: Mapping[str, Build] = {
    **{kind: _unary(kind) for kind in ("Exp", "Log", "Sigmoid", "Sqrt", "Tanh", "Relu", "Softplus")},
    **{kind: _binary(onnx) for kind, onnx in {
        "Add": "Add", "Divide": "Div", "Matmul": "MatMul", "Maximum": "Max", "Minimum": "Min", "Multiply": "Mul",
        "Power": "Pow", "Subtract": "Sub", "TrueDivide": "Div",
    }.items()},
    **{kind: _reduced(f"Reduce{kind}") for kind in ("Max", "Mean", "Min", "Sum")},
    **{kind: _along(kind) for kind in ("LogSoftmax", "Softmax")},
    "Absolute": _unary("Abs"),
    "Cast": _cast,
    "Clip": _clip,
    "Concatenate": _along("Concat"),
    "ExpandDims": _axes("Unsqueeze"),
    "Gelu": _gelu,
    "GetItem": _item,
    "Negative": _unary("Neg"),
    "Reshape": _reshape,
    "Silu": _silu,
    "Split": _split,
    "Square": _square,
    "Squeeze": _axes("Squeeze"),
    "Stack": _stack,
    "Transpose": _transpose,
}  # fmt: skip
"""Function -> how it is written."""
