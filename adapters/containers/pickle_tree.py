"""Pickles as trees: read without importing or calling anything.

`data_pickle` reads what is data and refuses the rest. This module reads anything, because nothing is made of it: a
global stays a name, a call stays a call. `pickle_writer` makes a pickle of a tree again.
Opcodes: https://github.com/python/cpython/blob/main/Lib/pickletools.py
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from surgery.errors import CorruptFile
from surgery_adapters.containers.unfolding import check_unfolded

_MOST = 1 << 26
"""Bytes of a pickle that is read as a tree."""


@dataclass(frozen=True, slots=True)
class Name:
    """A global, by module and qualified name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True, repr=False)
class Made:
    """An object that the pickle would make by a call, and what it would then put into it.

    Attributes:
      maker: what is called: a name, or another object.
      arguments: of the call.
      how: the opcode: REDUCE, NEWOBJ or NEWOBJ_EX.
      keywords: of the call (NEWOBJ_EX only).
      listed, keyed: what is appended, and set by key.
      state: what it is given at the end; None is no state.
      setter: what gives it to it, called with both, where it is not the object itself (cloudpickle's functions).
    """

    maker: object
    arguments: tuple[Any, ...]
    how: str = "REDUCE"
    keywords: object = None
    listed: list[Any] = field(default_factory=list)
    keyed: dict[Any, Any] = field(default_factory=dict)
    state: object = None
    setter: object = None

    @property
    def called(self) -> str:
        """The full name of the global that is called; empty if it is an object that the pickle made itself."""
        return str(self.maker) if isinstance(self.maker, Name) else ""

    def __repr__(self) -> str:
        """In short: what it holds may hold itself, or things many times over."""
        return f"<{self.called or 'a call'}>"

    def is_a(self, *names: str) -> bool:
        """Whether it is made by one of these globals."""
        return self.called in names


@dataclass(eq=False, slots=True)
class Persistent:
    """An object outside the pickle."""

    identity: object


@dataclass(frozen=True)
class Tree:
    """What a pickle says, and the protocol that it says it in."""

    root: Any
    protocol: int


def parse(data: bytes, most: int = _MOST) -> Tree:
    """Read a pickle as a tree; nothing is imported or called.

    Args:
      data: the pickle. most: bytes that it may have.

    Raises:
      CorruptFile: damaged, it uses an operation that no tree can express, or it is without end.
    """
    if len(data) > most:
        raise CorruptFile(f"a pickle of {len(data):,} bytes is larger than any checkpoint needs")
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                tree = Tree(machine.result(), machine.protocol)
                check_unfolded(tree.root, _parts, len(data))
                return tree
            machine.step(opcode.name, argument)
    except CorruptFile:
        raise
    except Exception as error:  # a damaged program can fail in any way that its operations can
        raise CorruptFile(f"a pickle is damaged: {type(error).__name__}: {error}") from error
    raise CorruptFile("a pickle has no end")


def walk(root: object) -> Iterator[object]:
    """Every node of a tree, each once."""
    stack: list[object] = [root]
    seen: set[int] = set()
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        match node:
            case Made():
                stack += [*node.arguments, *node.listed, *node.keyed.values(), node.keywords, node.state]
            case dict():
                stack += node.values()
            case list() | tuple() | set() | frozenset():
                stack += node


def _parts(node: object) -> list[object] | None:
    """What an object is made of; None of anything else."""
    if not isinstance(node, Made):
        return None
    return [node.maker, node.arguments, node.keywords, node.listed, node.keyed, node.state, node.setter]


_PLAIN = frozenset({
    "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
})  # fmt: skip
_EMPTY: Mapping[str, Callable[[], object]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set,
}  # fmt: skip


class _Machine:
    def __init__(self) -> None:
        self.protocol = 0
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def result(self) -> object:
        if self._marked or len(self._stack) != 1:
            raise CorruptFile("a pickle ends in the middle of an object")
        return self._stack[0]

    def step(self, name: str, argument: Any) -> None:  # noqa: ANN401
        stack = self._stack
        if name in _PLAIN:
            stack.append(argument)
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self._memo[int(argument)])
        elif name == "MARK":
            self._marked.append(stack)
            self._stack = []
        elif name == "PROTO":
            self.protocol = int(argument)
        elif name == "GLOBAL":
            stack.append(Name(*argument.split(" ", 1)))
        elif name != "FRAME":
            self._compound(name)

    def _compound(self, name: str) -> None:
        stack = self._stack
        match name:
            case "TUPLE" | "LIST" | "FROZENSET" | "DICT" | "SETITEMS" | "APPENDS" | "ADDITEMS" | "POP_MARK":
                items, self._stack = stack, self._marked.pop()
                self._collect(name, items)
            case "SETITEM":
                self._collect("SETITEMS", [stack.pop(-2), stack.pop()])
            case "APPEND":
                self._collect("APPENDS", [stack.pop()])
            case "STACK_GLOBAL":
                self._stack[-2:] = [Name(*map(_text, stack[-2:]))]
            case "REDUCE" | "NEWOBJ":
                self._stack[-2:] = [Made(stack[-2], _tuple(stack[-1]), name)]
            case "NEWOBJ_EX":
                self._stack[-3:] = [Made(stack[-3], _tuple(stack[-2]), name, stack[-1])]
            case "BUILD":
                state, target = stack.pop(), stack[-1]
                if not isinstance(target, Made) or target.state is not None:
                    raise CorruptFile("a pickle sets the state of an object that has none")
                target.state = state
            case "BINPERSID":
                stack[-1] = Persistent(stack[-1])
            case "POP":
                _take_effect(stack.pop(), stack[-1] if stack else None)
            case _:
                raise CorruptFile(f"a pickle uses the operation {name}, which is not supported")

    def _collect(self, name: str, items: list[Any]) -> None:
        match name:
            case "TUPLE":
                self._stack.append(tuple(items))
            case "LIST":
                self._stack.append(items)
            case "FROZENSET":
                self._stack.append(frozenset(map(_key, items)))
            case "DICT":
                self._stack.append(_pairs(items))
            case "POP_MARK":
                pass
            case _:
                self._fill(name, items)

    def _fill(self, name: str, items: list[Any]) -> None:
        match self._stack[-1], name:
            case Made() as made, "SETITEMS":
                made.keyed.update(_pairs(items))
            case Made() as made, "APPENDS":
                made.listed.extend(items)
            case dict() as known, "SETITEMS":
                known.update(_pairs(items))
            case list() as known, "APPENDS":
                known.extend(items)
            case set() as known, "ADDITEMS":
                known.update(map(_key, items))
            case _:
                raise CorruptFile("a pickle fills an object that holds nothing")


def _take_effect(popped: object, target: object) -> None:
    """A call whose result is thrown away was made for what it does to the object before it: it sets its state."""
    match popped, target:
        case Made(maker=setter, arguments=(first, state), how="REDUCE"), Made() if first is target:
            if target.state is not None:
                raise CorruptFile("a pickle sets the state of an object that has one")
            target.state, target.setter = state, setter


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise CorruptFile("a pickle names a global by something that is no text")
    return value


def _tuple(value: object) -> tuple[Any, ...]:
    if not isinstance(value, tuple):
        raise CorruptFile("a pickle calls something without arguments")
    return value


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(map(_key, items[::2]), items[1::2], strict=True))


def _key(value: Any) -> Any:  # noqa: ANN401
    """A value that can be hashed in no time; tuples of tuples may hold themselves many times over."""
    flat = value if type(value) is tuple else (value,)
    if any(type(item) in (tuple, frozenset) for item in flat):
        raise CorruptFile("a pickle has a key that is a tuple of tuples")
    return value
