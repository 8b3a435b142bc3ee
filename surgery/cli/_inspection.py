"""What `surgery inspect` finds out, as one JSON object."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

import surgery
from surgery.errors import Refused
from surgery.graph.facts import MOVEMENT
from surgery.interface import Port
from surgery.json_values import Json
from surgery.ops.actions import single
from surgery.tensors import shape_of

if TYPE_CHECKING:
    from surgery.architectures.family import Family
    from surgery.graph.spaces import Analysis, Space
    from surgery.optimizer import OptimizerState


def inspection(
    checkpoint: surgery.Checkpoint, analysis: Analysis, path: Path, found: Family | None = None
) -> dict[str, Json]:
    """Everything there is to know about a checkpoint, and the analysis of its graph, without running it.

    Args:
      found: what the network was recognised as; None if it was not.
    """
    model = checkpoint.model
    graph, interface = model.graph, checkpoint.interface
    return {
        "file": str(path),
        "bytes": sum(part.stat().st_size for part in _files(path)),
        "digest": checkpoint.digest(),
        "opset": model.opset_imports.get("", 0),
        "parameters": sum(tensor.size for tensor in checkpoint.tensors.values() if _trained(tensor)),
        "inputs": [_port(port, checkpoint.value(port.name)) for port in interface.inputs],
        "outputs": [_port(port, checkpoint.value(port.name)) for port in interface.outputs],
        "architecture": _architecture(found),
        "layers": _layers(graph),
        "spaces": [_space(space, _chosen(checkpoint, analysis, space)) for space in analysis.spaces],
        "optimizer": _optimizer(checkpoint.optimizer) if checkpoint.optimizer else None,
        "copies": dict(checkpoint.copies),
        "environment": checkpoint.environment.to_json(),
        "lineage": [step.to_json() for step in checkpoint.lineage],
    }


def _files(path: Path) -> list[Path]:
    """A file, or all that are in the folder of a framework."""
    return [part for part in path.rglob("*") if part.is_file()] if path.is_dir() else [path]


def _architecture(found: Family | None) -> Json:
    if found is None:
        return None
    return {"family": found.family, "name": found.name, "layers": [str(layer) for layer in found.layers]}


def _trained(tensor: ir.TensorProtocol) -> bool:
    """Whole numbers are shapes and axes, numbers without an axis are settings."""
    return tensor.dtype.is_floating_point() and len(tensor.shape) > 0


def _port(port: Port, value: ir.Value) -> dict[str, Json]:
    shape = (
        None
        if value.shape is None
        else [size if isinstance(size, int) else str(size) for size in value.shape]
    )
    return {
        "name": port.name,
        "shape": shape,
        "dtype": value.dtype.name.lower() if value.dtype else None,
        "kind": port.kind,
        "declared": port.declared,
        "low": port.low,
        "high": port.high,
        "labels": port.labels,
    }


def _layers(graph: ir.Graph) -> list[Json]:
    """Tensors by module path, in the order of their use, with the operators that compute with them."""
    tensors: dict[str, dict[str, Json]] = {}
    operators: dict[str, list[str]] = {}
    for node in graph:
        for value in node.inputs:
            tensor = value.const_value if value is not None and value.is_initializer() else None
            if value is None or tensor is None or not _trained(tensor):
                continue
            name = str(value.name)
            layer = name.rpartition(".")[0] or name
            tensors.setdefault(layer, {})[name] = list(shape_of(tensor))
            operators.setdefault(layer, []).extend(_operators(value))
    return [
        {"name": layer, "operators": list(dict.fromkeys(operators[layer])), "tensors": tensors[layer]}
        for layer in tensors
    ]


def _operators(value: ir.Value) -> Iterator[str]:
    """The operators that compute with a value, beyond those that only move its elements."""
    for user, _ in value.uses():
        if user.op_type in MOVEMENT:
            for output in user.outputs:
                yield from _operators(output)
        else:
            yield user.op_type


def _chosen(checkpoint: surgery.Checkpoint, analysis: Analysis, space: Space) -> list[str]:
    """The outputs that hold the number of one of a head's actions, by which `extend` changes it."""
    try:
        return single(checkpoint, analysis, space) if space.hidden and space.reasons else []
    except Refused:
        return []


def _space(space: Space, chosen: list[str]) -> dict[str, Json]:
    return {
        "name": space.name,
        "size": space.size,
        "aliases": list(space.aliases),
        "widenable": space.widenable,
        "reason": space.reason,
        "hidden": space.hidden,
        "kinds": list(space.kinds),
        "chosen": chosen,
        "inits": list(space.inits),
        "axes": [
            {
                "tensor": axis.tensor,
                "axis": axis.axis,
                "role": axis.role,
                "makes": axis.makes,
                "layout": axis.layout,
            }
            for axis in space.axes
        ],
    }


def _optimizer(state: OptimizerState) -> dict[str, Json]:
    return {
        "kind": state.kind,
        "slots": {slot: len(tensors) for slot, tensors in state.slots.items()},
        "step": max(state.steps.values(), default=None),
        "groups": [{"parameters": group.parameters, "hyper": group.hyper} for group in state.groups],
    }
