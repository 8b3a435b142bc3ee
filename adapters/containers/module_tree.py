"""Whole modules in a file (`torch.save(model)`), read as data: class names, parameters, submodules and attributes.

Nothing is imported or called. A module is an object of the pickle whose state has `_parameters` and `_modules`
(torch/nn/modules/module.py); what it computes is known for PyTorch's own layers only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import onnx_ir as ir

from surgery.errors import CorruptFile, Refused, shape_text
from surgery.tensors import shape_of
from surgery_adapters.containers.data_pickle import Builder
from surgery_adapters.containers.pickle_tree import Made, Tree, parse
from surgery_adapters.containers.torch_archive import TorchArchive, symbols

Tensors = Mapping[str, ir.TensorProtocol]

_LAYERS = "torch.nn.modules."
_DEPTH = 100
_TENSORS = (
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
)
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")


@dataclass(frozen=True, eq=False)
class ModuleNode:
    """A module as a file has it.

    Attributes:
      made: its place in the tree of the pickle.
      children: submodules by name; one that stands in several places is the same here, too.
    """

    made: Made
    children: Mapping[str, ModuleNode]

    @property
    def kind(self) -> str:
        """`Linear` for PyTorch's own layers, the full name of any other class."""
        full = self.made.called
        return full.rpartition(".")[2] if full.startswith(_LAYERS) else full

    @property
    def attributes(self) -> dict[str, Any]:
        """What the module remembers by name."""
        return cast("dict[str, Any]", self.made.state)

    def at(self, path: str) -> ModuleNode | None:
        """A submodule by its path."""
        found: ModuleNode | None = self
        for name in path.split(".") if path else ():
            found = None if found is None else found.children.get(name)
        return found

    def walk(self, prefix: str = "") -> Iterator[tuple[str, ModuleNode]]:
        """The module and all beneath it, each place once, with the prefix of its parameters' names."""
        yield prefix, self
        for name, child in self.children.items():
            yield from child.walk(f"{prefix}{name}.")


class ModuleState(dict[str, ir.TensorProtocol]):
    """The state dict of a whole module, and the module itself."""

    def __init__(self, tensors: Mapping[str, ir.TensorProtocol], module: ModuleNode) -> None:
        super().__init__(tensors)
        self.module = module


def is_module(value: object) -> bool:
    """Whether an object of a pickle is a module."""
    return (
        isinstance(value, Made)
        and isinstance(value.state, dict)
        and {"_parameters", "_buffers", "_modules"} <= set(value.state)
    )


def modules_in(tree: Tree) -> list[ModuleNode]:
    """The modules of a file: what it holds, or what the dict that it holds does."""
    held = [tree.root, *(items(tree.root).values() if _is_dict(tree.root) else ())]
    return [_node(value, 0) for value in held if is_module(value)]


def read(archive: TorchArchive) -> object:
    """The object that was saved, with a `ModuleState` in the place of each module.

    Raises:
      CorruptFile: damaged or hostile, or it calls what makes no data; nothing was executed.
    """
    return Reader(archive).value(parse(archive.pickle()).root)


def _node(made: Any, depth: int) -> ModuleNode:  # noqa: ANN401
    if depth > _DEPTH:
        raise CorruptFile("modules are nested more deeply than any network needs")
    children = items(made.state["_modules"])
    return ModuleNode(
        made, {str(name): _node(child, depth + 1) for name, child in children.items() if is_module(child)}
    )


def _is_dict(value: object) -> bool:
    return isinstance(value, dict) or (isinstance(value, Made) and value.is_a("collections.OrderedDict"))


def items(value: object) -> dict[Any, Any]:
    """The items of a dict of the pickle, ordered or not."""
    if isinstance(value, dict):
        return value
    if isinstance(value, Made) and value.is_a("collections.OrderedDict"):
        return value.keyed
    raise CorruptFile("a module's parameters are no dict")


class Reader(Builder):
    """Makes data of a file's tree; a module becomes a `ModuleState`."""

    def __init__(self, archive: TorchArchive) -> None:
        super().__init__(symbols(archive), archive.storage)

    def _called(self, node: Made, depth: int) -> object:
        if not is_module(node):
            return super()._called(node, depth)
        module = _node(node, 0)
        return ModuleState(dict(self._tensors(module)), module)

    def scripted(
        self, node: Made, prefix: str = "", depth: int = 0
    ) -> Iterator[tuple[str, ir.TensorProtocol]]:
        """The tensors of a TorchScript module, whose state is its attributes."""
        if depth > _DEPTH:
            raise CorruptFile("modules are nested more deeply than any network needs")
        for name, value in items(node.state).items():
            if isinstance(value, Made) and value.is_a(*_TENSORS):
                yield f"{prefix}{name}", self._tensor(value, f"{prefix}{name}")
            elif isinstance(value, Made) and isinstance(value.state, dict):
                yield from self.scripted(value, f"{prefix}{name}.", depth + 1)

    def _tensors(self, module: ModuleNode) -> Iterator[tuple[str, ir.TensorProtocol]]:
        """The state dict: parameters and buffers of every module, before those of its submodules."""
        for prefix, node in module.walk():
            passing = _names(node.attributes.get("_non_persistent_buffers_set"))
            for kind in ("_parameters", "_buffers"):
                for name, tensor in items(node.attributes[kind]).items():
                    if tensor is not None and name not in passing:
                        yield f"{prefix}{name}", self._tensor(tensor, f"{prefix}{name}")

    def _tensor(self, node: object, name: str) -> ir.TensorProtocol:
        if not isinstance(node, Made) or not node.is_a(*_TENSORS, *_PARAMETERS):
            raise CorruptFile(f"'{name}' is a tensor of a class of its own", hint="save its state_dict()")
        found = self.value(node)
        if not isinstance(found, ir.TensorProtocol):
            raise CorruptFile(f"'{name}' is no tensor")
        return found


def _names(value: object) -> set[object]:
    found = value.arguments[0] if isinstance(value, Made) and value.arguments else value
    return set(found) if isinstance(found, list | set) and all(isinstance(x, str) for x in found) else set()


_SIZES: Mapping[str, Mapping[str, tuple[str, int]]] = {
    **{
        kind: {"out_features": ("weight", 0), "in_features": ("weight", 1)}
        for kind in ("Linear", "NonDynamicallyQuantizableLinear")
    },
    "Bilinear": {
        "out_features": ("weight", 0), "in1_features": ("weight", 1), "in2_features": ("weight", 2)},
    **{f"Conv{n}d": {"out_channels": ("weight", 0)} for n in (1, 2, 3)},
    **{f"ConvTranspose{n}d": {"in_channels": ("weight", 0)} for n in (1, 2, 3)},
    **{f"BatchNorm{n}d": {"num_features": ("running_mean", 0)} for n in (1, 2, 3)},
    "GroupNorm": {"num_channels": ("weight", 0)},
    "Embedding": {"num_embeddings": ("weight", 0), "embedding_dim": ("weight", 1)},
    **{kind: {"input_size": ("weight_ih_l0", 1), "hidden_size": ("weight_hh_l0", 1)}
       for kind in ("LSTM", "GRU", "RNN")},
    **{kind: {"input_size": ("weight_ih", 1), "hidden_size": ("weight_hh", 1)}
       for kind in ("LSTMCell", "GRUCell", "RNNCell")},
}  # fmt: skip
"""Class of a layer -> attribute that holds a size -> parameter and axis that it is the size of."""


def weights_in(module: ModuleNode) -> Iterator[tuple[ModuleNode, Made]]:
    """The layers with tensors in a module, and the place in the tree where the first one of each is made."""
    for _, node in module.walk():
        held = [tensor for tensor in _held(node).values() if isinstance(tensor, Made)]
        if held:
            yield node, _rebuilt(held[0])


_UNTOLD = {"GroupNorm": "how many groups it has", "MultiheadAttention": "how many heads it has"}
"""Layers with a setting that follows their widths, and that no parameter of theirs tells."""


def check_sizes(module: ModuleNode, prefix: str, old: Tensors, now: Tensors) -> None:
    """Refuse what a layer of PyTorch's could not compute with the settings that `resize` gives it.

    Args:
      prefix: of the module's parameters. old, now: what parameters are and become; names that are missing stay.

    Raises:
      Refused: attention or normalised groups of other widths, a kernel that grows on one side only.
    """
    for path, node in module.walk(prefix):
        names = {name: f"{path}{name}" for name in _held(node)}
        shapes = {
            name: (shape_of(old[full]), shape_of(now[full]))
            for name, full in names.items()
            if full in old and full in now
        }
        if not any(before != after for before, after in shapes.values()):
            continue
        what, hint = (
            f"'{path.rstrip('.')}' is a {node.kind}",
            "write it as a graph, which holds any network: -o OUT.onnx",
        )
        if node.kind in _UNTOLD:
            raise Refused(
                f"{what} of another width, and the file does not say {_UNTOLD[node.kind]} then", hint=hint
            )
        before, after = (shape[2:] for shape in shapes.get("weight", ((), ())))
        if node.kind.startswith("Conv") and any((n - k) % 2 for k, n in zip(before, after, strict=True)):
            raise Refused(
                f"{what}, which pads both sides alike: no kernel of {shape_text(after)} takes the place of one of "
                f"{shape_text(before)}",
                hint=f"grow it by an even number, as from 3 to 5; or {hint}",
            )


def resize(node: ModuleNode, groups: int | None) -> None:
    """Let the sizes that a layer of PyTorch's remembers follow its parameters, in the tree.

    Args:
      groups: of a convolution; None if they have not been counted.
    """
    attributes = node.attributes
    shapes = {name: _shape(tensor) for name, tensor in _held(node).items() if isinstance(tensor, Made)}
    for attribute, (name, axis) in _SIZES.get(node.kind, {}).items():
        if attribute in attributes and axis < len(shapes.get(name, ())):
            attributes[attribute] = shapes[name][axis]
    weight = shapes.get("weight", ())
    if isinstance(attributes.get("groups"), int) and node.kind.startswith("Conv") and len(weight) > 1:
        attributes["groups"] = groups or attributes["groups"]
        inner = "out_channels" if "Transpose" in node.kind else "in_channels"
        attributes[inner] = weight[1] * attributes["groups"]
        _grow_kernel(attributes, weight[2:])
    if "normalized_shape" in attributes and weight:
        attributes["normalized_shape"] = weight


def _grow_kernel(attributes: dict[str, Any], after: tuple[int, ...]) -> None:
    """A larger kernel, and the padding with which every output reads what it read before."""
    before, dilation, padding = (attributes.get(name) for name in ("kernel_size", "dilation", "padding"))
    if not (isinstance(before, tuple) and isinstance(dilation, tuple)) or before == after:
        return
    more = [step * (new - old) // 2 for step, new, old in zip(dilation, after, before, strict=True)]
    attributes["kernel_size"] = after
    padding = (0,) * len(after) if padding == "valid" else padding
    if isinstance(padding, tuple):  # "same" stays
        attributes["padding"] = tuple(n + new for n, new in zip(padding, more, strict=True))
    if sides := attributes.get("_reversed_padding_repeated_twice"):  # what other modes than zeros pad by
        each = [new for new in reversed(more) for _ in range(2)]
        attributes["_reversed_padding_repeated_twice"] = [n + new for n, new in zip(sides, each, strict=True)]


def _held(node: ModuleNode) -> dict[str, Any]:
    return {**items(node.attributes["_parameters"]), **items(node.attributes["_buffers"])}


def _rebuilt(tensor: Made) -> Made:
    """Without the wrapping of a parameter."""
    inner = tensor.arguments[0] if tensor.is_a(*_PARAMETERS) else tensor
    if not isinstance(inner, Made):
        raise CorruptFile("a parameter of a module is no tensor")
    return inner


def _shape(tensor: Made) -> tuple[int, ...]:
    size = _rebuilt(tensor).arguments[2]
    return tuple(size.arguments[0] if isinstance(size, Made) else size)
