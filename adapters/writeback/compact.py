"""New layers among those that flax numbers in the order of their calls: `Dense_0`, `Dense_1` … of one module.

A graph names a new layer by any number that is free; in the file it takes the number behind the one that it follows,
and those that come later move on by one. (flax/linen/module.py, `_name_taken`, `nn.compact`)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from surgery.checkpoint import Checkpoint
from surgery.edits.execute import execute
from surgery.errors import Refused
from surgery.graph.rewrite import OPERAND
from surgery.ops.rename import rename
from surgery.tensors import shape_of
from surgery_adapters.writeback.dense import NewLayer, new_layers
from surgery_adapters.writeback.sequences import HINT

_NUMBERED = re.compile(r"(?:(?P<module>.*)\.)?(?P<stem>[^.]*_)(?P<number>\d+)")


@dataclass(frozen=True)
class Family:
    """The layers of one module that are numbered together, with new ones among them.

    Attributes:
      module: its path. names: layer of the file -> what it is called from now on.
      added: new layer, by its name from now on -> the layer of the file that it is like, and leaf -> shape.
      graph: layer of the graph, by its path -> its path from now on, where that is another.
    """

    module: str
    names: Mapping[str, str]
    added: Mapping[str, tuple[str, Mapping[str, tuple[int, ...]]]]
    graph: Mapping[str, str]


def families(checkpoint: Checkpoint, old: Sequence[str]) -> list[Family]:
    """Find the place of every dense layer that a file does not have.

    Args:
      old: the parameters of the file.

    Raises:
      Refused: a new layer that follows none that is numbered, or that is no dense layer.
    """
    strange = [
        name
        for name, tensor in checkpoint.tensors.items()
        if name not in old and tensor.dtype.is_floating_point() and OPERAND not in name
    ]
    if not strange or len(strange) == len(checkpoint.tensors):
        return []
    layers = new_layers(checkpoint.model, strange)
    orders = _orders(layers, {name.rpartition(".")[0] for name in old})
    return [_family(checkpoint, *key, order, layers) for key, order in orders.items()]


def renamed(checkpoint: Checkpoint, found: Sequence[Family]) -> Checkpoint:
    """A checkpoint whose layers have the names that they will have in the file."""
    names = {name: new for family in found for name, new in family.graph.items()}
    return execute(rename(checkpoint, names), checkpoint) if names else checkpoint


def _orders(layers: Sequence[NewLayer], modules: set[str]) -> dict[tuple[str, str], list[str]]:
    """(module, stem) -> the paths of its layers, new ones behind those that they follow."""
    orders: dict[tuple[str, str], list[str]] = {}
    for layer in layers:
        front = _NUMBERED.fullmatch(layer.behind)
        own = _NUMBERED.fullmatch(layer.name)
        key = None if front is None else (front["module"] or "", front["stem"])
        if key is None or own is None or (own["module"] or "", own["stem"]) != key:
            raise Refused(
                f"'{layer.name}' follows '{layer.behind}', which is not numbered among the layers of its module",
                hint=HINT,
            )
        order = orders.setdefault(key, sorted(_siblings(key, modules), key=_number))
        order.insert(order.index(layer.behind) + 1, layer.name)
    return orders


def _siblings(key: tuple[str, str], modules: set[str]) -> Iterator[str]:
    for path in modules:
        match = _NUMBERED.fullmatch(path)
        if match is not None and (match["module"] or "", match["stem"]) == key:
            yield path


def _number(path: str) -> int:
    return int(path.rpartition("_")[2])


def _family(
    checkpoint: Checkpoint, module: str, stem: str, order: Sequence[str], layers: Sequence[NewLayer]
) -> Family:
    new = {layer.name: layer for layer in layers if layer.name in order}
    first = _number(next(path for path in order if path not in new))
    paths = {path: f"{module}.{stem}{first + k}".lstrip(".") for k, path in enumerate(order)}
    pattern = next(path for path in order if path not in new).rpartition(".")[2]
    added = {
        paths[name].rpartition(".")[2]: (
            pattern,
            {
                parameter.rpartition(".")[2]: shape_of(checkpoint.tensors[parameter])
                for parameter in layer.parameters
            },
        )
        for name, layer in new.items()
    }
    names = {
        path.rpartition(".")[2]: after.rpartition(".")[2] for path, after in paths.items() if path not in new
    }
    return Family(module, names, added, {path: after for path, after in paths.items() if path != after})
