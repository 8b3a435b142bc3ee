"""MessagePack as flax writes it: maps of text to maps and arrays, read without flax, and written with arrays replaced.

An array is an extension of type 1, whose content is itself MessagePack: shape, element type, bytes. Containers count
their elements, not their bytes, so that a replaced array leaves everything around it as it is.
(https://github.com/msgpack/msgpack/blob/master/spec.md, flax/serialization.py)
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import onnx_ir as ir

from surgery.errors import CorruptFile
from surgery.files import read_error
from surgery.tensors import MappedFile, blocks, shape_of

_ARRAY = 1
_SPAN = "surgery.span"
_MOST = 1 << 31
_DTYPES: Mapping[str, ir.DataType] = {
    "float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16, "float32": ir.DataType.FLOAT,
    "float64": ir.DataType.DOUBLE, "int8": ir.DataType.INT8, "int16": ir.DataType.INT16, "int32": ir.DataType.INT32,
    "int64": ir.DataType.INT64, "uint8": ir.DataType.UINT8, "uint32": ir.DataType.UINT32, "bool": ir.DataType.BOOL,
}  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    """The file as nested dicts; arrays are tensors that are still in the file.

    Raises:
      FileError: it cannot be read. CorruptFile: damaged, or of another layout.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise read_error(error, path) from error
    if len(data) >= _MOST:
        raise CorruptFile(f"{path} is larger than 2 GiB, where flax cuts arrays into pieces")
    reader = _Reader(data, MappedFile(path))
    try:
        found = reader.value()
    except (IndexError, struct.error, UnicodeDecodeError, RecursionError, TypeError, ValueError) as error:
        raise CorruptFile(f"the file is damaged: {type(error).__name__}: {error}") from error
    if reader.at != len(data) or not isinstance(found, dict):
        raise CorruptFile("the file is no map, or something follows it")
    return found


def rewrite(path: Path, replaced: Mapping[int, ir.TensorProtocol], out: BinaryIO) -> None:
    """Write a file with some arrays replaced.

    Args:
      path: the original. replaced: where an array begins in it -> the tensor that takes its place.
      out: where to write.
    """
    data = path.read_bytes()
    at = 0
    spans = {span[0]: span for tensor in _tensors(read(path)) if (span := span_of(tensor)) is not None}
    for start in sorted(replaced):
        out.write(data[at:start])
        out.write(_extension(replaced[start], spans[start][2]))
        at = spans[start][1]
    out.write(data[at:])


def span_of(tensor: ir.TensorProtocol) -> tuple[int, int, str] | None:
    """Where an array begins and ends in its file, and its element type there."""
    found = tensor.meta.get(_SPAN)
    return found if isinstance(found, tuple) else None


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, ir.TensorProtocol]:
    """The arrays of a tree, by their path with dots."""
    found: dict[str, ir.TensorProtocol] = {}
    for key, value in tree.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, dict):
            found |= flat(value, name)
        elif isinstance(value, ir.TensorProtocol):
            value.name = name
            found[name] = value
    return found


def _tensors(tree: Mapping[str, Any]) -> list[ir.TensorProtocol]:
    return list(flat(tree).values())


@dataclass
class _Reader:
    data: bytes
    file: MappedFile
    at: int = 0

    def value(self) -> Any:  # noqa: ANN401
        start, code = self.at, self._take(1)[0]
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 256
        if code < 0x90:
            return self._map(code & 15)
        if code < 0xA0:
            return [self.value() for _ in range(code & 15)]
        if code < 0xC0:
            return self._take(code & 31).decode()
        if code in _FIXED:
            return _FIXED[code]
        if code in _NUMBERS:
            return struct.unpack(_NUMBERS[code], self._take(struct.calcsize(_NUMBERS[code])))[0]
        if code in _EXTENSIONS:
            return self._extension(start, _EXTENSIONS[code])
        kind, size = _SIZED.get(code, ("", ""))
        if not kind:
            raise CorruptFile(f"the file uses the MessagePack code {code:#x}, which flax does not")
        count = struct.unpack(size, self._take(struct.calcsize(size)))[0]
        if kind == "map":
            return self._map(count)
        if kind == "array":
            return [self.value() for _ in range(self._possible(count))]
        if kind == "text":
            return self._take(count).decode()
        return self._take(count) if kind == "bytes" else self._extension(start, count)

    def _take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise CorruptFile(f"the file is cut short: byte {self.at + count} of {len(self.data)} is needed")
        self.at += count
        return self.data[self.at - count : self.at]

    def _possible(self, count: int) -> int:
        if count > len(self.data) - self.at:
            raise CorruptFile("the file announces more elements than it has bytes")
        return count

    def _map(self, count: int) -> dict[str, Any]:
        found = {}
        for _ in range(self._possible(count)):
            key = self.value()
            if not isinstance(key, str) or not key.isprintable() or "." in key or key in found:
                raise CorruptFile(f"the file has a key that is no name, or twice: {str(key)[:40]!r}")
            found[key] = self.value()
        return found

    def _extension(self, start: int, count: int) -> Any:  # noqa: ANN401
        kind = self._take(1)[0]
        end = self.at + count
        if kind != _ARRAY:
            return self._take(count)  # a number of NumPy's, or a complex one: carried as it is
        shape, dtype, content = (self._item(part) for part in self._header())
        if self.at != end or dtype not in _DTYPES or not isinstance(shape, list):
            raise CorruptFile("an array of the file is damaged")
        sizes = [size for size in shape if isinstance(size, int) and size >= 0]
        tensor = self.file.tensor(f"array at {start}", _DTYPES[dtype], sizes, self.at - len(content))
        if len(sizes) != len(shape) or tensor.nbytes != len(content):
            raise CorruptFile(
                f"an array of the file has {len(content)} bytes, its shape {shape} needs {tensor.nbytes}"
            )
        tensor.meta[_SPAN] = (start, end, dtype)
        return tensor

    def _header(self) -> range:
        code = self._take(1)[0]
        if code != 0x93:
            raise CorruptFile("an array of the file is no shape, type and bytes")
        return range(3)

    def _item(self, _: int) -> Any:  # noqa: ANN401
        return self.value()


_FIXED = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i",
    0xD3: ">q",
}  # fmt: skip
_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_SIZED = {
    0xC4: ("bytes", ">B"), 0xC5: ("bytes", ">H"), 0xC6: ("bytes", ">I"), 0xC7: ("extension", ">B"),
    0xC8: ("extension", ">H"), 0xC9: ("extension", ">I"), 0xD9: ("text", ">B"), 0xDA: ("text", ">H"),
    0xDB: ("text", ">I"), 0xDC: ("array", ">H"), 0xDD: ("array", ">I"), 0xDE: ("map", ">H"), 0xDF: ("map", ">I"),
}  # fmt: skip


def _extension(tensor: ir.TensorProtocol, dtype: str) -> bytes:
    data = b"".join(bytes(block) for block in blocks(tensor))
    shape = shape_of(tensor)
    name = dtype.encode()
    header = (
        bytes([0x93, 0x90 | len(shape)]) + b"".join(map(_natural, shape)) + bytes([0xA0 | len(name)]) + name
    )
    content = header + _sized(len(data), 0xC4) + data
    return _sized(len(content), 0xC7) + bytes([_ARRAY]) + content


def _natural(number: int) -> bytes:
    if number < 0x80:
        return bytes([number])
    for code, form in ((0xCC, ">B"), (0xCD, ">H"), (0xCE, ">I")):
        if number < 1 << 8 * struct.calcsize(form):
            return bytes([code]) + struct.pack(form, number)
    return b"\xcf" + struct.pack(">Q", number)


def _sized(count: int, first: int) -> bytes:
    """The code and the length of bytes (from 0xC4) or of an extension (from 0xC7)."""
    width = 0 if count < 1 << 8 else 1 if count < 1 << 16 else 2
    return bytes([first + width]) + struct.pack((">B", ">H", ">I")[width], count)
