"""The part of a model that acts, without the critics and targets that stand beside it in a framework's own file."""

from __future__ import annotations

from collections.abc import Collection

from onnx_ir.passes.common import RemoveUnusedNodesPass

from surgery.checkpoint import Checkpoint
from surgery.interface import Interface


def cut_to(checkpoint: Checkpoint, outputs: Collection[str]) -> Checkpoint:
    """A model with some of its outputs and its state only, and without the inputs that only others need.

    The model itself where it is nothing else.
    """
    ports = checkpoint.interface.outputs
    kept = tuple(port for port in ports if port.name in outputs or port.kind == "state")
    if kept == ports:
        return checkpoint
    model = checkpoint.model.clone()
    names = {port.name for port in kept}
    model.graph.outputs[:] = [value for value in model.graph.outputs if value.name in names]
    model = RemoveUnusedNodesPass()(model).model
    read = {str(value.name) for value in model.graph.inputs if value.uses() or value.is_graph_output()}
    inputs = tuple(port for port in checkpoint.interface.inputs if port.kind != "other" or port.name in read)
    shown = {port.name for port in inputs}
    model.graph.inputs[:] = [value for value in model.graph.inputs if value.name in shown]
    return checkpoint.replace(
        model=model, interface=Interface(inputs, kept), optimizer=None, copies={}, origin=None
    )
