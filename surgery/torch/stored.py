"""The tensors of a graph as parameters and buffers of nested modules, under the names that the graph gives them."""

from __future__ import annotations

import keyword
from collections.abc import Collection, Iterator, Mapping

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from surgery.errors import GraphError
from surgery.graph.modules import KIND

_STATISTICS = (3, 4)
_CONTRACTIONS = frozenset(["Gemm", "MatMul", "Einsum", "Conv", "ConvTranspose"])
_LAYERS = _CONTRACTIONS | {
    *("PRelu", "BatchNormalization", "InstanceNormalization", "GroupNormalization"),
    *("LayerNormalization", "RMSNormalization", "RNN", "GRU", "LSTM"),
}
_DTYPES: Mapping[ir.DataType, torch.dtype] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT64: torch.uint64,
    ir.DataType.BOOL: torch.bool,
}


def torch_dtype(kind: ir.DataType) -> torch.dtype:
    """The PyTorch type of an ONNX one.

    Raises:
      GraphError: PyTorch has none (4-bit and 8-bit floats are quantised).
    """
    if kind not in _DTYPES:
        raise GraphError(f"tensors of type {kind.name} cannot be trained", hint="dequantise the model first")
    return _DTYPES[kind]


def to_torch(array: np.ndarray) -> Tensor:
    """A copy of an array as a tensor."""
    array = np.array(array, order="C")  # a copy: what is loaded may be read-only, or a file
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    if array.dtype.kind not in "fiub":
        raise GraphError(
            f"tensors of type {array.dtype} cannot be trained", hint="dequantise the model first"
        )
    return torch.from_numpy(array)


def laid_out(new: Tensor, like: Tensor) -> Tensor:
    """In the memory format of another tensor.

    A parameter and its moments must have the same one: PyTorch's fused optimizers go through memory in order, and where
    the formats differ take the moments of other entries (2.13, on a CPU without a word).
    """
    if like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous():
        return new.contiguous(memory_format=torch.channels_last)
    return new


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A tensor as an array, which shares its memory where it can."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return np.asarray(tensor.numpy())


def initializers(model: ir.Model) -> Iterator[ir.Value]:
    """Those of the graph and of the graphs inside it; the standard gives no name twice."""
    for graph in model.graphs():
        yield from graph.initializers.values()


def trainable(model: ir.Model, trained: Collection[str] = (), buffers: Collection[str] = ()) -> set[str]:
    """The initializers that are parameters.

    An exporter's own word counts, and what an optimizer holds is a parameter in any case. Where neither says
    anything, every floating tensor with an axis is one, except the running statistics of batch norms, single numbers
    that no layer has as its weight, and `buffers`.
    """
    names = set(trained)
    for value in initializers(model):
        kind = value.metadata_props.get(KIND)
        if kind == "PARAMETER" or (kind is None and not trained and _learned(value)):
            names.add(str(value.name))
    return names - set(buffers)


def _learned(value: ir.Value) -> bool:
    """Whether a tensor of which nobody says what it is looks like one that is trained."""
    tensor = value.const_value
    if tensor is None or not tensor.dtype.is_floating_point() or not len(tensor.shape):
        return False
    return not _statistics(value) and (tensor.size > 1 or _weight(value))


def _statistics(value: ir.Value) -> bool:
    """Whether it is nothing but the mean or variance of batch norms."""
    uses = list(value.uses())
    return bool(uses) and all(
        use.node.op_type == "BatchNormalization" and use.idx in _STATISTICS for use in uses
    )


def _weight(value: ir.Value) -> bool:
    """Whether a single number is an operand that layers are trained by: of a layer, or added to its result."""
    for use in value.uses():
        others = [x for x in use.node.inputs if x is not None and x is not value]
        if use.node.op_type in _LAYERS and use.idx > 0:
            return True
        makers = [maker.op_type for maker in (x.producer() for x in others) if maker is not None]
        if use.node.op_type == "Add" and any(maker in _CONTRACTIONS for maker in makers):
            return True
    return False


class Group(nn.Module):
    """A node of the tree of parameter names: `a.b.weight` lies in the group `b` of the group `a`."""


def place(root: nn.Module, name: str, tensor: Tensor, *, parameter: bool, persistent: bool = True) -> None:
    """Register a tensor under a dotted name, whatever it is.

    Names that are no attributes (of methods, of other groups, or empty) go into the modules' own tables as well.

    Raises:
      GraphError: the name is that of a module's mode.
    """
    *path, leaf = name.split(".")
    if leaf == "training":
        raise GraphError(f"a tensor cannot be called '{name}': every module has a mode of that name")
    owner = root
    for part in path:
        child = owner._modules.get(part)
        if child is None:
            child = owner._modules[part] = Group()
        owner = child
    if parameter:
        owner._parameters[leaf] = nn.Parameter(tensor)
        return
    owner._buffers[leaf] = tensor
    if not persistent:
        owner._non_persistent_buffers_set.add(leaf)


def reading(root: nn.Module, name: str) -> str:
    """The expression that reads a tensor from `self`, once all are registered."""
    *path, leaf = name.split(".")
    owner, text = root, "self"
    for part in path:
        text = _read(text, part) if _is_attribute(owner, part) else f"{text}._modules[{part!r}]"
        child = owner._modules[part]
        assert child is not None
        owner = child
    if _is_attribute(owner, leaf):
        return _read(text, leaf)
    table = "_parameters" if leaf in owner._parameters else "_buffers"
    return f"{text}.{table}[{leaf!r}]"


def _is_attribute(owner: nn.Module, name: str) -> bool:
    """Whether `owner.name` is what is registered under that name."""
    tables = [table for table in (owner._modules, owner._parameters, owner._buffers) if name in table]
    return len(tables) == 1 and name != "" and not hasattr(type(owner), name) and name not in vars(owner)


def _read(owner: str, name: str) -> str:
    readable = name.isidentifier() and name.isascii() and not name.startswith("__")
    if readable and not keyword.iskeyword(name):
        return f"{owner}.{name}"
    return f"getattr({owner}, {name!r})"
