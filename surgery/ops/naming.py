"""Names for new layers in the style of the model: `network.0` is followed by a number that is free."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from surgery.graph.layers import Layer
from surgery.graph.spaces import Analysis

_NUMBERED = re.compile(r"(.*?)(\d+)$")


@dataclass(frozen=True)
class Names:
    """How the tensors of a new layer are called.

    Attributes:
      module: path of the new layer.
      weight, bias: the names of its tensors, with `{}` for the path of a part within the layer (".conv1" or nothing).
    """

    module: str
    weight: str
    bias: str

    def tensor(self, kind: str, part: str = "") -> str:
        """The name of a tensor: "weight", "bias", or any other (then it is MODULE.PART.KIND)."""
        inner = f".{part}" if part else ""
        if kind == "weight" and self.weight:
            return self.weight.format(inner)
        if kind == "bias" and self.bias:
            return self.bias.format(inner)
        return f"{self.module}{inner}.{kind}"

    def moved(self, before: str, after: str) -> Names:
        """The same names with one prefix for another: those of the layer in a copy of the network."""
        if before == after:
            return self
        names = (self.module, self.weight, self.bias)
        return Names(*(name and after + name.removeprefix(before) for name in names))


def taken(analysis: Analysis) -> set[str]:
    """Every name in a graph."""
    graph = analysis.model.graph
    values = [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)]
    return {str(value.name) for value in values if value.name}


def follow(layer: Layer, used: Collection[str], *, block: bool) -> Names:
    """Names for a layer behind another one.

    Args:
      layer: the layer before.
      used: names that are taken, and paths of layers that are still to be inserted.
      block: the layer is the last one of a block: the new block stands beside that, not in it.
    """
    path = layer.module
    inner = path.rpartition(".")[0] if block and "." in path else path
    head, dot, last = inner.rpartition(".")
    fresh = _next(head + dot, last, used)
    module = head + dot + fresh
    suffix = path[len(inner) :]
    weight, bias = _template(layer.weight, path, module, suffix), ""
    reader = next((v for v in layer.node.inputs[2:3] if v is not None and v.name), None)
    if reader is not None and weight:
        bias = _template(str(reader.name), path, module, suffix)
    if not weight or not bias or bias == weight:
        bias = ""
    return Names(module, weight, bias)


def _next(prefix: str, last: str, used: Collection[str]) -> str:
    """The component with the lowest number beyond all its siblings'."""
    found = _NUMBERED.match(last)
    stem = found[1] if found else last
    slashed = prefix.replace(".", "/")
    heads = (prefix + stem, slashed + stem)
    numbers = [1]
    for name in used:
        for head in heads:
            if name.startswith(head):
                digits = re.match(r"\d+", name[len(head) :])
                numbers += [int(digits[0])] if digits else []
    return f"{stem}{max(numbers) + 1}"


def _template(tensor: str, path: str, module: str, suffix: str) -> str:
    """A tensor's name with the new path for the old one; empty if the path is not in the name."""
    for old, new in ((path, module), (path.replace(".", "/"), module.replace(".", "/"))):
        if tensor.startswith(old) and len(tensor) > len(old) and tensor[len(old)] in "./":
            return f"{new}{{}}{tensor[len(old) :]}".replace("{}" + suffix, "{}")
    return ""


def given(name: str) -> Names:
    """Names for a layer whose path is given."""
    return Names(name, "", "")
