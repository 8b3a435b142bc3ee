"""Protocol buffers without their schemas: the numbers and values of a message's fields.

https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from surgery.errors import CorruptFile

Fields = list[tuple[int, int, int | bytes]]
"""Number, wire type and value of each field."""


def varint(number: int) -> bytes:
    """A number in as many groups of 7 bits as it needs."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out) + bytes([number])


class Cursor:
    """Bytes that are read from the front."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def __bool__(self) -> bool:
        return self.at < len(self.data)

    def varint(self) -> int:
        """Raises: CorruptFile: longer than 64 bits. IndexError: the end is reached."""
        number = 0
        for shift in range(0, 64, 7):
            byte = self.data[self.at]
            self.at += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
        raise CorruptFile("a number of the file has more than 64 bits")

    def take(self, count: int) -> bytes:
        """Raises: CorruptFile: the end is reached."""
        if count > len(self.data) - self.at:
            raise CorruptFile("the file is cut short, or damaged")
        self.at += count
        return self.data[self.at - count : self.at]


def fields(message: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """Number, wire type and value of the fields of a protocol buffer."""
    cursor = Cursor(message)
    try:
        while cursor:
            tag = cursor.varint()
            match tag & 7:
                case 0:
                    yield tag >> 3, 0, cursor.varint()
                case 1:
                    yield tag >> 3, 1, struct.unpack("<Q", cursor.take(8))[0]
                case 2:
                    yield tag >> 3, 2, cursor.take(cursor.varint())
                case 5:
                    yield tag >> 3, 5, struct.unpack("<I", cursor.take(4))[0]
                case _:
                    raise CorruptFile("a message is damaged")
    except IndexError as error:
        raise CorruptFile("a message is cut short") from error


def message(fields: Sequence[tuple[int, int, int | bytes]]) -> bytes:
    """The inverse of `fields`."""
    out = bytearray()
    for number, wire, value in fields:
        out += varint(number << 3 | wire)
        if isinstance(value, bytes):
            out += varint(len(value)) + value
        else:
            out += {1: lambda v: struct.pack("<Q", v), 5: lambda v: struct.pack("<I", v)}.get(wire, varint)(
                value
            )
    return bytes(out)
