"""Batch normalisations taken into the layers before them: what a plan says of one, and how it is done.

    γ (W x + b − μ)/√(σ² + ε) + β  =  (s W) x + s (b − μ) + β        s = γ/√(σ² + ε)

Gradients: ∂L/∂(sW) = (∂L/∂W)/s, channel by channel, and that of the new bias is that of β.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.arrays import Array
from surgery.errors import PlanMismatch
from surgery.graph.unused import drop_unused
from surgery.optimizer import OptimizerState, power


@dataclass(frozen=True, slots=True)
class FoldedNorm:
    """One batch normalisation that goes.

    Attributes:
      node: of it, by the name of its first output. layer: the node before it, likewise.
      weight: the layer's weight. axis: of its output channels.
      bias: the layer's bias; a new tensor if it had none (`bare`).
      scale, shift, mean, variance: the tensors of the normalisation. epsilon: under its root.
    """

    node: str
    layer: str
    weight: str
    axis: int
    bias: str
    bare: bool
    scale: str
    shift: str
    mean: str
    variance: str
    epsilon: float

    @property
    def tensors(self) -> frozenset[str]:
        """Every tensor that takes part."""
        return frozenset((self.weight, self.bias, self.scale, self.shift, self.mean, self.variance))

    def factor(self, tensors: Mapping[str, ir.TensorProtocol]) -> Array:
        """s, in float64, (channels,)."""
        scale, variance = (tensors[name].numpy().astype(np.float64) for name in (self.scale, self.variance))
        return np.asarray(scale / np.sqrt(variance + self.epsilon))

    def describe(self) -> str:
        """One line."""
        return f"  the batch normalisation of '{self.node}' goes into {self.weight} and {self.bias}"


def from_json(data: Mapping[str, Any]) -> FoldedNorm:
    """Raises: KeyError, TypeError, ValueError: not one."""
    texts = ("node", "layer", "weight", "bias", "scale", "shift", "mean", "variance")
    if not all(isinstance(data[name], str) and data[name] for name in texts):
        raise TypeError("the names of a folded normalisation are texts")
    axis, bare, epsilon = data["axis"], data["bare"], data["epsilon"]
    if (
        axis not in (0, 1)
        or not isinstance(bare, bool)
        or not isinstance(epsilon, float)
        or not 0 < epsilon < 1
    ):
        raise ValueError(f"axis {axis!r}, bare {bare!r}, epsilon {epsilon!r}")
    return FoldedNorm(**{name: data[name] for name in texts}, axis=axis, bare=bare, epsilon=epsilon)


def fold_norm(model: ir.Model, norm: FoldedNorm, *, double: bool) -> None:
    """Take a batch normalisation into the layer before it, in place.

    Raises:
      PlanMismatch: the nodes or tensors are not those that the plan speaks of.
    """
    graph = model.graph
    nodes = {node.outputs[0].name: node for node in graph if node.outputs}
    node, layer = nodes.get(norm.node), nodes.get(norm.layer)
    held = {n: v.const_value for n, v in graph.initializers.items() if v.const_value is not None}
    missing = [n for n in norm.tensors if n not in held and not (norm.bare and n == norm.bias)]
    fits = node is not None and node.op_type == "BatchNormalization" and layer is not None
    if missing or node is None or layer is None or not fits or node.inputs[0] is not layer.outputs[0]:
        raise PlanMismatch(
            f"the plan folds the batch normalisation of '{norm.node}', which is not behind '{norm.layer}'"
        )
    weight, dtype = held[norm.weight], held[norm.weight].dtype
    factor = norm.factor(held)
    mean, shift = (held[name].numpy().astype(np.float64) for name in (norm.mean, norm.shift))
    bias = np.zeros_like(mean) if norm.bare else held[norm.bias].numpy().astype(np.float64)
    along = [1] * len(weight.shape)
    along[norm.axis] = len(factor)
    stored = ir.DataType.DOUBLE if double else dtype
    new = {
        norm.weight: weight.numpy().astype(np.float64) * factor.reshape(along),
        norm.bias: (bias - mean) * factor + shift,
    }
    for name, array in new.items():
        tensor = ir.Tensor(array.astype(stored.numpy()), dtype=stored, name=name)
        if name not in graph.initializers:
            value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(stored))
            value.const_value = tensor
            graph.register_initializer(value)
            layer.resize_inputs(3)
            literal = layer.inputs[2]
            layer.replace_input_with(2, value)
            drop_unused(model, literal)
        graph.initializers[name].const_value = tensor
    _bypass(graph, node, layer.outputs[0])


def _bypass(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Let all who read a node's result read another value, and remove the node with what only it read."""
    result, operands = node.outputs[0], list(node.inputs)
    if result.is_graph_output():
        name, value.name = result.name, None
        result.name, value.name = None, name
        value.shape, value.type = result.shape, result.type
    result.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    for operand in operands[1:]:
        if operand is not None and operand.name in graph.initializers and not operand.uses():
            del graph.initializers[str(operand.name)]


def folded_state(
    state: OptimizerState, norms: tuple[FoldedNorm, ...], tensors: Mapping[str, ir.TensorProtocol]
) -> OptimizerState:
    """The optimizer state that follows: slots of weights divided by s, those of β for the bias; γ and β go."""
    groups, steps = list(state.groups), dict(state.steps)
    slots: dict[str, dict[str, ir.TensorProtocol]] = {slot: dict(held) for slot, held in state.slots.items()}
    for norm in norms:
        factor, gone = norm.factor(tensors), (norm.scale, norm.mean, norm.variance)
        inverse = np.divide(1.0, factor, out=np.zeros_like(factor), where=factor != 0)
        for slot, held in slots.items():
            if norm.weight in held:
                held[norm.weight] = _scaled(held[norm.weight], inverse ** power(state.kind, slot), norm.axis)
            if norm.shift in held:
                held[norm.bias] = held.pop(norm.shift)
            for name in gone:
                held.pop(name, None)
        for name in gone:
            steps.pop(name, None)
        if norm.shift in steps:
            steps[norm.bias] = steps.pop(norm.shift)
        for k, group in enumerate(groups):
            names = [norm.bias if n == norm.shift and norm.bare else n for n in group.parameters]
            groups[k] = replace(group, parameters=tuple(n for n in names if n not in (*gone, norm.shift)))
    return state.replace(slots=slots, steps=steps, groups=tuple(groups))


def _scaled(tensor: ir.TensorProtocol, factor: Array, axis: int) -> ir.TensorProtocol:
    along = [1] * len(tensor.shape)
    along[axis] = len(factor)
    array = tensor.numpy() * factor.reshape(along)
    return ir.Tensor(array.astype(tensor.dtype.numpy()), dtype=tensor.dtype, name=tensor.name)
