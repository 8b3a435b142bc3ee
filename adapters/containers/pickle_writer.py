"""Trees written as pickles; a tree that was not changed becomes a pickle that makes equal objects.

Opcodes: https://github.com/python/cpython/blob/main/Lib/pickletools.py
"""

from __future__ import annotations

import struct
from itertools import chain
from typing import Any

from surgery.errors import CorruptFile
from surgery_adapters.containers.pickle_tree import Made, Name, Persistent, Tree


def dump(tree: Tree) -> bytes:
    """A tree as a pickle of its own protocol (2 to 5).

    Raises:
      CorruptFile: it is nested more deeply than anything that was written by a framework.
    """
    writer = _Writer(max(2, tree.protocol))
    try:
        writer.save(tree.root)
    except RecursionError as error:
        raise CorruptFile("a pickle is nested too deeply to be written again") from error
    return writer.finish()


class _Writer:
    def __init__(self, protocol: int) -> None:
        self._protocol = protocol
        self._out = bytearray(b"\x80" + bytes([protocol]))
        self._memo: dict[object, tuple[int, object]] = {}

    def finish(self) -> bytes:
        return bytes(self._out + b".")

    def save(self, value: Any) -> None:  # noqa: ANN401
        key = value if isinstance(value, Name | str) else id(value)
        if key in self._memo:
            self._numbered(b"h", b"j", self._memo[key][0])
            return
        if not self._simple(value):
            self._object(value, key)

    def _simple(self, value: Any) -> bool:  # noqa: ANN401
        out = self._out
        if value is None or isinstance(value, bool):
            out += {None: b"N", True: b"\x88", False: b"\x89"}[value]
        elif isinstance(value, int):
            self._integer(value)
        elif isinstance(value, float):
            out += b"G" + struct.pack(">d", value)
        elif value == () and isinstance(value, tuple):
            out += b")"
        else:
            return False
        return True

    def _integer(self, value: int) -> None:
        if 0 <= value < 256:
            self._out += b"K" + bytes([value])
        elif 0 <= value < 1 << 16:
            self._out += b"M" + struct.pack("<H", value)
        elif -(1 << 31) <= value < 1 << 31:
            self._out += b"J" + struct.pack("<i", value)
        else:
            data = value.to_bytes((value.bit_length() >> 3) + 1, "little", signed=True)
            short = len(data) < 256
            self._out += (
                b"\x8a" + bytes([len(data)]) if short else b"\x8b" + struct.pack("<i", len(data))
            ) + data

    def _object(self, value: Any, key: object) -> None:  # noqa: ANN401
        out = self._out
        match value:
            case str():
                data = value.encode("utf-8", "surrogatepass")
                out += b"X" + struct.pack("<I", len(data)) + data
            case bytearray() if self._protocol >= 5:
                out += b"\x96" + struct.pack("<Q", len(value)) + value
            case bytes() if self._protocol >= 3:
                out += b"B" + struct.pack("<I", len(value)) + value
            case Name():
                self._name(value)
            case tuple():
                self._marked(value, b"t")
            case frozenset():
                self._marked(value, b"\x91")
            case _:
                self._opened(value, key)
                return
        self._remember(value, key)

    def _opened(self, value: Any, key: object) -> None:  # noqa: ANN401
        """What may hold itself, and therefore can be referred to before it is filled."""
        out = self._out
        match value:
            case list():
                out += b"]"
                self._remember(value, key)
                self._items(value, b"e")
            case dict():
                out += b"}"
                self._remember(value, key)
                self._items(list(chain(*value.items())), b"u")
            case set():
                out += b"\x8f"
                self._remember(value, key)
                self._items(list(value), b"\x90")
            case Persistent():
                self.save(value.identity)
                out += b"Q"
            case Made():
                self._made(value, key)
            case _:
                raise TypeError(f"a pickle of protocol {self._protocol} cannot hold a {type(value).__name__}")

    def _name(self, value: Name) -> None:
        if self._protocol >= 4:
            self.save(value.module)
            self.save(value.name)
            self._out += b"\x93"
        else:
            self._out += f"c{value.module}\n{value.name}\n".encode()

    def _made(self, value: Made, key: object) -> None:
        self.save(value.maker)
        self.save(value.arguments)
        if value.how == "NEWOBJ_EX":
            self.save(value.keywords)
        self._out += {"REDUCE": b"R", "NEWOBJ": b"\x81", "NEWOBJ_EX": b"\x92"}[value.how]
        self._remember(value, key)
        self._items(value.listed, b"e")
        self._items(list(chain(*value.keyed.items())), b"u")
        if value.setter is not None:
            self.save(value.setter)
            self.save(value)
            self.save(value.state)
            self._out += b"\x86R0"
        elif value.state is not None:
            self.save(value.state)
            self._out += b"b"

    def _marked(self, items: Any, close: bytes) -> None:  # noqa: ANN401
        self._out += b"("
        for item in items:
            self.save(item)
        self._out += close

    def _items(self, items: list[Any], close: bytes) -> None:
        if items:
            self._marked(items, close)

    def _remember(self, value: object, key: object) -> None:
        # the value is kept alive, so that no other object can have its id
        number = len(self._memo)
        self._memo[key] = (number, value)
        self._numbered(b"q", b"r", number)

    def _numbered(self, short: bytes, long: bytes, number: int) -> None:
        self._out += short + bytes([number]) if number < 256 else long + struct.pack("<I", number)
