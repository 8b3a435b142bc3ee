"""Calls of functions that are PyTorch's own layers: which module each is, and how it is called."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from surgery.torch.module import Translated
from surgery.torch.source import Line

Sizes = tuple[int, ...]


@dataclass
class Layer:
    """A module that stands for some lines.

    Attributes:
      path: of the module. constructor: the expression that makes it. calls: a line's expression -> its call, `@` the
        module. leaves: the names of the tensors that it owns.
    """

    path: str
    constructor: str
    leaves: tuple[str, ...]
    calls: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Use:
    """One call of a function.

    Attributes:
      arguments: positional, as source. keywords: by name. stored: source of a tensor -> its name. shapes: by name.
      rank: the number of axes of the first one.
    """

    arguments: tuple[str, ...]
    keywords: Mapping[str, str]
    stored: Mapping[str, str]
    shapes: Mapping[str, Sizes]
    rank: int | None = None

    def owner(self, tensors: Mapping[str, str | None]) -> str | None:
        """The module that the tensors (leaf -> source) belong to, if they are called so and all of one."""
        paths = set()
        for leaf, source in tensors.items():
            if source is None:
                continue
            name = self.stored.get(source)
            if name is None or name.rpartition(".")[2] != leaf or "." not in name:
                return None
            paths.add(name.rpartition(".")[0])
        return paths.pop() if len(paths) == 1 else None

    def argument(self, index: int) -> str | None:
        """A positional argument, None where it is absent or None."""
        found = self.arguments[index] if index < len(self.arguments) else None
        return None if found == "None" else found

    def shape(self, source: str) -> Sizes:
        """The sizes of a stored tensor."""
        return self.shapes[self.stored[source]]


Found = tuple[str, tuple[str, ...], str, str]
"""Path, leaves, constructor, call."""


def _linear(use: Use) -> Found | None:
    x, weight, bias = use.arguments[0], use.arguments[1], use.argument(2)
    path = use.owner({"weight": weight, "bias": bias})
    if path is None:
        return None
    out, into = use.shape(weight)
    return _biased(path, f"nn.Linear({into}, {out}", bias, x)


def _biased(path: str, made: str, bias: str | None, x: str) -> Found:
    """A layer with a weight and perhaps a bias."""
    if bias:
        return path, ("weight", "bias"), f"{made})", f"@({x})"
    return path, ("weight",), f"{made}, bias=False)", f"@({x})"


def _conv(rank: int, *, transposed: bool = False) -> Callable[[Use], Found | None]:
    def recognise(use: Use) -> Found | None:
        x, weight = use.arguments[:2]
        bias = use.keywords.get("bias") if transposed else use.argument(2)
        path = use.owner({"weight": weight, "bias": bias})
        if path is None:
            return None
        first, each, *kernel = use.shape(weight)
        settings = {key: value for key, value in use.keywords.items() if key != "bias"}
        second = each * int(settings.get("groups", "1"))
        channels = f"{first}, {second}" if transposed else f"{second}, {first}"
        size = kernel[0] if len(set(kernel)) == 1 else tuple(kernel)
        stated = "".join(f", {key}={value}" for key, value in settings.items())
        kind = f"nn.Conv{'Transpose' if transposed else ''}{rank}d"
        return _biased(path, f"{kind}({channels}, {size}{stated}", bias, x)

    return recognise


def _layer_norm(use: Use) -> Found | None:
    x, shape, weight, bias, epsilon = (*use.arguments, *["None"] * 5)[:5]
    path = use.owner({"weight": weight, "bias": None if bias == "None" else bias})
    if path is None:
        return None
    sizes = ast.literal_eval(shape)
    size = sizes[0] if len(sizes) == 1 else sizes
    more = _epsilon(epsilon, 1e-5) + ("" if bias != "None" else ", bias=False")
    return (
        path,
        ("weight", "bias") if bias != "None" else ("weight",),
        f"nn.LayerNorm({size}{more})",
        f"@({x})",
    )


def _group_norm(use: Use) -> Found | None:
    x, groups, weight, bias, epsilon = use.arguments
    path = use.owner({"weight": weight, "bias": bias})
    if path is None:
        return None
    made = f"nn.GroupNorm({groups}, {use.shape(weight)[0]}{_epsilon(epsilon, 1e-5)})"
    return path, ("weight", "bias"), made, f"@({x})"


def _batch_norm(use: Use) -> Found | None:
    x, mean, variance, weight, bias, mode, momentum, epsilon = use.arguments
    path = use.owner({"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance})
    if path is None or use.rank is None or mode != "self.training":
        return None
    settings = _epsilon(epsilon, 1e-5) + ("" if float(momentum) == 0.1 else f", momentum={momentum}")
    made = f"nn.BatchNorm{max(use.rank - 2, 1)}d({use.shape(weight)[0]}{settings})"
    return path, ("weight", "bias", "running_mean", "running_var"), made, f"@({x})"


def _slopes(use: Use) -> Found | None:
    x, weight = use.arguments
    path = use.owner({"weight": weight})
    return None if path is None else (path, ("weight",), f"nn.PReLU({use.shape(weight)[0]})", f"@({x})")


def _embedding(use: Use) -> Found | None:
    weight, index, axis = use.arguments
    path = use.owner({"weight": weight})
    if path is None or axis != "0" or len(use.shape(weight)) != 2:
        return None
    rows, columns = use.shape(weight)
    return path, ("weight",), f"nn.Embedding({rows}, {columns})", f"@({index})"


def _epsilon(text: str, default: float) -> str:
    shown = str(np.float32(ast.literal_eval(text)))
    return "" if float(shown) == default else f", eps={shown}"


RULES: Mapping[str, Callable[[Use], Found | None]] = {
    "F.linear": _linear,
    "torch.conv1d": _conv(1),
    "torch.conv2d": _conv(2),
    "torch.conv3d": _conv(3),
    "torch.conv_transpose1d": _conv(1, transposed=True),
    "torch.conv_transpose2d": _conv(2, transposed=True),
    "torch.conv_transpose3d": _conv(3, transposed=True),
    "F.batch_norm": _batch_norm,
    "F.layer_norm": _layer_norm,
    "torch.prelu": _slopes,
    "gathered": _embedding,
    "F.group_norm": _group_norm,
}


def recognised(made: Translated) -> dict[str, Layer]:
    """The layers of a translated graph by path.

    A module is one only if every use of its tensors is such a call, always with the same settings.
    """
    stored = {_same(s.text): s.name for s in made.program.stored.values()}
    shapes = {s.name: s.shape for s in made.program.stored.values()}
    layers: dict[str, Layer] = {}
    unfit: set[str] = set()
    for line in made.block.lines:
        found = None if line.block else _call(line, stored, shapes)
        if found is None:
            continue
        path, leaves, constructor, call = found
        layer = layers.setdefault(path, Layer(path, constructor, leaves))
        if (layer.constructor, layer.leaves) != (constructor, leaves):
            unfit.add(path)
        layer.calls[line.text] = call
    layers |= {path: layer for path, layer in _recurrent(made, stored, shapes).items() if path not in layers}
    for path, layer in layers.items():
        owned = {name for name in shapes if name.startswith(f"{path}.")}
        if owned != {f"{path}.{leaf}" for leaf in layer.leaves} or _used_elsewhere(made, layer):
            unfit.add(path)
    return {path: layer for path, layer in layers.items() if path not in unfit}


_RECURRENT = {"torch.lstm": "LSTM", "torch.gru": "GRU", "torch.rnn_tanh": "RNN"}
_FIRST = re.compile(r"(.+)\.weight_ih_l(\d+)")


def _recurrent(made: Translated, stored: Mapping[str, str], shapes: Mapping[str, Sizes]) -> dict[str, Layer]:
    """Recurrent modules, whose layers are calls of PyTorch's kernel one by one, with the weights of the module."""
    settings: dict[str, set[tuple[str, bool, bool]]] = {}
    used: dict[str, dict[int, tuple[str, ...]]] = {}
    calls: dict[str, dict[str, str]] = {}
    for line in made.block.lines:
        tree: Any = None if line.block else ast.parse(line.text, mode="eval").body
        if not isinstance(tree, ast.Call) or ast.unparse(tree.func) != "layer" or len(tree.args) != 7:
            continue
        kind, given, bias, both = (tree.args[2], tree.args[3], *(ast.literal_eval(a) for a in tree.args[4:6]))
        names = tuple(stored.get(ast.unparse(w), "") for w in getattr(given, "elts", ()))
        first = _FIRST.fullmatch(names[0]) if names else None
        if first is None or names != _leaves(first[1], int(first[2]), bias, both):
            continue
        path, at = first[1], int(first[2])
        both_of = f"[*@.all_weights[{2 * at}], *@.all_weights[{2 * at + 1}]]"
        tree.args[3] = ast.Name(both_of if both else f"@.all_weights[{at}]")
        settings.setdefault(path, set()).add((_RECURRENT[ast.unparse(kind)], bias, both))
        used.setdefault(path, {})[at] = names
        calls.setdefault(path, {})[line.text] = ast.unparse(tree)
    found = {}
    for path, layers in used.items():
        (name, bias, both), count = next(iter(settings[path])), len(layers)
        if len(settings[path]) > 1 or sorted(layers) != list(range(count)):
            continue
        inputs, hidden = ([shapes[layers[at][k]][1] for at in range(count)] for k in (0, 1))
        into, units = inputs[0], hidden[0]
        if set(hidden) != {units} or set(inputs[1:]) - {units * (2 if both else 1)}:
            continue
        more = [f", num_layers={count}"] * (count > 1) + [", bias=False"] * (not bias)
        made_by = f"nn.{name}({into}, {units}{''.join(more)}{', bidirectional=True' if both else ''})"
        leaves = tuple(leaf.removeprefix(f"{path}.") for names in layers.values() for leaf in names)
        found[path] = Layer(path, made_by, leaves, calls[path])
    return found


def _leaves(path: str, at: int, bias: bool, both: bool) -> tuple[str, ...]:
    """The tensors of one layer of a recurrent module, in the order of its kernel."""
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if bias else 2]
    ends = ("", "_reverse")[: 2 if both else 1]
    return tuple(f"{path}.{kind}_l{at}{end}" for end in ends for kind in kinds)


def _call(line: Line, stored: Mapping[str, str], shapes: Mapping[str, Sizes]) -> Found | None:
    tree: Any = ast.parse(line.text, mode="eval").body
    if not isinstance(tree, ast.Call) or ast.unparse(tree.func) not in RULES:
        return None
    arguments = tuple(ast.unparse(argument) for argument in tree.args)
    keywords = {str(keyword.arg): ast.unparse(keyword.value) for keyword in tree.keywords}
    return RULES[ast.unparse(tree.func)](Use(arguments, keywords, stored, shapes, line.rank))


def _same(text: str) -> str:
    return ast.unparse(ast.parse(text, mode="eval").body)


def _used_elsewhere(made: Translated, layer: Layer) -> bool:
    """Whether a line that is no call of the layer reads one of its tensors."""
    texts = [s.text for s in made.program.stored.values() if s.name.rpartition(".")[0] == layer.path]

    def read(text: str) -> bool:
        return any(tensor in text for tensor in texts)

    for line in made.block.lines:
        inner = "\n".join(line.block.text()) if line.block else ""
        if (line.text not in layer.calls and read(line.text)) or read(inner):
            return True
    return False
