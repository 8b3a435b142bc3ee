"""Damaged, hostile and foreign models are errors with a reason, and none is loaded wrongly."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from surgery.errors import CorruptFile, FileError, GraphError, SurgeryError, UnknownFormat
from surgery.metadata import METADATA_KEY
from surgery.optimizer import OptimizerState, ParamGroup
from surgery.storage import load, save
from surgery.tensors import write_safetensors
from tests.small_models import branching, mlp, wrap, write


def _zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _state_dict(path: Path) -> None:
    torch.save({"w": torch.ones(3)}, path)


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a text file": (lambda path: path.write_text("just words, näive ones\n"), ""),
    "a JSON file": (lambda path: path.write_text('{"a": 1}'), ""),
    "a web page": (lambda path: path.write_text("\n <!DOCTYPE html><html>404"), "browser"),
    "a gzip archive": (lambda path: path.write_bytes(gzip.compress(b"x" * 100)), "gunzip"),
    "a Python pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "never opened"),
    "a PyTorch checkpoint": (_state_dict, "surgery attach MODEL.onnx"),
    "before 1.6": (
        lambda path: torch.save({"w": torch.ones(3)}, path, _use_new_zipfile_serialization=False),
        "save it again",
    ),
    "a zip archive": (lambda path: _zip(path, {"data": b"{}", "policy.bin": b""}), "list adapters"),
    "a safetensors file": (lambda path: write_safetensors(path, {"w": ir.tensor([1.0])}), "export"),
    "a NumPy array": (lambda path: np.save(path.open("wb"), np.ones(3)), ""),
    "an HDF5 file": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50)), "load_model"),
    "a Git LFS pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "git lfs pull",
    ),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("what", FOREIGN)
def test_foreign_files_are_named_with_a_way_on(tmp_path, what):
    make, hint = FOREIGN[what]
    path = tmp_path / "model.onnx"
    make(path)
    with pytest.raises(UnknownFormat) as caught:
        load(path)
    assert what in caught.value.message
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("asked", "there", "what", "hint"),
    [
        ("run", "run/ckpt-1.index", "a folder of TensorFlow checkpoints", "run/NAME.index"),
        ("run", "run/3/_CHECKPOINT_METADATA", "a folder of checkpoints of Orbax", "run/STEP"),
        ("c.data-00000-of-00001", "c.data-00000-of-00001", "the numbers of a TensorFlow", "NAME.index"),
        ("m/saved_model.pb", "m/saved_model.pb", "a part of a SavedModel", "the folder that it lies in"),
        ("c", "c.index", "does not exist", "c.index"),
        ("{run}", "{run}/{0}.onnx", "a folder", "{0}.onnx"),
    ],
)
def test_a_part_of_a_checkpoint_or_a_folder_of_several_is_named_with_the_one_to_take(
    tmp_path, asked, there, what, hint
):
    (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / there).write_bytes(bytes(range(9, 99)))
    with pytest.raises(FileError) as caught:
        load(tmp_path / asked)
    assert what in caught.value.message and hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(bytes(1000)), "not a whole ONNX model"),
        (lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)), "not a whole ONNX model"),
        (lambda path: path.write_bytes(ModelProto(ir_version=8).SerializeToString()), "not a whole"),
        (lambda path: path.write_bytes(mlp().graph.SerializeToString()), "not a whole ONNX model"),
    ],
    ids=["missing", "folder", "empty", "zeros", "random", "no graph", "a graph alone"],
)
def test_what_is_no_model_is_refused(tmp_path, make, says):
    make(tmp_path / "m.onnx")
    with pytest.raises(FileError, match=says):
        load(tmp_path / "m.onnx")


def test_random_bytes_are_never_a_model(tmp_path):
    rng = np.random.default_rng(1)
    path = tmp_path / "m.onnx"
    for _ in range(300):
        path.write_bytes(b"\x08\x0a" + rng.bytes(int(rng.integers(1, 60))))
        with pytest.raises(SurgeryError):
            load(path)


@pytest.mark.parametrize("external", [False, True])
def test_no_truncated_model_of_ours_can_be_loaded(tmp_path, external):
    model = mlp()
    helper.set_model_props(model, {"note": "z" * 50})
    checkpoint = load(write(model, tmp_path / "in.onnx"))
    save(checkpoint, tmp_path / "m.onnx", external=external)
    whole = (tmp_path / "m.onnx").read_bytes()
    for end in range(1, len(whole)):
        (tmp_path / "m.onnx").write_bytes(whole[:end])
        with pytest.raises(FileError):
            load(tmp_path / "m.onnx")


def test_a_truncated_foreign_model_is_refused_or_whole(tmp_path):
    path = write(mlp(), tmp_path / "m.onnx")
    whole, digest = path.read_bytes(), load(path).digest()
    for end in range(1, len(whole)):
        path.write_bytes(whole[:end])
        try:
            assert load(path).digest() == digest
        except SurgeryError:
            continue


@pytest.mark.parametrize("suffix", [".safetensors", ".optimizer.safetensors"])
def test_no_truncated_file_beside_a_model_is_taken(tmp_path, suffix):
    checkpoint = load(write(mlp(), tmp_path / "in.onnx"))
    state = OptimizerState("sgd", {"momentum_buffer": dict(checkpoint.tensors)}, {}, (_group(checkpoint),))
    save(checkpoint.replace(optimizer=state), tmp_path / "m.onnx", external=True)
    beside = tmp_path / f"m{suffix}"
    whole = beside.read_bytes()
    for content in [*(whole[:end] for end in range(0, len(whole), 5)), whole + b"\0"]:
        beside.write_bytes(content)
        with pytest.raises(FileError):
            load(tmp_path / "m.onnx")
    beside.unlink()
    with pytest.raises(FileError, match="missing"):
        load(tmp_path / "m.onnx")


def _group(checkpoint) -> ParamGroup:
    return ParamGroup(tuple(checkpoint.tensors), {"lr": 0.1})


def test_every_flipped_byte_is_an_error_or_loads(tmp_path):
    path = write(branching(), tmp_path / "m.onnx")
    whole = bytearray(path.read_bytes())
    for position in range(len(whole)):
        for mask in (0x01, 0x80, 0xFF):
            damaged = whole.copy()
            damaged[position] ^= mask
            path.write_bytes(damaged)
            try:
                load(path).digest()
            except SurgeryError:
                continue


@pytest.mark.parametrize(
    ("suffix", "without"), [(".optimizer.safetensors", "optimizer=False"), (".safetensors", "")]
)
def test_files_of_another_model_are_told_apart(tmp_path, suffix, without):
    for name, scale in (("a", 1.0), ("b", 2.0)):
        checkpoint = load(write(mlp(scale=scale), tmp_path / f"{name}-in.onnx"))
        state = OptimizerState(
            "sgd", {"momentum_buffer": dict(checkpoint.tensors)}, {}, (_group(checkpoint),)
        )
        save(checkpoint.replace(optimizer=state), tmp_path / f"{name}.onnx", external=True)
    (tmp_path / f"b{suffix}").replace(tmp_path / f"a{suffix}")
    with pytest.raises(CorruptFile, match=r"not the optimizer state|not hold the weights") as caught:
        load(tmp_path / "a.onnx")
    assert without in (caught.value.hint or "")


def _external(path: Path, change: Callable[[TensorProto], object]) -> Path:
    write(mlp(), path, external="w.bin")
    model = onnx.load(path, load_external_data=False)
    change(model.graph.initializer[0])
    path.write_bytes(model.SerializeToString())
    return path


def _entry(key: str, value: str) -> Callable[[TensorProto], object]:
    def change(tensor: TensorProto) -> None:
        entries = {entry.key: entry.value for entry in tensor.external_data} | {key: value}
        del tensor.external_data[:]
        for name, text in entries.items():
            tensor.external_data.add(key=name, value=text)

    return change


ESCAPES = {
    "../w.bin": "not in the model's own folder",
    "sub/../../w.bin": "not in the model's own folder",
    "/etc/passwd": "not in the model's own folder",
    "..\\w.bin": "not in the model's own folder",
    "": "not in the model's own folder",
    "link": "a link that leads out",
    "folder-link/w.bin": "a link that leads out",
    "gone.bin": "missing",
    ".": "missing",
}


@pytest.mark.parametrize("location", ESCAPES)
def test_weights_outside_the_folder_are_never_read(tmp_path, location):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (outside / "w.bin").write_bytes(bytes(1000))
    (inside / "link").symlink_to(outside / "w.bin")
    (inside / "folder-link").symlink_to(outside)
    with pytest.raises(FileError, match=ESCAPES[location]):
        load(_external(inside / "m.onnx", _entry("location", location)))


def test_links_within_the_folder_and_hard_links_are_followed(tmp_path):
    path = _external(tmp_path / "m.onnx", _entry("location", "link"))
    (tmp_path / "link").symlink_to("w.bin")
    os.link(tmp_path / "w.bin", tmp_path / "backup.bin")
    assert load(path).digest() == load(write(mlp(), tmp_path / "inline.onnx")).digest()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_entry("offset", "100000"), "cut short"),
        (_entry("offset", "-1"), "at the offset '-1'"),
        (_entry("length", "7"), "its shape needs"),
        (_entry("length", "100000"), "its shape needs"),
        (_entry("offset", "many"), "at the offset"),
        (lambda tensor: tensor.dims.__setitem__(0, 1 << 40), "its shape needs|cut short"),
        (lambda tensor: setattr(tensor, "data_type", TensorProto.STRING), "strings outside"),
    ],
)
def test_regions_that_do_not_fit_their_file_are_refused(tmp_path, change, says):
    with pytest.raises(SurgeryError, match=says):
        load(_external(tmp_path / "m.onnx", change))


def _edit(change: Callable[[ModelProto], object]) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        model = mlp()
        change(model)
        path.write_bytes(model.SerializeToString())

    return make


def _duplicate(model: ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def _sparse(model: ModelProto) -> None:
    values = helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3]))


def _swap_nodes(model: ModelProto) -> None:
    nodes = list(reversed(model.graph.node))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


BAD_GRAPHS: dict[str, Callable[[ModelProto], object]] = {
    "IR version 99": lambda m: setattr(m, "ir_version", 99),
    "opset 27": lambda m: setattr(m.opset_import[0], "version", 27),
    "same name: net.0.weight": _duplicate,
    "sparse initializers": _sparse,
    "training graphs": lambda m: m.training_info.add(),
    "has no name": lambda m: setattr(m.graph.initializer[0], "name", ""),
    "which nothing before it computes": _swap_nodes,
    "exists already": lambda m: m.graph.node.append(m.graph.node[0]),
    "computed by no node": lambda m: setattr(m.graph.output[0], "name", "z"),
    "unknown element type 99": lambda m: setattr(m.graph.initializer[0], "data_type", 99),
    "no valid shape or element type": lambda m: setattr(m.graph.initializer[0], "data_type", 0),
    "no valid shape or": lambda m: m.graph.initializer[0].dims.__setitem__(0, -8),
    "its shape [9, 4] needs 144": lambda m: m.graph.initializer[0].dims.__setitem__(0, 9),
    "needs 4": lambda m: m.graph.initializer[0].dims.__setitem__(slice(0, 2), [1, 1]),
    "the domain 'other' have no opset": lambda m: setattr(m.graph.node[0], "domain", "other"),
}


@pytest.mark.parametrize("says", BAD_GRAPHS)
def test_invalid_graphs_are_refused_with_the_reason(tmp_path, says):
    _edit(BAD_GRAPHS[says])(tmp_path / "m.onnx")
    with pytest.raises((GraphError, CorruptFile)) as caught:
        load(tmp_path / "m.onnx")
    assert says in caught.value.message
    assert "m.onnx" in caught.value.where["file"]


@pytest.mark.parametrize("name", [b"net.0.weight", b"net.0.bias", b"Relu"])
def test_names_that_are_no_text_are_refused(tmp_path, name):
    """Protobuf would read them as bytes, and could not write them again."""
    path = tmp_path / "m.onnx"
    _edit(lambda model: None)(path)
    content = path.read_bytes()
    found = content.replace(bytes([len(name)]) + name, bytes([len(name)]) + b"\xff" * len(name))
    assert found != content
    path.write_bytes(found)
    with pytest.raises(CorruptFile, match="is not text"):
        load(path)


def test_tensors_that_announce_petabytes_are_refused_without_trying(tmp_path):
    tensor = TensorProto(name="big", data_type=TensorProto.FLOAT, dims=[1 << 30, 1 << 30])
    path = tmp_path / "m.onnx"
    path.write_bytes(wrap([helper.make_node("Identity", ["x"], ["y"])], [tensor]).SerializeToString())
    with pytest.raises(CorruptFile, match="needs 1152921504606846976"):
        load(path)


METADATA = {
    "not valid JSON": "{",
    "not a JSON object": "[]",
    "a key occurs twice": '{"schema": 1, "schema": 1}',
    "NaN is not JSON": '{"schema": NaN}',
    "no schema number": "{}",
    "schema 2, this version reads schema 1": '{"schema": 2}',
    "field 'interface'": '{"schema": 1}',
}


def _saved(tmp_path: Path, **changes: object) -> Path:
    save(load(write(mlp(), tmp_path / "in.onnx")), tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    record = json.loads(model.metadata_props[0].value) | changes
    model.metadata_props[0].value = json.dumps(record)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("says", METADATA)
def test_metadata_that_is_not_ours_is_refused(tmp_path, says):
    model = mlp()
    helper.set_model_props(model, {METADATA_KEY: METADATA[says]})
    with pytest.raises(FileError, match=says) as refused:
        load(write(model, tmp_path / "m.onnx"))
    assert says != "not valid JSON" or METADATA_KEY in str(refused.value.hint)


PORT = {"name": "x", "kind": "observation", "low": None, "high": None, "labels": None, "declared": True}
BAD_RECORDS = {
    "fields that this version does not know: extra": {"extra": 1},
    "metadata describes the outputs": {"interface": {"inputs": [PORT], "outputs": []}},
    "cannot be of kind": {"interface": {"inputs": [PORT | {"kind": "value"}], "outputs": []}},
    "not a list of strings": {"interface": {"inputs": [PORT | {"labels": [1]}], "outputs": []}},
    "not true or false": {"interface": {"inputs": [PORT | {"declared": 1}], "outputs": []}},
    "not a finite number": {"interface": {"inputs": [PORT | {"low": "0"}], "outputs": []}},
    "a positive integer": {"environment": {"id": "A", "settings": {"frame_skip": "4"}}},
    "id is not a string": {"environment": {"id": 3, "settings": {}}},
    "lineage step is not a JSON object": {"lineage": [3]},
    "'seed' of the lineage step": {
        "lineage": [
            {"operation": "a", "parents": [], "versions": {}, "seed": "x", "summary": 0, "witness": 0}
        ]
    },
    "not in the model's own folder": {"optimizer": {"file": "../o.safetensors", "digest": "0"}},
    "the optimizer state .* is missing": {"optimizer": {"file": "o.safetensors", "digest": "0"}},
}


@pytest.mark.parametrize("says", BAD_RECORDS)
def test_records_that_do_not_hold_are_refused(tmp_path, says):
    with pytest.raises(FileError, match=says) as caught:
        load(_saved(tmp_path, **BAD_RECORDS[says]))
    assert caught.value.hint or not ("missing" in says or "describes" in says)


def test_nothing_of_the_numbers_is_lost_in_typed_fields(tmp_path):
    model = mlp()
    tensor = helper.make_tensor("typed", TensorProto.FLOAT, [2], [1.0, 2.0])
    model.graph.initializer.append(tensor)
    found = load(write(model, tmp_path / "m.onnx")).tensors["typed"]
    assert np.array_equal(found.numpy(), numpy_helper.to_array(tensor))
