"""Trees that are small in a file and without end for what walks them: lists that hold each other many times over.

What walks or prints them would need for ever, or more of the stack than there is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from surgery.errors import CorruptFile

_USUAL, _PER_BYTE, _DEEP = 1 << 20, 64, 200
"""Values that a tree may have if each is counted wherever it stands, more for each byte of its file; how deep."""
_CONTAINERS = (dict, list, tuple, set, frozenset)
_NO_OBJECTS = (*_CONTAINERS, str, int, float, bytes)

Parts = Callable[[object], "list[object] | None"]
Sizes = dict[int, tuple[int, int]]


def check_unfolded(root: object, parts: Parts, nbytes: int) -> None:
    """Refuse lists, tuples, sets and dicts that hold themselves, each other too often, or each other too deep.

    Args:
      root: of the tree. parts: what an object of it is made of, or None of what is none; it counts as one value.
      nbytes: of the file that it was read from.

    Raises:
      CorruptFile.
    """
    sizes, seen, roots = Sizes(), set[int](), [root]
    while roots:
        node = roots.pop()
        if isinstance(node, _CONTAINERS):
            if id(node) not in sizes:
                roots += _measure(node, sizes, _USUAL + _PER_BYTE * nbytes)
        elif id(node) not in seen:
            seen.add(id(node))
            roots += parts(node) or []


def _measure(root: Any, sizes: Sizes, most: int) -> list[object]:  # noqa: ANN401
    """Measure a container and all in it.

    Args:
      sizes: identity -> how many values a container unfolds to, and how deep; those of all in it are added.

    Returns:
      what is in it and no container.
    """
    stack: list[tuple[Any, bool]] = [(root, False)]
    within, leaves = set[int](), list[object]()
    while stack:
        node, done = stack.pop()
        inside = list(node.values()) if isinstance(node, dict) else list(node)
        nested = [item for item in inside if isinstance(item, _CONTAINERS)]
        if done or not nested:
            within.discard(id(node))
            found = [sizes[id(item)] for item in nested]
            size = 1 + len(inside) + sum(size for size, _ in found)
            depth = 1 + max((depth for _, depth in found), default=0)
            if size > most or depth > _DEEP:
                raise CorruptFile("a pickle holds lists within lists without end")
            sizes[id(node)] = size, depth
        elif id(node) not in sizes:
            within.add(id(node))
            if any(id(item) in within for item in nested):
                raise CorruptFile("a pickle holds a list that lies within itself")
            stack.append((node, True))
            stack += [(item, False) for item in nested]
        if not done and len(nested) < len(inside):
            leaves += [item for item in inside if not isinstance(item, _NO_OBJECTS)]
    return leaves
