"""Copies of networks: target and averaged networks are edited as their originals are, with the same random numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from surgery.edits.units import SpaceEdit
from surgery.errors import ArgumentError, Refused
from surgery.graph.layout import units
from surgery.graph.spaces import Analysis, Space


def original_name(name: str, copies: Mapping[str, str]) -> str:
    """The parameter that a parameter is a copy of; the name itself if it is none.

    Args:
      name: of a parameter.
      copies: prefix of the copies -> prefix of their originals; the longest prefix that fits counts. A copy of a copy
        leads to the first original.
    """
    left = sorted(copies, key=len, reverse=True)
    while (copy := next((prefix for prefix in left if name.startswith(prefix)), None)) is not None:
        left.remove(copy)
        name = copies[copy] + name.removeprefix(copy)
    return name


def families(analysis: Analysis, copies: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Space -> the spaces that are edited with it, the original first.

    Spaces that have no copies, or share their axes with them (one observation for all), are not listed.

    Raises:
      Refused: a copy is made in another way than its original.
    """
    copy_of: dict[str, str] = {}
    for tensor, layouts in analysis.tensors.items():
        original = original_name(tensor, copies)
        if original == tensor or original not in analysis.tensors:
            continue
        for ours, theirs in zip(analysis.tensors[original], layouts, strict=True):
            pairs = list(zip(units(ours), units(theirs), strict=False))
            if len(pairs) != len(list(units(theirs))) or any(a.size != b.size for a, b in pairs):
                raise Refused(
                    f"'{tensor}' is declared a copy of '{original}', but its axes are made of other units"
                )
            copy_of.update({b.space: a.space for a, b in pairs if a.space != b.space})
    members: dict[str, list[str]] = {}
    for copy in copy_of:
        members.setdefault(_root(copy, copy_of), []).append(copy)
    return {name: (root, *found) for root, found in members.items() for name in (root, *found)}


def _root(space: str, copy_of: Mapping[str, str]) -> str:
    seen = {space}
    while space in copy_of and copy_of[space] not in seen:
        space = copy_of[space]
        seen.add(space)
    return space


def related(names: Iterable[str], analysis: Analysis, copies: Mapping[str, str]) -> tuple[str, ...]:
    """Some spaces, and those that are edited with them."""
    known = families(analysis, copies) if copies else {}
    return tuple(dict.fromkeys(member for name in names for member in known.get(name, (name,))))


def with_copies(
    edits: Sequence[SpaceEdit], analysis: Analysis, copies: Mapping[str, str]
) -> tuple[SpaceEdit, ...]:
    """Edits of spaces, and the same edits of their copies.

    Raises:
      ArgumentError: a space and its copy are to have different widths.
      Refused: a copy that cannot follow, with the reason.
    """
    if not copies:
        return tuple(edits)
    related = families(analysis, copies)
    asked = {edit.space: edit for edit in edits}
    done: dict[str, SpaceEdit] = {}
    for edit in edits:
        root, *others = related.get(edit.space, (edit.space,))
        leading = asked.get(root, edit)
        if leading.after != edit.after:
            raise ArgumentError(
                f"'{edit.space}' is edited with '{root}', but they are to have {edit.after} and {leading.after} units",
                hint="name one of them",
            )
        done[root] = replace(leading, space=root)
        for copy in others:
            _check(analysis.by_name[root], analysis.by_name[copy], leading)
            done[copy] = replace(leading, space=copy)
    return tuple(done.values())


def _check(original: Space, copy: Space, edit: SpaceEdit) -> None:
    more = copy.beside(*original.kinds)
    limits = [copy.no_zero, copy.no_net2net] if original.widenable else []
    wanted = [limits[0 if edit.fresh else 1]] if limits else []
    if reason := next(filter(None, [more, *wanted]), None):
        raise Refused(f"'{copy.name}', a copy of '{original.name}', cannot follow exactly: {reason}")
