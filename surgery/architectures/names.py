"""Architectures by name, with modifiers: `nature-x2-fc1024`, `impala-x4-b3`, `mlp-256-256-tanh`, `nature-lstm-256`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from surgery.architectures.layers import (
    ACTIVATIONS,
    Activation,
    Attention,
    Convolution,
    Dense,
    Flatten,
    Layer,
    Mean,
    Norm,
    Recurrent,
    Residual,
    change,
    walk,
)
from surgery.architectures.library import Architecture, built_in, load_file, named, numbered
from surgery.errors import ArgumentError, UnknownName

MOST_UNITS = 1 << 16
PATTERNS: Mapping[str, str] = {
    "mlp-256-256": "dense layers of these widths; tanh, elu, gelu or silu at the end replace relu",
    "lstm-512": "a dense encoder, then an LSTM; more numbers stack more layers as residual blocks",
    "gru-512": "the same with GRUs",
    "transformer-128": "self-attention over a list of entities, pre-norm; -lN layers, -hN heads",
}
"""Names that stand for a family, each by an example."""
MODIFIERS: Mapping[str, str] = {
    "-xN": "multiply the channels of every convolution by N (such as 2 or 1.5)",
    "-fcN": "N units in the last dense layer (before a recurrent layer: its encoder; 0 for none)",
    "-bN": "N residual blocks in every stage",
    "-lstm-N": "an LSTM at the end (-gru-N: a GRU)",
    "-tanh": "another activation: relu, tanh, elu, gelu, silu, sigmoid",
}
_ACTIVATIONS = {kind.lower(): kind for kind in ACTIVATIONS}


def parse(name: str) -> Architecture:
    """The architecture that a name stands for.

    Args:
      name: a name with modifiers (`surgery list architectures`), or `FILE.toml` or `FILE.toml:NAME` with modifiers.

    Raises:
      UnknownName: no such architecture or modifier; names the nearest.
      ArgumentError: a modifier that it cannot take, such as channels of a network without convolutions.
      FileError, CorruptFile: of a TOML file.
    """
    file, found, rest = name.partition(".toml")
    if found:
        return _from_file(name, Path(f"{file}.toml"), rest)
    parts = name.split("-")
    for cut in range(len(parts), 0, -1):
        family = "-".join(parts[:cut])
        if family in built_in():
            return _modified(replace(built_in()[family], name=name), parts[cut:])
        if family in _FAMILIES:
            return _family(name, family, parts[cut:])
    raise UnknownName("architecture", name, [*built_in(), *PATTERNS])


def _from_file(name: str, path: Path, rest: str) -> Architecture:
    known = load_file(path)
    wanted = rest.removeprefix(":")
    if not wanted and len(known) == 1:
        wanted = next(iter(known))
    fitting = [own for own in known if wanted == own or wanted.startswith(f"{own}-")]
    if not fitting:
        raise UnknownName("architecture", wanted or str(path), known, where={"file": path})
    family = max(fitting, key=len)
    try:
        return _modified(replace(known[family], name=name), wanted.removeprefix(family).split("-")[1:])
    except ArgumentError as error:
        raise error.within(file=path) from None


def _modified(architecture: Architecture, parts: Sequence[str]) -> Architecture:
    """The modifiers of a name, one after the other."""
    layers, recurrent = architecture.layers, ""
    widths: list[int] = []
    for part in parts:
        if recurrent and part.isdecimal():
            widths.append(_count(part, architecture.name))
        elif part in ("lstm", "gru") and not recurrent:
            recurrent = part
        else:
            layers = _modify(layers, part, architecture.name)
    if recurrent and not widths:
        raise ArgumentError(f"'{architecture.name}': how wide is the {recurrent}?", hint=f"-{recurrent}-256")
    layers = (*layers, *_recurrent(recurrent, widths))
    return replace(architecture, layers=named(layers, architecture.name))


def _modify(layers: tuple[Layer, ...], part: str, name: str) -> tuple[Layer, ...]:
    found = re.fullmatch(r"(x|fc|b)(\d+(?:\.\d+)?)", part)
    if part in _ACTIVATIONS:
        return _activated(layers, _ACTIVATIONS[part])
    if not found:
        known = ["x2", "fc1024", "b3", "lstm-256", "gru-256", *_ACTIVATIONS]
        raise UnknownName(f"modifier in '{name}':", part, known)
    kind, number = found.groups()
    if kind == "x":
        return _wider(layers, float(number), name)
    return (_dense if kind == "fc" else _blocks)(layers, _count(number, name), name)


def _count(text: str, name: str, least: int = 1) -> int:
    if not text.isdecimal() or not least <= int(text) <= MOST_UNITS:
        raise ArgumentError(f"'{name}': {text} is not a whole number from {least} to {MOST_UNITS}")
    return int(text)


def _activated(layers: tuple[Layer, ...], kind: str) -> tuple[Layer, ...]:
    return change(layers, lambda layer: Activation(kind) if isinstance(layer, Activation) else layer)


def _wider(layers: tuple[Layer, ...], factor: float, name: str) -> tuple[Layer, ...]:
    if not any(isinstance(layer, Convolution) for _, layer in walk(layers)):
        raise ArgumentError(
            f"'{name}': it has no convolutions to widen by {factor:g}", hint="name its widths"
        )
    if not 0 < factor <= 1024:
        raise ArgumentError(f"'{name}': {factor:g} times as many channels")

    def edit(layer: Layer) -> Layer:
        if not isinstance(layer, Convolution):
            return layer
        return replace(layer, channels=max(1, math.ceil(layer.channels * factor - 1e-9)))

    return change(layers, edit)


def _dense(layers: tuple[Layer, ...], width: int, name: str) -> tuple[Layer, ...]:
    for k in reversed(range(len(layers))):
        layer = layers[k]
        if isinstance(layer, Dense):
            return (*layers[:k], replace(layer, width=width), *layers[k + 1 :])
    raise ArgumentError(f"'{name}': it has no dense layer", hint=f"add one: mlp-{width}, lstm-512-fc{width}")


def _blocks(layers: tuple[Layer, ...], count: int, name: str) -> tuple[Layer, ...]:
    """Every run of equal residual blocks, made of `count` of them."""
    out: list[Layer] = []
    for layer in layers:
        if not isinstance(layer, Residual):
            out.append(layer)
        elif not (out and isinstance(out[-1], Residual) and out[-1] == layer):
            out.extend(replace(layer, name=numbered(layer.name, k)) for k in range(count))
    if not any(isinstance(layer, Residual) for layer in out):
        raise ArgumentError(f"'{name}': it has no residual blocks")
    return tuple(out)


def _recurrent(kind: str, widths: Sequence[int]) -> tuple[Layer, ...]:
    """Recurrent layers; those after the first are residual blocks `x + W·rnn(x)`, so that they can be inserted."""
    cells = [Recurrent("lstm" if kind == "lstm" else "gru", width) for width in widths]
    return (
        *(replace(cell, name=kind) for cell in cells[:1]),
        *(
            Residual((replace(cell, name="rnn"), Dense(widths[0], "out")), f"{kind}{k}")
            for k, cell in enumerate(cells[1:], start=2)
        ),
    )


@dataclass
class _Words:
    """What follows the name of a family."""

    numbers: list[int]
    options: dict[str, int]
    activation: str | None


def _family(name: str, family: str, parts: Sequence[str]) -> Architecture:
    words = _Words([], {}, None)
    for part in parts:
        found = re.fullmatch(r"(fc|l|h)(\d+)", part)
        if part.isdecimal():
            words.numbers.append(_count(part, name))
        elif part in _ACTIVATIONS:
            words.activation = _ACTIVATIONS[part]
        elif found and found[1] in _OPTIONS[family]:
            words.options[found[1]] = _count(found[2], name, least=0 if found[1] == "fc" else 1)
        else:
            known = [*(f"{option}2" for option in _OPTIONS[family]), *_ACTIVATIONS]
            raise UnknownName(f"modifier in '{name}':", part, known)
    if not words.numbers:
        example = next(pattern for pattern in PATTERNS if pattern.startswith(f"{family}-"))
        raise ArgumentError(f"'{name}': how wide?", hint=f"give its widths, as in {example}")
    layers = _activated(named(_FAMILIES[family](words, name), name), words.activation or "Relu")
    free = set() if words.activation else {"activation"}
    if family in ("lstm", "gru") and "fc" not in words.options:
        free.add("encoder")
    example = next(pattern for pattern in PATTERNS if pattern.startswith(f"{family}-"))
    return Architecture(name, layers, PATTERNS[example], open=frozenset(free))


def _mlp(words: _Words, name: str) -> Sequence[Layer]:
    return [Flatten(), *(layer for width in words.numbers for layer in (Dense(width), Activation("Relu")))]


def _rnn(kind: str) -> Callable[[_Words, str], Sequence[Layer]]:
    def build(words: _Words, name: str) -> Sequence[Layer]:
        width = words.options.get("fc", words.numbers[0])
        encoder = (Dense(width, "encoder"), Activation("Relu")) if width else ()
        return [Flatten(), *encoder, *_recurrent(kind, words.numbers)]

    return build


def _transformer(words: _Words, name: str) -> Sequence[Layer]:
    """Pre-norm blocks (Xiong et al., 2020), the feed-forward part four times as wide."""
    width, heads = words.numbers[0], words.options.get("h", 4)
    if len(words.numbers) > 1 or width % heads:
        raise ArgumentError(
            f"'{name}': one width, a multiple of the {heads} heads", hint="transformer-128-l2-h4"
        )
    blocks: list[Layer] = []
    for k in range(words.options.get("l", 2)):
        attention = (Norm(name="norm"), Attention(width, heads, "self"))
        feed = (Norm(name="norm"), Dense(4 * width, "up"), Activation("Relu"), Dense(width, "down"))
        blocks += [Residual(attention, f"blocks.{k}.attention"), Residual(feed, f"blocks.{k}.feed")]
    return [Dense(width, "embed"), *blocks, Norm(name="norm"), Mean()]


_FAMILIES: Mapping[str, Callable[[_Words, str], Sequence[Layer]]] = {
    "mlp": _mlp,
    "lstm": _rnn("lstm"),
    "gru": _rnn("gru"),
    "transformer": _transformer,
}
_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "mlp": (), "lstm": ("fc",), "gru": ("fc",), "transformer": ("l", "h"),
}  # fmt: skip
