"""The actor-critic of Sample Factory as a graph, from its settings and the names of its parameters.

Observations are shifted, scaled and normalised, each goes through an encoder of its own, all together through a
recurrent core and a decoder; actor and critic share these, or have one each. (sample_factory/model/*.py, 2.1)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from surgery.adapters import Reading
from surgery.builder import GraphBuilder
from surgery.errors import ArgumentError, CorruptFile, Refused
from surgery.interface import Port
from surgery_adapters.networks.built import Built
from surgery_adapters.networks.layers import Layers
from surgery_adapters.sample_factory.settings import Settings

CONVOLUTIONS: Mapping[str, tuple[tuple[int, int, int], ...]] = {
    "convnet_simple": ((32, 8, 4), (64, 4, 2), (128, 3, 2)),
    "convnet_impala": ((16, 8, 4), (32, 4, 2)),
    "convnet_atari": ((32, 8, 4), (64, 4, 2), (64, 3, 1)),
}
"""Architecture -> channels, kernel and stride of each convolution, as they are written into the framework's code."""
RESIDUAL: Mapping[str, tuple[int, ...]] = {"resnet_impala": (16, 32, 32)}
"""Architecture -> channels of each stage of two residual blocks."""
_EPSILON, _CLIP = 1e-5, 5.0
_NORMALISER = "obs_normalizer.running_mean_std.running_mean_std."
_DENSE = ("mlp_layers.0.weight", "mlp_head.0.weight", "decoder.mlp.0.weight")
_HINT = "a model of your own code: surgery convert FILE --module PKG:CALLABLE -o OUT.onnx"


@dataclass(kw_only=True)
class Networks(Built):
    """An actor-critic in the making.

    Attributes:
      settings: of the experiment. reading: what a person knows.
    """

    settings: Settings
    reading: Reading
    _seen: dict[str, tuple[ir.Value, tuple[int, ...]]] = field(default_factory=dict)

    def build(self) -> None:
        """Build everything.

        Raises:
          Refused: the file holds layers that the framework's own networks do not have.
          ArgumentError: the size of images cannot be told.
        """
        shared = self.settings.flag("actor_critic_share_weights", True)
        if not shared and self.settings.flag("use_rnn", False):
            raise Refused(
                "Sample Factory cannot train recurrent networks with weights of their own for the critic"
            )
        actor = self._trunk("" if shared else "actor_")
        critic = actor if shared else self._trunk("critic_")
        self._action(actor)
        self.output(self.layers.linear(critic, "critic_linear"), "value", (1,), "value")
        self._check_whole()

    def _trunk(self, side: str) -> ir.Value:
        keys = list(self.layers.modules(f"{side}encoder.encoders."))
        if not keys:
            raise Refused("the encoder is not one of the framework's own", hint=_HINT)
        features = [
            self._encoded(f"{side}encoder.encoders.{key}.", key, alone=len(keys) == 1) for key in sorted(keys)
        ]
        x = features[0] if len(features) == 1 else self._graph.op("Concat", *features, axis=1)
        if self.settings.flag("use_rnn", False):
            x = self._core(x, "core.core")
        return self._mlp(x, f"{side}decoder.mlp.")

    # ---- what is seen -----------------------------------------------------------------------------------------

    def _encoded(self, prefix: str, key: str, *, alone: bool) -> ir.Value:
        layers = self.layers
        if f"{prefix}mlp_head.0.weight" in layers:
            count = layers.shape(f"{prefix}mlp_head.0.weight")[1]
            return self._mlp(self._observed(key, (count,), alone=alone), f"{prefix}mlp_head.")
        kind = self.settings.word("encoder_conv_architecture", "convnet_simple", (*CONVOLUTIONS, *RESIDUAL))
        if kind in RESIDUAL:
            return self._residual(prefix, key, RESIDUAL[kind], alone=alone)
        head = f"{prefix}enc.conv_head."
        places = layers.places(head)
        plan = CONVOLUTIONS[kind]
        if [layers.shape(f"{head}{place}.weight")[2:] for place in places] != [(k, k) for _, k, _ in plan]:
            raise Refused(f"'{head.rstrip('.')}' does not have the convolutions of '{kind}'", hint=_HINT)
        shape = self._image(key, f"{head}{places[0]}", kind)
        x = self._observed(key, shape, alone=alone)
        for place, (_, _, stride) in zip(places, plan, strict=True):
            x = self._activate(layers.convolution(x, f"{head}{place}", stride))
        return self._mlp(self._graph.op("Flatten", x, axis=1), f"{prefix}enc.mlp_layers.")

    def _residual(self, prefix: str, key: str, stages: Sequence[int], *, alone: bool) -> ir.Value:
        """Of each stage a convolution, a max-pool and two residual blocks, by their places in one sequence."""
        layers, head, pads = self.layers, f"{prefix}conv_head.", (1, 1, 1, 1)
        shape = self._image(key, f"{head}0", "resnet_impala")
        x = self._observed(key, shape, alone=alone)
        for place in range(0, 4 * len(stages), 4):
            x = layers.convolution(x, f"{head}{place}", pads=pads)
            x = self._graph.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=list(pads))
            for block in (f"{head}{place + k}.res_block_core" for k in (2, 3)):
                y = layers.convolution(self._activate(x), f"{block}.1", pads=pads)
                y = layers.convolution(self._activate(y), f"{block}.3", pads=pads)
                x = self._graph.op("Add", y, x)
        x = self._graph.op("Flatten", self._activate(x), axis=1)
        return self._mlp(x, f"{prefix}mlp_layers.")

    def _image(self, key: str, first: str, kind: str) -> tuple[int, ...]:
        """The shape of an image: the normaliser's, what was said, or Atari's; strides leave several sizes open."""
        if f"{_NORMALISER}{key}.running_mean" in self.layers:
            return self.layers.shape(f"{_NORMALISER}{key}.running_mean")
        channels = self.layers.shape(f"{first}.weight")[1]
        if self.reading.observation is None and kind != "convnet_atari":
            raise ArgumentError(
                f"the size of the images of '{key}' is not known",
                hint=f"give it: surgery convert FILE --observation {channels},72,128 -o OUT.onnx",
            )
        return self.reading.observation or (channels, 84, 84)

    def _observed(self, key: str, shape: tuple[int, ...], *, alone: bool) -> ir.Value:
        """The observation as the encoder reads it; actor and critic read the same."""
        if key not in self._seen:
            name = "observation" if alone else key
            x = self._graph.input(name, shape)
            self.inputs.append(Port(name, "observation", declared=True))
            self._seen[key] = self._normalised(x, key), shape
        value, known = self._seen[key]
        if known != shape:
            raise CorruptFile(f"actor and critic read '{key}' in two shapes, {list(known)} and {list(shape)}")
        return value

    def _normalised(self, x: ir.Value, key: str) -> ir.Value:
        """clip(((x − shift) / scale − mean) / √(variance + ε)): shift and scale are settings, of `obs` alone."""
        graph = self._graph
        if key == "obs":
            shift, scale = (
                self.settings.number("obs_subtract_mean", 0.0),
                self.settings.number("obs_scale", 1.0),
            )
            if abs(shift) > 1e-6:
                x = graph.op("Sub", x, graph.constant(shift, "float32"))
            if abs(scale - 1) > 1e-6:
                x = graph.op("Mul", x, graph.constant(1 / scale, "float32"))
        if f"{_NORMALISER}{key}.running_mean" not in self.layers:
            return x
        mean, variance = (
            graph.op(
                "Cast", self.layers.parameter(f"{_NORMALISER}{key}.running_{leaf}"), to=int(ir.DataType.FLOAT)
            )
            for leaf in ("mean", "var")
        )
        deviation = graph.op("Sqrt", graph.op("Add", variance, graph.constant(_EPSILON, "float32")))
        x = graph.op("Div", graph.op("Sub", x, mean), deviation)
        return graph.op("Clip", x, *(graph.constant(bound, "float32") for bound in (-_CLIP, _CLIP)))

    # ---- layers -----------------------------------------------------------------------------------------------

    def _mlp(self, x: ir.Value, prefix: str) -> ir.Value:
        """Linear layers with an activation after each; none are the identity."""
        places = self.layers.places(prefix)
        if places != list(range(0, 2 * len(places), 2)):
            raise Refused(f"'{prefix.rstrip('.')}' does not have the framework's own layers", hint=_HINT)
        return self.layers.mlp(x, prefix, self._kind(), last=True)

    def _kind(self) -> str:
        return str(self.settings.word("nonlinearity", "elu", ("elu", "relu", "tanh")))

    def _activate(self, x: ir.Value) -> ir.Value:
        return self.layers.activate(x, self._kind())

    def _core(self, x: ir.Value, module: str) -> ir.Value:
        """One step of a recurrent core; its state goes in and comes out part by part, layer by layer."""
        kind = self.settings.word("rnn_type", "gru", ("gru", "lstm"))
        count = sum(name.startswith(f"{module}.weight_hh_l") for name in self.layers.tensors)
        parts = ("hidden", "cell") if kind == "lstm" else ("hidden",)
        names = [[f"{part}{k + 1 if k else ''}" for part in parts] for k in range(count)]
        sizes = [self.layers.shape(f"{module}.weight_hh_l{k}")[1] for k in range(count)]
        states = [
            [self._graph.input(name, (size,)) for name in layer]
            for layer, size in zip(names, sizes, strict=True)
        ]
        if kind == "lstm":
            x, hidden, cells = self.layers.lstm(x, module, *([layer[k] for layer in states] for k in (0, 1)))
            after = [list(pair) for pair in zip(hidden, cells, strict=True)]
        else:
            x, hidden = self.layers.gru(x, module, [layer[0] for layer in states])
            after = [[value] for value in hidden]
        for layer, values, size in zip(names, after, sizes, strict=True):
            for name, value in zip(layer, values, strict=True):
                self.inputs.append(Port(name, "state", declared=True))
                self.output(value, f"{name}_next", (size,), "state")
        return x

    def _action(self, x: ir.Value) -> None:
        """Logits; or means, and deviations that are learned or come from the observation, too."""
        name, graph = "action_parameterization.distribution_linear", self._graph
        made, width = self.layers.linear(x, name), self.layers.shape(f"{name}.weight")[0]
        if "action_parameterization.learned_stddev" in self.layers:
            scale = self.settings.number("continuous_tanh_scale", 0.0)
            if scale > 0:
                factor = graph.constant(scale, "float32")
                made = graph.op("Mul", graph.op("Tanh", graph.op("Div", made, factor)), factor)
            deviation = self.layers.parameter("action_parameterization.learned_stddev")
            self.output(made, "mean", (width,), "mean")
            wide = graph.op("Expand", deviation, graph.op("Shape", made))
            self.output(wide, "action_log_std", (width,), "log_std")
        elif self.reading.head == "gaussian":
            mean, deviation = graph.ops("Split", made, outputs=2, axis=1, num_outputs=2)
            self.output(mean, "mean", (width // 2,), "mean")
            self.output(deviation, "action_log_std", (width // 2,), "log_std")
        else:
            self.output(made, "logits", (width,), "logits")

    def _check_whole(self) -> None:
        """Refuse a network with weights that nothing here has read."""
        parts = ("actor_", "critic_", "encoder.", "core.", "decoder.", "action_")
        if left := [name for name in self.layers.unread() if name.startswith(parts)]:
            raise Refused(f"'{left[0]}' belongs to no network of the framework's own", hint=_HINT)

    @property
    def _graph(self) -> GraphBuilder:
        return self.layers.graph


def channels_are_the_codes(layers: Layers, settings: Settings) -> None:
    """Refuse convolutions that the framework's code does not make.

    Raises:
      Refused: other channels than those of the architecture.
    """
    kind = str(settings.values.get("encoder_conv_architecture"))
    wanted = [out for out, *_ in CONVOLUTIONS.get(kind, ())] or [
        out for out in RESIDUAL.get(kind, ()) for _ in range(5)
    ]
    weights = [name for name in layers.tensors if ".conv_head." in name and name.endswith(".weight")]
    for head in dict.fromkeys(name.partition(".conv_head.")[0] for name in weights):
        found = [layers.shape(name)[0] for name in weights if name.startswith(f"{head}.conv_head.")]
        if found != wanted:
            dense = [name.removesuffix(".weight") for name in layers.tensors if name.endswith(_DENSE)]
            raise Refused(
                f"Sample Factory writes the channels of '{kind}' into its code, {wanted}; they now are {found}",
                hint=f"widen what it has settings for: {', '.join(dense) or 'the core'}, by --width SPACE=N; or write "
                "a graph, which holds any network: -o OUT.onnx",
            )
