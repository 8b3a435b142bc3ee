"""Pickles that hold data only: containers, numbers, text, and the few constructors that their reader names.

Pickle is a program for a stack machine, and Python's own machine imports and calls what the program asks for. Here
the program is read as a tree (`pickle_tree`), and data is made of the tree. A global is looked up in a table. One that
is not there stays a name, and an instance of such a class stays a node of the tree, so that whoever writes the tree
again carries it; a call of something else is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from surgery.errors import CorruptFile, SurgeryError
from surgery_adapters.containers.pickle_tree import Made, Name, Persistent, parse
from surgery_adapters.containers.pickled_arrays import is_array, read_bytes, read_scalar

_DEPTH = 200
_INERT = frozenset({
    "collections.deque", "collections.Counter", "numpy.dtype", "copyreg._reconstructor", "copy_reg._reconstructor",
    *(f"datetime.{kind}" for kind in ("date", "datetime", "time", "timedelta", "timezone")),
    *(f"pathlib.{kind}Path" for kind in ("", "Posix", "Windows", "Pure", "PurePosix", "PureWindows")),
})  # fmt: skip
"""What a call of is an instance, as others are without a call."""
_PLAIN = frozenset({type(None), bool, int, float, str, bytes, bytearray})


@dataclass(frozen=True)
class Symbol:
    """A global that a file may name: what it is called, and what makes it from arguments (None: nothing)."""

    name: str
    make: Callable[..., object] | None = None


def load_pickle(data: bytes, symbols: Mapping[str, Symbol], persistent: Callable[[object], object]) -> object:
    """Make the object that a pickle describes.

    Args:
      data: the pickle.
      symbols: `module.name` -> what stands for it, beside bytes and NumPy numbers, which are always taken.
      persistent: makes the objects that the pickle refers to by a persistent id.

    Raises:
      CorruptFile: damaged, or it calls something that is neither in `symbols` nor known to make data.
    """
    return Builder(symbols, persistent).value(parse(data, most=len(data)).root)


class Builder:
    """Makes data of trees, each object once.

    Args: see `load_pickle`.
    """

    def __init__(self, symbols: Mapping[str, Symbol], persistent: Callable[[object], object]) -> None:
        self._symbols, self._persistent = symbols, persistent
        self._done: dict[int, object] = {}

    def value(self, node: object) -> object:
        """The object that a node of a tree stands for.

        Raises:
          CorruptFile: see `load_pickle`.
        """
        try:
            return self._value(node, 0)
        except SurgeryError:
            raise
        except RecursionError as error:
            raise CorruptFile("the pickle is nested too deeply") from error
        except Exception as error:  # constructors fail in many ways when they are given something else
            raise CorruptFile(f"the pickle is damaged: {type(error).__name__}: {error}") from error

    def _value(self, node: Any, depth: int) -> object:  # noqa: ANN401
        if type(node) in _PLAIN:
            return node
        if depth > _DEPTH:
            raise CorruptFile("the pickle is nested too deeply")
        if id(node) not in self._done:
            self._done[id(node)] = self._made(node, depth + 1)
        return self._done[id(node)]

    def _made(self, node: Any, depth: int) -> object:  # noqa: ANN401
        match node:
            case Persistent():
                return self._persistent(self._value(node.identity, depth))
            case dict():
                return self._items(node, depth)
            case set() | frozenset():
                return type(node)(map(check_key, node))
            case list() | tuple():
                return type(node)([self._value(item, depth) for item in node])
            case Name():
                return self._symbol(node)
        return self._called(node, depth)

    def _called(self, node: Made, depth: int) -> object:
        """What a call makes; subclasses know more."""
        if (number := read_scalar(node)) is not None:
            return number
        if node.is_a("_codecs.encode"):
            return read_bytes(node)
        maker = self._value(node.maker, depth)
        if isinstance(maker, Name) and (node.how != "REDUCE" or str(maker) in _INERT or is_array(node)):
            return node
        if not isinstance(maker, Symbol):
            raise CorruptFile(
                f"the file asks for a call of '{str(maker)[:200]}', which is not data",
                hint="nothing was executed; save it again with state_dict(), numbers, text, lists and dicts",
            )
        if maker.make is None or node.keywords is not None:
            raise CorruptFile("the pickle calls something that is not a constructor")
        return self._filled(
            maker.make(*[self._value(argument, depth) for argument in node.arguments]), node, depth
        )

    def _filled(self, made: object, node: Made, depth: int) -> object:
        """An object with what the pickle puts into it afterwards."""
        # An OrderedDict may have attributes, as PyTorch's state dicts do (`_metadata`); they are no data.
        if node.state is not None and not isinstance(made, dict):
            raise CorruptFile("the pickle sets the state of an object that has none")
        if node.keyed:
            _expected(made, dict).update(self._items(node.keyed, depth))
        if node.listed:
            _expected(made, list).extend([self._value(item, depth) for item in node.listed])
        return made

    def _items(self, items: Mapping[Any, Any], depth: int) -> dict[object, object]:
        return {check_key(key): self._value(item, depth) for key, item in items.items()}

    def _symbol(self, name: Name) -> Symbol | Name:
        name = Name("builtins", name.name) if name.module == "__builtin__" else name
        return self._symbols.get(str(name), name)


def _expected(made: object, kind: type) -> Any:  # noqa: ANN401
    if type(made) is not kind:
        raise CorruptFile(f"the pickle is damaged: a {kind.__name__} was expected")
    return made


def check_key(value: object) -> object:
    """A value that may be a key or a set's member: text, a number, or a flat tuple of those.

    A tuple that holds itself many times over is small in a file and takes for ever to hash.
    """
    flat = value if type(value) is tuple else (value,)
    if not all(item is None or type(item) in (str, bytes, int, float, bool) for item in flat):
        raise CorruptFile("the pickle has a key that is neither text nor a number")
    return value
