"""Tensors as streams: the same bytes from wherever they come, few open files, and safetensors both ways."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import safetensors.numpy

from surgery.errors import ArgumentError, CorruptFile
from surgery.tensors import (
    BLOCK,
    MappedFile,
    blocks,
    digest,
    equal,
    finite,
    read_safetensors,
    write_safetensors,
)
from tests.small_models import array


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
def test_many_tensors_cost_few_open_files(tmp_path):
    tensors = {f"t{n}": ir.tensor(np.full(3, n, "f4")) for n in range(2000)}
    write_safetensors(tmp_path / "many.safetensors", tensors)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    found = read_safetensors(tmp_path / "many.safetensors").tensors
    assert all(found[name].numpy()[0] == n for n, name in enumerate(tensors))
    assert len(os.listdir("/proc/self/fd")) <= before + 2  # noqa: PTH208


@pytest.mark.parametrize("place", [0, BLOCK // 4 - 1, BLOCK // 4, 3 * BLOCK // 4 + 16])
def test_one_nan_in_a_large_file_is_found_wherever_it_is(tmp_path, place):
    value = np.ones(3 * BLOCK // 4 + 17, "f4")
    write_safetensors(tmp_path / "good", {"t": ir.tensor(value)})
    value[place] = np.nan
    write_safetensors(tmp_path / "bad", {"t": ir.tensor(value)})
    assert finite(read_safetensors(tmp_path / "good").tensors["t"])
    assert not finite(read_safetensors(tmp_path / "bad").tensors["t"])


@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 22])
def test_blocks_join_to_the_tensor_whatever_their_size(tmp_path, size):
    value = array(60, 70)
    (tmp_path / "data").write_bytes(b"head" + value.tobytes())
    stored = MappedFile(tmp_path / "data").tensor("t", ir.DataType.FLOAT, value.shape, 4)
    strided = ir.tensor(np.asfortranarray(value))
    for tensor in (stored, strided, ir.LazyTensor(lambda: strided, strided.dtype, strided.shape)):
        pieces = [bytes(block) for block in blocks(tensor, size)]
        assert b"".join(pieces) == value.tobytes()
        assert max(map(len, pieces)) <= size


def test_what_safetensors_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="INT4"):
        write_safetensors(tmp_path / "a", {"t": ir.tensor([1], dtype=ir.DataType.INT4)})


def test_a_region_beyond_the_end_is_refused(tmp_path):
    (tmp_path / "data").write_bytes(bytes(10))
    with pytest.raises(CorruptFile, match="cut short"):
        MappedFile(tmp_path / "data").tensor("t", ir.DataType.FLOAT, [2], 4)


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i8", "i1", "u2", "?", "c8"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (5, 7)], ids=str)
def test_safetensors_of_ours_and_of_the_reference_are_the_same(tmp_path, rng, dtype, shape):
    values = {"a": rng.integers(0, 2, shape).astype(dtype), "odd": np.ones(3, "u1"), "b": np.ones(2, "f8")}
    write_safetensors(
        tmp_path / "ours", {name: ir.tensor(value) for name, value in values.items()}, {"k": "v"}
    )
    safetensors.numpy.save_file(values, tmp_path / "theirs", {"k": "v"})
    theirs, ours = safetensors.numpy.load_file(tmp_path / "ours"), read_safetensors(tmp_path / "theirs")
    assert ours.metadata == {"k": "v"}
    for name, value in values.items():
        assert np.array_equal(theirs[name], value)
        assert np.array_equal(ours.tensors[name].numpy(), value)
        assert ours.tensors[name].shape == value.shape


def test_the_data_of_a_written_file_is_aligned(tmp_path):
    tensors = {
        f"t{n}": ir.tensor(np.ones(n, dtype)) for n, dtype in enumerate(("u1", "f8", "f2", "f4", "f8"))
    }
    layout = write_safetensors(tmp_path / "a", tensors)
    offsets = {name: offset for name, (offset, _) in layout.regions.items()}
    assert min(offsets.values()) % 64 == 0
    assert all(offset % tensors[name].dtype.itemsize == 0 for name, offset in offsets.items())
    assert layout.size == (tmp_path / "a").stat().st_size
    assert layout.digest == read_safetensors(tmp_path / "a").digest


def test_files_that_differ_in_one_value_have_different_digests(tmp_path):
    layouts = [write_safetensors(tmp_path / "a", {"t": ir.tensor([1.0, value])}) for value in (2.0, 3.0)]
    assert layouts[0].digest != layouts[1].digest


def test_digest_of_a_tensor_is_that_of_its_type_shape_and_values():
    flat, square = ir.tensor(np.arange(4, dtype="f4")), ir.tensor(np.arange(4, dtype="f4").reshape(2, 2))
    same = ir.tensor(np.asfortranarray(square.numpy()))
    assert digest(square) == digest(same)
    assert equal(square, same)
    assert len({digest(flat), digest(square), digest(ir.tensor(np.arange(4, dtype="i4")))}) == 3
    assert not equal(flat, square)
