"""The modules of the source model that tensors and nodes belong to, as far as their names tell."""

from __future__ import annotations

import ast
import re

import onnx_ir as ir

from surgery.graph.trace import Trace

KIND = "pkg.torch.export.graph_signature.InputSpec.kind"
"""Where PyTorch's exporter says what an initializer is, PARAMETER or BUFFER; a trained scalar looks like neither."""

_RENAMED = re.compile(r"onnx::\w+$|val_\d+$|t(_\d+)?$|_?(const|initializer|unsqueeze|transpose)\w*$")
"""Names that exporters make up for tensors which they have transposed or merged."""

_TENSORFLOW = re.compile(r"[^/]+/.+:\d+")
_OPERATOR = re.compile(
    r"[A-Z]\w*|resource|convolution|conv_transpose|separable_conv2d|batchnorm|split(_\d+)?|merged_input"
)
"""Parts of a variable's path in TensorFlow that are operators, not layers."""


def modules(model: ir.Model, trace: Trace) -> dict[str, str]:
    """The module path of every tensor: from its name, or, where an exporter has renamed it, from its first reader."""
    readers: dict[str, ir.Node] = {}
    for node in model.graph:
        for value in node.inputs:
            if value is not None and value.name in trace.tensors:
                readers.setdefault(value.name, node)
    return {
        tensor: (scope(readers[tensor]) if tensor in readers and _RENAMED.match(tensor) else "")
        or module(tensor)
        for tensor in trace.tensors
    }


def scope(node: ir.Node) -> str:
    """Where a node stands in the source model, as far as the exporter says."""
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    if scopes:
        try:
            paths = [str(path) for path in ast.literal_eval(scopes)]
        except (SyntaxError, ValueError):
            return ""
        return paths[-2] if len(paths) > 1 else ""
    path, slash, _ = (node.name or "").strip("/").rpartition("/")
    return path.replace("/", ".") if slash else ""


def module(tensor: str) -> str:
    """The module path of a parameter: its name without the last part (TensorFlow: without the operators)."""
    if _TENSORFLOW.fullmatch(tensor):
        parts = tensor.rpartition(":")[0].split("/")
        while len(parts) > 2 and _OPERATOR.fullmatch(parts[-1]):
            parts.pop()
        return ".".join(parts)
    path, dot, last = tensor.rpartition(".")
    return path if dot and path and not last.isdigit() else tensor
