"""What follows in a model's configuration when its networks change: widths, and the shapes that are written in it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.checkpoint import Checkpoint
from surgery.errors import Refused
from surgery.tensors import shape_of
from surgery_adapters.keras.config import RECURRENT, Layer, tree
from surgery_adapters.keras.network import Shape, reads, tensor_history

Shapes = Mapping[str, tuple[int, ...]]
_UNITS = {"Dense": "units", "Conv1D": "filters", "Conv2D": "filters", "Conv3D": "filters"}
_SEPARABLE = ("SeparableConv1D", "SeparableConv2D")
_DEPTHWISE = ("DepthwiseConv1D", "DepthwiseConv2D")


def with_widths(
    config: Mapping[str, Any],
    tensors: Mapping[str, ir.TensorProtocol],
    checkpoint: Checkpoint,
    resized: Sequence[str],
) -> Any:  # noqa: ANN401
    """A configuration whose layers have the widths of their variables.

    Args:
      config: of the original. tensors: name -> variable, as it will be.
      checkpoint: whose inputs are those of the model.
      resized: the variables whose shape is another.

    Raises:
      Refused: a width that the configuration cannot express.
    """
    new = copy.deepcopy(dict(config))
    model = tree(new)
    shapes = {name: shape_of(tensor) for name, tensor in tensors.items()}
    for layer in model.walk():
        _check_known(layer, resized)
        _widths(layer, shapes)
    _inputs(model, checkpoint)
    return new


def _widths(layer: Layer, shapes: Shapes) -> None:
    config, kind = layer.config, layer.kind
    own = {
        leaf: shapes[f"{layer.name}.{leaf}"] for leaf in layer.variables if f"{layer.name}.{leaf}" in shapes
    }
    wanted: dict[str, object] = {}
    if kind in _UNITS and "kernel" in own:
        wanted[_UNITS[kind]] = own["kernel"][-1]
    elif kind.endswith("Transpose") and "kernel" in own:
        wanted["filters"] = own["kernel"][-2]
    elif kind in _SEPARABLE and "pointwise_kernel" in own:
        wanted = {"filters": own["pointwise_kernel"][-1], "depth_multiplier": own["depthwise_kernel"][-1]}
    elif kind in _DEPTHWISE and "kernel" in own:
        wanted["depth_multiplier"] = own["kernel"][-1]
    elif kind == "Embedding" and "embeddings" in own:
        wanted = dict(zip(("input_dim", "output_dim"), own["embeddings"], strict=True))
    elif kind in RECURRENT:
        cell = f"{layer.children[0].name}.recurrent_kernel"
        wanted = {"units": shapes[cell][0]} if cell in shapes else {}
    elif kind == "MultiHeadAttention":
        _heads(layer, shapes)
    for setting, size in wanted.items():
        if config.get(setting) != size:
            config[setting] = size
    if kind.startswith("Conv") and "kernel" in own and not kind.endswith("Transpose"):
        _kernel_size(layer, own["kernel"])


def _check_known(layer: Layer, resized: Sequence[str]) -> None:
    """Refuse new shapes where it is not known which setting holds them."""
    own = [name for name in resized if name.rpartition(".")[0] == layer.name]
    if layer.kind == "EinsumDense" and own and "equation" in layer.config:
        raise Refused(f"'{own[0]}' has another shape, and an EinsumDense has its shapes in several settings")
    if stray := [name for name in own if name.rpartition(".")[2] not in layer.variables]:
        raise Refused(
            f"'{stray[0]}' has another shape, and it is not known which setting of the {layer.kind} holds it"
        )


def _heads(layer: Layer, shapes: Shapes) -> None:
    query, value, output = (
        shapes.get(f"{layer.name}.{n}.kernel") for n in ("query", "value", "attention_output")
    )
    if query is None or value is None or output is None:
        return
    config = layer.config
    wanted = {"num_heads": query[1], "key_dim": query[2]}
    if value[2] != (config.get("value_dim") or query[2]):
        wanted["value_dim"] = value[2]
    if output[2] != query[0] or config.get("output_shape") is not None:
        wanted["output_shape"] = output[2]
    for setting, size in wanted.items():
        if config.get(setting) not in (size, [size]):
            config[setting] = size


def roots(file_shapes: Shapes, shapes: Shapes, model: Layer) -> dict[str, float]:
    """Queries of attention whose keys have another size -> what makes up for Keras's division by the new root.

    Keras computes softmax(Q Kᵀ/√d) with the d of its configuration: Q √(d′/d) keeps the scores.
    """
    found: dict[str, float] = {}
    for layer in model.walk():
        key = f"{layer.name}.query.kernel"
        if layer.kind == "MultiHeadAttention" and key in shapes and shapes[key][2] != file_shapes[key][2]:
            factor = float(np.sqrt(shapes[key][2] / file_shapes[key][2]))
            found |= {name: factor for name in (key, f"{layer.name}.query.bias") if name in shapes}
    return found


def _kernel_size(layer: Layer, kernel: Sequence[int]) -> None:
    size = list(kernel[:-2])
    found = layer.config.get("kernel_size")
    if (found if isinstance(found, list) else [found] * len(size)) != size:
        layer.config["kernel_size"] = size


def _inputs(model: Layer, checkpoint: Checkpoint) -> None:
    sizes = {str(value.name): value.shape for value in checkpoint.model.graph.inputs}
    for layer in model.children:
        shape = sizes.get(str(layer.config.get("name")))
        if layer.kind != "InputLayer" or shape is None:
            continue
        key = "batch_shape" if "batch_shape" in layer.config else "batch_input_shape"
        old = layer.config.get(key) or []
        new = [a if not isinstance(b, int) else b for a, b in zip(old, shape, strict=False)]
        new[:1] = old[:1]
        if new != old:
            layer.config[key] = new


def with_reshapes(config: Any, literals: Mapping[str, str], checkpoint: Checkpoint) -> None:  # noqa: ANN401
    """Give layers that reshape the sizes that they have in the graph, in place.

    Args:
      literals: layer -> the output of its node, as the graph was built.
    """
    nodes = {node.outputs[0].name: node for node in checkpoint.model.graph if node.op_type == "Reshape"}
    for layer in tree(config).walk():
        node = nodes.get(literals.get(layer.name, ""))
        if node is None or node.inputs[1] is None or (sizes := _constant(node.inputs[1])) is None:
            continue
        key, lead = ("newshape", 1) if "newshape" in layer.config else ("target_shape", 0)
        old = layer.config[key]
        new = [*old[:lead], *(b if a != -1 else a for a, b in zip(old[lead:], sizes[1:], strict=True))]
        if new != old:
            layer.config[key] = new


def check_reshapes(old: Any, new: Any) -> None:  # noqa: ANN401
    """Refuse sizes in settings that may have to follow, where no graph of our own tells them.

    Args:
      old, new: the configuration as it was, and with other widths.

    Raises:
      Refused: a layer that reshapes what a layer of another width makes.
    """
    before, after = ({layer.name: layer for layer in tree(config).walk()} for config in (old, new))
    sources = {name: list(_sources(tree(old), layer)) for name, layer in before.items()}
    for name, layer in before.items():
        pending, seen = list(sources[name]) if layer.kind == "Reshape" else [], set[str]()
        while pending:
            at = pending.pop()
            if at in seen or at not in before:
                continue
            seen.add(at)
            widths = [{key: found[at].config.get(key) for key in _SETTINGS} for found in (before, after)]
            if widths[0] != widths[1]:
                raise Refused(
                    f"'{at}' has another width, and '{name}' may reshape it to sizes that stand in its settings",
                    hint="only models that are read without --graph have reshapes that follow",
                )
            if not any(value is not None for value in widths[0].values()):
                pending += sources[at]


_SETTINGS = ("filters", "output_dim", "units")


def _sources(model: Layer, layer: Layer) -> Iterator[str]:
    """The layers that a layer reads."""
    if "inbound_nodes" in layer.record:
        prefix = layer.name.rpartition(".")[0]
        for history in reads(layer.record["inbound_nodes"]):
            yield f"{prefix}.{history[0]}" if prefix else history[0]
    for parent in model.walk():
        names = [child.name for child in parent.children]
        if parent.kind == "Sequential" and layer.name in names[1:]:
            yield names[names.index(layer.name) - 1]


def _constant(value: ir.Value) -> list[int] | None:
    producer = value.producer()
    tensor = value.const_value if producer is None else producer.attributes["value"].as_tensor() if (
        producer.op_type == "Constant"
    ) else None  # fmt: skip
    return None if tensor is None else [int(n) for n in tensor.numpy()]


def with_shapes(
    config: Any,  # noqa: ANN401
    shapes: Mapping[tuple[str, int, int], Shape],
    calls: Mapping[str, Sequence[Shape]],
) -> None:
    """Write the shapes of all tensors into a configuration, in place.

    Args:
      shapes: (layer, call, output) -> its shape. calls: layer -> the shapes of its inputs.
    """
    model = tree(config)
    for layer in model.walk():
        prefix = layer.name.rpartition(".")[0]
        _placeholders(layer.record.get("inbound_nodes", []), f"{prefix}." if prefix else "", shapes)
        build, given = layer.record.get("build_config"), calls.get(layer.name)
        if isinstance(build, dict) and given:
            _build(build, given)
        if layer.kind == "InputLayer" and (shape := shapes.get((layer.name, 0, 0))) is not None:
            _replace(
                layer.config, "batch_shape" if "batch_shape" in layer.config else "batch_input_shape", shape
            )
        if layer.kind == "Sequential" and isinstance(layer.config.get("build_input_shape"), list):
            given = next((calls[child.name] for child in layer.children if child.name in calls), None)
            if given is not None:
                _replace(layer.config, "build_input_shape", given[0])
                if isinstance(build, dict):
                    _build(build, given)


def with_kernels(config: Any, shapes: Shapes) -> None:  # noqa: ANN401
    """Write the widths that layers read into a configuration, in place, where only their variables tell them.

    Args:
      shapes: name -> shape of a variable.
    """
    for layer in tree(config).walk():
        build, width = layer.record.get("build_config"), _reads(layer, shapes)
        if not isinstance(build, dict):
            continue
        for holder, key, size in _built(layer, build, width, shapes):
            old = holder.get(key)
            if size is not None and isinstance(old, list) and old and not isinstance(old[-1], list):
                axis = 1 if layer.config.get("data_format") == "channels_first" else len(old) - 1
                _replace(holder, key, tuple(size if k == axis else was for k, was in enumerate(old)))


def _built(
    layer: Layer, build: dict[str, Any], width: int | None, shapes: Shapes
) -> Iterator[tuple[dict[str, Any], str, int | None]]:
    """The shapes that a layer is built with: what holds each, its key, its last size."""
    yield build, "input_shape", width
    named = build.get("shapes_dict")
    if not isinstance(named, dict):
        return
    if layer.kind == "MultiHeadAttention":
        for side in ("query", "value", "key"):
            kernel = shapes.get(f"{layer.name}.{side}.kernel")
            yield named, f"{side}_shape", kernel[0] if kernel else None
    elif layer.kind in RECURRENT:
        yield named, "sequences_shape", width
        yield named, "initial_state_shape", shapes[f"{layer.children[0].name}.recurrent_kernel"][0]


def _reads(layer: Layer, shapes: Shapes) -> int | None:
    """How many features a layer reads."""
    places = {
        "Dense": ("kernel", -2), "BatchNormalization": ("moving_mean", 0), "LayerNormalization": ("gamma", -1),
        "Normalization": ("mean", -1), **dict.fromkeys(_SEPARABLE, ("depthwise_kernel", -2)),
    }  # fmt: skip
    leaf, axis = places.get(layer.kind, ("kernel", -1 if layer.kind.endswith("Transpose") else -2))
    name = f"{layer.children[0].name if layer.kind in RECURRENT else layer.name}.{leaf}"
    if name not in shapes:
        return None
    grouped = layer.kind.startswith("Conv") and not layer.kind.endswith("Transpose")
    return shapes[name][axis] * (int(layer.config.get("groups", 1)) if grouped else 1)


def _build(build: dict[str, Any], given: Sequence[Shape]) -> None:
    if isinstance(shapes := build.get("shapes_dict"), dict):
        for key, shape in zip(shapes, given, strict=False):
            _replace(shapes, key, shape)
    if "input_shape" not in build or not isinstance(build["input_shape"], list):
        return
    if build["input_shape"] and isinstance(build["input_shape"][0], list):
        for place, shape in enumerate(given[: len(build["input_shape"])]):
            _replace(build["input_shape"], place, shape)
    else:
        _replace(build, "input_shape", given[0])


def _replace(holder: Any, key: Any, shape: Shape) -> None:  # noqa: ANN401
    """Sizes that are written take their new value; those that are free, and the batch, stay."""
    old = holder[key]
    if isinstance(old, list) and len(old) == len(shape):
        new = [old[0], *(b if isinstance(a, int) else a for a, b in zip(old[1:], shape[1:], strict=True))]
        if new != old:
            holder[key] = new


def _placeholders(record: Any, prefix: str, shapes: Mapping[tuple[str, int, int], Shape]) -> None:  # noqa: ANN401
    if (history := tensor_history(record)) is not None:
        if (shape := shapes.get((f"{prefix}{history[0]}", *history[1:]))) is not None:
            _replace(record["config"], "shape", shape)
        return
    members = record.values() if isinstance(record, Mapping) else record if isinstance(record, list) else ()
    for member in members:
        _placeholders(member, prefix, shapes)
