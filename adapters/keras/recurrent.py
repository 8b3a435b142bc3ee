"""Recurrent layers of Keras as the operators of ONNX: gates in their order, two biases where Keras has one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from surgery.errors import Refused
from surgery_adapters.keras.activations import activation_name
from surgery_adapters.keras.config import Layer
from surgery_adapters.keras.layers import require
from surgery_adapters.keras.network import HINT, Build, Network, Value, Values

Arguments = Mapping[str, Any]
_ORDER: Mapping[str, tuple[int, ...]] = {"LSTM": (0, 3, 1, 2), "GRU": (0, 1, 2), "SimpleRNN": (0,)}
"""Where ONNX's gates (i o f c; z r h) are among Keras's (i f c o; z r h)."""

_KINDS = {
    "elu": "Elu", "hard_sigmoid": "HardSigmoid", "linear": "Affine", "relu": "Relu", "sigmoid": "Sigmoid",
    "softplus": "Softplus", "softsign": "Softsign", "tanh": "Tanh",
}  # fmt: skip


def _gates(net: Network, value: Value, kind: str) -> Value:
    """The last axis with its gates in ONNX's order."""
    order = _ORDER[kind]
    if order == tuple(range(len(order))):
        return value
    parts = net.graph.ops("Split", value, outputs=len(order), axis=-1, num_outputs=len(order))
    return net.op("Concat", *(parts[k] for k in order), axis=-1)


def _biases(net: Network, layer: Layer, name: str) -> Value | None:
    """(1, 2·gates·units): for the input, and for the state, which only the GRU with `reset_after` has."""
    if not layer.config.get("use_bias", True):
        return None
    bias = net.parameter(f"{name}.bias")
    if len(net.size(f"{name}.bias")) == 2:
        rows = net.graph.ops("Split", bias, outputs=2, axis=0, num_outputs=2)
        return net.op("Concat", *(_gates(net, row, layer.kind) for row in rows), axis=-1)
    own = net.op("Unsqueeze", _gates(net, bias, layer.kind), net.integers([0]))
    return net.op("Concat", own, net.op("Mul", own, net.number(0.0)), axis=-1)


def _run(net: Network, layer: Layer, x: Value, states: Values, *, reverse: bool) -> tuple[Value, Values]:
    """All steps, (batch, time, units) in the order of the input; the last states, (batch, units)."""
    kind, config = layer.kind, layer.config
    [cell] = layer.children
    net.calls.setdefault(layer.name, [net.shape(x)])
    require(layer, "stateful", False)
    require(
        layer, "zero_output_for_mask", False, True
    )  # only where there is a mask, which nothing here makes
    front = net.integers([0])
    own = (_gates(net, net.parameter(f"{cell.name}.{leaf}"), kind) for leaf in ("kernel", "recurrent_kernel"))
    weights = [net.op("Unsqueeze", net.op("Transpose", gates, perm=[1, 0]), front) for gates in own]
    inner = activation_name(config["activation"], layer.name)
    names = (
        [inner]
        if kind == "SimpleRNN"
        else [activation_name(config["recurrent_activation"], layer.name), inner]
    )
    names += [inner] if kind == "LSTM" else []
    if unknown := [name for name in names if name not in _KINDS]:
        raise Refused(f"there is no rule for the activation '{unknown[0]}' in '{layer.name}'", hint=HINT)
    settings: dict[str, Any] = {"activations": [_KINDS[name] for name in names]}
    if set(names) & {"elu", "linear", "hard_sigmoid"}:
        alphas = {"elu": 1.0, "linear": 1.0, "hard_sigmoid": 1.0 / 6.0}
        settings["activation_alpha"] = [alphas[name] for name in names if name in alphas]
        settings["activation_beta"] = [
            0.5 if name == "hard_sigmoid" else 0.0 for name in names if name in ("linear", "hard_sigmoid")
        ]
        if not settings["activation_beta"]:
            del settings["activation_beta"]
    if kind == "GRU":
        settings["linear_before_reset"] = int(config.get("reset_after", True))
    before = [net.op("Unsqueeze", state, front) for state in states]
    outputs = net.graph.ops(
        "RNN" if kind == "SimpleRNN" else kind, net.transpose(x, [1, 0, 2]), *weights, _biases(net, layer, cell.name),
        None, *before, outputs=3 if kind == "LSTM" else 2, hidden_size=net.size(f"{cell.name}.recurrent_kernel")[0],
        direction="reverse" if reverse else "forward", **settings,
    )  # fmt: skip
    steps = net.transpose(net.op("Squeeze", outputs[0], net.integers([1])), [1, 0, 2])
    return steps, [net.op("Squeeze", state, front) for state in outputs[1:]]


def _backwards(net: Network, x: Value) -> Value:
    """The steps in the other order."""
    ends = ([-1], [-(2**31)], [1], [-1])
    return net.op("Slice", x, *(net.integers(end) for end in ends))


def _initial(layer: Layer, inputs: Values, arguments: Arguments) -> Values:
    if arguments.get("mask") is not None:
        raise Refused(f"'{layer.name}' is given a mask", hint=HINT)
    given = arguments.get("initial_state")
    found = given if isinstance(given, list) else [given] if given is not None else inputs[1:]
    return [value for value in found if isinstance(value, ir.Value)]


def _recurrent(net: Network, layer: Layer, inputs: Values, arguments: Arguments) -> Values:
    reverse = bool(layer.config.get("go_backwards"))
    steps, states = _run(net, layer, inputs[0], _initial(layer, inputs, arguments), reverse=reverse)
    if layer.config.get("return_sequences"):
        states = [_backwards(net, steps) if reverse else steps, *states]
    else:
        states = [states[0], *states]
    return [states[0], *(states[1:] if layer.config.get("return_state") else [])]


def _bidirectional(net: Network, layer: Layer, inputs: Values, arguments: Arguments) -> Values:
    one, other = layer.children
    if one.kind not in _ORDER or _initial(layer, inputs, arguments) or one.config.get("return_state"):
        raise Refused(f"there is no rule for '{layer.name}' around a {one.kind}, or with states", hint=HINT)
    found: Sequence[tuple[Value, Values]] = [
        _run(net, half, inputs[0], [], reverse=reverse) for half, reverse in ((one, False), (other, True))
    ]
    sequences = one.config.get("return_sequences")
    halves = [steps if sequences else states[0] for steps, states in found]
    mode = layer.config.get("merge_mode")
    if mode == "concat":
        return [net.op("Concat", *halves, axis=-1)]
    if mode is None:
        return halves
    y = net.op("Mul" if mode == "mul" else "Add", *halves)
    return [net.op("Mul", y, net.number(0.5)) if mode == "ave" else y]


LAYERS: Mapping[str, Build] = {
    "Bidirectional": _bidirectional,
    "GRU": _recurrent,
    "LSTM": _recurrent,
    "SimpleRNN": _recurrent,
}
"""Class -> how it is written."""
