"""Whether parts fit each other: layers one another, a checkpoint's parameters the file that it is written into."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from surgery.adapters import SHARED
from surgery.checkpoint import Checkpoint
from surgery.errors import ArgumentError, CorruptFile
from surgery.verify.structure import check_structure


def matched(
    old: Mapping[str, ir.TensorProtocol], checkpoint: Checkpoint, like: Path
) -> dict[str, ir.TensorProtocol]:
    """The checkpoint's parameters by the names of a file that has all of them.

    Raises:
      ArgumentError: it does not.
    """
    tensors = {
        name: tensor for name, tensor in checkpoint.tensors.items() if tensor.dtype.is_floating_point()
    }
    if missing := [name for name in tensors if name not in old]:
        raise ArgumentError(
            f"the file has no parameter '{missing[0]}', the checkpoint has",
            where={"like": like},
            hint="a checkpoint is written into the file that it came from; layers cannot be added to one",
        )
    first = {old[name].meta.get(SHARED, name): tensor for name, tensor in tensors.items()}
    return {
        name: first[view] for name, tensor in old.items() if (view := tensor.meta.get(SHARED, name)) in first
    }


def checked(model: ir.Model) -> ir.Model:
    """A graph whose layers fit each other.

    Raises:
      CorruptFile: they do not: the parts of the file are of different networks.
    """
    check = check_structure(model)
    if not check.ok:
        raise CorruptFile(f"the layers of the file do not fit each other: {check.detail}")
    return model
