"""New dense layers in a graph that a file does not have yet, and what each of them reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from surgery.errors import Refused
from surgery.tensors import shape_of
from surgery_adapters.writeback.sequences import HINT

_ACTIVATIONS = {"Relu": "relu", "Tanh": "tanh", "Sigmoid": "sigmoid", "Elu": "elu", "Softplus": "softplus"}
"""What stands behind a layer in a graph -> what Keras and flax call it."""


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
    def parameters(self) -> list[str]:
        """The names of its parameters."""
        return [f"{self.name}.{leaf}" for leaf in ("kernel", *(["bias"] if self.biased else []))]


def new_layers(model: ir.Model, strange: Sequence[str]) -> list[NewLayer]:
    """The dense layers that some parameters of a graph make up, each behind those that it reads.

    Args:
      strange: parameters that the file does not have.

    Raises:
      Refused: something else than dense layers.
    """
    found = {layer.name: layer for layer in _dense(model, strange)}
    told = {name for layer in found.values() for name in layer.parameters}
    if others := [name for name in strange if name not in told]:
        raise Refused(f"the file has no place for the new parameter '{others[0]}'", hint=HINT)
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
