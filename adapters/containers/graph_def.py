"""The nodes of a frozen graph of TensorFlow: what goes into it and what comes out, read without TensorFlow.

https://github.com/tensorflow/tensorflow, core/framework/{graph,node_def}.proto
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from surgery.errors import CorruptFile
from surgery.files import check_readable
from surgery_adapters.containers.protobuf import fields

_NODE, _NAME, _OP, _INPUT = 1, 1, 2, 3
_INPUTS = ("Placeholder", "PlaceholderWithDefault", "PlaceholderV2")
_NOTHING = ("Const", "NoOp", "Assert", *_INPUTS)
_CHOICE = "ArgMax"
_MOST = 1 << 31


@dataclass(frozen=True)
class Ends:
    """The tensors that a graph begins and ends with, as TensorFlow names them."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def ends(path: Path) -> Ends:
    """What a graph reads, and what none of its nodes reads; of a choice of the largest also what it chooses from.

    Raises:
      FileError: the file cannot be read. CorruptFile: it is no graph, or one without inputs or outputs.
    """
    check_readable(path)
    if path.stat().st_size > _MOST:
        raise CorruptFile(f"{path} is larger than any protocol buffer")
    nodes = {node.name: node for node in _nodes(path.read_bytes())}
    read = {name for node in nodes.values() for name in node.reads}
    last = [node for node in nodes.values() if node.kind not in _NOTHING and node.name not in read]
    chosen = [
        nodes[name] for node in last if node.kind == _CHOICE for name in node.reads[:1] if name in nodes
    ]
    inputs = [node for node in nodes.values() if node.kind in _INPUTS]
    if not inputs or not last:
        raise CorruptFile(f"{path} is no graph with an input and an output")
    return Ends(*(tuple(f"{node.name}:0" for node in side) for side in (inputs, [*chosen, *last])))


@dataclass(frozen=True)
class _Node:
    """A node: its operator, and the nodes whose values it reads, or waits for."""

    name: str
    kind: str
    reads: tuple[str, ...]


def _nodes(graph: bytes) -> Iterator[_Node]:
    for number, _, message in fields(graph):
        if number == _NODE and isinstance(message, bytes):
            texts = [
                (key, value.decode("utf-8", "replace"))
                for key, _, value in fields(message)
                if isinstance(value, bytes) and key in (_NAME, _OP, _INPUT)
            ]
            told = dict(texts)
            reads = (value.removeprefix("^").partition(":")[0] for key, value in texts if key == _INPUT)
            yield _Node(told.get(_NAME, ""), told.get(_OP, ""), tuple(reads))
