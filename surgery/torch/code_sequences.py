"""Layers that hand their results on to each other under the numbers of one module: `nn.Sequential` again."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from surgery.torch.code_layers import Layer
from surgery.torch.module import Translated
from surgery.torch.source import Block, Line, identifiers

_ACTIVATIONS = {
    "torch.relu": "ReLU", "torch.tanh": "Tanh", "torch.sigmoid": "Sigmoid", "F.elu": "ELU", "F.gelu": "GELU",
    "F.silu": "SiLU", "F.selu": "SELU", "F.leaky_relu": "LeakyReLU", "F.softplus": "Softplus", "F.mish": "Mish",
    "F.hardswish": "Hardswish",
}  # fmt: skip
_CALL = re.compile(r"((?:torch|F)\.\w+)\((\w+)(?:, (.+))?\)")
_SCALED = re.compile(r"(\w+) [*/+-] [\d.e+-]+")
_PLACEHOLDER = "nn.Identity()"
"""For a module of the original that did nothing, so that the graph does not have it: dropout in evaluation."""


@dataclass(frozen=True)
class Chain:
    """Lines that are one call of a sequence.

    Attributes:
      modules: the expressions that make its members, in order. into: what it is called with. target: the name of its
        result. lines: the names of all results on the way, the last one included.
    """

    modules: tuple[str, ...]
    into: str
    target: str
    lines: frozenset[str]


def sequences(made: Translated, layers: Mapping[str, Layer]) -> dict[str, Chain]:
    """The modules of a graph that are sequences, by path.

    One is if its members are numbered, each is called once, and nothing lies between two of them but as many
    activations or flattenings as numbers are missing, or fewer.
    """
    flow = _Flow(made.block, list(made.inputs))
    found = {path: _sequence(flow, path, names, layers) for path, names in _numbered(made.root, "")}
    return {path: one for path, one in found.items() if one is not None}


def _numbered(module: nn.Module, path: str) -> Iterator[tuple[str, list[str]]]:
    for name, child in module.named_children():
        inner = f"{path}.{name}".lstrip(".")
        names = list(child._modules)
        if names and all(one.isdigit() for one in names) and not (child._parameters or child._buffers):
            yield inner, names
        yield from _numbered(child, inner)


class _Flow:
    """Which line reads what another one makes."""

    def __init__(self, block: Block, inputs: Sequence[str]) -> None:
        self._block, self._inputs = block, inputs
        self._makers = {line.target: line for line in block.lines}
        reads = Counter(identifiers(block.returned))
        readers: dict[str, Line] = {}
        for line in block.lines:
            words = Counter(identifiers(line.text))
            words.update(2 * list(line.block.words()) if line.block else ())
            reads += words
            readers |= dict.fromkeys(words, line)
        self._readers = {name: line for name, line in readers.items() if reads[name] == 1}

    def calls(self, layer: Layer) -> list[tuple[Line, str]]:
        """The lines that call a layer, each with its argument."""
        pairs = [(line, layer.calls[line.text]) for line in self._block.lines if line.text in layer.calls]
        return [(line, call[2:-1]) for line, call in pairs if re.fullmatch(r"@\(\w+\)", call)]

    def after(self, name: str) -> Line | None:
        """The only line that reads a result."""
        return self._readers.get(name)

    def module(self, line: Line) -> str | None:
        """The activation or flattening that a line is."""
        if line.block:
            return None
        match = _CALL.fullmatch(line.text)
        if match and match[1] in _ACTIVATIONS:
            return f"nn.{_ACTIVATIONS[match[1]]}({match[3] or ''})".replace("'", '"').replace(
                "ELU(1.0)", "ELU()"
            )
        if (match and match[1] == "torch.flatten" and match[3] == "1") or self._flattens(line.text):
            return "nn.Flatten()"
        return None

    def _flattens(self, text: str) -> bool:
        match = re.fullmatch(r"\w+\.reshape\((\w+), \d+\)", text)
        size = self._makers.get(match[1]) if match else None
        return size is not None and size.text in {f"{name}.shape[0]" for name in self._inputs}

    def begins_with_input(self, name: str) -> bool:
        """Whether it is an input, or one scaled: its first axis is that of the input."""
        while name in self._makers and (match := _SCALED.fullmatch(self._makers[name].text)):
            name = match[1]
        return name in self._inputs


def _sequence(flow: _Flow, path: str, names: Iterable[str], layers: Mapping[str, Layer]) -> Chain | None:
    numbers = sorted(map(int, names))
    uses = [flow.calls(layers[f"{path}.{k}"]) if f"{path}.{k}" in layers else [] for k in numbers]
    if any(
        len(calls) != 1 or len(layers[f"{path}.{k}"].calls) != 1
        for calls, k in zip(uses, numbers, strict=True)
    ):
        return None
    (first, into), modules, lines = uses[0][0], [_PLACEHOLDER] * numbers[0], set[str]()
    reached = first.target
    for k, ((line, _),) in zip(numbers, uses, strict=True):
        between = [] if line is first else _between(flow, reached, line, lines)
        if between is None or len(modules) + len(between) > k:
            return None
        modules += [
            *between,
            *[_PLACEHOLDER] * (k - len(modules) - len(between)),
            layers[f"{path}.{k}"].constructor,
        ]
        lines.add(line.target)
        reached = line.target
    last = flow.after(reached)
    if last is not None and (made := flow.module(last)) is not None and made != "nn.Flatten()":
        modules, reached = [*modules, made], last.target
        lines.add(reached)
    if "nn.Flatten()" in modules and not flow.begins_with_input(into):
        return None
    return Chain(tuple(modules), into, reached, frozenset(lines))


def _between(flow: _Flow, name: str, until: Line, lines: set[str]) -> list[str] | None:
    """The modules between a result and the line that is called with what becomes of it; None: something else is."""
    found: list[str] = []
    while (line := flow.after(name)) is not until:
        module = None if line is None else flow.module(line)
        if line is None or module is None:
            return None
        found.append(module)
        lines.add(line.target)
        name = line.target
    return found
