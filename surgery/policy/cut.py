"""The part of a model that acts or learns, without what stands beside it in a framework's own file."""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from surgery.checkpoint import Checkpoint
from surgery.interface import Interface, Port


def cut(checkpoint: Checkpoint, inputs: Sequence[Port], outputs: Sequence[Port]) -> Checkpoint:
    """A model with some of its inputs and outputs, in this order, and without the nodes that only others need.

    Of the inputs, those of kind `other` go, too, that nothing reads any more. The model itself where all are kept as
    they are; else without optimizer state.
    """
    if Interface(tuple(inputs), tuple(outputs)) == checkpoint.interface:
        return checkpoint
    model = checkpoint.model.clone()
    _keep(model.graph.outputs, outputs)
    model = RemoveUnusedNodesPass()(model).model
    read = {value.name for value in model.graph.inputs if value.uses() or value.is_graph_output()}
    kept = tuple(port for port in inputs if port.kind != "other" or port.name in read)
    _keep(model.graph.inputs, kept)
    interface = Interface(kept, tuple(outputs))
    return checkpoint.replace(
        model=model, interface=interface, optimizer=None, copies={}, origin=None, path=None, source={}
    )


def _keep(values: MutableSequence[ir.Value], ports: Sequence[Port]) -> None:
    by_name = {value.name: value for value in values}
    values[:] = [by_name[port.name] for port in ports]
