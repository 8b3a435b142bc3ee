"""Load and save lose nothing, change nothing that they are given, and hold no model in memory."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import safetensors.numpy
from onnx import ModelProto, TensorProto, helper, numpy_helper

from surgery.annotate import annotate
from surgery.checkpoint import Checkpoint, check_finite
from surgery.errors import FileError, GraphError
from surgery.interface import LineageStep, PortPatch
from surgery.metadata import METADATA_KEY
from surgery.model_file import all_tensors
from surgery.optimizer import OptimizerState, ParamGroup
from surgery.storage import load, save
from surgery.tensors import digest, equal
from tests.small_models import MODELS, array, mlp, write

AGENTS = ("cartpole-dqn", "minatar-breakout-dqn", "breakout-ppo")


def state_of(checkpoint: Checkpoint, seed: int = 0) -> OptimizerState:
    """Adam state for every float tensor of a checkpoint."""
    rng = np.random.default_rng(seed)
    shapes = {name: t.shape.numpy() for name, t in checkpoint.tensors.items() if t.dtype.is_floating_point()}
    slots = {
        slot: {name: ir.tensor(rng.random(shape, "f4"), name=name) for name, shape in shapes.items()}
        for slot in ("exp_avg", "exp_avg_sq")
    }
    groups = (ParamGroup(tuple(shapes), {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8}),)
    return OptimizerState("adam", slots, dict.fromkeys(shapes, 10.0), groups)


def without_our_entry(model: ModelProto) -> ModelProto:
    kept = [entry for entry in model.metadata_props if entry.key != METADATA_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    return model


def canonical(model: ModelProto) -> ModelProto:
    """The same model without what a reader has to ignore: order of opsets, how tensors are encoded.

    Value information of initializers goes too: it says again what their tensors say, and onnx-ir adds it.
    """
    model = without_our_entry(onnx.ModelProto.FromString(model.SerializeToString()))
    model.opset_import.sort(key=lambda opset: opset.domain)
    graphs = [model.graph]
    for node in itertools.chain(model.graph.node, *(function.node for function in model.functions)):
        for attribute in node.attribute:
            graphs += [attribute.g] if attribute.HasField("g") else []
            if attribute.HasField("t"):
                attribute.t.CopyFrom(raw(attribute.t))
    for graph in graphs:
        names = {tensor.name for tensor in graph.initializer}
        tensors = [raw(tensor) for tensor in graph.initializer]
        del graph.initializer[:]
        graph.initializer.extend(tensors)
        kept = sorted((v for v in graph.value_info if v.name not in names), key=lambda info: info.name)
        del graph.value_info[:]
        graph.value_info.extend(kept)
    return model


def raw(tensor: TensorProto) -> TensorProto:
    """A tensor with its data as bytes."""
    if tensor.data_type == TensorProto.STRING:
        return tensor
    encoded = ir.to_proto(ir.Tensor(ir.from_proto(tensor).numpy(), dtype=ir.DataType(tensor.data_type)))
    encoded.name, encoded.doc_string = tensor.name, tensor.doc_string
    return encoded


@pytest.mark.parametrize("source", [None, "weights.bin"], ids=["inside", "outside"])
@pytest.mark.parametrize("name", MODELS)
def test_load_and_save_keep_the_whole_model(tmp_path, name, source):
    original = MODELS[name]()
    path = write(MODELS[name](), tmp_path / "in.onnx", external=source)
    save(load(path), tmp_path / "out.onnx", external=False)
    assert canonical(onnx.load(tmp_path / "out.onnx")) == canonical(original)


@pytest.mark.parametrize("name", [*MODELS, *AGENTS])
def test_digest_is_the_same_wherever_the_weights_are(tmp_path, name, teachers):
    path = teachers / f"{name}.onnx" if name in AGENTS else write(MODELS[name](), tmp_path / "in.onnx")
    checkpoint = load(path)
    before = checkpoint.digest()
    for external in (False, True):
        save(checkpoint, tmp_path / f"{external}.onnx", external=external)
        assert load(tmp_path / f"{external}.onnx").digest() == before
        onnx.checker.check_model(tmp_path / f"{external}.onnx")
    assert checkpoint.digest() == before
    assert not checkpoint.model.metadata_props.get(METADATA_KEY)


CHANGES = {
    "a doc string": (lambda m: setattr(m.graph.node[0], "doc_string", "other"), True),
    "the producer": (lambda m: setattr(m, "producer_name", "other"), True),
    "metadata": (lambda m: helper.set_model_props(m, {"a": "b"}), True),
    "a node's name": (lambda m: setattr(m.graph.node[1], "name", "other"), True),
    "one weight": (lambda m: m.graph.initializer[0].CopyFrom(_nudged(m.graph.initializer[0])), False),
    "an attribute": (lambda m: m.graph.node[0].attribute.append(helper.make_attribute("alpha", 0.5)), False),
    "an operator": (lambda m: setattr(m.graph.node[1], "op_type", "Tanh"), False),
    "the opset": (lambda m: setattr(m.opset_import[0], "version", 19), False),
    "an output": (lambda m: setattr(m.graph.output[0], "name", "h"), False),
}


def _nudged(tensor: TensorProto) -> TensorProto:
    value = numpy_helper.to_array(tensor).copy()
    value.flat[0] = np.nextafter(value.flat[0], np.float32(9))
    return numpy_helper.from_array(value, tensor.name)


def test_a_checkpoint_says_in_one_line_what_it_is(teachers):
    path = teachers / "cartpole-dqn.onnx"
    assert repr(load(path)) == f"<Checkpoint {path}: observation → q_values · 6 tensors>"


@pytest.mark.parametrize("what", CHANGES)
def test_digest_sees_what_is_computed_and_nothing_else(tmp_path, what):
    change, same = CHANGES[what]
    model = mlp()
    change(model)
    before, after = (load(write(m, tmp_path / f"{i}.onnx")) for i, m in enumerate((mlp(), model)))
    assert (before.digest() == after.digest()) == same


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("name", AGENTS)
def test_saved_agents_compute_the_same_bits(tmp_path, teachers, name, external, rng):
    save(load(teachers / f"{name}.onnx"), tmp_path / "out.onnx", external=external)
    sessions = [ort.InferenceSession(path) for path in (teachers / f"{name}.onnx", tmp_path / "out.onnx")]
    (port,) = sessions[0].get_inputs()
    inputs = {port.name: rng.random((3, *port.shape[1:]), "f4")}
    for old, new in zip(*(session.run(None, inputs) for session in sessions), strict=True):
        assert np.array_equal(old, new)


@pytest.mark.parametrize("external", [False, True])
def test_everything_that_belongs_to_a_checkpoint_comes_back(tmp_path, external):
    checkpoint = load(write(mlp(), tmp_path / "in.onnx"))
    checkpoint = annotate(
        checkpoint.replace(
            optimizer=state_of(checkpoint),
            lineage=(
                LineageStep("train", ("0" * 64,), {"torch": "2"}, 3, {"steps": [1, 2]}, {"error": 1e-7}),
            ),
            source={"algorithm": "dqn", "nested": {"layers": [1, 2, None, True]}},
        ),
        inputs={"x": PortPatch("observation", 0, [1, 2, 3, 4], ["a", "b", "c", "d"])},
        outputs={"y": PortPatch("q_values", labels=["left", "right"])},
        environment="CartPole-v1",
        settings={"sticky_actions": 0.25, "action_set": [0, 1], "own": {"deep": [None]}},
    )
    written = save(checkpoint, tmp_path / "out.onnx", external=external)
    again = load(tmp_path / "out.onnx")
    assert written[-1] == tmp_path / "out.onnx"
    assert len(written) == 2 + external
    for part in ("interface", "environment", "lineage", "source"):
        assert getattr(again, part) == getattr(checkpoint, part)
    assert again.optimizer is not None
    assert again.optimizer.groups == checkpoint.optimizer.groups
    assert again.optimizer.steps == checkpoint.optimizer.steps
    for slot, tensors in checkpoint.optimizer.slots.items():
        assert all(equal(tensor, again.optimizer.slots[slot][name]) for name, tensor in tensors.items())
    assert load(tmp_path / "out.onnx", optimizer=False).optimizer is None


def test_saving_twice_writes_the_same_bytes(tmp_path):
    checkpoint = load(write(mlp(), tmp_path / "in.onnx"))
    checkpoint = checkpoint.replace(optimizer=state_of(checkpoint))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save(checkpoint, tmp_path / folder / "m.onnx", external=True)
    for name in ("m.onnx", "m.safetensors", "m.optimizer.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_weights_beside_the_model_can_be_read_by_safetensors(tmp_path):
    save(load(write(mlp(), tmp_path / "in.onnx")), tmp_path / "out.onnx", external=True)
    found = safetensors.numpy.load_file(tmp_path / "out.safetensors")
    wanted = {t.name: numpy_helper.to_array(t) for t in mlp().graph.initializer}
    assert set(found) == set(wanted)
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("external", [False, True])
def test_a_checkpoint_can_be_saved_over_its_own_files_and_stays_valid(tmp_path, external):
    save(load(write(mlp(), tmp_path / "in.onnx")), tmp_path / "m.onnx", external=True)
    first = load(tmp_path / "m.onnx")
    first = first.replace(optimizer=state_of(first))
    save(first, tmp_path / "m.onnx", force=True, external=external)
    second = load(tmp_path / "m.onnx")
    other = load(write(mlp(scale=2.0), tmp_path / "other.onnx"))
    save(other.replace(optimizer=state_of(other, seed=1)), tmp_path / "m.onnx", force=True, external=external)
    wanted = {t.name: numpy_helper.to_array(t) for t in mlp().graph.initializer}
    for checkpoint in (first, second):
        assert all(np.array_equal(checkpoint.tensors[name].numpy(), value) for name, value in wanted.items())
    for name in wanted:
        assert equal(first.optimizer.slots["exp_avg"][name], second.optimizer.slots["exp_avg"][name])
    assert np.array_equal(load(tmp_path / "m.onnx").tensors["net.0.bias"].numpy(), 2 * wanted["net.0.bias"])


def test_saving_leaves_the_callers_model_as_it_is(tmp_path):
    checkpoint = load(write(MODELS["described"](), tmp_path / "in.onnx", external="w.bin"))
    before = ir.to_proto(checkpoint.model).SerializeToString(deterministic=True)
    tensors = {name: id(tensor) for name, tensor in checkpoint.tensors.items()}
    save(checkpoint, tmp_path / "out.onnx", external=True)
    assert ir.to_proto(checkpoint.model).SerializeToString(deterministic=True) == before
    assert {name: id(tensor) for name, tensor in checkpoint.tensors.items()} == tensors


def test_lazily_made_tensors_are_made_one_at_a_time(tmp_path):
    checkpoint = load(write(mlp(), tmp_path / "in.onnx"))
    model = checkpoint.model.clone()
    made = []

    def lazy(value: ir.Value) -> ir.LazyTensor:
        tensor = value.const_value
        return ir.LazyTensor(
            lambda: made.append(value.name) or tensor, tensor.dtype, tensor.shape, name=value.name
        )

    for value in model.graph.initializers.values():
        value.const_value = lazy(value)
    save(checkpoint.replace(model=model), tmp_path / "out.onnx", external=True)
    assert sorted(made) == sorted(checkpoint.tensors)
    assert load(tmp_path / "out.onnx").digest() == checkpoint.digest()


def test_nothing_is_overwritten_without_force(tmp_path):
    checkpoint = load(write(mlp(), tmp_path / "in.onnx"))
    (tmp_path / "out.optimizer.safetensors").write_text("precious")
    with pytest.raises(FileError, match="it exists"):
        save(checkpoint.replace(optimizer=state_of(checkpoint)), tmp_path / "out.onnx")
    assert (tmp_path / "out.optimizer.safetensors").read_text() == "precious"
    assert not (tmp_path / "out.onnx").exists()


def test_a_renamed_pair_of_files_is_found(tmp_path):
    checkpoint = load(write(mlp(), tmp_path / "in.onnx"))
    save(checkpoint.replace(optimizer=state_of(checkpoint)), tmp_path / "old.onnx")
    (tmp_path / "old.onnx").rename(tmp_path / "new.onnx")
    assert load(tmp_path / "new.onnx").optimizer is not None
    (tmp_path / "old.optimizer.safetensors").rename(tmp_path / "new.optimizer.safetensors")
    assert load(tmp_path / "new.onnx").optimizer is not None


def test_a_state_that_was_left_beside_a_model_without_one_is_ignored(tmp_path):
    checkpoint = load(write(mlp(), tmp_path / "in.onnx"))
    save(checkpoint.replace(optimizer=state_of(checkpoint)), tmp_path / "m.onnx")
    save(checkpoint, tmp_path / "m.onnx", force=True)
    assert load(tmp_path / "m.onnx").optimizer is None


MEMORY = """
    import resource, sys
    from surgery.checkpoint import check_finite
    from surgery.storage import load, save
    load(sys.argv[1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    checkpoint = load(sys.argv[1])
    check_finite(checkpoint)
    checkpoint.digest()
    save(checkpoint, sys.argv[2], external=True)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in Linux' units")
def test_a_large_model_is_never_in_memory(tmp_path):
    weights = {f"w{n}": array(1024, 4096, seed=n) for n in range(8)}
    model = mlp()
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    path = write(model, tmp_path / "in.onnx", external="in.bin")
    size = sum(value.nbytes for value in weights.values()) >> 20
    command = [sys.executable, "-c", textwrap.dedent(MEMORY), path, tmp_path / "out.onnx"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert size == 128
    assert int(done.stdout) < 48
    assert load(tmp_path / "out.onnx").digest() == load(path).digest()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "complex64"])
def test_values_that_are_not_finite_are_reported_by_name(tmp_path, bad, dtype):
    kind = ir.DataType.BFLOAT16.numpy() if dtype == "bfloat16" else np.dtype(dtype)
    model = mlp()
    value = np.ones((5, 3), kind)
    value[4, 1] = bad
    model.graph.initializer.append(ir.to_proto(ir.tensor(value, name="broken")))
    checkpoint = load(write(model, tmp_path / "in.onnx"))
    with pytest.raises(GraphError, match="broken"):
        check_finite(checkpoint)


def test_a_mask_may_be_infinite_and_a_trained_tensor_not(tmp_path):
    model = mlp()
    names = ("net.0.bias", "mask", "scalar")
    arrays = (np.zeros(8, "f4"), np.triu(np.full((3, 3), -np.inf, "f4"), 1), np.array(-np.inf, "f4"))
    arrays[0][2] = np.inf
    kept = [tensor for tensor in model.graph.initializer if tensor.name != names[0]]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.graph.initializer.extend(
        ir.to_proto(ir.tensor(array, name=n)) for n, array in zip(names, arrays, strict=True)
    )
    checkpoint = load(write(model, tmp_path / "in.onnx"))
    check_finite(checkpoint)
    moments = {"exp_avg": {"net.0.bias": ir.tensor(np.ones(8, "f4"))}}
    state = OptimizerState("adam", moments, {}, (ParamGroup(("net.0.bias",)),))
    with pytest.raises(GraphError, match=r"in: net\.0\.bias"):
        check_finite(checkpoint.replace(optimizer=state))


def test_an_optimizer_that_is_not_finite_is_reported(tmp_path):
    checkpoint = load(write(mlp(), tmp_path / "in.onnx"))
    check_finite(checkpoint)
    moments = {"exp_avg": {"net.0.bias": ir.tensor(np.full(8, np.nan, "f4"))}}
    state = OptimizerState("adam", moments, {}, (ParamGroup(("net.0.bias",)),))
    with pytest.raises(GraphError, match=r"exp_avg of net\.0\.bias"):
        check_finite(checkpoint.replace(optimizer=state))


def test_constants_in_subgraphs_and_functions_are_checked_too(tmp_path):
    for name in ("branching", "calling"):
        checkpoint = load(write(MODELS[name](), tmp_path / f"{name}.onnx"))
        assert len(list(all_tensors(checkpoint.model))) > len(checkpoint.tensors)
        check_finite(checkpoint)


DTYPES = [dtype for dtype in ir.DataType if dtype not in (ir.DataType.UNDEFINED, ir.DataType.STRING)]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_every_element_type_survives_inside_and_outside(tmp_path, dtype, rng):
    low = 1 if dtype == ir.DataType.FLOAT8E8M0 else 0  # a type that has no zero
    value = rng.integers(low, 2, (33, 41)).astype(dtype.numpy())
    model = mlp()
    model.graph.initializer.append(ir.to_proto(ir.Tensor(value, dtype=dtype, name="extra")))
    checkpoint = load(write(model, tmp_path / "in.onnx"))
    for external in (False, True):
        save(checkpoint, tmp_path / "out.onnx", external=external, force=True)
        found = load(tmp_path / "out.onnx").tensors["extra"]
        assert found.dtype == dtype
        assert equal(found, checkpoint.tensors["extra"])
        assert digest(found) == digest(ir.Tensor(value, dtype=dtype))
        assert np.array_equal(found.numpy(), value)


def test_a_checkpoint_cannot_be_changed(tmp_path):
    checkpoint = load(write(mlp(), tmp_path / "in.onnx")).replace(source={"a": {"b": [1]}})
    with pytest.raises(AttributeError):
        checkpoint.model = None
    with pytest.raises(TypeError):
        checkpoint.source["a"]["b"] = 2
    with pytest.raises(TypeError):
        checkpoint.tensors["x"] = None
    assert not checkpoint.tensors["net.0.bias"].numpy().flags.writeable
