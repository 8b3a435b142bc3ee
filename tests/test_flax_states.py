"""Training states that flax and Orbax wrote (tests/fixtures/flax_state/make.py), with a graph that jax2onnx wrote."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import surgery
from surgery import NewAction
from surgery.adapters import Reading
from surgery.builder import GraphBuilder
from surgery.errors import CorruptFile, MissingDependency, Refused, SurgeryError
from surgery.port_kinds import infer
from surgery.tensors import equal
from surgery.verify.outputs import runtime
from surgery_adapters.array_files import replaced
from surgery_adapters.binding.bind import group_of, native
from surgery_adapters.containers import optax_state
from surgery_adapters.containers.optax_state import leaves
from surgery_adapters.flax.stores import open_store

FOLDER = Path(__file__).parent / "fixtures" / "flax_state"
GRAPH = Reading(graph=FOLDER / "adam.onnx")
OPTIMIZERS = {
    "adam": ("adam", {"exp_avg", "exp_avg_sq"}, 3.0, {}),
    "adamw_schedule": ("adam", {"exp_avg", "exp_avg_sq"}, 3.0, {}),
    "amsgrad": ("adam", {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}, 3.0, {}),
    "rmsprop": ("rmsprop", {"square_avg"}, None, {"eps_inside_root": True}),
    "rmsprop_centered_momentum": (
        "rmsprop", {"square_avg", "grad_avg", "momentum_buffer"}, None,
        {"eps_inside_root": True, "buffer_holds_lr": True}),
    "sgd_momentum": ("sgd", {"momentum_buffer"}, None, {}),
    "adagrad": ("adagrad", {"sum"}, None, {"eps_inside_root": True}),
    "told": ("adam", {"exp_avg", "exp_avg_sq"}, 3.0, {"lr": 3e-3, "eps": 1e-5, "betas": (0.9, 0.999)}),
}  # fmt: skip
"""State -> kind, slots, steps, settings that the state says."""


@pytest.fixture(params=["msgpack", "orbax"])
def state(request, tmp_path) -> Path:
    """A training state with Adam."""
    if request.param == "msgpack":
        return Path(shutil.copy(FOLDER / "adam.msgpack", tmp_path))
    pytest.importorskip("tensorstore")
    return Path(shutil.copytree(FOLDER / "orbax", tmp_path / "orbax"))


@pytest.fixture(scope="module")
def answers():
    with np.load(FOLDER / "answers.npz") as found:
        return dict(found)


def test_the_graph_with_the_arrays_of_the_file_answers_as_flax_did(state, answers):
    found = surgery.load(state, reading=GRAPH)
    assert found.copies == {"target_params.": "params."}
    [name] = [value.name for value in found.model.graph.inputs]
    online, target = runtime(found.model)({name: answers["observation"]}).values()
    np.testing.assert_allclose(online, answers["params"], atol=1e-5)
    np.testing.assert_allclose(target, answers["target_params"], atol=1e-5)
    assert "params.Dense_0.kernel" in found.tensors and found.tensors["params.Dense_0.kernel"].shape == (6, 7)


def test_a_wide_state_goes_back_with_its_optimizer(state, tmp_path, answers):
    before = surgery.load(state, reading=GRAPH)
    result = surgery.apply(surgery.widen(before, factor=2), before)
    result.save(tmp_path / "wide")
    old, new = (dict(leaves(open_store(path).tree)) for path in (state, tmp_path / "wide"))
    assert list(old) == list(new)
    for name, tensor in result.checkpoint.tensors.items():
        if name in new:
            assert equal(new[name], tensor)
    for slot, field in (("exp_avg", "mu"), ("exp_avg_sq", "nu")):
        for name, tensor in result.checkpoint.optimizer.slots[slot].items():
            assert equal(new[f"opt_state.0.{field}.{name.removeprefix('params.')}"], tensor)
    assert new["opt_state.0.count"].numpy() == 3


@pytest.mark.parametrize("kind", ["adamw", "rmsprop"])
def test_an_optimizer_of_another_kind_is_not_written_over_that_of_the_file(state, tmp_path, kind):
    swapped = surgery.swap_optimizer(surgery.load(state, reading=GRAPH), kind, match="none", lr=1e-3)
    with pytest.raises(Refused, match=f"optimizer is adam with .* the checkpoint's {kind} with"):
        swapped.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_an_unchanged_copy_is_the_same(state, tmp_path):
    surgery.save(surgery.load(state, reading=GRAPH), tmp_path / "copy", like=state)
    if state.is_dir():
        for file in (path for path in state.rglob("*") if path.is_file()):
            assert (tmp_path / "copy" / file.relative_to(state)).read_bytes() == file.read_bytes()
    else:
        assert (tmp_path / "copy").read_bytes() == state.read_bytes()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_bound_by_the_names_of_parameters(name):
    kind, slots, steps, told = OPTIMIZERS[name]
    tree = open_store(FOLDER / f"{name}.msgpack").tree
    parameters = dict(leaves(tree["params"], "params"))
    bound = optax_state.bind(tree["opt_state"], parameters)
    assert bound.state.kind == kind and set(bound.state.slots) == slots
    assert all(set(members) == set(parameters) for members in bound.state.slots.values())
    assert set(bound.state.steps.values()) == ({steps} if steps is not None else set())
    hyper = bound.state.groups[0].hyper
    assert all(hyper[key] == pytest.approx(value) for key, value in told.items())
    assert "buffer_holds_lr" not in hyper or "buffer_holds_lr" in told
    flat = dict(leaves(tree["opt_state"]))
    for key, place in bound.places.items():
        slot, _, parameter = key.partition("/")
        assert equal(flat[place], bound.state.slots[slot][parameter])


def test_variables_of_nnx_are_what_they_hold():
    tree = open_store(FOLDER / "told.msgpack").tree

    def wrapped(node):
        return (
            {key: wrapped(value) for key, value in node.items()}
            if isinstance(node, dict)
            else {"value": node}
        )

    bare = optax_state.bind(tree["opt_state"], dict(leaves(tree["params"], "params")))
    found = optax_state.bind(wrapped(tree["opt_state"]), dict(leaves(wrapped(tree["params"]), "params")))
    assert found.state.groups[0].hyper == bare.state.groups[0].hyper
    assert found.state.steps == {f"{name}.value": step for name, step in bare.state.steps.items()}
    assert {group_of(name) for name in found.state.steps} == {group_of(name) for name in bare.state.steps}


def test_a_state_without_a_rule_is_refused_by_name():
    tree = open_store(FOLDER / "lion.msgpack").tree
    with pytest.raises(Refused, match=r"0\.mu\.") as caught:
        optax_state.bind(tree["opt_state"], dict(leaves(tree["params"], "params")))
    assert "--no-optimizer" in caught.value.hint


def test_a_state_that_fits_no_network_is_refused():
    tree = open_store(FOLDER / "adam.msgpack").tree
    with pytest.raises(Refused, match="fits no network"):
        optax_state.bind(tree["opt_state"], {"params.Dense_0.kernel": tree["params"]["Dense_0"]["bias"]})


def test_arrays_alone_are_not_enough():
    with pytest.raises(SurgeryError) as caught:
        surgery.load(FOLDER / "adam.msgpack")
    assert "--graph" in caught.value.hint


@pytest.mark.parametrize("read", [True, False])
def test_an_array_of_one_number_is_found_and_one_that_the_graph_does_not_read_is_not_left_behind(read):
    rng = np.random.default_rng(0)
    arrays = {"params.fc.kernel": rng.normal(size=(3, 2)), "params.fc.bias": rng.normal(size=2)}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    arrays["params.log_std"] = np.full(2, -0.25, np.float32)
    graph = GraphBuilder("net")
    kernel, bias, deviation = (graph.parameter(f"c{k}", array) for k, array in enumerate(arrays.values()))
    mean = graph.op("Add", graph.op("MatMul", graph.input("observation", (3,)), kernel), bias)
    graph.output(mean, "mean", (2,))
    actions = [NewAction("mean", 1, "zero")]
    if read:
        graph.output(graph.op("Expand", deviation, graph.op("Shape", mean)), "log_std", (2,))
        actions.append(NewAction("log_std", 1, "zero"))
    else:
        graph.model().graph.initializers.pop("c2")
    tensors = {name: ir.tensor(array, name=name) for name, array in arrays.items()}
    before = native(surgery.Checkpoint(graph.model(), infer(graph.model())), tensors)
    after = surgery.apply(surgery.extend(before, [], actions), before).checkpoint
    if read:
        found = replaced(tensors, after, None, FOLDER)
        assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
            "params.fc.kernel": (3, 3), "params.fc.bias": (3,), "params.log_std": (3,)}  # fmt: skip
    else:
        with pytest.raises(Refused, match=r"'params.log_std' \[2\] is not in the graph"):
            replaced(tensors, after, None, FOLDER)


def test_a_state_that_was_read_without_its_optimizer_does_not_go_back_with_an_old_one(tmp_path):
    before = surgery.load(FOLDER / "adam.msgpack", reading=GRAPH, optimizer=False)
    with pytest.raises(Refused):
        surgery.apply(surgery.widen(before, factor=2), before).save(tmp_path / "wide.msgpack")
    assert not (tmp_path / "wide.msgpack").exists()


def test_without_tensorstore_the_command_that_installs_it_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorstore", None)
    with pytest.raises(MissingDependency, match="tensorstore") as caught:
        surgery.load(FOLDER / "orbax", reading=GRAPH)
    assert caught.value.hint == "pip install 'policy-surgery[orbax]'"


# ---- hostile folders -------------------------------------------------------------------------------------------------

TREES = {
    "no JSON": "{",
    "no object": "[1]",
    "no tree": "{}",
    "names that are none": {"key_metadata": [3], "value_metadata": {}},
    "a path out of the folder": {"key_metadata": [{"key": "../../etc"}], "value_metadata": {}},
    "a name with a dot": {"key_metadata": [{"key": "a.b"}], "value_metadata": {}},
    "an array that is not there": {"key_metadata": [{"key": "nowhere"}], "value_metadata": {}},
    "without a value": {"key_metadata": [{"key": "params"}]},
    "without names": {"key_metadata": [], "value_metadata": {}},
}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_hostile_folders_are_errors(tmp_path, tree):
    pytest.importorskip("tensorstore")
    path = Path(shutil.copytree(FOLDER / "orbax", tmp_path / "orbax"))
    text = tree if isinstance(tree, str) else json.dumps({"tree_metadata": {"x": tree}, "use_ocdbt": True})
    (path / "_METADATA").write_text(text)
    with pytest.raises(SurgeryError) as caught:
        surgery.load(path, reading=GRAPH)
    assert "\n" not in caught.value.message


def test_damaged_folders_are_errors(tmp_path):
    pytest.importorskip("tensorstore")
    files = sorted(path.relative_to(FOLDER) for path in (FOLDER / "orbax").rglob("*") if path.is_file())
    for number, file in enumerate(files):
        path = Path(shutil.copytree(FOLDER / "orbax", tmp_path / str(number)))
        broken = path / file.relative_to("orbax")
        broken.write_bytes(broken.read_bytes()[: len(broken.read_bytes()) // 2])
        try:
            found = surgery.load(path, reading=GRAPH)
            assert all(tensor.numpy() is not None for tensor in found.tensors.values())
        except SurgeryError as error:
            assert "\n" not in error.message


def test_a_pipe_is_not_waited_for_and_what_a_link_leads_to_is_not_copied(tmp_path):
    pytest.importorskip("tensorstore")
    path = Path(shutil.copytree(FOLDER / "orbax", tmp_path / "orbax"))
    (tmp_path / "secret").write_text("secret")
    (path / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(CorruptFile, match="'link' is neither a file nor a folder"):
        surgery.save(surgery.load(path, reading=GRAPH), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    data = next(file for file in sorted((path / "d").iterdir()))
    data.unlink()
    os.mkfifo(data)
    with pytest.raises(CorruptFile, match="neither a file nor a folder"):
        surgery.load(path, reading=GRAPH)


def test_only_a_folder_of_orbax_is_replaced(tmp_path):
    pytest.importorskip("tensorstore")
    found = surgery.load(FOLDER / "orbax", reading=GRAPH)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    with pytest.raises(SurgeryError):
        surgery.save(found, tmp_path / "mine", force=True)
    assert (tmp_path / "mine" / "diary.txt").exists()


# ---- the real packages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["msgpack", "orbax", "manager", "zarr", "zarr3"])
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in ("told", "adamw_schedule")])
def test_flax_restores_the_wide_state_and_optax_goes_on_with_it(tmp_path, kind, name):
    pytest.importorskip("jax2onnx")
    pytest.importorskip("orbax.checkpoint")
    from tests.flax_world import World

    world = World(name)
    source, graph = world.save(tmp_path, kind)
    before = surgery.load(source, reading=Reading(graph=graph))
    result = surgery.apply(surgery.widen(before, factor=2), before)
    result.save(tmp_path / "wide")
    wide = world.restored(tmp_path / "wide", kind)
    np.testing.assert_allclose(world.answers(wide), world.answers(world.state, widths=(7, 5)), atol=1e-5)
    trained = world.trained(wide)
    assert not np.allclose(world.answers(trained), world.answers(wide))
