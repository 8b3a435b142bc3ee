"""Activations of Keras, by the names that its configurations give them (keras/src/activations/activations.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from surgery.errors import Refused
from surgery_adapters.keras.network import HINT, Network, Value


def _clipped(net: Network, x: Value, top: float) -> Value:
    return net.op("Clip", x, net.number(0.0), net.number(top))


def _silu(net: Network, x: Value) -> Value:
    return net.op("Mul", x, net.op("Sigmoid", x))


def _hard_sigmoid(net: Network, x: Value) -> Value:
    return net.op("HardSigmoid", x, alpha=1.0 / 6.0, beta=0.5)


ACTIVATIONS: Mapping[str, Callable[[Network, Value], Value]] = {
    "elu": lambda net, x: net.op("Elu", x, alpha=1.0),
    "exponential": lambda net, x: net.op("Exp", x),
    "gelu": lambda net, x: net.op("Gelu", x),
    "hard_sigmoid": _hard_sigmoid,
    "hard_silu": lambda net, x: net.op("Mul", x, _hard_sigmoid(net, x)),
    "leaky_relu": lambda net, x: net.op("LeakyRelu", x, alpha=0.2),
    "linear": lambda net, x: x,
    "log_softmax": lambda net, x: net.op("LogSoftmax", x, axis=-1),
    "mish": lambda net, x: net.op("Mish", x),
    "relu": lambda net, x: net.op("Relu", x),
    "relu6": lambda net, x: _clipped(net, x, 6.0),
    "selu": lambda net, x: net.op("Selu", x, alpha=1.6732632423543772, gamma=1.0507009873554805),
    "sigmoid": lambda net, x: net.op("Sigmoid", x),
    "silu": _silu,
    "softmax": lambda net, x: net.op("Softmax", x, axis=-1),
    "softplus": lambda net, x: net.op("Softplus", x),
    "softsign": lambda net, x: net.op("Softsign", x),
    "tanh": lambda net, x: net.op("Tanh", x),
}
_ALIASES = {"swish": "silu", "hard_swish": "hard_silu"}


def activation_name(record: object, where: str) -> str:
    """The activation that a configuration names; it has several ways to do so.

    Raises:
      Refused: there is no rule for it.
    """
    name = record
    if isinstance(record, Mapping):
        inner = record.get("config")
        name = inner if isinstance(inner, str) else record.get("class_name")
    name = "linear" if name is None else _ALIASES.get(str(name), str(name))
    if name not in ACTIVATIONS:
        raise Refused(f"there is no rule for the activation '{name}' of '{where}'", hint=HINT)
    return str(name)


def activate(net: Network, x: Value, record: object, where: str) -> Value:
    """An activation, as a configuration names it."""
    return ACTIVATIONS[activation_name(record, where)](net, x)
