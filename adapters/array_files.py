"""Files that hold arrays by name and no network, read together with the graph that an exporter wrote of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from surgery.adapters import Reading
from surgery.checkpoint import Checkpoint
from surgery.errors import ArgumentError, Refused
from surgery.interface import Interface, Port
from surgery.json_values import Json
from surgery.optimizer_record import slots_of
from surgery.storage import load as load_graph
from surgery.tensors import equal, shape_of
from surgery_adapters.binding.bind import Norm, group_of, native
from surgery_adapters.containers.optax_state import Bound
from surgery_adapters.networks.side_by_side import beside
from surgery_adapters.writeback.matching import checked, followed, matched, resized

Tensors = Mapping[str, ir.TensorProtocol]


def with_graph(
    path: Path,
    reading: Reading,
    groups: Mapping[str, Tensors],
    norms: Sequence[Norm] = (),
    originals: Mapping[str, str] | None = None,
) -> Checkpoint:
    """The graph that was named, with the arrays of a file as its parameters, and once more for every copy.

    A graph that came from such a file has the names of its arrays; any other is bound by values.

    Args:
      path: of the file. reading: names the graph.
      groups: prefix of a network's names -> its arrays by their full names; the first is not a copy.
      norms: batch normalisations that the exporter may have folded.
      originals: prefix of a copy -> that of its original; of all others it is the first of `groups`.

    Raises:
      ArgumentError: no graph is named. Refused: it is not one of these arrays.
    """
    if reading.graph is None:
        raise ArgumentError(
            "the file holds arrays, and not what is computed with them",
            hint=f"export the network (jax2onnx, tf2onnx), then: surgery convert {path} --graph NET.onnx -o OUT.onnx",
        )
    graph = load_graph(reading.graph, optimizer=False)
    known = {name: tensor for tensors in groups.values() for name, tensor in tensors.items()}
    if graph.source.get("constants") is not None and (named := _by_name(graph, known)):
        return named.replace(source=_source(named, path, reading.graph, known))
    (original, arrays), *others = groups.items()
    found: Checkpoint = native(graph, arrays, norms)
    single, outputs, copies = found.model.clone(), list(found.interface.outputs), {}
    for prefix, tensors in others:
        own = original if originals is None else originals.get(prefix)
        names = {} if own is None else {f"{own}{name.removeprefix(prefix)}": name for name in tensors}
        if own is not None and all(
            ours in arrays and shape_of(arrays[ours]) == shape_of(tensors[name])
            for ours, name in names.items()
        ):
            outputs += _add_copy(found.model, single.clone(), names, tensors, prefix, set(arrays))
            copies[prefix] = own
    return found.replace(
        model=checked(found.model),
        interface=Interface(found.interface.inputs, tuple(outputs)),
        copies=copies,
        source=_source(found, path, reading.graph, known),
    )


def replaced(
    old: Tensors, checkpoint: Checkpoint, bound: Bound | None, like: Path
) -> dict[str, ir.TensorProtocol]:
    """The arrays of a file that are no longer what they were, by their names in it.

    Args:
      old: all arrays of the file. checkpoint: what is to be written.
      bound: the optimizer's state in the file. like: the file.

    Raises:
      ArgumentError: the file has not all parameters.
      Refused: another element type; or the optimizer's state would be left behind.
    """
    new = fitted(old, checkpoint, bound, like)
    found = {name: tensor for name, tensor in new.items() if not equal(old[name], tensor)}
    if found:
        _check_followed(checkpoint, bound)
    return found


def fitted(
    old: Tensors, checkpoint: Checkpoint, bound: Bound | None, like: Path
) -> dict[str, ir.TensorProtocol]:
    """What the arrays of a file become, by their names in it and by shapes alone; arguments as for `replaced`.

    Raises:
      ArgumentError, Refused: see `replaced`.
    """
    new: dict[str, ir.TensorProtocol] = matched(old, checkpoint, like, sorted(_constants(checkpoint)))
    if bound is not None and checkpoint.optimizer is not None:
        slots = slots_of(checkpoint.optimizer, like=bound.state)
        new |= {bound.places[key]: tensor for key, tensor in slots.items()}
    if resized(old, new):
        _check_followed(checkpoint, bound)
        _check_read(old, new)
    for name, tensor in new.items():
        if tensor.dtype != old[name].dtype:
            raise Refused(
                f"'{name}' is {old[name].dtype.name} in the file, and would become {tensor.dtype.name}"
            )
    return new


def _check_followed(checkpoint: Checkpoint, bound: Bound | None) -> None:
    if bound is not None:
        followed(checkpoint.optimizer)


def _check_read(old: Tensors, new: Tensors) -> None:
    """Arrays that the graph does not compute with cannot have followed those of the modules that they stand beside."""
    grown = [
        (group_of(name), before)
        for name, tensor in new.items()
        for before, after in zip(shape_of(old[name]), shape_of(tensor), strict=True)
        if before != after
    ]
    for name, tensor in old.items():
        if name in new or not tensor.dtype.is_floating_point():
            continue
        own = group_of(name)
        if any(f"{group}.".startswith(f"{own}.") and size in shape_of(tensor) for group, size in grown):
            raise Refused(
                f"'{name}' {list(shape_of(tensor))} is not in the graph, so it was not changed along with the rest",
                hint="export a graph that reads it too: return what it computes as one more output",
            )


def _by_name(graph: Checkpoint, arrays: Tensors) -> Checkpoint | None:
    """A graph that has the arrays' names and shapes, with the arrays; None if it has others."""
    named = {name: value for name, value in graph.model.graph.initializers.items() if name in arrays}
    own = {name for name in graph.tensors if name not in _constants(graph)}
    if own != set(named) or any(shape_of(graph.tensors[name]) != shape_of(arrays[name]) for name in named):
        return None
    for name, value in named.items():
        value.const_value = arrays[name]
    return graph


def _constants(checkpoint: Checkpoint) -> frozenset[str]:
    """Tensors of the graph that an exporter made, and that are in no file."""
    names = checkpoint.source.get("constants") or ()
    assert isinstance(names, Sequence)
    return frozenset(map(str, names))


def _source(checkpoint: Checkpoint, path: Path, graph: Path, arrays: Tensors) -> dict[str, Json]:
    constants = sorted(name for name in checkpoint.tensors if name not in arrays)
    return {"file": path.name, "graph": graph.name, "constants": constants}


def _add_copy(
    model: ir.Model,
    other: ir.Model,
    names: Mapping[str, str],
    tensors: Tensors,
    prefix: str,
    arrays: Collection[str],
) -> list[Port]:
    """Put the same graph beside a graph, with the parameters of a copy; its outputs.

    Of a copy of a part of the network there are the outputs that read nothing else of it.

    Args:
      model: grows. other: the same, and used up. names: the original's parameters -> the copy's.
      tensors: the copy's. prefix: of its names. arrays: all parameters of the network.
    """
    graph = other.graph
    own = {name for name in graph.initializers if name in arrays}
    if not own <= set(names):
        kept = [output for output in graph.outputs if (read := _read_by(output) & own) and read <= set(names)]
        if not kept:
            return []
        graph.outputs[:] = kept
        other = RemoveUnusedNodesPass()(other).model
    for ours, value in list(graph.initializers.items()):
        if ours in names:
            graph.initializers.pop(ours)
            value.name, value.const_value = names[ours], tensors[names[ours]]
            graph.register_initializer(value)
    ports = []
    for output in graph.outputs:
        output.name = f"{output.name}_{prefix.strip('./').replace('/', '_').replace('.', '_')}"
        ports.append(Port(output.name, "other", declared=True))
    beside(model, other, prefix)
    return ports


def _read_by(output: ir.Value) -> set[str]:
    """The initializers that a value is computed from."""
    front, seen, found = [output], set[int](), set[str]()
    while front:
        value = front.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if value.is_initializer():
            found.add(str(value.name))
        if (node := value.producer()) is not None:
            front += [operand for operand in node.inputs if operand is not None]
    return found
