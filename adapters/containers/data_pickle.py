"""A pickle machine for data only: containers, numbers, text, and the few constructors that its caller names.

Pickle is a program for a stack machine, and Python's own machine imports and calls what the program asks for.
This one knows no import and no call: a global is looked up in a table, or the file is refused with its name.
Opcodes: https://github.com/python/cpython/blob/main/Lib/pickletools.py
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from surgery.errors import CorruptFile


@dataclass(frozen=True)
class Symbol:
    """A global that a file may name: what it is called, and what makes it from arguments (None: nothing)."""

    name: str
    make: Callable[..., object] | None = None


def load_pickle(
    data: bytes,
    symbols: Mapping[str, Symbol],
    persistent: Callable[[object], object],
) -> object:
    """Build the object that a pickle describes.

    Args:
      data: the pickle.
      symbols: `module.name` -> what stands for it, beside bytes and NumPy numbers, which are always taken.
      persistent: makes the objects that the pickle refers to by a persistent id.

    Raises:
      CorruptFile: damaged, a global that is not in `symbols`, or an operation that data does not need.
    """
    machine = _Machine({**_COMMON, **symbols}, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return machine.result()
            machine.step(opcode.name, argument)
    except CorruptFile:
        raise
    except RecursionError as error:
        raise CorruptFile("the pickle is nested too deeply") from error
    except Exception as error:  # a damaged program can fail in any way that its operations can
        raise CorruptFile(f"the pickle is damaged: {type(error).__name__}: {error}") from error
    raise CorruptFile("the pickle has no end")


_VALUES = frozenset(
    {
        *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "FLOAT", "BINFLOAT"),
        *(
            "UNICODE",
            "BINUNICODE",
            "SHORT_BINUNICODE",
            "BINUNICODE8",
            "STRING",
            "BINSTRING",
            "SHORT_BINSTRING",
        ),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    }
)
_CONSTANTS: Mapping[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_CONTAINERS: Mapping[str, type] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    def __init__(
        self,
        symbols: Mapping[str, Symbol],
        persistent: Callable[[object], object],
    ) -> None:
        self._symbols, self._persistent = symbols, persistent
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def result(self) -> object:
        if self._marked or len(self._stack) != 1:
            raise CorruptFile("the pickle is damaged: it ends in the middle of an object")
        return self._stack[0]

    def step(self, name: str, argument: Any) -> None:  # noqa: ANN401
        stack = self._stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _CONTAINERS:
            stack.append(_CONTAINERS[name]())
        elif name in _TUPLES:
            items = [stack.pop() for _ in range(_TUPLES[name])]
            stack.append(tuple(reversed(items)))
        elif name in _OPERATIONS:
            _OPERATIONS[name](self, argument)
        elif name not in ("PROTO", "FRAME"):
            raise CorruptFile(f"the pickle uses the operation {name}, which data does not need")

    def _mark(self, _: object) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _unmark(self) -> list[Any]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _tuple(self, _: object) -> None:
        items = self._unmark()
        self._stack.append(tuple(items))

    def _list(self, _: object) -> None:
        items = self._unmark()
        self._stack.append(items)

    def _frozenset(self, _: object) -> None:
        items = self._unmark()
        self._stack.append(frozenset(map(check_key, items)))

    def _dict(self, _: object) -> None:
        items = self._unmark()
        self._stack.append(dict(zip(map(check_key, items[::2]), items[1::2], strict=True)))

    def _append(self, _: object) -> None:
        item = self._stack.pop()
        self._target(list).append(item)

    def _appends(self, _: object) -> None:
        items = self._unmark()
        self._target(list).extend(items)

    def _additems(self, _: object) -> None:
        items = self._unmark()
        self._target(set).update(map(check_key, items))

    def _setitem(self, _: object) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._target(dict)[check_key(key)] = value

    def _setitems(self, _: object) -> None:
        items = self._unmark()
        self._target(dict).update(zip(map(check_key, items[::2]), items[1::2], strict=True))

    def _target(self, kind: type) -> Any:  # noqa: ANN401
        if type(self._stack[-1]) is not kind:
            raise CorruptFile(f"the pickle is damaged: a {kind.__name__} was expected")
        return self._stack[-1]

    def _put(self, index: Any) -> None:  # noqa: ANN401
        self._memo[int(index)] = self._stack[-1]

    def _memoize(self, _: object) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, index: Any) -> None:  # noqa: ANN401
        self._stack.append(self._memo[int(index)])

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._symbol(module, name)

    def _stack_global(self, _: object) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise CorruptFile("the pickle is damaged: a global has no name")
        self._symbol(module, name)

    def _symbol(self, module: str, name: str) -> None:
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full not in self._symbols:
            raise CorruptFile(
                f"the file asks for the Python object '{full[:200]}', which is not data",
                hint="nothing was executed; save it again with state_dict(), numbers, text, lists and dicts",
            )
        self._stack.append(self._symbols[full])

    def _reduce(self, _: object) -> None:
        arguments, symbol = self._stack.pop(), self._stack.pop()
        if not isinstance(symbol, Symbol) or symbol.make is None or not isinstance(arguments, tuple):
            raise CorruptFile("the pickle calls something that is not a constructor")
        self._stack.append(symbol.make(*arguments))

    def _build(self, _: object) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        # An OrderedDict may have attributes, as PyTorch's state dicts do (`_metadata`); they are no data.
        if not (type(target) is dict and isinstance(state, dict)):
            _set_state(target, state)

    def _persistent_id(self, _: object) -> None:
        self._stack.append(self._persistent(self._stack.pop()))


def check_key(value: object) -> object:
    """A value that may be a key or a set's member: text, a number, or a flat tuple of those.

    A tuple that holds itself many times over is small in a file and takes for ever to hash.
    """
    flat = value if type(value) is tuple else (value,)
    if not all(item is None or type(item) in (str, bytes, int, float, bool) for item in flat):
        raise CorruptFile("the pickle has a key that is neither text nor a number")
    return value


_OPERATIONS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine._mark,
    "TUPLE": _Machine._tuple,
    "LIST": _Machine._list,
    "DICT": _Machine._dict,
    "FROZENSET": _Machine._frozenset,
    "APPEND": _Machine._append,
    "APPENDS": _Machine._appends,
    "ADDITEMS": _Machine._additems,
    "SETITEM": _Machine._setitem,
    "SETITEMS": _Machine._setitems,
    "PUT": _Machine._put,
    "BINPUT": _Machine._put,
    "LONG_BINPUT": _Machine._put,
    "MEMOIZE": _Machine._memoize,
    "GET": _Machine._get,
    "BINGET": _Machine._get,
    "LONG_BINGET": _Machine._get,
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._reduce,
    "NEWOBJ": _Machine._reduce,
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._persistent_id,
}


def _encode(text: object, encoding: object) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8", "utf8"):
        raise CorruptFile(f"the pickle encodes text as '{encoding}'")
    return text.encode(str(encoding))


class _NumpyType:
    """A NumPy scalar type; only numbers."""

    def __init__(self, name: object) -> None:
        if name not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"):
            raise CorruptFile("the file holds a NumPy value that is no number")
        self.name, self.order = str(name), "<"

    def scalar(self, data: bytes) -> float | int | bool:
        array = np.frombuffer(data, np.dtype(self.order + self.name))
        if array.size != 1:
            raise CorruptFile("a NumPy number is damaged")
        value: float | int | bool = array[0].item()
        return value


def _set_state(target: object, state: object) -> None:
    # The state of a NumPy type is (version, byte order, ...).
    orders = ("<", ">", "|", "=")
    if (
        not isinstance(target, _NumpyType)
        or not isinstance(state, tuple)
        or state[1:2] not in [(order,) for order in orders]
    ):
        raise CorruptFile("the pickle sets the state of an object that has none")
    target.order = state[1]


def _scalar(dtype: object, data: object) -> object:
    if not isinstance(dtype, _NumpyType) or not isinstance(data, bytes):
        raise CorruptFile("a NumPy number is damaged")
    return dtype.scalar(data)


_COMMON: Mapping[str, Symbol] = {
    "_codecs.encode": Symbol("encode", _encode),
    "numpy.dtype": Symbol("dtype", lambda name, *_: _NumpyType(name)),
    "numpy.core.multiarray.scalar": Symbol("scalar", _scalar),
    "numpy._core.multiarray.scalar": Symbol("scalar", _scalar),
}
