"""New layers as modules: what `surgery.deepen` describes in nodes, in PyTorch's own layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from surgery.edits.insertion import Insertion, NewNode
from surgery.errors import Refused
from surgery.torch.sequences import attention, cell_of, recurrent, sources
from surgery.torch.stored import to_torch

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


class Residual(nn.Sequential):
    """x + α F(x), with F its layers one after the other; α is 1 where it has none of its own."""

    def __init__(self, alpha: nn.Parameter | None = None) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        """Any tensor that the layers take; the result has its shape."""
        y: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return x + y if self.alpha is None else x + self.alpha * y


def layers_of(
    insertion: Insertion, rank: int, numbers: Mapping[str, Tensor], batch_first: bool = False
) -> list[nn.Module]:
    """A new layer as modules, to be called one after the other.

    Args:
      insertion: of one place or several alike.
      rank: number of axes of what it reads, the batch included.
      numbers: its tensors, as `new_numbers` names them.
      batch_first: whether a recurrent layer reads (batch, time, units).

    Raises:
      Refused: a kind without such a form; names the operator.
    """
    if cell_of(insertion) is not None:
        return [recurrent(insertion, numbers, batch_first)]
    if insertion.kind == "attention":
        return [attention(insertion, numbers)]
    return _Builder(insertion, rank, numbers).build()


class _Builder:
    """Follows the nodes of one place from the value that they read."""

    def __init__(self, insertion: Insertion, rank: int, numbers: Mapping[str, Tensor]) -> None:
        self.insertion, self.rank, self.numbers = insertion, rank, numbers
        self.place = insertion.places[0]
        self.made: list[tuple[str, nn.Module]] = []
        self.alpha: nn.Parameter | None = None
        self.closed = False

    def build(self) -> list[nn.Module]:
        current, turned = self.place.value, set[str]()
        for node in self.place.nodes:
            if node.operator == "Transpose" and node.inputs[0] in self.numbers:
                turned.add(node.outputs[0])  # x Wᵀ: nn.Linear transposes by itself
                continue
            if current not in node.inputs:
                raise self._no_form(node)
            self._follow(node, current)
            current = node.outputs[0]
        modules = [module for _, module in self.made]
        if not self.closed:
            return modules
        block = Residual(self.alpha)
        for name, module in self.made:
            block.add_module(name, module)
        return [block]

    def _follow(self, node: NewNode, current: str) -> None:
        match node.operator:
            case "Conv":
                self._add(node.inputs[1], self._convolution(node))
            case "Gemm" | "MatMul":
                weight = self._weight(node)
                self._add(weight, self._linear(weight, node))
            case "BatchNormalization":
                self._add(node.inputs[1], self._norm(node))
            case "Add" if self.place.value in node.inputs:
                self.closed = True
            case "Add" if self._is_bias(node, current):
                pass
            case "Mul":
                self.alpha = self._parameter(node.inputs[0])
            case _:
                self.made.append((f"act{len(self.made)}", self._activation(node)))

    def _add(self, tensor: str, module: nn.Module) -> None:
        part = tensor.removeprefix(f"{self.insertion.name}.").rpartition(".")[0]
        self.made.append((part.replace(".", "_") or f"layer{len(self.made)}", module))

    def _is_bias(self, node: NewNode, current: str) -> bool:
        other = next(name for name in node.inputs if name != current)
        if other not in self.numbers or not self.made or not isinstance(self.made[-1][1], nn.Linear):
            return False
        self.made[-1][1].bias = self._parameter(other)
        return True

    def _weight(self, node: NewNode) -> str:
        """The matrix that a product reads, perhaps through a transposition."""
        name = node.inputs[1]
        if name in self.numbers:
            return name
        makers = {output: other for other in self.place.nodes for output in other.outputs}
        return makers[name].inputs[0]

    def _linear(self, weight: str, node: NewNode) -> nn.Linear:
        out, into = self.numbers[weight].shape
        layer = nn.Linear(into, out, bias=False, device="meta")
        layer.weight = self._parameter(weight)
        if node.operator == "Gemm":
            layer.bias = self._parameter(node.inputs[2])
        return layer

    def _convolution(self, node: NewNode) -> nn.Module:
        weight, bias = (self._parameter(name) for name in node.inputs[1:3])
        out, into, *kernel = weight.shape
        made: Callable[..., Any] = _CONVOLUTIONS[len(kernel) - 1]
        layer: nn.Module
        layer = made(into, out, tuple(kernel), padding=tuple((k - 1) // 2 for k in kernel), device="meta")
        layer.weight, layer.bias = weight, bias
        return layer

    def _norm(self, node: NewNode) -> nn.Module:
        weight, bias = (self._parameter(name) for name in node.inputs[1:3])
        layer = _NORMS[self.rank](len(weight), eps=float(node.attributes["epsilon"]))  # type: ignore[arg-type]
        layer.weight, layer.bias = weight, bias
        layer.running_mean, layer.running_var = (self.numbers[name] for name in node.inputs[3:5])
        return layer

    def _parameter(self, name: str) -> nn.Parameter:
        found = self.numbers[name]
        assert isinstance(found, nn.Parameter)
        return found

    def _activation(self, node: NewNode) -> nn.Module:
        if node.operator not in ACTIVATIONS or len(node.inputs) > 1:
            raise self._no_form(node)
        return ACTIVATIONS[node.operator](node.attributes)

    def _no_form(self, node: NewNode) -> Refused:
        return Refused(
            f"a new {self.insertion.kind} layer with the operator {node.operator} has no form as a module",
            where={"layer": self.insertion.name},
            hint="kinds that have: identity, residual, rezero, batchnorm; or deepen the exported file",
        )


Attributes = Mapping[str, Any]

ACTIVATIONS: Mapping[str, Callable[[Attributes], nn.Module]] = {
    "Relu": lambda _: nn.ReLU(),
    "Tanh": lambda _: nn.Tanh(),
    "Sigmoid": lambda _: nn.Sigmoid(),
    "Softplus": lambda _: nn.Softplus(),
    "Mish": lambda _: nn.Mish(),
    "Selu": lambda _: nn.SELU(),
    "HardSwish": lambda _: nn.Hardswish(),
    "Elu": lambda a: nn.ELU(float(a.get("alpha", 1.0))),
    "Celu": lambda a: nn.CELU(float(a.get("alpha", 1.0))),
    "LeakyRelu": lambda a: nn.LeakyReLU(float(a.get("alpha", 0.01))),
    "Gelu": lambda a: nn.GELU(str(a.get("approximate", "none"))),
}
"""Activations by ONNX operator, made from its attributes."""


def new_numbers(insertion: Insertion, seed: int, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a new layer as they start: parameters are of the type and device of the one that they join.

    Args:
      insertion: the layer. seed: of the plan. held: the network's own tensors.
    """
    model = next(held[t.like] for t in insertion.tensors if t.like is not None)
    planned = {tensor.name: tensor for tensor in insertion.tensors}
    made: dict[str, Tensor] = {}
    for name, (origin, _) in sources(insertion).items():
        like, start = planned[origin].like, started(insertion, name, seed, model)
        if like is None or not start.is_floating_point():
            made[name] = start
        else:
            made[name] = nn.Parameter(start, requires_grad=held[like].requires_grad)
    return made


def started(insertion: Insertion, name: str, seed: int, like: Tensor) -> Tensor:
    """The numbers that a tensor of a new layer starts with, by its name in PyTorch."""
    origin, taken = sources(insertion)[name]
    tensor = next(tensor for tensor in insertion.tensors if tensor.name == origin)
    start = to_torch(taken(tensor.values(seed, np.dtype(np.float64))))
    return start.to(like.device, like.dtype if tensor.dtype.startswith(("float", "bfloat")) else torch.int64)
