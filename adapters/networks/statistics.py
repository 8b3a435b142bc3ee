"""Running statistics that observations are normalised by, where a file holds them with a network, or beside it.

rsl_rl's `EmpiricalNormalization`: `(x − mean) / (std + 0.01)`, with the buffers `_mean`, `_var`, `_std` (1, features)
and `count` (rsl_rl/modules/normalization.py, 5.0). skrl's `RunningStandardScaler`: `(x − mean) / (√variance + 1e-8)`
between −5 and 5, with `running_mean`, `running_variance` (features) and `current_count`
(skrl/resources/preprocessors/torch/running_standard_scaler.py, 2.1; both numbers as they are by default). rl_games'
`RunningMeanStd`: `(x − mean) / √(var + 1e-5)` between −5 and 5, with `running_mean`, `running_var` (features) and
`count`; it learns values in such a scale, too (rl_games/algos_torch/running_mean_std.py, 1.6).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.builder import GraphBuilder
from surgery.errors import Refused
from surgery.tensors import equal, shape_of
from surgery_adapters.networks.layers import HINT, Layers, Tensors
from surgery_adapters.networks.wiring import Group
from surgery_adapters.networks.words import roles_of

_VALUES = "value_mean_std"
"""What rl_games calls the statistics of values."""


@dataclass(frozen=True)
class _Kind:
    """The statistics of a framework.

    Attributes:
      leaves: the names of the mean, of what tells its spread, and of what is always beside them. more: of what may be.
      entries: how the names of those of observations begin, where they are entries of a file.
      write: a graph of them, on an observation, by the module's name.
    """

    leaves: tuple[str, ...]
    more: frozenset[str]
    entries: tuple[str, ...]
    write: Callable[[Layers, ir.Value, str], ir.Value]

    def is_of(self, module: str, tensors: Tensors) -> bool:
        """Whether a module, by its name with the dot, is of this kind."""
        return all(f"{module}{leaf}" in tensors for leaf in self.leaves)


def is_statistic(name: str) -> bool:
    """Whether a buffer has the name of such a statistic."""
    return any(name.rpartition(".")[2] in {*kind.leaves, *kind.more} for kind in _KINDS)


def are_statistics(entry: str, members: Tensors) -> bool:
    """Whether an entry of a file is what observations are normalised by; what values are is none of it."""
    return any(
        kind.is_of("", members)
        and set(members) <= {*kind.leaves, *kind.more}
        and entry.startswith(kind.entries)
        for kind in _KINDS
    )


def normalised(layers: Layers, x: ir.Value, group: Group, tensors: Tensors, prefix: str) -> ir.Value:
    """What a group reads of an observation: that, or what statistics make of it.

    Args:
      x: (batch, features). tensors: of the network, and beside it. prefix: of the network's names.

    Raises:
      Refused: there are several statistics that it may be.
    """
    roles = roles_of(group.name.removeprefix(prefix))
    found: dict[str, tuple[frozenset[str], _Kind]] = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        own = module.removeprefix(prefix).removesuffix("running_mean_std")
        theirs = roles_of(own)
        kind = next(
            (kind for kind in _KINDS if leaf == kind.leaves[0] and kind.is_of(f"{module}.", tensors)), None
        )
        fits = shape_of(tensor) in ((1, group.wanted), (group.wanted,)) and own != _VALUES
        if kind is not None and fits and (not theirs or theirs & roles):
            found[module] = theirs, kind
    nearest = [module for module, (theirs, _) in found.items() if theirs == roles] or list(found)
    if len(nearest) > 1:
        raise Refused(f"'{group.name}' is normalised by '{nearest[0]}', or by '{nearest[1]}'", hint=HINT)
    for module in nearest:
        x = found[module][1].write(layers, x, module)
    return x


def denormalised(layers: Layers, value: ir.Value, tensors: Tensors, prefix: str) -> ir.Value:
    """A value in the units of the rewards, of what a network says in those of its statistics, if it has any."""
    module = f"{prefix}{_VALUES}"
    if not _RL_GAMES.is_of(f"{module}.", tensors):
        return value
    graph, (mean, deviation) = layers.graph, _moments(layers, module)
    return graph.op("Add", graph.op("Mul", _clipped(graph, value), deviation), mean)


def _rsl_rl(layers: Layers, x: ir.Value, module: str) -> ir.Value:
    graph = layers.graph
    mean, deviation = (layers.parameter(f"{module}.{leaf}") for leaf in ("_mean", "_std"))
    scale = graph.op("Add", deviation, graph.constant(1e-2, "float32"))
    return graph.op("Div", graph.op("Sub", x, mean), scale)


def _skrl(layers: Layers, x: ir.Value, module: str) -> ir.Value:
    graph = layers.graph
    mean, variance = (_single(layers, f"{module}.running_{leaf}") for leaf in ("mean", "variance"))
    scale = graph.op("Add", graph.op("Sqrt", variance), graph.constant(1e-8, "float32"))
    return _clipped(graph, graph.op("Div", graph.op("Sub", x, mean), scale))


def _rl_games(layers: Layers, x: ir.Value, module: str) -> ir.Value:
    graph, (mean, deviation) = layers.graph, _moments(layers, module)
    return _clipped(graph, graph.op("Div", graph.op("Sub", x, mean), deviation))


def _moments(layers: Layers, module: str) -> tuple[ir.Value, ir.Value]:
    """rl_games' mean and deviation."""
    mean, variance = (_single(layers, f"{module}.running_{leaf}") for leaf in ("mean", "var"))
    graph = layers.graph
    return mean, graph.op("Sqrt", graph.op("Add", variance, graph.constant(1e-5, "float32")))


def _single(layers: Layers, name: str) -> ir.Value:
    """A statistic, which is kept in double precision, as a graph computes with it."""
    return layers.graph.op("Cast", layers.parameter(name), to=int(ir.DataType.FLOAT))


def _clipped(graph: GraphBuilder, x: ir.Value) -> ir.Value:
    return graph.op("Clip", x, *(graph.constant(bound, "float32") for bound in (-5.0, 5.0)))


_RL_GAMES = _Kind(("running_mean", "running_var", "count"), frozenset(), ("running_mean_std",), _rl_games)
_KINDS = (
    _Kind(("_mean", "_std"), frozenset({"_var", "count"}), ("",), _rsl_rl),
    _Kind(
        ("running_mean", "running_variance"), frozenset({"current_count"}), ("observation", "state"), _skrl
    ),
    _RL_GAMES,
)


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
