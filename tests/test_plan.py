"""A plan says everything: it comes back from JSON, fits what it fits, and is refused in words where it does not."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

import surgery
from surgery.cli import main
from surgery.edits.arithmetic import SpaceEdit
from surgery.edits.execute import execute
from surgery.edits.plan import Plan
from surgery.errors import PlanMismatch, Refused
from surgery.interface import Environment
from surgery.optimizer import OptimizerState, ParamGroup
from tests import zoo
from tests.steady import STEADY

TEACHERS = Path(__file__).parent.parent / "examples" / "teachers"
NETS = (
    "nature_nhwc",
    "densenet",
    "twin_critics",
    "entity_attention",
    "lstm_policy",
    "rmsnorm",
    "film",
    "crelu",
)
FORMS: tuple[dict[str, Any], ...] = (
    {"factor": 2}, {"factor": 2, "init": "net2net"}, {"factor": 3, "init": "net2net", "seed": 5},
    {"factor": 1.5, "init": "net2net", "shares": "unequal"}, {"factor": 2, "init": "net2net", "noise": 0.01},
)  # fmt: skip


@functools.lru_cache(maxsize=8)
def net(name: str, seed: int = 0) -> surgery.Checkpoint:
    return surgery.load(zoo.export(name, "dynamo", seed))


def some_plans() -> Iterator[tuple[str, Plan]]:
    for name in NETS:
        for form in FORMS:
            try:
                yield name, surgery.widen(net(name), **form)
            except Refused:
                continue


def example() -> Plan:
    """A plan with all there is: copies, unequal shares, operands, a frozen space, optimizer slots."""
    checkpoint = net("conv_scalars")
    state = {
        "exp_avg": {"fc.weight": ir.tensor(np.zeros(checkpoint.tensors["fc.weight"].shape), name="fc.weight")}
    }
    optimizer = OptimizerState("adam", state, {"fc.weight": 3}, (ParamGroup(("fc.weight",)),))
    checkpoint = checkpoint.replace(optimizer=optimizer)
    plan = surgery.widen(checkpoint, widths={"conv": 7, "fc": 20}, init="net2net", shares="unequal", seed=3)
    return dataclasses.replace(plan, frozen=(("scalars1", "it was left out"),))


# ---- JSON -------------------------------------------------------------------------------------------------------


def test_every_plan_comes_back_from_json_equal() -> None:
    plans = list(some_plans())
    assert len(plans) > 2 * len(NETS)
    for _, plan in [*plans, ("", example())]:
        back = Plan.from_json(json.loads(json.dumps(plan.to_json(), allow_nan=False)))
        assert back == plan and back.describe() == plan.describe() and back.changes == plan.changes
        assert pickle.loads(pickle.dumps(plan)) == plan


def test_a_plan_from_json_makes_the_same_bytes() -> None:
    for name, plan in some_plans():
        back = Plan.from_json(json.loads(json.dumps(plan.to_json())))
        assert execute(back, net(name)).digest() == execute(plan, net(name)).digest()


@st.composite
def space_edits(draw: st.DrawFn) -> SpaceEdit:
    before = draw(st.integers(1, 30))
    source = draw(st.lists(st.integers(0, before - 1), max_size=40))
    if draw(st.booleans()):
        source = [*range(before), *source]
    fresh = draw(st.frozensets(st.integers(0, len(source) - 1))) if source else frozenset[int]()
    exact = st.floats(allow_nan=False, allow_infinity=False)
    length = len(source)
    shares = draw(st.none() | st.lists(exact, min_size=length, max_size=length).map(tuple))
    return SpaceEdit(draw(st.text()), before, tuple(source), fresh, shares)


@STEADY
@given(space_edits())
def test_every_space_edit_comes_back_from_json_equal(edit: SpaceEdit) -> None:
    assert SpaceEdit.from_json(json.loads(json.dumps(edit.to_json()))) == edit


@STEADY
@given(st.integers(1, 2000), st.integers(0, 300))
def test_a_growth_is_written_in_a_few_runs(before: int, more: int) -> None:
    """Old units are one run, however many they are."""
    edit = SpaceEdit("s", before, (*range(before), *(k % before for k in range(more))))
    assert len(edit.to_json()["source"]) <= 2 + more // before + 1
    assert SpaceEdit.from_json(edit.to_json()) == edit


@pytest.mark.parametrize(
    "change",
    [
        {"source": ["0:5000000000"]}, {"source": ["3:1"]}, {"source": ["1:1"]}, {"source": ["-1:3"]},
        {"source": ["a:b"]}, {"source": ["1:2:3"]}, {"source": [-1, 0, 1]}, {"source": [0, 1, 9]}, {"source": 3},
        {"source": [None, 0, 1]}, {"source": []}, {"from": 0}, {"from": -2}, {"from": "two"}, {"to": 4}, {"to": None},
        {"fresh": [3]}, {"fresh": [-1]}, {"fresh": None}, {"shares": [0.5]}, {"shares": "half"},
        {"shares": [1, 1, None]}, {"shares": [math.nan, 1, 1]}, {"shares": [math.inf, 1, 1]}, {"space": None},
        {"space": 3}, {"source": ["0:3000000000"], "to": 3000000000},
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_space_edit_is_refused(change: dict[str, Any]) -> None:
    good = SpaceEdit("s", 2, (0, 1, 1), frozenset(), (1.0, 0.5, 0.5)).to_json()
    assert SpaceEdit.from_json(good)
    with pytest.raises(PlanMismatch):
        SpaceEdit.from_json({**good, **change})


# ---- damage -----------------------------------------------------------------------------------------------------

GARBAGE: tuple[object, ...] = (None, True, -1, 1.5, "x", [], {}, [None], {"a": 1}, [[1]], 10**30)
FREE = {"operation", "arguments", "frozen", "reason", "slots", "seed", "noise"}
"""What another value leaves a plan: notes, names and numbers."""


def _places(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every field, one element of every list."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            yield from _places(inner, (*path, key))
    elif isinstance(value, list) and value:
        for k in {0, len(value) - 1}:
            yield (*path, k)
            yield from _places(value[k], (*path, k))


def _at(data: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        data = data[key]
    return data


def _judged(data: object, checkpoint: surgery.Checkpoint, *, applied: bool = True) -> None:
    """Reading and applying a damaged plan gives a plan, a result or an error of ours; never a traceback."""
    try:
        plan = Plan.from_json(data)
        plan.describe(), plan.changes, json.dumps(plan.to_json())
        if applied:
            surgery.apply(plan, checkpoint)
    except surgery.SurgeryError as error:
        assert error.message and "\n" not in error.message


def test_a_plan_without_a_field_is_refused() -> None:
    data = example().to_json()
    for path in _places(data):
        if not isinstance(path[-1], str) or path[0] in ("arguments", "slots", "copies"):
            continue
        if path == ("insertions",):
            continue  # came later: plans from before are still read
        damaged = copy.deepcopy(data)
        del _at(damaged, path[:-1])[path[-1]]
        with pytest.raises(PlanMismatch):
            Plan.from_json(damaged)


@functools.cache
def agent() -> surgery.Checkpoint:
    """A trained one, whose observations a normaliser of the contract scales."""
    found = surgery.load(TEACHERS / "cartpole-dqn.onnx")
    statistics = {"mean": [0.5] * 4, "variance": [2.0] * 4, "epsilon": 1e-8}
    settings = {**found.environment.settings, "normaliser": {"observation": statistics}}
    return found.replace(environment=Environment(found.environment.id, settings))


def extended() -> Plan:
    new = [surgery.NewObservation("observation", 1)], [surgery.NewAction("q_values", 1)]
    return surgery.extend(agent(), observations=new[0], actions=new[1])


PLANS: dict[str, tuple[Callable[[], Plan], Callable[[], surgery.Checkpoint]]] = {
    "widen": (example, lambda: net("conv_scalars")),
    "extend": (extended, agent),
    "retire": (lambda: surgery.retire(agent(), [surgery.Retired("observation", 0, 0.5)]), agent),
    "deepen": (lambda: surgery.deepen(agent(), after="network.0"), agent),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_with_garbage_in_it_is_never_a_traceback(name: str) -> None:
    data, checkpoint = PLANS[name][0]().to_json(), PLANS[name][1]()
    for path in _places(data):
        for garbage in GARBAGE:
            damaged = copy.deepcopy(data)
            _at(damaged, path[:-1])[path[-1]] = garbage
            _judged(
                damaged, checkpoint, applied=path[0] not in ("operation", "arguments", "frozen")
            )  # these are only shown


@pytest.mark.parametrize("data", [None, 3, "plan", [], {}, {"schema": 1}, {"operation": "widen"}], ids=str)
def test_what_is_no_plan_is_refused(data: object) -> None:
    with pytest.raises(PlanMismatch):
        Plan.from_json(data)


@pytest.mark.parametrize("schema", [0, 2, "1", None, 99])
def test_a_plan_of_another_version_says_so(schema: object) -> None:
    with pytest.raises(PlanMismatch, match=r"schema .*; this version reads schema 1"):
        Plan.from_json({**example().to_json(), "schema": schema})


@pytest.mark.parametrize(
    ("where", "value", "says"),
    [
        (("claim",), "perfect", "claim 'perfect'"),
        (("tensors", 0, "fill"), "ones", "unknown fill"),
        (("tensors", 0, "axes"), [[3]], "edits no space in it"),
        (("tensors", 0, "axes", 0, 0, "size"), 6, "units in one place and"),
        (("tensors", 0, "axes", 0, 0, "role"), "both", "not a factor"),
        (("spaces", 0, "to"), 9, "lengths differ"),
        (("spaces", 0, "source"), [99], "conv"),
        (("operands", 0, "value"), ["7"], "not a number"),
    ],
    ids=str,
)
def test_damage_is_named(where: tuple[Any, ...], value: object, says: str) -> None:
    data = example().to_json()
    _at(data, where[:-1])[where[-1]] = value
    with pytest.raises(PlanMismatch, match=says):
        Plan.from_json(data)


@pytest.mark.parametrize(
    ("side", "change", "says"),
    [
        ("input", {"name": "pixels"}, "the plan changes input 'pixels', which is not here"),
        ("output", {"name": "value"}, "the plan changes output 'value', which is not here"),
        ("output", {"side": "input"}, "the plan changes input 'q_values', which is not here"),
        ("input", {"axes": []}, "the plan changes input 'observation' of other axes than batch×4"),
        ("output", {"axes": []}, "the proof of 'extend' fails: outputs, float64"),
        ("output", {"axes": [[], [7]]}, "the plan changes output 'q_values' of other axes than batch×2"),
        ("input", {"axes": [[], [5]]}, "the plan changes input 'observation' of other axes than batch×4"),
        ("input", {"labels": ["position"]}, "gives 'observation' 1 names; it will have 5 units"),
    ],
    ids=str,
)
def test_inputs_and_outputs_that_are_others_are_named(side: str, change: dict[str, Any], says: str) -> None:
    data = extended().to_json()
    port = next(port for port in data["ports"] if port["side"] == side)
    port |= change
    with pytest.raises(PlanMismatch, match=says):
        surgery.apply(Plan.from_json(data), agent())


def test_a_plan_that_edits_one_space_twice_is_refused() -> None:
    data = example().to_json()
    with pytest.raises(PlanMismatch, match="twice"):
        Plan.from_json({**data, "spaces": [*data["spaces"], data["spaces"][0]]})


# ---- words ------------------------------------------------------------------------------------------------------


def test_a_plan_describes_itself() -> None:
    checkpoint = net("nature_nhwc")
    assert surgery.widen(checkpoint, factor=1.5).describe().splitlines() == [
        "widen: claim equivalent",
        "  conv1 7 → 11 (4 fresh units)",
        "  conv2 11 → 17 (6 fresh units)",
        "  fc 17 → 26 (9 fresh units)",
        "  conv1.weight 7×4×4×4 → 11×4×4×4",
        "  conv1.bias 7 → 11",
        "  conv2.weight 11×7×3×3 → 17×11×3×3",
        "  conv2.bias 11 → 17",
        "  fc.weight 17×275 → 26×425",
        "  fc.bias 17 → 26",
        "  q.weight 6×17 → 6×26",
        *(line for line in surgery.widen(checkpoint, factor=1.5).describe().splitlines() if "node of" in line),
    ]  # fmt: skip


def test_what_follows_is_described_too() -> None:
    lines = example().describe().splitlines()
    assert lines[0] == "widen: claim equivalent" and lines[1] == "  conv 5 → 7 (2 copies)"
    assert any(line.startswith("  fc.weight ") and line.endswith(", 1 slots") for line in lines)
    assert lines[-1] == "  frozen: scalars1: it was left out"


def test_changes_count_every_tensor_once() -> None:
    for _, plan in some_plans():
        assert sum(change.tensors for change in plan.changes) == len(plan.tensors)
        assert [change.space for change in plan.changes] == [edit.space for edit in plan.spaces]
    assert sum(change.slots for change in example().changes) == 1


# ---- one plan, many networks ------------------------------------------------------------------------------------


def test_one_plan_fits_the_target_and_the_average_too() -> None:
    """Networks of one graph with other weights; copies of one unit stay copies, so their average is the average."""
    plan = surgery.widen(net("conv_scalars"), factor=1.5, init="net2net", shares="unequal")
    results = [surgery.apply(plan, net("conv_scalars", seed)).checkpoint for seed in (0, 1)]
    averaged = _mixed(net("conv_scalars", 0), net("conv_scalars", 1))
    result = surgery.apply(plan, averaged)
    assert result.report is not None and result.report.ok
    for name, tensor in result.checkpoint.tensors.items():
        if tensor.dtype.is_floating_point():
            mean = (results[0].tensors[name].numpy() + results[1].tensors[name].numpy()) / 2
            np.testing.assert_allclose(tensor.numpy(), mean, rtol=1e-5, atol=1e-6)


def _mixed(one: surgery.Checkpoint, other: surgery.Checkpoint) -> surgery.Checkpoint:
    model, tensors = one.model.clone(), other.tensors
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        if value.const_value.dtype.is_floating_point():
            array = (value.const_value.numpy() + tensors[name].numpy()) / 2
            value.const_value = ir.Tensor(array, name=name)
    return one.replace(model=model)


def test_a_plan_does_not_fit_its_own_result() -> None:
    plan = surgery.widen(net("conv_scalars"), factor=2)
    wide = surgery.apply(plan, net("conv_scalars")).checkpoint
    with pytest.raises(PlanMismatch, match=r"'[\w.]+' of shape [\d×]+, here it is [\d×]+"):
        surgery.apply(plan, wide)


@pytest.mark.parametrize("other", ["mlp_gelu", "nature_nhwc", "impala", "lstm_policy"])
def test_a_plan_for_another_network_is_refused(other: str) -> None:
    plan = surgery.widen(net("conv_scalars"), factor=2)
    with pytest.raises(PlanMismatch, match="the plan edits"):
        surgery.apply(plan, net(other))


def test_slots_of_another_shape_are_refused() -> None:
    checkpoint = net("conv_scalars")
    slot = {"exp_avg": {"fc.weight": ir.tensor(np.zeros((2, 2)), name="fc.weight")}}
    state = OptimizerState("adam", slot, {}, (ParamGroup(("fc.weight",)),))
    with pytest.raises(PlanMismatch, match=r"'exp_avg' of 'fc\.weight' has shape 2×2"):
        execute(surgery.widen(checkpoint, factor=2), checkpoint.replace(optimizer=state))


def test_slots_without_a_rule_are_refused_not_guessed() -> None:
    checkpoint = net("conv_scalars")
    tensor = ir.tensor(np.zeros(checkpoint.tensors["fc.weight"].shape), name="fc.weight")
    state = OptimizerState("lion", {"exp_avg": {"fc.weight": tensor}}, {}, (ParamGroup(("fc.weight",)),))
    with pytest.raises(Refused, match="no rule for the state of the optimizer 'lion'"):
        execute(surgery.widen(checkpoint, factor=2), checkpoint.replace(optimizer=state))


# ---- determinism ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["zero", "net2net"])
def test_one_seed_gives_the_same_bytes_and_another_gives_others(init: str) -> None:
    checkpoint = net("conv_scalars")
    made = [surgery.widen(checkpoint, factor=1.5, init=init, seed=seed) for seed in (0, 0, 1)]  # type: ignore[arg-type]
    digests = [execute(plan, checkpoint).digest() for plan in made]
    assert made[0] == made[1] and digests[0] == digests[1] != digests[2]


def test_a_plan_is_carried_out_the_same_twice() -> None:
    """Random entries are drawn when a tensor is read: reading it again gives them again."""
    checkpoint = net("conv_scalars")
    after = execute(surgery.widen(checkpoint, factor=2, init="zero"), checkpoint)
    assert after.digest() == after.digest()
    for tensor in after.tensors.values():
        assert tensor.tobytes() == tensor.tobytes()


@pytest.mark.parametrize("init", ["zero", "net2net"])
def test_the_order_of_the_widths_does_not_matter(init: str) -> None:
    checkpoint = net("conv_scalars")
    widths = {"conv": 7, "scalars1": 9, "fc": 20}
    digests = set()
    for order in (list(widths), list(widths)[::-1]):
        plan = surgery.widen(checkpoint, widths={name: widths[name] for name in order}, init=init, seed=2)  # type: ignore[arg-type]
        digests.add(execute(plan, checkpoint).digest())
        shuffled = dataclasses.replace(plan, tensors=plan.tensors[::-1], operands=plan.operands[::-1])
        digests.add(execute(shuffled, checkpoint).digest())
    assert len(digests) == 1


def test_one_space_is_widened_the_same_alone_or_with_others() -> None:
    """Units of a space come from its own generator: what is added elsewhere does not change them."""
    checkpoint = net("conv_scalars")
    alone = surgery.widen(checkpoint, widths={"fc": 20}, init="net2net", shares="unequal")
    with_others = surgery.widen(checkpoint, widths={"conv": 9, "fc": 20}, init="net2net", shares="unequal")
    assert alone.edits["fc"] == with_others.edits["fc"]


def test_the_original_is_left_as_it_was() -> None:
    checkpoint = net("densenet")
    before = checkpoint.digest()
    surgery.apply(surgery.widen(checkpoint, factor=1.5), checkpoint)
    assert checkpoint.digest() == before


# ---- the command line -------------------------------------------------------------------------------------------


def test_a_dry_run_of_a_plan_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, plan = zoo.export("conv_scalars", "dynamo"), tmp_path / "plan.json"
    plan.write_text(json.dumps(example().to_json()))
    target = tmp_path / "out.onnx"
    assert main(["apply", str(plan), str(model), "-o", str(target), "--dry-run"]) == 0
    assert "conv 5 → 7" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json"]


def test_a_damaged_plan_ends_a_command_with_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, plan = zoo.export("conv_scalars", "dynamo"), tmp_path / "plan.json"
    data = example().to_json()
    del data["spaces"]
    plan.write_text(json.dumps(data))
    assert main(["apply", str(plan), str(model), "-o", str(tmp_path / "out.onnx")]) == 2
    assert "damaged plan" in capsys.readouterr().err
    assert not (tmp_path / "out.onnx").exists()


def test_an_edited_plan_whose_proof_fails_is_a_wrong_file_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, plan = zoo.export("conv_scalars", "dynamo"), tmp_path / "plan.json"
    data = surgery.widen(net("conv_scalars"), factor=2, init="net2net").to_json()
    for edit in data["spaces"]:
        edit["shares"] = [1.0] * edit["to"]
    plan.write_text(json.dumps(data))
    assert main(["apply", str(plan), str(model), "-o", str(tmp_path / "out.onnx")]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and "make a new plan 'widen' for this model" in shown.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json"]
