"""Checkpoints that TensorFlow wrote (tests/fixtures/tf_checkpoint/make.py): read without it, changed, written back."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

import surgery
from surgery.adapters import Reading
from surgery.errors import SurgeryError
from surgery.tensors import equal
from surgery.verify.outputs import runtime
from surgery_adapters.tf_checkpoint.bundle import Bundle
from surgery_adapters.tf_checkpoint.crc32c import crc32c, masked_crc32c
from surgery_adapters.tf_checkpoint.table import MAGIC, read_table, varint, write_table

FOLDER = Path(__file__).parent / "fixtures" / "tf_checkpoint"
NAMES = ("dqn", "rainbow", "objects")
PYTHON = os.environ.get("SURGERY_TENSORFLOW_PYTHON")
"""Of an environment with TensorFlow and what else make.py needs (noxfile.py makes one)."""


def load(path: Path, **settings: object) -> surgery.Checkpoint:
    graph = FOLDER / "objects.onnx" if path.name.startswith("objects") else None
    return surgery.load(path, reading=Reading(graph=graph), **settings)


def answers(checkpoint: surgery.Checkpoint, recorded, name: str) -> np.ndarray:
    seen = recorded["objects/observation" if name == "objects" else "images"].astype(np.float32)
    return next(iter(runtime(checkpoint.model)({checkpoint.interface.inputs[0].name: seen}).values()))


@pytest.fixture(scope="module")
def recorded():
    with np.load(FOLDER / "answers.npz") as found:
        return dict(found)


@pytest.mark.parametrize("name", NAMES)
def test_the_graph_answers_as_tensorflow_did(recorded, name):
    wanted = recorded["objects/q" if name == "objects" else f"{name}/online"]
    found = answers(load(FOLDER / f"{name}.index"), recorded, name).reshape(wanted.shape)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert (found.argmax(1) == wanted.argmax(1)).all()


@pytest.mark.parametrize("name", NAMES)
def test_an_unchanged_copy_is_the_same_bytes(tmp_path, name):
    written = surgery.save(load(FOLDER / f"{name}.index"), tmp_path / "copy.index")
    assert [path.name for path in written] == ["copy.data-00000-of-00001", "copy.index"]
    for path in written:
        assert path.read_bytes() == (FOLDER / path.name.replace("copy", name)).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_a_wide_network_is_the_same_function_and_only_what_the_plan_touched_differs(tmp_path, name):
    before = load(FOLDER / f"{name}.index")
    plan = surgery.widen(before, factor=2)
    result = surgery.apply(plan, before)
    result.save(tmp_path / f"{name}.index")
    old, new = Bundle.open(FOLDER / f"{name}.index"), Bundle.open(tmp_path / f"{name}.index")
    assert list(old.entries) == list(new.entries) and old.header == new.header
    ours, theirs = old.tensors(), new.tensors()
    touched = {tensor.name for tensor in plan.tensors}
    changed = {key for key in ours if not equal(ours[key], theirs[key])}
    assert touched & set(ours) <= changed
    assert all(key in touched or any(parameter in key for parameter in touched) for key in changed)
    for key, entry in old.entries.items():  # strings and what else is no table of numbers
        if entry.dtype is None:
            parts = [b.data(0).read_bytes() for b in (old, new)]
            places = [slice(e.offset, e.offset + e.size) for e in (entry, new.entries[key])]
            assert parts[0][places[0]] == parts[1][places[1]]
    if name != "objects":  # its graph, that of the old file, is no longer one of these arrays
        after = load(tmp_path / f"{name}.index")
        assert surgery.verify(before, after).ok
        for slot, members in result.checkpoint.optimizer.slots.items():
            assert all(equal(tensor, after.optimizer.slots[slot][key]) for key, tensor in members.items())


def test_slots_are_bound_by_the_names_of_parameters():
    rmsprop, adam, objects = (load(FOLDER / f"{name}.index").optimizer for name in NAMES)
    assert set(rmsprop.slots) == {"square_avg", "grad_avg", "momentum_buffer"}
    assert rmsprop.groups[0].hyper == {"eps_inside_root": True, "buffer_holds_lr": True}
    assert set(adam.slots) == set(objects.slots) == {"exp_avg", "exp_avg_sq"}
    for state in (rmsprop, adam, objects):
        squares = state.slots["square_avg" if state is rmsprop else "exp_avg_sq"]
        assert all(tensor.numpy().min() >= 0 for tensor in squares.values())
        assert len(squares) == (6 if state is objects else 10)


def test_without_a_graph_arrays_alone_are_not_enough():
    with pytest.raises(SurgeryError) as caught:
        surgery.load(FOLDER / "objects.index")
    assert "--graph" in caught.value.hint


def test_a_graph_of_other_arrays_is_refused(tmp_path):
    before = load(FOLDER / "objects.index")
    space = next(s for s in surgery.analyse(before.model, before.interface).spaces if s.widenable)
    plan = surgery.narrow(before, widths={space.name: space.size - 1}, by="l1")
    surgery.apply(plan, before).save(tmp_path / "narrow.index")
    with pytest.raises(SurgeryError):
        surgery.load(tmp_path / "narrow.index", reading=Reading(graph=FOLDER / "objects.onnx"))


# ---- the format ------------------------------------------------------------------------------------------------------


def test_checksums_are_castagnolis():
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, 40_000, np.uint8).tobytes()
    for size in (0, 1, 4095, 4096, 4097, 3 * 4096 + 5, 40_000):
        assert crc32c(data[:size]) == plain(data[:size])


def plain(data: bytes) -> int:
    """Bit by bit."""
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


def test_tables_are_read_as_they_are_written():
    rng = np.random.default_rng(0)
    keys = sorted({f"net/layer_{k % 37}/{k}".encode() for k in range(600)})
    entries = {b"": b"header", **{key: rng.bytes(int(rng.integers(0, 90))) for key in keys}}
    assert read_table(write_table(entries)) == entries
    assert read_table(write_table({})) == {}


def test_blocks_in_snappy_are_read():
    # one block of one entry: key "k", value 40 times "ab", as literal "ab" and copies of it
    value = b"ab" * 40
    block = bytes([0, 1]) + varint(len(value)) + b"k" + value + struct.pack("<2I", 0, 1)
    head, tail = block[:6], block[-8:]
    copies = bytes([63 << 2 | 2, 2, 0]) + bytes([13 << 2 | 2, 2, 0])  # 64 and 14 bytes from 2 back
    packed = varint(len(block)) + bytes([5 << 2]) + head + copies + bytes([7 << 2]) + tail
    assert read_table(table_of(packed, kind=1)) == {b"k": value}
    for broken in (varint(1 << 40) + packed[1:], packed[:-3], packed[:1] + bytes([2, 9, 0]) + packed[1:]):
        with pytest.raises(SurgeryError):
            read_table(table_of(broken, kind=1))


def table_of(block: bytes, kind: int) -> bytes:
    """A table of one block, compressed or not."""
    out = bytearray()

    def add(content: bytes, kind: int) -> bytes:
        handle = varint(len(out)) + varint(len(content))
        checked = content + bytes([kind])
        out.extend(checked + struct.pack("<I", masked_crc32c(checked)))
        return handle

    handle = add(block, kind)
    index = bytes([0, 1]) + varint(len(handle)) + b"z" + handle + struct.pack("<2I", 0, 1)
    handles = add(struct.pack("<2I", 0, 1), 0) + add(index, 0)
    return bytes(out) + handles.ljust(40, b"\0") + MAGIC


# ---- hostile and damaged files ---------------------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path):
    for path in FOLDER.glob("dqn.*"):
        shutil.copy(path, tmp_path)
    return tmp_path / "dqn.index"


def test_damaged_files_are_errors(copied):
    rng = np.random.default_rng(0)
    for path in (copied, copied.with_name("dqn.data-00000-of-00001")):
        content = path.read_bytes()
        for _ in range(20):
            broken = bytearray(content)
            if rng.random() < 0.4:
                broken = broken[: int(rng.integers(1, len(content)))] + broken[-8:] * (path == copied)
            else:
                broken[int(rng.integers(len(content) - 40))] ^= 1 + int(rng.integers(255))
            path.write_bytes(broken)
            with pytest.raises(SurgeryError) as caught:
                surgery.load(copied)
            assert "\n" not in caught.value.message
        path.write_bytes(content)


def test_a_missing_data_file_is_named(copied):
    copied.with_name("dqn.data-00000-of-00001").unlink()
    with pytest.raises(SurgeryError, match=r"dqn\.data-00000-of-00001"):
        surgery.load(copied)


def entry(**fields: int) -> bytes:
    """An entry of the index with some fields: dtype, shard, offset, size."""
    numbers = {"dtype": 1, "shard": 3, "offset": 4, "size": 5}
    shape = b"\x12\x04\x12\x02\x08\x02"
    return b"".join(varint(numbers[k] << 3) + varint(v) for k, v in fields.items()) + shape


HOSTILE = {
    "no header": {b"a": entry(dtype=1, size=8)},
    "no data files": {b"": b"\x08\x00"},
    "data files without end": {b"": b"\x08\xff\xff\xff\xff\x0f"},
    "a data file that is none": {b"": b"\x08\x01", b"a": entry(dtype=1, shard=9, size=8)},
    "bytes behind the end": {b"": b"\x08\x01", b"a": entry(dtype=1, offset=1 << 40, size=8)},
    "more bytes than the shape has": {b"": b"\x08\x01", b"a": entry(dtype=1, size=1 << 50)},
    "an entry that is no message": {b"": b"\x08\x01", b"a": b"\xff\xff\xff"},
    "big-endian": {b"": b"\x08\x01\x10\x01"},
    "no network": {b"": b"\x08\x01"},
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_errors(copied, content):
    copied.write_bytes(write_table(content))
    with pytest.raises(SurgeryError) as caught:
        surgery.load(copied)
    assert "\n" not in caught.value.message


# ---- the real framework ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(PYTHON is None, reason="SURGERY_TENSORFLOW_PYTHON names no environment with TensorFlow")
@pytest.mark.parametrize("name", NAMES)
def test_tensorflow_restores_the_wide_network_and_trains_on(tmp_path, recorded, name):
    before = load(FOLDER / f"{name}.index")
    result = surgery.apply(surgery.widen(before, factor=2), before)
    result.save(tmp_path / f"{name}.index")
    widths = "14,12" if name == "objects" else "4,6,4,8"
    made = subprocess.run(
        [PYTHON, FOLDER / "make.py", "--restore", name, tmp_path / name, widths, tmp_path / "out.npz"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr[-2000:]
    with np.load(tmp_path / "out.npz") as found:
        wanted = recorded["objects/q" if name == "objects" else f"{name}/online"]
        np.testing.assert_allclose(found["before"], wanted, atol=1e-5)
        assert not np.allclose(found["after"], found["before"])
        theirs = [found[key] for key in found.files if key.startswith("slot") and found[key].ndim]
    ours = [tensor.numpy() for slot in result.checkpoint.optimizer.slots.values() for tensor in slot.values()]
    assert sorted((a.shape, a.tobytes()) for a in ours) == sorted((a.shape, a.tobytes()) for a in theirs)
