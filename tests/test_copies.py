"""Target networks follow their originals: same widths, same sources, same random numbers, in files and in plans."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import surgery
from surgery.builder import GraphBuilder
from surgery.edits.copies import original_name
from surgery.edits.plan import Plan
from surgery.edits.ports import port_sources
from surgery.errors import ArgumentError, Refused
from surgery.interface import Interface, LineageStep, Port
from surgery.ops.actions import NewAction
from surgery.ops.extend import NewObservation

WIDTHS = {"": (5, 8, 3), "target.": (5, 8, 3), "best.target.": (5, 8, 3)}


def networks(
    widths: dict[str, tuple[int, ...]] = WIDTHS, copies: dict[str, str] | None = None
) -> surgery.Checkpoint:
    """Networks of the same kind side by side, the first one's names without a prefix."""
    graph, rng, outputs = GraphBuilder("copies"), np.random.default_rng(0), []
    observation = graph.input("observation", (5,))
    for prefix, (first, hidden, last) in widths.items():
        x = observation
        for k, (before, after) in enumerate(((first, hidden), (hidden, last))):
            weight = rng.standard_normal((after, before)).astype(np.float32)
            x = graph.linear(x, f"{prefix}fc{k}", weight, np.zeros(after, np.float32))
            x = graph.op("Relu", x) if k == 0 else x
        name = f"q_values_{prefix.replace('.', '_')}".rstrip("_")
        graph.output(x, name, (last,))
        outputs.append(Port(name, "other" if prefix else "q_values"))
    declared = {"target.": "", "best.target.": "target."} if copies is None else copies
    interface = Interface((Port("observation", "observation"),), tuple(outputs))
    return surgery.Checkpoint(graph.model(), interface, copies=declared)


def sizes(plan: Plan) -> dict[str, int]:
    return {change.space: change.after for change in plan.changes}


@pytest.mark.parametrize("named", ["fc0", "target.fc0", "best.target.fc0"])
def test_whichever_is_named_all_copies_follow(named):
    plan = surgery.widen(networks(), widths={named: 13}, init="net2net", seed=4)
    assert sizes(plan) == {"fc0": 13, "target.fc0": 13, "best.target.fc0": 13}
    assert len({edit.source for edit in plan.spaces}) == 1
    assert surgery.apply(plan, networks()).report.ok


def test_a_factor_gives_copies_the_sources_of_their_originals():
    plan = surgery.widen(networks(), factor=1.5, init="net2net")
    assert len({edit.source for edit in plan.spaces}) == 1
    assert surgery.apply(plan, networks()).report.ok


def test_new_actions_and_observations_come_to_all_copies():
    plan = surgery.extend(
        networks(), [NewObservation("observation", 2, 1)], [NewAction("q_values", 1, "mean")]
    )
    assert sizes(plan) == {"observation[1]": 7, "fc1": 4, "target.fc1": 4, "best.target.fc1": 4}
    after = surgery.apply(plan, networks()).checkpoint
    assert {tuple(v.shape)[1] for v in after.model.graph.outputs} == {4}


def test_fresh_units_of_copies_are_drawn_with_the_same_random_numbers():
    before = networks()
    after = surgery.apply(surgery.widen(before, widths={"fc0": 12}, init="zero", seed=9), before).checkpoint
    drawn = [
        after.tensors[f"{prefix}fc0.weight"].numpy()[8:] / before.tensors[f"{prefix}fc0.weight"].numpy().std()
        for prefix in WIDTHS
    ]
    np.testing.assert_allclose(drawn[0], drawn[1], rtol=1e-5)
    np.testing.assert_allclose(drawn[0], drawn[2], rtol=1e-5)


def test_without_a_declaration_nothing_follows():
    assert sizes(surgery.widen(networks(copies={}), widths={"fc0": 13})) == {"fc0": 13}


def test_a_space_and_its_copy_cannot_be_told_different_things():
    with pytest.raises(ArgumentError, match=r"13 and 12|12 and 13"):
        surgery.widen(networks(), widths={"fc0": 12, "target.fc0": 13})


def test_what_is_made_otherwise_is_no_copy():
    with pytest.raises(Refused, match="declared a copy"):
        surgery.widen(networks({**WIDTHS, "target.": (5, 9, 3)}), widths={"fc0": 12})


def test_files_and_plans_keep_the_copies(tmp_path):
    before = networks()
    surgery.save(before, tmp_path / "a.onnx")
    again = surgery.load(tmp_path / "a.onnx")
    assert again.copies == before.copies
    plan = surgery.widen(again, widths={"fc0": 12}, init="zero")
    assert Plan.from_json(plan.to_json()) == plan
    old = plan.to_json()
    del old["copies"]  # a plan of a version that knew no copies
    assert Plan.from_json(old) == dataclasses.replace(plan, copies={})


@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("target.fc0.weight", "fc0.weight"),
        ("best.target.fc0.weight", "fc0.weight"),
        ("fc0.weight", "fc0.weight"),
    ],
)
def test_the_longest_prefix_tells_the_original(name, original):
    assert original_name(name, {"target.": "", "best.target.": "target.", "best.": "x."}) == original


def test_the_lineage_says_where_every_feature_comes_from():
    first = [
        {"side": "input", "port": "o", "axis": 1, "source": [0, None, 1, 2]},
        {"space": "o[1]", "from": 3, "to": 4},
    ]
    second = [{"side": "input", "port": "o", "axis": 1, "source": [3, 1, 0, None]}]
    steps = [LineageStep("extend", summary=summary) for summary in (first, second)]
    assert port_sources(steps, "input", "o") == {1: (2, None, 0, None)}
    assert port_sources(steps, "output", "o") == {}
