"""Larger kernels: new taps that are zero, and as much more padding, so that every output reads what it read before."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from surgery.checkpoint import Checkpoint
from surgery.edits.arithmetic import SpaceEdit
from surgery.edits.copies import original_name
from surgery.edits.parts import OperandEdit, TensorEdit
from surgery.edits.plan import Plan
from surgery.errors import ArgumentError, Refused, shape_text
from surgery.graph.labels import label
from surgery.graph.layers import CONVOLUTIONS, Layer, find, layers
from surgery.graph.layout import Layout, Units
from surgery.graph.spaces import Analysis
from surgery.optimizer import slots_of_each

MOST_TAPS = 1 << 12


@dataclass(frozen=True)
class _Growth:
    """How the kernel of one layer grows: taps before and after, along each spatial axis."""

    layer: Layer
    before: tuple[int, ...]
    taps: tuple[tuple[int, int], ...]

    @property
    def names(self) -> list[str]:
        return [f"{self.layer.module}.kernel[{k}]" for k in range(len(self.before))]


def grow_kernel(checkpoint: Checkpoint, sizes: Mapping[str, int | Sequence[int]]) -> Plan:
    """Grow the kernels of convolutions without changing the function.

    The old kernel stays in the middle of the new one; of an odd number of new taps the last one goes behind. The new
    taps are zero and the padding grows with them, strides and dilations stay:

        y[i] = Σ_t w[t] · x[s·i + d·t − p]   with   w'[t + a] = w[t],   p' = p + d·a

    New taps have gradients from the first step, which no optimizer state records: their slots start at zero.

    Args:
      checkpoint: any checkpoint; only shapes are read.
      sizes: layer -> new kernel size, one number or one for each spatial axis.

    Returns:
      A plan that claims "equivalent".

    Raises:
      UnknownName: no such layer. ArgumentError: a size that does not fit, or a layer without a kernel.
      Refused: padding that follows from sizes which only the environment knows.
    """
    if not sizes:
        raise ArgumentError("no kernel to grow", hint="give at least one layer and its new size: LAYER=N")
    analysis = checkpoint.analysis
    edits: list[SpaceEdit] = []
    tensors: list[TensorEdit] = []
    operands: list[OperandEdit] = []
    for name, wanted in sizes.items():
        for module, uses in _family(analysis, name, checkpoint.copies):
            growth = _growth(analysis, module, uses, wanted)
            if any(edit.space in growth.names for edit in edits):
                raise ArgumentError(f"layer '{module}' is given twice")
            edits += _edits(growth)
            tensors.append(_tensor(analysis, growth))
            operands += [edit for use in uses for edit in _operands(use.node, growth.taps)]
            operands += dict.fromkeys(edit for use in uses for edit in _reshapes(analysis, use.node, growth))
    return Plan(
        operation="grow_kernel",
        arguments={"sizes": {n: s if isinstance(s, int) else list(s) for n, s in sizes.items()}},
        claim="equivalent",
        spaces=tuple(edits),
        tensors=tuple(tensors),
        operands=tuple(operands),
        slots=slots_of_each(checkpoint.optimizer, [tensor.name for tensor in tensors]),
    )


def _family(analysis: Analysis, name: str, copies: Mapping[str, str]) -> list[tuple[str, list[Layer]]]:
    """A layer and its copies in target and averaged networks: (module, uses) of each."""
    module, uses = find(analysis, name)
    if not copies:
        return [(module, uses)]
    root = original_name(uses[0].weight, copies)
    alike = (layer.weight for layer in layers(analysis) if original_name(layer.weight, copies) == root)
    return [find(analysis, weight) for weight in dict.fromkeys(alike)]


def _growth(analysis: Analysis, module: str, uses: Sequence[Layer], wanted: int | Sequence[int]) -> _Growth:
    convolutions = sorted({layer.module for layer in layers(analysis) if layer.node.op_type in CONVOLUTIONS})
    for use in uses:
        if use.node.op_type not in CONVOLUTIONS:
            raise ArgumentError(
                f"layer '{module}' has no kernel (node '{label(use.node)}', {use.node.op_type})",
                hint="convolutions: " + (", ".join(convolutions) or "this model has none"),
            )
    layer = uses[0]
    operand = layer.node.inputs[1]
    shape = None if operand is None else analysis.trace.facts.shapes.get(operand)
    if shape is None:
        raise Refused(f"the size of the kernel of '{module}' is not known")
    old = tuple(shape[2:])
    new = (wanted,) * len(old) if isinstance(wanted, int) else tuple(wanted)
    _check(module, old, new)
    taps = {tuple(_taps(analysis, use.node, k, o, n - o) for k, (o, n) in enumerate(zip(old, new, strict=True)))
            for use in uses}  # fmt: skip
    if len(taps) > 1:
        raise Refused(
            f"the uses of '{module}' are padded in different ways, so its kernel has no common middle"
        )
    return _Growth(layer, old, taps.pop())


def _taps(analysis: Analysis, node: ir.Node, k: int, size: int, more: int) -> tuple[int, int]:
    """New taps before and after along spatial axis k: half of them each, or as automatic padding shifts the input."""
    mode, inside = node.attributes.get_string("auto_pad", "NOTSET"), (more // 2, more - more // 2)
    if "output_shape" in node.attributes and more:
        raise Refused(f"node '{label(node)}' computes its padding from 'output_shape'")
    if mode not in ("SAME_UPPER", "SAME_LOWER") or not more:
        return inside
    stride, dilation = (_numbers(node, name, k + 1)[k] for name in ("strides", "dilations"))
    if node.op_type == "ConvTranspose":
        total = (size - 1) * dilation + 1 - stride + _numbers(node, "output_padding", k + 1, 0)[k]
        if more * dilation % 2 or total < 0 or more % 2:
            raise Refused(f"an odd growth of the kernel of node '{label(node)}', which pads automatically")
        return inside
    total = (size - 1) * dilation
    if stride > 1:
        count = _length(analysis, node, k)
        total += (math.ceil(count / stride) - 1) * stride + 1 - count
    shift = _begin(total + dilation * more, mode) - _begin(total, mode)
    if shift % dilation or not 0 <= shift // dilation <= more:
        raise Refused(
            f"node '{label(node)}' pads automatically, and would shift its input by {shift} for {more} more taps",
            hint="another size, or export the model with explicit padding",
        )
    return shift // dilation, more - shift // dilation


def _begin(total: int, mode: str) -> int:
    """Padding at the start, of the total that automatic padding adds: the odd one goes behind, or before."""
    total = max(total, 0)
    return total // 2 if mode == "SAME_UPPER" else total - total // 2


def _length(analysis: Analysis, node: ir.Node, k: int) -> int:
    operand = node.inputs[0]
    shape = None if operand is None else analysis.trace.facts.shapes.get(operand)
    if shape is None or analysis.trace.facts.stands_in(shape[2 + k]):
        raise Refused(
            f"node '{label(node)}' pads automatically by a size that is not known",
            hint="export the model with a fixed size of its images, or with explicit padding",
        )
    return shape[2 + k]


def _numbers(node: ir.Node, name: str, count: int, default: int = 1) -> list[int]:
    """A list attribute of a node."""
    attribute = node.attributes.get(name)
    return [default] * count if attribute is None else list(attribute.as_ints())


def _check(module: str, old: tuple[int, ...], new: tuple[int, ...]) -> None:
    shown = {"kernel": shape_text(old)}
    if len(new) != len(old):
        raise ArgumentError(f"'{module}' has a kernel of {len(old)} axes, not {len(new)}", where=shown)
    if any(n < o for o, n in zip(old, new, strict=True)):
        raise ArgumentError(
            f"cannot grow the kernel of '{module}' to {shape_text(new)}: it is {shown['kernel']}",
            hint="kernels only grow",
        )
    if new == old:
        raise ArgumentError(f"the kernel of '{module}' is {shown['kernel']} already")
    if any(n > MOST_TAPS for n in new):
        raise ArgumentError(f"a kernel of {max(new)} taps; the limit is {MOST_TAPS}", where=shown)


def _edits(growth: _Growth) -> list[SpaceEdit]:
    """The taps of an axis are units that the kernel consumes: fresh ones are read with weight zero."""
    edits = []
    for name, size, (before, after) in zip(growth.names, growth.before, growth.taps, strict=True):
        if before + after:
            source = (*[0] * before, *range(size), *[size - 1] * after)
            fresh = frozenset([*range(before), *range(before + size, before + size + after)])
            edits.append(SpaceEdit(name, size, source, fresh))
    return edits


def _tensor(analysis: Analysis, growth: _Growth) -> TensorEdit:
    """The kernel, whose axes of taps are found in the tensor by what the convolution makes of them."""
    trace, operand = analysis.trace, growth.layer.node.inputs[1]
    tensor = growth.layer.weight
    own, used = trace.tensors.get(tensor), trace.described(operand) if operand is not None else None
    if own is None or used is None or tensor not in analysis.tensors:
        raise Refused(f"the kernel of '{growth.layer.module}' is computed in a way that cannot be followed")
    axes: list[Layout] = list(analysis.tensors[tensor])
    for k, (name, size) in enumerate(zip(growth.names, growth.before, strict=True)):
        if not sum(growth.taps[k]):
            continue
        found = [j for j, axis in enumerate(own) if axis and tuple(axis) == tuple(used[2 + k])]
        if not found and own == used:
            found = [2 + k]
        if len(found) != 1 and size > 1:
            raise Refused(f"axis {k} of the kernel of '{growth.layer.module}' cannot be found in '{tensor}'")
        place = found[0] if len(found) == 1 else 2 + k
        axes[place] = (Units(name, size, "in"),)
    return TensorEdit(tensor, tuple(axes), "random")


def _reshapes(analysis: Analysis, node: ir.Node, growth: _Growth) -> Iterator[OperandEdit]:
    """The sizes of a Reshape between the tensor and the convolution, as a depthwise kernel of Keras's has one."""
    operand = value = node.inputs[1]
    shape = None if operand is None else analysis.trace.facts.shapes.get(operand)
    while value is not None and (made := value.producer()) is not None:
        if made.op_type == "Reshape":
            if shape is None or value is not operand:
                raise Refused(
                    f"the kernel of '{growth.layer.module}' is computed in a way that cannot be followed"
                )
            sizes = (size + sum(more) for size, more in zip(growth.before, growth.taps, strict=True))
            yield OperandEdit(str(value.name), 1, (*shape[:2], *sizes))
        value = made.inputs[0] if made.inputs else None


def _operands(node: ir.Node, taps: Sequence[tuple[int, int]]) -> list[OperandEdit]:
    """The node's numbers: the kernel's size, and padding that keeps every output where it was."""
    name, count, out = str(node.outputs[0].name), len(taps), list[OperandEdit]()
    size = node.attributes.get("kernel_shape")
    if size is not None:
        grown = (n + sum(more) for n, more in zip(size.as_ints(), taps, strict=True))
        out.append(OperandEdit(name, "kernel_shape", tuple(grown)))
    if node.attributes.get_string("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        return out
    old, dilations = _numbers(node, "pads", 2 * count, 0), _numbers(node, "dilations", count)
    more = [before for before, _ in taps] + [after for _, after in taps]
    pads = (p + d * n for p, d, n in zip(old, 2 * dilations, more, strict=True))
    return [*out, OperandEdit(name, "pads", tuple(pads))]
