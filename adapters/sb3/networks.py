"""The networks of Stable-Baselines3 and sb3-contrib as one graph, under the framework's own parameter names.

Which network an algorithm has is told by the names in `policy.pth`; activations and the form of the noise by
`policy_kwargs`. (stable_baselines3/common/policies.py, torch_layers.py, preprocessing.py, and each `policies.py`)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from surgery.adapters import Reading
from surgery.builder import GraphBuilder
from surgery.errors import ArgumentError, CorruptFile, Refused
from surgery.interface import Port
from surgery_adapters.containers.spaces import Space, box_port
from surgery_adapters.networks.built import Built
from surgery_adapters.networks.layers import NATURE, Geometry, Layers, activation_of
from surgery_adapters.sb3.file import Sb3File

_EXPORT = "export the policy to ONNX, and bind its optimizer with surgery attach"
LOG_STD = (-20.0, 2.0)
"""Where SAC and TQC clip the logarithm of the deviation."""


@dataclass(kw_only=True)
class Networks(Built):
    """What was built.

    Attributes:
      family: "dqn", "qrdqn", "actor-critic", "recurrent", "sac", "td3" or "tqc".
    """

    family: str


def build(file: Sb3File, reading: Reading) -> Networks:
    """Build the networks of a saved model.

    Raises:
      Refused: a features extractor, space or form of noise without a rule.
      ArgumentError: a parameter that such a policy has is missing, or the activation is not known.
    """
    layers = Layers("stable-baselines3", file.policy)
    networks = _builder(file, reading, layers).build()
    if unread := layers.unread():
        raise Refused(f"'{unread[0]}' belongs to no network of the framework's own policies", hint=_EXPORT)
    return networks


def _builder(file: Sb3File, reading: Reading, layers: Layers) -> _Builder:
    """What builds the networks of a policy."""
    names = {name.partition(".")[0] for name in file.policy}
    if "q_net" in names:
        return _Value(file, reading, layers, "dqn")
    if "quantile_net" in names:
        return _Value(file, reading, layers, "qrdqn")
    if "lstm_actor" in names:
        return _Recurrent(file, reading, layers, "recurrent")
    if {"action_net", "value_net"} <= names:
        return _ActorCritic(file, reading, layers, "actor-critic")
    renormalised = any(name.endswith(".ra_mean") for name in file.policy)  # CrossQ's
    if {"actor", "critic"} <= names and not renormalised:
        kind = "td3" if "actor_target" in names else "tqc" if "tqc" in file.policy_class else "sac"
        return _OffPolicy(file, reading, layers, kind)
    raise Refused(
        f"the policy '{file.policy_class}' with the parts {', '.join(sorted(names)[:6])} is none of DQN, QR-DQN, PPO, "
        "A2C, SAC, TD3, TQC or RecurrentPPO",
        hint=_EXPORT,
    )


class _Builder:
    """What all policies have in common: observations, features extractors, activations."""

    def __init__(self, file: Sb3File, reading: Reading, layers: Layers, family: str) -> None:
        self.file, self.layers = file, layers
        self.graph: GraphBuilder = layers.graph
        self.found = Networks(layers, family=family)
        self.observation = file.space("observation_space")
        self.action = file.space("action_space")
        default = "tanh" if family in ("actor-critic", "recurrent") else "relu"
        self.activation = reading.activation or self._activation(default)
        self._inputs: dict[str, ir.Value] = {}

    def _activation(self, default: str) -> str:
        chosen = self.file.kwargs.get("activation_fn")
        if chosen is None:
            return default
        try:
            return activation_of(str(chosen))
        except ArgumentError as error:
            raise ArgumentError(
                f"the policy's activation '{chosen}' is not known", hint="say what it is: --activation NAME"
            ) from error

    def build(self) -> Networks:
        """The networks of the policy."""
        raise NotImplementedError

    def features(self, extractor: str) -> ir.Value:
        """The features that an extractor makes of the observation, (batch, features).

        Args:
          extractor: its module path, with the dot.
        """
        space = self.observation
        chosen = str(self.file.kwargs.get("features_extractor_class", ""))
        module, _, name = chosen.rpartition(".")
        known = module in ("stable_baselines3.common.torch_layers", "surgery_adapters.sb3.extractor")
        if chosen and not (known and name in ("NatureCNN", "FlattenExtractor", "CombinedExtractor")):
            raise Refused(
                f"the features extractor '{chosen}' is your own: what it computes is not in the file",
                hint=_EXPORT,
            )
        if space.kind != "Dict":
            return self._extracted("observation", space, extractor)
        parts = [
            self._extracted(key, part, f"{extractor}extractors.{key}.") for key, part in space.spaces.items()
        ]
        return self.graph.op("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]

    def _extracted(self, name: str, space: Space, extractor: str) -> ir.Value:
        x = self._preprocessed(name, space)
        if f"{extractor}cnn.0.weight" in self.layers:
            x = self.layers.convolutions(x, f"{extractor}cnn.", geometry(self.file.kwargs, name))
            return self.layers.mlp(x, f"{extractor}linear.", "relu", last=True)
        return self.graph.op("Flatten", x, axis=1) if len(space.shape) > 1 else x

    def _preprocessed(self, name: str, space: Space) -> ir.Value:
        """`preprocess_obs`: images divided by 255, whole numbers as one-hot vectors."""
        if name in self._inputs:
            return self._inputs[name]
        graph = self.graph
        if space.kind == "Discrete":
            x = graph.input(name, (), "int64")
            result = self._one_hot(x, space.counts[0])
            self.found.inputs.append(Port(name, "observation", 0, space.counts[0] - 1, declared=True))
        elif space.kind == "MultiDiscrete":
            x = graph.input(name, space.shape, "int64")
            columns = graph.ops("Split", x, outputs=len(space.counts), axis=1, num_outputs=len(space.counts))
            columns = [graph.op("Squeeze", column, graph.constant([1])) for column in columns]
            parts = [self._one_hot(column, n) for column, n in zip(columns, space.counts, strict=True)]
            result = graph.op("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]
            highs = tuple(float(n - 1) for n in space.counts)
            self.found.inputs.append(Port(name, "observation", 0, highs, declared=True))
        else:
            result = graph.input(name, space.shape)
            self.found.inputs.append(box_port(name, space))
            if space.image and self.file.kwargs.get("normalize_images", True):
                result = graph.op("Div", result, graph.constant(255.0, "float32"))
        self._inputs[name] = result
        return result

    def _one_hot(self, column: ir.Value, count: int) -> ir.Value:
        """(batch,) of whole numbers -> (batch, count)."""
        off_on = self.graph.constant([0.0, 1.0], "float32")
        return self.graph.op("OneHot", column, self.graph.constant(count), off_on, axis=-1)

    def gaussian(self, mean: ir.Value, latent: ir.Value, log_std: str, count: int) -> None:
        """The outputs `mean` and `log_std` of a Gaussian policy, with or without state-dependent exploration."""
        graph = self.graph
        parameter = self.layers.parameter(log_std)
        if len(self.layers.shape(log_std)) == 1:
            deviation = graph.op("Expand", parameter, graph.op("Shape", mean))
        else:
            # gSDE: variance = latent² · exp(log_std)², and 1e-6 to stay above zero (distributions.py)
            if self.file.kwargs.get("use_expln"):
                raise Refused(
                    "there is no rule for gSDE with 'use_expln'",
                    hint=_EXPORT,
                )
            std = graph.op("Exp", parameter)
            variance = graph.op("MatMul", graph.op("Mul", latent, latent), graph.op("Mul", std, std))
            floor = graph.op("Add", variance, graph.constant(1e-6, "float32"))
            deviation = graph.op("Mul", graph.op("Log", floor), graph.constant(0.5, "float32"))
            if self.layers.shape(log_std)[1] == 1 != count:
                deviation = graph.op("Expand", deviation, graph.op("Shape", mean))
        self.found.output(mean, "mean", (count,), "mean")
        # PPO has a parameter of the name log_std already
        self.found.output(deviation, "action_log_std", (count,), "log_std")

    def action_size(self) -> int:
        """Number of components of a continuous action."""
        if self.action.kind != "Box":
            raise Refused(f"this policy is for continuous actions, the file has a {self.action.kind}")
        return int(self.action.features)


class _Value(_Builder):
    """DQN and QR-DQN: a value per action, and a target network."""

    def build(self) -> Networks:
        net = "q_net" if self.found.family == "dqn" else "quantile_net"
        for prefix, suffix in ((f"{net}.", ""), (f"{net}_target.", "_target")):
            x = self.features(f"{prefix}features_extractor.")
            x = self.layers.mlp(x, f"{prefix}{net}.", self.activation, last=False)
            self._head(x, suffix)
        self.found.copies[f"{net}_target."] = f"{net}."
        return self.found

    def _head(self, x: ir.Value, suffix: str) -> None:
        count = self.action.features
        if self.found.family == "dqn":
            self.found.output(x, f"q_values{suffix}", (count,), "other" if suffix else "q_values")
            return
        heads = int(self.file.data.get("n_quantiles", 0))
        if heads < 1:
            raise ArgumentError("the file does not say how many quantiles an action has")
        # (batch, quantiles · actions), and the mean over the quantiles of each action
        cube = self.graph.op("Reshape", x, self.graph.constant([0, heads, count]))
        mean = self.graph.op("ReduceMean", cube, self.graph.constant([1]), keepdims=0)
        self.found.output(mean, f"q_values{suffix}", (count,), "other" if suffix else "q_values")
        by_action = self.graph.op("Transpose", cube, perm=[0, 2, 1])
        self.found.output(by_action, f"quantiles{suffix}", (count, heads), "other" if suffix else "quantiles")


class _ActorCritic(_Builder):
    """PPO and A2C: logits or a Gaussian, and a value."""

    def build(self) -> Networks:
        first, second = self.latents()
        actor = self._shared(first)
        critic = actor if second is first else self._shared(second)
        actor = self.layers.mlp(actor, "mlp_extractor.policy_net.", self.activation, last=True)
        critic = self.layers.mlp(critic, "mlp_extractor.value_net.", self.activation, last=True)
        head = self.layers.linear(actor, "action_net")
        if self.action.kind == "Box":
            self.gaussian(head, actor, "log_std", self.action.features)
            if self.file.kwargs.get("squash_output"):  # of gSDE alone
                self.found.action(self.graph.op("Tanh", head), self.action.features)
        else:
            # MultiDiscrete: the logits of every component, one after the other; MultiBinary: one each
            self.found.output(head, "logits", (self.action.features,), "logits")
        self.found.output(self.layers.linear(critic, "value_net"), "value", (1,), "value")
        return self.found

    def latents(self) -> tuple[ir.Value, ir.Value]:
        """What actor and critic begin with."""
        prefix = "pi_features_extractor." if self._has("pi_features_extractor.") else "features_extractor."
        actor = self.features(prefix)
        return actor, self.features("vf_features_extractor.") if self._has(
            "vf_features_extractor."
        ) else actor

    def _shared(self, features: ir.Value) -> ir.Value:
        """The layers that actor and critic could have in common before version 1.8."""
        return self.layers.mlp(features, "mlp_extractor.shared_net.", self.activation, last=True)

    def _has(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.layers.tensors)


class _Recurrent(_ActorCritic):
    """RecurrentPPO: one step of an LSTM between the features and the rest; its state goes in and out."""

    def latents(self) -> tuple[ir.Value, ir.Value]:
        actor_in, critic_in = super().latents()
        actor = self._lstm(actor_in, "lstm_actor")
        if self._has("lstm_critic."):
            return actor, self._lstm(critic_in, "lstm_critic")
        return actor, self.layers.linear(critic_in, "critic") if self._has("critic.") else actor

    def _lstm(self, x: ir.Value, module: str) -> ir.Value:
        states: dict[str, list[ir.Value]] = {"hidden": [], "cell": []}
        layer = 0
        while f"{module}.weight_hh_l{layer}" in self.layers:
            size = self.layers.shape(f"{module}.weight_hh_l{layer}")[1]
            for kind, values in states.items():
                name = f"{module}.{kind}.{layer}"
                values.append(self.graph.input(name, (size,)))
                self.found.inputs.append(Port(name, "state", declared=True))
            layer += 1
        x, *after = self.layers.lstm(x, module, states["hidden"], states["cell"])
        for kind, values in zip(states, after, strict=True):
            for number, value in enumerate(values):
                size = self.layers.shape(f"{module}.weight_hh_l{number}")[1]
                self._late.append((value, f"{module}.{kind}.{number}.next", size))
        return x

    def build(self) -> Networks:
        self._late: list[tuple[ir.Value, str, int]] = []
        super().build()
        for value, name, size in self._late:
            self.found.output(value, name, (size,), "state")
        return self.found


class _OffPolicy(_Builder):
    """SAC, TQC and TD3: an actor, critics that read the action too, and target networks."""

    def build(self) -> Networks:
        count = self.action_size()
        if self.found.family == "td3":
            for prefix, suffix in (("actor.", ""), ("actor_target.", "_target")):
                x = self.layers.mlp(
                    self.features(f"{prefix}features_extractor."), f"{prefix}mu.", self.activation, last=False
                )
                self.found.action(self.graph.op("Tanh", x), count, suffix)
            self.found.copies["actor_target."] = "actor."
        else:
            self._stochastic(count)
        action = self.found.critic_action(count)
        for prefix, suffix in (("critic.", ""), ("critic_target.", "_target")):
            self._critics(prefix, suffix, action)
        self.found.copies["critic_target."] = "critic."
        return self.found

    def _stochastic(self, count: int) -> None:
        x = self.features("actor.features_extractor.")
        latent = self.layers.mlp(x, "actor.latent_pi.", self.activation, last=True)
        if "actor.log_std" in self.layers:  # gSDE: the mean is clipped (sac/policies.py)
            mean = self.layers.linear(
                latent, "actor.mu.0" if "actor.mu.0.weight" in self.layers else "actor.mu"
            )
            clip = float(self.file.kwargs.get("clip_mean", 2.0))
            if clip > 0:
                bounds = (self.graph.constant(bound, "float32") for bound in (-clip, clip))
                mean = self.graph.op("Clip", mean, *bounds)
            self.gaussian(mean, latent, "actor.log_std", count)
        else:
            mean = self.layers.linear(latent, "actor.mu")
            bounds = (self.graph.constant(bound, "float32") for bound in LOG_STD)
            deviation = self.graph.op("Clip", self.layers.linear(latent, "actor.log_std"), *bounds)
            self.found.output(mean, "mean", (count,), "mean")
            self.found.output(deviation, "action_log_std", (count,), "log_std")
        self.found.action(self.graph.op("Tanh", mean), count)

    def _critics(self, prefix: str, suffix: str, action: ir.Value) -> None:
        x = self.graph.op("Concat", self.features(f"{prefix}features_extractor."), action, axis=1)
        for name in (name for name in self.layers.modules(prefix) if name.startswith("qf")):
            value = self.layers.mlp(x, f"{prefix}{name}.", self.activation, last=False)
            last = self.layers.places(f"{prefix}{name}.")[-1]
            width = self.layers.shape(f"{prefix}{name}.{last}.weight")[0]
            self.found.output(value, f"{name}{suffix}", (width,), "other")


def geometry(kwargs: Mapping[str, Any], key: str) -> Geometry:
    """The convolutions of the features extractor of an image, by `policy_kwargs`.

    Args:
      key: of the image in a Dict of observations.
    """
    given = kwargs.get("features_extractor_kwargs") or {}
    given = {**given, **(given.get("layers") or {}).get(key, {})}
    usual = dict(zip(("kernels", "strides", "paddings"), zip(*NATURE, strict=True), strict=True))
    try:
        sizes = [[int(n) for n in given.get(name, default)] for name, default in usual.items()]
        return [(kernel, stride, padding) for kernel, stride, padding in zip(*sizes, strict=True)]
    except (TypeError, ValueError) as error:
        raise CorruptFile(f"the features extractor's settings are damaged: {error}") from error
