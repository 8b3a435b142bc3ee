"""`.onnx` files in and out; on the way in, damaged and hostile files are errors and never surprises."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import onnx_ir as ir
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from surgery.errors import CorruptFile, FileError, GraphError, SurgeryError
from surgery.files import read_error
from surgery.formats import sniff, unknown
from surgery.tensors import MappedFile, shape_of

MAX_IR_VERSION = 13
MAX_OPSET = 26
MAX_INLINE = 1_800_000_000
"""Bytes of weights that are kept inside a file; protobuf ends at 2 GiB."""

_ALIAS = "ai.onnx"
"""Another name of the domain "" of ONNX's own operators."""

_TYPED_FIELDS: Mapping[int, str] = {
    TensorProto.FLOAT: "float_data",
    TensorProto.COMPLEX64: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.COMPLEX128: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT64: "uint64_data",
    TensorProto.UINT32: "uint64_data",
    TensorProto.STRING: "string_data",
}


def read_model(path: Path) -> ir.Model:
    """Read a model; weights beside it stay in their files.

    Raises:
      FileError: missing, a folder, empty or not readable; weights beside it are missing.
      UnknownFormat: not an ONNX model; says what it is instead.
      CorruptFile: truncated or damaged, or its weights lie outside its folder.
      GraphError: ONNX, but not valid, or newer than what is supported.
    """
    kind = sniff(path)
    if kind.name != "onnx":
        raise unknown(path, kind)
    proto = _parse(path)
    for opset in (*proto.opset_import, *(opset for own in proto.functions for opset in own.opset_import)):
        opset.domain = opset.domain if opset.domain != _ALIAS else ""
    try:
        _check_model(proto)
        model = ir.from_proto(proto)
        _map_external(model, path.parent)
    except SurgeryError as error:
        raise error.within(file=path) from error
    except Exception as error:  # onnx-ir raises what it meets, of many types, on input that is not valid
        raise GraphError(f"the graph cannot be read: {_root(error)}", where={"file": path}) from error
    return model


def write_model(model: ir.Model, file: BinaryIO) -> None:
    """Write a model; the order of its parts makes every truncated copy of the file unreadable.

    Protobuf takes the fields of a message in any order. Metadata and functions come first, the graph next,
    and the operator set versions, without which no model is valid, last.
    """
    proto = ir.to_proto(model)
    tail, head = ModelProto(), ModelProto()
    tail.opset_import.extend(sorted(proto.opset_import, key=lambda opset: not opset.domain))
    for field, value in proto.ListFields():
        if field.name in ("graph", "opset_import"):
            continue
        if field.is_repeated:
            getattr(head, field.name).extend(value)
        else:
            setattr(head, field.name, value)
    for name in {field.name for field, _ in proto.ListFields()} - {"graph"}:
        proto.ClearField(name)
    for part in (head, proto, tail):
        file.write(part.SerializeToString(deterministic=True))


def all_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every tensor of a model: initializers and attributes, in the graph, its subgraphs and the functions."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
    for node in all_nodes(model):
        for attribute in node.attributes.values():
            yield from attribute_tensors(attribute)


def replace_tensors(model: ir.Model, change: Callable[[ir.TensorProtocol], ir.TensorProtocol]) -> None:
    """Put `change(tensor)` in the place of every tensor of a model, in place."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = change(value.const_value)
    for node in all_nodes(model):
        for name, attribute in list(node.attributes.items()):
            old = list(attribute_tensors(attribute))
            new = [change(tensor) for tensor in old]
            if any(a is not b for a, b in zip(old, new, strict=True)):
                content = new[0] if attribute.type == ir.AttributeType.TENSOR else new
                node.attributes[name] = ir.Attr(
                    name, attribute.type, content, doc_string=attribute.doc_string
                )


def with_initializers(model: ir.Model, tensors: Mapping[str, ir.TensorProtocol | None]) -> ir.Model:
    """A view of a model in which the main graph's initializers hold other tensors: to be serialised, not changed.

    Args:
      tensors: by name; None makes an input of the same shape and type of an initializer.
    """
    graph, initializers = model.graph, list[ir.Value]()
    inputs = {str(value.name): value for value in graph.inputs}
    for name, tensor in tensors.items():
        old = graph.initializers[name]
        if tensor is not None:
            initializers.append(ir.Value(name=name, shape=old.shape, type=old.type, const_value=tensor))
        elif old.const_value is not None:
            shape, kind = ir.Shape(shape_of(old.const_value)), ir.TensorType(old.const_value.dtype)
            inputs[name] = ir.Value(name=name, shape=shape, type=kind)
    view = ir.GraphView(
        tuple(inputs.values()), graph.outputs, nodes=graph, initializers=initializers,
        opset_imports=graph.opset_imports, name=graph.name,
    )  # fmt: skip
    return ir.Model(view, ir_version=model.ir_version, functions=tuple(model.functions.values()))  # type: ignore[arg-type]


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node of a model, subgraphs and functions included."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def attribute_tensors(attribute: ir.Attr) -> Iterator[ir.TensorProtocol]:
    """The tensors that an attribute holds itself, without those of its subgraphs."""
    if attribute.is_ref() or attribute.value is None:
        return
    if attribute.type == ir.AttributeType.TENSOR:
        yield attribute.as_tensor()
    elif attribute.type == ir.AttributeType.TENSORS:
        yield from attribute.as_tensors()


def _parse(path: Path) -> ModelProto:
    try:
        if path.stat().st_size >= 1 << 31:
            raise CorruptFile(f"{path} is larger than 2 GiB, which no ONNX file can be")
        content = path.read_bytes()
    except OSError as error:
        raise read_error(error, path) from error
    damaged = CorruptFile(
        f"{path} is not a whole ONNX model: it is cut short, damaged, or not ONNX at all",
        hint="copy or download it again, and compare the sizes",
    )
    try:
        proto: ModelProto = ModelProto.FromString(content)
    except DecodeError as error:
        raise damaged from error
    if (
        not proto.HasField("graph")
        or not proto.ir_version
        or not (proto.opset_import or proto.ir_version < 3)
    ):
        raise damaged
    return proto


def _check_texts(proto: Message) -> None:
    """Protobuf reads a name that is no text, as bytes, and does not write it again."""
    for field, value in _fields(proto):
        several = value if field.is_repeated else [value]
        if field.type == field.TYPE_MESSAGE:
            for one in several:
                _check_texts(one)
        elif field.type == field.TYPE_STRING and not all(isinstance(one, str) for one in several):
            raise CorruptFile(f"the {field.name} of a {proto.DESCRIPTOR.name} is not text: {value!r:.40}")


def _fields(proto: Message) -> list[tuple[Any, Any]]:
    """The fields that are set; of tensors the data are left where they are."""
    if not isinstance(proto, TensorProto):
        return list(proto.ListFields())
    names = ("name", "doc_string", "external_data")
    return [(proto.DESCRIPTOR.fields_by_name[name], getattr(proto, name)) for name in names]


def _check_model(proto: ModelProto) -> None:
    _check_texts(proto)
    if proto.ir_version > MAX_IR_VERSION:
        raise GraphError(
            f"the file has ONNX IR version {proto.ir_version}, supported is up to {MAX_IR_VERSION}",
            hint="export again with an older opset_version, such as 20",
        )
    opsets = {opset.domain: opset.version for opset in proto.opset_import}
    if opsets.get("", 0) > MAX_OPSET:
        raise GraphError(
            f"the model uses ONNX opset {opsets['']}, supported is up to {MAX_OPSET}",
            hint="export again with opset_version=20, or use onnx.version_converter",
        )
    if proto.training_info:
        raise GraphError("the model has training graphs (training_info), which cannot be kept")
    functions = {(function.domain, function.name) for function in proto.functions}
    known = {*opsets, _ALIAS} if "" in opsets else set(opsets)
    for domain in sorted({node.domain for node in _proto_nodes(proto.graph)} - known):
        raise CorruptFile(f"nodes of the domain '{domain}' have no opset version: the file is damaged")
    if len(functions) != len(proto.functions) and proto.ir_version < 10:
        raise GraphError("two functions have the same name")
    _check_graph(proto.graph, frozenset())
    for function in proto.functions:
        _check_nodes(function.node, set(function.input), f"function '{function.name}'")


def _proto_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for subgraph in _subgraphs(attribute):
                yield from _proto_nodes(subgraph)


def _subgraphs(attribute: AttributeProto) -> list[GraphProto]:
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _check_graph(graph: GraphProto, outer: frozenset[str]) -> None:
    where = f"graph '{graph.name}'"
    if graph.sparse_initializer:
        raise GraphError(f"{where} has sparse initializers, which are not supported", hint="store them dense")
    names = [tensor.name for tensor in graph.initializer]
    _check_unique(names, "initializers", where)
    _check_unique([value.name for value in graph.input], "inputs", where)
    for tensor in graph.initializer:
        if not tensor.name:
            raise GraphError(f"an initializer of {where} has no name")
        _check_tensor(tensor)
    defined = set(outer) | set(names) | {value.name for value in graph.input}
    _check_nodes(graph.node, defined, where)
    for value in graph.output:
        if value.name not in defined:
            raise GraphError(f"the output '{value.name}' of {where} is computed by no node")


def _check_nodes(nodes: Iterable[NodeProto], defined: set[str], where: str) -> None:
    for node in nodes:
        label = f"node '{node.name}' ({node.op_type}) of {where}"
        for name in node.input:
            if name and name not in defined:
                raise GraphError(f"{label} uses '{name}', which nothing before it computes")
        for attribute in node.attribute:
            for tensor in [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]:
                _check_tensor(tensor)
            for subgraph in _subgraphs(attribute):
                _check_graph(subgraph, frozenset(defined))
        for name in filter(None, node.output):
            if name in defined:
                raise GraphError(
                    f"{label} computes '{name}', which exists already",
                    hint="PyTorch's exporter does this where an output is given the name of a parameter or of an inner "
                    "value: export with another one (surgery annotate MODEL --output NAME:KIND says what it is)",
                )
            defined.add(name)


def _check_unique(names: list[str], what: str, where: str) -> None:
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise GraphError(f"two {what} of {where} have the same name: {', '.join(twice[:5])}")


def _check_tensor(tensor: TensorProto) -> None:
    """Check that a tensor has as many bytes or elements as its shape says."""
    label = f"the tensor '{tensor.name}'"
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError as error:
        raise GraphError(f"{label} has the unknown element type {tensor.data_type}") from error
    if dtype == ir.DataType.UNDEFINED or any(size < 0 for size in tensor.dims):
        raise CorruptFile(f"{label} has no valid shape or element type: {list(tensor.dims)} {dtype.name}")
    if tensor.data_location == TensorProto.EXTERNAL:
        if dtype == ir.DataType.STRING:
            raise GraphError(f"{label} holds strings outside the file, which ONNX does not allow")
        for entry in tensor.external_data:
            if entry.key in ("offset", "length") and not entry.value.isdecimal():
                raise CorruptFile(f"{label} has its data at the {entry.key} '{entry.value}'")
        return
    size = math.prod(tensor.dims)
    if tensor.HasField("raw_data"):
        wanted, had = math.ceil(size * dtype.itemsize), len(tensor.raw_data)
    else:
        wanted, had = _typed_length(dtype, size), len(getattr(tensor, _TYPED_FIELDS.get(dtype, "int32_data")))
    if wanted != had:
        raise CorruptFile(
            f"{label} has {had} bytes or elements of data, its shape {list(tensor.dims)} needs {wanted}"
        )


def _typed_length(dtype: ir.DataType, size: int) -> int:
    if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        return 2 * size
    if dtype == ir.DataType.STRING or dtype.bitwidth >= 8:
        return size
    return math.ceil(size * dtype.itemsize)


def _root(error: BaseException) -> BaseException:
    return error if error.__cause__ is None else _root(error.__cause__)


def _map_external(model: ir.Model, folder: Path) -> None:
    """Make tensors outside the file regions of mapped files, each file mapped once."""
    files: dict[str, MappedFile] = {}

    def mapped(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if not isinstance(tensor, ir.ExternalTensor):
            return tensor
        location = str(tensor.location)
        if location not in files:
            files[location] = MappedFile(_inside(folder, location))
        return _region(tensor, files[location])

    replace_tensors(model, mapped)


def _inside(folder: Path, location: str) -> Path:
    """The file of a location, which must lie in the model's folder."""
    if not location or Path(location).is_absolute() or ".." in Path(location).parts or "\\" in location:
        raise CorruptFile(f"there are weights at '{location}', which is not in the model's own folder")
    data = (folder / location).resolve()
    if not data.is_relative_to(folder.resolve()):
        raise CorruptFile(
            f"there are weights at '{location}', a link that leads out of the model's folder",
            hint="put the file itself beside the model",
        )
    if not data.is_file():
        raise FileError(
            f"the weights '{folder / location}' are missing", hint="the file belongs beside the model"
        )
    return data


def _region(tensor: ir.ExternalTensor, file: MappedFile) -> ir.TensorProtocol:
    if tensor.length not in (None, tensor.nbytes):
        raise CorruptFile(f"'{tensor.name}' has {tensor.length} bytes, its shape needs {tensor.nbytes}")
    region = file.tensor(tensor.name, tensor.dtype, shape_of(tensor), tensor.offset or 0)
    region.doc_string = tensor.doc_string
    region.metadata_props.update(tensor.metadata_props)
    return region
