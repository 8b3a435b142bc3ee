"""A saved model as a graph of our own, or bound to one that Keras exported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from surgery.checkpoint import Checkpoint
from surgery.errors import FileError, Refused
from surgery.model_file import read_model
from surgery.port_kinds import infer
from surgery_adapters.binding.bind import Norm, native
from surgery_adapters.keras import attention, convolution, layers, operations, recurrent
from surgery_adapters.keras.config import Layer, as_written, tree
from surgery_adapters.keras.file import KerasFile
from surgery_adapters.keras.network import Network, histories
from surgery_adapters.writeback.matching import checked

LAYERS = {**layers.LAYERS, **convolution.LAYERS, **recurrent.LAYERS, **attention.LAYERS}


def build(config: Mapping[str, Any], tensors: Mapping[str, ir.TensorProtocol]) -> Network:
    """The network of a configuration with these variables.

    Raises:
      Refused: a layer that there is no rule for. CorruptFile: the configuration describes no network.
    """
    with as_written():
        return _build(tree(config), tensors)


def _build(model: Layer, tensors: Mapping[str, ir.TensorProtocol]) -> Network:
    network = Network(model.config.get("name") or "keras", tensors, LAYERS, operations.OPERATIONS)
    outputs = network.model(model)
    for value, name in zip(outputs, _names(model, len(outputs)), strict=True):
        shape = network.shape(value)
        sizes = [f"{name}_{axis}" if size is None else size for axis, size in enumerate(shape[1:], 1)]
        network.graph.output(value, name, sizes)
    checked(network.graph.model())
    return network


def _names(model: Layer, count: int) -> list[str]:
    """Outputs are called after the layers that make them."""
    if model.kind == "Sequential":
        return [model.children[-1].name]
    record = model.config["output_layers"]
    names = list(record) if isinstance(record, Mapping) else [name for name, _, _ in histories(record)]
    seen: dict[str, int] = {}
    found = []
    for name in names[:count]:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return found


def bound(file: KerasFile, graph: Path) -> Checkpoint:
    """A graph that Keras exported from this very file, its constants the file's variables.

    Raises:
      FileError, GraphError: the graph cannot be read. Refused: it has other weights than the file.
    """
    try:
        model = read_model(graph)
    except FileError as error:
        raise error.within(graph=graph) from error
    seen = [layer.name for layer in file.model.children if layer.kind == "InputLayer"]
    stray = [str(v.name) for v in model.graph.inputs if v.name not in model.graph.initializers][len(seen) :]
    if seen and stray:
        raise Refused(
            f"the exported graph has inputs that the model does not have: {', '.join(stray)}",
            hint="they are constants that the exporter lost; write the layers that they belong to another way",
        )
    norms = [_norm(layer) for layer in file.model.walk() if layer.kind == "BatchNormalization"]
    norms = [norm for norm in norms if {norm.mean, norm.variance} <= set(file.tensors)]
    arrays = {name: tensor for name, tensor in file.tensors.items() if tensor.dtype == ir.DataType.FLOAT}
    found: Checkpoint = native(Checkpoint(model, infer(model)), arrays, norms)
    if not set(arrays) & set(found.tensors):
        raise Refused(f"the graph {graph} has none of the weights of the file")
    return found


def _norm(layer: Layer) -> Norm:
    def key(leaf: str) -> str | None:
        return f"{layer.name}.{leaf}" if leaf in layer.variables else None

    name = layer.name
    epsilon = float(layer.config["epsilon"])
    return Norm(key("gamma"), key("beta"), f"{name}.moving_mean", f"{name}.moving_variance", epsilon)
