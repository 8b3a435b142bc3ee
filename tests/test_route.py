"""A route ends at the target's layers with the same function, or says layer by layer why there is none."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import surgery
from surgery.architectures import new, new_like
from surgery.architectures.layers import Dense
from surgery.architectures.recognise import recognise
from surgery.builder import GraphBuilder
from surgery.cli import main
from surgery.errors import ArgumentError, FileError, Refused, UnknownName
from surgery.interface import PortPatch
from surgery.port_kinds import infer
from surgery.route import migrate, survey
from tests import zoo
from tests.steady import STEADY
from tests.test_docs import ROOT

TEACHERS = ROOT / "examples" / "teachers"
HEADS = ("q", "dueling", "c51", "qr", "actor-critic", "gaussian")
FAMILIES = {
    "nature": ((4, 36, 36), "nature-x1.5-fc600"),
    "nature-same": ((20, 20, 4), "nature-same-x1.25-fc515"),
    "minatar": ((4, 8, 8), "minatar-x2-fc130"),
    "impala-b1": ((3, 12, 12), "impala-x1.5-b1-fc260"),
    "impala-dopamine-b1": ((9, 9, 3), "impala-dopamine-x2-b1-fc513"),
    "mlp-7-5": ((8,), "mlp-9-11"),
    "mlp-7-5-tanh": ((8,), "mlp-9-11-tanh"),
    "lstm-6": ((8,), "lstm-13-fc9"),
    "gru-6-fc5": ((8,), "gru-7-fc9"),
    "minatar-lstm-6": ((4, 8, 8), "minatar-x2-lstm-12"),
    "transformer-8-l1-h2": ((5, 7), "transformer-16-l1-h2"),
}
"""Family -> an observation, and a wider one of it."""
_KINDS = {"q": "q_values", "logits": "logits"}


def small(name: str, head: str = "q") -> surgery.Checkpoint:
    return new(name, observation=FAMILIES[name][0], actions=3, head=head)


def shapes(checkpoint: surgery.Checkpoint) -> dict[str, tuple[int, ...]]:
    tensors = checkpoint.tensors.items()
    return {name: tuple(t.shape) for name, t in tensors if t.dtype.is_floating_point()}


def exported(name: str, style: str) -> surgery.Checkpoint:
    checkpoint = surgery.load(zoo.export(name, style))
    names = [port.name for port in checkpoint.interface.outputs]
    patches = {known: PortPatch(kind=kind) for known, kind in _KINDS.items() if known in names}
    return surgery.annotate(checkpoint, outputs=patches)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_with_every_head_reaches_a_wider_one_of_its_family(name, head):
    journey = migrate(small(name, head), FAMILIES[name][1])
    assert journey.report.exact
    assert not survey(journey.checkpoint, FAMILIES[name][1])[1].edits
    wanted = new(FAMILIES[name][1], observation=FAMILIES[name][0], actions=3, head=head)
    assert shapes(journey.checkpoint) == shapes(wanted)


@pytest.mark.parametrize("name", ["nature", "impala-b1", "mlp-7-5", "lstm-6", "transformer-8-l1-h2"])
@pytest.mark.parametrize("head", ["q", "dueling", "actor-critic"])
def test_a_file_as_the_target_gives_the_same_as_its_name(tmp_path, name, head):
    observation, wanted = FAMILIES[name]
    surgery.save(new(wanted, observation=observation, actions=3, head=head, seed=9), tmp_path / "other.onnx")
    by_file = migrate(small(name, head), str(tmp_path / "other.onnx"))
    by_name = migrate(small(name, head), wanted)
    assert by_file.report.exact
    assert [r.plan.to_json() for r in by_file.results] == [r.plan.to_json() for r in by_name.results]


@pytest.mark.parametrize("style", zoo.STYLES)
@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("nature_dqn", "nature-x2"),
        ("impala", "impala-b2"),
        ("lstm_policy", "lstm-26"),
        ("actor_critic", "mlp-20-20"),
        ("noisy_net", "mlp-16-16"),
        ("mlp_silu", "mlp-13-22"),
    ],
)
def test_a_teacher_of_any_exporter_reaches_a_named_architecture(name, target, style):
    journey = migrate(exported(name, style), target, verify=name != "nature_dqn")
    assert not survey(journey.checkpoint, target)[1].edits
    assert journey.report is None or journey.report.exact


@pytest.mark.parametrize("name", ["nature_dqn", "nature_nhwc", "dueling", "impala", "lstm_policy", "c51"])
def test_exporters_write_the_same_layers_in_different_ways(name):
    found = [recognise(exported(name, style)).layers for style in zoo.STYLES]
    assert found[0] == found[1] == found[2]


LAYERS = {
    "nature_nhwc": "scaling by constants · conv 7 4×4/2 · relu · conv 11 3×3 · relu · flatten hwc · "
    "dense 17 · relu · dense 6",
    "dueling": "conv 5 3×3/2 · relu · flatten chw · "
    "dueling (dense 11 · relu · dense 1 | dense 13 · relu · dense 6)",
    "lstm_policy": "dense 11 · relu · lstm 13 · outputs (dense 5 | dense 1)",
    "residual_layernorm": "dense 11 · residual (layer-norm · dense 13 · dense 11) · "
    "residual (layer-norm · dense 17 · dense 11) · layer-norm · dense 5",
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_recognised(name):
    assert " · ".join(map(str, recognise(exported(name, "dynamo")).layers)) == LAYERS[name]


KERAS_AND_FLAX = {
    "nature": "conv 4 8×8/4 · relu · conv 5 4×4/2 · relu · conv 6 3×3 · relu · flatten hwc · "
    "dense 8 · relu · dense 4",
    "dueling": "conv 5 3×3/2 · relu · flatten hwc · "
    "dueling (dense 7 · relu · dense 1 | dense 6 · relu · dense 4)",
    "mlp": "dense 10 · relu · dense 7 · tanh · dense 3",
}
RECORDED = {
    f"{exporter}/{name}": text
    for name, text in KERAS_AND_FLAX.items()
    for exporter in ("tf2onnx", "jax2onnx")
}


@pytest.mark.parametrize("name", RECORDED)
def test_layers_are_recognised_whatever_framework_wrote_them(name):
    checkpoint = surgery.load(ROOT / "tests" / "fixtures" / f"{name}.onnx")
    layers = " · ".join(map(str, recognise(checkpoint).layers))
    assert layers.removeprefix("scaling by constants · ") == RECORDED[name]


@pytest.mark.parametrize("exporter", ["tf2onnx", "jax2onnx"])
def test_agents_of_keras_and_flax_reach_dopamines_nature(exporter):
    checkpoint = surgery.load(ROOT / "tests" / "fixtures" / exporter / "nature.onnx")
    journey = migrate(checkpoint, "nature-same")
    assert journey.report.exact
    assert not survey(journey.checkpoint, "nature-same")[1].edits


def test_the_optimizers_slots_follow_a_route():
    agent = surgery.attach(
        surgery.load(TEACHERS / "minatar-breakout-dqn.onnx"), TEACHERS / "minatar-breakout-dqn.pt"
    )
    journey = migrate(agent, "minatar-x2-fc200")
    state = journey.checkpoint.optimizer
    for members in state.slots.values():
        for name, slot in members.items():
            assert tuple(slot.shape) == tuple(journey.checkpoint.tensors[name].shape)
    assert any(check.name.startswith("optimizer slots") for check in journey.report.checks)


def test_the_lineage_says_what_was_done_and_what_was_measured():
    journey = migrate(small("mlp-7-5"), "mlp-9-11")
    steps = journey.checkpoint.lineage
    assert [step.operation for step in steps] == ["new", "widen"]
    assert steps[-1].witness["checks"]


def test_a_network_that_is_the_target_already_is_left_as_it_is():
    checkpoint = small("impala-b1")
    journey = migrate(checkpoint, "impala-b1")
    assert not journey.results
    assert journey.checkpoint.digest() == checkpoint.digest()


DEEPER = {
    "mlp": ("mlp-7-5", "mlp-7-9-9-5", "deepen widen"),
    "mlp by one more": ("mlp-7-5", "mlp-9-11-12", "deepen widen"),
    "blocks": ("impala-b1", "impala-b3", "deepen"),
    "blocks and channels": ("impala-b1", "impala-x2-b2", "widen deepen"),
    "blocks of dopamine's": ("impala-dopamine-b1", "impala-dopamine-b2-fc600", "widen deepen"),
}


@pytest.mark.parametrize("head", ["q", "dueling", "actor-critic"])
@pytest.mark.parametrize("case", DEEPER)
def test_new_layers_start_without_an_effect_and_take_the_place_that_the_target_has(case, head):
    name, target, operations = DEEPER[case]
    journey = migrate(small(name, head), target)
    assert journey.report.exact
    assert [result.plan.operation for result in journey.results] == operations.split()
    assert not survey(journey.checkpoint, target)[1].edits
    wanted = new(target, observation=FAMILIES[name][0], actions=3, head=head)
    assert sorted(shapes(journey.checkpoint).values()) == sorted(shapes(wanted).values())


def test_new_blocks_are_called_as_those_of_the_family():
    journey = migrate(small("impala-b1"), "impala-b3")
    assert shapes(journey.checkpoint) == shapes(new("impala-b3", observation=(3, 12, 12), actions=3))


@pytest.mark.parametrize("style", zoo.STYLES)
def test_an_exported_impala_becomes_wider_and_deeper(style):
    journey = migrate(exported("impala", style), "impala-x2-b3")
    assert journey.report.exact
    assert [result.plan.operation for result in journey.results] == ["widen", "deepen"]
    assert not survey(journey.checkpoint, "impala-x2-b3")[1].edits


@pytest.mark.parametrize("head", ["q", "dueling", "actor-critic"])
@pytest.mark.parametrize(
    ("name", "target", "states"),
    [
        ("lstm-6", "lstm-12-12", ["hidden", "cell", "lstm2.h", "lstm2.c"]),
        ("lstm-6", "lstm-7-9-8", ["hidden", "cell", "lstm3.h", "lstm3.c", "lstm2.h", "lstm2.c"]),
        ("gru-6-fc5", "gru-7-9", ["hidden", "gru2.h"]),
        ("minatar-lstm-6", "minatar-x2-lstm-6-6", ["hidden", "cell", "lstm2.h", "lstm2.c"]),
    ],
)
def test_a_recurrent_policy_gets_a_larger_state_and_more_layers(name, target, states, head):
    journey = migrate(small(name, head), target)
    assert journey.report.exact
    assert not survey(journey.checkpoint, target)[1].edits
    found = [port.name for port in journey.checkpoint.interface.inputs if port.kind == "state"]
    assert sorted(found) == sorted(states)


@pytest.mark.parametrize("style", zoo.STYLES)
def test_an_exported_recurrent_policy_gets_twice_the_state_and_a_layer_by_name_and_by_file(tmp_path, style):
    by_name = migrate(exported("lstm_policy", style), "lstm-26-26")
    other = new("lstm-26-26-fc11", observation=(7,), actions=5, head="actor-critic")
    surgery.save(other, tmp_path / "other.onnx")
    by_file = migrate(exported("lstm_policy", style), str(tmp_path / "other.onnx"))
    assert by_name.report.exact
    assert by_file.report.exact
    assert shapes(by_name.checkpoint) == shapes(by_file.checkpoint)


@pytest.mark.parametrize("target", zoo.STYLES)
def test_a_file_of_another_exporter_is_a_target(tmp_path, target):
    wide = migrate(exported("impala", target), "impala-x2-b3").checkpoint
    surgery.save(wide, tmp_path / "wide.onnx")
    for style in zoo.STYLES:
        journey = migrate(exported("impala", style), str(tmp_path / "wide.onnx"), verify=False)
        assert recognise(journey.checkpoint).layers == recognise(wide).layers


MUST_REACH = {
    "mlp": ("mlp-12-10", (5,), "mlp-16-16-13", "deepen widen"),
    "mlp of the same width": ("mlp-12-12", (5,), "mlp-12-12-12-12", "deepen"),
    "nature": ("nature-fc40", (4, 36, 36), "nature-x2-fc50", "widen"),
    "lstm": ("lstm-12", (7,), "lstm-24-24", "widen deepen"),
    "impala": ("impala", (3, 16, 16), "impala-x2-b3", "widen deepen"),
}


@pytest.mark.parametrize("case", MUST_REACH)
def test_a_target_made_like_the_teacher_is_reached_on_the_command_line(tmp_path, case):
    name, observation, target, operations = MUST_REACH[case]
    teacher, other, out = (str(tmp_path / f"{part}.onnx") for part in ("teacher", "other", "out"))
    surgery.save(new(name, observation=observation, actions=3, head="actor-critic"), teacher)
    assert main(["new", target, "--like", teacher, "-o", other]) == 0
    assert main(["migrate", teacher, "--to", other, "-o", out]) == 0
    reached = surgery.load(out)
    assert " ".join(step.operation for step in reached.lineage) == f"new {operations}"
    assert recognise(reached).layers == recognise(surgery.load(other)).layers
    assert reached.lineage[-1].witness["checks"]
    if case != "lstm":  # whose state has become larger
        assert surgery.verify(surgery.load(teacher), reached).ok


def _mlp(*widths: int) -> nn.Sequential:
    layers = [part for pair in pairwise(widths) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def _nature(channels: int, dense: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(4, channels, 8, 4), nn.ReLU(), nn.Conv2d(channels, 2 * channels, 4, 2), nn.ReLU(),
        nn.Conv2d(2 * channels, 2 * channels, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * channels, dense), nn.ReLU(),
        nn.Linear(dense, 3),
    )  # fmt: skip


PLAIN = {
    "mlp": (_mlp(5, 12, 10, 3), _mlp(5, 16, 16, 13, 3), (5,), "deepen widen"),
    "mlp of the same width": (_mlp(5, 12, 10, 3), _mlp(5, 12, 12, 10, 10, 3), (5,), "deepen deepen"),
    "nature": (_nature(32, 40), _nature(64, 80), (4, 36, 36), "widen"),
}


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("case", PLAIN)
def test_a_target_that_torch_exported_is_reached_on_the_command_line(tmp_path, case, exporter):
    teacher, other, observation, operations = PLAIN[case]
    paths = [str(tmp_path / f"{part}.onnx") for part in ("teacher", "other", "out")]
    for module, path in zip((teacher, other), paths, strict=False):
        _torch_export(module, path, observation, exporter)
    assert main(["migrate", paths[0], "--to", paths[1], "-o", paths[2]]) == 0
    reached = surgery.load(paths[2])
    assert " ".join(step.operation for step in reached.lineage) == operations
    assert recognise(reached).layers == recognise(surgery.load(paths[1])).layers
    assert surgery.verify(surgery.load(paths[0]), reached).ok


def _torch_export(module: nn.Module, path: str, observation: tuple[int, ...], exporter: str) -> None:
    dynamo = exporter == "dynamo"
    axes = {"dynamic_shapes": ({0: "batch"},)} if dynamo else {"dynamic_axes": {"observation": {0: "batch"}}}
    with zoo.quiet():
        torch.onnx.export(
            module, (torch.zeros(2, *observation),), path, dynamo=dynamo, input_names=["observation"],
            output_names=["q_values"], **axes,
        )  # fmt: skip


KERNELS = """
[small]
layers = [{ conv = 5, kernel = 3, padding = 1 }, "relu", "flatten", { dense = 7 }, "relu"]
[large]
layers = [{ conv = 6, kernel = 5, padding = 2 }, "relu", "flatten", { dense = 7 }, "relu"]
"""


def test_a_kernel_grows_with_its_padding(tmp_path):
    (tmp_path / "mine.toml").write_text(KERNELS)
    before = new(f"{tmp_path}/mine.toml:small", observation=(3, 6, 6), actions=2)
    journey = migrate(before, f"{tmp_path}/mine.toml:large")
    assert journey.report.exact
    assert [result.plan.operation for result in journey.results] == ["grow_kernel", "widen"]
    assert shapes(journey.checkpoint)["conv1.weight"] == (6, 3, 5, 5)


def test_the_optimizers_slots_of_a_deeper_network_are_complete():
    agent = surgery.attach(surgery.load(TEACHERS / "cartpole-dqn.onnx"), TEACHERS / "cartpole-dqn.pt")
    after = migrate(agent, "mlp-128-96-96").checkpoint
    trained = {name for name, t in after.tensors.items() if t.dtype.is_floating_point()}
    for members in after.optimizer.slots.values():
        assert set(members) == trained
        assert all(tuple(slot.shape) == tuple(after.tensors[name].shape) for name, slot in members.items())


_WIDTHS = st.lists(st.integers(2, 6), min_size=1, max_size=3)


@settings(STEADY, max_examples=60)
@given(_WIDTHS, st.lists(st.integers(2, 9), min_size=1, max_size=5))
def test_of_mlps_exactly_those_are_reached_into_which_the_old_layers_fit_in_order(have, want):
    before = new("mlp-" + "-".join(map(str, have)), observation=(3,), actions=2)
    target = "mlp-" + "-".join(map(str, want))
    try:
        journey = migrate(before, target)
    except Refused as refusal:
        assert refusal.where
        assert not _fits(have, want)
        return
    assert _fits(have, want)
    assert [layer.width for layer in recognise(journey.checkpoint).layers if isinstance(layer, Dense)] == [
        *want,
        2,
    ]
    assert journey.report.exact if journey.results else have == want


def _fits(have: list[int], want: list[int]) -> bool:
    """Each old layer becomes one that is no narrower, in order, the first one the first; what is put in behind a layer
    starts as wide as that was."""
    if not have:
        return not want
    if not want or want[0] < have[0]:
        return False
    behind = 1
    while behind < len(want) and want[behind] >= have[0]:
        behind += 1
    return any(
        _fits(have[1:], want[used:]) if len(have) > 1 else used == len(want) for used in range(1, behind + 1)
    )


UNUSUAL = {
    "d2rl": True, "gated": True, "mixture_of_experts": True, "embedding_pool": True, "temporal_conv": True, "iqn": True,
    "rmsnorm": True, "gru_step": True, "lstm_bidirectional": True, "maxout": False, "pixel_shuffle": True,
    "batchnorm_resnet": True, "densenet": True, "transformer": False, "shufflenet": False, "successor_features": False,
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSUAL)
def test_a_file_of_the_same_network_in_other_sizes_is_reached_in_every_tensor_or_refused(tmp_path, name):
    before = surgery.load(zoo.export(name, "dynamo"))
    says = before.interface.outputs[0].name
    before = surgery.annotate(before, outputs={says: PortPatch(kind="q_values")})
    wide = surgery.apply(surgery.widen(before, factor=2), before, verify=False).checkpoint
    surgery.save(wide, tmp_path / "wide.onnx")
    if not UNUSUAL[name]:
        with pytest.raises(Refused) as caught:
            migrate(before, str(tmp_path / "wide.onnx"))
        assert caught.value.where
        return
    journey = migrate(before, str(tmp_path / "wide.onnx"))
    assert journey.report.exact
    assert shapes(journey.checkpoint) == shapes(wide)


REFUSALS = {
    "another family": ("nature", "impala", {"conv1": "stride 4 cannot become 1"}),
    "fewer units": ("mlp-7-5", "mlp-6-9", {"fc1": "fewer than 7"}),
    "fewer layers": ("mlp-7-5", "mlp-9", {"fc2": "no edit removes"}),
    "another activation": ("mlp-7-5", "mlp-9-9-tanh", {"relu": "relu cannot become tanh"}),
    "another cell": ("lstm-6", "gru-7", {"lstm": "lstm 6 cannot become gru 7"}),
    "a stacked layer behind tanh": ("mlp-7-5-tanh", "mlp-7-5-5-tanh", {"dense 5": "keep their own results"}),
    "other padding": ("impala-b1", "impala-dopamine-b1", {"max-pool 3×3/2": "padding"}),
    "no whole multiple": ("transformer-8-l1-h2", "transformer-12-l1-h2", {"embed": "whole multiples"}),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_no_route_is_refused_with_the_reason_for_the_layer_and_the_command_that_distils(case):
    name, target, reasons = REFUSALS[case]
    with pytest.raises(Refused, match="no exact route") as caught:
        migrate(small(name), target)
    for layer, words in reasons.items():
        assert words in caught.value.where[layer]
    assert f"surgery distill MODEL --to {target} --env ID -o DIR" in caught.value.hint
    assert caught.value.exit_code == 1


def test_a_target_that_is_only_smaller_names_the_command_that_makes_it_narrower():
    with pytest.raises(Refused) as caught:
        migrate(small("mlp-7-5"), "mlp-6-4")
    assert "surgery narrow MODEL --width fc1=6 --width fc2=4 -o OUT" in caught.value.hint


def test_a_file_without_a_name_is_distilled_under_the_name_of_its_architecture(tmp_path):
    surgery.save(new("mlp-6-9", observation=(8,), actions=3), tmp_path / "other.onnx")
    with pytest.raises(Refused) as caught:
        migrate(small("mlp-7-5"), str(tmp_path / "other.onnx"))
    assert "surgery distill MODEL --to mlp-6-9" in caught.value.hint


@pytest.mark.parametrize(
    ("observation", "actions", "words"),
    [((10,), 3, "extend MODEL --observation observation+2"), ((8,), 5, "extend MODEL --action q_values+2"),
     ((6,), 3, "adapt MODEL"), ((8,), 2, "adapt MODEL")],
)  # fmt: skip
def test_a_file_for_another_task_names_the_command_that_changes_the_task(
    tmp_path, observation, actions, words
):
    surgery.save(new("mlp-9-9", observation=observation, actions=actions), tmp_path / "other.onnx")
    with pytest.raises(Refused) as caught:
        migrate(small("mlp-7-5"), str(tmp_path / "other.onnx"))
    assert words in caught.value.hint


def test_a_file_with_another_kind_of_head_is_refused(tmp_path):
    surgery.save(new("mlp-9-9", observation=(8,), actions=3, head="actor-critic"), tmp_path / "other.onnx")
    with pytest.raises(Refused, match="gives logits, this network q_values"):
        migrate(small("mlp-7-5"), str(tmp_path / "other.onnx"))


def test_a_target_that_is_no_policy_or_no_file_is_refused(tmp_path):
    critic = surgery.annotate(
        new("mlp-9", observation=(8,), actions=1), outputs={"q_values": PortPatch(kind="value")}
    )
    surgery.save(critic, tmp_path / "critic.onnx")
    with pytest.raises(ArgumentError, match="not a policy"):
        migrate(small("mlp-7-5"), str(tmp_path / "critic.onnx"))
    with pytest.raises(FileError, match="no target"):
        migrate(small("mlp-7-5"), str(tmp_path / "missing.onnx"))
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(FileError):
        migrate(small("mlp-7-5"), str(tmp_path / "text.onnx"))
    with pytest.raises(UnknownName, match="natre"):
        migrate(small("mlp-7-5"), "natre")


def test_a_stream_and_a_tower_grow_as_the_layers_they_stand_for():
    dueling = migrate(small("nature", "dueling"), "nature-fc600").checkpoint
    assert {dueling.tensors[f"{stream}.fc.weight"].shape[0] for stream in ("value", "advantage")} == {600}
    towers = migrate(exported("actor_critic", "dynamo"), "mlp-20-20").checkpoint
    assert {
        towers.tensors[f"{tower}.{k}.weight"].shape[0] for tower in ("actor", "critic") for k in (0, 2)
    } == {20}


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    surgery.save(small("mlp-7-5"), tmp_path / "agent.onnx")
    return tmp_path / "agent.onnx"


def test_migrate_prints_layer_by_layer_and_writes_what_it_proved(agent, tmp_path, capsys):
    out = tmp_path / "out.onnx"
    assert main(["migrate", str(agent), "--to", "mlp-9-11", "-o", str(out)]) == 0
    text = capsys.readouterr().out
    assert ["fc2", "dense", "5", "dense", "11", "fc2", "→", "11"] in [
        line.split() for line in text.splitlines()
    ]
    assert "outputs equal" in text
    assert surgery.verify(surgery.load(agent), surgery.load(out)).ok


@pytest.mark.parametrize("verb", ["migrate", "widen", "deepen"])
def test_every_verb_that_grows_takes_a_target(agent, tmp_path, capsys, verb):
    out = tmp_path / "out.onnx"
    assert main([verb, str(agent), "--to", "mlp-9-11", "-o", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["exact"]
    assert {(change["space"], change["to"]) for change in report["changes"]} == {("fc1", 9), ("fc2", 11)}


def test_a_dry_run_shows_the_route_and_writes_nothing(agent, tmp_path, capsys):
    assert main(["migrate", str(agent), "--to", "mlp-9-11", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["exact"]
    assert main(["migrate", str(agent), "--to", "mlp-6-11", "--dry-run"]) == 1
    assert list(tmp_path.iterdir()) == [agent]


def test_no_route_exits_with_one_and_the_reasons(agent, tmp_path, capsys):
    assert main(["migrate", str(agent), "--to", "mlp-6-11", "-o", str(tmp_path / "out.onnx")]) == 1
    error = capsys.readouterr().err
    assert "fewer than 7" in error
    assert f"surgery distill {agent} --to mlp-6-11" in error
    assert list(tmp_path.iterdir()) == [agent]


def test_a_route_computes_the_same_on_inputs_that_it_was_not_proved_on():
    from surgery.verify.outputs import runtime

    before = small("impala-b1", "actor-critic")
    after = migrate(before, "impala-x1.5-b1-fc260").checkpoint
    frames = np.random.default_rng(5).standard_normal((7, 3, 12, 12)).astype(np.float32)
    old, new_outputs = (runtime(c.model)({"observation": frames}) for c in (before, after))
    for name, array in old.items():
        np.testing.assert_allclose(new_outputs[name], array, rtol=0, atol=1e-6 * max(1.0, abs(array).max()))


SACS = {"mlp-20-20": ["widen"], "mlp-16-16-20": ["deepen", "widen"]}


@pytest.mark.parametrize("target", SACS)
def test_an_actor_and_critics_that_share_an_observation_grow_together(tmp_path, target):
    """Soft actor-critic: the critics read the observation and an action."""
    graph = GraphBuilder("sac")
    observation, action = graph.input("observation", (5,)), graph.input("action", (2,))

    def tower(x, name, inputs, outputs):
        for k, (n, m) in enumerate(((inputs, 16), (16, 16))):
            weight = rng.standard_normal((m, n), dtype=np.float32) / 4
            x = graph.op(
                "Relu", graph.linear(x, f"{name}.{k}", weight, rng.standard_normal(m, dtype=np.float32))
            )
        return graph.linear(x, f"{name}.out", rng.standard_normal((outputs, 16), dtype=np.float32))

    rng = np.random.default_rng(0)
    graph.output(tower(observation, "actor", 5, 2), "mean", (2,))
    both = graph.op("Concat", observation, action, axis=1)
    for name in ("q1", "q2"):
        graph.output(tower(both, name, 7, 1), name, (1,))
    model = graph.model()
    journey = migrate(surgery.Checkpoint(model, infer(model)), target)
    assert journey.report.exact
    assert [result.plan.operation for result in journey.results] == SACS[target]
    wanted = [int(part) for part in target.split("-")[1:]]
    for tower_tree in recognise(journey.checkpoint).tree[0].branches:
        assert [f.layer.width for f in tower_tree if isinstance(f.layer, Dense)][:-1] == wanted


def test_by_side_car_a_nature_network_becomes_an_impala_exactly(tmp_path, capsys):
    surgery.save(small("nature", "actor-critic"), tmp_path / "nature.onnx")
    words = ["migrate", str(tmp_path / "nature.onnx"), "--to", "impala-b1", "--route", "sidecar"]
    assert main([*words, "-o", str(tmp_path / "both.onnx"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["exact"]
    assert "sidecar.gate" in surgery.load(tmp_path / "both.onnx").tensors
    assert main([*words, "--or-distill", "-o", str(tmp_path / "other.onnx")]) == 2


@pytest.mark.parametrize("verb", ["migrate", "widen"])
def test_or_distill_teaches_where_there_is_no_route(tmp_path, capsys, verb):
    """The student is made by the name of the architecture, or by that of a file's network."""
    out, target, teacher = tmp_path / "student.onnx", "mlp-16", TEACHERS / "cartpole-dqn.onnx"
    if verb == "migrate":
        target = str(tmp_path / "like-this.onnx")
        surgery.save(new_like("mlp-16", surgery.load(teacher, optimizer=False)), target)
    words = [verb, str(teacher), "--to", target, "--or-distill", "--frames", "1000"]
    assert main([*words, "-o", str(out), "--json"]) == 0
    assert not json.loads(capsys.readouterr().out)["exact"]
    assert (tmp_path / "student.onnx.run" / "config.json").is_file()
    assert surgery.load(out).tensors["fc.weight"].shape[0] == 16
