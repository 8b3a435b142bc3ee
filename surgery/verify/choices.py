"""Models as they are compared: what a choice is made from is compared too, and what is drawn is the same in both.

A graph that was exported for use often ends in a choice: the number of the best action, or of a sampled one. A wrong
edit would seldom change such a number, so that the scores behind it are outputs of what is compared. A draw gives other
numbers wherever the order of the nodes changes; in what is compared it gives fixed ones.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
import onnx_ir as ir

from surgery.checkpoint import Checkpoint
from surgery.graph.choices import scores

_DRAWN = 0.625
"""In place of a draw from between 0 and 1, or from a standard normal distribution; float32 holds it exactly."""


def comparable(
    *checkpoints: Checkpoint, values: Collection[str] = (), apart: Collection[str] = ()
) -> list[Checkpoint]:
    """Clones with fixed numbers in place of draws, and the scores behind choices as further outputs.

    Such an output is called "scores of NAME", after the output that holds the choice; only those that all of the
    checkpoints have are added. A checkpoint without choices and draws comes back as it is.

    Args:
      values: names of values to show as well, as "values of NAME". apart: names of values not to show.
    """
    found = [shown(checkpoint.model, values, apart) for checkpoint in checkpoints]
    common = {name: value.name for name, value in found[0].items() if all(name in names for names in found)}
    return [
        _comparable(checkpoint, {name: str(names[name].name) for name in common})
        for checkpoint, names in zip(checkpoints, found, strict=True)
    ]


def _comparable(checkpoint: Checkpoint, more: Mapping[str, str]) -> Checkpoint:
    """Args: more: new output -> the value that it shows."""
    if not more and not any(node.op_type in _FIXED for node in checkpoint.model.graph):
        return checkpoint
    model = checkpoint.model.clone()
    inside = {value.name: value for node in model.graph for value in node.outputs}
    for name, value in [(name, inside[value]) for name, value in more.items()]:
        copy = ir.node("Identity", [value], outputs=[ir.Value(name=name, shape=value.shape, type=value.type)])
        model.graph.append(copy)
        model.graph.outputs.append(copy.outputs[0])
    for node in list(model.graph):
        if node.op_type in _FIXED and not node.domain:
            _replace(model.graph, node, _FIXED[node.op_type](node))
    return checkpoint.replace(model=model)


def shown(model: ir.Model, values: Collection[str], apart: Collection[str]) -> dict[str, ir.Value]:
    """The values of some names, and the scores behind choices; what is an output itself is left out."""
    inside = {
        value.name: value for node in model.graph for value in node.outputs if not value.is_graph_output()
    }
    found = {f"values of {name}": inside[name] for name in values if name in inside}
    for output in model.graph.outputs:
        for k, value in enumerate(scores(output)):
            known = value in found.values() or value.name in apart
            if value.producer() is not None and not value.is_graph_output() and not known:
                found[f"scores of {output.name}" + (f", {k + 1}" if k else "")] = value
    return found


def _replace(graph: ir.Graph, old: ir.Node, new: list[ir.Node]) -> None:
    """Put nodes in the place of one that has a single result, which keeps its name."""
    result, drawn = old.outputs[0], new[-1].outputs[0]
    drawn.name, drawn.shape, drawn.type = result.name, result.shape, result.type
    graph.insert_after(old, new)
    ir.convenience.replace_all_uses_with(result, drawn, replace_graph_outputs=True)
    graph.remove(old, safe=True)


def _normal(node: ir.Node) -> float:
    return node.attributes.get_float("mean", 0.0) + _DRAWN * node.attributes.get_float("scale", 1.0)


def _uniform(node: ir.Node) -> float:
    low, high = (node.attributes.get_float(name, bound) for name, bound in (("low", 0.0), ("high", 1.0)))
    return low + _DRAWN * (high - low)


def _like(number: Callable[[ir.Node], float]) -> Callable[[ir.Node], list[ir.Node]]:
    """As large as the operand."""

    def fixed(node: ir.Node) -> list[ir.Node]:
        size = ir.node("Shape", [node.inputs[0]])
        value = ir.tensor(np.array([number(node)], np.float32))
        return _typed([size, ir.node("ConstantOfShape", size.outputs, {"value": value})], node)

    return fixed


def _shaped(number: Callable[[ir.Node], float]) -> Callable[[ir.Node], list[ir.Node]]:
    """As large as the node says."""

    def fixed(node: ir.Node) -> list[ir.Node]:
        value = ir.tensor(np.full(node.attributes.get_ints("shape", ()), number(node), np.float32))
        return _typed([ir.node("Constant", [], {"value": value})], node)

    return fixed


def _likely(node: ir.Node) -> list[ir.Node]:
    """The most likely class, as often as one is drawn."""
    best = ir.node("ArgMax", [node.inputs[0]], {"axis": 1, "keepdims": 1})
    every = ir.node("Concat", list(best.outputs) * node.attributes.get_int("sample_size", 1), {"axis": 1})
    return _typed([best, every], node, ir.DataType.INT32)


def _certain(node: ir.Node) -> list[ir.Node]:
    """The probability itself."""
    return _typed([ir.node("Identity", [node.inputs[0]])], node)


def _typed(nodes: list[ir.Node], node: ir.Node, default: ir.DataType | None = None) -> list[ir.Node]:
    """With the element type that the node gives: stated, or by default that of its operator."""
    stated = ir.DataType(node.attributes.get_int("dtype", 0))
    dtype = node.outputs[0].dtype or stated or default
    return [*nodes, ir.node("Cast", nodes[-1].outputs, {"to": int(dtype)})] if dtype else nodes


_FIXED: dict[str, Callable[[ir.Node], list[ir.Node]]] = {
    "RandomNormal": _shaped(_normal),
    "RandomNormalLike": _like(_normal),
    "RandomUniform": _shaped(_uniform),
    "RandomUniformLike": _like(_uniform),
    "Multinomial": _likely,
    "Bernoulli": _certain,
}
"""Operator that draws -> the nodes in its place."""
