"""Batch normalisations: one that does nothing at first unfolded, one that is there folded into its layer."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx_ir as ir

from surgery.checkpoint import Checkpoint
from surgery.edits.insert import slot_counts
from surgery.edits.norms import FoldedNorm
from surgery.edits.plan import Plan
from surgery.edits.rewiring import Rewiring
from surgery.errors import Refused
from surgery.graph.labels import full_label, label
from surgery.graph.layers import Spot, behind, find
from surgery.graph.norms import STANDARD_EPSILON
from surgery.graph.ranges import bounds
from surgery.graph.spaces import Analysis
from surgery.ops import blocks, naming
from surgery.optimizer import slots_of_each


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
    analysis = checkpoint.analysis
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
        notes=("training mode uses the statistics of the batch: the function is the same only in evaluation mode",),
    )  # fmt: skip


def fold_batchnorm(checkpoint: Checkpoint, layer: str) -> Plan:
    """Take the batch normalisation behind a layer into the layer's weight and bias.

        γ (W x + b − μ)/√(σ² + ε) + β  =  (s W) x + s (b − μ) + β        s = γ/√(σ² + ε)

    It is exact as the network is evaluated; afterwards nothing normalises in training any more. Slots of the weight
    are divided by s and its square, the bias takes those of β.

    Args:
      checkpoint: any checkpoint.
      layer: a dense layer or convolution with a batch normalisation directly behind it.

    Returns:
      A plan that claims "equivalent".

    Raises:
      UnknownName: no such layer. Refused: one without a batch normalisation, or one whose weight has other uses.
    """
    analysis = checkpoint.analysis
    module, uses = find(analysis, layer)
    if len(uses) > 1:
        raise Refused(f"layer '{module}' is used {len(uses)} times: its normalisations differ")
    node = uses[0].node
    readers = [use.node for use in node.outputs[0].uses()]
    if len(readers) != 1 or readers[0].op_type != "BatchNormalization" or node.outputs[0].is_graph_output():
        raise Refused(
            f"'{module}' is not directly followed by a single batch normalisation (node '{label(node)}')"
        )
    norm = _folded(checkpoint, analysis, node, readers[0], module)
    counts = slots_of_each(checkpoint.optimizer, (norm.weight, norm.shift))
    return Plan(
        "fold_batchnorm", {"layer": layer}, "equivalent", (), (), (),
        slots={norm.bias if name == norm.shift else name: count for name, count in counts.items()},
        rewiring=Rewiring(folded=(norm,)),
        notes=("nothing normalises in training any more: the function is the same in evaluation mode",),
    )  # fmt: skip


def _folded(
    checkpoint: Checkpoint, analysis: Analysis, node: ir.Node, norm: ir.Node, module: str
) -> FoldedNorm:
    held = checkpoint.tensors
    weight, *found = (str(v.name) if v is not None else "" for v in (node.inputs[1], *norm.inputs[1:5]))
    plain = all(node.attributes.get_float(name, 1.0) == 1 for name in ("alpha", "beta"))
    group: int = node.attributes.get_int("group", default=1)
    rows: int = node.attributes.get_int("transB", default=0)
    forms = {"Conv": 0, "Gemm": 0 if rows else 1, **({"ConvTranspose": 1} if group == 1 else {})}
    if (
        node.op_type not in forms
        or not plain
        or weight not in held
        or any(name not in held for name in found)
    ):
        raise Refused(f"the batch normalisation of '{module}' cannot be folded into {full_label(node)}")
    own = node.inputs[2] if len(node.inputs) > 2 else None
    bare = own is None or _literal_zero(analysis, own, held)
    bias = f"{module}.bias" if own is None or bare else str(own.name)
    shared = [name for name in (weight, bias) if len(_uses(checkpoint, name)) > 1]
    if shared or bare == (bias in held):
        raise Refused(f"'{(shared or [bias])[0]}' is in use elsewhere, too", hint="surgery.untie it first")
    scale, shift, mean, variance = found
    epsilon = float(norm.attributes.get_float("epsilon", STANDARD_EPSILON))
    return FoldedNorm(
        str(norm.outputs[0].name), str(node.outputs[0].name), weight, forms[node.op_type], bias, bare, scale, shift,
        mean, variance, epsilon,
    )  # fmt: skip


def _literal_zero(analysis: Analysis, value: ir.Value, held: Mapping[str, ir.TensorProtocol]) -> bool:
    """Whether a bias is no parameter but the zeros that an exporter writes, or computes, for none."""
    tensor = ir.convenience.get_const_tensor(value)
    if value.name in held:
        return False
    return not tensor.numpy().any() if tensor is not None else bounds(value, analysis.trace.facts) == (0, 0)


def _uses(checkpoint: Checkpoint, tensor: str) -> list[ir.Node]:
    value = checkpoint.model.graph.initializers.get(tensor)
    return [] if value is None else [use.node for use in value.uses() if use.node.op_type != "Shape"]


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
