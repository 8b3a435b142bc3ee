"""What inputs, outputs and environments mean: guessed from names, declared by people, checked either way."""

from __future__ import annotations

import traceback

import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from surgery.annotate import annotate
from surgery.errors import ArgumentError, Refused, UnknownName
from surgery.interface import Environment, Interface, Port, PortPatch
from surgery.port_kinds import infer
from surgery.storage import load
from tests.small_models import mlp, write

NAMES = {
    ("observation",): ("observation",),
    ("obs",): ("observation",),
    ("x",): ("observation",),
    ("state",): ("observation",),
    ("image", "proprio"): ("other", "other"),
    ("obs", "action_mask"): ("observation", "mask"),
    ("obs_0", "h_in"): ("observation", "state"),
    ("obs", "hidden_state", "c0"): ("observation", "state", "state"),
}
OUTPUTS = {
    "q_values": "q_values",
    "Q": "q_values",
    "action_logits": "logits",
    "logits": "logits",
    "value": "value",
    "v": "value",
    "mean": "mean",
    "mu": "mean",
    "log_std": "log_std",
    "hidden_out": "state",
    "h": "state",
    "action": "action",
    "action_probs": "probabilities",
    "log_prob": "other",
    "log_probs": "other",
    "output_0": "other",
}


def _model_with(inputs: tuple[str, ...], outputs: tuple[str, ...]) -> ir.Model:
    nodes = [helper.make_node("Identity", [inputs[0]], [name]) for name in outputs]
    ports = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in names]
        for names in (inputs, outputs)
    ]
    return ir.from_proto(helper.make_model(helper.make_graph(nodes, "g", *ports)))


@pytest.mark.parametrize("names", NAMES, ids=" ".join)
def test_inputs_are_recognised_by_their_names(names):
    recurrent = any("h_in" in name or "hidden" in name for name in names)
    interface = infer(_model_with(names, ("hidden_out" if recurrent else "logits",)))
    assert tuple(port.kind for port in interface.inputs) == NAMES[names]
    assert not any(port.declared for port in (*interface.inputs, *interface.outputs))


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_are_recognised_by_their_names(name):
    assert infer(_model_with(("obs",), (name,))).outputs == (Port(name, OUTPUTS[name]),)


def test_what_a_recurrent_operator_starts_and_ends_with_is_state_whatever_it_is_called():
    nodes = [
        helper.make_node("Unsqueeze", ["a", "axes"], ["sequence"]),
        helper.make_node("GRU", ["sequence", "w", "r", "", "", "b"], ["all", "last"], hidden_size=3),
        helper.make_node("Identity", ["last"], ["d"]),
        helper.make_node("Squeeze", ["all"], ["u"]),
    ]
    float32, shapes = TensorProto.FLOAT, {"a": (2, 4), "b": (1, 2, 3), "u": (2, 3), "d": (1, 2, 3)}
    ports = {name: helper.make_tensor_value_info(name, float32, shape) for name, shape in shapes.items()}
    weights = [
        helper.make_tensor("w", float32, (1, 9, 4), [0.1] * 36),
        helper.make_tensor("r", float32, (1, 9, 3), [0.1] * 27),
        helper.make_tensor("axes", TensorProto.INT64, (1,), [0]),
    ]
    graph = helper.make_graph(nodes, "g", [ports["a"], ports["b"]], [ports["u"], ports["d"]], weights)
    interface = infer(ir.from_proto(helper.make_model(graph)))
    assert [port.kind for port in interface.inputs] == ["observation", "state"]
    assert [port.kind for port in interface.outputs] == ["other", "state"]


BAD_DECLARATIONS = {
    "unknown input 'z'": {"inputs": {"z": PortPatch("mask")}},
    "unknown output": {"outputs": {"x": PortPatch("value")}},
    "cannot be of kind": {"inputs": {"x": PortPatch("logits")}},
    "do not fit": {"inputs": {"x": PortPatch(low=1, high=0)}},
    "do not fit each other": {"inputs": {"x": PortPatch(low=[0, 0], high=[1, 1, 1])}},
    "finite": {"inputs": {"x": PortPatch(low=float("-inf"))}},
    "two labels": {"outputs": {"y": PortPatch(labels=["a", "a"])}},
    "a probability": {"settings": {"sticky_actions": 1.5}},
    "a positive integer": {"settings": {"frame_skip": 0}},
    "a list of integers": {"settings": {"action_set": [0, "fire"]}},
    "not a JSON": {"settings": {"own": {"x": float("nan")}}},
    "a set is not": {"settings": {"own": {1, 2}}},
    "keys are strings": {"settings": {"own": {1: 2}}},
}


@pytest.mark.parametrize("says", BAD_DECLARATIONS)
def test_false_declarations_are_refused(tmp_path, says):
    checkpoint = load(write(mlp(), tmp_path / "in.onnx"))
    with pytest.raises(UnknownName if "unknown" in says else ArgumentError, match=says):
        annotate(checkpoint, **BAD_DECLARATIONS[says])


def test_one_string_is_no_list_of_labels():
    with pytest.raises(ArgumentError, match="one string"):
        PortPatch(labels="ab")


def test_a_declaration_keeps_what_it_does_not_name(tmp_path):
    first = annotate(
        load(write(mlp(), tmp_path / "in.onnx")),
        inputs={"x": PortPatch("observation", 0, 1)},
        environment="A",
        settings={"frame_skip": 4},
    )
    second = annotate(first, inputs={"x": PortPatch(high=2)}, settings={"noop_max": 0})
    assert second.interface.input("x") == Port("x", "observation", 0.0, 2.0, declared=True)
    assert second.environment == Environment("A", {"frame_skip": 4, "noop_max": 0})
    assert annotate(second, environment=Environment("B")).environment == Environment("B")
    third = annotate(second, settings={"frame_skip": None, "normaliser": None})
    assert third.environment == Environment("A", {"noop_max": 0, "normaliser": None})


def test_an_interface_that_names_a_port_twice_is_refused():
    with pytest.raises(ArgumentError, match="same name"):
        Interface((Port("x", "mask"), Port("x", "mask")), ())


def test_a_traceback_of_an_error_shows_its_context_and_its_hint():
    error = Refused("no", where={"space": "fc"}, hint="surgery inspect").within(space="other", file="a.onnx")
    shown = traceback.format_exception(error)
    assert shown[-4:] == [
        "surgery.errors.Refused: no\n", "  space  fc\n", "hint: surgery inspect\n", "  file  a.onnx\n"
    ]  # fmt: skip
