"""Architectures in a TOML file: the ones that come with the program, and those of a user's own file."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Literal

from surgery.architectures.layers import (
    ACTIVATIONS,
    PLAIN,
    Activation,
    Attention,
    Convolution,
    Dense,
    Flatten,
    Layer,
    Mean,
    Norm,
    Padding,
    Pair,
    Pool,
    Recurrent,
    Residual,
    Shape,
)
from surgery.errors import ArgumentError, CorruptFile, SurgeryError
from surgery.files import check_readable
from surgery.json_values import Fields, Json

Initialisation = Literal["uniform", "xavier", "orthogonal"]
"""How weights start: as PyTorch's layers do, as Dopamine's do, or orthogonal as PPO code does."""

_INITIALISATIONS: Mapping[str, Initialisation] = {
    "uniform": "uniform", "xavier": "xavier", "orthogonal": "orthogonal",
}  # fmt: skip
_PLAIN: Mapping[str, Layer] = {
    **{kind.lower(): Activation(kind) for kind in ACTIVATIONS},
    "flatten": Flatten(),
    "flatten-hwc": Flatten("hwc"),
    "mean": Mean(),
}
_KINDS = ("conv", "dense", "max-pool", "mean-pool", "residual", "lstm", "gru", "attention", "layer-norm")
_MOST_LAYERS = 1000


@dataclass(frozen=True)
class Architecture:
    """A network without its head.

    Attributes:
      name: by which it is found; modifiers are part of it.
      layers: from the observation to what the head reads.
      about: where it comes from.
      observation: the shape of one observation that it is usually given; None if it is made for no one shape.
      initialisation: how its weights start where the head does not say.
      open: what the name leaves to the teacher: its "activation", or its "encoder" before a recurrent layer.
    """

    name: str
    layers: tuple[Layer, ...]
    about: str = ""
    observation: Shape | None = None
    initialisation: Initialisation = "uniform"
    open: frozenset[str] = frozenset()


@functools.cache
def built_in() -> Mapping[str, Architecture]:
    """The architectures that come with the program."""
    text = files("surgery.architectures").joinpath("library.toml").read_text(encoding="utf-8")
    return read(text, "library of architectures")


def load_file(path: Path) -> Mapping[str, Architecture]:
    """The architectures of a TOML file.

    Raises:
      FileError: the file is missing or cannot be read.
      CorruptFile: it is not TOML, or describes something that is no architecture.
    """
    check_readable(path)
    try:
        return read(path.read_text(encoding="utf-8"), f"file '{path}'")
    except UnicodeDecodeError as error:
        raise CorruptFile(f"'{path}' is not text") from error
    except SurgeryError as error:
        raise error.within(file=path) from None


def read(text: str, what: str) -> Mapping[str, Architecture]:
    """Architectures by name, from TOML text.

    Raises:
      CorruptFile: not TOML, or a table that is no architecture.
    """
    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise CorruptFile(f"the {what} is not valid TOML: {error}") from error
    if not tables:
        raise CorruptFile(f"the {what} does not describe an architecture")
    return {name: _architecture(name, table) for name, table in tables.items()}


def _architecture(name: str, record: Json) -> Architecture:
    fields = Fields(record, f"architecture '{name}'")
    layers = _Reader(name).layers(fields.items("layers"))
    about, start = fields.anything("about"), fields.anything("initialisation")
    observation = fields.anything("observation")
    fields.done()
    if not layers:
        raise CorruptFile(f"architecture '{name}' has no layers")
    if start is not None and start not in _INITIALISATIONS:
        raise CorruptFile(
            f"architecture '{name}': initialisation {start!r} is none of {', '.join(_INITIALISATIONS)}"
        )
    return Architecture(
        name,
        layers,
        str(about or ""),
        None if observation is None else tuple(_numbers(observation, f"'{name}': observation", (1, 2, 3))),
        _INITIALISATIONS[str(start)] if start else "uniform",
    )


class _Reader:
    """Reads a list of layers."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._count = 0

    def layers(self, items: Sequence[Json]) -> tuple[Layer, ...]:
        return tuple(layer for item in items for layer in self._layer(item))

    def _layer(self, item: Json) -> list[Layer]:
        self._count += 1
        if self._count > _MOST_LAYERS:
            raise CorruptFile(f"architecture '{self._what}' has more than {_MOST_LAYERS} layers")
        if isinstance(item, str):
            if item not in _PLAIN and item != "layer-norm":
                raise CorruptFile(
                    f"architecture '{self._what}': unknown layer '{item}'",
                    hint=f"there are {', '.join([*_PLAIN, *_KINDS])}",
                )
            return [_PLAIN.get(item, Norm())]
        kinds = [kind for kind in _KINDS if isinstance(item, Mapping) and kind in item]
        if len(kinds) != 1:
            raise CorruptFile(
                f"architecture '{self._what}': {item!r:.60} is not a layer",
                hint=f"a layer is a name, or a table with one of {', '.join(_KINDS)}",
            )
        return self._table(kinds[0], Fields(item, f"layer {kinds[0]} of '{self._what}'"))

    def _table(self, kind: str, fields: Fields) -> list[Layer]:
        what = f"'{self._what}': {kind}"
        value, name = fields.anything(kind), fields.anything("name")
        label = name if isinstance(name, str) else ""
        if kind == "residual":
            if not isinstance(value, list | tuple):
                raise CorruptFile(f"{what}: the layers of a residual block are a list")
            times = _number(fields.anything("times") or 1, f"{what}: times")
            fields.done()
            body = self.layers(value)
            return [Residual(body, numbered(label, k)) for k in range(times)]
        layer = self._plain(kind, _number(value, what), label, fields, what)
        fields.done()
        return [layer]

    def _plain(self, kind: str, value: int, name: str, fields: Fields, what: str) -> Layer:
        match kind:
            case "conv":
                kernel = _pair(fields.anything("kernel"), f"{what}: kernel")
                return Convolution(value, kernel, *_window(fields, (1, 1), what), name)
            case "dense":
                return Dense(value, name)
            case "max-pool" | "mean-pool":
                kernel = (value, value)
                pooled: Literal["max", "mean"] = "max" if kind == "max-pool" else "mean"
                return Pool(pooled, kernel, *_window(fields, kernel, what))
            case "lstm" | "gru":
                return Recurrent("lstm" if kind == "lstm" else "gru", value, name)
            case "attention":
                heads = _number(fields.anything("heads"), f"{what}: heads")
                if value % heads:
                    raise CorruptFile(f"{what}: a width of {value} is not a multiple of {heads} heads")
                return Attention(value, heads, name)
        return Norm(name=name)


def _window(fields: Fields, stride: Pair, what: str) -> tuple[Pair, Padding]:
    step, padding = fields.anything("stride"), fields.anything("padding")
    pair = stride if step is None else _pair(step, f"{what}: stride")
    if padding is None or padding == "valid":
        return pair, "valid"
    if padding == "same":
        return pair, "same"
    number = _number(padding, f"{what}: padding", least=0)
    return pair, (number, number, number, number)


def _pair(value: Json, what: str) -> Pair:
    if isinstance(value, list | tuple):
        first, second = _numbers(value, what, (2,))
        return first, second
    number = _number(value, what)
    return number, number


def _numbers(value: Json, what: str, lengths: tuple[int, ...]) -> list[int]:
    if not isinstance(value, list | tuple) or len(value) not in lengths:
        raise CorruptFile(f"{what} is not a list of {' or '.join(map(str, lengths))} numbers: {value!r:.40}")
    return [_number(item, what) for item in value]


def _number(value: Json, what: str, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= 1 << 20:
        raise CorruptFile(f"{what} is not a whole number from {least} on: {value!r:.40}")
    return value


def named(layers: Sequence[Layer], what: str) -> tuple[Layer, ...]:
    """Layers without a name are called after what they are: conv1, conv2; one alone goes without a number.

    Raises:
      ArgumentError: two layers have the same name.
    """
    stems = [_stem(layer) for layer in layers]
    counts: dict[str, int] = {}
    out: list[Layer] = []
    for layer, stem in zip(layers, stems, strict=True):
        if stem is None or isinstance(layer, PLAIN):
            out.append(layer)
            continue
        counts[stem] = counts.get(stem, 0) + 1
        alone = stems.count(stem) == 1 and stem != "conv"
        name = layer.name or (stem if alone else f"{stem}{counts[stem]}")
        if isinstance(layer, Residual):
            out.append(Residual(named(layer.body, what), name))
        else:
            out.append(replace(layer, name=name))
    names = [layer.name for layer in out if not isinstance(layer, PLAIN)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ArgumentError(f"'{what}': several layers are called {', '.join(twice)}")
    return tuple(out)


def _stem(layer: Layer) -> str | None:
    stems = {
        Convolution: "conv", Dense: "fc", Norm: "norm", Attention: "attention", Residual: "block",
    }  # fmt: skip
    return layer.kind if isinstance(layer, Recurrent) else stems.get(type(layer))


def numbered(name: str, k: int) -> str:
    """The name of the k-th repetition: its last number counts up; no name stays none."""
    if not name or not k:
        return name
    stem, dot, last = name.rpartition(".")
    return f"{stem}{dot}{int(last) + k}" if last.isdecimal() else f"{name}.{k}"
