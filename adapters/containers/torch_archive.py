"""The zip archives of `torch.save`, read without PyTorch.

`NAME/data.pkl` is a pickle in which a tensor is `(storage, offset, size, stride)`, and `NAME/data/K` holds the bytes
of storage K, uncompressed: a contiguous tensor is a region of the file. An archive may itself be a member of another
file. (torch/serialization.py `_save`, torch/_utils.py `_rebuild_tensor_v2`)
"""

from __future__ import annotations

import errno
import io
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.adapters import SHARED
from surgery.errors import CorruptFile, Refused
from surgery.files import read_error
from surgery.tensors import MappedFile, Region
from surgery_adapters.containers.data_pickle import Symbol, check_key, load_pickle

_MAX_PICKLE = 1 << 26
_MAX_EXPANDED = 1 << 28
_DTYPES: Mapping[str, ir.DataType] = {
    "float32": ir.DataType.FLOAT,
    "float64": ir.DataType.DOUBLE,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "uint8": ir.DataType.UINT8,
    "int8": ir.DataType.INT8,
    "uint16": ir.DataType.UINT16,
    "int16": ir.DataType.INT16,
    "uint32": ir.DataType.UINT32,
    "int32": ir.DataType.INT32,
    "uint64": ir.DataType.UINT64,
    "int64": ir.DataType.INT64,
    "bool": ir.DataType.BOOL,
    "complex64": ir.DataType.COMPLEX64,
    "complex128": ir.DataType.COMPLEX128,
    "float8_e4m3fn": ir.DataType.FLOAT8E4M3FN,
    "float8_e4m3fnuz": ir.DataType.FLOAT8E4M3FNUZ,
    "float8_e5m2": ir.DataType.FLOAT8E5M2,
    "float8_e5m2fnuz": ir.DataType.FLOAT8E5M2FNUZ,
    "float8_e8m0fnu": ir.DataType.FLOAT8E8M0,
}
_STORAGES: Mapping[str, str] = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}


def storage_class(dtype: ir.DataType) -> str:
    """What PyTorch calls a storage of such elements.

    Raises:
      Refused: it has no class for them.
    """
    name = next((name for name, known in _DTYPES.items() if known == dtype), None)
    found = next((storage for storage, element in _STORAGES.items() if element == name), None)
    if found is None:
        raise Refused(f"no storage of PyTorch holds elements of type {dtype.name}")
    return found


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str | None
    offset: int
    nbytes: int


@dataclass(frozen=True)
class StoredZip:
    """A zip archive whose members are stored as they are, whole, and none upon another: nothing can expand.

    Attributes:
      file: what it lies in.
      members: name -> (offset in the file, length), in the order of the bytes.
      packed: members that are compressed, and how long they are when they are not.
    """

    file: MappedFile
    members: Mapping[str, tuple[int, int]]
    packed: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def open(region: Region, *, packed: Callable[[str], bool] = lambda _: False) -> StoredZip:
        """Read the directory and compare it with the members.

        Args:
          packed: whether a member may be compressed; 64 MiB of them in all.

        Raises:
          CorruptFile: damaged, compressed, or members that overlap or have bad names.
        """
        try:
            with zipfile.ZipFile(Window(region)) as directory:
                infos, end = directory.infolist(), directory.start_dir
        except OSError as error:
            raise read_error(error, region.file.path) from error
        except Exception as error:  # zipfile raises what it meets, of many types, in a damaged directory
            raise CorruptFile(f"the zip archive is damaged or cut short: {error}") from error
        deflated = {
            info.filename: info.file_size
            for info in infos
            if info.compress_type == zipfile.ZIP_DEFLATED and packed(info.filename)
        }
        if sum(deflated.values()) > _MAX_PICKLE:
            raise CorruptFile("the compressed members are larger than 64 MiB, which no code is")
        return StoredZip(region.file, _members(region, infos, end, deflated), deflated)

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def region(self, name: str) -> Region:
        """Where a member's bytes are."""
        return Region(self.file, *self.members[name])

    def content(self, name: str) -> bytes:
        """A member's bytes, unpacked."""
        found = _bytes(self.file, *self.members[name])
        if name not in self.packed:
            return found
        size = self.packed[name]
        try:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(found, size + 1)
        except zlib.error as error:
            raise CorruptFile(f"the member '{name}' is damaged: {error}") from error
        if len(content) != size:
            raise CorruptFile(f"the member '{name}' does not unpack to the {size} bytes that were announced")
        return content


@dataclass(frozen=True)
class TorchArchive:
    """A zip archive as PyTorch writes it.

    Attributes:
      zip: the archive. prefix: of all its members.
    """

    zip: StoredZip
    prefix: str

    @staticmethod
    def open(region: Region, *, packed: Callable[[str], bool] = lambda _: False) -> TorchArchive:
        """Raises: CorruptFile; see `StoredZip.open`."""
        archive = StoredZip.open(region, packed=packed)
        members = archive.members
        prefixes = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
        if len(prefixes) != 1 or not all(name.startswith(prefixes[0]) for name in members):
            raise CorruptFile("the archive is not laid out as torch.save does it")
        found = TorchArchive(archive, prefixes[0])
        if "byteorder" in found and found.content("byteorder") != b"little":
            raise CorruptFile("the file was written on a big-endian machine, which is not supported")
        return found

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.zip

    @property
    def file(self) -> MappedFile:
        """What it lies in."""
        return self.zip.file

    def content(self, name: str) -> bytes:
        """The bytes of a member, its name without the prefix."""
        return self.zip.content(self.prefix + name)

    def read(self) -> object:
        """The object that was saved: containers, numbers, text, and tensors that are still in the file.

        Raises:
          CorruptFile: damaged or hostile, or it holds Python objects other than data; nothing was executed.
        """
        return load_pickle(self.pickle(), symbols(self), self.storage)

    def pickle(self) -> bytes:
        """The pickle that describes the object."""
        if self.zip.members[self.prefix + "data.pkl"][1] > _MAX_PICKLE:
            raise CorruptFile("the pickle is larger than 64 MiB, which no checkpoint needs")
        return self.content("data.pkl")

    def storage(self, reference: object) -> _Storage:
        """The storage that a persistent id names: ("storage", type, key, device, elements)."""
        if not isinstance(reference, tuple) or len(reference) < 5 or reference[0] != "storage":
            raise CorruptFile("the pickle refers to something that is no storage")
        _, kind, key, _, count = reference[:5]
        if not isinstance(kind, Symbol) or not isinstance(key, str) or not isinstance(count, int):
            raise CorruptFile("the pickle refers to something that is no storage")
        if f"data/{key}" not in self:
            raise CorruptFile(f"the storage '{key}' is not in the archive")
        dtype = _STORAGES.get(kind.name)
        if dtype is None and kind.name != "UntypedStorage":
            raise CorruptFile(f"a storage cannot be of type '{kind.name}'")
        offset, nbytes = self.zip.members[f"{self.prefix}data/{key}"]
        if nbytes != count * (_DTYPES[dtype].itemsize if dtype else 1):
            raise CorruptFile(f"the storage '{key}' has {nbytes} bytes, {count} elements were announced")
        return _Storage(key, dtype, offset, nbytes)


class Window(io.RawIOBase):
    """A region of a file as a file."""

    def __init__(self, region: Region) -> None:
        self._region, self._at = region, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._region.length}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, "before the start of the archive")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401
        count = max(0, min(len(buffer), self._region.length - self._at))
        buffer[:count] = _bytes(self._region.file, self._region.offset + self._at, count)
        self._at += count
        return count


def _members(
    region: Region, infos: Sequence[zipfile.ZipInfo], end: int, packed: Mapping[str, int]
) -> dict[str, tuple[int, int]]:
    """Member name -> (offset, length) of its bytes, after a check that directory and members agree."""
    file, base = region.file, region.offset
    members: dict[str, tuple[int, int]] = {}
    ordered = sorted(infos, key=lambda info: info.header_offset)
    limits = [*(info.header_offset for info in ordered[1:]), end]
    for info, limit in zip(ordered, limits, strict=True):
        name = info.filename
        if name in members or name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise CorruptFile(f"the archive has a member with a bad name: '{name}'")
        stored = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
        if info.flag_bits & 1 or not (stored or name in packed):
            raise CorruptFile(
                f"the member '{name}' is compressed or encrypted, which no framework does",
                hint="unpack the archive, and pack it again without compression: zip -0",
            )
        head = _bytes(file, base + info.header_offset, 30)
        length, extra = (int.from_bytes(head[at : at + 2], "little") for at in (26, 28))
        start = info.header_offset + 30 + length + extra
        written = _bytes(file, base + info.header_offset + 30, length).decode("utf-8", "replace")
        if head[:4] != b"PK\x03\x04" or written != info.orig_filename or start + info.compress_size > limit:
            raise CorruptFile(f"the member '{name}' does not lie where the archive's directory says")
        members[name] = (base + start, info.compress_size)
    return members


def _bytes(file: MappedFile, offset: int, length: int) -> bytes:
    return b"".join(bytes(block) for block in file.blocks(offset, length, 1 << 22))


def symbols(archive: TorchArchive) -> Mapping[str, Symbol]:
    """The globals that a checkpoint may name, and what stands for them."""

    def tensor(storage: object, offset: object, size: object, stride: object, *rest: object) -> object:
        _check_view(rest[2:])
        return _tensor(archive, storage, None, offset, size, stride)

    def typed(storage: object, offset: object, size: object, stride: object, *rest: object) -> object:
        _check_view(rest[3:])
        return _tensor(archive, storage, rest[2], offset, size, stride)

    rebuilders = {"": tensor, "_v2": tensor, "_v3": typed}
    symbols = {full: Symbol(full, make) for full, make in _MAKERS.items()}
    symbols |= {f"torch._utils._rebuild_tensor{v}": Symbol(v, make) for v, make in rebuilders.items()}
    symbols |= {f"torch.{name}": Symbol(name) for name in (*_DTYPES, *_STORAGES)}
    return symbols | {f"torch.storage.{name}": Symbol(name) for name in ("UntypedStorage", *_STORAGES)}


def _check_view(metadata: tuple[object, ...]) -> None:
    if any(metadata):
        raise CorruptFile("a tensor is stored conjugated or negated, which is not supported")


def _mapping(items: object = ()) -> dict[object, object]:
    if isinstance(items, dict):
        return dict(items)
    if not isinstance(items, list | tuple):
        raise CorruptFile("the pickle makes a dict of something else")
    return {check_key(key): value for key, value in items}


_MAKERS: Mapping[str, Callable[..., object]] = {
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": lambda *arguments: _mapping(*arguments[1:]),
    "builtins.dict": _mapping,
    "builtins.list": list,
    "builtins.tuple": tuple,
    "builtins.set": lambda items=(): set(map(check_key, items)),
    "builtins.frozenset": lambda items=(): frozenset(map(check_key, items)),
    "builtins.complex": lambda real, imaginary: complex(float(real), float(imaginary)),
    "torch.Size": tuple,
    "torch.device": lambda *names: ":".join(str(check_key(name)) for name in names),
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
}


def _tensor(
    archive: TorchArchive, storage: object, dtype: object, offset: object, size: object, stride: object
) -> ir.TensorProtocol:
    """The tensor of shape `size` whose element at index i is `storage[offset + sum(i * stride)]`."""
    if not isinstance(storage, _Storage) or not isinstance(offset, int) or offset < 0:
        raise CorruptFile("a tensor has no storage")
    name = dtype.name if isinstance(dtype, Symbol) else storage.dtype
    shape, steps = _naturals(size), _naturals(stride)
    if name is None or name not in _DTYPES or len(shape) != len(steps):
        raise CorruptFile(f"a tensor of the storage '{storage.key}' has no valid type or shape")
    kind, count = _DTYPES[name], math.prod(shape)
    available = storage.nbytes // int(kind.itemsize)
    last = offset + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
    if (count and last >= available) or offset > available or count > max(available, _MAX_EXPANDED):
        raise CorruptFile(f"a tensor reaches beyond its storage '{storage.key}'")
    if _contiguous(shape, steps) or not count:
        start = storage.offset + offset * int(kind.itemsize)
        tensor = archive.file.tensor(f"storage {storage.key}", kind, shape, start)
    else:
        base = archive.file.tensor(f"storage {storage.key}", kind, [available], storage.offset)
        tensor = _strided(base, offset, shape, steps)
    tensor.meta[SHARED] = (storage.key, offset, shape, steps)
    return tensor


def _strided(
    base: ir.TensorProtocol, offset: int, shape: tuple[int, ...], steps: tuple[int, ...]
) -> ir.LazyTensor:
    def gather() -> ir.TensorProtocol:
        flat = base.numpy()
        strides = [step * flat.itemsize for step in steps]
        view = np.lib.stride_tricks.as_strided(flat[offset:], shape, strides, writeable=False)
        return ir.Tensor(np.ascontiguousarray(view), dtype=base.dtype)

    return ir.LazyTensor(gather, base.dtype, ir.Shape(shape), name=base.name)


def _contiguous(shape: tuple[int, ...], steps: tuple[int, ...]) -> bool:
    wanted = 1
    for size, step in zip(reversed(shape), reversed(steps), strict=True):
        if size != 1 and step != wanted:
            return False
        wanted *= size
    return True


def _naturals(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(type(item) is int and 0 <= item < 1 << 63 for item in value):
        raise CorruptFile("a tensor has no valid shape")
    return value
