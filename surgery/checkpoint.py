"""The value in the middle: a graph, its tensors, optimizer state, what they mean and where they come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx_ir as ir

from surgery.digests import model_digest
from surgery.errors import GraphError, some_text
from surgery.graph.spaces import Analysis, analyse
from surgery.interface import Environment, Interface, LineageStep
from surgery.json_values import Json, freeze_mapping
from surgery.model_file import all_tensors
from surgery.optimizer import OptimizerState
from surgery.tensors import finite, masking


@dataclass(frozen=True, repr=False)
class Checkpoint:
    """A model and everything that belongs to it.

    Attributes:
      model: the graph and its tensors; never changed, clone it to make another.
      interface: what its inputs and outputs mean.
      environment: what it was trained for.
      lineage: how it was made, oldest step first.
      optimizer: what its optimizer remembers; None if there is none.
      path: the file it was read from; None if it was made in memory.
      source: what the framework it came from needs to get it back, as JSON.
      copies: prefix of parameter names -> prefix of those that they are a copy of (target and averaged networks);
        whatever is done to the spaces of the originals is done to the copies.
      origin: the framework's file or folder that it came from, which `save` writes back into; None if it came from an
        `.onnx`.
    """

    model: ir.Model
    interface: Interface
    environment: Environment = field(default_factory=Environment)
    lineage: tuple[LineageStep, ...] = ()
    optimizer: OptimizerState | None = None
    path: Path | None = None
    source: Mapping[str, Json] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    origin: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "lineage", tuple(self.lineage))
        object.__setattr__(self, "copies", MappingProxyType(dict(self.copies)))
        object.__setattr__(self, "source", freeze_mapping(self.source))

    def __repr__(self) -> str:
        sides = (self.interface.inputs, self.interface.outputs)
        ports = " → ".join(", ".join(port.name for port in side) for side in sides)
        state = f" · {self.optimizer.kind} state" if self.optimizer else ""
        return f"<Checkpoint {self.path or 'in memory'}: {ports} · {len(self.tensors)} tensors{state}>"

    @property
    def tensors(self) -> Mapping[str, ir.TensorProtocol]:
        """The graph's initializers by name, read when asked for; those of subgraphs are not among them."""
        values = self.model.graph.initializers.items()
        return MappingProxyType(
            {name: value.const_value for name, value in values if value.const_value is not None}
        )

    def value(self, port: str) -> ir.Value:
        """The graph's input or output of this name."""
        values = (*self.model.graph.inputs, *self.model.graph.outputs)
        return next(value for value in values if value.name == port)

    @property
    def trained(self) -> frozenset[str]:
        """The names of the parameters that the optimizer holds."""
        return frozenset(self.optimizer.parameters if self.optimizer else ())

    @cached_property
    def analysis(self) -> Analysis:
        """The spaces of the graph, found when they are first asked for.

        Raises:
          GraphError: an input has no shape, or an axis of size 0.
        """
        return analyse(self.model, self.interface, self.trained)

    def digest(self) -> str:
        """SHA-256 of the graph and its tensors; see `surgery.digests.model_digest`."""
        return model_digest(self.model)

    def replace(self, **changes: Any) -> Checkpoint:  # noqa: ANN401
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def check_finite(checkpoint: Checkpoint) -> None:
    """Read every tensor of the model and of the optimizer, one at a time, and refuse NaN and infinity.

    Masks may be infinite where nothing is to be seen; what an optimizer trains may not.

    Raises:
      GraphError: some elements are not finite; lists the tensors.
    """
    bad = [
        str(tensor.name) or "a constant"
        for tensor in all_tensors(checkpoint.model)
        if not finite(tensor) and (tensor.name in checkpoint.trained or not masking(tensor))
    ]
    if checkpoint.optimizer:
        for slot, tensors in checkpoint.optimizer.slots.items():
            bad += [f"{slot} of {name}" for name, tensor in tensors.items() if not finite(tensor)]
    if bad:
        where = {"file": checkpoint.path} if checkpoint.path else None
        raise GraphError(f"NaN or infinite values in: {some_text(bad, 10)}", where=where)
