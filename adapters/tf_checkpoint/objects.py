"""What the variables of a checkpoint of objects (TensorFlow 2) are called in the program that saved them.

https://github.com/tensorflow/tensorflow, core/protobuf/trackable_object_graph.proto
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from surgery.errors import CorruptFile
from surgery.tensors import MappedFile, equal
from surgery_adapters.containers.protobuf import Cursor, fields
from surgery_adapters.tf_checkpoint.bundle import ATTRIBUTE, Bundle

_GRAPH = b"_CHECKPOINTABLE_OBJECT_GRAPH"
_NODES, _ATTRIBUTES, _FULL_NAME, _KEY = 1, 2, 2, 3


def variables(bundle: Bundle) -> dict[str, ir.TensorProtocol]:
    """All tables of numbers by their own names; those that have none, or one of several, by the checkpoint's.

    A variable that the program has under several paths is saved once for each: it is one.

    Raises:
      FileError, CorruptFile: see `Bundle.tensors`.
    """
    tensors = bundle.tensors()
    paths: dict[str, list[str]] = {}
    for key, name in _full_names(bundle):
        paths.setdefault(name, []).append(key)
    found = dict(tensors)
    for name, keys in paths.items():
        same = [tensors[key] for key in keys if key in tensors]
        if name and same and all(equal(same[0], other) for other in same[1:]):
            for key in keys:
                found.pop(key, None)
            found[name] = same[0]
    return found


def _full_names(bundle: Bundle) -> list[tuple[str, str]]:
    """The checkpoint's name of every variable, and its own."""
    entry = bundle.entries.get(_GRAPH)
    if entry is None:
        return []
    # a table of strings: the length of each, a checksum of the lengths, the strings
    cursor = Cursor(b"".join(MappedFile(bundle.data(entry.shard)).blocks(entry.offset, entry.size, 1 << 22)))
    try:
        length = cursor.varint()
    except IndexError as error:
        raise CorruptFile("the graph of objects is cut short") from error
    cursor.take(4)
    return list(_variables(cursor.take(length)))


def _variables(graph: bytes) -> Iterator[tuple[str, str]]:
    for node in _messages(graph, _NODES):
        for attribute in _messages(node, _ATTRIBUTES):
            texts = {number: value for number, _, value in fields(attribute) if isinstance(value, bytes)}
            name, key = (texts.get(number, b"").decode("utf-8", "replace") for number in (_FULL_NAME, _KEY))
            if key.endswith(ATTRIBUTE):
                yield key.removesuffix(ATTRIBUTE), name


def _messages(parent: bytes, number: int) -> Iterator[bytes]:
    yield from (value for found, _, value in fields(parent) if found == number and isinstance(value, bytes))
