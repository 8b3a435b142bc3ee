"""Unfold a batch normalisation: one that does nothing at first, behind a layer that has none."""

from __future__ import annotations

import math

from surgery.checkpoint import Checkpoint
from surgery.errors import Refused
from surgery.graph.layers import Spot, behind, find
from surgery.graph.spaces import Analysis, analyse
from surgery.graph.trace import label
from surgery.insert import slot_counts
from surgery.ops import blocks, naming
from surgery.plan import Plan


def unfold_batchnorm(checkpoint: Checkpoint, layer: str, *, name: str | None = None) -> Plan:
    """Put a batch normalisation behind a layer, before its activation, that starts as the identity.

        γ (x − μ)/√(σ² + ε) + β      μ = 0, σ² = 1, β = 0, γ = √(1 + ε)

    It is exact as the network is evaluated, with its running statistics. In training mode it normalises by those of the
    batch: let them settle before the first update (some forward passes in training mode), or keep the mode.

    Args:
      checkpoint: any checkpoint; only shapes are read.
      layer: a dense layer or convolution with units on axis 1.
      name: module path of the normalisation; in the style of the model by default.

    Returns:
      A plan that claims "equivalent".

    Raises:
      UnknownName: no such layer. Refused: one that has a normalisation, or units elsewhere than on axis 1.
    """
    analysis = analyse(checkpoint.model, checkpoint.interface, checkpoint.trained)
    module, uses = find(analysis, layer)
    places = [behind(analysis, use) for use in uses]
    for spot in places:
        _check(module, spot)
    names = naming.given(name) if name else naming.given(_name(analysis, module))
    weight, dtype = uses[0].weight, blocks.dtype_of(analysis.model, uses[0].weight)
    like = weight if checkpoint.optimizer is None or weight in checkpoint.trained else None
    sketches = [blocks.Sketch(names, names, spot, at, None, dtype, like) for at, spot in enumerate(places)]
    values = [str(spot.value.name) for spot in places]
    form = blocks.Shape(places[0].units, 1, ("", ""))
    new = blocks.inserted("normalisation", _normalised, sketches, values, form, opens=False)
    return Plan(
        "unfold_batchnorm", {"layer": layer, "name": names.module}, "equivalent", (), (), (),
        slots=slot_counts(checkpoint.optimizer, [new]), insertions=(new,),
        notes=("in training mode the statistics of the batch count: the function is the same in evaluation mode",),
    )  # fmt: skip


def _check(module: str, spot: Spot) -> None:
    if not spot.spatial and (spot.rank, spot.axis) != (2, 1):
        raise Refused(
            f"'{spot.value.name}' has {spot.rank} axes: batch normalisation is for images and plain vectors"
        )
    readers = [use.node for use in spot.value.uses()]
    normal = [node for node in readers if node.op_type == "BatchNormalization"]
    if normal:
        raise Refused(f"layer '{module}' has a batch normalisation: node '{label(normal[0])}'")


def _name(analysis: Analysis, module: str) -> str:
    taken, k = naming.taken(analysis), 0
    last = module.rpartition(".")[2]
    stem = "norm" if last.isdecimal() else last.replace("conv", "bn").replace("fc", "bn")
    stem = stem if stem != last else f"{last}_norm"
    head = module.rpartition(".")[0]
    while True:
        k += 1
        name = ".".join(part for part in (head, stem if k == 1 else f"{stem}_{k}") if part)
        if not any(tensor.startswith(f"{name}.") for tensor in taken):
            return name


def _normalised(sketch: blocks.Sketch, value: str, shape: blocks.Shape, opens: bool) -> str:
    return sketch.normalised(value, "", sketch.spot.units, "fill", scale=math.sqrt(1 + blocks.EPSILON))
