"""Repeated channel shuffles: units keep their parts of every shuffle, or the width is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx import numpy_helper

import surgery
from surgery.edits.axis_maps import axis_map
from surgery.edits.plan import Plan
from surgery.edits.units import SpaceEdit
from surgery.errors import ArgumentError, Refused
from surgery.graph.atoms import Atom, Mismatch, leaves, weave
from surgery.graph.axes import cut, unify
from surgery.graph.layout import Part, Units, Weave, from_json, size, text, to_json, units
from surgery.graph.spaces import analyse
from tests import zoo

LEFT, RIGHT = Units("left", 3, "in"), Units("right", 3, "in")
WOVEN = Weave(((LEFT,), (RIGHT,)))
HALF, OTHER = Part((WOVEN,), 0, 2), Part((WOVEN,), 1, 2)
SEATED = SpaceEdit("left", 3, (0, 1, 0, 0, 2, 0), frozenset({2, 3, 5}))
"""Of left 0, 1 | 2, of right 0 | 1, 2 lie in either half of l0 r0 l1 | r1 l2 r2; with 6 each, 0, 1, 2 | 3, 4, 5 do."""
SEATED_RIGHT = SpaceEdit("right", 3, (0, 0, 0, 1, 2, 0), frozenset({1, 2, 5}))


@pytest.fixture(scope="module")
def stages() -> surgery.Checkpoint:
    return surgery.load(zoo.export("shufflenet_stages", "dynamo-optimized"))


def test_elements_of_a_weave_are_those_of_its_parts_in_turn() -> None:
    still = SpaceEdit("left", 3, (0, 1, 2))
    assert axis_map((WOVEN,), {"left": still}).source.tolist() == list(range(6))
    edited = axis_map((WOVEN,), {"left": SEATED, "right": SEATED_RIGHT})
    # l0 r0 l1 r1 l2 r2 -> l0 r0 l1 · · · · r1 l2 r2 · ·
    kept = ~edited.fresh_in
    assert edited.source[kept].tolist() == [0, 1, 2, 3, 4, 5]
    assert np.flatnonzero(kept).tolist() == [0, 1, 2, 7, 8, 9]


def test_a_part_of_a_weave_holds_its_units_before_and_after() -> None:
    edits = {"left": SEATED, "right": SEATED_RIGHT}
    first, second = (axis_map((part,), edits) for part in (HALF, OTHER))
    assert first.source[~first.fresh_in].tolist() == second.source[~second.fresh_in].tolist() == [0, 1, 2]
    assert np.flatnonzero(~first.fresh_in).tolist() == [0, 1, 2]
    assert np.flatnonzero(~second.fresh_in).tolist() == [1, 2, 3]


@pytest.mark.parametrize("source", [(0, 1, 2, 0, 0, 0), (0, 0, 0, 0, 1, 2)], ids=["appended", "in front"])
def test_units_that_would_leave_their_part_are_refused(source: tuple[int, ...]) -> None:
    """Growing by units at the end is right everywhere else."""
    fresh = frozenset(range(3, 6)) if source[2] else frozenset({1, 2, 3})
    edits = {name: SpaceEdit(name, 3, source, fresh) for name in ("left", "right")}
    with pytest.raises(Refused, match="leave their part"):
        [axis_map((part,), edits) for part in (HALF, OTHER)]


def test_layouts_with_shuffles_are_written_and_read() -> None:
    layout = (2, Part((WOVEN,), 1, 2))
    assert from_json(json.loads(json.dumps(to_json(layout)))) == layout
    assert size(layout) == 6 and size(layout, {"left": 6, "right": 6}) == 12
    assert text((OTHER,)) == "2/2 (left ⋈ right)"


def test_a_shuffled_space_brings_the_others_along(stages: surgery.Checkpoint) -> None:
    plan = surgery.widen(stages, widths={"stages.1.0.left.2": 20})
    assert {edit.space: edit.after for edit in plan.spaces} == {
        f"stages.1.{unit}": 20 for unit in ("0.left.2", "0.right.5", "1.right.5", "2.right.5")
    }
    assert surgery.apply(plan, stages).report.ok


def test_shuffled_spaces_stay_equally_wide(stages: surgery.Checkpoint) -> None:
    with pytest.raises(ArgumentError, match="equally wide"):
        surgery.widen(stages, widths={"stages.1.0.left.2": 20, "stages.1.1.right.5": 24})
    plan = surgery.widen(stages, widths={"stages.1.0.left.2": 20})
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def chain(path: Path, n: int, length: int) -> surgery.Checkpoint:
    """Dense units, each of which transforms one half of 2n shuffled numbers."""
    rng = np.random.default_rng(0)
    shapes = {"stem": (4, 2 * n), **{f"unit{k}": (n, n) for k in range(length)}, "head": (2 * n, 3)}
    weights = [
        numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), k) for k, s in shapes.items()
    ]
    rows = {"parted": [-1, 2, n], "joined": [-1, 2 * n]}
    weights += [numpy_helper.from_array(np.array(row, np.int64), name) for name, row in rows.items()]
    make, x = onnx.helper.make_node, "h0"
    nodes = [make("MatMul", ["x", "stem"], [x])]
    for k in range(length):
        nodes += [
            make("Split", [x], [f"l{k}", f"r{k}"], axis=1, num_outputs=2),
            make("MatMul", [f"r{k}", f"unit{k}"], [f"m{k}"]),
            make("Relu", [f"m{k}"], [f"b{k}"]),
            make("Concat", [f"l{k}", f"b{k}"], [f"c{k}"], axis=1),
            make("Reshape", [f"c{k}", "parted"], [f"p{k}"]),
            make("Transpose", [f"p{k}"], [f"t{k}"], perm=[0, 2, 1]),
            make("Reshape", [f"t{k}", "joined"], [x := f"h{k + 1}"]),
        ]
    nodes.append(make("MatMul", [x, "head"], ["y"]))
    ports = [
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", size])]
        for name, size in (("x", 4), ("y", 3))
    ]
    graph = onnx.helper.make_graph(nodes, "chain", *ports, weights)
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path
    )
    return surgery.load(path)


def check_back(before: surgery.Checkpoint, back: surgery.Plan, wide: surgery.Checkpoint) -> None:
    """A plan leads back to all parameters, within the rounding of shares."""
    after = surgery.apply(back, wide).checkpoint
    for name, tensor in before.tensors.items():
        if tensor.dtype.is_floating_point():
            np.testing.assert_array_max_ulp(after.tensors[name].numpy(), tensor.numpy(), 1)


@pytest.mark.parametrize("init", ["zero", "net2net"])
def test_every_width_is_exact_and_undone_or_refused_with_the_next_one(
    init: Literal["zero", "net2net"], tmp_path: Path
) -> None:
    """Unit 1 of 3 leaves after two shuffles (1, 2, 4); of 6 units none does (1, 2, 4, 8; 3, 6; 5, 10)."""
    checkpoint = chain(tmp_path / "chain.onnx", 3, 4)
    refused, done = dict[int, int](), list[int]()
    for width in range(4, 14):
        try:
            plan = surgery.widen(checkpoint, widths={"unit3": width}, init=init)
        except Refused as refusal:
            assert "part of a channel shuffle" in refusal.message
            refused[width] = int(str(refusal.hint).split()[-1])
            continue
        assert len(plan.spaces) == 5  # the half that the first split passes on, and four units
        result = surgery.apply(plan, checkpoint)
        assert result.report.ok
        check_back(checkpoint, surgery.narrow(result.checkpoint), result.checkpoint)
        check_back(checkpoint, surgery.invert(plan, result.checkpoint), result.checkpoint)
        done.append(width)
    assert 6 in refused and refused[6] == 7
    assert all(offered in done for width, offered in refused.items() if offered < 14)


def test_by_a_factor_shuffled_spaces_take_the_next_width_that_fits(tmp_path: Path) -> None:
    checkpoint = chain(tmp_path / "chain.onnx", 3, 4)
    plan = surgery.widen(checkpoint, factor=2)
    assert sorted(edit.after for edit in plan.spaces) == [6, 7, 7, 7, 7, 7]
    assert surgery.apply(plan, checkpoint).report.ok


def test_a_plan_that_swaps_units_between_halves_is_refused(stages: surgery.Checkpoint) -> None:
    plan = surgery.widen(stages, widths={"stages.1.0.left.2": 20})
    edit = plan.spaces[0]
    swapped = dataclasses.replace(edit, source=edit.source[::-1], fresh=frozenset(19 - k for k in edit.fresh))
    with pytest.raises(Refused, match="leave their part"):
        surgery.apply(dataclasses.replace(plan, spaces=(swapped, *plan.spaces[1:])), stages)


def test_a_shuffle_of_units_with_themselves_is_a_mismatch() -> None:
    """What is made of units cannot be these units in the same order."""
    left, right = (Atom(3),), (Atom(3),)
    half, other = cut(weave([left, right]), [3, 3])
    with pytest.raises(Mismatch, match="two orders"):
        unify(left, half)
    with pytest.raises(Mismatch, match="two orders"):
        unify(other, right)
    assert [leaf.size for leaf in leaves(half)] == [3, 3]


def test_what_is_shuffled_with_single_units_is_frozen(tmp_path: Path) -> None:
    """Two single units that are joined cannot become more."""
    text = """<ir_version: 10, opset_import: ["" : 20]>
    agent (float[N, 4] x) => (float[N, 3] y) {
        a = MatMul(x, one)
        b = MatMul(x, other)
        left = Concat<axis = 1>(a, b)
        right = MatMul(x, two)
        c = Concat<axis = 1>(left, right)
        p = Reshape(c, parted)
        t = Transpose<perm = [0, 2, 1]>(p)
        h = Reshape(t, joined)
        l, r = Split<axis = 1, num_outputs = 2>(h)
        y = MatMul(r, head)
    }"""
    model, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    shapes = {"one": (4, 1), "other": (4, 1), "two": (4, 2), "head": (2, 3)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    arrays |= {"parted": np.array([-1, 2, 2]), "joined": np.array([-1, 4])}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    space = analyse(ir.from_proto(model)).space("two")
    assert "another number of units" in str(space.reason)


@pytest.mark.parametrize("widths", [None, {"stages.1.0.left.2": 10}])
def test_copies_of_shuffled_units_are_removed_exactly(
    stages: surgery.Checkpoint, widths: dict[str, int] | None
) -> None:
    wide = surgery.apply(
        surgery.widen(stages, widths={"stages.1.0.left.2": 20}, init="net2net"), stages
    ).checkpoint
    plan = surgery.narrow(wide, widths=widths)
    assert plan.claim == "equivalent" and Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    result = surgery.apply(plan, wide)
    assert result.report.ok
    before, after = (analyse(checkpoint.model).spaces for checkpoint in (stages, result.checkpoint))
    assert [(space.name, space.size) for space in before] == [(space.name, space.size) for space in after]


def test_shuffled_units_are_removed_by_importance_together(stages: surgery.Checkpoint) -> None:
    with pytest.raises(Refused, match="0 constant and 0 duplicates"):
        surgery.narrow(stages, widths={"stages.1.0.left.2": 8})
    plan = surgery.narrow(stages, widths={"stages.1.0.left.2": 8}, by="l2")
    assert plan.claim == "changed" and {edit.after for edit in plan.spaces} == {8}
    assert len(plan.spaces) == 4
    assert surgery.apply(plan, stages).report.ok


def test_fresh_shuffled_units_are_the_first_to_go(tmp_path: Path) -> None:
    """Where copies find no place fresh units come in; their outgoing weights are zero, and so is their importance."""
    checkpoint = chain(tmp_path / "chain.onnx", 3, 4)
    for init in ("zero", "net2net"):
        wide = surgery.apply(surgery.widen(checkpoint, widths={"unit3": 7}, init=init), checkpoint).checkpoint
        result = surgery.apply(surgery.narrow(wide, widths={"unit3": 3}, by="activation"), wide)
        assert result.report.max_rel_error < 1e-5


def test_a_narrower_width_at_which_units_would_change_parts_is_refused(tmp_path: Path) -> None:
    checkpoint = chain(tmp_path / "chain.onnx", 7, 4)
    offered = dict[int, int]()
    for width in range(1, 7):
        try:
            plan = surgery.narrow(checkpoint, widths={"unit3": width}, by="l2")
        except Refused as refusal:
            offered[width] = int(str(refusal.hint).split()[-1])
            continue
        assert surgery.apply(plan, checkpoint).report.ok
    assert offered and not set(offered.values()) & set(offered)


@pytest.mark.parametrize("style", zoo.STYLES)
def test_every_parameter_axis_of_a_shuffle_net_can_grow(style: str) -> None:
    analysis = analyse(zoo.load("shufflenet_stages", style))
    initializers = analysis.model.graph.initializers.values()
    parameters = [str(v.name) for v in initializers if v.dtype == ir.DataType.FLOAT and v.shape]
    interface = {space.name for space in analysis.spaces if not space.hidden}
    assert len(parameters) > 20
    for name in parameters:
        for axis in analysis.tensors[name]:
            for unit in units(axis):
                assert unit.space in interface or analysis.by_name[unit.space].widenable, name


SUMMED = """<ir_version: 9, opset_import: ["" : 19]>
g (float[1,1,2,2] x) => (float[a,b,c,d] out)
<float[4,1,1,1] left = {1,2,3,4}, float[4,1,1,1] right = {1.3,2.2,3,4.5}, float[1,1,1,1] scalar = {1.8},
 float[4,4,1,1] last = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}>
{ a0 = Conv (x, left)
  b0 = Conv (x, right)
  both = Concat <axis = 1> (a0, b0)
  rows = Constant <value = int64[5] {0,2,4,0,2}> ()
  flat = Constant <value = int64[4] {0,8,2,2}> ()
  halves = Constant <value = int64[2] {4,4}> ()
  r0 = Reshape (both, rows)
  t0 = Transpose <perm = [0,2,1,3,4]> (r0)
  s0 = Reshape (t0, flat)
  kept, taken = Split <axis = 1> (s0, halves)
  same = Constant <value = int64[4] {4,4,1,1}> ()
  weight = Expand (scalar, same)
  summed = Conv (taken, weight)
  again = Concat <axis = 1> (kept, summed)
  r1 = Reshape (again, rows)
  t1 = Transpose <perm = [0,2,1,3,4]> (r1)
  s1 = Reshape (t1, flat)
  u0, u1 = Split <axis = 1> (s1, halves)
  out = Conv (u1, last) }"""


def test_units_that_are_summed_in_one_half_and_weighted_in_the_other_are_not_copied(tmp_path: Path) -> None:
    """All weights of the sum are one scalar, so copies could share only at their makers, which the other half reads."""
    onnx.save(onnx.parser.parse_model(SUMMED), tmp_path / "summed.onnx")
    checkpoint = surgery.load(tmp_path / "summed.onnx")
    with pytest.raises(Refused, match="sums over it and no operand can be scaled: shuffled by"):
        surgery.widen(checkpoint, widths={"left": 6}, init="net2net")
    plan = surgery.widen(checkpoint, widths={"left": 6}, init="zero")
    assert surgery.apply(plan, checkpoint).report.ok


def test_units_of_which_a_half_is_scaled_and_summed_are_compared_by_what_there_is(tmp_path: Path) -> None:
    """Of the units of a layer, the scale holds those that come into the last half."""
    graph = SUMMED.replace("float[1,1,1,1] scalar = {1.8}", "float[1,4,1,1] scale = {1,2,3,4}")
    graph = graph.replace("same = Constant <value = int64[4] {4,4,1,1}> ()\n", "")
    graph = graph.replace("weight = Expand (scalar, same)\n", "one = Constant <value = int64[1] {1}> ()\n")
    graph = graph.replace("(taken, weight)", "(taken, last)")
    graph = graph.replace(
        "out = Conv (u1, last)", "scaled = Mul (u1, scale)\n  out = ReduceSum (scaled, one)"
    )
    onnx.save(onnx.parser.parse_model(graph), tmp_path / "scaled.onnx")
    with pytest.raises(Refused, match="no unit of this model"):
        surgery.narrow(surgery.load(tmp_path / "scaled.onnx"))
