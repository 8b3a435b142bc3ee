"""Agents that were exported for use are proved as far as what they choose from, not what they chose."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

import surgery
from surgery import NewAction, NewObservation
from surgery.cli import main
from surgery.description import Actions, Observed, SpaceDescription
from surgery.edits.execute import execute
from surgery.edits.plan import Plan
from surgery.errors import Refused
from surgery.interface import PortPatch
from surgery.policy import load
from surgery.policy.heads import find
from surgery.port_kinds import infer
from surgery.verify import prove
from surgery.verify.choices import comparable
from surgery.verify.outputs import runtime
from tests import deployed

CASES = pytest.mark.parametrize(("name", "style"), deployed.CASES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deployed")


def _damaged(checkpoint: surgery.Checkpoint) -> surgery.Checkpoint:
    """With the weights of one unit of its last layer moved by a thousandth."""
    model = checkpoint.model.clone()
    weight = next(
        value for name, value in model.graph.initializers.items() if "heads" in name and "weight" in name
    )
    array = weight.const_value.numpy().copy()
    array[0] += 1e-3
    weight.const_value = ir.tensor(array, name=weight.name)
    return checkpoint.replace(model=model)


@CASES
@pytest.mark.parametrize("operation", ["widen", "deepen"])
def test_hidden_layers_grow_and_the_proof_is_complete(
    folder: Path, name: str, style: str, operation: str
) -> None:
    """In float64 too, whatever the graph draws; a new layer changes the order of nodes, and so the draws."""
    checkpoint = surgery.load(deployed.export(name, style, folder))
    plan = (
        surgery.widen(checkpoint, factor=2, init="net2net") if operation == "widen"
        else surgery.deepen(checkpoint, after=["body.0"])
    )  # fmt: skip
    report = surgery.apply(plan, checkpoint).report
    assert report is not None and report.ok
    assert "not evaluated" not in report.check("outputs, float64").detail


@CASES
def test_a_wrong_weight_is_seen_though_the_same_actions_are_chosen(
    folder: Path, name: str, style: str
) -> None:
    checkpoint = surgery.load(deployed.export(name, style, folder))
    report = surgery.verify(checkpoint, _damaged(checkpoint))
    assert not report.check("outputs, float32").ok
    assert not report.check("outputs, float64").ok


@pytest.mark.parametrize("style", deployed.STYLES)
@pytest.mark.parametrize(("name", "shown"), [
    ("values", []), ("drawn", ["scores of action"]), ("chosen", ["scores of action"]), ("gaussian", []),
])  # fmt: skip
def test_what_choices_are_made_from_is_compared_too(
    folder: Path, name: str, style: str, shown: list[str]
) -> None:
    (model,) = comparable(surgery.load(deployed.export(name, style, folder)))
    assert [value.name for value in model.model.graph.outputs][len(deployed.ROWS[name].outputs) :] == shown


def test_the_constants_of_a_format_and_its_masks_are_known_for_what_they_are(folder: Path) -> None:
    interface = surgery.load(deployed.export("mlagents", "torchscript", folder)).interface
    assert [port.kind for port in interface.inputs] == ["observation", "mask"]
    assert [port.kind for port in interface.outputs] == ["other", "other", "action", "other", "action"]


ACTIONS = {
    "values": ("action", ["action"], []),
    "chosen": ("action", ["action"], []),
    "best": ("q_values", ["action"], ["best"]),
    "worth": ("q_values", [], ["value"]),
    "behind": ("q_values", [], ["q_values"]),
    "top": ("action", ["action"], ["best"]),
    "dueling": ("q_values", ["action"], []),
    "policy": ("probs", [], ["probs"]),
    "probable": ("policy", [], ["policy"]),
    "sb3": ("actions", ["actions"], ["log_prob"]),
    "entropy": ("logits", [], ["entropy"]),
    "drawn": ("action", ["action"], []),
    "masked": ("logits", ["action"], []),
    "gaussian": ("deterministic", [], []),
    "mlagents": ("action_masks[1][0]", ["discrete_actions", "deterministic_discrete_actions"], []),
}
"""Row -> what a user names to have another action, the outputs that choose, and those that count all actions."""


def _ran(checkpoint: surgery.Checkpoint, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return dict(runtime(checkpoint.model)(dict(inputs)))


@CASES
def test_a_new_action_leaves_the_old_values_and_is_counted_by_what_counts_actions(
    folder: Path, name: str, style: str
) -> None:
    checkpoint = surgery.load(deployed.export(name, style, folder))
    wanted, numbers, counted = ACTIONS[name]
    plan = surgery.extend(checkpoint, actions=[NewAction(wanted, 1)])
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    result = surgery.apply(plan, checkpoint)
    report = result.report
    assert report is not None and report.ok and report.apart == tuple(counted)
    assert "not evaluated" not in report.check("outputs, float64").detail
    assert [check.name for check in report.checks if check.name.startswith("actions of")] == [
        f"actions of '{output}'" for output in numbers
    ]
    assert all(report.check(f"change of '{output}'").limit is None for output in counted)
    inverse = surgery.invert(plan, result.checkpoint)
    back = surgery.apply(inverse, result.checkpoint).checkpoint
    assert {n: back.tensors[n].tobytes() for n in checkpoint.tensors} == {
        n: tensor.tobytes() for n, tensor in checkpoint.tensors.items()
    }


@pytest.mark.parametrize("style", deployed.STYLES)
@pytest.mark.parametrize("name", ["values", "chosen", "top", "dueling", "sb3"])
def test_a_new_action_at_the_mean_is_never_the_one_that_the_graph_chooses(
    folder: Path, name: str, style: str
) -> None:
    checkpoint = surgery.load(deployed.export(name, style, folder))
    wanted, (output,), _ = ACTIONS[name]
    after = surgery.apply(surgery.extend(checkpoint, actions=[NewAction(wanted, 2)]), checkpoint).checkpoint
    rows = {"obs": np.random.default_rng(0).normal(0, 3, (500, 5)).astype(np.float32)}
    np.testing.assert_array_equal(_ran(after, rows)[output], _ran(checkpoint, rows)[output])


@pytest.mark.parametrize("style", deployed.STYLES)
@pytest.mark.parametrize("name", ["values", "chosen", "sb3"])
def test_another_action_is_chosen_only_where_it_is_the_new_one(folder: Path, name: str, style: str) -> None:
    checkpoint = surgery.load(deployed.export(name, style, folder))
    wanted, (output,), _ = ACTIONS[name]
    plan = surgery.extend(checkpoint, actions=[NewAction(wanted, 1, "logit", 0.6)])
    result = surgery.apply(plan, checkpoint)
    rows = {"obs": np.random.default_rng(0).normal(0, 3, (500, 5)).astype(np.float32)}
    old, new = _ran(checkpoint, rows)[output], _ran(result.checkpoint, rows)[output]
    assert set(new[old != new]) == {3} and (old == new).any()
    assert "where one is the largest, it is chosen" in " ".join(plan.notes)


@pytest.mark.parametrize("style", deployed.STYLES)
def test_a_draw_in_the_graph_is_kept_from_a_new_action_by_its_logit(folder: Path, style: str) -> None:
    checkpoint = surgery.load(deployed.export("drawn", style, folder))
    report = surgery.apply(
        surgery.extend(checkpoint, actions=[NewAction("action", 1, "logit", -20)]), checkpoint
    ).report
    assert report is not None and report.ok
    assert report.check("new actions of 'logits', sampled").value < 1e-8


@CASES
def test_a_wrong_old_action_is_seen_beside_new_ones(folder: Path, name: str, style: str) -> None:
    checkpoint = surgery.load(deployed.export(name, style, folder))
    plan = surgery.extend(checkpoint, actions=[NewAction(ACTIONS[name][0], 1)])
    after = _damaged(surgery.apply(plan, checkpoint).checkpoint)
    exact = _damaged(execute(plan, checkpoint, double=True))
    report = prove(plan, checkpoint, after, exact, observations=None, seed=0)
    assert not report.check("outputs, float64").ok


def test_masks_names_and_the_contract_follow_new_actions(folder: Path) -> None:
    checkpoint = surgery.load(deployed.export("masked", "dynamo", folder))
    names = PortPatch(labels=("left", "stay", "right"))
    checkpoint = checkpoint.replace(
        interface=checkpoint.interface.annotated({}, {"logits": names, "action": names})
    )
    plan = surgery.extend(checkpoint, actions=[NewAction("action", 1, labels=("jump",))])
    after = surgery.apply(plan, checkpoint).checkpoint
    assert [tuple(value.shape)[1] for value in after.model.graph.inputs] == [5, 4]
    assert {after.interface.output(name).labels for name in ("logits", "action")} == {
        ("left", "stay", "right", "jump")
    }
    assert after.environment.settings["action_mask"] == {"logits": (True, True, True, False)}


def test_the_actions_of_a_policy_that_only_names_them_are_counted(folder: Path) -> None:
    checkpoint = surgery.load(deployed.export("sb3", "torchscript", folder))
    assert find(checkpoint).actions == 3
    plan = surgery.extend(checkpoint, actions=[NewAction("actions", 2)])
    head = find(surgery.apply(plan, checkpoint).checkpoint)
    assert (head.output, head.actions, head.allowed) == ("actions", 5, (True,) * 3 + (False,) * 2)


@pytest.mark.parametrize("style", deployed.STYLES)
def test_probabilities_are_played_as_what_they_are(folder: Path, style: str) -> None:
    """Their logarithms are logits; a softmax of them would be another policy."""
    checkpoint = surgery.load(deployed.export("probable", style, folder))
    rows = np.random.default_rng(0).normal(0, 3, (4, 5)).astype(np.float32)
    policy = load(checkpoint, host=True)
    assert policy.draws and policy.temperature == 1
    np.testing.assert_allclose(
        np.exp(policy.scores(rows)), _ran(checkpoint, {"obs": rows})["policy"], rtol=1e-5
    )
    tensors = load(checkpoint, backend="torch").scores(rows).numpy()
    np.testing.assert_allclose(tensors, policy.scores(rows), rtol=1e-5)


def test_an_environment_with_more_actions_is_met(folder: Path) -> None:
    checkpoint = surgery.load(deployed.export("sb3", "torchscript", folder))
    wanted = SpaceDescription((Observed("", (5,), None),), Actions("discrete", 4, None))
    plan = surgery.adapt(checkpoint, wanted, unnamed="append")
    assert [(edit.before, edit.after) for edit in plan.spaces] == [(3, 4)]
    report = surgery.apply(plan, checkpoint).report
    assert report is not None and report.ok and report.apart == ("log_prob",)


@pytest.mark.parametrize(("name", "line"), [
    ("chosen", "  choice  heads.q 3 (surgery extend --action action+K)"),
    ("sb3", "  choice  heads.pi 3 (surgery extend --action actions+K)"),
    ("best", "  output  heads.q 3"),
])  # fmt: skip
def test_a_head_is_shown_as_one_though_the_graph_chooses_by_itself(
    folder: Path, name: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(deployed.export(name, "dynamo", folder))]) == 0
    shown = capsys.readouterr().out
    assert line in shown.splitlines() and "frozen\n  none" in shown


@pytest.mark.parametrize("after", ["cabd", "bca", "adbc"])
def test_actions_that_change_places_are_chosen_by_their_new_numbers(folder: Path, after: str) -> None:
    checkpoint = surgery.load(deployed.export("sb3", "torchscript", folder))
    names = {"actions": PortPatch(labels=tuple("abc"))}
    checkpoint = checkpoint.replace(interface=checkpoint.interface.annotated({}, names))
    wanted = SpaceDescription((Observed("", (5,), None),), Actions("discrete", len(after), tuple(after)))
    result = surgery.apply(surgery.adapt(checkpoint, wanted), checkpoint)
    assert result.checkpoint.interface.output("actions").labels == tuple(after)
    rows = {"obs": np.random.default_rng(0).normal(0, 3, (50, 5)).astype(np.float32)}
    old, new = (_ran(each, rows)["actions"] for each in (checkpoint, result.checkpoint))
    assert ["abc"[k] for k in old] == [after[k] for k in new]


@pytest.mark.parametrize(
    ("outputs", "nodes", "words"),
    [
        ("float[batch] t", "t = Gather(torques, a)", r"number of the chosen action goes into node 't' \(Gather\)"),
        ("int64[batch] t", "one = Constant<value_int = 1>() t = Add(a, one)", r"goes into .*\(Add\)"),
        ("float[t, 4] t", "b = Unsqueeze(a, zero) t = Slice(obs, zero, b)", r"goes into .*\(Slice\)"),
        ("float[batch, 3] t", "p = Softmax(q) t = MatMul(p, k)", r"together goes into node .* \(MatMul\)"),
        ("int64[batch] hidden_out", "hidden_out = Add(a, hidden_in)", r"goes into .*\(Add\)"),
    ],
)  # fmt: skip
def test_what_uses_the_choice_for_more_than_an_answer_takes_no_new_action(
    outputs: str, nodes: str, words: str
) -> None:
    state = ", int64[batch] hidden_in" if "hidden_in" in nodes else ""
    proto = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["": 20]>
        g (float[batch, 4] obs{state}) => (float[batch, 3] q, {outputs})
        <float[4, 3] w, float[3] torques, float[3, 3] k, int64[1] zero = {{0}}> {{
            q = MatMul(obs, w)
            a = ArgMax<axis = 1, keepdims = 0>(q)
            {nodes}
        }}""")
    for name, shape in (("w", (4, 3)), ("torques", (3,)), ("k", (3, 3))):
        proto.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    model = ir.from_proto(proto)
    checkpoint = surgery.Checkpoint(model, infer(model))
    with pytest.raises(Refused, match=words) as refused:
        surgery.extend(checkpoint, actions=[NewAction("q", 1)])
    assert "surgery distill" in str(refused.value.hint)


@pytest.mark.parametrize(
    ("name", "request_", "words"),
    [
        ("masked", NewObservation("action_mask", 1), "grows with the actions"),
        ("masked", NewAction("logits", 1, "split", of=0), "would take another action"),
        ("mlagents", NewAction("discrete_action_output_shape", 1), "a constant of the file"),
        ("mlagents", NewAction("discrete_actions", 1), "holds several choices"),
    ],
)
def test_a_request_that_means_something_else_is_answered(
    folder: Path, name: str, request_: NewAction | NewObservation, words: str
) -> None:
    checkpoint = surgery.load(deployed.export(name, "torchscript", folder))
    observed = [request_] if isinstance(request_, NewObservation) else []
    acted = [request_] if isinstance(request_, NewAction) else []
    with pytest.raises(surgery.SurgeryError, match=words):
        surgery.extend(checkpoint, observed, acted)
