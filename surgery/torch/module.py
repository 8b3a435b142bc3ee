"""ONNX graphs as trainable modules."""

from __future__ import annotations

import linecache
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import InlinePass
from torch import nn
from torch.nn import functional as F

from surgery.arrays import Array
from surgery.checkpoint import Checkpoint
from surgery.errors import GraphError
from surgery.torch.origins import Stored
from surgery.torch.source import Block, Names
from surgery.torch.stored import initializers, place, reading, to_torch, trainable
from surgery.torch.translate import Program, Scope, facts_of


class Network(nn.Module):
    """A graph as a module: made by `to_module`; each instance has a class of its own with its `forward`.

    Attributes:
      source: the Python source of `forward`.
    """

    source: str = ""

    def __reduce__(self) -> Any:  # noqa: ANN401
        return _restored, (self.source, type(self)._helpers), self.__dict__

    _helpers: Mapping[str, Any] = {}


def to_module(
    model: Checkpoint | ir.Model, *, dtype: torch.dtype | None = None, buffers: Collection[str] = ()
) -> Network:
    """A graph as a trainable module that computes the same.

    `forward` takes the graph's inputs in order and returns its output, or a tuple of them in order. Parameters and
    buffers have the names that the graph gives them (dots are submodules) and hold copies of its tensors. What an
    exporter marked as a parameter is one, and what the checkpoint's optimizer holds; without either, every floating
    tensor with an axis is, except the running statistics of batch norms. Numbers of the graph that are no tensors of
    its state (literals, shapes) are in the source, or in buffers that `state_dict` leaves out. Sizes that depend on
    the inputs are computed as Python integers, so that symbolic axes stay free.

    The module is in evaluation mode, where it computes what the graph does; in training mode batch norms use and
    update the statistics of the batch, and dropout drops.

    Args:
      model: a checkpoint, or a graph in the default ONNX domain (functions in the file are inlined).
      dtype: what float32 becomes, everywhere in the graph; None keeps it.
      buffers: names of tensors that shall not be trained.

    Raises:
      Unsupported: an operator, or a form of one, has no translation; names the node.
      GraphError: the graph is not valid, or holds types that cannot be trained.
    """
    made = translated(model, dtype=dtype, buffers=buffers)
    return _classified(made.root, made.source, made.program.functions).eval()


@dataclass
class Translated:
    """A graph in PyTorch's words.

    Attributes:
      root: holds the tensors. program: what the source refers to. inputs: the names of the arguments.
      block: the lines of the forward pass.
    """

    root: Network
    program: Program
    inputs: list[str]
    block: Block

    @property
    def source(self) -> str:
        """`forward` as Python."""
        head = f"def forward({', '.join(['self', *self.inputs])}):"
        return "\n".join([head, *self.block.text()]) + "\n"


def translated(
    model: Checkpoint | ir.Model, *, dtype: torch.dtype | None = None, buffers: Collection[str] = ()
) -> Translated:
    """A graph's tensors in a tree of modules, and the source of its forward pass; arguments as in `to_module`."""
    graph = _inlined(model.model if isinstance(model, Checkpoint) else model)
    root = Network()
    trained = model.trained if isinstance(model, Checkpoint) else frozenset()
    stored = _store(root, graph, trainable(graph, trained, buffers), dtype)
    program = Program(
        stored=stored,
        keep=lambda array: _literal(root, array, dtype),
        single=dtype,
        names=Names(),
        versions=dict(graph.opset_imports),
        facts=facts_of(graph),
    )
    names, block = _forward(program, graph)
    return Translated(root, program, names, block)


def _inlined(model: ir.Model) -> ir.Model:
    return InlinePass()(model.clone()).model if model.functions else model


def _store(
    root: nn.Module, model: ir.Model, parameters: set[str], dtype: torch.dtype | None
) -> dict[ir.Value, Stored]:
    """Register the initializers that are tensors of the module's state: floats, unless they are bare numbers."""
    placed: dict[ir.Value, torch.Tensor] = {}
    for value in initializers(model):
        name, tensor = str(value.name), value.const_value
        if tensor is None:
            raise GraphError(f"the initializer '{name}' has no data")
        if name not in parameters and not (tensor.dtype.is_floating_point() and len(tensor.shape)):
            continue
        data = to_torch(tensor.numpy())
        placed[value] = data.to(dtype) if dtype is not None and data.dtype == torch.float32 else data
        place(root, name, placed[value], parameter=name in parameters and data.is_floating_point())
    stored: dict[ir.Value, Stored] = {}
    offset = 0
    for value, data in placed.items():
        name = str(value.name)
        stored[value] = Stored(name, reading(root, name), tuple(data.shape), offset)
        offset += data.numel()
    return stored


def _literal(root: nn.Module, array: Array, dtype: torch.dtype | None) -> str:
    data = to_torch(array)
    data = data.to(dtype) if dtype is not None and data.dtype == torch.float32 else data
    count = 0
    while any(f"literal_{count}" in table for table in (root._buffers, root._parameters, root._modules)):
        count += 1
    name = f"literal_{count}"
    place(root, name, data, parameter=False, persistent=False)
    return reading(root, name)


def _forward(program: Program, model: ir.Model) -> tuple[list[str], Block]:
    graph, scope = model.graph, Scope(program, model.graph)
    inputs = [value for value in graph.inputs if not value.is_initializer()]
    names = [scope.argument(value) for value in inputs]
    program.first_input = names[0] if names else ""
    scope.run()
    results = []
    for value in graph.outputs:
        found = scope.find(value)
        if isinstance(found, tuple):
            raise GraphError(f"the output '{value.name}' is a sequence")
        results.append(scope.tensor(found).text)
    scope.block.returned = ", ".join(results)
    scope.block.prune()
    return names, scope.block


def _classified(root: Network, source: str, helpers: Mapping[str, Any]) -> Network:
    """`root` with a class of its own, whose `forward` is compiled from the source."""
    namespace: dict[str, Any] = {"torch": torch, "F": F, "math": math, **helpers}
    file = f"<surgery.torch.to_module {id(root):x}>"
    exec(compile(source, file, "exec"), namespace)
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    forward: FunctionType = namespace["forward"]
    kind = type(
        "Network", (Network,), {"forward": forward, "_helpers": dict(helpers), "__module__": __name__}
    )
    # past nn.Module, which looks for parameters of these names
    object.__setattr__(root, "__class__", kind)
    object.__setattr__(root, "source", source)
    return root


def _restored(source: str, helpers: Mapping[str, Any]) -> Network:
    return _classified(Network(), source, helpers)
