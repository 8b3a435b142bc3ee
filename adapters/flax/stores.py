"""Where flax's arrays lie: a msgpack file, or a folder of Orbax."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from surgery.files import replacing
from surgery_adapters.containers.msgpack_tree import read, rewrite, span_of
from surgery_adapters.containers.optax_state import leaves
from surgery_adapters.flax import orbax

Write = Callable[[Path, Mapping[str, ir.TensorProtocol], bool], list[Path]]


@dataclass(frozen=True)
class Store:
    """A tree of arrays on disk.

    Attributes:
      tree: nested dicts by name; leaves are tensors, numbers, and what is left alone.
      write: a copy in which the arrays of some paths are others, to a path, replacing what is there or not.
    """

    tree: Mapping[str, Any]
    write: Write


def holds_orbax(path: Path) -> bool:
    """Whether a folder is a checkpoint of Orbax."""
    return orbax.item_of(path) is not None


def open_store(path: Path) -> Store:
    """Read what a file or folder holds.

    Raises:
      FileError: it cannot be read. CorruptFile: damaged, or of another layout.
      MissingDependency: a folder of Orbax, and tensorstore is not installed.
    """
    if path.is_dir():
        return Store(orbax.read(path), lambda target, new, force: orbax.write(path, target, new, force=force))
    tree = read(path)

    def write(target: Path, new: Mapping[str, ir.TensorProtocol], force: bool) -> list[Path]:
        spans = {name: span_of(tensor) for name, tensor in leaves(tree)}
        replaced = {span[0]: tensor for name, tensor in new.items() if (span := spans[name]) is not None}
        with replacing([target], force=force, sources=[path]) as [part], part.open("wb") as out:
            rewrite(path, replaced, out)
        return [target]

    return Store(tree, write)
