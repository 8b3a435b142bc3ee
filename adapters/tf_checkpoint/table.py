"""Sorted tables of LevelDB, in which TensorFlow keeps the index of a checkpoint: keys and values in checked blocks.

https://github.com/google/leveldb/blob/main/doc/table_format.md; blocks may be compressed by Snappy
(https://github.com/google/snappy/blob/main/format_description.txt).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

from surgery.errors import CorruptFile
from surgery_adapters.containers.protobuf import Cursor, varint
from surgery_adapters.tf_checkpoint.crc32c import masked_crc32c

MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
_FOOTER, _RESTART, _BLOCK, _TRAILER = 48, 16, 1 << 12, 5
_MOST = 1 << 28
"""Bytes of a block when it is unpacked."""


def read_table(data: bytes) -> dict[bytes, bytes]:
    """All entries of a table, in its order.

    Raises:
      CorruptFile: damaged, or no table.
    """
    if len(data) < _FOOTER or data[-8:] != MAGIC:
        raise CorruptFile("the index has no footer of a table: it is damaged or cut short")
    try:
        footer = Cursor(data[-_FOOTER:-8])
        footer.varint(), footer.varint()  # the block of filters, which TensorFlow does not write
        index = _block(data, footer.varint(), footer.varint())
        entries: dict[bytes, bytes] = {}
        for _, handle in _entries(index):
            place = Cursor(handle)
            entries.update(_entries(_block(data, place.varint(), place.varint())))
    except (IndexError, struct.error) as error:
        raise CorruptFile(f"the index is damaged: {type(error).__name__}") from error
    return entries


def write_table(entries: Mapping[bytes, bytes]) -> bytes:
    """A table of entries, whose keys are put in order; not compressed."""
    out, index = bytearray(), {}
    ordered = sorted(entries.items())
    while ordered:
        size, count = 0, 0
        while count < len(ordered) and (size < _BLOCK or not count):
            size += len(ordered[count][0]) + len(ordered[count][1])
            count += 1
        block, ordered = dict(ordered[:count]), ordered[count:]
        index[max(block)] = _append(out, block)
    meta = _append(out, {})
    handles = meta + _append(out, index)
    return bytes(out) + handles.ljust(_FOOTER - 8, b"\0") + MAGIC


def _block(data: bytes, offset: int, size: int) -> bytes:
    """The content of a block, checked."""
    end = offset + size
    if end + _TRAILER > len(data):
        raise CorruptFile("the index is cut short: a block lies behind its end")
    kind, crc = data[end], struct.unpack_from("<I", data, end + 1)[0]
    if masked_crc32c(data[offset : end + 1]) != crc:
        raise CorruptFile("a block of the index is damaged: its checksum differs")
    if kind not in (0, 1):
        raise CorruptFile(f"a block of the index is compressed in a way that is not known ({kind})")
    return _unsnapped(data[offset:end]) if kind else data[offset:end]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys, of which each has a part in common with the one before, and values."""
    restarts = struct.unpack_from("<I", block, len(block) - 4)[0]
    body = Cursor(block[: max(0, len(block) - 4 * (restarts + 1))])
    key = b""
    while body:
        shared, own, length = body.varint(), body.varint(), body.varint()
        if shared > len(key):
            raise CorruptFile("a block of the index is damaged: a key has no beginning")
        key = key[:shared] + body.take(own)
        yield key, body.take(length)


def _append(out: bytearray, entries: Mapping[bytes, bytes]) -> bytes:
    """Write a block; its handle."""
    block, restarts, last = bytearray(), [], b""
    for number, (key, value) in enumerate(entries.items()):
        shared = 0
        if number % _RESTART == 0:
            restarts.append(len(block))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        block += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    restarts = restarts or [0]
    content = bytes(block) + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts)) + b"\0"
    handle = varint(len(out)) + varint(len(content) - 1)
    out += content + struct.pack("<I", masked_crc32c(content))
    return handle


def _unsnapped(data: bytes) -> bytes:
    """Snappy: a length, then literals and copies of what came before."""
    source, out = Cursor(data), bytearray()
    length = source.varint()
    if length > _MOST:
        raise CorruptFile(f"a block of the index says that it has {length:,} bytes")
    while source and len(out) <= length:
        tag = source.take(1)[0]
        if tag & 3 == 0:
            size = tag >> 2
            size = size if size < 60 else int.from_bytes(source.take(size - 59), "little")
            out += source.take(size + 1)
            continue
        if tag & 3 == 1:
            size, back = (tag >> 2 & 7) + 4, (tag >> 5) << 8 | source.take(1)[0]
        else:
            size, back = (tag >> 2) + 1, int.from_bytes(source.take(2 if tag & 3 == 2 else 4), "little")
        if not 0 < back <= len(out):
            raise CorruptFile("a block of the index is damaged: it copies what it does not have")
        for _ in range(size):
            out.append(out[-back])
    if len(out) != length:
        raise CorruptFile("a block of the index is damaged: it has another length than it says")
    return bytes(out)
