"""IMPALA's residual trunk in CleanRL's names: `network.K.conv`, `network.K.res_blockJ.convI`.

Each stage is a 3×3 convolution, a 3×3 max-pool with stride 2, and two residual blocks of relu, convolution, relu,
convolution; after the last stage the features are flattened and go through a relu. (Espeholt et al., 2018, figure 3;
cleanrl/ppo_procgen.py)
"""

from __future__ import annotations

import math
import re

import onnx_ir as ir

from surgery.adapters import Reading
from surgery.builder import GraphBuilder
from surgery.errors import ArgumentError
from surgery_adapters.networks.layers import Layers, Tensors

_STAGE = re.compile(r"(?P<trunk>.*?)(?P<place>\d+)\.(conv|res_block\d+\.conv\d+)\.(weight|bias)")
_PADS = (1, 1, 1, 1)


def stages(tensors: Tensors) -> dict[str, str]:
    """Stage -> the trunk that it is of, in order; empty if there is no such trunk."""
    found: dict[str, str] = {}
    for name in tensors:
        if match := _STAGE.fullmatch(name):
            found.setdefault(f"{match['trunk']}{match['place']}", match["trunk"])
    whole = all(
        f"{stage}.conv.weight" in tensors and f"{stage}.res_block0.conv0.weight" in tensors for stage in found
    )
    return found if found and whole else {}


def rest(tensors: Tensors) -> dict[str, ir.TensorProtocol]:
    """The tensors that are not of the trunk."""
    return {name: tensor for name, tensor in tensors.items() if not _STAGE.fullmatch(name)}


def build(
    layers: Layers, tensors: Tensors, reading: Reading, observation: ir.Value | None = None
) -> tuple[ir.Value, int]:
    """The trunk, from an input `observation` (channels first, values up to 255) to its features.

    Args:
      layers: the graph. tensors: of the network. reading: the shape of an image, where it is not told.
      observation: the input, where another network has made it.

    Returns:
      the features, (batch, count), and their count.

    Raises:
      ArgumentError: the size of the images cannot be told, or is not what was said.
    """
    graph: GraphBuilder = layers.graph
    order = list(stages(tensors))
    channels = layers.shape(f"{order[0]}.conv.weight")[1]
    shape = reading.observation or (channels, *_side(layers, tensors, order[-1]))
    x = graph.op("Div", observation or graph.input("observation", shape), graph.constant(255.0, "float32"))
    for stage in order:
        x = layers.convolution(x, f"{stage}.conv", pads=_PADS)
        x = graph.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=list(_PADS))
        for block in (name for name in layers.modules(f"{stage}.") if name.startswith("res_block")):
            x = _residual(layers, x, f"{stage}.{block}")
    sides = [_halved(side, len(order)) for side in shape[1:]]
    count = layers.shape(f"{order[-1]}.conv.weight")[0] * math.prod(sides)
    return graph.op("Relu", graph.op("Flatten", x, axis=1)), count


def _residual(layers: Layers, x: ir.Value, block: str) -> ir.Value:
    graph: GraphBuilder = layers.graph
    y = x
    for convolution in layers.modules(f"{block}."):
        y = layers.convolution(graph.op("Relu", y), f"{block}.{convolution}", pads=_PADS)
    return graph.op("Add", y, x)


def _halved(side: int, times: int) -> int:
    for _ in range(times):
        side = (side + 1) // 2
    return side


def _side(layers: Layers, tensors: Tensors, last: str) -> tuple[int, int]:
    """Height and width of square images: 84 where they end at 11, else a multiple of what the stages halve to."""
    channels = layers.shape(f"{last}.conv.weight")[0]
    widths = [tensor.shape.numpy()[1] for tensor in rest(tensors).values() if len(tensor.shape) == 2]
    area, left = divmod(widths[0], channels) if widths else (0, 1)
    side = math.isqrt(area)
    if left or side * side != area:
        raise ArgumentError("the size of the images is not known", hint="give it: --observation 3,64,64")
    whole = 84 if side == 11 else side << len(stages(tensors))
    return whole, whole
