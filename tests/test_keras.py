"""Models of Keras 3: the graph of the configuration is the model, and what is written back is what Keras loads."""

from __future__ import annotations

import gzip
import io
import json
import sys
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import surgery
from surgery.adapters import Reading
from surgery.cli import main
from surgery.errors import CorruptFile, MissingDependency, Refused, SurgeryError
from surgery.operate import preview
from surgery.ops.actions import NewAction
from surgery.ops.extend import NewObservation
from surgery.port_kinds import infer
from surgery.storage import check_savable
from surgery.tensors import equal
from surgery.verify.outputs import runtime

h5py = pytest.importorskip("h5py")

FIXTURES = Path(__file__).parent / "fixtures" / "keras"
KINDS = {
    "atoms": "adagrad", "attention": "adamw", "convolutional": "sgd", "dense": "adam", "dueling": "adam",
    "recurrent": "rmsprop",
}  # fmt: skip
NAMES = sorted(KINDS)
CONFIG, WEIGHTS, METADATA = "config.json", "model.weights.h5", "metadata.json"


def unpacked(name: str, folder: Path) -> Path:
    path = folder / name
    path.write_bytes(gzip.decompress((FIXTURES / f"{name}.gz").read_bytes()))
    return path


def recorded(name: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Inputs by name, and what Keras answered."""
    with np.load(FIXTURES / "answers.npz") as archive:
        arrays = {key.partition("/")[2]: archive[key] for key in archive if key.startswith(f"{name}/")}
    return arrays, arrays.pop("answer")


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def variables(path: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}

    def take(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(io.BytesIO(members(path)[WEIGHTS])) as file:
        file.visititems(take)
    return found


def config_of(path: Path) -> dict:
    return json.loads(members(path)[CONFIG])


def layer(config: dict, name: str) -> dict:
    return next(entry for entry in config["config"]["layers"] if entry["config"]["name"] == name)


def answers(checkpoint: surgery.Checkpoint, arrays: dict[str, np.ndarray]) -> np.ndarray:
    [answer] = runtime(checkpoint.model)(arrays).values()
    return answer


def widened(checkpoint: surgery.Checkpoint, path: Path, **options: object) -> surgery.Checkpoint:
    result = surgery.apply(surgery.widen(checkpoint, factor=2, **options), checkpoint)
    result.save(path)
    return result.checkpoint


@pytest.mark.parametrize("name", NAMES)
def test_the_graph_computes_what_keras_computes(tmp_path, name):
    checkpoint = surgery.load(unpacked(f"{name}.keras", tmp_path))
    arrays, wanted = recorded(name)
    found = answers(checkpoint, arrays)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert (found.argmax(1) == wanted.argmax(1)).all()


@pytest.mark.parametrize("name", NAMES)
def test_every_variable_and_every_slot_stands_under_its_name_with_its_bytes(tmp_path, name):
    path = unpacked(f"{name}.keras", tmp_path)
    checkpoint, stored = surgery.load(path), variables(path)
    state = checkpoint.optimizer
    assert state.kind == KINDS[name]
    assert set(state.steps.values()) == {3.0}
    assert set(state.parameters) <= set(checkpoint.tensors)
    weights = [tensor.numpy() for key, tensor in checkpoint.tensors.items() if not key.endswith(".none")]
    slots = [tensor.numpy() for members in state.slots.values() for tensor in members.values()]
    here = {array.tobytes() for array in (*weights, *slots)}
    floats = {key: array for key, array in stored.items() if array.dtype == np.float32 and array.ndim}
    assert {key for key, array in floats.items() if array.tobytes() not in here} == set()
    frozen = {key for key in checkpoint.tensors if key.startswith("conv1.") and name == "convolutional"}
    assert not frozen & set(state.parameters)


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_that_changes_nothing_has_the_same_members_byte_for_byte(tmp_path, name):
    path = unpacked(f"{name}.keras", tmp_path)
    surgery.save(surgery.load(path), tmp_path / "copy.keras")
    assert members(path) == members(tmp_path / "copy.keras")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("init", ["auto", "net2net"])
def test_a_wide_file_is_the_same_function_and_its_optimizer_has_followed(tmp_path, name, init):
    path = unpacked(f"{name}.keras", tmp_path)
    wide = widened(surgery.load(path), tmp_path / "wide.keras", init=init)
    again = surgery.load(tmp_path / "wide.keras")
    arrays, wanted = recorded(name)
    np.testing.assert_allclose(answers(again, arrays), wanted, atol=1e-5)
    scaled = {"attention.query.kernel", "attention.query.bias"}  # by the root of the size of the keys
    assert set(again.tensors) <= set(wide.tensors)
    for key in again.tensors.keys() - scaled:
        assert equal(again.tensors[key], wide.tensors[key]), key
    for slot, tensors in wide.optimizer.slots.items():
        for key in tensors.keys() - scaled:
            assert equal(again.optimizer.slots[slot][key], tensors[key]), (slot, key)
    assert again.optimizer.groups == wide.optimizer.groups
    assert members(path)[METADATA] == members(tmp_path / "wide.keras")[METADATA]


def test_only_what_was_touched_differs(tmp_path):
    path = unpacked("dueling.keras", tmp_path)
    checkpoint = surgery.load(path)
    plan = surgery.widen(checkpoint, widths={"fc": 9})
    surgery.apply(plan, checkpoint).save(tmp_path / "wide.keras")
    old, new = variables(path), variables(tmp_path / "wide.keras")
    assert list(old) == list(new)
    kept = [key for key in old if old[key].shape == new[key].shape]
    assert len(old) - len(kept) == 12  # fc and advantage: a kernel each, and a bias, in three slots
    assert all(old[key].tobytes() == new[key].tobytes() for key in kept)
    before, after = config_of(path), config_of(tmp_path / "wide.keras")
    assert layer(after, "fc")["config"].pop("units") == 9
    assert layer(before, "fc")["config"].pop("units") == 6
    assert layer(after, "advantage")["build_config"].pop("input_shape") == [None, 9]
    assert layer(before, "advantage")["build_config"].pop("input_shape") == [None, 6]
    [node] = layer(after, "advantage")["inbound_nodes"]
    assert node["args"][0]["config"].pop("shape") == [None, 9]
    [node] = layer(before, "advantage")["inbound_nodes"]
    assert node["args"][0]["config"].pop("shape") == [None, 6]
    assert before == after


def test_the_settings_of_every_kind_of_layer_follow(tmp_path):
    for name in NAMES:
        widened(surgery.load(unpacked(f"{name}.keras", tmp_path)), tmp_path / f"{name}-wide.keras")
    found = {name: config_of(tmp_path / f"{name}-wide.keras") for name in NAMES}
    wanted = {
        ("atoms", "table"): {"input_dim": 7, "output_dim": 8},
        ("atoms", "atoms"): {"target_shape": [3, 5]},
        ("attention", "attention"): {"num_heads": 4, "key_dim": 10, "value_dim": 8},
        ("convolutional", "depthwise"): {"depth_multiplier": 4},
        ("convolutional", "separable"): {"filters": 12, "depth_multiplier": 1},
        ("convolutional", "up"): {"filters": 6},
        ("convolutional", "reshape"): {"target_shape": [-1, 6]},
        ("dueling", "conv2"): {"filters": 10, "kernel_size": [3, 3]},
        ("recurrent", "gru"): {"units": 10},
    }
    for (name, path), settings in wanted.items():
        config = layer(found[name], path)["config"]
        assert {key: config[key] for key in settings} == settings, (name, path)
    inner = layer(found["recurrent"], "bidirectional")["config"]["layer"]["config"]
    assert inner["units"] == 6
    [_, inside] = layer(found["atoms"], "inner")["config"]["layers"]
    assert (inside["config"]["units"], inside["build_config"]["input_shape"]) == (10, [None, 8])


def test_new_observations_and_actions_are_in_the_file(tmp_path):
    path = unpacked("recurrent.keras", tmp_path)
    checkpoint = surgery.load(path)
    plan = surgery.extend(checkpoint, [NewObservation("observation", 2)], [NewAction("q_values", 1, "mean")])
    surgery.apply(plan, checkpoint).save(tmp_path / "more.keras")
    more, (arrays, wanted) = config_of(tmp_path / "more.keras"), recorded("recurrent")
    assert layer(more, "observation")["config"]["batch_shape"] == [None, 5, 6]
    assert layer(more, "q_values")["config"]["units"] == 4
    assert more["build_config"]["input_shape"] == [None, 5, 6]
    noise = np.random.default_rng(0).standard_normal((8, 5, 2)).astype(np.float32)
    seen = {"observation": np.concatenate([arrays["observation"], noise], -1)}
    found = answers(surgery.load(tmp_path / "more.keras"), seen)
    np.testing.assert_allclose(found[:, :3], wanted, atol=1e-5)


def test_a_model_with_code_in_it_is_bound_to_the_graph_that_keras_exported(tmp_path):
    path, graph = unpacked("custom.keras", tmp_path), unpacked("custom.onnx", tmp_path)
    with pytest.raises(Refused, match="'double' is a Lambda: it is Python code") as refused:
        surgery.load(path)
    assert "--graph" in refused.value.hint
    checkpoint = surgery.load(path, reading=Reading(graph=graph))
    assert set(checkpoint.tensors) >= {"fc.kernel", "fc.bias", "q_values.kernel", "q_values.bias"}
    widened(checkpoint, tmp_path / "wide.keras")
    assert layer(config_of(tmp_path / "wide.keras"), "fc")["config"]["units"] == 8
    assert layer(config_of(tmp_path / "wide.keras"), "q_values")["build_config"]["input_shape"] == [None, 8]
    assert {array.shape for array in variables(tmp_path / "wide.keras").values()} >= {(3, 8), (8,), (8, 2)}


def test_numbers_of_an_exported_graph_that_an_edit_changed_are_refused(tmp_path):
    path, graph = unpacked("custom.keras", tmp_path), unpacked("custom.onnx", tmp_path)
    checkpoint = surgery.load(path, reading=Reading(graph=graph))
    [name] = checkpoint.source["constants"]  # the 2 of the Lambda layer
    model = checkpoint.model.clone()
    model.graph.initializers[name].const_value = ir.tensor(np.float32(3.0), name=name)
    with pytest.raises(Refused, match="holds other numbers now"):
        surgery.save(checkpoint.replace(model=model), tmp_path / "other.keras")


def test_sizes_in_settings_that_an_exported_graph_does_not_tell_are_refused(tmp_path):
    path, target = unpacked("convolutional.keras", tmp_path), tmp_path / "wide.keras"
    found = surgery.load(path)
    exported = found.replace(source={**found.source, "graph": "exported.onnx", "constants": {}})
    for width, refused in (({"up": 6}, True), ({"time": 6}, False)):
        plan = surgery.widen(exported, widths=width, init="net2net")
        wide = surgery.apply(plan, exported)
        for write in (partial(check_savable, partial(preview, plan, exported), exported), wide.save):
            with (
                pytest.raises(Refused, match="'up' has another width, and 'reshape' may reshape it")
                if refused
                else nullcontext()
            ):
                write(target)


def test_constants_that_an_exporter_made_inputs_are_refused(tmp_path):
    path, graph = unpacked("custom.keras", tmp_path), unpacked("custom.onnx", tmp_path)
    model = surgery.load(graph).model
    lost = model.graph.initializers.pop(next(name for name in model.graph.initializers if "fc" in name))
    lost.const_value = None
    model.graph.inputs.append(lost)
    surgery.save(surgery.Checkpoint(model, infer(model)), tmp_path / "lost.onnx")
    with pytest.raises(Refused, match="inputs that the model does not have"):
        surgery.load(path, reading=Reading(graph=tmp_path / "lost.onnx"))


def test_the_command_line_takes_and_writes_keras_files(tmp_path, capsys):
    path, graph = unpacked("custom.keras", tmp_path), unpacked("custom.onnx", tmp_path)
    agent, wide, back = (str(tmp_path / name) for name in ("agent.onnx", "wide.onnx", "back.keras"))
    assert main(["convert", str(path), "--graph", str(graph), "-o", agent]) == 0
    assert main(["widen", agent, "--factor", "2", "-o", wide]) == 0
    assert main(["convert", wide, "--like", str(path), "-o", back]) == 0
    assert layer(config_of(Path(back)), "fc")["config"]["units"] == 8
    path = unpacked("dueling.keras", tmp_path)
    assert main(["widen", str(path), "--factor", "2", "-o", str(tmp_path / "wide.keras")]) == 0
    assert "fc 6→12" in capsys.readouterr().out


# ---- what cannot be expressed, and what is damaged or hostile -----------------------------------------------------


def rewrite(path: Path, **changed: bytes) -> Path:
    """The file with other members (CONFIG and WEIGHTS by the names of their parameters)."""
    names = {"config": CONFIG, "weights": WEIGHTS}
    content = members(path) | {names[key]: value for key, value in changed.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in content.items():
            archive.writestr(name, value)
    return path


def with_weights(path: Path, edit: Callable[[h5py.File], None]) -> Path:
    content = io.BytesIO(members(path)[WEIGHTS])
    with h5py.File(content, "r+") as file:
        edit(file)
    return rewrite(path, weights=content.getvalue())


def linked(file: h5py.File, link: object) -> None:
    del file["layers/dense/vars/0"]
    file["layers/dense/vars/0"] = link


def packed(file: h5py.File) -> None:
    array = file["layers/dense/vars/0"][()]
    del file["layers/dense/vars/0"]
    file.create_dataset("layers/dense/vars/0", data=array, compression="gzip")


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(shape=(3, 4), dtype="float32")
    layout[:] = h5py.VirtualSource("/etc/passwd", "data", shape=(3, 4))
    del file["layers/dense/vars/0"]
    file.create_virtual_dataset("layers/dense/vars/0", layout)


def elsewhere(file: h5py.File) -> None:
    del file["layers/dense/vars/0"]
    file.create_dataset("layers/dense/vars/0", (3, 4), "float32", external=[("/etc/passwd", 0, 48)])


def itself(file: h5py.File) -> None:
    file["layers/dense/again"] = file["layers"]


HOSTILE = {
    "a link into another file": (
        lambda f: linked(f, h5py.ExternalLink("/etc/passwd", "/")),
        "link to somewhere else",
    ),
    "a soft link": (lambda f: linked(f, h5py.SoftLink("/layers/dense/vars/1")), "link to somewhere else"),
    "data of another file": (elsewhere, "lies in another file"),
    "virtual data": (virtual, "lies in another file"),
    "compressed data": (packed, "compressed or in pieces"),
    "a group in itself": (itself, "lies within itself"),
    "text": (lambda f: linked(f, np.array(b"text")), "which no framework writes"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_weights_are_refused(tmp_path, name):
    edit, message = HOSTILE[name]
    path = with_weights(unpacked("custom.keras", tmp_path), edit)
    with pytest.raises(CorruptFile, match=message):
        surgery.load(path, reading=Reading(graph=unpacked("custom.onnx", tmp_path)))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_file_that_is_cut_short_is_refused(tmp_path, share):
    path = unpacked("attention.keras", tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(SurgeryError):
        surgery.load(path)
    weights = members(unpacked("attention.keras", tmp_path))[WEIGHTS]
    with pytest.raises(CorruptFile):
        surgery.load(rewrite(path, weights=weights[: int(len(weights) * share)]))


def test_members_that_expand_are_refused(tmp_path):
    path = unpacked("dueling.keras", tmp_path)
    content = members(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in content.items():
            archive.writestr(name, value if name != CONFIG else b" " * (1 << 20) + value)
    with pytest.raises(CorruptFile, match="compressed or encrypted"):
        surgery.load(path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"class_name": "Functional", "config": {"layers": [1]}}', "[" * 100_000,
     '{"class_name": "Functional", "config": {"layers": [{"class_name": "Dense", "config": {}}]}}',
     '{"class_name": "Sequential", "config": {"layers": []}}'],
)  # fmt: skip
def test_a_configuration_that_is_none_is_refused(tmp_path, text):
    path = rewrite(unpacked("dueling.keras", tmp_path), config=text.encode())
    with pytest.raises(SurgeryError):
        surgery.load(path)


def test_layers_that_wait_for_each_other_are_refused(tmp_path):
    path = unpacked("dueling.keras", tmp_path)
    config = config_of(path)
    [node] = layer(config, "fc")["inbound_nodes"]
    node["args"][0]["config"]["keras_history"][0] = "advantage"
    with pytest.raises(CorruptFile, match="wait for each other"):
        surgery.load(rewrite(path, config=json.dumps(config).encode()))


def test_widths_that_do_not_fit_the_weights_are_refused(tmp_path):
    path = unpacked("dueling.keras", tmp_path)

    def shrink(file: h5py.File) -> None:
        linked(file, np.zeros((3, 6), np.float32))

    with pytest.raises(SurgeryError):
        surgery.load(with_weights(path, shrink))


def test_an_optimizer_of_another_model_is_refused_and_can_be_left_out(tmp_path):
    def without_one(file: h5py.File) -> None:
        del file["optimizer/vars/9"]

    path = with_weights(unpacked("attention.keras", tmp_path), without_one)
    with pytest.raises(SurgeryError, match="variables of the optimizer"):
        surgery.load(path)
    assert surgery.load(path, optimizer=False).optimizer is None


def test_without_h5py_the_command_to_install_it_is_named(tmp_path, monkeypatch):
    path = unpacked("dueling.keras", tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingDependency) as missing:
        surgery.load(path)
    assert missing.value.hint == "pip install 'policy-surgery[keras]'"


def test_the_halves_of_a_bidirectional_layer_may_have_widths_of_their_own(tmp_path):
    checkpoint = surgery.load(unpacked("recurrent.keras", tmp_path))
    plan = surgery.widen(checkpoint, widths={"bidirectional.forward_lstm.lstm_cell": 5})
    surgery.apply(plan, checkpoint).save(tmp_path / "wide.keras")
    config = layer(config_of(tmp_path / "wide.keras"), "bidirectional")["config"]
    assert (config["layer"]["config"]["units"], config["backward_layer"]["config"]["units"]) == (5, 3)


@pytest.mark.parametrize(
    ("name", "after", "count"), [("dense", "fc2", 1), ("dense", "fc1", 2), ("dueling", "fv", 1)]
)
def test_new_layers_are_in_the_configuration_and_everything_else_keeps_its_numbers(
    tmp_path, name, after, count
):
    path = unpacked(f"{name}.keras", tmp_path)
    checkpoint = surgery.load(path)
    result = surgery.apply(surgery.deepen(checkpoint, after, count=count, kind="identity"), checkpoint)
    result.save(tmp_path / "deep.keras")
    again = surgery.load(tmp_path / "deep.keras")
    arrays, _ = recorded(name)
    np.testing.assert_array_equal(answers(again, arrays), answers(checkpoint, arrays))
    assert set(again.tensors) == set(result.checkpoint.tensors)
    assert all(equal(again.tensors[key], tensor) for key, tensor in result.checkpoint.tensors.items())
    for slot, members in checkpoint.optimizer.slots.items():
        new = again.optimizer.slots[slot]
        assert all(equal(new[key], tensor) for key, tensor in members.items())
        assert not any(new[key].numpy().any() for key in new.keys() - members.keys())
    assert len(config_of(tmp_path / "deep.keras")["config"]["layers"]) == count + len(
        config_of(path)["config"]["layers"]
    )


def test_new_layers_other_than_dense_ones_are_refused_by_name(tmp_path):
    checkpoint = surgery.load(unpacked("dense.keras", tmp_path))
    deeper = surgery.apply(surgery.deepen(checkpoint, "fc2", kind="rezero"), checkpoint)
    with pytest.raises(Refused, match=r"no place for the new parameter") as caught:
        deeper.save(tmp_path / "deep.keras")
    assert "-o OUT.onnx" in caught.value.hint


def test_another_optimizer_is_written_with_its_settings_and_state(tmp_path):
    checkpoint = surgery.load(unpacked("dense.keras", tmp_path))
    swapped = surgery.swap_optimizer(
        checkpoint, "adamw", match="none", lr=0.002, weight_decay=0.01
    ).checkpoint
    surgery.save(swapped, tmp_path / "adamw.keras")
    record = config_of(tmp_path / "adamw.keras")["compile_config"]["optimizer"]
    assert record["class_name"] == "AdamW"
    assert (record["config"]["learning_rate"], record["config"]["weight_decay"]) == (0.002, 0.01)
    again = surgery.load(tmp_path / "adamw.keras").optimizer
    assert again.kind == "adamw"
    for slot, members in swapped.optimizer.slots.items():
        assert all(equal(again.slots[slot][name], tensor) for name, tensor in members.items())


REFUSED = {
    "rmsprop": ({"lr": 0.001}, "ε inside the root"),
    "sgd": ({"lr": 0.001, "momentum": 0.9}, "whole steps"),
    "adamw": ({}, "one learning rate"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_optimizer_that_steps_otherwise_in_keras_is_refused_with_the_reason(tmp_path, kind):
    options, reason = REFUSED[kind]
    source = "dense.keras" if kind != "adamw" else "recurrent.keras"
    checkpoint = surgery.load(unpacked(source, tmp_path))
    swapped = surgery.swap_optimizer(
        checkpoint, kind, match="none" if options else "tensor", **options
    ).checkpoint
    with pytest.raises(Refused, match=reason):
        surgery.save(swapped, tmp_path / "other.keras")
    assert not (tmp_path / "other.keras").exists()
