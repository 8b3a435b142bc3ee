"""Whether parts fit each other: layers one another, a checkpoint's parameters the file that it is written into."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from surgery.adapters import SHARED
from surgery.checkpoint import Checkpoint
from surgery.edits.copies import original_name
from surgery.errors import ArgumentError, CorruptFile, Refused
from surgery.graph.rewrite import OPERAND
from surgery.optimizer import OptimizerState
from surgery.tensors import shape_of
from surgery.verify.structure import check_structure
from surgery_adapters.networks.statistics import variances
from surgery_adapters.writeback.sameness import difference
from surgery_adapters.writeback.sequences import HINT, Numbering, number

Tensors = Mapping[str, ir.TensorProtocol]

_MADE_BY_CODE = {"module", "trust"}
"""Notes of a checkpoint whose graph was exported from a person's own code."""


@dataclass(frozen=True)
class Fit:
    """What of a checkpoint goes where in a file.

    Attributes:
      numbering: what the file's parameters are called from now on.
      now: the file's name (the old one) -> the tensor that it becomes; names that are missing stay.
      tensors: every tensor that the file will have, by its new name and in order.
      read_again: the same as a reader of the new file finds them.
    """

    numbering: Numbering
    now: Tensors
    tensors: Tensors
    read_again: Tensors


def followed(state: OptimizerState | None) -> OptimizerState:
    """The checkpoint's optimizer state, where the file that it goes into has one.

    Raises:
      Refused: there is none.
    """
    if state is None:
        raise Refused(
            "the file has optimizer state, and the checkpoint was read without it",
            hint="read it with its optimizer, so that the state can follow",
        )
    return state


def fit(old: Tensors, checkpoint: Checkpoint, like: Path, modules: Mapping[str, int] | None = None) -> Fit:
    """Find the place of every parameter of a checkpoint in a file that it came from, or in one like it.

    Args:
      old: the file's parameters. modules: of new layers, see `Numbering`.

    Raises:
      ArgumentError: the file is of another network.
      Refused: a new layer that no sequence of the file holds.
    """
    ours = _parameters(old, checkpoint)
    new = [name for name in ours if name not in old]
    if new and len(new) == len(ours):
        raise _stranger(new[0], like)
    if new and not _MADE_BY_CODE.isdisjoint(checkpoint.source):
        raise Refused(
            f"your code builds this network without '{new[0]}'",
            hint=f"{HINT}; or write the file of code that builds it",
        )
    numbering = number(checkpoint.model, old, new, checkpoint.copies, modules)
    now = matched(old, checkpoint, like, new)
    now |= variances(old, now)
    tensors = numbering.fitted(old, {**now, **{name: ours[name] for name in new}})
    return Fit(numbering, now, tensors, numbering.read_again(old, tensors))


def matched(
    old: Tensors, checkpoint: Checkpoint, like: Path, new: Sequence[str] = ()
) -> dict[str, ir.TensorProtocol]:
    """The checkpoint's parameters by the names of a file that has all of them.

    Args:
      new: parameters that it does not have, and that are seen to elsewhere.

    Raises:
      ArgumentError: it has none of the others. Refused: it has not all of them.
    """
    tensors = {name: tensor for name, tensor in _parameters(old, checkpoint).items() if name not in new}
    _check_copies(old, tensors, checkpoint)
    if missing := [name for name in tensors if name not in old]:
        if len(missing) == len(tensors):
            raise _stranger(missing[0], like)
        raise Refused(f"the file has no place for the new parameter '{missing[0]}'", hint=HINT)
    first = {old[name].meta.get(SHARED, name): tensor for name, tensor in tensors.items()}
    return {
        name: first[view] for name, tensor in old.items() if (view := tensor.meta.get(SHARED, name)) in first
    }


def resized(old: Tensors, new: Tensors) -> bool:
    """Whether any tensor of a file becomes one of another shape."""
    return any(shape_of(tensor) != shape_of(old[name]) for name, tensor in new.items())


def _parameters(old: Tensors, checkpoint: Checkpoint) -> dict[str, ir.TensorProtocol]:
    # an exporter's constants have names without a path
    traced = not _MADE_BY_CODE.isdisjoint(checkpoint.source)
    return {
        name: tensor
        for name, tensor in checkpoint.tensors.items()
        if tensor.dtype.is_floating_point()
        and (name in old or (("." in name or not traced) and OPERAND not in name))
    }


def _stranger(name: str, like: Path) -> ArgumentError:
    return ArgumentError(
        f"the checkpoint has a parameter '{name}', the file does not",
        where={"like": like},
        hint="write a checkpoint into the file that it came from",
    )


def check_same(
    checkpoint: Checkpoint, made: Callable[[], ir.Model], fitted: Fit, old: Tensors, what: str
) -> None:
    """Raise Refused unless the framework will compute what the checkpoint's graph does.

    Args:
      made: the graph of the networks that the framework will make of the file.
      fitted: what is written. old: what the file had. what: the framework's name, for the message.
    """
    try:
        reason = difference(checkpoint.model, made(), fitted.numbering.of_graph(old))
    except (Refused, ArgumentError, CorruptFile) as error:
        reason = error.message
    if reason is not None:
        raise Refused(f"{what} cannot hold this network: {reason}", hint=HINT)


def _check_copies(old: Tensors, tensors: Tensors, checkpoint: Checkpoint) -> None:
    """Copies that the graph does not compute cannot have followed."""
    for name, tensor in old.items():
        original = original_name(name, checkpoint.copies)
        now = tensors.get(original)
        if original != name and name not in tensors and now is not None and shape_of(now) != shape_of(tensor):
            raise Refused(
                f"'{name}' is a copy of '{original}', which is now {list(shape_of(now))}; the graph does not "
                "compute it, so it was not changed along",
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
