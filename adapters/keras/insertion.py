"""New dense layers in a model's configuration: behind which layer each stands, and what reads it from now on."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from surgery.errors import Refused
from surgery_adapters.keras.config import as_written
from surgery_adapters.keras.network import histories, tensor_history
from surgery_adapters.keras.order import in_order
from surgery_adapters.writeback.dense import NewLayer
from surgery_adapters.writeback.sequences import HINT

_PASSING = ("Activation", "Dropout", "ELU", "LeakyReLU", "PReLU", "ReLU")
"""Layers that belong to the one in front of them."""


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
        raise Refused(f"behind '{front}' is an output of the model, not a layer", hint=HINT)
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
