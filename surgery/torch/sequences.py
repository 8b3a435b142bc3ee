"""New layers over time and over entities as modules: branches of PyTorch's own layers that start at zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from surgery.arrays import Array
from surgery.edits.insertion import Insertion, NewNode

Source = tuple[str, Callable[[Array], Array]]
"""Where the numbers of a parameter come from: the plan's tensor, and what of it they are."""

CELLS: Mapping[str, tuple[Callable[..., nn.RNNBase], tuple[int, ...]]] = {
    "LSTM": (nn.LSTM, (0, 2, 3, 1)),
    "GRU": (nn.GRU, (1, 0, 2)),
    "RNN": (nn.RNN, (0,)),
}
"""By ONNX operator: PyTorch's layer, and which of the operator's gates each of its gates is."""


class SelfAttention(nn.Module):
    """x + softmax(s q kᵀ) v P over the middle axis; s is 1/√d as it was made, also when heads have grown since."""

    def __init__(
        self, heads: int, query: nn.Linear, key: nn.Linear, value: nn.Linear, project: nn.Linear
    ) -> None:
        super().__init__()
        self.heads, self.scale = heads, (query.out_features // heads) ** -0.5
        self.query, self.key, self.value, self.project = query, key, value, project

    def forward(self, x: Tensor) -> Tensor:
        """(batch, entities, units) → the same."""
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2).flatten(2)
        y: Tensor = x + self.project(mixed)
        return y


class RecurrentBranch(nn.Module):
    """x + P · cell(x), with a cell that starts at zero in every call."""

    def __init__(self, cell: nn.RNNBase, project: nn.Linear) -> None:
        super().__init__()
        self.cell, self.project = cell, project

    def forward(self, x: Tensor) -> Tensor:
        """What the layer before it makes, (time, batch, units) or (batch, time, units) → the same."""
        made, _ = self.cell(x)
        y: Tensor = x + self.project(made)
        return y


def sources(insertion: Insertion) -> dict[str, Source]:
    """The parameters of a new layer by name; PyTorch keeps its matrices (out, in), and gates in another order."""
    cell = cell_of(insertion)
    found: dict[str, Source] = {}
    for tensor in insertion.tensors:
        part = tensor.name.rpartition(".")[2]
        if cell is not None and part in ("W", "R", "B"):
            found |= _recurrent(tensor.name, part, CELLS[cell.operator][1])
        elif len(tensor.shape) == 2 and tensor.axes == (1, 0):
            found[tensor.name] = (tensor.name, np.transpose)
        else:
            found[tensor.name] = (tensor.name, np.asarray)
    return found


def _recurrent(name: str, part: str, order: tuple[int, ...]) -> dict[str, Source]:
    root = name.rpartition(".")[0]

    def gates(rows: Array) -> Array:
        return np.concatenate([np.split(rows, len(order))[gate] for gate in order])

    if part != "B":
        side = {"W": "ih", "R": "hh"}[part]
        return {f"{root}.cell.weight_{side}_l0": (name, lambda a: gates(a[0]))}
    return {
        f"{root}.cell.bias_ih_l0": (name, lambda a: gates(np.split(a[0], 2)[0])),
        f"{root}.cell.bias_hh_l0": (name, lambda a: gates(np.split(a[0], 2)[1])),
    }


def cell_of(insertion: Insertion) -> NewNode | None:
    """The recurrent node of a new layer."""
    nodes = insertion.places[0].nodes
    return next((node for node in nodes if node.operator in CELLS), None)


def attention(insertion: Insertion, numbers: Mapping[str, Tensor]) -> SelfAttention:
    """Self-attention with these parameters."""
    heads = next(t.numbers[2] for t in insertion.tensors if t.name == f"{insertion.name}/heads")
    return SelfAttention(int(heads), *_products(insertion, numbers))


def recurrent(insertion: Insertion, numbers: Mapping[str, Tensor], batch_first: bool) -> RecurrentBranch:
    """A branch of a recurrent layer with these parameters."""
    node = cell_of(insertion)
    assert node is not None
    own = {
        key.rpartition(".")[2]: t for key, t in numbers.items() if key.rpartition(".")[0].endswith(".cell")
    }
    rows, units = own["weight_ih_l0"].shape
    kind, order = CELLS[node.operator]
    cell = kind(units, rows // len(order), batch_first=batch_first, device="meta")
    for key, tensor in own.items():
        setattr(cell, key, tensor)
    (project,) = _products(insertion, numbers)
    return RecurrentBranch(cell, project)


def _products(insertion: Insertion, numbers: Mapping[str, Tensor]) -> list[nn.Linear]:
    """The products with matrices of the layer's own, in order, with the biases that are added to them."""
    nodes, found = insertion.places[0].nodes, []
    for node in nodes:
        weight = numbers.get(node.inputs[1]) if node.operator == "MatMul" else None
        if weight is None:
            continue
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        added = next(
            (n.inputs[1] for n in nodes if n.operator == "Add" and n.inputs[0] == node.outputs[0]), ""
        )
        for name, tensor in (("weight", weight), ("bias", numbers.get(added))):
            setattr(layer, name, tensor)
        found.append(layer)
    return found
