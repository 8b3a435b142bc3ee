"""PyTorch checkpoints (`.pt`, `.pth`, `.cleanrl_model` …), read without PyTorch.

`torch.save` writes a zip archive: `NAME/data.pkl` is a pickle in which a tensor is `(storage, offset, size,
stride)`, and `NAME/data/K` holds the bytes of storage K, uncompressed: a contiguous tensor is a region of the
file. (torch/serialization.py `_save`, torch/_utils.py `_rebuild_tensor_v2`)
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard

import numpy as np
import onnx_ir as ir

from surgery.adapters import SHARED
from surgery.errors import CorruptFile, FileError, UnknownFormat
from surgery.files import check_readable, read_error
from surgery.formats import sniff
from surgery.tensors import MappedFile
from surgery_adapters.data_pickle import Symbol, check_key, load_pickle

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


@dataclass(frozen=True)
class TrainingState:
    """What a training run saved.

    Attributes:
      networks: name -> parameter or buffer name -> tensor, in the file's order; a file that is one network's
        state dict and nothing else has the one network `model`.
      optimizers: name -> what `torch.optim.Optimizer.state_dict` gave.
      extra: everything else.
    """

    networks: Mapping[str, Mapping[str, ir.TensorProtocol]]
    optimizers: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    extra: Mapping[str, object] = field(default_factory=dict)


def detect(path: Path) -> bool:
    """Whether a file is a PyTorch checkpoint in the zip format."""
    try:
        return sniff(path).name == "torch"
    except FileError:
        return False


def read(path: Path) -> object:
    """The object that was saved: containers, numbers, text, and tensors that are still in the file.

    Raises:
      FileError: the file cannot be read.
      UnknownFormat: not a PyTorch checkpoint in the zip format.
      CorruptFile: damaged or hostile, or it holds Python objects other than data; nothing was executed.
    """
    check_readable(path)
    kind = sniff(path)
    if kind.name == "zip" and "damaged" in kind.description:
        raise CorruptFile(f"{path} is {kind.description}")
    if kind.name != "torch":
        hint = kind.hint.format(path=path) if kind.hint else None
        raise UnknownFormat(f"{path} is not a PyTorch checkpoint: it is {kind.description}", hint=hint)
    try:
        archive = _Archive.open(path)
        return load_pickle(archive.pickle(), _symbols(archive), archive.storage)
    except CorruptFile as error:
        raise error.within(file=path) from error


def training_state(path: Path) -> TrainingState:
    """The networks and optimizers of a checkpoint, wherever the common layouts put them.

    A bare state dict; a dict of networks and optimizers (`{model, target, optimizer}`, `{model_state_dict,
    optimizer_state_dict}`, `{policy, value, optimizer}`, `{state_dict, optimizer_states: [...]}` …).

    Raises:
      UnknownFormat: there is no network in it; and all that `read` raises.
    """
    content = read(path)
    if not isinstance(content, dict):
        raise UnknownFormat(f"{path} holds a {type(content).__name__}, not a dict of networks")
    if _is_network(content):
        return TrainingState({"model": content})
    networks: dict[str, Mapping[str, ir.TensorProtocol]] = {}
    optimizers: dict[str, Mapping[str, object]] = {}
    extra: dict[str, object] = {}
    for key, value in content.items():
        found = dict(_optimizers(str(key), value))
        if found:
            optimizers.update(found)
        elif inner := dict(_networks(str(key), value)):
            networks.update(inner)
        else:
            extra[str(key)] = value
    if not networks:
        raise UnknownFormat(
            f"{path} holds no network: its entries are {', '.join(list(extra)[:8]) or 'none'}",
            hint="save the state dict of the network: torch.save({'model': net.state_dict(), ...})",
        )
    return TrainingState(networks, optimizers, extra)


def _is_network(value: Mapping[object, object]) -> bool:
    return bool(value) and all(
        isinstance(key, str) and isinstance(item, ir.TensorProtocol) for key, item in value.items()
    )


def _optimizers(name: str, value: object) -> Iterator[tuple[str, Mapping[str, object]]]:
    short = name.removesuffix("_state_dict")
    if _is_optimizer(value):
        yield short, value
    elif isinstance(value, list) and all(map(_is_optimizer, value)):
        yield from ((f"{short}[{number}]", item) for number, item in enumerate(value))
    elif isinstance(value, dict) and all(map(_is_optimizer, value.values())):
        yield from ((f"{short}.{key}", item) for key, item in value.items())


def _is_optimizer(value: object) -> TypeGuard[Mapping[str, object]]:
    return isinstance(value, dict) and {"state", "param_groups"} <= set(value)


def _networks(name: str, value: object) -> Iterator[tuple[str, Mapping[str, ir.TensorProtocol]]]:
    short = "model" if name == "state_dict" else name.removesuffix("_state_dict")
    if isinstance(value, dict) and _is_network(value):
        yield short, value
    elif (
        isinstance(value, dict)
        and value
        and all(isinstance(v, dict) and _is_network(v) for v in value.values())
    ):
        yield from ((f"{short}.{key}", item) for key, item in value.items())


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str | None
    offset: int
    nbytes: int


@dataclass(frozen=True)
class _Archive:
    """A zip archive as PyTorch writes it: every member whole and uncompressed, and none upon another."""

    file: MappedFile
    prefix: str
    members: Mapping[str, tuple[int, int]]

    @staticmethod
    def open(path: Path) -> _Archive:
        try:
            with zipfile.ZipFile(path) as directory:
                infos, end = directory.infolist(), directory.start_dir
        except OSError as error:
            raise read_error(error, path) from error
        except Exception as error:  # zipfile raises what it meets, of many types, in a damaged directory
            raise CorruptFile(f"the zip archive is damaged or cut short: {error}") from error
        file = MappedFile(path)
        members = _members(file, infos, end)
        prefixes = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
        if len(prefixes) != 1 or not all(name.startswith(prefixes[0]) for name in members):
            raise CorruptFile("the archive is not laid out as torch.save does it")
        archive = _Archive(file, prefixes[0], members)
        if "byteorder" in archive and archive.content("byteorder") != b"little":
            raise CorruptFile("the file was written on a big-endian machine, which is not supported")
        return archive

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.members

    def content(self, name: str) -> bytes:
        offset, length = self.members[self.prefix + name]
        return _bytes(self.file, offset, length)

    def pickle(self) -> bytes:
        if self.members[self.prefix + "data.pkl"][1] > _MAX_PICKLE:
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
        offset, nbytes = self.members[f"{self.prefix}data/{key}"]
        if nbytes != count * (_DTYPES[dtype].itemsize if dtype else 1):
            raise CorruptFile(f"the storage '{key}' has {nbytes} bytes, {count} elements were announced")
        return _Storage(key, dtype, offset, nbytes)


def _members(file: MappedFile, infos: Sequence[zipfile.ZipInfo], end: int) -> dict[str, tuple[int, int]]:
    """Member name -> (offset, length) of its bytes, after a check that directory and members agree."""
    members: dict[str, tuple[int, int]] = {}
    ordered = sorted(infos, key=lambda info: info.header_offset)
    limits = [*(info.header_offset for info in ordered[1:]), end]
    for info, limit in zip(ordered, limits, strict=True):
        name = info.filename
        if name in members or name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise CorruptFile(f"the archive has a member with a bad name: '{name}'")
        if (
            info.compress_type != zipfile.ZIP_STORED
            or info.flag_bits & 1
            or info.compress_size != info.file_size
        ):
            raise CorruptFile(f"the member '{name}' is compressed or encrypted, which torch.save never does")
        head = _bytes(file, info.header_offset, 30)
        length, extra = (int.from_bytes(head[at : at + 2], "little") for at in (26, 28))
        start = info.header_offset + 30 + length + extra
        written = _bytes(file, info.header_offset + 30, length).decode("utf-8", "replace")
        if head[:4] != b"PK\x03\x04" or written != info.orig_filename or start + info.file_size > limit:
            raise CorruptFile(f"the member '{name}' does not lie where the archive's directory says")
        members[name] = (start, info.file_size)
    return members


def _bytes(file: MappedFile, offset: int, length: int) -> bytes:
    return b"".join(bytes(block) for block in file.blocks(offset, length, 1 << 22))


def _symbols(archive: _Archive) -> Mapping[str, Symbol]:
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
    archive: _Archive, storage: object, dtype: object, offset: object, size: object, stride: object
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
