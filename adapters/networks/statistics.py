"""Running statistics that observations are normalised by, where a file holds them with a network, or beside it.

rsl_rl's `EmpiricalNormalization`: `(x − mean) / (std + 0.01)`, with the buffers `_mean`, `_var`, `_std` (1, features)
and `count` (rsl_rl/modules/normalization.py, 5.0). skrl's `RunningStandardScaler`: `(x − mean) / (√variance + 1e-8)`
between −5 and 5, with `running_mean`, `running_variance` (features) and `current_count`
(skrl/resources/preprocessors/torch/running_standard_scaler.py, 2.1; both numbers as they are by default).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from surgery.builder import GraphBuilder
from surgery.errors import Refused
from surgery.tensors import equal, shape_of
from surgery_adapters.networks.layers import HINT, Layers, Tensors
from surgery_adapters.networks.wiring import Group
from surgery_adapters.networks.words import roles_of

_LEAVES = {"_mean", "_var", "_std", "count", "running_mean", "running_variance", "current_count"}


def is_statistic(name: str) -> bool:
    """Whether a buffer has the name of such a statistic."""
    return name.rpartition(".")[2] in _LEAVES


def are_statistics(entry: str, members: Tensors) -> bool:
    """Whether an entry of a file is what observations are normalised by; what values are is none of it."""
    own = "_mean" in members or ("running_variance" in members and entry.startswith(("observation", "state")))
    return own and set(members) <= _LEAVES


def normalised(layers: Layers, x: ir.Value, group: Group, tensors: Tensors, prefix: str) -> ir.Value:
    """What a group reads of an observation: that, or what statistics make of it.

    Args:
      x: (batch, features). tensors: of the network, and beside it. prefix: of the network's names.

    Raises:
      Refused: there are several statistics that it may be.
    """
    roles = roles_of(group.name.removeprefix(prefix))
    found: dict[str, tuple[frozenset[str], str]] = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        theirs = roles_of(module.removeprefix(prefix))
        other = {"_mean": "_std", "running_mean": "running_variance"}.get(leaf)
        if (
            f"{module}.{other}" in tensors
            and shape_of(tensor) in ((1, group.wanted), (group.wanted,))
            and (not theirs or theirs & roles)
        ):
            found[module] = theirs, leaf
    nearest = [module for module, (theirs, _) in found.items() if theirs == roles] or list(found)
    if len(nearest) > 1:
        raise Refused(f"'{group.name}' is normalised by '{nearest[0]}', or by '{nearest[1]}'", hint=HINT)
    for module in nearest:
        x = _RULES[found[module][1]](layers, x, module)
    return x


def _rsl_rl(layers: Layers, x: ir.Value, module: str) -> ir.Value:
    graph: GraphBuilder = layers.graph
    mean, deviation = (layers.parameter(f"{module}.{leaf}") for leaf in ("_mean", "_std"))
    scale = graph.op("Add", deviation, graph.constant(1e-2, "float32"))
    return graph.op("Div", graph.op("Sub", x, mean), scale)


def _skrl(layers: Layers, x: ir.Value, module: str) -> ir.Value:
    graph: GraphBuilder = layers.graph
    mean, variance = (
        graph.op("Cast", layers.parameter(f"{module}.running_{leaf}"), to=int(ir.DataType.FLOAT))
        for leaf in ("mean", "variance")
    )
    scale = graph.op("Add", graph.op("Sqrt", variance), graph.constant(1e-8, "float32"))
    x = graph.op("Div", graph.op("Sub", x, mean), scale)
    return graph.op("Clip", x, *(graph.constant(bound, "float32") for bound in (-5.0, 5.0)))


_RULES: Mapping[str, Callable[[Layers, ir.Value, str], ir.Value]] = {"_mean": _rsl_rl, "running_mean": _skrl}
"""The statistic that tells a kind of normaliser -> how a graph writes it."""


def variances(old: Tensors, now: Tensors) -> dict[str, ir.TensorProtocol]:
    """The variances, which no graph reads, of statistics whose deviations have become others.

    Args:
      old: what a file holds. now: what some of it becomes.
    """
    found: dict[str, ir.TensorProtocol] = {}
    for name, tensor in now.items():
        variance = f"{name.removesuffix('_std')}_var"
        if name.endswith("._std") and variance in old and not equal(old[name], tensor):
            square = np.square(tensor.numpy().astype(np.float64)).astype(old[variance].dtype.numpy())
            found[variance] = ir.Tensor(square, name=variance)
    return found
