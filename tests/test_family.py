"""A network is called what it is, whoever exported it, and its spaces have the family's names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import surgery
from surgery.architectures import new, new_like
from surgery.architectures.family import Family, identify
from surgery.architectures.like import observed
from surgery.architectures.recognise import recognise
from surgery.builder import GraphBuilder
from surgery.cli import main
from surgery.errors import ArgumentError, UnknownName
from surgery.port_kinds import infer
from tests import zoo
from tests.test_docs import ROOT

TEACHERS = ROOT / "examples" / "teachers"
NAMES = {
    "nature-x2-fc300": (4, 40, 40),
    "nature-same-elu": (20, 20, 4),
    "nature-lstm-12-8": (4, 36, 36),
    "minatar": (4, 10, 10),
    "impala-x2-b3-fc12": (3, 20, 20),
    "impala-dopamine-b1": (22, 22, 3),
    "mlp-7-9-11": (8,),
    "mlp-7-tanh": (8,),
    "lstm-12-8-fc0": (8,),
    "gru-6-fc5-tanh": (8,),
    "transformer-8-l2-h2": (5, 7),
}


def called(checkpoint: surgery.Checkpoint) -> Family:
    return identify(recognise(checkpoint), observed(checkpoint)[1])


@pytest.mark.parametrize("head", ["q", "dueling", "c51", "actor-critic", "gaussian"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_made_under_a_name_is_recognised_under_it(name, head):
    assert called(new(name, observation=NAMES[name], actions=3, head=head)).name == name


FOUND = {
    "nature_dqn": ("nature", "nature", {}),
    "impala": (
        "impala",
        None,
        {"stacks.0.conv": "stacks.0.0", "stacks.2.blocks.1.conv1": "stacks.2.3.conv1"},
    ),
    "lstm_policy": ("lstm", "lstm-13-fc11", {}),
    "actor_critic": ("mlp", None, {"log_probability.fc1": "actor.0", "value.fc2": "critic.2"}),
    "sac_twin_q": ("mlp", None, {"least+value1.fc1": "q1.0", "least+value2.fc2": "q2.2"}),
    "mlp_elu": ("mlp", "mlp-13-11-elu", {}),
    "mlp_silu": ("mlp", "mlp-13-11-silu", {"fc1": "0", "fc2": "2"}),
    "c51": ("mlp", "mlp-13-11", {}),
    "dueling": (None, None, {"conv1": "conv", "value.fc": "value1", "advantage.fc": "advantage1"}),
}


@pytest.mark.parametrize("style", zoo.STYLES)
@pytest.mark.parametrize("name", FOUND)
def test_networks_of_every_exporter_are_called_what_they_are(name, style):
    family, full, aliases = FOUND[name]
    found = called(surgery.load(zoo.export(name, style)))
    assert (found.family, found.name) == (family, full)
    if style != "torchscript":  # which renames what it transposes
        assert aliases.items() <= found.aliases.items()
    assert set(aliases) <= set(found.aliases)


def test_ways_from_several_inputs_to_the_same_outputs_are_no_heads_with_names_of_their_own():
    """Two coupled traces, as the two halves of a complex state."""
    rng, graph = np.random.default_rng(0), GraphBuilder("traces")

    def weight(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    x = graph.linear(graph.input("observation", (4,)), "embed", weight(6, 4), weight(6))
    before, after = [graph.input(name, (5,)) for name in ("left", "right")], []
    for k in range(2):
        moved = [
            graph.op("Mul", trace, graph.parameter(f"{n}{k}", weight(5))) for n, trace in enumerate(before)
        ]
        after.append(graph.op("Add", graph.op("Add", *moved), graph.linear(x, f"write{k}", weight(5, 6))))
        graph.output(after[k], f"trace{k}", (5,))
    read = [graph.linear(trace, f"read{k}", weight(6, 5)) for k, trace in enumerate(after)]
    x = graph.op("Relu", graph.op("Add", graph.op("Add", *read), x))
    graph.output(graph.linear(x, "head", weight(3, 6)), "q_values", (3,))
    model = graph.model()
    assert called(surgery.Checkpoint(model, infer(model))).aliases == {}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests" / "fixtures").glob("*/nature.onnx")), ids=lambda p: p.parent.name
)
def test_agents_of_keras_and_flax_are_dopamines_nature_in_other_widths(path):
    found = called(surgery.load(path))
    assert (found.family, found.name) == ("nature-same", None)
    assert list(found.aliases) == ["conv1", "conv2", "conv3", "fc"]


@pytest.mark.parametrize("name", ["gru", "attention", "separable"])
def test_what_has_no_name_gets_none(name):
    assert called(surgery.load(ROOT / "tests" / "fixtures" / "tf2onnx" / f"{name}.onnx")).name is None


def test_a_student_of_a_dueling_teacher_has_two_streams():
    teacher = new("minatar", observation=(4, 10, 10), actions=3, head="dueling")
    assert "advantage.fc.weight" in new_like("minatar-x2", teacher).tensors


def test_inspect_shows_what_a_network_is_and_the_names_of_its_spaces(capsys):
    assert main(["inspect", str(TEACHERS / "breakout-ppo.onnx"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["architecture"]["name"] == "nature"
    aliases = {space["name"]: space["aliases"] for space in report["spaces"] if space["aliases"]}
    assert aliases == {
        "network.0": ["conv1"],
        "network.2": ["conv2"],
        "network.4": ["conv3"],
        "network.7": ["fc"],
    }
    assert main(["inspect", str(TEACHERS / "breakout-ppo.onnx")]) == 0
    assert "\narchitecture\n  nature\n" in capsys.readouterr().out


def test_widen_takes_the_names_of_the_family(tmp_path: Path):
    model, out = TEACHERS / "minatar-breakout-dqn.onnx", tmp_path / "wide.onnx"
    assert main(["widen", str(model), "--width", "conv1=20", "--width", "network.3=130", "-o", str(out)]) == 0
    assert surgery.load(out).tensors["network.0.weight"].shape[0] == 20
    assert main(["widen", str(model), "--width", "conv9=20", "-o", str(tmp_path / "no.onnx")]) == 2


BY_NAME = {
    "widen": (lambda c, name: surgery.widen(c, widths={name: 64}), "network.0", "conv1"),
    "widen the dense layer": (lambda c, name: surgery.widen(c, widths={name: 600}), "network.7", "fc"),
    "permute": (lambda c, name: surgery.permute(c, {name: range(31, -1, -1)}), "network.0", "conv1"),
    "narrow": (lambda c, name: surgery.narrow(c, widths={name: 30}, by="l2"), "network.0", "conv1"),
    "deepen": (lambda c, name: surgery.deepen(c, after=name), "network.7", "fc"),
    "deepen, by place": (lambda c, name: surgery.deepen(c, name), "network.7", "fc"),
    "kernel": (lambda c, name: surgery.grow_kernel(c, {name: 5}), "network.4", "conv3"),
    "normalise": (lambda c, name: surgery.unfold_batchnorm(c, name), "network.0", "conv1"),
}


@pytest.mark.parametrize("case", BY_NAME)
def test_the_library_takes_the_names_of_the_family_for_those_of_the_graph(case):
    plan, own, alias = BY_NAME[case]
    agent = surgery.load(ROOT / "examples" / "teachers" / "breakout-ppo.onnx")
    by_alias, by_graph = plan(agent, alias).to_json(), plan(agent, own).to_json()
    assert by_alias.pop("arguments") and by_graph.pop("arguments")
    assert by_alias == by_graph


def test_an_unknown_name_stays_unknown_and_no_space_is_named_twice():
    agent = surgery.load(ROOT / "examples" / "teachers" / "breakout-ppo.onnx")
    with pytest.raises(UnknownName, match="unknown space 'conv9'"):
        surgery.widen(agent, widths={"conv9": 64})
    with pytest.raises(ArgumentError, match="given twice"):
        surgery.widen(agent, widths={"network.0": 64, "conv1": 96})


def test_nothing_is_recognised_for_a_name_of_the_graph():
    script = (
        "import sys, surgery; agent = surgery.load(sys.argv[1]); surgery.widen(agent, widths={'network.0': 64});"
        "assert 'surgery.architectures' not in sys.modules; surgery.widen(agent, widths={'conv1': 64});"
        "assert 'surgery.architectures' in sys.modules"
    )
    agent = ROOT / "examples" / "teachers" / "breakout-ppo.onnx"
    subprocess.run([sys.executable, "-c", script, str(agent)], check=True)
