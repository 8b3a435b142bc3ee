"""The default modules of RLlib's new API stack as one graph, under the framework's own parameter names.

(ray/rllib/core/models/catalog.py, core/models/torch, algorithms/{ppo,dqn,sac,appo}/torch/default_*_torch_rl_module.py)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from surgery.builder import GraphBuilder
from surgery.errors import ArgumentError, CorruptFile, Refused
from surgery.interface import Port
from surgery_adapters.containers.spaces import Space, box_port
from surgery_adapters.networks.built import Built
from surgery_adapters.networks.layers import Layers, Tensors, activation_of

CLIPS = "log_std_clip_param_const"
"""A buffer of every head, which no gradient reaches."""
_SQUASHED = (-5.0, 2.0)
"""Where SAC's distribution clips the logarithm of the deviation. (ray/rllib/utils/numpy.py)"""
_DEFAULTS: Mapping[str, Any] = {
    "fcnet_hiddens": [256, 256], "fcnet_activation": "tanh", "conv_activation": "relu", "head_fcnet_hiddens": [],
    "head_fcnet_activation": "relu", "lstm_cell_size": 256, "fusionnet_hiddens": [256, 256],
    "fusionnet_activation": "tanh",
}  # fmt: skip
"""Settings that a dict leaves out. (ray/rllib/core/rl_module/default_model_config.py)"""
_FILTERS: Mapping[int, Sequence[Sequence[int]]] = {
    96: ((16, 8, 4), (32, 4, 2), (256, 11, 2)),
    84: ((16, 8, 4), (32, 4, 2), (256, 11, 1)),
    64: ((16, 4, 2), (32, 4, 2), (64, 4, 2), (128, 4, 2)),
    42: ((16, 4, 2), (32, 4, 2), (256, 11, 1)),
    10: ((16, 5, 2), (32, 5, 2)),
}
"""Side of an image -> channels, kernel and stride where none are given. (ray/rllib/models/utils.py)"""


@dataclass
class Networks(Built):
    """What was built.

    Attributes:
      scopes: optimizer -> prefixes of what it trains; the others are carried.
      sized: setting of the model_config -> for every network that it sizes, the modules of its layers.
      config: the model_config, defaults included.
      filters: channels, kernel, stride and padding of each convolution, as the framework has them by default.
    """

    scopes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sized: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    filters: list[list[Any]] = field(default_factory=list)
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def padded(self) -> set[str]:
        """The sequences of convolutions, where padding is a module before each."""
        return {module.rpartition(".")[0] for every in self.sized.get("conv_filters", ()) for module in every}


def build(
    kind: str, tensors: Tensors, config: Mapping[str, Any], observation: Space, action: Space
) -> Networks:
    """Build the networks of a module.

    Args:
      kind: the name of its class. tensors: its parameters and buffers. config: its model_config.

    Raises:
      Refused: a module, space or setting without a rule.
      ArgumentError, CorruptFile: parameters that do not fit the configuration.
    """
    if kind not in _MODULES:
        raise Refused(
            f"the module '{kind}' is your own: what it computes is not in the checkpoint",
            hint="export it to ONNX, and bind its optimizer with surgery attach",
        )
    try:
        return _MODULES[kind](tensors, config, observation, action).build()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptFile(f"the model_config is damaged: {type(error).__name__}: {error}") from error


class _Builder:
    """What all modules have in common: observations, encoders, heads."""

    def __init__(
        self, tensors: Tensors, config: Mapping[str, Any], observation: Space, action: Space
    ) -> None:
        self.layers, self.config, self.action = Layers("rllib", tensors), {**_DEFAULTS, **config}, action
        self.graph: GraphBuilder = self.layers.graph
        self.found = Networks(self.layers, config=self.config)
        if observation.kind != "Box" or len(observation.shape) not in (1, 3):
            raise Refused(
                f"RLlib's default modules see vectors and images, not a {observation.kind} {observation.shape}"
            )
        if action.kind not in ("Discrete", "Box") or len(action.shape) > 1:
            raise Refused(f"there is no rule for the actions {action.kind} {action.shape}")
        self.discrete = action.kind == "Discrete"
        self.count = action.counts[0] if self.discrete else math.prod(action.shape)
        self.shape = observation.shape
        self.found.inputs.append(box_port("observation", observation))
        self.observation = self.graph.input("observation", self.shape)
        self._late: list[tuple[ir.Value, str, int]] = []
        self._states: dict[str, ir.Value] = {}

    def finished(self) -> Networks:
        """The networks, once every parameter of the module is in the graph."""
        for value, name, size in self._late:
            self.found.output(value, name, (size,), "state")
        for name in self.layers.unread():
            if not name.endswith(CLIPS):
                raise CorruptFile(f"the model_config makes no network with the parameter '{name}'")
        return self.found

    def encoded(self, prefix: str, suffix: str = "") -> ir.Value:
        """The features of an encoder: (batch, features).

        Args:
          prefix: of its parameters, with the dot. suffix: of a target network, whose state is that of its original.
        """
        if not self.config.get("use_lstm"):
            return self._stateless(prefix)
        x, module = self._stateless(f"{prefix}tokenizer."), f"{prefix}lstm"
        size = self.layers.shape(f"{module}.weight_hh_l0")[1]
        if size != self.config["lstm_cell_size"]:
            raise CorruptFile(
                f"'{module}' has {size} cells, the configuration says {self.config['lstm_cell_size']}"
            )
        self.found.sized.setdefault("lstm_cell_size", []).append((module,))
        # a target network starts from the state of its original
        states = [self._state(f"{prefix.removeprefix('_old_').removeprefix('_target_')}lstm.{kind}.0", size)
                  for kind in ("hidden", "cell")]  # fmt: skip
        after: ir.Value
        after, hidden, cell = self.layers.lstm(x, module, states[:1], states[1:])
        if not suffix:
            self._late += [
                (hidden[0], f"{module}.hidden.0.next", size),
                (cell[0], f"{module}.cell.0.next", size),
            ]
        return after

    def _state(self, name: str, size: int) -> ir.Value:
        if name not in self._states:
            self._states[name] = self.graph.input(name, (size,))
            self.found.inputs.append(Port(name, "state", declared=True))
        return self._states[name]

    def _stateless(self, prefix: str) -> ir.Value:
        if len(self.shape) == 3:
            return self._convolved(f"{prefix}net.0.cnn.")
        normed = bool(self.config.get("fcnet_use_layernorm"))
        return self.dense(f"{prefix}net.mlp.", self.observation, "fcnet_hiddens", normed=normed)

    def dense(
        self,
        prefix: str,
        x: ir.Value,
        setting: str,
        *,
        head: int | None = None,
        last: int | None = None,
        normed: bool = False,
    ) -> ir.Value:
        """A `TorchMLP`: linear layers, layer-norm where it is asked for, and an activation behind each.

        Args:
          prefix: of its `nn.Sequential`. x: (batch, in). setting: the widths of its hidden layers.
          head: width of one linear layer more. last: another width of the last one. normed: whether it has layer-norm.
        """
        widths, place = [int(width) for width in self.config[setting]], 0
        activation = self._activation(setting.replace("hiddens", "activation"))
        modules = []
        for number, width in enumerate(widths):
            module = f"{prefix}{place}"
            ends = last is not None and number == len(widths) - 1
            self.layers.check_width(module, last if ends and last is not None else width)
            modules += [] if ends else [module]
            x, place = self.layers.linear(x, module), place + 1
            if normed:
                x, place = self.layers.layer_norm(x, f"{prefix}{place}", 1e-3), place + 1
            if activation is not None:
                x, place = self.layers.activate(x, activation), place + 1
        self.found.sized.setdefault(setting, []).append(tuple(modules))
        if head is None:
            return x
        self.layers.check_width(f"{prefix}{place}", head)
        return self.layers.linear(x, f"{prefix}{place}")

    def _activation(self, setting: str) -> str | None:
        name = self.config.get(setting)
        if name is None or str(name).lower() == "linear":
            return None
        try:
            return activation_of(str(name))
        except ArgumentError as error:
            raise Refused(f"there is no rule for the activation '{name}' of '{setting}'") from error

    def _convolved(self, prefix: str) -> ir.Value:
        """The convolutions of an image (batch, height, width, channels), flattened in this order too."""
        graph, side, place, modules = self.graph, self.shape[0], 0, []
        filters = self.config.get("conv_filters") or _FILTERS.get(side)
        if not filters:
            raise CorruptFile(f"the model_config has no convolutions for images of {self.shape}")
        x, sizes = graph.op("Transpose", self.observation, perm=[0, 3, 1, 2]), list(self.shape[:2])
        activation = self._activation("conv_activation")
        for channels, kernel, stride, *rest in filters:
            padding, (k, s) = (rest or ["same"])[0], (square(kernel), square(stride))
            pads = _same(sizes, k, s) if padding == "same" else [0, 0, 0, 0]
            place += padding == "same"
            module = f"{prefix}{place}"
            self.layers.check_width(module, int(channels))
            if tuple(self.layers.shape(f"{module}.weight")[2:]) != (k, k):
                raise CorruptFile(f"'{module}' does not have the configuration's kernel {k}×{k}")
            modules.append(module)
            x, place = self.layers.convolution(x, module, s, pads), place + 1
            if activation is not None:
                x, place = self.layers.activate(x, activation), place + 1
            sizes = [math.ceil(n / s) if padding == "same" else math.ceil((n - k + 1) / s) for n in sizes]
        self.found.sized.setdefault("conv_filters", []).append(tuple(modules))
        self.found.filters = [list(entry) for entry in filters]
        return graph.op("Flatten", graph.op("Transpose", x, perm=[0, 2, 3, 1]), axis=1)

    def policy(self, prefix: str, features: ir.Value, suffix: str, clip: tuple[float, float] | None) -> None:
        """The outputs of a policy head: logits, or the mean and the logarithm of the deviation.

        Args:
          clip: of the latter; None for none.
        """
        other, free = bool(suffix), bool(self.config.get("free_log_std"))
        normed = bool(self.config.get("head_fcnet_use_layernorm")) and self.normed_heads
        width = self.count * (2 if not self.discrete and not free else 1)
        x = self.dense(f"{prefix}net.mlp.", features, "head_fcnet_hiddens", head=width, normed=normed)
        if self.discrete:
            self.found.output(x, f"logits{suffix}", (self.count,), "other" if other else "logits")
            return
        graph = self.graph
        if free:
            mean, deviation = (
                x,
                graph.op("Expand", self.layers.parameter(f"{prefix}log_std"), graph.op("Shape", x)),
            )
        else:
            mean, deviation = graph.ops("Split", x, outputs=2, axis=1, num_outputs=2)
        if clip is not None:
            deviation = graph.op("Clip", deviation, *(graph.constant(bound, "float32") for bound in clip))
        self.found.output(mean, f"mean{suffix}", (self.count,), "other" if other else "mean")
        self.found.output(
            deviation, f"action_log_std{suffix}", (self.count,), "other" if other else "log_std"
        )

    normed_heads = False
    """Whether its heads know layer-norm."""


class _ActorCritic(_Builder):
    """PPO, IMPALA and APPO: a policy and a value, with one encoder or two; APPO has a copy of encoder and policy."""

    normed_heads = True

    def build(self) -> Networks:
        bound = float(self.config.get("log_std_clip_param", 20.0))
        clip = (-bound, bound)
        actor, critic = self._features("encoder.", "")
        self.policy("pi.", actor, "", clip)
        self.found.output(self._value(critic), "value", (1,), "value")
        if any(name.startswith("_old_pi.") for name in self.layers.tensors):
            actor, critic = self._features("_old_encoder.", "_target")
            self.policy("_old_pi.", actor, "_target", clip)
            # the framework keeps no old value head; this one reads the old features, so that all are in the graph
            self.found.output(self._value(critic), "value_target", (1,), "other")
            self.found.copies |= {"_old_encoder.": "encoder.", "_old_pi.": "pi."}
        self.found.scopes["default_optimizer"] = ("encoder.", "pi.", "vf.")
        return self.finished()

    def _features(self, prefix: str, suffix: str) -> tuple[ir.Value, ir.Value]:
        if self.config.get("vf_share_layers", True):
            shared = self.encoded(f"{prefix}encoder.", suffix)
            return shared, shared
        return self.encoded(f"{prefix}actor_encoder.", suffix), self.encoded(
            f"{prefix}critic_encoder.", suffix
        )

    def _value(self, features: ir.Value) -> ir.Value:
        normed = bool(self.config.get("head_fcnet_use_layernorm"))
        return self.dense("vf.net.mlp.", features, "head_fcnet_hiddens", head=1, normed=normed)


class _Value(_Builder):
    """DQN: values or distributions of them over atoms, dueling or not, and a target network."""

    def build(self) -> Networks:
        for prefix, suffix in (("", ""), ("_target_", "_target")):
            self._values(prefix, suffix)
        parts = ("encoder.", "af.", "vf.")[: 3 if self.config.get("dueling") else 2]
        self.found.copies = {f"_target_{part}": part for part in parts}
        self.found.scopes["default_optimizer"] = parts
        return self.finished()

    def _values(self, prefix: str, suffix: str) -> None:
        graph, atoms = self.graph, int(self.config.get("num_atoms", 1))
        x = self.encoded(f"{prefix}encoder.", suffix)
        values = self.dense(f"{prefix}af.net.mlp.", x, "head_fcnet_hiddens", head=self.count * atoms)
        if atoms > 1:
            values = graph.op("Reshape", values, graph.constant([0, self.count, atoms]))
        if self.config.get("dueling"):
            # Q = A − mean A + V (Wang et al., 2016, eq. 9); of distributions the framework takes the mean over atoms
            mean = graph.op("ReduceMean", values, graph.constant([2 if atoms > 1 else 1]), keepdims=1)
            value = self.dense(f"{prefix}vf.net.mlp.", x, "head_fcnet_hiddens", head=1)
            value = graph.op("Unsqueeze", value, graph.constant([2])) if atoms > 1 else value
            values = graph.op("Add", graph.op("Sub", values, mean), value)
        if atoms > 1:
            values = self._expected(values, atoms, suffix)
        self.found.output(values, f"q_values{suffix}", (self.count,), "other" if suffix else "q_values")

    def _expected(self, logits: ir.Value, atoms: int, suffix: str) -> ir.Value:
        """The mean of the distributions with these logits, (batch, actions, atoms) (Bellemare et al., 2017)."""
        low, high = float(self.config["v_min"]), float(self.config["v_max"])
        self.found.output(logits, f"atom_logits{suffix}", (self.count, atoms), "other")
        support = self.graph.constant([low + k * (high - low) / (atoms - 1) for k in range(atoms)], "float32")
        shares = self.graph.op("Softmax", logits, axis=2)
        return self.graph.op(
            "ReduceSum", self.graph.op("Mul", shares, support), self.graph.constant([2]), keepdims=0
        )


class _OffPolicy(_Builder):
    """SAC: a policy, one or two critics that see the action too where it is continuous, and target networks."""

    def build(self) -> Networks:
        self.policy("pi.", self.encoded("pi_encoder."), "", _SQUASHED)
        self.found.scopes["policy"] = ("pi_encoder.", "pi.")
        action = None if self.discrete else self.found.critic_action(self.count)
        for number, critic in enumerate(["qf", "qf_twin"] if self.config.get("twin_q") else ["qf"]):
            for prefix, suffix in (("", ""), ("target_", "_target")):
                features = self._judged(f"{prefix}{critic}_encoder.", action)
                width = self.count if self.discrete else 1
                value = self.dense(f"{prefix}{critic}.net.mlp.", features, "head_fcnet_hiddens", head=width)
                self.found.output(value, f"qf{number}{suffix}", (width,), "other")
            parts = (f"{critic}_encoder.", f"{critic}.")
            self.found.copies |= {f"target_{part}": part for part in parts}
            self.found.scopes[critic] = parts
        return self.finished()

    def _judged(self, prefix: str, action: ir.Value | None) -> ir.Value:
        """Observation and action, encoded apart and fused by layers that each see both encodings again."""
        if action is None:
            return self.encoded(prefix)
        seen = self.encoded(f"{prefix}base_encoders.obs.")
        output, latent = f"{prefix}output_layer", self._latent(prefix)
        done = self.dense(f"{prefix}base_encoders.actions.net.mlp.", action, "fcnet_hiddens", last=latent)
        both: ir.Value = self.graph.op("Concat", done, seen, axis=1)
        x, activation = both, self._activation("fusionnet_activation") or "identity"
        modules = [f"{prefix}fusion_layers.{k}" for k in range(len(self.config["fusionnet_hiddens"]))]
        for module, width in zip(modules, self.config["fusionnet_hiddens"], strict=True):
            self.layers.check_width(module, int(width))
            into = both if x is both else self.graph.op("Concat", x, both, axis=1)
            x = self.layers.activate(self.layers.linear(into, module), activation)
        self.found.sized.setdefault("fusionnet_hiddens", []).append(tuple(modules))
        self.layers.check_width(output, latent)
        into = both if x is both else self.graph.op("Concat", x, both, axis=1)
        return self.layers.activate(self.layers.linear(into, output), activation)

    def _latent(self, prefix: str) -> int:
        """The number of features of an observation, which those of an action and of both have too."""
        if len(self.shape) == 1:
            return int(self.config["fcnet_hiddens"][-1])
        return int(self.layers.shape(f"{prefix}output_layer.weight")[0])


_MODULES: Mapping[str, type[_ActorCritic] | type[_Value] | type[_OffPolicy]] = {
    "DefaultAPPOTorchRLModule": _ActorCritic,
    "DefaultDQNTorchRLModule": _Value,
    "DefaultPPOTorchRLModule": _ActorCritic,
    "DefaultSACTorchRLModule": _OffPolicy,
}
"""The framework's default modules; IMPALA has that of PPO."""


def square(size: Any) -> int:  # noqa: ANN401
    """A kernel's or a stride's one size."""
    both = list(size) if isinstance(size, list | tuple) else [size]
    if len(set(both)) != 1:
        raise Refused(f"there is no rule for kernels and strides that are not square: {both}")
    return int(both[0])


def _same(sizes: Sequence[int], kernel: int, stride: int) -> list[int]:
    """TensorFlow's padding "same", top, left, bottom, right. (ray/rllib/models/torch/misc.py `same_padding`)"""
    total = [(math.ceil(size / stride) - 1) * stride + kernel - size for size in sizes]
    if min(total) < 0:
        raise Refused("there is no rule for convolutions whose stride is longer than their kernel")
    before = [pad // 2 for pad in total]
    return [*before, *(pad - half for pad, half in zip(total, before, strict=True))]
