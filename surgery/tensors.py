"""Tensors as streams of bytes: digests, and safetensors files read and written one tensor at a time.

A safetensors file is `u64 length, JSON header, data`; the header gives `dtype, shape, [begin, end)` per
tensor, and the data has no holes (https://github.com/huggingface/safetensors#format). Shapes are all that the
header needs, so it is written first, and each tensor is then produced, written and dropped.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeGuard

import numpy as np
import onnx_ir as ir

from surgery.errors import ArgumentError, CorruptFile
from surgery.files import check_readable, read_error

BLOCK = 1 << 22
_ALIGNMENT = 64
_MAX_HEADER = 100_000_000
_CRC = "crc32"
_REGION = "surgery.region"

DTYPES: Mapping[str, ir.DataType] = {
    "BOOL": ir.DataType.BOOL,
    "U8": ir.DataType.UINT8,
    "I8": ir.DataType.INT8,
    "U16": ir.DataType.UINT16,
    "I16": ir.DataType.INT16,
    "U32": ir.DataType.UINT32,
    "I32": ir.DataType.INT32,
    "U64": ir.DataType.UINT64,
    "I64": ir.DataType.INT64,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
    "F32": ir.DataType.FLOAT,
    "F64": ir.DataType.DOUBLE,
    "C64": ir.DataType.COMPLEX64,
    "F8_E4M3": ir.DataType.FLOAT8E4M3FN,
    "F8_E4M3FNUZ": ir.DataType.FLOAT8E4M3FNUZ,
    "F8_E5M2": ir.DataType.FLOAT8E5M2,
    "F8_E5M2FNUZ": ir.DataType.FLOAT8E5M2FNUZ,
    "F8_E8M0": ir.DataType.FLOAT8E8M0,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class MappedFile:
    """A file that is mapped into memory, once for all of its tensors, and read only where it is touched.

    The mapping keeps the file's content when another file takes its name, and costs one file descriptor
    (an `ir.ExternalTensor` keeps one for itself once it was touched, and a large network has more tensors
    than a process may open files).

    Raises:
      FileError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.size = path.stat().st_size
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else None
        except OSError as error:
            raise read_error(error, path) from error

    @property
    def whole(self) -> Region:
        """All of its bytes."""
        return Region(self, 0, self.size)

    def tensor(self, name: str, dtype: ir.DataType, shape: Sequence[int], offset: int) -> ir.TensorProtocol:
        """A region of the file as a tensor, little-endian and in C order; nothing is read.

        Raises:
          CorruptFile: the region does not lie in the file.
        """
        length = math.ceil(math.prod(shape) * dtype.itemsize)
        if offset < 0 or offset + length > self.size:
            raise CorruptFile(
                f"{self.path} is cut short: '{name}' ends at byte {offset + length} of {self.size}"
            )
        whole = dtype.bitwidth >= 8
        kind = np.dtype(dtype.numpy()).newbyteorder("<") if whole else np.dtype(np.uint8)
        buffer = b"" if self._map is None or not length else self._map
        array = np.frombuffer(buffer, kind, length // kind.itemsize, offset if length else 0)
        tensor: ir.Tensor[np.ndarray] | ir.PackedTensor[np.ndarray]
        if whole:
            tensor = ir.Tensor(array.reshape(shape), dtype=dtype, name=name)
        else:
            tensor = ir.PackedTensor(array, dtype, shape=ir.Shape(shape), name=name)
        tensor.meta[_REGION] = Region(self, offset, length)
        return tensor

    def blocks(self, offset: int, length: int, size: int) -> Iterator[memoryview]:
        """The bytes of a region in pieces; their pages are given back to the system behind the reader.

        Raises:
          CorruptFile: the region does not lie in the file.
        """
        if offset < 0 or offset + length > self.size:
            raise CorruptFile(f"{self.path} is cut short: byte {offset + length} of {self.size} is needed")
        if self._map is None:
            return
        view = memoryview(self._map)
        for start in range(offset, offset + length, size):
            stop = min(start + size, offset + length)
            yield view[start:stop]
            page = start - start % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, page, stop - page)


@dataclass(frozen=True)
class Region:
    """The bytes of a tensor in a file."""

    file: MappedFile
    offset: int
    length: int

    def blocks(self, size: int) -> Iterator[memoryview]:
        return self.file.blocks(self.offset, self.length, size)


def region_of(tensor: ir.TensorProtocol) -> Region | None:
    """Where a tensor lies in a file, if that is where it lies."""
    region = tensor.meta.get(_REGION)
    return region if isinstance(region, Region) else None


def storable(dtype: ir.DataType) -> bool:
    """Whether safetensors has a name for this element type (none for strings and elements below a byte)."""
    return dtype in _NAMES


def blocks(tensor: ir.TensorProtocol, size: int = BLOCK) -> Iterator[memoryview | bytes]:
    """The tensor's bytes, little-endian and in C order, in pieces of at most `size` bytes.

    A file region is read piece by piece, and its pages are given back to the system behind the reader.
    """
    if (region := region_of(tensor)) is not None:
        yield from region.blocks(size)
    elif isinstance(tensor, ir.LazyTensor):
        yield from blocks(tensor.raw(), size)
    elif tensor.dtype == ir.DataType.STRING:
        for text in tensor.numpy().reshape(-1):
            yield len(text).to_bytes(8, "little") + text
    else:
        data = _raw(tensor)
        for start in range(0, len(data), size):
            yield data[start : start + size]


def digest(tensor: ir.TensorProtocol) -> str:
    """SHA-256 of element type, shape and bytes, streamed: the same wherever the tensor is stored."""
    state = hashlib.sha256(f"{tensor.dtype.name}{list(shape_of(tensor))}".encode())
    for block in blocks(tensor):
        state.update(block)
    return state.hexdigest()


def equal(left: ir.TensorProtocol, right: ir.TensorProtocol) -> bool:
    """Whether two tensors have the same element type, shape and bytes."""
    if left.dtype != right.dtype or shape_of(left) != shape_of(right):
        return False
    return all(a == b for a, b in zip(blocks(left), blocks(right), strict=True))


def finite(tensor: ir.TensorProtocol) -> bool:
    """Whether no element is NaN or infinite (true for element types that have neither)."""
    if tensor.dtype not in _NAMES or not (
        tensor.dtype.is_floating_point() or tensor.dtype == ir.DataType.COMPLEX64
    ):
        return True
    dtype = tensor.dtype.numpy()
    return all(bool(np.isfinite(np.frombuffer(block, dtype)).all()) for block in blocks(tensor))


def masking(tensor: ir.TensorProtocol) -> bool:
    """Whether all elements of a floating tensor are infinite or zero, as in masks."""
    dtype = tensor.dtype.numpy()
    arrays = (np.frombuffer(block, dtype) for block in blocks(tensor))
    return all(bool((np.isinf(array) | (array == 0)).all()) for array in arrays)


def held(attribute: ir.Attr) -> ir.TensorProtocol:
    """The tensor of an attribute that holds one; `as_tensor` looks for every member of a protocol first, each time."""
    if attribute.type != ir.AttributeType.TENSOR:
        return attribute.as_tensor()  # its error
    return attribute.value  # type: ignore[no-any-return]


def shape_of(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """The tensor's shape as plain integers."""
    return tuple(tensor.shape.numpy())


@dataclass(frozen=True)
class Layout:
    """Where a written file holds its tensors.

    Attributes:
      regions: tensor name -> (offset in the file, length), in bytes.
      digest: SHA-256 of the header, which holds a checksum of the data: it identifies the file.
      size: length of the file in bytes.
    """

    regions: Mapping[str, tuple[int, int]]
    digest: str
    size: int


def write_safetensors(
    path: Path, tensors: Mapping[str, ir.TensorProtocol], metadata: Mapping[str, str] | None = None
) -> Layout:
    """Write a safetensors file, one tensor in memory at a time.

    The data begins at a multiple of 64 bytes; tensors with larger elements come first, so that each one is
    aligned to its element size.

    Args:
      path: the file to write; not atomic, see `surgery.files.replacing`.
      tensors: name -> tensor.
      metadata: text kept in the header.

    Raises:
      ArgumentError: an element type that safetensors has no name for.
      OSError: the file cannot be written.
    """
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    entries: dict[str, object] = {"__metadata__": {**(metadata or {}), _CRC: "0" * 8}}
    position = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in _NAMES:
            raise ArgumentError(f"safetensors cannot hold '{name}': its elements are {tensor.dtype.name}")
        end = position + tensor.nbytes
        entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(shape_of(tensor)),
            "data_offsets": [position, end],
        }
        position = end
    with path.open("wb") as file:
        start = file.write(_header(entries))
        checksum = 0
        for name in order:
            checksum = _write(file, name, tensors[name], checksum)
        entries["__metadata__"] = {**(metadata or {}), _CRC: f"{checksum:08x}"}
        header = _header(entries)
        file.seek(0)
        file.write(header)
    regions = {name: (start + span[0], span[1] - span[0]) for name, span in _spans(entries).items()}
    return Layout(regions, hashlib.sha256(header).hexdigest(), start + position)


@dataclass(frozen=True)
class SafetensorsFile:
    """A safetensors file as it was found; nothing of its data has been read.

    Attributes:
      tensors: name -> tensor, each a region of the file.
      metadata: the text in its header.
      digest: SHA-256 of its header, as in `Layout`.
    """

    tensors: Mapping[str, ir.TensorProtocol]
    metadata: Mapping[str, str]
    digest: str


def read_safetensors(path: Path) -> SafetensorsFile:
    """Open a safetensors file and check its header against the file.

    Raises:
      FileError: the file is missing or cannot be read.
      CorruptFile: a header that is no JSON, too long, or does not describe this file exactly: unknown element
        types, sizes that do not fit the shapes, holes, overlaps, data missing or left over.
    """
    check_readable(path)
    header, length = _read_header(path)
    entries = _parse(header, path)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CorruptFile(f"{path}: the safetensors metadata is not a map of strings")
    regions = {name: _entry(path, name, entry) for name, entry in entries.items()}
    position = 0
    for name, (_, _, start, end) in sorted(regions.items(), key=lambda item: item[1][2:]):
        if start != position:
            raise CorruptFile(f"{path}: the data of '{name}' overlaps another tensor, or leaves a hole")
        position = end
    if len(header) + position != length:
        raise CorruptFile(
            f"{path}: the header describes {len(header) + position} bytes, the file has {length}"
        )
    file = MappedFile(path)
    tensors = {
        name: file.tensor(name, dtype, shape, len(header) + start)
        for name, (dtype, shape, start, _) in regions.items()
    }
    return SafetensorsFile(tensors, metadata, hashlib.sha256(header).hexdigest())


def header_digest(path: Path) -> str:
    """SHA-256 of the header of a safetensors file, as in `Layout.digest`."""
    return hashlib.sha256(_read_header(path)[0]).hexdigest()


def _raw(tensor: ir.TensorProtocol) -> memoryview:
    if tensor.dtype.bitwidth < 8:
        return memoryview(tensor.tobytes())
    array = tensor.numpy()
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _header(entries: Mapping[str, object]) -> bytes:
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _write(file: BinaryIO, name: str, tensor: ir.TensorProtocol, checksum: int) -> int:
    written = 0
    for block in blocks(tensor):
        written += file.write(block)
        checksum = zlib.crc32(block, checksum)
    if written != tensor.nbytes:
        raise RuntimeError(f"'{name}' gave {written} bytes, its shape says {tensor.nbytes}")
    return checksum


def _spans(entries: Mapping[str, object]) -> dict[str, Sequence[int]]:
    return {
        name: entry["data_offsets"]
        for name, entry in entries.items()
        if isinstance(entry, dict) and name != "__metadata__"
    }


def _read_header(path: Path) -> tuple[bytes, int]:
    try:
        with path.open("rb") as file:
            total = path.stat().st_size
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > min(total - 8, _MAX_HEADER):
                raise CorruptFile(f"{path} is not a whole safetensors file: its header does not fit in it")
            return prefix + file.read(length), total
    except OSError as error:
        raise read_error(error, path) from error


def _parse(header: bytes, path: Path) -> dict[str, object]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a name occurs twice")
        return dict(pairs)

    try:
        entries = json.loads(header[8:].decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{path}: the safetensors header is not valid: {error}") from error
    if not isinstance(entries, dict):
        raise CorruptFile(f"{path}: the safetensors header is not a JSON object")
    return entries


def _entry(path: Path, name: str, entry: object) -> tuple[ir.DataType, list[int], int, int]:
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, span = DTYPES.get(str(fields.get("dtype"))), fields.get("shape"), fields.get("data_offsets")
    if dtype is None or not _naturals(shape) or not _naturals(span) or len(span) != 2:
        raise CorruptFile(f"{path}: the safetensors header has no valid entry for '{name}'")
    length = math.prod(shape) * int(dtype.itemsize)
    if span[1] - span[0] != length:
        raise CorruptFile(f"{path}: '{name}' has {span[1] - span[0]} bytes, its shape needs {length}")
    return dtype, shape, span[0], span[1]


def _naturals(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)
