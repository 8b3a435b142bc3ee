"""New dense layers in a model's configuration: behind which layer each stands, and what reads it from now on."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from surgery.errors import Refused
from surgery.tensors import shape_of
from surgery_adapters.keras.config import as_written
from surgery_adapters.keras.network import histories, tensor_history
from surgery_adapters.keras.order import in_order
from surgery_adapters.writeback.sequences import HINT

_ACTIVATIONS = {"Relu": "relu", "Tanh": "tanh", "Sigmoid": "sigmoid", "Elu": "elu", "Softplus": "softplus"}
"""What stands behind a layer in a graph -> Keras's name of it."""
_PASSING = ("Activation", "Dropout", "ELU", "LeakyReLU", "PReLU", "ReLU")
"""Layers that belong to the one in front of them."""


@dataclass(frozen=True)
class NewLayer:
    """A dense layer that the file does not have.

    Attributes:
      name: where it stands, dotted. behind: the layer whose result it reads, likewise; it may be new as well.
      units: how many it makes. activation: behind it. biased: whether it has a bias.
    """

    name: str
    behind: str
    units: int
    activation: str
    biased: bool

    @property
    def variables(self) -> list[str]:
        """The names of its variables."""
        return [f"{self.name}.{leaf}" for leaf in ("kernel", *(["bias"] if self.biased else []))]


def new_layers(model: ir.Model, strange: Sequence[str]) -> list[NewLayer]:
    """The dense layers that some parameters of a graph make up, each behind those that it reads.

    Args:
      strange: parameters that the file does not have.

    Raises:
      Refused: something else than dense layers.
    """
    found = {layer.name: layer for layer in _dense(model, strange)}
    told = {name for layer in found.values() for name in layer.variables}
    if others := [name for name in strange if name not in told]:
        raise Refused(f"the file has no place for the new variable '{others[0]}'", hint=HINT)
    ordered: list[NewLayer] = []
    while len(ordered) < len(found):
        placed = {layer.name for layer in ordered}
        ordered += [
            layer
            for layer in found.values()
            if layer.name not in placed and (layer.behind not in found or layer.behind in placed)
        ]
    return ordered


def _dense(model: ir.Model, strange: Sequence[str]) -> Iterator[NewLayer]:
    values = model.graph.initializers
    for name in strange:
        layer, _, leaf = name.rpartition(".")
        uses = list(values[name].uses()) if leaf == "kernel" else []
        if len(uses) != 1 or uses[0].node.op_type != "MatMul" or uses[0].idx != 1:
            continue
        last, biased = uses[0].node.outputs[0], False
        after = [use.node for use in last.uses()]
        if len(after) == 1 and f"{layer}.bias" in (
            value.name for value in after[0].inputs if value is not None
        ):
            last, biased = after[0].outputs[0], True
        kinds = {_ACTIVATIONS.get(use.node.op_type, "linear") for use in last.uses()}
        kind = kinds.pop() if len(kinds) == 1 else "linear"
        const = values[name].const_value
        if (front := _front(uses[0].node)) is not None and const is not None:
            yield NewLayer(layer, front, shape_of(const)[1], kind, biased)


def _front(node: ir.Node) -> str | None:
    """The layer whose result a node reads, through what has no parameters."""
    value = node.inputs[0]
    while value is not None and (producer := value.producer()) is not None:
        own = [
            str(v.name)
            for v in producer.inputs
            if v is not None and v.is_initializer() and "." in str(v.name)
        ]
        if own:
            return own[0].rpartition(".")[0]
        value = producer.inputs[0] if producer.inputs else None
    return None


def grown(config: Mapping[str, Any], layers: Sequence[NewLayer]) -> dict[str, Any]:
    """A configuration with more layers in it.

    Raises:
      Refused: a layer stands where a configuration cannot have it.
      CorruptFile: the configuration is not as Keras writes it.
    """
    new: dict[str, Any] = copy.deepcopy(dict(config))
    with as_written():
        for layer in layers:
            _insert(new, layer)
    return new


def _insert(root: dict[str, Any], layer: NewLayer) -> None:
    *path, front = layer.behind.split(".")
    model = root
    for name in path:
        model = next(entry for entry in model["config"]["layers"] if entry["config"]["name"] == name)
    entries: list[dict[str, Any]] = model["config"]["layers"]
    names = [entry["config"]["name"] for entry in entries]
    if front not in names or entries[names.index(front)]["class_name"] != "Dense":
        raise Refused(
            f"'{layer.name}' does not stand behind a dense layer, but behind '{layer.behind}'", hint=HINT
        )
    record = copy.deepcopy(entries[names.index(front)])
    own = layer.name.rpartition(".")[2]
    record["config"] |= {
        "name": own, "units": layer.units, "activation": layer.activation, "use_bias": layer.biased,
    }  # fmt: skip
    if "name" in record:
        record["name"] = own
    if "build_config" in record:
        record["build_config"] = {"input_shape": [None, layer.units]}
    at = _last(model, entries, names.index(front))
    if model["class_name"] == "Sequential":
        entries.insert(at + 1, record)
        return
    outputs = model["config"]["output_layers"]
    if in_order(entries, outputs) != entries:
        raise Refused(
            "the layers of the model do not stand in the order in which Keras counts them", hint=HINT
        )
    _connect(model, entries, entries[at]["config"]["name"], record)
    entries[:] = in_order([*entries, record], outputs)


def _last(model: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], at: int) -> int:
    """The place of the last layer that belongs to one: its activation, where that is a layer of its own."""
    while True:
        name = entries[at]["config"]["name"]
        if model["class_name"] == "Sequential":
            readers = [at + 1] if at + 1 < len(entries) else []
        else:
            readers = [k for k, entry in enumerate(entries) if name in _read_by(entry)]
        if len(readers) != 1 or entries[readers[0]]["class_name"] not in _PASSING:
            return at
        at = readers[0]


def _read_by(entry: Mapping[str, Any]) -> list[str]:
    read = (tensor_history(tensor) for tensor in _tensors(entry.get("inbound_nodes", [])))
    return [history[0] for history in read if history is not None]


def _connect(
    model: Mapping[str, Any], entries: Sequence[dict[str, Any]], front: str, record: dict[str, Any]
) -> None:
    """Have a new layer read another one, and whatever read that read the new one, in place."""
    if front in (name for name, _, _ in histories(model["config"]["output_layers"])):
        raise Refused(f"behind '{front}' is an output of the model, and no layer", hint=HINT)
    readers = [
        tensor
        for entry in entries
        for tensor in _tensors(entry.get("inbound_nodes", []))
        if (history := tensor_history(tensor)) is not None and history == (front, 0, 0)
    ]
    if not readers:
        raise Refused(f"nothing reads '{front}' in the configuration", hint=HINT)
    record["inbound_nodes"] = [{"args": [copy.deepcopy(readers[0])], "kwargs": {}}]
    for tensor in readers:
        tensor["config"]["keras_history"] = [record["config"]["name"], 0, 0]


def _tensors(record: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401
    """Every placeholder of a tensor in the calls of a layer."""
    if isinstance(record, dict) and tensor_history(record) is not None:
        yield record
        return
    for member in record.values() if isinstance(record, dict) else record if isinstance(record, list) else ():
        yield from _tensors(member)
