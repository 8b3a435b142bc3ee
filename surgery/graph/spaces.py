"""Spaces: all axes that must change together, found in a graph, named, and each either free or frozen for a reason."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeVar

import onnx_ir as ir

from surgery.errors import ArgumentError, UnknownName
from surgery.graph import layout
from surgery.graph.atoms import UNIT, Atom, Axis, Freeze, factors, find, leaves, size_of, spans, summands
from surgery.graph.atoms import Part as PartOf
from surgery.graph.demands import Demand, travel
from surgery.graph.labels import label
from surgery.graph.layout import Factor, Layout, Part, Role, Sum, Units, Weave
from surgery.graph.modules import modules
from surgery.graph.names import named
from surgery.graph.padding import Padding, averaged, paddings
from surgery.graph.prepare import prepared
from surgery.graph.records import Operand
from surgery.graph.roles import Roles, assign
from surgery.graph.trace import Trace
from surgery.graph.walk import walk
from surgery.interface import Interface
from surgery.port_kinds import infer

_T = TypeVar("_T")

Fill = Literal["random", "zero", "donor"]
"""How entries of new units start: drawn like the tensor's own entries, zero, or as a copy of another unit's."""


_FIXED = frozenset({"symbolic", "spatial", "kernel", "literal"})
"""Kinds of axes that are no units of a layer: image rows, kernel taps, batch; they are plain sizes in layouts."""


@dataclass(frozen=True, slots=True)
class AxisRef:
    """One axis of a tensor in which a space occurs.

    Attributes:
      role: how its new entries start.
      makes: whether it makes the units; else it reads them.
      layout: the whole axis, in words.
    """

    tensor: str
    axis: int
    role: Role
    makes: bool
    layout: str

    @property
    def layer(self) -> str:
        """The module that has the tensor."""
        return self.tensor.rpartition(".")[0]


@dataclass(frozen=True)
class Space:
    """A set of units, and everything that must change when their number does.

    Attributes:
      name: the module path of the first parameter that makes the units.
      size: number of units.
      axes: every (tensor, axis) in which they occur.
      freezes: why the space is frozen; empty if it is free.
      no_zero, no_net2net: why an initialisation is not exact here; None if it is.
      whole: why copies come in whole multiples only; None if there can be any number of them.
      alike: the spaces that must then grow by the same multiple.
      extreme: where its largest or smallest unit is taken, to which of several equal ones is open; None if nowhere.
      linked: the spaces that a channel shuffle takes units from in turn with these, and which must be equally many.
      table: the constant that alone makes its units beside parameters of other spaces, and which nobody trains; None if
        parameters do, or nothing does.
      padding: "layer" or "rms" if fresh units can be made to vanish under that normaliser, whatever their number.
    """

    name: str
    size: int
    axes: tuple[AxisRef, ...]
    freezes: tuple[Freeze, ...] = ()
    no_zero: str | None = None
    no_net2net: str | None = None
    whole: str | None = None
    alike: tuple[str, ...] = ()
    extreme: str | None = None
    linked: tuple[str, ...] = ()
    table: str | None = None
    padding: Literal["layer", "rms"] | None = None
    aliases: tuple[str, ...] = ()

    @property
    def kinds(self) -> tuple[str, ...]:
        """Why it is frozen, by kind, each once: "input", "output", "spatial", "mixer", "opaque" …"""
        return tuple(dict.fromkeys(why.kind for why in self.freezes))

    @property
    def reasons(self) -> tuple[str, ...]:
        """The same in words, each naming its node."""
        return tuple(why.reason for why in self.freezes)

    def beside(self, *kinds: str) -> str | None:
        """Why it is frozen for another reason than these kinds; None if it is not."""
        return next((why.reason for why in self.freezes if why.kind not in kinds), None)

    @property
    def widenable(self) -> bool:
        """Whether the number of units can grow exactly."""
        return not self.reasons and (
            self.no_zero is None or self.no_net2net is None or self.padding is not None
        )

    @property
    def inits(self) -> tuple[str, ...]:
        """The initialisations under which it can grow: "zero", "net2net"."""
        if self.reasons:
            return ()
        fresh = ("zero",) if self.no_zero is None or self.padding is not None else ()
        return (*fresh, "net2net") if self.no_net2net is None else fresh

    @property
    def reason(self) -> str | None:
        """Why the space cannot grow, in one sentence."""
        if self.reasons:
            return self.reasons[0]
        return None if self.widenable else f"{self.no_zero}; {self.no_net2net}"

    @property
    def indexed(self) -> bool:
        """Whether numbers choose among its units at run time, as rows of an embedding, and nothing else keeps it."""
        return bool(self.freezes) and all(
            why.node is not None and why.node.op_type == "Gather" for why in self.freezes
        )

    @property
    def hidden(self) -> bool:
        """Whether the space lies inside the network, not at its interface."""
        return not set(self.kinds) & {"input", "output"}


@dataclass(frozen=True)
class Analysis:
    """The spaces of a graph.

    Attributes:
      model: the analysed graph, prepared (functions inlined, merged constants apart); not to be changed.
      trace: the axes of every value.
      spaces: all of them, in graph order, frozen ones included; axes of space, kernel and batch are not spaces.
      tensors: parameter or constant -> the layout of each of its axes.
      fills: tensor -> how entries of new units start.
    """

    model: ir.Model
    trace: Trace
    spaces: tuple[Space, ...]
    tensors: Mapping[str, tuple[Layout, ...]]
    fills: Mapping[str, Fill]
    _names: Mapping[Atom, str] = field(repr=False)
    _roles: Roles = field(repr=False)
    _paddings: Mapping[str, Padding] = field(repr=False)
    _layouts: dict[Axis, Layout] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def by_name(self) -> dict[str, Space]:
        """Every name and alias of every space."""
        names = {alias: space for space in self.spaces for alias in space.aliases}
        return names | {space.name: space for space in self.spaces}

    @property
    def literals(self) -> list[Operand]:
        """Numbers in the graph that follow the axes, in node order."""
        return self.trace.literals

    def space(self, name: str) -> Space:
        """Find a space by name, alias, an unambiguous ending of its name, or a layer or input that has no other.

        Raises:
          UnknownName: with the nearest names.
        """
        if name in self.by_name:
            return self.by_name[name]
        ending = {id(space): space for known, space in self.by_name.items() if known.endswith("." + name)}
        if len(ending) == 1:
            return next(iter(ending.values()))
        made = [s for s in self.spaces if any(axis.makes and axis.layer == name for axis in s.axes)]
        parts = [s for s in self.spaces if s.name.startswith(f"{name}[")]
        for found in (made, parts):
            if len(found) == 1:
                return found[0]
        raise UnknownName("space", name, [s.name for s in self.spaces if s.hidden or s in parts])

    def asked(self, given: Mapping[str, _T]) -> dict[Space, _T]:
        """What is given for spaces by their names.

        Raises:
          UnknownName: with the nearest names. ArgumentError: two names of one space.
        """
        found: dict[Space, _T] = {}
        for name, value in given.items():
            space = self.space(name)
            if space in found:
                raise ArgumentError(
                    f"space '{space.name}' is given twice, once as '{name}'", hint="give it once"
                )
            found[space] = value
        return found

    def padding(self, space: str) -> Padding:
        """How fresh units of a space vanish under its normalisers; for spaces that have a `padding`."""
        return self._paddings[space]

    def not_averaged(self, space: str) -> str | None:
        """The node that averages units which are not at the mean of others where all that makes them is; else None."""
        memo: dict[Atom, Demand] = {}
        for site in self.trace.sites:
            own = [leaf for leaf in leaves(site.axes[0]) if self._names.get(find(leaf)) == space]
            if site.kind == "mean" and not all(travel(memo, leaf, averaged).level for leaf in own):
                return label(site.node)
        return None

    def padded(self, spaces: Collection[str]) -> Mapping[str, tuple[Layout, ...]]:
        """Like `tensors`, with the roles that elements have when some spaces grow by padding."""
        special: dict[Atom, Role] = {}
        for space in spaces:
            special.update(self._paddings[space].roles)
        if not special:
            return self.tensors
        return {
            tensor: tuple(_layout(axis, self._names, self._roles, special) for axis in axes)
            for tensor, axes in self.trace.tensors.items()
        }

    @property
    def ports(self) -> list[tuple[Literal["input", "output"], str, tuple[Layout, ...]]]:
        """Inputs and outputs: (side, name, layout of each axis)."""
        return [(side, name, tuple(self.layout(a) for a in axes)) for side, name, axes in self.trace.ports]

    def layout(self, axis: Axis) -> Layout:
        """The layout of any axis of the trace; roles are meaningless on activations."""
        if axis not in self._layouts:
            self._layouts[axis] = _layout(axis, self._names)
        return self._layouts[axis]

    def resize(self, sizes: Mapping[str, int]) -> Callable[[Axis], int]:
        """A function that gives the size of any axis once some spaces have new sizes."""
        return lambda axis: layout.size(self.layout(axis), sizes)


def analyse(model: ir.Model, interface: Interface | None = None, trained: Collection[str] = ()) -> Analysis:
    """Find the spaces of a graph.

    Args:
      model: an ONNX graph; only shapes and small constants are read.
      interface: says which inputs and outputs are recurrent state; inferred from their names if it is not given.
      trained: parameters that an optimizer holds: each is one tensor, even where it is constant.

    Returns:
      The analysis. What could not be proved to be free is frozen, with the reason and the node that caused it.

    Raises:
      GraphError: if an input has no shape or an axis of size 0.
    """
    model = prepared(model, trained)
    trace = walk(model, interface or infer(model))
    roles = assign(trace)
    members: dict[Atom, list[tuple[str, int, Atom]]] = {}
    for tensor, axes in trace.tensors.items():
        for k, axis in enumerate(axes):
            for leaf in leaves(axis):
                if not any(why.kind in _FIXED for why in leaf.frozen):
                    members.setdefault(find(leaf), []).append((tensor, k, leaf))
    names = named(members, roles, modules(model, trace), _places(trace))
    layouts = {
        tensor: tuple(_layout(axis, names, roles) for axis in axes) for tensor, axes in trace.tensors.items()
    }
    padded = paddings(trace, roles)
    spaces = tuple(_space(root, names, members[root], roles, layouts, padded.get(root)) for root in members)
    by_space = {names[root]: padding for root, padding in padded.items() if root in names}
    return Analysis(model, trace, spaces, layouts, _fills(trace, roles), names, roles, by_space)


def _space(
    root: Atom,
    names: Mapping[Atom, str],
    members: list[tuple[str, int, Atom]],
    roles: Roles,
    layouts: Mapping[str, tuple[Layout, ...]],
    padding: Padding | None,
) -> Space:
    refs = dict.fromkeys(
        AxisRef(tensor, k, part.role, leaf not in roles.readers, layout.text(layouts[tensor][k]))
        for tensor, k, leaf in members
        for part in layout.units(layouts[tensor][k])
        if part.space == names[root]
    )
    made = dict.fromkeys(ref.tensor for ref in refs if ref.makes)
    all_constant = roles.tables.issuperset(layouts)  # some exporters write all weights as constants
    return Space(
        name=names[root],
        size=root.size,
        axes=tuple(refs),
        freezes=tuple(root.frozen),
        no_zero=roles.no_zero.get(root),
        no_net2net=roles.no_net2net.get(root),
        whole=roles.whole.get(root),
        alike=_together(root, roles.alike, names),
        extreme=roles.extremes.get(root),
        linked=_together(root, roles.linked, names),
        table=next(iter(made), None) if roles.tables.issuperset(made) and not all_constant else None,
        padding=None if padding is None else padding.kind,
    )


def _together(root: Atom, groups: list[set[Atom]], names: Mapping[Atom, str]) -> tuple[str, ...]:
    return tuple(sorted({names[r] for group in groups if root in group for r in group if r in names}))


def _places(trace: Trace) -> dict[Atom, int]:
    """The order in which the units of inputs stand there, by class."""
    ports = [axis for side, _, axes in trace.ports if side == "input" for axis in axes]
    roots = dict.fromkeys(find(leaf) for axis in ports for leaf in leaves(axis))
    return {
        root: k for k, root in enumerate(root for root in roots if "input" in {w.kind for w in root.frozen})
    }


def _layout(
    axis: Axis,
    names: Mapping[Atom, str],
    roles: Roles | None = None,
    special: Mapping[Atom, Role] | None = None,
) -> Layout:
    out, each = list[Factor](), list[Layout]()
    row = factors(axis)
    for k, atom in enumerate(row):
        if roles is not None and (asked := _asked_at_places(atom, row[k + 1 :], roles, special or {})):
            for block, places in _blocks(atom, asked.values()):
                own: dict[Atom, Role] = {
                    leaf: "in" if places[0] in at else "out" for leaf, at in asked.items()
                }
                each.append(_layout((*block, *row[k + 1 :]), names, roles, {**(special or {}), **own}))
            return layout.simplified([*out, Sum(tuple(each))])
        if atom.segments is not None:
            parts = tuple(_layout(tuple(part), names, roles, special) for part in summands(atom))
            whole = all(len(part) == 0 or all(isinstance(f, int) for f in part) for part in parts)
            out.append(size_of((atom,)) if whole else Sum(parts))
            continue
        if atom.woven is not None:
            inside = tuple(_layout(axis, names, roles, special) for axis in atom.woven)
            fixed = not any(True for part in inside for _ in layout.units(part))
            out.append(atom.size if fixed else _woven(atom, inside))
            continue
        name = names.get(find(atom))
        role: Role = (special or {}).get(
            atom, "in" if roles is not None and atom in roles.consumers else "out"
        )
        out.append(atom.size if name is None else Units(name, atom.size, role))
    return layout.simplified(out)


def _asked_at_places(
    counter: Atom, behind: list[Atom], roles: Roles, special: Mapping[Atom, Role]
) -> dict[Atom, frozenset[int]]:
    """The factors that only some of the places which another one counts make zero, and at which of them."""
    places = {leaf: roles.places[leaf] for leaf in behind if leaf in roles.places and leaf not in special}
    return {leaf: at for leaf, (before, at) in places.items() if before is counter}


def _blocks(counter: Atom, asked: Collection[frozenset[int]]) -> Iterator[tuple[Axis, range]]:
    """The segments of a counter of places; one that is asked at some of them only (it cannot grow) place by place."""
    for segment, places in spans(counter):
        if all(len({place in each for place in places}) == 1 for each in asked):
            yield segment, places
        else:
            yield from ((UNIT, places[k : k + 1]) for k in range(len(places)))


def _woven(atom: Atom, inside: tuple[Layout, ...]) -> Factor:
    if isinstance(atom.children, PartOf):
        return Part(inside[0], atom.children.index, atom.children.count)
    return Weave(inside)


def _fills(trace: Trace, roles: Roles) -> dict[str, Fill]:
    fills: dict[str, Fill] = {}
    for tensor in trace.tensors:
        purpose = roles.purpose.get(tensor, set())
        fills[tensor] = "random" if "weight" in purpose else "zero" if purpose == {"bias"} else "donor"
    return fills
