"""The networks of d3rlpy's algorithms as one graph, under `MODULE.NAME` of the framework's own names.

Which networks an algorithm has is told by its modules; encoders, heads and the range of deviations by the
configuration. (d3rlpy/algos/qlearning/*.py `inner_create_impl`, d3rlpy/models/torch)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.builder import GraphBuilder
from surgery.errors import CorruptFile, Refused
from surgery.interface import Port
from surgery_adapters.d3rlpy.encoders import EXPORT, Encoder
from surgery_adapters.networks.built import Built
from surgery_adapters.networks.layers import Layers

DISCRETE = ("dqn", "double_dqn", "nfq", "discrete_cql", "discrete_sac", "discrete_bc")
CONTINUOUS = (
    "sac", "td3", "ddpg", "td3_plus_bc", "cql", "cal_ql", "iql", "awac", "bc", "prdc", "rebrac", "crr",
)  # fmt: skip
_LOG_STD: Mapping[str, tuple[float, float]] = {"iql": (-5.0, 2.0), "awac": (-6.0, 0.0), "bc": (-4.0, 15.0)}
"""Where the logarithm of the deviation ends, if not at (−20, 2)."""
_FACTORIES = {"policy": "actor", "targ_policy": "actor", "q_funcs": "critic", "targ_q_funcs": "critic"}
_PARAMETERS = ("log_temp", "log_alpha")
"""Modules that are one number, and no part of any network."""
SCOPES: Mapping[str, tuple[str, ...]] = {
    "optim": ("q_funcs", "imitator"), "actor_optim": ("policy",), "critic_optim": ("q_funcs", "value_func"),
}  # fmt: skip
"""Optimizer -> the modules that it trains, in its order, where they are there."""
_MOST_QUANTILES = 1 << 16
_STATISTICS = ("num_batches_tracked",)


@dataclass
class Networks(Built):
    """What was built.

    Attributes:
      encoders: factory in the configuration -> prefixes of the encoders that it makes.
    """

    encoders: dict[str, list[str]] = field(default_factory=dict)


def build(tensors: Mapping[str, ir.TensorProtocol], config: Mapping[str, Any]) -> Networks:
    """Build the networks of a saved algorithm.

    Args:
      tensors: `MODULE.NAME` -> parameter or buffer. config: the file's.

    Raises:
      Refused: an algorithm, encoder or head without a rule.
      ArgumentError, CorruptFile: parameters that do not fit the configuration.
    """
    algorithm = config["config"]["type"]
    if algorithm not in DISCRETE + CONTINUOUS:
        raise Refused(
            f"there is no rule for the networks of d3rlpy's '{algorithm}'; there are rules for "
            f"{', '.join(DISCRETE + CONTINUOUS)}",
            hint=EXPORT,
        )
    return _Builder(tensors, config).build()


def _factory_of(params: Mapping[str, Any], module: str) -> str:
    """The name of the encoder factory of a module in the configuration."""
    own = f"{_FACTORIES.get(module, 'value')}_encoder_factory"
    return own if own in params else "encoder_factory"


class _Builder:
    def __init__(self, tensors: Mapping[str, ir.TensorProtocol], config: Mapping[str, Any]) -> None:
        self.algorithm, self.params = config["config"]["type"], config["config"]["params"]
        self.shape, self.actions = tuple(config["observation_shape"]), int(config["action_size"])
        self.layers = Layers("d3rlpy", tensors)
        self.graph: GraphBuilder = self.layers.graph
        self.found = Networks(self.layers)
        self.modules = list(dict.fromkeys(name.partition(".")[0] for name in tensors))
        self.discrete = self.algorithm in DISCRETE

    def build(self) -> Networks:
        x, action = self._observation(), self._action()
        for module in self.modules:
            suffix = "_target" if module.startswith("targ_") else ""
            if suffix:
                self.found.copies[f"{module}."] = f"{module.removeprefix('targ_')}."
            if module in ("policy", "targ_policy", "imitator"):
                self._policy(module, x, suffix)
            elif module in ("q_funcs", "targ_q_funcs"):
                self._critics(module, x, action, suffix)
            elif module == "value_func":
                value = self.layers.linear(self._encoded(module, f"{module}.", x, None), f"{module}._fc")
                self.found.output(value, "value", (1,), "value")
            elif module not in _PARAMETERS:
                raise Refused(
                    f"there is no rule for the module '{module}' of '{self.algorithm}'", hint=EXPORT
                )
        self._check_all_used()
        return self.found

    def _observation(self) -> ir.Value:
        x = self.graph.input("observation", self.shape)
        scaler = self.params.get("observation_scaler") or {}
        image = scaler.get("type") == "pixel"
        high = 255.0 if image else None
        self.found.inputs.append(
            Port("observation", "observation", 0.0 if image else None, high, declared=True)
        )
        return self.graph.op("Div", x, self.graph.constant(255.0, "float32")) if image else x

    def _action(self) -> ir.Value | None:
        if self.discrete or "q_funcs" not in self.modules:
            return None
        return self.found.critic_action(self.actions)

    def _encoded(self, module: str, prefix: str, x: ir.Value, action: ir.Value | None) -> ir.Value:
        """What the encoder of a network makes of an observation, and of an action; prefix: of the network's."""
        factory = _factory_of(self.params, module)
        if not isinstance(self.params.get(factory), Mapping):
            raise CorruptFile(f"the configuration has no '{factory}'")
        encoder = Encoder.read(self.params[factory], len(self.shape))
        self.found.encoders.setdefault(factory, []).append(f"{prefix}_encoder.")
        return encoder.graph(self.layers, f"{prefix}_encoder.", x, action)

    def _policy(self, module: str, x: ir.Value, suffix: str) -> None:
        features = self._encoded(module, f"{module}.", x, None)
        if f"{module}._mu.weight" in self.layers:
            mean = self.layers.linear(features, f"{module}._mu")
            deviation = self._log_std(module, features, mean)
            self.found.output(mean, f"mean{suffix}", (self.actions,), "other" if suffix else "mean")
            self.found.output(
                deviation, f"action_log_std{suffix}", (self.actions,), "other" if suffix else "log_std"
            )
        else:
            mean = self.layers.linear(features, f"{module}._fc")
            if self.discrete:
                self.found.output(mean, f"logits{suffix}", (self.actions,), "logits")
                return
        scaled = (self.params.get("action_scaler") or {}).get("type") not in (None, "none")
        self.found.action(self.graph.op("Tanh", mean), self.actions, suffix, scaled=scaled)

    def _log_std(self, module: str, features: ir.Value, mean: ir.Value) -> ir.Value:
        """The logarithm of the deviation: clipped where a layer gives it, squashed where a parameter does."""
        graph, (low, high) = self.graph, _LOG_STD.get(self.algorithm, (-20.0, 2.0))
        if f"{module}._logstd.weight" in self.layers:
            bounds = (graph.constant(bound, "float32") for bound in (low, high))
            return graph.op("Clip", self.layers.linear(features, f"{module}._logstd"), *bounds)
        share = graph.op("Sigmoid", self.layers.parameter(f"{module}._logstd"))
        span = graph.op("Mul", share, graph.constant(high - low, "float32"))
        return graph.op(
            "Expand",
            graph.op("Add", span, graph.constant(low, "float32")),
            graph.op("Shape", mean),
        )

    def _critics(self, module: str, x: ir.Value, action: ir.Value | None, suffix: str) -> None:
        """An ensemble: of discrete actions its mean, of continuous ones every member."""
        averaged = self.discrete and self.algorithm != "discrete_sac"
        members = []
        for number in self._members(module):
            prefix, name = f"{module}.{number}.", f"qf{number}"
            features = self._encoded(module, prefix, x, action)
            members.append(self._head(prefix, features, f"{name}_quantiles{suffix}"))
            if not averaged:
                self.found.output(
                    members[-1], f"{name}{suffix}", (self.actions if self.discrete else 1,), "other"
                )
        if averaged:
            mean = members[0] if len(members) == 1 else self.graph.op("Mean", *members)
            self.found.output(mean, f"q_values{suffix}", (self.actions,), "other" if suffix else "q_values")

    def _members(self, module: str) -> Iterator[str]:
        members = list(self.layers.modules(f"{module}."))
        if members != [str(number) for number in range(len(members))]:
            raise CorruptFile(f"the members of '{module}' are not numbered from 0: {', '.join(members[:5])}")
        return iter(members)

    def _head(self, prefix: str, features: ir.Value, quantiles: str) -> ir.Value:
        """The expected return of every action, or of the one that was seen: (batch, actions) or (batch, 1).

        Args:
          quantiles: the name of the output that they are the mean of, where the head gives quantiles.
        """
        graph, factory = self.graph, self.params.get("q_func_factory") or {"type": "mean"}
        kind, params = factory.get("type"), factory.get("params") or {}
        if kind == "mean":
            return self.layers.linear(features, f"{prefix}_fc")
        if kind == "qr":
            shape = (self.actions if self.discrete else 1, _count(params, "n_quantiles"))
            cube = graph.op(
                "Reshape", self.layers.linear(features, f"{prefix}_fc"), graph.constant([0, *shape])
            )
            self.found.output(cube, quantiles, shape, "other")
            return graph.op("ReduceMean", cube, graph.constant([2]), keepdims=0)
        if kind == "iqn":
            return self._implicit(prefix, features, _count(params, "n_greedy_quantiles"))
        raise Refused(f"there is no rule for the Q function '{kind}'")

    def _implicit(self, prefix: str, features: ir.Value, count: int) -> ir.Value:
        """The mean over evenly spaced quantiles τ of fc(h ⊙ relu(embed(cos(π i τ)))) (Dabney et al., 2018)."""
        graph, layers = self.graph, self.layers
        size = layers.shape(f"{prefix}_embed.weight")[1]
        steps, ranks = self._counted((size,)), self._counted((count, 1))
        step = graph.constant(math.pi / max(count - 1, 1), "float32")
        angles = graph.op("Mul", graph.op("Sub", ranks, graph.constant(1.0, "float32")), step)
        prior = graph.op("Cos", graph.op("Mul", angles, steps))  # (quantiles, size)
        embedded = graph.op("Relu", layers.linear(prior, f"{prefix}_embed"))  # (quantiles, features)
        product = graph.op("Mul", graph.op("Unsqueeze", features, graph.constant([1])), embedded)
        weight = graph.op("Transpose", layers.parameter(f"{prefix}_fc.weight"), perm=[1, 0])
        values = graph.op("Add", graph.op("MatMul", product, weight), layers.parameter(f"{prefix}_fc.bias"))
        return graph.op("ReduceMean", values, graph.constant([1]), keepdims=0)

    def _counted(self, shape: tuple[int, ...]) -> ir.Value:
        """1, 2 … along the first axis; counted in the graph, where it is seen that their number is fixed."""
        return self.graph.op("CumSum", self.graph.constant(np.ones(shape), "float32"), self.graph.constant(0))

    def _check_all_used(self) -> None:
        for name in self.layers.unread():
            if not (name.startswith(_PARAMETERS) or name.endswith(_STATISTICS)):
                raise CorruptFile(f"the configuration makes no network with the parameter '{name}'")


def _count(params: Mapping[str, Any], key: str) -> int:
    """A number of quantiles."""
    found = params.get(key, 32)
    if type(found) is not int or not 0 < found <= _MOST_QUANTILES:
        raise CorruptFile(f"the configuration's '{key}' is not a number of quantiles: {found}")
    return found
