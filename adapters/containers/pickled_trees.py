"""Trees of JAX in a pickle: dicts and flax's frozen ones, tuples and optax's states, with arrays as their leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.errors import CorruptFile, Refused
from surgery.tensors import equal
from surgery_adapters.containers.optax_state import FIELDS
from surgery_adapters.containers.pickle_tree import Made
from surgery_adapters.containers.pickled_arrays import is_array, read_array, write_array

_NODE = "surgery.node"
_FROZEN = "flax.core.frozen_dict.FrozenDict"
_DEEP, _MANY = 64, 100_000


def nested(root: object) -> dict[str, Any]:
    """A tree as nested dicts by name: tuples by their numbers, named tuples by their fields, arrays as tensors.

    Raises:
      CorruptFile: it is nested without end, or an array in it is damaged.
    """
    count = 0

    def step(node: object, depth: int) -> Any:  # noqa: ANN401
        nonlocal count
        count += 1
        if depth > _DEEP or count > _MANY:
            raise CorruptFile("a tree of the file has no end")
        if is_array(node):
            return _tensor(node)
        if (inner := _items(node)) is not None:
            return {key: step(value, depth + 1) for key, value in inner.items()}
        return node

    found = step(root, 0)
    return found if isinstance(found, dict) else {}


def _items(node: object) -> dict[str, object] | None:
    """The children of a node by name; None if it is a leaf."""
    if isinstance(node, Mapping):
        return {str(key): value for key, value in node.items()}
    if isinstance(node, tuple | list):
        return {str(place): value for place, value in enumerate(node)}
    if not isinstance(node, Made):
        return None
    if node.is_a(_FROZEN):
        inner = node.arguments[0] if node.arguments else node.state
        inner = inner.get("_dict", inner) if isinstance(inner, dict) else inner
        return _items(inner)
    if node.how in ("NEWOBJ", "NEWOBJ_EX"):
        fields = FIELDS.get(node.called.rpartition(".")[2], tuple(map(str, range(len(node.arguments)))))
        pairs = zip(fields, node.arguments, strict=False)
        return {name: value for name, value in pairs if name is not None}
    return None


def numbered_anew(
    root: object,
    module: str,
    names: Mapping[str, str],
    added: Mapping[str, tuple[str, Mapping[str, Sequence[int]]]],
) -> None:
    """Give the layers of a module other names, and put new ones of zeros beside them, in place, wherever a tree has it.

    Args:
      root: a tree. module: the end of its path, with dots; empty for the tree itself.
      names: old name -> new name of each of its layers.
      added: new layer -> one of the old layers, whose arrays are its pattern, and leaf -> shape.
    """
    done = set[int]()
    for path, node in _dicts(root):
        if id(node) in done or not set(names) <= set(node) or not f".{path}".endswith(f".{module}"):
            continue
        done.add(id(node))
        made = {name: _zeros(node[pattern], shapes) for name, (pattern, shapes) in added.items()}
        items = {names.get(str(key), key): value for key, value in node.items()}
        node.clear()
        node.update({**items, **made})


def _dicts(root: object, path: str = "") -> Iterator[tuple[str, dict[Any, Any]]]:
    """Every dict in a tree, frozen ones too, with its path."""
    inner = root
    if isinstance(root, Made) and root.is_a(_FROZEN):
        inner = root.arguments[0] if root.arguments else root.state
        inner = inner.get("_dict", inner) if isinstance(inner, dict) else inner
    if isinstance(inner, dict):
        yield path, inner
    for key, value in () if is_array(root) else list((_items(root) or {}).items()):
        yield from _dicts(value, f"{path}.{key}" if path else key)


def _zeros(pattern: object, shapes: Mapping[str, Sequence[int]]) -> dict[str, object]:
    leaves = _items(pattern) or {}
    return {
        leaf: write_array(leaves[leaf], np.zeros(shape, read_array(leaves[leaf]).dtype))
        for leaf, shape in shapes.items()
    }


def _tensor(node: object) -> ir.TensorProtocol:
    array = read_array(node)
    tensor = ir.Tensor(array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("=")))
    tensor.meta[_NODE] = node
    return tensor


def changes(
    old: Mapping[str, ir.TensorProtocol], new: Mapping[str, ir.TensorProtocol]
) -> list[tuple[ir.TensorProtocol, ir.TensorProtocol]]:
    """The tensors that are no longer what they were, as they were and as they are to be.

    Args:
      old: name -> tensor as it was read from a tree. new: what it is to be; names that are missing stay.

    Raises:
      Refused: one array of the file would become two, or another element type.
    """
    found: dict[int, tuple[str, ir.TensorProtocol]] = {}
    pairs = []
    for name, tensor in old.items():
        if name not in new:
            continue
        now = new[name]
        first = found.setdefault(id(tensor.meta[_NODE]), (name, now))
        if first[1] is not now and not equal(first[1], now):
            raise Refused(f"'{first[0]}' and '{name}' are one array in the file, and they now differ")
        if now.dtype != tensor.dtype:
            raise Refused(f"'{name}' is {tensor.dtype.name} in the file, and would become {now.dtype.name}")
        if first[0] == name and not equal(tensor, now):
            pairs.append((tensor, now))
    return pairs


def replace(old: ir.TensorProtocol, new: ir.TensorProtocol) -> None:
    """Put another array where a tensor of a tree was read, in place: wherever the pickle refers to it."""
    node = old.meta[_NODE]
    assert isinstance(node, Made)
    made = write_array(node, new.numpy())
    node.arguments, node.state = made.arguments, made.state
