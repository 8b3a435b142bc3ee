"""Damaged and hostile PyTorch checkpoints are refused with a reason, and nothing in them is executed."""

from __future__ import annotations

import functools
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from surgery.adapters import find
from surgery.errors import CorruptFile, FileError, UnknownFormat
from surgery_adapters import pytorch


def _zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


class _Call:
    """Pickles as a call of any function; unpickled by Python, it runs."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._reduced = (function, arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return self._reduced


def _checkpoint(path: Path, program: bytes, **members: bytes) -> Path:
    """A PyTorch checkpoint with the given pickle."""
    stored = {"data.pkl": program, "byteorder": b"little", "version": b"3\n", **members}
    _zip(path, {f"archive/{name}": content for name, content in stored.items()})
    return path


FORBIDDEN = {
    "posix.system": _Call(os.system, "touch pwned"),
    "builtins.eval": _Call(eval, "open('pwned', 'w')"),
    "builtins.getattr": _Call(getattr, {}, "keys"),
    "torch.serialization.load": _Call(torch.load, "x"),
    "functools.partial": functools.partial(print, 1),
    "torch.storage._load_from_bytes": torch.nn.Linear(2, 2),  # a module is data, its storages are not
}


@pytest.mark.parametrize("name", FORBIDDEN)
@pytest.mark.parametrize("protocol", [2, 4])
def test_calls_are_refused_by_name_and_nothing_runs(tmp_path, monkeypatch, name, protocol):
    monkeypatch.chdir(tmp_path)
    program = pickle.dumps({"model": FORBIDDEN[name]}, protocol)
    with pytest.raises(CorruptFile) as caught:
        pytorch.read(_checkpoint(tmp_path / "c.pt", program))
    assert name in caught.value.message
    assert not (tmp_path / "pwned").exists()


def _nested_key() -> bytes:
    program = b"\x80\x02}"
    program += b")" + b"".join(b"q\x00h\x00h\x00\x86" for _ in range(60))
    return program + b"K\x01s."


PROGRAMS = {
    "empty": b"",
    "no end": b"\x80\x02}",
    "stack is empty": b"\x80\x02.",
    "two results": b"\x80\x02}}.",
    "unfinished list": b"\x80\x02(.",
    "memo is empty": b"\x80\x02h\x05.",
    "append to a number": b"\x80\x02K\x01K\x02a.",
    "key is a list": b"\x80\x02}]K\x01s.",
    "key that holds itself": _nested_key(),
    "odd items": b"\x80\x02}(K\x01u.",
    "call of a number": b"\x80\x02K\x01)R.",
    "call without arguments": b"\x80\x02ccollections\nOrderedDict\nK\x01R.",
    "state of a number": b"\x80\x02K\x01}b.",
    "state of a constructor": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}b.",
    "slots of a constructor": b"\x80\x02ctorch._utils\n_rebuild_tensor\nN}X\x04\x00\x00\x00makeK\x01s\x86b.",
    "extension registry": b"\x80\x02\x82\x01.",
    "instance opcode": b"(iposix\nsystem\n.",
    "object opcode": b"(cposix\nsystem\no.",
    "persistent text": b"Pstorage\n.",
    "persistent list": b"\x80\x02]Q.",
    "persistent storage of numbers": b"\x80\x02(X\x07\x00\x00\x00storageK\x01K\x02K\x03K\x04tQ.",
    "no such storage": b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x009NK\x04tQ.",
    "tensor of nothing": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))\x89NtR.",
    "unknown opcode": b"\xff\xff\xff",
    "long string": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "bytes in another encoding": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",
    "a NumPy number that is an object": (
        b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x01\x00\x00\x00O\x85RC\x01a\x86R."
    ),
}


@pytest.mark.parametrize("what", PROGRAMS)
def test_damaged_and_hostile_pickles_are_refused(tmp_path, what):
    with pytest.raises(CorruptFile):
        pytorch.read(_checkpoint(tmp_path / "c.pt", PROGRAMS[what]))


TENSORS = {
    "beyond its storage": ((0, (5,), (1,)), 16),
    "offset beyond": ((9, (1,), (1,)), 16),
    "offset of nothing": ((9, (0,), (1,)), 16),
    "stride beyond": ((0, (2, 2), (4, 1)), 16),
    "negative stride": ((0, (2,), (-1,)), 16),
    "negative size": ((0, (-2,), (1,)), 16),
    "negative offset": ((-1, (2,), (1,)), 16),
    "ranks differ": ((0, (2, 2), (1,)), 16),
    "sizes of text": ((0, ("2",), (1,)), 16),
    "a bomb of zeros": ((0, (1 << 40,), (0,)), 16),
    "storage too small": ((0, (4,), (1,)), 12),
    "storage too large": ((0, (4,), (1,)), 20),
}


@pytest.mark.parametrize("what", TENSORS)
def test_tensors_that_reach_beyond_their_storage_are_refused(tmp_path, what):
    (offset, size, stride), stored = TENSORS[what]

    class Pickler(pickle.Pickler):
        def persistent_id(self, item: object) -> object:
            return item if isinstance(item, tuple) and item[:1] == ("storage",) else None

    storage = ("storage", torch.FloatStorage, "0", "cpu", 4)
    call = _Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {})
    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"w": call})
    path = _checkpoint(tmp_path / "c.pt", buffer.getvalue(), **{"data/0": bytes(stored)})
    with pytest.raises(CorruptFile):
        pytorch.read(path)


def _real(path: Path) -> Path:
    torch.save({"model": {"w": torch.arange(20.0)}, "step": 3}, path)
    return path


def _renamed(old: str, new: str, count: int = -1) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        _real(path)
        path.write_bytes(path.read_bytes().replace(old.encode(), new.encode(), count))

    return make


def _remade(path: Path, compression: int = zipfile.ZIP_STORED, **changes: bytes) -> None:
    with zipfile.ZipFile(_real(path)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    stem = path.stem
    _zip(path, members | {f"{stem}/{name}": content for name, content in changes.items()}, compression)


def _declared(at: int, value: bytes) -> Callable[[Path], object]:
    """What the archive's directory says of a storage, written over."""

    def make(path: Path) -> None:
        content = bytearray(_real(path).read_bytes())
        entry = content.rindex(b"PK\x01\x02", 0, content.rindex(b"c/data/0"))
        content[entry + at : entry + at + len(value)] = value
        path.write_bytes(content)

    return make


BAD_ARCHIVES: dict[str, Callable[[Path], object]] = {
    "compressed": lambda path: _remade(path, zipfile.ZIP_DEFLATED),
    "bomb": lambda path: _remade(path, zipfile.ZIP_DEFLATED, **{"data/0": bytes(1 << 24)}),
    "leaves the folder": _renamed("c/data/0", "../ata/0"),
    "absolute name": _renamed("c/data/0", "/cdata/0"),
    "name differs within": lambda path: path.write_bytes(
        _real(path).read_bytes().replace(b"c/data/0", b"c/data/1", 1)
    ),
    "declared larger": _declared(20, struct.pack("<II", 1 << 30, 1 << 30)),
    "compressed to its own length": _declared(10, b"\x08"),
    "encrypted": _declared(8, b"\x01"),
    "big endian": lambda path: _remade(path, byteorder=b"big"),
    "two checkpoints": lambda path: _zip(path, {"a/data.pkl": b"N.", "b/data.pkl": b"N."}),
    "beside the checkpoint": lambda path: _zip(path, {"a/data.pkl": b"N.", "b/x": b""}),
    "storage is missing": _renamed("c/data/0", "c/data/7"),
}


@pytest.mark.parametrize("what", BAD_ARCHIVES)
def test_hostile_archives_are_refused(tmp_path, what):
    path = tmp_path / "c.pt"
    BAD_ARCHIVES[what](path)
    with pytest.raises(CorruptFile):
        pytorch.read(path)


def test_no_truncated_checkpoint_is_taken(tmp_path):
    whole = _real(tmp_path / "c.pt").read_bytes()
    for end in range(0, len(whole), 7):
        (tmp_path / "c.pt").write_bytes(whole[:end])
        with pytest.raises(FileError):
            pytorch.read(tmp_path / "c.pt")


def test_every_flipped_byte_of_a_checkpoint_is_an_error_or_loads(tmp_path):
    whole = bytearray(_real(tmp_path / "c.pt").read_bytes())
    for position in range(len(whole)):
        damaged = whole.copy()
        damaged[position] ^= 0x55
        (tmp_path / "c.pt").write_bytes(damaged)
        try:
            content = pytorch.read(tmp_path / "c.pt")
        except FileError:
            continue
        assert isinstance(content, dict)


def test_a_file_that_no_adapter_reads_is_named(tmp_path):
    (tmp_path / "x.pt").write_bytes(pickle.dumps({"w": 1}))
    assert not pytorch.detect(tmp_path / "x.pt")
    with pytest.raises(UnknownFormat, match="a Python pickle") as caught:
        find(tmp_path / "x.pt")
    assert "never opened" in (caught.value.hint or "")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"optimizer": {"state": {}, "param_groups": []}}])
def test_a_checkpoint_without_a_network_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(UnknownFormat, match="network"):
        pytorch.training_state(tmp_path / "c.pt")
