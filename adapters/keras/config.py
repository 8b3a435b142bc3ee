"""The layers that a `config.json` describes, and where their variables lie in `model.weights.h5`.

Keras saves a model's layers under `layers/CLASS_i`, counted by class in their order, and the variables of each under
`vars/0`, `vars/1` … in the order in which its code makes them (keras/src/saving/saving_lib.py).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surgery.errors import CorruptFile

Json = Mapping[str, Any]

_OWN: Mapping[str, tuple[str, ...]] = {
    "BatchNormalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "Embedding": ("embeddings",),
    "GRUCell": ("kernel", "recurrent_kernel", "bias"),
    "LSTMCell": ("kernel", "recurrent_kernel", "bias"),
    "LayerNormalization": ("gamma", "beta"),
    "Normalization": ("mean", "variance", "count"),
    "PReLU": ("alpha",),
    "SeparableConv1D": ("depthwise_kernel", "pointwise_kernel", "bias"),
    "SeparableConv2D": ("depthwise_kernel", "pointwise_kernel", "bias"),
    "SimpleRNNCell": ("kernel", "recurrent_kernel", "bias"),
    **dict.fromkeys(
        (
            "Conv1D", "Conv1DTranspose", "Conv2D", "Conv2DTranspose", "Conv3D", "Conv3DTranspose", "Dense",
            "DepthwiseConv1D", "DepthwiseConv2D", "EinsumDense",
        ),
        ("kernel", "bias"),
    ),
}  # fmt: skip
"""Class -> its variables, in its order."""

_SWITCHES = {"bias": "use_bias", "gamma": "scale", "beta": "center"}
_STATISTICS = {"moving_mean", "moving_variance", "mean", "variance", "count"}
_DENSE = {
    "query_dense": "query",
    "key_dense": "key",
    "value_dense": "value",
    "output_dense": "attention_output",
}
RECURRENT = ("GRU", "LSTM", "SimpleRNN")
MODELS = ("Functional", "Model", "Sequential")


@dataclass(frozen=True)
class Layer:
    """One layer, or a model of layers.

    Attributes:
      kind: its class. name: where it stands, dotted. store: its group in the file of the weights.
      record: its entry in the configuration. children: the layers that it is made of.
    """

    kind: str
    name: str
    store: str
    record: Json
    children: tuple[Layer, ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        """Its settings; the object of the record, not a copy."""
        found: dict[str, Any] = self.record["config"]
        return found

    @property
    def variables(self) -> tuple[str, ...]:
        """The names of its own variables, in the order of the file."""
        names = _OWN.get(self.kind, ())
        if self.kind == "Normalization" and self.config.get("mean") is not None:
            return ()
        return tuple(n for n in names if self.config.get(_SWITCHES.get(n, ""), True) is not False)

    def walk(self) -> Iterator[Layer]:
        """Itself and all layers in it, in their order."""
        yield self
        for child in self.children:
            yield from child.walk()


def tree(record: object) -> Layer:
    """The model of a configuration.

    Raises:
      CorruptFile: it is none.
    """
    with as_written():
        return _model(_entry(record), "", "")


@contextlib.contextmanager
def as_written() -> Iterator[None]:
    """What is read of a configuration without a check of every setting.

    Raises:
      CorruptFile: a setting is not of the kind that Keras writes there.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise CorruptFile(f"the configuration is not as Keras writes it: {error!r}") from error


def trainable(model: Layer) -> list[str]:
    """The names of the variables that an optimizer trains, in its order."""
    if model.config.get("trainable") is False:
        return []
    own = [f"{model.name}.{leaf}" for leaf in model.variables if leaf not in _STATISTICS]
    return own + [name for child in model.children for name in trainable(child)]


def places(model: Layer) -> dict[str, str]:
    """Name of a variable -> its dataset in the file of the weights."""
    return {
        f"{layer.name}.{leaf}": f"{layer.store}/vars/{number}"
        for layer in model.walk()
        for number, leaf in enumerate(layer.variables)
    }


def _entry(record: object) -> Json:
    if not isinstance(record, Mapping) or not isinstance(record.get("config"), dict):
        raise TypeError("a layer has no settings")
    if not isinstance(record.get("class_name"), str):
        raise TypeError("a layer has no class")
    return record


def _model(record: Json, name: str, store: str) -> Layer:
    config = record["config"]
    kind = "Functional" if record["class_name"] in ("Functional", "Model") else record["class_name"]
    if not isinstance(config.get("layers"), Sequence):
        return Layer(kind, name, store, record)
    used: dict[str, int] = {}
    children = []
    for entry in map(_entry, config["layers"]):
        own = str(entry["config"]["name"])
        path = f"{name}.{own}" if name else own
        if is_operation(entry):
            children.append(Layer(entry["class_name"], path, "", entry))
            continue
        group = _snake(entry["class_name"])
        count = used.get(group, 0)
        used[group] = count + 1
        where = f"{store}/layers/{group}_{count}" if count else f"{store}/layers/{group}"
        children.append(_layer(entry, path, where.lstrip("/")))
    return Layer(kind, name, store, record, tuple(children))


def _layer(record: Json, name: str, store: str) -> Layer:
    kind, config = record["class_name"], record["config"]
    if kind in MODELS:
        return _model(record, name, store)
    children: list[Layer] = []
    if kind in RECURRENT:
        cell = f"{kind}Cell"
        children = [Layer(cell, f"{name}.{_snake(cell)}", f"{store}/cell", record)]
    elif kind == "MultiHeadAttention":
        dense = {"class_name": "EinsumDense", "config": config}
        children = [
            Layer("EinsumDense", f"{name}.{own}", f"{store}/{group}", dense) for group, own in _DENSE.items()
        ]
    elif kind == "Bidirectional":
        entries = {"forward": _entry(config["layer"])}
        entries["backward"] = _entry(config.get("backward_layer") or config["layer"])
        children = [
            _layer(entry, f"{name}.{entry['config']['name']}", f"{store}/{side}_layer")
            for side, entry in entries.items()
        ]
    elif kind == "TimeDistributed":
        entry = _entry(config["layer"])
        children = [_layer(entry, f"{name}.{entry['config']['name']}", f"{store}/layer")]
    return Layer(kind, name, store, record, tuple(children))


def is_operation(record: Json) -> bool:
    """Whether an entry is a function of `keras.ops`, which is no layer and has no variables."""
    return ".ops" in str(record.get("module", ""))


def _snake(name: str) -> str:
    """keras/src/utils/naming.py"""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
