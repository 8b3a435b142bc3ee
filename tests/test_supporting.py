"""Operations that others rest on: units permuted, tensors renamed and untied, batch normalisations unfolded."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import surgery
from surgery.builder import GraphBuilder
from surgery.edits.execute import execute
from surgery.edits.plan import Plan
from surgery.edits.ports import grow, shrink
from surgery.errors import ArgumentError, ClaimFailed, PlanMismatch, ProofFailed, Refused, UnknownName
from surgery.graph.layers import layers
from surgery.numeric import run
from surgery.port_kinds import infer
from surgery.verify.outputs import difference, runtime, session
from tests import zoo
from tests.originals import FLOAT64, original, relative
from tests.test_deepen import with_adam

DYNAMO = [name for name, net in zoo.NETS.items() if "dynamo" not in net.impossible]


def through_json(plan: Plan) -> Plan:
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    return again


# ---- permute --------------------------------------------------------------------------------------------------


def orders(analysis: surgery.graph.spaces.Analysis, seed: int) -> dict[str, list[int]]:  # type: ignore[name-defined]
    rng = np.random.default_rng(seed)
    free = [s for s in analysis.spaces if not s.reasons and not s.linked]  # shuffled units keep their parts
    return {s.name: rng.permutation(s.size).tolist() for s in free}


@pytest.mark.parametrize("name", DYNAMO)
def test_permuted_units_compute_the_same(name: str) -> None:
    before = original(name, "dynamo")
    plan = through_json(surgery.permute(before.checkpoint, orders(before.analysis, 0)))
    exact = execute(plan, before.checkpoint, double=True)
    found = shrink(plan, run(exact.model, grow(plan, before.batches[0])))
    assert relative(before.exact, found) <= FLOAT64


@pytest.mark.parametrize("name", ["impala", "lstm_policy", "transformer", "groupnorm_cnn"])
def test_a_permutation_and_its_inverse_give_back_every_bit_with_slots(name: str) -> None:
    before = with_adam(original(name, "dynamo").checkpoint)
    wanted = orders(original(name, "dynamo").analysis, 1)
    there = surgery.apply(surgery.permute(before, wanted), before)
    assert there.report is not None and there.report.ok
    assert there.report.check("optimizer slots").limit is not None
    moved = [n for n, t in before.tensors.items() if there.checkpoint.tensors[n].tobytes() != t.tobytes()]
    assert moved
    # spaces may be named after other parameters, but not their axes
    inverse = {space: np.argsort(order).tolist() for space, order in wanted.items()}
    back = execute(surgery.permute(there.checkpoint, inverse), there.checkpoint)
    assert all(back.tensors[n].tobytes() == t.tobytes() for n, t in before.tensors.items())
    for slot, held in before.optimizer.slots.items():
        assert all(back.optimizer.slots[slot][n].tobytes() == t.tobytes() for n, t in held.items())


@pytest.mark.parametrize(
    ("wanted", "error", "says"),
    [
        ({}, ArgumentError, "nothing to permute"),
        ({"0": [0, 1]}, ArgumentError, "not an order of the 13 units"),
        ({"0": [0] * 13}, ArgumentError, "not an order"),
        ({"zero": [0]}, UnknownName, "unknown space"),
        ({"4": [2, 1, 0, 3, 4, 5]}, ArgumentError, "not an order"),
    ],
)
def test_what_is_no_permutation_is_refused(wanted, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        surgery.permute(original("mlp_relu", "dynamo").checkpoint, wanted)


def test_actions_keep_their_places() -> None:
    before = original("mlp_relu", "dynamo")
    (space,) = [s for s in before.analysis.spaces if "output" in s.kinds]
    with pytest.raises(Refused, match="cannot change places"):
        surgery.permute(before.checkpoint, {space.name: range(space.size)})


# ---- rename ---------------------------------------------------------------------------------------------------


def test_renamed_tensors_take_their_state_along(tmp_path) -> None:
    before = with_adam(original("impala", "dynamo").checkpoint)
    plan = through_json(surgery.rename(before, {"stacks.0": "trunk.first", "fc.weight": "dense.weight"}))
    result = surgery.apply(plan, before)
    assert result.report is not None and result.report.ok and result.report.max_abs_error == 0
    assert result.report.check("optimizer slots").limit is not None
    result.save(tmp_path / "x.onnx")
    again = surgery.load(tmp_path / "x.onnx")
    assert "trunk.first.0.weight" in again.tensors and "stacks.0.0.weight" not in again.tensors
    old, new = before.optimizer, again.optimizer
    assert len(new.parameters) == len(old.parameters)
    for slot, held in old.slots.items():
        assert new.slots[slot]["dense.weight"].tobytes() == held["fc.weight"].tobytes()
    assert new.group("trunk.first.0.weight").hyper["lr"] == 1e-3


def test_names_can_be_exchanged() -> None:
    before = original("actor_critic", "dynamo").checkpoint
    plan = surgery.rename(before, {"actor.0.bias": "critic.0.bias", "critic.0.bias": "actor.0.bias"})
    after = surgery.apply(plan, before).checkpoint
    assert after.tensors["critic.0.bias"].tobytes() == before.tensors["actor.0.bias"].tobytes()


@pytest.mark.parametrize(
    ("names", "error", "says"),
    [
        ({}, ArgumentError, "nothing to rename"),
        ({"0": "0"}, ArgumentError, "nothing to rename"),
        ({"7": "8"}, UnknownName, "unknown parameter '7'"),
        ({"0": "2"}, ArgumentError, "two tensors would be called '2.bias'"),
        ({"0": ""}, ArgumentError, "not a name"),
        ({"0.weight": "relu"}, ArgumentError, "two tensors would be called 'relu'"),
    ],
)
def test_a_name_that_does_not_fit_is_refused(names, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        surgery.rename(original("mlp_relu", "dynamo").checkpoint, names)


# ---- untie ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tensor"), [("tied_embedding", "embedding.weight"), ("shared_encoder", "encoder.0.weight")]
)
def test_untied_tensors_are_equal_at_first_and_start_anew(name: str, tensor: str) -> None:
    before = with_adam(original(name, "dynamo").checkpoint)
    result = surgery.apply(through_json(surgery.untie(before, tensor)), before)
    assert result.report is not None and result.report.ok and result.report.max_abs_error == 0
    apart = [use.name for use in result.plan.rewiring.untied]
    assert apart
    state = result.checkpoint.optimizer
    for one in (tensor, *apart):
        assert result.checkpoint.tensors[one].tobytes() == before.tensors[tensor].tobytes()
        assert state.steps[one] == 0 and not state.slots["exp_avg"][one].numpy().any()
    (kept,) = {n for n in state.slots["exp_avg"] if n == "fc.bias" or n == "mlp.0.bias"}
    assert state.steps[kept] == 10


def test_what_was_tied_can_be_widened_when_it_is_not() -> None:
    before = original("tied_embedding", "dynamo").checkpoint
    frozen = {s.name: s.reason for s in surgery.analyse(before.model).spaces if not s.widenable}
    after = surgery.apply(surgery.untie(before, "embedding.weight"), before).checkpoint
    free = [s for s in surgery.analyse(after.model).spaces if s.widenable and s.name in frozen]
    assert free
    assert surgery.apply(surgery.widen(after, widths={free[0].name: 20}), after).report.ok


@pytest.mark.parametrize(
    ("tensor", "error", "says"),
    [("0.weight", ArgumentError, "is read once"), ("9.weight", UnknownName, "unknown tensor")],
)
def test_what_is_not_tied_is_refused(tensor: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        surgery.untie(original("mlp_relu", "dynamo").checkpoint, tensor)


def test_a_plan_that_does_not_fit_is_refused() -> None:
    checkpoint = original("tied_embedding", "dynamo").checkpoint
    plan = surgery.untie(checkpoint, "embedding.weight")
    (use,) = plan.rewiring.untied
    wrong = dataclasses.replace(plan.rewiring, untied=(dataclasses.replace(use, operand=0),))
    for broken in (dataclasses.replace(plan, rewiring=wrong), surgery.rename(checkpoint, {"mlp.0": "x"})):
        with pytest.raises(PlanMismatch):
            execute(broken, original("mlp_relu", "dynamo").checkpoint)


# ---- batch normalisation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", zoo.STYLES)
@pytest.mark.parametrize("name", ["nature_nhwc", "impala", "mlp_tanh"])
def test_an_unfolded_batch_normalisation_does_nothing_at_first(name: str, style: str) -> None:
    before = original(name, style)
    for module in list(dict.fromkeys(layer.module for layer in layers(before.analysis)))[:3]:
        plan = through_json(surgery.unfold_batchnorm(before.checkpoint, module))
        exact = run(execute(plan, before.checkpoint, double=True).model, before.batches[0])
        assert relative(before.exact, exact) <= FLOAT64
        stored = runtime(execute(plan, before.checkpoint).model)(dict(before.batches[0]))
        assert difference(before.stored[0], stored)[1] <= before.limit


def test_it_stands_before_the_activation_and_its_parameters_are_trained() -> None:
    before = with_adam(original("impala", "dynamo").checkpoint)
    result = surgery.apply(surgery.unfold_batchnorm(before, "stacks.0.2.conv1"), before)
    assert result.report.ok
    (new,) = result.plan.insertions
    assert new.name == "stacks.0.2.bn1" and new.places[0].value == "conv2d_1"
    assert new.trained == ("stacks.0.2.bn1.weight", "stacks.0.2.bn1.bias")
    assert result.checkpoint.optimizer.steps["stacks.0.2.bn1.weight"] == 0
    with pytest.raises(Refused, match="has a batch normalisation"):
        surgery.unfold_batchnorm(result.checkpoint, "stacks.0.2.conv1")


def test_a_scale_that_is_not_the_one_of_the_identity_is_caught() -> None:
    before = original("impala", "dynamo").checkpoint
    plan = surgery.unfold_batchnorm(before, "stacks.0.0")
    (new,) = plan.insertions
    tensors = tuple(dataclasses.replace(t, numbers=(1.1,)) if t.start == "fill" else t for t in new.tensors)
    with pytest.raises((ClaimFailed, ProofFailed)):
        surgery.apply(
            dataclasses.replace(plan, insertions=(dataclasses.replace(new, tensors=tensors),)), before
        )


def test_a_sequence_of_vectors_takes_no_batch_normalisation() -> None:
    with pytest.raises(Refused, match="batch normalisation is for images"):
        surgery.unfold_batchnorm(original("lstm_policy", "dynamo").checkpoint, "encoder")


def test_a_graph_of_our_own_builder_takes_one() -> None:
    rng, graph = np.random.default_rng(0), GraphBuilder("dense")
    x = graph.input("observation", (3,))
    weights = rng.standard_normal((4, 3)).astype(np.float32), rng.standard_normal(4).astype(np.float32)
    graph.output(graph.op("Relu", graph.linear(x, "fc1", *weights)), "q_values", (4,))
    model = graph.model()
    checkpoint = surgery.Checkpoint(model, infer(model))
    assert surgery.apply(surgery.unfold_batchnorm(checkpoint, "fc1"), checkpoint).report.ok


@pytest.mark.parametrize("style", ["dynamo"])
@pytest.mark.parametrize("name", ["batchnorm_mlp", "batchnorm_resnet", "mobilenet"])
def test_a_folded_batch_normalisation_leaves_the_function(name: str, style: str) -> None:
    before, folded = original(name, style), 0
    for module in dict.fromkeys(layer.module for layer in layers(before.analysis)):
        try:
            plan = through_json(surgery.fold_batchnorm(before.checkpoint, module))
        except Refused as refusal:
            assert module in refusal.message
            continue
        exact = run(execute(plan, before.checkpoint, double=True).model, before.batches[0])
        assert relative(before.exact, exact) <= FLOAT64
        assert surgery.apply(plan, before.checkpoint).report.ok
        folded += 1
    assert folded


@pytest.mark.parametrize("last", [False, True], ids=["", "output"])
@pytest.mark.parametrize("layer", ["Gemm", "Gemm, transposed", "Conv", "ConvTranspose"])
def test_a_batch_normalisation_is_folded_along_the_channels_of_every_layer(layer: str, last: bool) -> None:
    """3 numbers or channels become 4; the ε is the standard's, and may be all that is left of a variance."""
    rng, graph = np.random.default_rng(0), GraphBuilder("folded")
    flat = layer.startswith("Gemm")
    x = graph.input("observation", (3,) if flat else (3, 4, 4))
    shape = {"Gemm": (3, 4), "ConvTranspose": (3, 4, 2, 2)}.get(layer, (4, 3) if flat else (4, 3, 2, 2))
    weight = graph.parameter("body.weight", rng.standard_normal(shape).astype(np.float32))
    bias = graph.parameter("body.bias", rng.standard_normal(4).astype(np.float32))
    form = {"transB": int(shape == (4, 3))} if flat else {}
    x = graph.op(layer.split(",")[0], x, weight, bias, **form)
    statistics = {
        "weight": 1 + rng.random(4),
        "bias": rng.random(4),
        "mean": rng.random(4),
        "var": [1, 0, 1e-5, 1e-3],
    }
    norm = [graph.parameter(f"norm.{k}", np.array(array, np.float32)) for k, array in statistics.items()]
    x = graph.op("BatchNormalization", x, *norm)
    if not last:
        x = graph.op("Relu", x if flat else graph.op("GlobalAveragePool", x))
        head = rng.standard_normal((2, 4)).astype(np.float32), np.zeros(2, np.float32)
        x = graph.linear(graph.op("Flatten", x), "head", *head)
    sides = {"Conv": (3, 3), "ConvTranspose": (5, 5)}.get(layer, ())
    graph.output(x, "q_values", (4, *sides) if last else (2,))
    model = graph.model()
    checkpoint = surgery.Checkpoint(model, infer(model))
    result = surgery.apply(surgery.fold_batchnorm(checkpoint, "body"), checkpoint)
    assert result.report.ok and len(result.checkpoint.tensors) == (2 if last else 4)


def test_slots_of_a_folded_weight_are_those_of_its_new_gradient() -> None:
    """J_new v = J_old Eᵀv: along the weight v/s, and along β what the bias is moved by."""
    before = with_adam(original("batchnorm_resnet", "dynamo").checkpoint)
    module = next(
        layer.module
        for layer in layers(original("batchnorm_resnet", "dynamo").analysis)
        if _folds(before, layer.module)
    )
    plan = surgery.fold_batchnorm(before, module)
    (norm,) = plan.rewiring.folded
    after, exact = execute(plan, before), execute(plan, before, double=True)
    factor, rng = norm.factor(before.tensors), np.random.default_rng(0)
    v, u = rng.standard_normal(tuple(before.tensors[norm.weight].shape)), rng.standard_normal(len(factor))
    s = factor.reshape(-1, *([1] * (v.ndim - 1)))
    inputs = original("batchnorm_resnet", "dynamo").batches[0]
    old = _slope(before, inputs, {norm.weight: v / s, norm.shift: u})
    new = _slope(exact, inputs, {norm.weight: v, norm.bias: u})
    assert relative(old, new) <= 1e-12
    slots, was = after.optimizer.slots, before.optimizer.slots
    np.testing.assert_allclose(
        slots["exp_avg"][norm.weight].numpy(), was["exp_avg"][norm.weight].numpy() / s, rtol=1e-6
    )
    np.testing.assert_allclose(
        slots["exp_avg_sq"][norm.weight].numpy(), was["exp_avg_sq"][norm.weight].numpy() / s**2, rtol=1e-6
    )
    assert slots["exp_avg"][norm.bias].tobytes() == was["exp_avg"][norm.shift].tobytes()
    assert not {norm.scale, norm.shift, norm.mean} & {*after.tensors, *after.optimizer.parameters}


def _folds(checkpoint: surgery.Checkpoint, module: str) -> bool:
    try:
        return bool(surgery.fold_batchnorm(checkpoint, module))
    except Refused:
        return False


def _slope(checkpoint: surgery.Checkpoint, inputs, moves) -> dict[str, np.ndarray]:
    step = 1e-30
    moved = {n: checkpoint.tensors[n].numpy().astype(np.float64) + 1j * step * d for n, d in moves.items()}
    outputs = run(checkpoint.model, inputs, dtype=np.complex128, parameters=moved)
    return {name: value.imag / step for name, value in outputs.items()}


def test_folding_undoes_unfolding() -> None:
    before = original("impala", "dynamo").checkpoint
    there = surgery.apply(surgery.unfold_batchnorm(before, "stacks.0.0"), before).checkpoint
    back = surgery.apply(surgery.fold_batchnorm(there, "stacks.0.0"), there).checkpoint
    assert set(back.tensors) == set(before.tensors)
    for name, tensor in before.tensors.items():
        np.testing.assert_allclose(back.tensors[name].numpy(), tensor.numpy(), rtol=1e-6, atol=1e-9)
    with pytest.raises(Refused, match="not directly followed by a single batch normalisation"):
        surgery.fold_batchnorm(back, "stacks.0.0")


# ---- fused layers -----------------------------------------------------------------------------------------------

FUSED = {
    "gated": ("gate1", (13, 13)),
    "film": ("film2", (7, 7)),
    "transformer": ("layer.self_attn", (12, 12, 12)),
    "multi_discrete": ("logits", (3, 5, 2)),
    "lstm_policy": ("lstm", (13, 13, 13, 13)),
    "gru_policy": ("gru", (13, 13, 13)),
    "lstm_cell_loop": ("cell", (13, 13, 13, 13)),
}


FUSED_FILES = [(name, "dynamo") for name in FUSED] + [
    (name, "dynamo-optimized") for name in FUSED if name not in ("lstm_policy", "gru_policy")
]


@pytest.mark.parametrize(("name", "style"), FUSED_FILES)
def test_parts_of_a_fused_layer_are_its_rows_with_their_slots(name: str, style: str) -> None:
    layer, sizes = FUSED[name]
    before = with_adam(original(name, style).checkpoint)
    result = surgery.apply(through_json(surgery.split_fused(before, layer)), before)
    assert result.report is not None and result.report.ok
    after, parted = result.checkpoint, result.plan.rewiring.parted
    assert parted
    for one in parted:
        assert one.sizes == sizes and one.tensor not in {*after.tensors, *after.optimizer.parameters}
        for old, new in [(before.tensors, after.tensors)] + [
            (before.optimizer.slots[s], after.optimizer.slots[s]) for s in before.optimizer.slots
        ]:
            joined = np.concatenate([new[part].numpy() for part in one.names], one.axis)
            assert joined.tobytes() == old[one.tensor].tobytes()
        for part in one.names:
            assert after.optimizer.steps[part] == before.optimizer.steps[one.tensor]
            assert after.optimizer.group(part).hyper == before.optimizer.group(one.tensor).hyper
    (one, _), (two, _) = (session(c.model, optimise=True) for c in (before, after))
    for batch in original(name, style).batches:
        old, new = (opened.run(None, dict(batch)) for opened in (one, two))
        assert [x.tobytes() for x in old] == [x.tobytes() for x in new]


def test_gates_of_a_recurrent_node_are_cut_by_no_node() -> None:
    with pytest.raises(Refused, match="not fused"):
        surgery.split_fused(original("lstm_policy", "dynamo-optimized").checkpoint, "lstm")


@pytest.mark.parametrize("name", ["gated", "film", "gru_policy"])
def test_what_was_split_can_be_saved_and_widened(tmp_path, name: str) -> None:
    before = original(name, "dynamo").checkpoint
    split = surgery.apply(surgery.split_fused(before, FUSED[name][0]), before)
    split.save(tmp_path / "split.onnx")
    again = surgery.load(tmp_path / "split.onnx")
    assert set(again.tensors) == set(split.checkpoint.tensors)
    assert surgery.apply(surgery.widen(again, factor=2), again).report.ok


def test_parts_get_the_names_that_they_are_given() -> None:
    before = original("transformer", "dynamo").checkpoint
    plan = surgery.split_fused(before, "layer.self_attn", parts=("q", "k", "v"))
    assert plan.rewiring.parted[0].names[0] == "layer.self_attn.q.in_proj_weight"
    with pytest.raises(ArgumentError, match="need 3 different names"):
        surgery.split_fused(before, "layer.self_attn", parts=("q", "k"))


@pytest.mark.parametrize(
    ("layer", "error", "says"), [("0", Refused, "not fused"), ("nine", UnknownName, "unknown layer")]
)
def test_what_is_not_fused_is_refused(layer: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        surgery.split_fused(original("mlp_relu", "dynamo").checkpoint, layer)


def test_two_kernels_in_one_are_no_fused_units() -> None:
    graph = GraphBuilder("kernels")
    x = graph.input("observation", (3, 8, 8))
    weight = graph.parameter("two.weight", np.ones((4, 3, 6, 3), np.float32))
    kernels = graph.ops("Split", weight, outputs=2, axis=2, num_outputs=2)
    graph.output(graph.op("Add", *(graph.op("Conv", x, kernel) for kernel in kernels)), "q_values", (4, 6, 6))
    model = graph.model()
    with pytest.raises(Refused, match="not fused"):
        surgery.split_fused(surgery.Checkpoint(model, infer(model)), "two")


def test_copies_of_a_fused_layer_are_split_with_it() -> None:
    rng, graph = np.random.default_rng(0), GraphBuilder("copies")
    x = graph.input("observation", (3,))
    for prefix in ("", "target.", "best.target."):
        weights = rng.standard_normal((8, 3)).astype(np.float32), rng.standard_normal(8).astype(np.float32)
        one, two = graph.ops(
            "Split", graph.linear(x, f"{prefix}gate", *weights), outputs=2, axis=1, num_outputs=2
        )
        gated = graph.op("Mul", one, graph.op("Sigmoid", two))
        last = rng.standard_normal((2, 4)).astype(np.float32), rng.standard_normal(2).astype(np.float32)
        graph.output(graph.linear(gated, f"{prefix}out", *last), f"{prefix}q_values", (2,))
    model = graph.model()
    checkpoint = surgery.Checkpoint(model, infer(model), copies={"target.": "", "best.target.": "target."})
    for named in ("gate", "target.gate"):
        result = surgery.apply(surgery.split_fused(checkpoint, named), checkpoint)
        assert result.report.ok
        assert {f"{p}gate.1.bias" for p in ("", "target.", "best.target.")} <= set(result.checkpoint.tensors)
