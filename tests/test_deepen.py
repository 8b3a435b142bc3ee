"""New layers change no bit: every network, export style, kind of layer and place."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import surgery
from surgery.builder import GraphBuilder
from surgery.cli import main
from surgery.edits.execute import execute
from surgery.edits.insertion import Insertion
from surgery.edits.plan import Plan
from surgery.edits.ports import grow, shrink
from surgery.errors import ArgumentError, ClaimFailed, PlanMismatch, ProofFailed, Refused, UnknownName
from surgery.graph.layers import layers
from surgery.numeric import run
from surgery.ops.deepen import KINDS
from surgery.optimizer import OptimizerState, ParamGroup
from surgery.port_kinds import infer
from surgery.probes import probes
from surgery.verify.outputs import difference, runtime
from surgery.verify.structure import check_structure
from tests import zoo
from tests.originals import EXPORTS, Original, original

FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("*/*.onnx"))
STEP = 1e-30


def modules(before: Original) -> list[str]:
    return list(dict.fromkeys(layer.module for layer in layers(before.analysis)))


ANYWHERE = KINDS[:5]
"""Kinds that can stand behind nearly every layer; the others are for sequences."""


def kinds(style: str) -> itertools.cycle[str]:
    """Kinds in turn, from another one on in every style."""
    start = zoo.STYLES.index(style)
    return itertools.cycle(ANYWHERE[start:] + ANYWHERE[:start])


@pytest.mark.parametrize(("name", "style"), EXPORTS)
def test_new_layers_change_no_bit(name: str, style: str) -> None:
    """In float64 and as stored; of one style up to five layers of each network, of the others one."""
    before, done = original(name, style), 0
    chosen = modules(before)
    for module, kind in zip(chosen[:: -(-len(chosen) // 5)], kinds(style), strict=False):
        try:
            plan = surgery.deepen(before.checkpoint, module, count=2, kind=kind)  # type: ignore[arg-type]
        except Refused as refusal:
            if "in two ways" in refusal.message or "gates" in refusal.message:  # tied weights; cells
                continue
            plan = surgery.deepen(before.checkpoint, module, count=2)
        assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
        _check_bits(before, plan)
        done += 1
        if style != "dynamo":
            break
    assert done


def _check_bits(before: Original, plan: Plan) -> None:
    """On two batches that differ in every symbolic size."""
    exact = run(execute(plan, before.checkpoint, double=True).model, before.batches[0])
    assert difference(before.exact, exact)[0] == 0
    after = execute(plan, before.checkpoint)
    session = runtime(after.model)
    for inputs, outputs in zip(before.batches, before.stored, strict=True):
        assert difference(outputs, session(dict(inputs)))[0] == 0
    assert check_structure(after.model).ok
    for key, tensor in before.checkpoint.tensors.items():
        assert after.tensors[key].tobytes() == tensor.tobytes()


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_models_of_other_frameworks_take_new_layers(path: Path) -> None:
    checkpoint = surgery.load(path)
    inputs = probes(checkpoint, 3, 0)
    stored = runtime(checkpoint.model)(inputs)
    inserted = 0
    for module in dict.fromkeys(layer.module for layer in layers(checkpoint.analysis)):
        try:
            plan = surgery.deepen(checkpoint, module)
        except Refused as refusal:
            assert any(why in refusal.message for why in ("Loop", "is not known", "gates"))
            continue
        after = execute(plan, checkpoint)
        assert difference(stored, runtime(after.model)(inputs))[0] == 0
        inserted += 1
    assert inserted or path.stem == "gru"  # all of it lies in a loop, or behind one


@pytest.mark.parametrize(
    ("name", "after", "kind"),
    [
        ("mlp_relu", "0", "identity"),
        ("nature_nhwc", "conv2", "identity"),
        ("impala", "stacks.1.3", "residual"),
        ("gru_policy", "encoder", "residual"),
        ("transformer_prenorm", "layer.linear1", "rezero"),
        ("batchnorm_resnet", "conv1", "batchnorm"),
        ("lstm_policy", "lstm", "residual"),
    ],
)
def test_a_new_layer_can_be_widened(name: str, after: str, kind: str) -> None:
    before = original(name, "dynamo")
    plan = surgery.deepen(before.checkpoint, after, kind=kind)  # type: ignore[arg-type]
    deeper = execute(plan, before.checkpoint)
    analysis = deeper.analysis
    own = [s for s in analysis.spaces if s.name.startswith(plan.insertions[0].name) and s.widenable]
    assert own
    wide = surgery.apply(surgery.widen(deeper, widths={own[0].name: own[0].size + 3}), deeper)
    assert wide.report is not None and wide.report.ok


SEQUENCES = [
    pytest.param(name, style, after, kind, id=f"{name}-{style}-{kind}")
    for name, after, kind in (
        ("lstm_policy", "lstm", "recurrent"),
        ("gru_policy", "gru", "recurrent"),
        ("lstm_zero_state", "lstm", "recurrent"),
        ("nature_dqn", "fc", "recurrent"),
        ("transformer_prenorm", "layer.linear2", "attention"),
        ("multihead_pool", "embed", "attention"),
    )
    for style in zoo.STYLES
]


@pytest.mark.parametrize(("name", "style", "after", "kind"), SEQUENCES)
def test_recurrent_and_attention_layers_change_no_bit_whatever_their_state(
    name: str, style: str, after: str, kind: str
) -> None:
    before = original(name, style)
    plan = surgery.deepen(before.checkpoint, after, count=2, kind=kind)  # type: ignore[arg-type]
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert bool(plan.insertions[0].ports) == (kind == "recurrent" and name != "lstm_zero_state")
    deeper, rng = execute(plan, before.checkpoint), np.random.default_rng(0)
    session = runtime(deeper.model)
    for inputs, outputs in zip(before.batches, before.stored, strict=True):
        for state in (None, rng):
            assert difference(outputs, shrink(plan, session(grow(plan, inputs, state))))[0] == 0
    analysis = deeper.analysis
    own = [s.name for s in analysis.spaces if s.name.startswith(plan.insertions[0].name)]
    assert own and all(analysis.space(name).widenable for name in own)
    wide = surgery.widen(deeper, widths={own[0]: analysis.space(own[0]).size + 3})
    assert surgery.apply(wide, deeper).report.ok


def test_the_state_of_a_new_recurrent_layer_belongs_to_the_interface_and_runs(tmp_path) -> None:
    before = original("lstm_policy", "dynamo").checkpoint
    result = surgery.apply(surgery.deepen(before, "lstm", kind="recurrent", width=5), before)
    result.save(tmp_path / "two.onnx")
    again = surgery.load(tmp_path / "two.onnx")
    new = {port.name: port.kind for port in (*again.interface.inputs, *again.interface.outputs)}
    assert [n for n, kind in new.items() if kind == "state" and n.startswith("lstm2")] == [
        "lstm2.h", "lstm2.c", "lstm2.h_next", "lstm2.c_next",
    ]  # fmt: skip
    inputs = grow(result.plan, zoo.sample("lstm_policy", 4, np.random.default_rng(0)))
    outputs = runtime(again.model)(inputs)
    assert outputs["lstm2.h_next"].shape == inputs["lstm2.h"].shape == (1, 4, 5)
    assert np.abs(outputs["lstm2.h_next"]).max() > 0


def last_state(cell: str, steps: int, dtype: str = "float32", *, stateful: bool = True) -> surgery.Checkpoint:
    """A policy that reads only a cell's last state, as Stable-Baselines3's RecurrentPPO does."""
    rng, gates = np.random.default_rng(0), {"LSTM": 4, "GRU": 3, "RNN": 1}[cell]
    graph, kinds = GraphBuilder("last"), ("h", "c") if cell == "LSTM" else ("h",)
    x = graph.op("Transpose", graph.input("observation", (steps, 3), dtype), perm=[1, 0, 2])
    shapes = {"w": (1, gates * 5, 3), "r": (1, gates * 5, 5), "b": (1, 2 * gates * 5)}
    weights = [graph.parameter(f"cell.{k}", rng.standard_normal(n).astype(dtype)) for k, n in shapes.items()]
    first = graph.constant([0])
    states = [graph.op("Unsqueeze", graph.input(kind, (5,), dtype), first) for kind in kinds if stateful]
    _, *last = graph.ops(cell, x, *weights, None, *states, outputs=1 + len(kinds), hidden_size=5)
    after = [graph.op("Squeeze", value, first) for value in last]
    head = [rng.standard_normal(shape).astype(dtype) for shape in ((4, 5), (4,))]
    graph.output(graph.linear(after[0], "head", *head), "logits", (4,), dtype)
    for kind, value in zip(kinds, after, strict=True):
        if stateful:
            graph.output(value, f"{kind}_next", (5,), dtype)
    return surgery.Checkpoint(graph.model(), infer(graph.model()))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("cell", "steps", "stateful", "count"),
    [
        ("LSTM", 1, True, 1),
        ("LSTM", 4, True, 2),
        ("LSTM", 4, False, 1),
        ("GRU", 1, True, 2),
        ("RNN", 3, False, 1),
    ],
)
def test_a_cell_of_which_only_the_last_state_is_read_takes_another_one(
    cell: str, steps: int, stateful: bool, count: int, dtype: str
) -> None:
    before = last_state(cell, steps, dtype, stateful=stateful)
    result = surgery.apply(surgery.deepen(before, "cell", kind="recurrent", count=count, width=6), before)
    assert result.report is not None and result.report.ok and result.report.claim == "identical"
    new = [node for node in result.checkpoint.model.graph if node.op_type == cell][1:]
    assert len(new) == count
    assert all(any(v is not None for v in node.inputs[5:]) == stateful for node in new)


def test_the_first_recurrent_layer_of_a_model_in_doubles_is_proved() -> None:
    """onnxruntime evaluates the model, but not the layer: it has no recurrence of doubles."""
    rng, graph = np.random.default_rng(0), GraphBuilder("doubles")
    hidden = graph.linear(graph.input("observation", (3,), "float64"), "0", rng.standard_normal((5, 3)))
    graph.output(
        graph.linear(graph.op("Tanh", hidden), "2", rng.standard_normal((4, 5))), "q", (4,), "float64"
    )
    before = surgery.Checkpoint(graph.model(), infer(graph.model()))
    result = surgery.apply(surgery.deepen(before, "0", kind="recurrent"), before)
    assert result.report is not None and result.report.ok


# ---- optimizer ------------------------------------------------------------------------------------------------


def with_adam(checkpoint: surgery.Checkpoint) -> surgery.Checkpoint:
    """Adam state as of step 10, weights and biases in groups of their own."""
    rng = np.random.default_rng(0)
    names = [n for n, t in checkpoint.tensors.items() if t.dtype.is_floating_point() and len(t.shape)]
    slots = {
        slot: {n: ir.tensor(rng.random(tuple(checkpoint.tensors[n].shape), np.float32)) for n in names}
        for slot in ("exp_avg", "exp_avg_sq")
    }
    groups = tuple(
        ParamGroup(tuple(n for n in names if (len(checkpoint.tensors[n].shape) > 1) == wide), {"lr": lr})
        for wide, lr in ((True, 1e-3), (False, 1e-4))
    )
    return checkpoint.replace(optimizer=OptimizerState("adam", slots, dict.fromkeys(names, 10.0), groups))


@pytest.mark.parametrize(
    ("name", "after", "kind"),
    [("mlp_relu", "0", "identity"), ("impala", "stacks.0.2", "residual"), ("mlp_tanh", "2", "rezero")],
)
def test_new_parameters_start_fresh_and_old_slots_are_proved(
    name: str, after: str, kind: str, tmp_path
) -> None:
    before = with_adam(original(name, "dynamo").checkpoint)
    result = surgery.apply(surgery.deepen(before, after, kind=kind), before)  # type: ignore[arg-type]
    assert result.report is not None and result.report.ok
    slots_check = result.report.check("optimizer slots")
    assert slots_check is not None and slots_check.limit is not None
    result.save(tmp_path / "deeper.onnx")
    state = surgery.load(tmp_path / "deeper.onnx").optimizer
    assert state is not None and before.optimizer is not None
    (new,) = result.plan.insertions
    assert new.trained
    for tensor in new.trained:
        assert state.steps[tensor] == 0
        assert state.group(tensor).hyper["lr"] == 1e-3
        for slot in state.slots.values():
            assert not slot[tensor].numpy().any()
    for slot, held in before.optimizer.slots.items():
        for tensor, value in held.items():
            assert state.slots[slot][tensor].tobytes() == value.tobytes()
    assert sum(change.slots for change in result.plan.changes) == 2 * len(new.trained)
    told = surgery.recipe(result.plan, state)
    assert new.name in told.describe()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("auto", "attention")])
def test_every_kind_learns_from_the_first_step(kind: str) -> None:
    """Some new parameter has a slope at once, and none of the old ones loses its own."""
    checkpoint = original("mlp_relu", "dynamo").checkpoint
    plan = surgery.deepen(checkpoint, "0", kind=kind)  # type: ignore[arg-type]
    inputs, deeper = grow(plan, probes(checkpoint, 8, 0)), execute(plan, checkpoint)
    moving = {
        name: np.abs(_slope(deeper, name, inputs)).max()
        for name, tensor in deeper.tensors.items()
        if tensor.dtype.is_floating_point()
    }
    assert all(moving[name] > 0 for name in checkpoint.tensors if name in moving)
    assert any(moving[name] > 0 for name in moving if name not in checkpoint.tensors)


def _slope(checkpoint: surgery.Checkpoint, name: str, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    weight = checkpoint.tensors[name].numpy().astype(np.float64)
    direction = np.random.default_rng(0).standard_normal(weight.shape)
    moved = {name: weight + 1j * STEP * direction}
    outputs = run(checkpoint.model, inputs, dtype=np.complex128, parameters=moved)
    return np.concatenate([value.imag.reshape(-1) / STEP for value in outputs.values()])


# ---- names, places, copies ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "after", "wanted"),
    [
        ("mlp_relu", "0", ["5.weight", "5.bias"]),
        ("nature_dqn", "conv3", ["conv4.weight", "conv4.bias"]),
        ("nature_dqn", "fc", ["fc2.weight", "fc2.bias"]),
        (
            "impala",
            "stacks.1.3",
            [f"stacks.1.4.conv{k}.{kind}" for k in (1, 2) for kind in ("weight", "bias")],
        ),
        ("impala", "stacks.1.3.conv1", ["stacks.1.3.conv3.weight", "stacks.1.3.conv3.bias"]),
    ],
)
def test_names_follow_those_of_the_model(name: str, after: str, wanted: list[str]) -> None:
    plan = surgery.deepen(original(name, "dynamo").checkpoint, after)
    assert [tensor.name for tensor in plan.insertions[0].tensors] == wanted


def test_names_follow_those_of_other_frameworks() -> None:
    checkpoint = surgery.load(next(path for path in FIXTURES if path.parts[-2:] == ("tf2onnx", "mlp.onnx")))
    plan = surgery.deepen(checkpoint, "functional_1.fc1_1")
    assert plan.insertions[0].tensors[0].name == "functional_1/fc1_2/Cast/ReadVariableOp:0"


def test_names_can_be_given() -> None:
    checkpoint = original("mlp_relu", "dynamo").checkpoint
    plan = surgery.deepen(checkpoint, "0", count=2, name=["a.x", "a.y"])
    assert [new.name for new in plan.insertions] == ["a.x", "a.y"]
    assert set(execute(plan, checkpoint).tensors) >= {"a.x.weight", "a.y.bias"}


def test_a_layer_that_is_used_twice_is_followed_twice_by_one_new_layer() -> None:
    checkpoint = original("shared_encoder", "dynamo").checkpoint
    (new,) = surgery.deepen(checkpoint, "encoder.2").insertions
    assert len(new.places) == 2 and len(new.tensors) == 2


def test_a_residual_block_stands_in_the_stream_and_not_behind_its_activation() -> None:
    checkpoint = original("impala", "dynamo").checkpoint
    last, first = (surgery.deepen(checkpoint, f"stacks.{k}.3").insertions[0].places[0] for k in (2, 0))
    assert last.value == "add_180" and first.value == "add_56"
    assert [node.operator for node in last.nodes] == ["Relu", "Conv", "Relu", "Conv", "Add"]


def test_one_plan_deepens_every_network_of_the_same_graph() -> None:
    online = original("nature_dqn", "dynamo").checkpoint
    target = surgery.load(zoo.export("nature_dqn", "dynamo", seed=1))
    plan = Plan.from_json(json.loads(json.dumps(surgery.deepen(online, "fc", kind="residual").to_json())))
    first, second = (surgery.apply(plan, network).checkpoint for network in (online, target))
    for tensor in plan.insertions[0].tensors:
        assert first.tensors[tensor.name].tobytes() == second.tensors[tensor.name].tobytes()


def twins(rng: np.random.Generator) -> surgery.Checkpoint:
    """A Q-network and its target network side by side, as one framework checkpoint holds them; only one is trained."""
    graph = GraphBuilder("twins")
    x = graph.input("observation", (2, 8, 8))
    for prefix, output in (("q_net.", "q_values"), ("q_net_target.", "target")):
        h = x
        for k, size in ((0, (4, 2, 3, 3)), (2, (5, 4, 3, 3))):
            weights = [rng.standard_normal(shape).astype(np.float32) for shape in (size, size[:1])]
            h = graph.op("Relu", graph.convolution(h, f"{prefix}{k}", *weights))
        h = graph.op("Flatten", h)
        head = [rng.standard_normal(shape).astype(np.float32) for shape in ((3, 80), (3,))]
        graph.output(graph.linear(h, f"{prefix}5", *head), output, (3,))
    model = graph.model()
    checkpoint = surgery.Checkpoint(model, infer(model), copies={"q_net_target.": "q_net."})
    full = with_adam(checkpoint)
    state = full.optimizer
    assert state is not None
    own = [name for name in checkpoint.tensors if name.startswith("q_net.")]
    slots = {slot: {n: held[n] for n in own} for slot, held in state.slots.items()}
    groups = (ParamGroup(tuple(own), {"lr": 1e-3}),)
    return checkpoint.replace(optimizer=OptimizerState("adam", slots, dict.fromkeys(own, 10.0), groups))


@pytest.mark.parametrize("after", ["q_net.2", "q_net_target.2", ["q_net.2", "q_net_target.2"]], ids=str)
@pytest.mark.parametrize("kind", ["identity", "residual", "batchnorm"])
def test_a_target_network_gets_the_same_layer_with_the_same_numbers(
    after: str | list[str], kind: str
) -> None:
    before = twins(np.random.default_rng(0))
    result = surgery.apply(surgery.deepen(before, after, count=2, kind=kind), before)  # type: ignore[arg-type]
    assert result.report is not None and result.report.ok and result.report.max_abs_error == 0
    assert Plan.from_json(json.loads(json.dumps(result.plan.to_json()))) == result.plan
    new = [name for name in result.checkpoint.tensors if name not in before.tensors]
    ours = [name for name in new if name.startswith("q_net.")]
    assert ours and len(new) == 2 * len(ours)
    assert result.plan.insertions == surgery.deepen(before, "q_net.2", count=2, kind=kind).insertions  # type: ignore[arg-type]
    for name in ours:
        copy = result.checkpoint.tensors[name.replace("q_net.", "q_net_target.")]
        assert copy.tobytes() == result.checkpoint.tensors[name].tobytes()
    state = result.checkpoint.optimizer
    assert state is not None and all(name.startswith("q_net.") for name in state.parameters)
    wide = surgery.apply(surgery.widen(result.checkpoint, factor=1.5), result.checkpoint)
    assert wide.report is not None and wide.report.ok


def test_a_target_network_gets_the_same_kernels() -> None:
    before = twins(np.random.default_rng(0))
    result = surgery.apply(surgery.grow_kernel(before, {"q_net.0": 5}), before)
    assert result.report is not None and result.report.ok
    for prefix in ("q_net", "q_net_target"):
        assert tuple(result.checkpoint.tensors[f"{prefix}.0.weight"].shape) == (4, 2, 5, 5)


def test_a_value_that_its_copies_do_not_have_is_refused() -> None:
    before = twins(np.random.default_rng(0))
    conv = next(node for node in before.model.graph if node.op_type == "Conv")
    with pytest.raises(Refused, match="no counterpart in the copies"):
        surgery.deepen(before, str(conv.outputs[0].name), kind="residual")


def test_a_plan_of_before_there_were_new_layers_is_still_read() -> None:
    data = surgery.widen(original("mlp_relu", "dynamo").checkpoint, factor=2).to_json()
    del data["insertions"]
    assert Plan.from_json(data).insertions == ()


# ---- what must fail -------------------------------------------------------------------------------------------


def _with(plan: Plan, **changes: object) -> Plan:
    (new,) = plan.insertions
    return dataclasses.replace(plan, insertions=(dataclasses.replace(new, **changes),))


def test_an_identity_behind_a_tanh_is_caught() -> None:
    checkpoint = original("mlp_tanh", "dynamo").checkpoint
    plan = surgery.deepen(checkpoint, "0")
    dense = original("mlp_relu", "dynamo").checkpoint
    (new,) = surgery.deepen(dense, "0", kind="identity").insertions
    (place,) = new.places
    nodes = tuple(
        dataclasses.replace(
            node,
            operator="Tanh" if node.operator == "Relu" else node.operator,
            inputs=("tanh", *node.inputs[1:]) if node.inputs[0] == "relu" else node.inputs,
        )
        for node in place.nodes
    )
    wrong = dataclasses.replace(new, places=(dataclasses.replace(place, value="tanh", nodes=nodes),))
    with pytest.raises((ClaimFailed, ProofFailed)):
        surgery.apply(dataclasses.replace(plan, insertions=(wrong,)), checkpoint)


@pytest.mark.parametrize("kind", ["residual", "rezero", "batchnorm"])
def test_a_branch_that_does_not_start_at_zero_is_caught(kind: str) -> None:
    checkpoint = original("mlp_relu", "dynamo").checkpoint
    plan = surgery.deepen(checkpoint, "0", kind=kind)  # type: ignore[arg-type]
    tensors = tuple(
        dataclasses.replace(t, start="one") if t.start == "zero" else t for t in plan.insertions[0].tensors
    )
    with pytest.raises((ClaimFailed, ProofFailed)):
        surgery.apply(_with(plan, tensors=tensors), checkpoint)


def test_a_plan_cannot_be_applied_twice() -> None:
    checkpoint = original("mlp_relu", "dynamo").checkpoint
    plan = surgery.deepen(checkpoint, "0")
    with pytest.raises(PlanMismatch, match="already"):
        execute(plan, execute(plan, checkpoint))


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({"after": "0", "count": 0}, ArgumentError, "cannot insert 0 layers"),
        ({"after": "0", "count": -1}, ArgumentError, "cannot insert -1 layers"),
        ({"after": "0", "kind": "deep"}, ArgumentError, "unknown kind 'deep'"),
        ({"after": "0", "width": 0}, ArgumentError, "a branch of 0 units"),
        ({"after": "0", "kernel": 2}, ArgumentError, "no middle"),
        ({"after": "0", "name": ["a"], "count": 2}, ArgumentError, "2 new layers, but 1 names"),
        ({"after": "0", "name": "a..b"}, ArgumentError, "not the path of a module"),
        ({"after": "0", "name": "2"}, ArgumentError, "has a '2.bias' already"),
        ({"after": "nothing"}, UnknownName, "unknown layer 'nothing'"),
        ({"after": ""}, UnknownName, "unknown layer ''"),
    ],
)
def test_a_wrong_request_is_refused_in_words(
    how: Mapping[str, object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        surgery.deepen(original("mlp_relu", "dynamo").checkpoint, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "after", "kind", "says"),
    [
        ("mlp_tanh", "0", "identity", "Tanh a second time changes"),
        ("mlp_leaky_relu", "0", "identity", "LeakyRelu a second time changes"),
        ("mlp_relu", "4", "identity", "followed by no activation"),
        ("mixture_of_experts", "softmax", "auto", "Softmax"),
        ("gru_policy", "encoder", "batchnorm", "batch normalisation is for images"),
        ("nature_dqn", "conv1", "recurrent", "which of them is time"),
        ("lstm_bidirectional", "lstm", "recurrent", "runs in both directions"),
        ("lstm_cell_loop", "encoder", "recurrent", "several steps of time"),
        ("mlp_relu", "0", "attention", "not a sequence of vectors"),
        ("entity_attention", "embed", "attention", "would not obey"),
        ("lstm_policy", "encoder", "attention", "look into the future"),
        ("tied_embedding", "embedding", "auto", "used in two ways"),
        ("gru_step", "cell", "auto", "39 gates for the 13 units of a cell that is written out"),
        ("lstm_cell_loop", "cell", "recurrent", "52 gates for the 13 units of a cell that is written out"),
    ],
)
def test_what_is_not_exact_is_refused_by_name(name: str, after: str, kind: str, says: str) -> None:
    with pytest.raises(Refused, match=says):
        surgery.deepen(original(name, "dynamo").checkpoint, after, kind=kind)  # type: ignore[arg-type]


def test_a_layer_within_a_loop_is_refused_by_name() -> None:
    path = next(path for path in FIXTURES if path.stem == "scan")
    checkpoint = surgery.load(path)
    inside = [layer.module for layer in layers(checkpoint.analysis) if layer.node.op_type == "Loop"]
    with pytest.raises(Refused, match="Loop"):
        surgery.deepen(checkpoint, inside[0])


@pytest.mark.parametrize(
    "damage",
    [
        lambda new: new.update(places=3),
        lambda new: new["places"][0].update(result="elsewhere"),
        lambda new: new["places"][0]["nodes"][0].update(operator="rm -rf"),
        lambda new: new["places"][0]["nodes"][0].update(outputs=[]),
        lambda new: new["tensors"][0].update(shape=[1 << 40, 1 << 40]),
        lambda new: new["tensors"][0].update(start="random"),
        lambda new: new["tensors"][0].update(shape=[3, 4]),
        lambda new: new["tensors"][0].update(deviation=float("nan")),
        lambda new: new["tensors"][0].update(dtype="object"),
    ],
)
def test_a_damaged_plan_is_refused(damage) -> None:
    data = json.loads(json.dumps(surgery.deepen(original("mlp_relu", "dynamo").checkpoint, "0").to_json()))
    damage(data["insertions"][0])
    with pytest.raises(PlanMismatch):
        Plan.from_json(data)


# ---- the command line ------------------------------------------------------------------------------------------


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    path = tmp_path / "agent.onnx"
    surgery.save(with_adam(original("nature_nhwc", "dynamo").checkpoint), path)
    return path


def test_the_verbs_write_what_the_library_makes(agent: Path, tmp_path: Path, capsys) -> None:
    deeper, larger = tmp_path / "deeper.onnx", tmp_path / "larger.onnx"
    assert main(["deepen", str(agent), "--after", "conv2", "--count", "2", "-o", str(deeper)]) == 0
    said = capsys.readouterr().out
    assert "new conv3 11 · new conv4 11 · 4 tensors, 8 slots · outputs equal (max |Δ| 0)" in said
    assert "learns from the first step" in said
    assert main(["kernel", str(deeper), "--size", "conv1=5x6", "-o", str(larger), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["exact"] and report["claim"] == "equivalent"
    assert [(c["space"], c["from"], c["to"]) for c in report["changes"]] == [
        ("conv1.kernel[0]", 4, 5),
        ("conv1.kernel[1]", 4, 6),
    ]
    assert main(["verify", str(agent), str(larger)]) == 0
    assert [step.operation for step in surgery.load(larger).lineage] == ["deepen", "grow_kernel"]


def test_a_plan_that_is_printed_can_be_applied(agent: Path, tmp_path: Path, capsys) -> None:
    words = ["deepen", str(agent), "--after", "fc", "--kind", "residual", "--width", "5", "--name", "extra"]
    assert main([*words, "--dry-run", "--json"]) == 0
    (tmp_path / "plan.json").write_text(capsys.readouterr().out)
    assert main(["apply", str(tmp_path / "plan.json"), str(agent), "-o", str(tmp_path / "x.onnx")]) == 0
    assert "extra.fc1.weight" in surgery.load(tmp_path / "x.onnx").tensors


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["--after", "conv9"], 2, "unknown layer 'conv9'"),
        (["--after", "conv1", "--count", "0"], 2, "cannot insert 0 layers"),
        (["--after", "q", "--kind", "identity"], 1, "followed by no activation"),
        (["--after", "conv1", "--kernel", "2"], 2, "no middle"),
        ([], 2, "--after"),
    ],
)
def test_a_command_that_cannot_be_done_writes_nothing(
    agent: Path, words: list[str], status: int, says: str, tmp_path: Path, capsys
) -> None:
    target = tmp_path / "x.onnx"
    assert main(["deepen", str(agent), *words, "-o", str(target)]) == status
    assert says in capsys.readouterr().err and not target.exists()


def test_an_insertion_describes_itself() -> None:
    plan = surgery.deepen(original("mlp_relu", "dynamo").checkpoint, "0")
    (new,) = plan.insertions
    assert isinstance(new, Insertion)
    assert new.describe() in plan.describe() and "behind 'relu'" in new.describe()
