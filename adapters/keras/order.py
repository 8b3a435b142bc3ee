"""The order of the layers of a Functional model, by which Keras counts them: the deepest first.

Depth is the longest way to an output; layers of one depth stand as a walk from the outputs meets them
(keras/src/ops/function.py, `map_graph`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from surgery_adapters.keras.network import histories, reads

Node = tuple[str, int]
"""One call of a layer."""


def in_order(entries: Sequence[dict[str, Any]], outputs: object) -> list[dict[str, Any]]:
    """The layers of a model as Keras orders them.

    Args:
      entries: their configurations. outputs: `output_layers` of the model's.
    """
    calls = {entry["config"]["name"]: entry.get("inbound_nodes") or [[]] for entry in entries}
    found: dict[str, int] = {}
    finished: dict[Node, None] = {}
    for name, number, _ in histories(outputs):
        _walk((name, number), calls, found, finished)
    depths: dict[str, int] = {}
    of_node: dict[Node, int] = {}
    for node in reversed(finished):
        depth = max(of_node.get(node, 0), depths.get(node[0], 0))
        depths[node[0]] = of_node[node] = depth
        for parent in _parents(node, calls):
            of_node[parent] = max(depth + 1, of_node.get(parent, 0))
    places = {name: (-depths.get(name, 0), found.get(name, -1)) for name in calls}
    return sorted(entries, key=lambda entry: places[entry["config"]["name"]])


def _walk(node: Node, calls: Mapping[str, Any], found: dict[str, int], finished: dict[Node, None]) -> None:
    if node in finished:
        return
    found.setdefault(node[0], len(found))
    for parent in _parents(node, calls):
        _walk(parent, calls, found, finished)
    finished[node] = None


def _parents(node: Node, calls: Mapping[str, Any]) -> list[Node]:
    name, number = node
    return [(front, call) for front, call, _ in reads(calls[name][number])]
