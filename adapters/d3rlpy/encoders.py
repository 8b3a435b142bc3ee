"""The encoders of d3rlpy as graphs, and the widths that their configuration must name.

An encoder is one or two `nn.Sequential`, in which a layer takes as many places as it has parts: the layer itself, its
activation, batch-norm, layer-norm, dropout. (d3rlpy/models/encoders.py, d3rlpy/models/torch/encoders.py)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from surgery.errors import CorruptFile, Refused
from surgery_adapters.networks.layers import Layers

_FILTERS, _FEATURES, _UNITS = ((32, 8, 4), (64, 4, 2), (64, 3, 1)), 512, (256, 256)
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "tanh": "tanh", "swish": "silu", "none": "identity"}

EXPORT = (
    "export the acting network to ONNX, its modules named as in algorithm.impl.modules, and bind the "
    "optimizers: surgery attach NET.onnx FILE.d3 -o OUT.onnx"
)
"""What to do about networks without a rule."""


@dataclass(frozen=True)
class Encoder:
    """What an encoder factory makes.

    Attributes:
      kind: "vector", "pixel" or "simba".
      units: widths of the dense layers; of a pixel encoder the one of its features, of SimBa (features, hidden).
      filters: (channels, kernel, stride) of each convolution.
      activation: between layers. last: behind the last one.
      batch_norm, layer_norm, dropout: whether they stand behind every activation.
      blocks: of SimBa.
    """

    kind: str
    units: tuple[int, ...]
    filters: tuple[tuple[int, int, int], ...] = ()
    activation: str = "relu"
    last: str | None = "relu"
    batch_norm: bool = False
    layer_norm: bool = False
    dropout: bool = False
    blocks: int = 0

    @staticmethod
    def read(factory: Mapping[str, Any], rank: int) -> Encoder:
        """The encoder of a factory's configuration.

        Args:
          factory: {"type", "params"}. rank: of an observation.

        Raises:
          Refused: an encoder of the user's own, or an activation without a rule. CorruptFile: damaged.
        """
        try:
            return _read(str(factory["type"]), factory["params"], rank)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptFile(f"the configuration of an encoder is damaged: {error}") from error

    def graph(self, layers: Layers, prefix: str, x: ir.Value, action: ir.Value | None) -> ir.Value:
        """The features of an observation, (batch, features).

        Args:
          prefix: of the parameters, with the dot. x: (batch, *observation). action: (batch, actions) that is seen too.
        """
        if self.kind == "pixel":
            x = self._stack(layers, f"{prefix}_cnn_layers.", x, [f[0] for f in self.filters], self._convolve)
            x, prefix = layers.graph.op("Flatten", x, axis=1), f"{prefix}_last_layers."
        else:
            prefix = f"{prefix}_layers."
        if action is not None:
            x = layers.graph.op("Concat", x, action, axis=1)
        return self._simba(layers, prefix, x) if self.kind == "simba" else self._dense(layers, prefix, x)

    def widths(self, shapes: Mapping[str, Sequence[int]], prefix: str) -> Encoder:
        """The encoder with the widths that its parameters have.

        Args:
          shapes: parameter -> shape. prefix: of the encoder's, with the dot.
        """
        if self.kind == "simba":
            inner = f"{prefix}_layers.1._layers.1.weight"
            hidden = shapes[inner][0] if self.blocks else self.units[1]
            return replace(self, units=(shapes[f"{prefix}_layers.0.weight"][0], hidden))
        step, dense = self._step, "_last_layers." if self.kind == "pixel" else "_layers."
        units = tuple(_leading(shapes, f"{prefix}{dense}", step))
        found = (
            (shapes[f"{prefix}_cnn_layers.{k * step}.weight"], stride)
            for k, (_, _, stride) in enumerate(self.filters)
        )
        return replace(
            self, units=units, filters=tuple((shape[0], shape[2], stride) for shape, stride in found)
        )

    def settings(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The factory's configuration, {"type", "params"}, with these widths; params: as it was."""
        if self.kind == "simba":
            sizes: dict[str, Any] = {"feature_size": self.units[0], "hidden_size": self.units[1]}
        elif self.kind == "pixel":
            sizes = {"filters": [list(f) for f in self.filters], "feature_size": self.units[0]}
        else:
            sizes = {"hidden_units": list(self.units)}
        return {"type": self.kind, "params": {**params, **sizes}}

    @property
    def _step(self) -> int:
        """Places that a layer takes; the last one may lack its activation."""
        return 2 + self.batch_norm + self.layer_norm + self.dropout

    def _dense(self, layers: Layers, prefix: str, x: ir.Value) -> ir.Value:
        return self._stack(layers, prefix, x, self.units, lambda _, x, module, __: layers.linear(x, module))

    def _convolve(self, layers: Layers, x: ir.Value, module: str, number: int) -> ir.Value:
        _, kernel, stride = self.filters[number]
        if layers.shape(f"{module}.weight")[2:] != (kernel, kernel):
            raise CorruptFile(f"'{module}' does not have the configuration's kernel {kernel}×{kernel}")
        return layers.convolution(x, module, stride)

    def _stack(
        self,
        layers: Layers,
        prefix: str,
        x: ir.Value,
        widths: Sequence[int],
        layer: Callable[[Layers, ir.Value, str, int], ir.Value],
    ) -> ir.Value:
        place, convolutions = 0, prefix.endswith("_cnn_layers.")
        for number, width in enumerate(widths):
            module = f"{prefix}{place}"
            layers.check_width(module, width)
            x, place = layer(layers, x, module, number), place + 1
            ends = number == len(widths) - 1 and not convolutions
            if (activation := self.last if ends else self.activation) is not None:
                x, place = layers.activate(x, activation), place + 1
            if self.batch_norm:
                x, place = layers.batch_norm(x, f"{prefix}{place}"), place + 1
            if self.layer_norm:
                x, place = layers.layer_norm(x, f"{prefix}{place}"), place + 1
            place += self.dropout
        return x

    def _simba(self, layers: Layers, prefix: str, x: ir.Value) -> ir.Value:
        x = layers.linear(x, f"{prefix}0")
        layers.check_width(f"{prefix}0", self.units[0])
        for block in range(1, self.blocks + 1):
            inside = f"{prefix}{block}._layers."
            y = layers.linear(layers.layer_norm(x, f"{inside}0"), f"{inside}1")
            layers.check_width(f"{inside}1", self.units[1])
            x = layers.graph.op("Add", x, layers.linear(layers.activate(y, "relu"), f"{inside}3"))
        return layers.layer_norm(x, f"{prefix}{self.blocks + 1}")


def _read(kind: str, params: Mapping[str, Any], rank: int) -> Encoder:
    if kind == "default":
        kind = "pixel" if rank == 3 else "vector"
    if kind == "simba":
        sizes = (int(params.get("feature_size", 256)), int(params.get("hidden_size", 1024)))
        return Encoder("simba", sizes, blocks=int(params.get("n_blocks", 1)))
    if kind not in ("vector", "pixel") or (kind == "pixel") != (rank == 3):
        raise Refused(
            f"there is no rule for the encoder '{kind}' of observations with {rank} axes",
            hint=EXPORT,
        )
    filters = tuple((int(c), int(k), int(s)) for c, k, s in params.get("filters") or _FILTERS)
    units = params.get("hidden_units") or _UNITS
    activation = _activation(params.get("activation", "relu"))
    last = params.get("last_activation")
    return Encoder(
        kind,
        (int(params.get("feature_size") or _FEATURES),) if kind == "pixel" else tuple(map(int, units)),
        filters if kind == "pixel" else (),
        activation,
        None if params.get("exclude_last_activation") else _activation(last) if last else activation,
        bool(params.get("use_batch_norm")),
        bool(params.get("use_layer_norm")) and kind == "vector",
        params.get("dropout_rate") is not None,
    )


def _activation(name: object) -> str:
    if name not in _ACTIVATIONS:
        raise Refused(f"there is no rule for the activation '{name}' of an encoder", hint=EXPORT)
    return _ACTIVATIONS[str(name)]


def _leading(shapes: Mapping[str, Sequence[int]], prefix: str, step: int) -> Iterator[int]:
    """The widths of the layers of a sequence, one after every `step` places."""
    place = 0
    while (name := f"{prefix}{place}.weight") in shapes:
        yield shapes[name][0]
        place += step
