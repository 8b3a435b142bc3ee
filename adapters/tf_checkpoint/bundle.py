"""TensorFlow's checkpoints: `NAME.index` says where in `NAME.data-…` every tensor lies, with its shape and checksum.

https://github.com/tensorflow/tensorflow, core/util/tensor_bundle, core/protobuf/tensor_bundle.proto
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir

from surgery.errors import CorruptFile
from surgery.files import check_readable, read_error, replacing
from surgery.tensors import MappedFile, blocks, shape_of
from surgery_adapters.containers.protobuf import Fields, fields, message
from surgery_adapters.tf_checkpoint.crc32c import masked_crc32c
from surgery_adapters.tf_checkpoint.table import read_table, write_table

INDEX = ".index"
ATTRIBUTE = "/.ATTRIBUTES/VARIABLE_VALUE"
"""Ends the name of a variable in a checkpoint of objects (TensorFlow 2)."""
_DTYPES: Mapping[int, ir.DataType] = {
    1: ir.DataType.FLOAT, 2: ir.DataType.DOUBLE, 3: ir.DataType.INT32, 4: ir.DataType.UINT8, 5: ir.DataType.INT16,
    6: ir.DataType.INT8, 9: ir.DataType.INT64, 10: ir.DataType.BOOL, 14: ir.DataType.BFLOAT16, 17: ir.DataType.UINT16,
    19: ir.DataType.FLOAT16, 22: ir.DataType.UINT32, 23: ir.DataType.UINT64,
}  # fmt: skip
"""tensorflow/core/framework/types.proto; others (strings) are carried as bytes."""
_MOST_INDEX, _MOST_SHARDS = 1 << 28, 1 << 12
_DTYPE, _SHAPE, _SHARD, _OFFSET, _SIZE, _CRC, _SLICES = range(1, 8)


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies.

    Attributes:
      dtype: None for one that is no table of numbers. shape: its sizes.
      shard, offset, size: which file, and which bytes of it. crc: their masked checksum.
      sliced: whether it is kept in parts, under other names.
      fields: the message as it stands in the index.
    """

    dtype: ir.DataType | None
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    sliced: bool
    fields: Fields

    @staticmethod
    def parse(entry: bytes) -> Entry:
        """Raises: CorruptFile."""
        found = list(fields(entry))
        single = {number: value for number, _, value in found}
        numbers = [single.get(number, 0) for number in (_DTYPE, _SHARD, _OFFSET, _SIZE, _CRC)]
        shape = single.get(_SHAPE, b"")
        if not isinstance(shape, bytes) or not all(isinstance(number, int) for number in numbers):
            raise CorruptFile("an entry of the index is damaged")
        kind, shard, offset, size, crc = (int(number) for number in numbers)
        return Entry(_DTYPES.get(kind), _shape(shape), shard, offset, size, crc, _SLICES in single, found)

    def moved(self, offset: int, tensor: ir.TensorProtocol | None, crc: int) -> bytes:
        """The message with another place, and with another tensor's shape and checksum."""
        if tensor is None:
            new: dict[int, int | bytes] = {_OFFSET: offset}
        else:
            sizes = b"".join(message([(2, 2, message([(1, 0, size)]))]) for size in shape_of(tensor))
            new = {_OFFSET: offset, _SHAPE: sizes, _SIZE: tensor.nbytes, _CRC: crc}
        wires = {_SHAPE: 2, _CRC: 5}
        kept = [field for field in self.fields if field[0] not in new]
        added = [
            (number, wires.get(number, 0), value)
            for number, value in new.items()
            if value or number == _SHAPE
        ]
        return message(sorted([*kept, *added], key=lambda field: field[0]))


@dataclass(frozen=True)
class Bundle:
    """A checkpoint.

    Attributes:
      path: of the index. header: what the index begins with. shards: number of data files.
      entries: name -> where it lies, in the index's order; names are bytes where parts of a tensor are meant.
    """

    path: Path
    header: bytes
    shards: int
    entries: Mapping[bytes, Entry]

    @staticmethod
    def open(path: Path) -> Bundle:
        """Read an index.

        Raises:
          FileError: it cannot be read. CorruptFile: damaged, or of an unusual kind.
        """
        check_readable(path)
        if path.stat().st_size > _MOST_INDEX:
            raise CorruptFile(f"{path} is larger than any index")
        try:
            table = read_table(path.read_bytes())
        except OSError as error:
            raise read_error(error, path) from error
        header = table.pop(b"", None)
        if header is None:
            raise CorruptFile(f"{path} is a table, but not the index of a checkpoint")
        told = {number: value for number, _, value in fields(header)}
        shards = told.get(1, 0)
        if not isinstance(shards, int) or not 0 < shards <= _MOST_SHARDS:
            raise CorruptFile(f"the checkpoint says that it has {shards!r} data files")
        if told.get(2, 0) != 0:
            raise CorruptFile("the checkpoint is big-endian, which no machine writes that trains today")
        return Bundle(path, header, shards, {key: Entry.parse(value) for key, value in table.items()})

    def data(self, shard: int, index: Path | None = None) -> Path:
        """A data file, of this index or of another one."""
        path = index or self.path
        stem = path.name.removesuffix(INDEX)
        return path.with_name(f"{stem}.data-{shard:05d}-of-{self.shards:05d}")

    def tensors(self) -> dict[str, ir.TensorProtocol]:
        """All tables of numbers by name, in name order; they stay in their file, and their checksums are compared.

        Raises:
          FileError: a data file is missing. CorruptFile: it is damaged.
        """
        files: dict[int, MappedFile] = {}
        found = {}
        for key, entry in self.entries.items():
            if entry.dtype is None or entry.sliced or key.startswith(b"\0"):
                continue
            if not 0 <= entry.shard < self.shards:
                raise CorruptFile(f"'{_text(key)}' lies in a data file that the checkpoint does not have")
            if entry.shard not in files:
                check_readable(self.data(entry.shard))
                files[entry.shard] = MappedFile(self.data(entry.shard))
            if math.ceil(math.prod(entry.shape) * entry.dtype.itemsize) != entry.size:
                raise CorruptFile(
                    f"'{_text(key)}' has {entry.size} bytes, which does not fit its shape {entry.shape}"
                )
            name = _text(key).removesuffix(ATTRIBUTE)
            tensor = files[entry.shard].tensor(name, entry.dtype, entry.shape, entry.offset)
            if (
                masked_crc32c(b"".join(files[entry.shard].blocks(entry.offset, entry.size, 1 << 22)))
                != entry.crc
            ):
                raise CorruptFile(
                    f"'{name}' is damaged: its checksum differs", where={"file": self.data(entry.shard)}
                )
            found[name] = tensor
        return found

    def write(self, target: Path, replaced: Mapping[str, ir.TensorProtocol], *, force: bool) -> list[Path]:
        """Write a copy in which some tensors are others; the index comes last.

        Raises:
          FileError: see `surgery.files.replacing`.
        """
        targets = [*(self.data(shard, target) for shard in range(self.shards)), target]
        sources = [*(self.data(shard) for shard in range(self.shards)), self.path]
        needed = sum(path.stat().st_size for path in sources)
        needed += sum(tensor.nbytes for tensor in replaced.values())
        with replacing(targets, force=force, needed=needed, sources=sources) as parts:
            if not replaced:
                for source, part in zip(sources, parts, strict=True):
                    part.write_bytes(source.read_bytes())
                return targets
            index = {b"": self.header}
            for shard in range(self.shards):
                with parts[shard].open("wb") as out:
                    index |= self._write_shard(shard, replaced, out)
            parts[-1].write_bytes(write_table(index))
        return targets

    def _write_shard(
        self, shard: int, replaced: Mapping[str, ir.TensorProtocol], out: BinaryIO
    ) -> dict[bytes, bytes]:
        """The tensors of one data file one after the other, and their entries."""
        old = MappedFile(self.data(shard))
        own = {key: entry for key, entry in self.entries.items() if entry.shard == shard}
        index = {}
        for key, entry in sorted(own.items(), key=lambda item: item[1].offset):
            offset, tensor = out.tell(), replaced.get(_text(key).removesuffix(ATTRIBUTE))
            content = blocks(tensor) if tensor is not None else old.blocks(entry.offset, entry.size, 1 << 22)
            data = b"".join(content)
            out.write(data)
            index[key] = entry.moved(offset, tensor, masked_crc32c(data) if tensor is not None else entry.crc)
        return index


def _text(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")


def _shape(sizes_of: bytes) -> tuple[int, ...]:
    sizes = []
    for number, _, dim in fields(sizes_of):
        if number == 2 and isinstance(dim, bytes):
            size = next((value for inner, _, value in fields(dim) if inner == 1), 0)
            if not isinstance(size, int) or size >= 1 << 40:
                raise CorruptFile("an entry of the index has no shape")
            sizes.append(size)
    return tuple(sizes)
