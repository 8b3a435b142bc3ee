"""Attention of Keras as nodes of a graph (keras/src/layers/attention/multi_head_attention.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from surgery.errors import Refused
from surgery_adapters.keras.config import Layer
from surgery_adapters.keras.layers import require
from surgery_adapters.keras.network import HINT, Build, Network, Value, Values

Arguments = Mapping[str, Any]


def _projected(net: Network, layer: Layer, x: Value, name: str, equation: str) -> Value:
    y = net.op("Einsum", x, net.parameter(f"{layer.name}.{name}.kernel"), equation=equation)
    if layer.config.get("use_bias", True):
        y = net.op("Add", y, net.parameter(f"{layer.name}.{name}.bias"))
    return y


def _attention(net: Network, layer: Layer, inputs: Values, arguments: Arguments) -> Values:
    """softmax(Q Kᵀ/√d) V over the time axis, (batch, time, features).

    The root is computed from the size of the keys, as Keras does it: they cannot grow without changing it.
    """
    named = set(arguments) - {"args", "query", "value", "key", "training", "return_attention_scores"}
    unusual = named or arguments.get("use_causal_mask") or arguments.get("return_attention_scores")
    if unusual or len(inputs) not in (2, 3) or any(net.rank(x) != 3 for x in inputs):
        raise Refused(
            f"there is no rule for how '{layer.name}' is called, with {sorted(named) or 'other axes'}",
            hint=HINT,
        )
    require(layer, "attention_axes", None, [1])
    require(layer, "use_gate", None, False)
    require(layer, "sliding_window", None)
    query, value = inputs[:2]
    key = inputs[2] if len(inputs) == 3 else value
    q, k, v = (
        _projected(net, layer, x, name, "bte,ehd->bthd")
        for x, name in ((query, "query"), (key, "key"), (value, "value"))
    )
    size = net.op("Cast", net.op("Slice", net.op("Shape", q), *map(net.integers, ([3], [4], [0]))), to=1)
    scores = net.op("Einsum", net.op("Div", q, net.op("Sqrt", size)), k, equation="bthd,bshd->bhts")
    mixed = net.op("Einsum", net.op("Softmax", scores, axis=-1), v, equation="bhts,bshd->bthd")
    return [_projected(net, layer, mixed, "attention_output", "bthd,hdo->bto")]


LAYERS: Mapping[str, Build] = {"MultiHeadAttention": _attention}
"""Class -> how it is written."""
