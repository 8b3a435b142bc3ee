"""Whether parts fit each other: layers one another, a checkpoint's parameters the file that it is written into."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from surgery.adapters import SHARED
from surgery.checkpoint import Checkpoint
from surgery.copies import original_name
from surgery.errors import ArgumentError, CorruptFile, Refused
from surgery.tensors import shape_of
from surgery.verify.structure import check_structure


def matched(
    old: Mapping[str, ir.TensorProtocol], checkpoint: Checkpoint, like: Path
) -> dict[str, ir.TensorProtocol]:
    """The checkpoint's parameters by the names of a file that has all of them.

    Raises:
      ArgumentError: it does not.
    """
    traced = not {"module", "trust"}.isdisjoint(
        checkpoint.source
    )  # an exporter's constants have names without a path
    tensors = {
        name: tensor
        for name, tensor in checkpoint.tensors.items()
        if tensor.dtype.is_floating_point() and (name in old or "." in name or not traced)
    }
    _check_copies(old, tensors, checkpoint)
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


def _check_copies(
    old: Mapping[str, ir.TensorProtocol], tensors: Mapping[str, ir.TensorProtocol], checkpoint: Checkpoint
) -> None:
    """Copies that the graph does not compute cannot have followed."""
    for name, tensor in old.items():
        original = original_name(name, checkpoint.copies)
        now = tensors.get(original)
        if original != name and name not in tensors and now is not None and shape_of(now) != shape_of(tensor):
            raise Refused(
                f"'{name}' is a copy of '{original}', which is now {list(shape_of(now))}; the graph does not"
                " compute it, so it has not followed",
                hint="name code whose module computes both networks",
            )


def checked(model: ir.Model) -> ir.Model:
    """A graph whose layers fit each other.

    Raises:
      CorruptFile: they do not: the parts of the file are of different networks.
    """
    check = check_structure(model)
    if not check.ok:
        raise CorruptFile(f"the layers of the file do not fit each other: {check.detail}")
    return model
