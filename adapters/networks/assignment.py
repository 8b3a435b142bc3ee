"""Which layer of a file is which layer of a known network: by names, else by shapes and order, else asked for.

Layers of one shape that follow each other are told by their order. Layers of one shape that stand side by side (the
streams of a dueling head, the projections of attention) are told by words in their names, or not at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from surgery.adapters import SHARED
from surgery.errors import ArgumentError, Refused, some_text
from surgery.optimizer_record import align, trainable
from surgery.tensors import shape_of
from surgery_adapters.networks.layers import HINT, Tensors
from surgery_adapters.networks.words import WORDS, words_of

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
"""Name of a parameter -> its shape."""
SIDES: Mapping[str, frozenset[str]] = {
    "advantage": frozenset({"advantage", "adv", "a"}),
    "key": frozenset({"key", "k", "wk"}),
    "out": frozenset({"out", "o", "wo", "proj", "output"}),
    "policy": WORDS["logits"] | WORDS["mean"],
    "query": frozenset({"query", "q", "wq"}),
    "value": WORDS["value"] | {"val", "wv"},
}
"""Layers that stand side by side -> words in their names."""


@dataclass(frozen=True)
class Module:
    """A layer: its name, and the shapes of its parameters by the last part of their names."""

    name: str
    shapes: frozenset[tuple[str, Shape]]

    def __str__(self) -> str:
        return f"{self.name} {' '.join(str(list(shape)) for _, shape in sorted(self.shapes, reverse=True))}"


def modules_of(shapes: Shapes) -> list[Module]:
    """The layers of a network, in order; a deviation that stands alone is a layer without a weight."""
    found: dict[str, set[tuple[str, Shape]]] = {}
    for name, shape in shapes.items():
        module, _, leaf = name.rpartition(".")
        if {"logstd", "log_std"} & words_of(name):
            found[name] = {("log_std", shape[-1:])}
        else:
            found.setdefault(module, set()).add((leaf, shape))
    return [Module(name, frozenset(parts)) for name, parts in found.items()]


def trained_shapes(tensors: Tensors) -> dict[str, Shape]:
    """The parameters of a network that surgery knows what to do with: no statistics, second names or plain buffers."""
    seen: set[object] = set()
    shapes = {}
    weighted = {name.rpartition(".")[0] for name, tensor in tensors.items() if len(tensor.shape) > 1}
    for name, tensor in tensors.items():
        view = tensor.meta.get(SHARED, name)
        lone = name.rpartition(".")[0] not in weighted and "weight" not in name
        if (
            view in seen
            or not trainable(name, tensor)
            or (lone and not {"logstd", "log_std"} & words_of(name))
        ):
            continue
        seen.add(view)
        shapes[name] = shape_of(tensor)
    return shapes


def fits(wanted: Shapes, held: Shapes) -> bool:
    """Whether a file holds layers of these shapes, and no others."""
    ours, theirs = ([module.shapes for module in modules_of(shapes)] for shapes in (wanted, held))
    return sorted(map(sorted, ours)) == sorted(map(sorted, theirs))


def assigned(wanted: Shapes, held: Shapes) -> dict[str, str]:
    """Parameter of the known network -> parameter of the file.

    Args:
      wanted: of the known network, in the order in which data goes through it.
      held: of the file, in its order.

    Raises:
      ArgumentError: the layers differ.
      Refused: neither names nor order tell which is which.
    """
    named = align(wanted, held)
    if len(named) == len(wanted) == len(held) and all(wanted[k] == held[v] for k, v in named.items()):
        return named
    if not fits(wanted, held):
        ours, theirs = differing(wanted, held)
        raise ArgumentError(
            "the file has other layers",
            where={"wanted": _listed(ours), "in the file": _listed(theirs)},
        )
    names = _paired(modules_of(wanted), modules_of(held))
    return {name: theirs for name in wanted for theirs in [_renamed(name, names)] if theirs is not None}


def differing(wanted: Shapes, held: Shapes) -> tuple[list[Module], list[Module]]:
    """The layers that only the one, and only the other has."""
    ours, theirs = modules_of(wanted), modules_of(held)
    left = list(theirs)
    for module in list(ours):
        if (same := next((other for other in left if other.shapes == module.shapes), None)) is not None:
            left.remove(same)
            ours.remove(module)
    return ours, left


def _listed(modules: Sequence[Module]) -> str:
    return some_text(map(str, modules), 6) or "no other"


def _renamed(name: str, modules: Mapping[str, str]) -> str | None:
    if name in modules:  # a deviation
        return modules[name]
    module, _, leaf = name.rpartition(".")
    return f"{modules[module]}.{leaf}".removeprefix(".") if module in modules else None


def _paired(wanted: Sequence[Module], held: Sequence[Module]) -> dict[str, str]:
    alphabetical = [module.name for module in held] == sorted(module.name for module in held)
    names: dict[str, str] = {}
    for shapes in dict.fromkeys(module.shapes for module in wanted):
        ours = [module.name for module in wanted if module.shapes == shapes]
        theirs = [module.name for module in held if module.shapes == shapes]
        sides = [_side(name) for name in ours]
        if len(set(sides)) > 1:
            theirs = _by_words(theirs, sides)
        elif alphabetical:
            theirs = _by_numbers(theirs)
        names |= dict(zip(ours, theirs, strict=True))
    return names


def _by_words(names: Sequence[str], sides: Sequence[str | None]) -> list[str]:
    """Names in the order of the sides that their words tell."""
    found: dict[str | None, list[str]] = {}
    for name in names:
        told = {side for side in set(sides) if side is not None and words_of(name) & SIDES[side]}
        if len(told) > 1 or (not told and None not in sides):
            raise _untold(names)
        found.setdefault(next(iter(told), None), []).append(name)
    if any(len(found.get(side, ())) != sides.count(side) for side in set(sides)):
        raise _untold(names)
    return [found[side].pop(0) for side in sides]


def _by_numbers(names: Sequence[str]) -> list[str]:
    """Names that were sorted as text (10 before 2) in the order of their numbers."""
    if len({re.sub(r"\d+", "", name) for name in names}) > 1:
        raise _untold(names)
    return sorted(names, key=lambda name: list(map(int, re.findall(r"\d+", name))))


def _untold(names: Sequence[str]) -> Refused:
    return Refused(f"neither names nor order tell which of {', '.join(names)} is which", hint=HINT)


def _side(name: str) -> str | None:
    parts = name.split(".")
    return next((part for part in (parts[-1], parts[0]) if part in SIDES), None)
