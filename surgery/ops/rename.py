"""Rename: parameters and whole layers under other names."""

from __future__ import annotations

from collections.abc import Mapping

from surgery.checkpoint import Checkpoint
from surgery.edits.plan import Plan
from surgery.edits.rewiring import Rewiring
from surgery.errors import ArgumentError, UnknownName


def rename(checkpoint: Checkpoint, names: Mapping[str, str]) -> Plan:
    """Give parameters other names; their optimizer state goes along.

    Args:
      checkpoint: any checkpoint.
      names: old name -> new name, of a tensor, or of a module with all that is in it ("network.0" -> "features.0").

    Returns:
      A plan that claims "identical".

    Raises:
      UnknownName: no tensor and no module of that name. ArgumentError: two tensors would have one name.
    """
    tensors, renames = list(checkpoint.tensors), dict[str, str]()
    for old, new in names.items():
        inside = [name for name in tensors if name == old or name.startswith(f"{old}.")]
        if not inside:
            raise UnknownName("parameter", old, tensors)
        if not new or any(not part for part in new.split(".")):
            raise ArgumentError(f"'{new}' is not a name of parameters")
        renames.update({name: new + name.removeprefix(old) for name in inside})
    renames = {old: new for old, new in renames.items() if old != new}
    if not renames:
        raise ArgumentError("nothing to rename", hint="give at least one OLD=NEW")
    left = [name for name in tensors if name not in renames] + list(renames.values())
    twice = sorted(
        {name for name in left if left.count(name) > 1} | (set(renames.values()) & _values(checkpoint))
    )
    if twice:
        raise ArgumentError(f"two tensors would be called '{twice[0]}'")
    return Plan("rename", {"names": dict(names)}, "identical", (), (), (), rewiring=Rewiring(renames=renames))


def _values(checkpoint: Checkpoint) -> set[str]:
    """The names of what nodes compute."""
    return {str(value.name) for node in checkpoint.model.graph for value in node.outputs if value.name}
