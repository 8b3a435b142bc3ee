"""Safetensors headers and optimizer states that do not describe their file exactly are refused."""

from __future__ import annotations

import json
import struct

import numpy as np
import onnx_ir as ir
import pytest

from surgery.errors import CorruptFile, FileError
from surgery.optimizer import OptimizerState, ParamGroup, load_optimizer, save_optimizer
from surgery.storage import load
from surgery.tensors import read_safetensors, write_safetensors
from tests.small_models import mlp, write


def _header(entries: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _tensor(start: int, end: int, shape: list[int] | None = None, dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": [end - start] if shape is None else shape, "data_offsets": [start, end]}


BAD_SAFETENSORS = {
    "huge header": _header({}, length=1 << 62),
    "header beyond the end": _header({}, length=100),
    "no header": b"abc",
    "not JSON": _header(b"{nope}"),
    "not text": _header(b"\xff\xfe{}"),
    "a list": _header([]),
    "nested": _header(b"[" * 100000),
    "twice": _header(b'{"a":' + json.dumps(_tensor(0, 1)).encode() + b',"a":{}}', b"x"),
    "no dtype": _header({"a": {"shape": [1], "data_offsets": [0, 1]}}, b"x"),
    "unknown dtype": _header({"a": _tensor(0, 1, dtype="Q8")}, b"x"),
    "entry no dict": _header({"a": 3}),
    "negative size": _header({"a": _tensor(0, 1, [-1])}, b"x"),
    "size no integer": _header({"a": {"dtype": "U8", "shape": [1.0], "data_offsets": [0, 1]}}, b"x"),
    "shape no list": _header({"a": {"dtype": "U8", "shape": {}, "data_offsets": [0, 1]}}, b"x"),
    "size is true": _header({"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, b"x"),
    "huge size": _header({"a": _tensor(0, 1, [1 << 62, 1 << 62])}, b"x"),
    "size times zero": _header({"a": _tensor(0, 1, [1 << 70, 0])}, b"x"),
    "size and bytes differ": _header({"a": _tensor(0, 4, [2], "F32")}, bytes(4)),
    "backwards": _header({"a": {"dtype": "U8", "shape": [0], "data_offsets": [4, 2]}}, bytes(4)),
    "beyond the end": _header({"a": _tensor(0, 9)}, bytes(4)),
    "overlap": _header({"a": _tensor(0, 3), "b": _tensor(2, 4)}, bytes(4)),
    "hole": _header({"a": _tensor(0, 1), "b": _tensor(2, 4)}, bytes(4)),
    "left over": _header({"a": _tensor(0, 3)}, bytes(4)),
    "metadata no text": _header({"__metadata__": {"a": 1}}),
    "metadata no dict": _header({"__metadata__": []}),
}


@pytest.mark.parametrize("what", BAD_SAFETENSORS)
def test_hostile_safetensors_are_refused(tmp_path, what):
    path = tmp_path / "a.safetensors"
    path.write_bytes(BAD_SAFETENSORS[what])
    with pytest.raises(CorruptFile, match="safetensors"):
        read_safetensors(path)


BAD_STATES = {
    "not an optimizer state": {},
    "not valid JSON": {"surgery": "{"},
    "schema 9": {"surgery": '{"schema": 9}'},
    "not named after a slot": {"surgery": '{"schema":1,"kind":"sgd","slots":["b"],"steps":{},"groups":[]}'},
    "in no group": {"surgery": '{"schema":1,"kind":"sgd","slots":["a"],"steps":{},"groups":[]}'},
    "not a number": {"surgery": '{"schema":1,"kind":"sgd","slots":["a"],"steps":{"p":"1"},"groups":[]}'},
    "more than one group": {
        "surgery": '{"schema":1,"kind":"sgd","slots":["a"],"steps":{},"groups":'
        '[{"parameters":["p"],"hyper":{}},{"parameters":["p"],"hyper":{}}]}'
    },
}


@pytest.mark.parametrize("says", BAD_STATES)
def test_optimizer_files_that_are_none_are_refused(tmp_path, says):
    write_safetensors(tmp_path / "o", {"a/p": ir.tensor([1.0])}, BAD_STATES[says])
    with pytest.raises(FileError, match=says):
        load_optimizer(tmp_path / "o")


@pytest.mark.parametrize(
    ("name", "shape", "says"), [("other", 8, "does not have"), ("net.0.bias", 9, "the parameter is")]
)
def test_a_state_of_another_shape_is_refused(tmp_path, name, shape, says):
    path = write(mlp(), tmp_path / "m.onnx")
    moments = {"momentum_buffer": {name: ir.tensor(np.ones(shape, "f4"))}}
    save_optimizer(
        OptimizerState("sgd", moments, {}, (ParamGroup((name,)),)), tmp_path / "m.optimizer.safetensors"
    )
    with pytest.raises(CorruptFile, match=says):
        load(path)
    assert load(path, optimizer=False).optimizer is None
