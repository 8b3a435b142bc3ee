"""Several networks of one form in one state dict: every tensor has a leading axis that counts them.

So do `torch.func.stack_module_state` and the losses of TorchRL with `num_qvalue_nets`: of linear layers the weights are
(networks, out, in) and the biases (networks, out), and each network computes with its own of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from surgery.errors import Refused
from surgery.tensors import shape_of
from surgery_adapters.networks.layers import HINT, Layers

Tensors = Mapping[str, ir.TensorProtocol]


def stacked_in(tensors: Tensors) -> int:
    """How many networks each tensor holds the parameters of; 0 where there is one."""
    shapes = {name: shape_of(tensor) for name, tensor in tensors.items()}
    biases = [name for name in shapes if name.endswith(".bias")]
    if not biases or any(len(shape) < 2 or len(shape) > 3 for shape in shapes.values()):
        return 0
    if len({shape[0] for shape in shapes.values()}) > 1:
        return 0
    weights = (shapes.get(f"{name.removesuffix('.bias')}.weight", ()) for name in biases)
    fit = all(shapes[name] == weight[:2] for name, weight in zip(biases, weights, strict=True))
    return next(iter(shapes.values()))[0] if fit else 0


def linear(layers: Layers, x: ir.Value, module: str) -> ir.Value:
    """`x Wᵀ + b` of every network, x (networks or 1, batch, in), W (networks, out, in).

    Raises:
      Refused: no linear layer.
    """
    weight = f"{module}.weight"
    if len(layers.shape(weight)) != 3:
        raise Refused(
            f"'{weight}' of shape {list(layers.shape(weight))} holds several networks' parameters, of no linear layer",
            hint=HINT,
        )
    graph = layers.graph
    x = graph.op("MatMul", x, graph.op("Transpose", layers.parameter(weight), perm=(0, 2, 1)))
    if f"{module}.bias" not in layers:
        return x
    return graph.op("Add", x, graph.op("Unsqueeze", layers.parameter(f"{module}.bias"), graph.constant([1])))


def layer_norm(layers: Layers, x: ir.Value, module: str) -> ir.Value:
    """Layer-norm of every network over its last axis, x (networks, batch, units), scale and shift (networks, units)."""
    graph = layers.graph
    own = [
        graph.op("Unsqueeze", layers.parameter(f"{module}.{leaf}"), graph.constant([1]))
        for leaf in ("weight", "bias")
    ]
    return graph.op("LayerNormalization", x, *own, axis=-1, epsilon=1e-5)


def together(layers: Layers, x: ir.Value) -> ir.Value:
    """What all networks read, (1, batch, features), of (batch, features)."""
    return layers.graph.op("Unsqueeze", x, layers.graph.constant([0]))


def apart(layers: Layers, x: ir.Value, networks: int) -> list[ir.Value]:
    """What each network makes, (batch, units), of (networks, batch, units)."""
    graph = layers.graph
    return [graph.op("Gather", x, graph.constant(k), axis=0) for k in range(networks)]
