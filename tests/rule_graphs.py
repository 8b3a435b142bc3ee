"""Small graphs around one operator, and an oracle for the rule that describes it.

Every operand is a parameter `NAME.weight` times a run-time factor, so that it is an activation whose units can grow.
The oracle grows them, runs the real operator, and compares the result with the index map that the rule implies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from onnx import NodeProto, TensorProto, helper, numpy_helper

from surgery.checkpoint import Checkpoint
from surgery.edits.arithmetic import SpaceEdit
from surgery.edits.execute import execute
from surgery.graph.atoms import Atom, Axis, factors, find, leaves, summands
from surgery.graph.demands import Asking, Demand, travel
from surgery.graph.padding import averaged
from surgery.graph.spaces import Analysis, Space, analyse
from surgery.numeric import run
from surgery.ops.build import build
from surgery.port_kinds import infer

SYMBOLS = {"N": 4, "T": 3}
"""Run-time sizes of symbolic axes."""


@dataclass(frozen=True)
class Operand:
    """An operand of the operator under test.

    Attributes:
      shape: its axes; a str is a symbolic one.
      low, high: range of its values.
      kind: "activation", "mask" (booleans), "index" (integers), or "weight" (a parameter as it is).
      values: literal integers instead.
    """

    shape: tuple[int | str, ...] = ()
    low: float = -1.0
    high: float = 1.0
    kind: str = "activation"
    values: np.ndarray | None = None


def activation(*shape: int | str, low: float = -1.0, high: float = 1.0) -> Operand:
    """Computed at run time from a parameter of the same name."""
    return Operand(shape, low, high)


def positive(*shape: int | str) -> Operand:
    """An activation between 0.2 and 0.9."""
    return Operand(shape, 0.2, 0.9)


def weight(*shape: int, low: float = -1.0, high: float = 1.0) -> Operand:
    """A parameter."""
    return Operand(shape, low, high, "weight")


def mask(*shape: int | str) -> Operand:
    """Booleans computed at run time."""
    return Operand(shape, 0.0, 2.0, "mask")


def index(*shape: int | str, below: int) -> Operand:
    """Integers computed at run time."""
    return Operand(shape, 0.0, float(below), "index")


def ints(*values: int) -> Operand:
    """A literal vector."""
    return Operand(values=np.array(values, np.int64))


def number(value: int) -> Operand:
    """A literal integer scalar."""
    return Operand(values=np.array(value, np.int64))


def real(value: float) -> Operand:
    """A literal floating scalar."""
    return Operand(values=np.array(value, np.float32))


@dataclass(frozen=True)
class Row:
    """One use of an operator, and what must be free in it.

    Attributes:
      text: nodes in the ONNX text form, one per line; the last one is under test and makes `y…`.
      free: sizes of the spaces that can grow, smallest first.
      only: "zero" or "net2net" -> sizes of the spaces that take this initialisation alone.
      opsets: versions of the operator set.
      operands: name -> operand.
    """

    text: str
    free: tuple[int, ...]
    only: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    opsets: tuple[int, ...] = (20,)
    operands: Mapping[str, Operand] = field(default_factory=dict)

    @property
    def nodes(self) -> list[NodeProto]:
        """The nodes of the text."""
        return [onnx.parser.parse_node(line) for line in self.text.splitlines() if line.strip()]

    @property
    def subject(self) -> str:
        """The operator under test."""
        return str(self.nodes[-1].op_type)

    @property
    def results(self) -> list[str]:
        """Names of the results."""
        return [name for name in self.nodes[-1].output if name]


def row(
    text: str,
    free: Sequence[int],
    *,
    opsets: tuple[int, ...] = (20,),
    only: Mapping[str, tuple[int, ...]] | None = None,
    **operands: Operand,
) -> Row:
    """A row of the table; see `Row`."""
    return Row(text, tuple(sorted(free)), only or {}, opsets, operands)


def model_of(case: Row, opset: int, rng: np.random.Generator) -> ir.Model:
    """The graph of a row; its results are no graph outputs, so that their axes are free."""
    made, inputs, tensors = list[NodeProto](), list[onnx.ValueInfoProto](), list[TensorProto]()
    for name, operand in case.operands.items():
        if operand.values is not None:
            tensors.append(numpy_helper.from_array(operand.values, name))
            continue
        fixed = tuple(1 if isinstance(n, str) else n for n in operand.shape)
        array = rng.uniform(operand.low, operand.high, fixed).astype(np.float32)
        plain = operand.kind == "weight"
        tensors.append(numpy_helper.from_array(array, name if plain else f"{name}.weight"))
        if not plain:
            made += _at_run_time(name, operand.kind)
            gains = [n if isinstance(n, str) else 1 for n in operand.shape]
            inputs.append(helper.make_tensor_value_info(f"{name}.gain", TensorProto.FLOAT, gains))
    inputs.append(helper.make_tensor_value_info("idle", TensorProto.FLOAT, []))
    made += [*case.nodes, helper.make_node("Neg", ["idle"], ["nothing"])]
    graph = helper.make_graph(
        made, "row", inputs, [helper.make_tensor_value_info("nothing", TensorProto.FLOAT, [])], tensors
    )
    proto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])
    return ir.serde.deserialize_model(proto)


def _at_run_time(name: str, kind: str) -> list[NodeProto]:
    raw, gain = f"{name}.weight", f"{name}.gain"
    if kind == "mask":
        return [helper.make_node("Greater", [raw, gain], [name])]
    if kind == "index":
        scaled = helper.make_node("Mul", [raw, gain], [f"{name}.scaled"])
        return [scaled, helper.make_node("Cast", [f"{name}.scaled"], [name], to=TensorProto.INT64)]
    return [helper.make_node("Mul", [raw, gain], [name])]


def feeds(model: ir.Model, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Run-time factors between 0.8 and 1, one per element of the symbolic axes."""
    return {
        str(value.name): rng.uniform(
            0.8, 1.0, [n if isinstance(n, int) else SYMBOLS[str(n.value)] for n in value.shape or ()]
        )
        for value in model.graph.inputs
    }


@dataclass(frozen=True)
class Positions:
    """Where the elements of a grown axis come from: old index and whether new; `count` is the old size."""

    source: np.ndarray
    fresh: np.ndarray
    count: int


class Growth:
    """The index map of any axis after some classes have grown; written without `surgery.edits.arithmetic`."""

    def __init__(self, analysis: Analysis, edits: Sequence[SpaceEdit]) -> None:
        by_name = {edit.space: edit for edit in edits}
        self.edits = {
            root: by_name[name]
            for root, name in analysis._names.items()
            if find(root) is root and name in by_name
        }
        self.sizes = {prime: SYMBOLS[name] for name, prime in analysis.trace.facts.symbols.items()}

    def axis(self, axis: Axis) -> Positions:
        """Positions along an axis."""
        out = Positions(np.zeros(1, int), np.zeros(1, bool), 1)
        for atom in factors(axis):
            part = self._atom(atom)
            out = Positions(
                (out.source[:, None] * part.count + part.source).ravel(),
                (out.fresh[:, None] | part.fresh).ravel(),
                out.count * part.count,
            )
        return out

    def _atom(self, atom: Atom) -> Positions:
        if atom.segments is not None:
            parts = [self.axis(tuple(part)) for part in summands(atom)]
            starts = np.cumsum([0, *(part.count for part in parts)])
            source = [part.source + start for part, start in zip(parts, starts, strict=False)]
            return Positions(
                np.concatenate(source), np.concatenate([p.fresh for p in parts]), int(starts[-1])
            )
        edit = self.edits.get(find(atom))
        if edit is None:
            size = self.sizes.get(atom.size, atom.size)
            return Positions(np.arange(size), np.zeros(size, bool), size)
        fresh = np.isin(np.arange(edit.after), list(edit.fresh))
        return Positions(np.array(edit.source), fresh, edit.before)


def grown(space: Space, init: str, rng: np.random.Generator) -> SpaceEdit:
    """An edit by a factor that is no integer (where that is allowed), units in any order, shares unequal."""
    if space.whole is not None:
        return SpaceEdit(space.name, space.size, tuple(int(k) for k in rng.permutation(2 * space.size) // 2))
    extra = math.ceil(0.6 * space.size)
    donors = rng.integers(0, space.size, extra)
    if init == "zero":
        after = space.size + extra
        fresh = frozenset(int(k) for k in rng.choice(after, extra, replace=False))
        old, new = iter(range(space.size)), iter(donors)
        source = tuple(int(next(new if k in fresh else old)) for k in range(after))
        return SpaceEdit(space.name, space.size, source, fresh)
    source = tuple(int(k) for k in rng.permutation([*range(space.size), *donors]))
    parts = rng.uniform(0.5, 1.5, len(source))
    shares = parts / np.bincount(source, weights=parts)[list(source)]
    return SpaceEdit(space.name, space.size, source, shares=tuple(float(share) for share in shares))


def allowed(space: Space) -> list[str]:
    """The initialisations that a space takes."""
    return [init for init, no in (("zero", space.no_zero), ("net2net", space.no_net2net)) if no is None]


def edits_of(analysis: Analysis, rng: np.random.Generator) -> Iterator[list[SpaceEdit]]:
    """Every free space alone (or with those it must be like) in every initialisation, then all together."""
    free = [space for space in analysis.spaces if space.widenable]
    for space in free:
        for init in allowed(space):
            yield [grown(analysis.by_name[name], init, rng) for name in space.alike or [space.name]]
    if len(free) > 1:
        yield [grown(space, allowed(space)[0], rng) for space in free]
        yield [grown(space, allowed(space)[-1], rng) for space in free]


def check_growth(
    analysis: Analysis, edits: Sequence[SpaceEdit], results: Sequence[str], given: Mapping
) -> None:
    """Widen with copied or new units, and compare all old units of the results."""
    model = analysis.model
    checkpoint = Checkpoint(model, infer(model))
    plan = build(checkpoint, analysis, "widen", edits, arguments={}, claim="equivalent")
    wide = execute(plan, checkpoint, double=True).model
    before, after = run(model, given, outputs=results), run(wide, given, outputs=results)
    values = {value.name: value for node in model.graph for value in node.outputs}
    growth = Growth(analysis, edits)
    for name in results:
        maps = [growth.axis(axis) for axis in analysis.trace.axes(values[name])]
        assert tuple(m.count for m in maps) == before[name].shape
        assert tuple(len(m.source) for m in maps) == after[name].shape
        wanted = before[name][np.ix_(*(m.source for m in maps))] if maps else before[name]
        kept = np.ix_(*(~m.fresh for m in maps)) if maps else ...
        text = f"{name} after {[(edit.space, edit.before, edit.after, bool(edit.fresh)) for edit in edits]}"
        # attributes are stored in float32, so a regenerated one may be off by 3e-8
        np.testing.assert_allclose(after[name][kept], wanted[kept], rtol=1e-7, atol=1e-7, err_msg=text)


def check_row(case: Row, opset: int, rng: np.random.Generator) -> Analysis:
    """Pins what is free, then grows it in every way."""
    model = model_of(case, opset, rng)
    analysis = analyse(model)
    free = [space for space in analysis.spaces if space.widenable]
    why = {f"{s.name} ({s.size})": s.reason for s in analysis.spaces if not s.widenable}
    single = {
        init: tuple(sorted(s.size for s in free if allowed(s) == [init])) for init in ("zero", "net2net")
    }
    had = (
        tuple(sorted(space.size for space in free)),
        {init: sizes for init, sizes in single.items() if sizes},
    )
    assert had == (case.free, dict(case.only)), f"free: {had}, not free: {why}"
    given = feeds(model, rng)
    for edits in edits_of(analysis, rng):
        check_growth(analysis, edits, case.results, given)
    return analysis


def check_demands(
    analysis: Analysis, results: Sequence[str], rng: np.random.Generator
) -> dict[tuple[str, int], int]:
    """Scale, or make zero, what a demand on some units reaches, and look whether the units follow.

    Returns:
      (result, axis) -> the level that was claimed, for axes of one plain group of units.
    """
    model, given = analysis.model, feeds(analysis.model, rng)
    before = run(model, given, outputs=results)
    values = {value.name: value for node in model.graph for value in node.outputs}
    claimed: dict[tuple[str, int], int] = {}
    for name in results:
        for k, axis in enumerate(analysis.trace.axes(values[name])):
            for leaf in dict.fromkeys(leaf for leaf in leaves(axis) if not leaf.frozen):
                asking = Asking()
                asking.stop([atom for atom in asking.demand([leaf]).through if atom.link.shared])
                demand = asking.demand([leaf])
                claimed[name, k] = min(demand.level, claimed.get((name, k), 2))
                # a tensor with several readers also changes what is not asked: that is for `assign` to see
                tensors = [model.graph.initializers[str(leaf.tensor)] for leaf in demand.parameters]
                if demand.level == 0 or any(len(tensor.uses()) > 1 for tensor in tensors):
                    continue
                factor = rng.uniform(0.5, 2.0, leaf.size) if demand.level == 2 else np.zeros(leaf.size)
                after = run(
                    model, given, outputs=[name], parameters=_scaled(analysis, demand.parameters, factor)
                )
                along = [1] * before[name].ndim
                along[k] = -1
                spread = Spread(analysis)
                wanted = before[name] * spread(axis, {leaf: factor}).reshape(along)
                here = np.flatnonzero(spread(axis, {leaf: np.zeros(leaf.size)}) == 0)
                np.testing.assert_allclose(
                    np.take(after[name], here, k), np.take(wanted, here, k), rtol=1e-6, atol=1e-9,
                    err_msg=f"level {demand.level} of axis {k} of {name}",
                )  # fmt: skip
    return claimed


def check_means(analysis: Analysis, results: Sequence[str], rng: np.random.Generator) -> int:
    """Put the mean of all units into the first one wherever that is said to make it the mean in the result; look there.

    Returns:
      How many axes were looked at.
    """
    model, given, looked = analysis.model, feeds(analysis.model, rng), 0
    before = run(model, given, outputs=results)
    values = {value.name: value for node in model.graph for value in node.outputs}
    for name in results:
        for k, axis in enumerate(analysis.trace.axes(values[name])):
            leaf = factors(axis)[0] if axis else None
            if leaf is None or leaf.frozen or leaf.segments is not None or leaf.size != before[name].shape[k]:
                continue
            contracted = {
                find(at) for site in analysis.trace.sites for mixed in site.axes for at in leaves(mixed)
            }
            if find(leaf) in contracted:
                continue
            demand = travel({}, leaf, averaged)
            parameters = _averaged(analysis, demand) if demand.level else None
            if parameters is None:
                continue
            after = run(model, given, outputs=[name], parameters=parameters)[name]
            np.testing.assert_allclose(
                np.take(after, 0, k),
                before[name].mean(k),
                rtol=1e-6,
                atol=1e-9,
                err_msg=f"axis {k} of {name}",
            )
            looked += 1
    return looked


def _averaged(analysis: Analysis, demand: Demand) -> dict[str, np.ndarray] | None:
    """The parameters with their first units at the mean; None if units are a part of an axis or read several times."""
    out: dict[str, np.ndarray] = {}
    for tensor in {str(leaf.tensor) for leaf in demand.parameters}:
        value = analysis.model.graph.initializers[tensor]
        if value.const_value is None or len(value.uses()) > 1:
            return None
        array = value.const_value.numpy().astype(np.float64)
        for k, axis in enumerate(analysis.trace.tensors[tensor]):
            parts = [leaf for leaf in leaves(axis) if leaf in demand.parameters]
            if parts and (len(parts) > 1 or parts[0].size != array.shape[k]):
                return None
            if parts:
                moved = np.moveaxis(array, k, 0)
                moved[0] = moved.mean(0)
        out[tensor] = array
    return out


def _scaled(analysis: Analysis, reached: frozenset[Atom], factor: np.ndarray) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    for tensor in {str(leaf.tensor) for leaf in reached}:
        stored = analysis.model.graph.initializers[tensor].const_value
        assert stored is not None
        array = stored.numpy().astype(np.float64)
        for k, axis in enumerate(analysis.trace.tensors[tensor]):
            along = [1] * array.ndim
            along[k] = -1
            array = array * Spread(analysis)(axis, dict.fromkeys(reached, factor)).reshape(along)
        out[tensor] = array
    return out


class Spread:
    """Factors of some leaves as a vector along an axis; 1 elsewhere."""

    def __init__(self, analysis: Analysis) -> None:
        self.sizes = {prime: SYMBOLS[name] for name, prime in analysis.trace.facts.symbols.items()}

    def __call__(self, axis: Axis, factor: Mapping[Atom, np.ndarray]) -> np.ndarray:
        """The vector."""
        out = np.ones(1)
        for atom in factors(axis):
            if atom.segments is not None:
                part = np.concatenate([self(tuple(part), factor) for part in summands(atom)])
            else:
                part = factor.get(atom, np.ones(self.sizes.get(atom.size, atom.size)))
            out = np.multiply.outer(out, part).ravel()
        return out
