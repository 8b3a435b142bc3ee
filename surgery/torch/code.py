"""A network as a plain PyTorch class: what a person would have written, as far as the graph shows it."""

from __future__ import annotations

import ast
import inspect
import keyword
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import Tensor, nn

from surgery.checkpoint import Checkpoint
from surgery.errors import ArgumentError, Refused, shape_text
from surgery.torch.code_layers import Layer, recognised
from surgery.torch.code_sequences import Chain, sequences
from surgery.torch.module import Translated, translated
from surgery.torch.source import Block, Line, identifiers

_LINE = 100
_LARGEST_LITERAL = 4096
_NUMBER = re.compile(r"(?<![\w.])\d+\.\d+(?:e[+-]?\d+)?(?![\w.])")
_HELPERS = "surgery.torch.operators."


def code(checkpoint: Checkpoint | ir.Model, *, name: str = "Network") -> str:
    """The network as the source of a PyTorch class that needs nothing but PyTorch.

    Layers that the graph uses as PyTorch's modules do are such modules, under the names that their tensors have; other
    tensors are parameters and buffers. The state dict of `to_module` fits into an instance, and it computes the same.

    Args:
      checkpoint: a checkpoint or graph.
      name: of the class.

    Raises:
      ArgumentError: the name is no class name.
      Refused: a constant of the graph is too large to be written out.
      Unsupported: see `to_module`.
    """
    if not name.isidentifier() or not name.isascii() or keyword.iskeyword(name):
        raise ArgumentError(f"'{name}' is not the name of a class", hint="letters, digits and _, as in Agent")
    made = translated(checkpoint)
    layers = recognised(made)
    writer = _Writer(made, layers, sequences(made, layers))
    body = [*writer.constructor(), "", *writer.forward()]
    helpers, imports = _helpers(made, body)
    head = ['"""A network, written by `surgery code`."""', "", "import math", *imports, "", "import torch"]
    head += ["from torch import Tensor, nn", "from torch.nn import functional as F", "", ""]
    lines = [*head, *helpers, f"class {name}(nn.Module):"]
    lines += ["    " + line if line else "" for line in body]
    return _used("\n".join(lines) + "\n")


def _used(source: str) -> str:
    """Without imports that nothing needs."""
    for line, word in (
        ("import math\n", "math."),
        ("from torch.nn import functional as F\n", "F."),
        ("import torch\n", "torch."),
    ):
        if not re.search(rf"(?<![\w.]){re.escape(word)}", source.replace(line, "")):
            source = source.replace(line, "", 1)
    if not re.search(r"\bTensor\b", source.replace("import Tensor", "")):
        source = source.replace("from torch import Tensor, nn", "from torch import nn")
    return re.sub(r'^("""[^\n]*""")\n+', r"\1\n\n", source)


@dataclass
class _Writer:
    """Writes the two methods of the class."""

    made: Translated
    layers: Mapping[str, Layer]
    sequences: Mapping[str, Chain]

    def constructor(self) -> list[str]:
        """`__init__`: layers, parameters and buffers, in the order of the graph's tensors."""
        lines = ["def __init__(self) -> None:", "    super().__init__()"]
        lines += [f"    {line}" for line in self._tree(self.made.root, "self", "")]
        return lines

    def _tree(self, module: nn.Module, text: str, path: str) -> Iterator[str]:
        for name, tensor in module._parameters.items():
            if tensor is not None:
                yield _assigned(text, name, f"nn.Parameter({_empty(tensor)})", "register_parameter")
        for name, buffer in module._buffers.items():
            if buffer is None:
                continue
            kept = name not in module._non_persistent_buffers_set
            value = _empty(buffer) if kept else _written(buffer)
            yield f"{text}.register_buffer({name!r}, {value}{'' if kept else ', persistent=False'})"
        for name, child in module._modules.items():
            inner = f"{path}.{name}".lstrip(".")
            layer, group = self.layers.get(inner), self._group(module)
            if inner in self.sequences:
                members = [f"    {_shortened(made)}," for made in self.sequences[inner].modules]
                lines = ["nn.Sequential(", *members, ")"]
                yield from _assigned(text, name, "\n".join(lines), "add_module", group).split("\n")
            elif layer is not None:
                yield _assigned(text, name, layer.constructor, "add_module", group)
            elif child is not None:
                yield _assigned(text, name, f"nn.{self._group(child)}()", "add_module", group)
                yield from self._tree(child, _attribute(text, name, group), inner)

    def _group(self, module: nn.Module) -> str:
        """What a group of modules is written as: a list or a dictionary if its members have numbers for names."""
        names = list(module._modules)
        plain = module is not self.made.root and not (module._parameters or module._buffers)
        if not (plain and names and all(name.isdigit() for name in names)):
            return "Module"
        return "ModuleList" if names == [str(k) for k in range(len(names))] else "ModuleDict"

    def forward(self) -> list[str]:
        """`forward`, its lines joined where one only hands its result to the next."""
        arguments = "".join(f", {name}: Tensor" for name in self.made.inputs)
        several = "," in self.made.block.returned
        inner = {name for one in self.sequences.values() for name in one.lines}
        called = {one.target: (path, one.into) for path, one in self.sequences.items()}
        block = Block([], self.made.block.returned)
        for line in self.made.block.lines:
            if line.target in called:
                path, into = called[line.target]
                block.lines.append(Line(line.target, f"{self._path(path)}({into})"))
            elif line.target not in inner:
                block.lines.append(self._called(line))
        block.prune()
        joined = _joined(block)
        kind = "tuple[Tensor, ...]" if several else "Tensor"
        lines = [f"def forward(self{arguments}) -> {kind}:"]
        made = [_tidy(_shortened(self._renamed(line))) for line in joined.text(free=False)]
        return lines + [part for line in made for part in _wrapped(line)]

    def _called(self, line: Line) -> Line:
        """A line with the layer that it is."""
        for layer in self.layers.values():
            if line.text in layer.calls:
                return Line(
                    line.target, layer.calls[line.text].replace("@", self._path(layer.path)), line.block
                )
        return line

    def _path(self, path: str) -> str:
        module, text = self.made.root, "self"
        for part in path.split("."):
            child = module._modules[part]
            assert child is not None
            text, module = _attribute(text, part, self._group(module)), child  # type: ignore[assignment]
        return text

    def _renamed(self, line: str) -> str:
        """Tensors read as they are registered here: through dictionaries where names are numbers."""
        for stored in self.made.program.stored.values():
            if "getattr(" in stored.text and stored.text in line:
                line = line.replace(stored.text, self._tensor(stored.name, stored.text))
        return line

    def _tensor(self, name: str, text: str) -> str:
        path, _, leaf = name.rpartition(".")
        if not leaf.isidentifier() or "_parameters[" in text or "_buffers[" in text or "_modules[" in text:
            return text
        return f"{self._path(path)}.{leaf}" if path else text


def _shortened(line: str) -> str:
    """Numbers as they were before they were stored as float32."""

    def shorter(found: re.Match[str]) -> str:
        text = str(np.float32(found[0]))
        return (
            text
            if np.float32(float(text)) == np.float32(found[0]) and len(text) < len(found[0])
            else found[0]
        )

    return _NUMBER.sub(shorter, line)


def _attribute(owner: str, name: str, group: str) -> str:
    if group != "Module":
        return f"{owner}[{name}]" if group == "ModuleList" else f'{owner}["{name}"]'
    return f"{owner}.{name}" if name.isidentifier() else f"getattr({owner}, {name!r})"


def _assigned(owner: str, name: str, value: str, register: str, group: str = "Module") -> str:
    if group == "ModuleList":
        return f"{owner}.append({value})"
    if group == "ModuleDict" or name.isidentifier():
        return f"{_attribute(owner, name, group)} = {value}"
    return f"{owner}.{register}({name!r}, {value})"


def _empty(tensor: Tensor) -> str:
    sizes = ", ".join(map(str, tensor.shape))
    dtype = "" if str(tensor.dtype) == "torch.float32" else f", dtype={tensor.dtype}"
    return f"torch.empty({sizes or '()'}{dtype})"


def _written(tensor: Tensor) -> str:
    """A constant of the graph, in full."""
    if tensor.numel() > _LARGEST_LITERAL:
        raise Refused(
            f"a constant of {tensor.numel():,} numbers is too large to be written out",
            where={"constant": f"{shape_text(tensor.shape)} {tensor.dtype}"},
            hint="use the module itself: surgery.torch.to_module",
        )
    numbers = re.sub(r"\b(?:inf|nan)\b", r"math.\g<0>", str(tensor.tolist()))
    return f"torch.tensor({numbers}, dtype={tensor.dtype})"


def _joined(block: Block) -> Block:
    """A line whose result only the next one reads becomes part of it, while it stays short."""
    lines = list(block.lines)
    counts = {line.target: 0 for line in lines}
    for text in [*(line.text for line in lines), block.returned]:
        for word in identifiers(text):
            if word in counts:
                counts[word] += 1
    for line in lines:
        if line.block:
            for word in line.block.words():
                counts[word] = counts.get(word, 0) + 2
    kept: list[Line] = []
    for line in lines:
        while kept and not line.block and not kept[-1].block and counts[kept[-1].target] == 1:
            last = kept[-1]
            inner = f"({last.text})" if _has_infix(last.text) else last.text
            text = re.sub(rf"(?<![\w.]){last.target}(?!\w)", lambda _, inner=inner: inner, line.text)  # type: ignore[misc]
            if text == line.text or len(text) + len(line.target) > _LINE - 15:
                break
            kept.pop()
            line = Line(line.target, text, line.block)
        kept.append(line)
    if kept and not kept[-1].block and kept[-1].target == block.returned:
        return Block(kept[:-1], kept[-1].text)
    return Block(kept, block.returned)


def _tidy(line: str) -> str:
    """A line without parentheses that it does not need."""
    pad, body = line[: len(line) - len(line.lstrip())], line.strip()
    match = re.fullmatch(r"(\w+ = |return )(.+)", body)
    if match is None:
        return line
    text = ast.unparse(ast.parse(match[2], mode="eval").body)
    text = text[1:-1] if match[1] == "return " and re.fullmatch(r"\([\w, ]+\)", text) else text
    return pad + match[1] + re.sub(r"'([^'\"\\]*)'", r'"\1"', text)


def _has_infix(text: str) -> bool:
    """Whether an expression has to be put in parentheses within another one."""
    tree = ast.parse(text, mode="eval").body
    return isinstance(tree, ast.BinOp | ast.Compare | ast.IfExp | ast.BoolOp | ast.UnaryOp | ast.Tuple)


def _helpers(made: Translated, body: list[str]) -> tuple[list[str], list[str]]:
    """The source of the functions that the class calls and that are not PyTorch's; imports of what is not plain."""
    text, found, imports = "\n".join(body), {}, []
    wanted = [f for name, f in made.program.functions.items() if re.search(rf"(?<![\w.]){name}\(", text)]
    while wanted:
        function = wanted.pop()
        if function.__name__ in found:
            continue
        inner = _needs(function)
        if inner is None:
            imports.append(f"from {function.__module__} import {function.__name__}")
            found[function.__name__] = ""
            continue
        found[function.__name__] = inspect.getsource(function)
        wanted += inner
    sources = [source for _, source in sorted(found.items()) if source]
    lines = [line for source in sources for line in [*source.rstrip().split("\n"), "", ""]]
    text = "\n".join(lines)
    for module in dict.fromkeys(_TYPES.values()):
        used = [name for name, home in _TYPES.items() if home == module and re.search(rf"\b{name}\b", text)]
        imports += [f"from {module} import {', '.join(used)}"] if used else []
    return lines, sorted(imports)


_TYPES = {"Callable": "collections.abc", "Sequence": "collections.abc", "Any": "typing"}


def _needs(function: Callable[..., Any]) -> list[Callable[..., Any]] | None:
    """The functions beside it that a function calls; None if it needs more than those, types and PyTorch."""
    needed: list[Callable[..., Any]] = []
    for name in _names(function):
        if name not in function.__globals__ or name in ("torch", "F", "math", "Tensor", *_TYPES):
            continue
        other = function.__globals__[name]
        if not (inspect.isfunction(other) and other.__module__.startswith(_HELPERS)):
            return None
        needed.append(other)
    return needed


def _names(function: Callable[..., Any]) -> set[str]:
    """The names that a function reads and does not make itself."""
    nodes = list(ast.walk(ast.parse(inspect.getsource(function))))
    own = {node.arg for node in nodes if isinstance(node, ast.arg)}
    own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return {node.id for node in nodes if isinstance(node, ast.Name)} - own


def _wrapped(line: str) -> list[str]:
    """A call that is too long for a line, its arguments beneath it."""
    pad = line[: len(line) - len(line.lstrip())]
    match = re.fullmatch(r"(\w+ = |return )(.+)", line.strip())
    tree = ast.parse(match[2], mode="eval").body if match else None
    if len(line) <= _LINE or match is None or not isinstance(tree, ast.Call):
        return [line]
    parts = [ast.unparse(part) for part in (*tree.args, *tree.keywords)]
    head = f"{pad}{match[1]}{ast.unparse(tree.func)}("
    inner = f"{pad}    {', '.join(parts)}"
    middle = [inner] if len(inner) <= _LINE else [f"{pad}    {part}," for part in parts]
    return [head, *middle, f"{pad})"]
