"""Modules as checkpoints: exported, or put back into the graph that they were made from."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import onnx_ir as ir
import torch
from onnx_ir.passes.common import NameFixPass
from torch import Tensor, nn

from surgery.checkpoint import Checkpoint
from surgery.errors import ArgumentError, GraphError, first_line
from surgery.graph.prepare import prepared
from surgery.graph.walk import walk
from surgery.port_kinds import infer
from surgery.tensors import shape_of
from surgery.torch.optimizer_state import bare, named, plain_name, read_optimizer, uncompiled
from surgery.torch.stored import initializers, to_numpy

Inputs: TypeAlias = "Tensor | Sequence[Any] | Mapping[str, Any]"
OPSET = 20
SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata of a node: the paths of the modules in whose `forward` it came about, and its own name, as a literal."""
_HINTS = (
    (
        "DataDependent",
        "it branches on the values of tensors: torch.where instead; where it makes a distribution, which "
        "checks its numbers, a forward() that returns the logits",
    ),
    (
        "which is not a known type",
        "forward() has to return tensors: the logits of a distribution, not the distribution",
    ),
    ("", "try torch.export.export on it; shapes that vary can be given with dynamic_shapes=…"),
)
"""What to do about a reason of the exporter's."""
_NOTES = ("stack_trace", "name_scopes", "class_hierarchy", "fx_node", "scope")


def from_module(
    module: nn.Module,
    checkpoint: Checkpoint | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    example_inputs: Inputs | None = None,
    dynamic_shapes: Any = None,  # noqa: ANN401
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Checkpoint:
    """A module as a checkpoint, with its optimizer's state by parameter name.

    With `checkpoint`, the module's tensors are put into that graph: the way back from `to_module`, with everything
    that the checkpoint knows besides. With `example_inputs`, any module is exported.

    Args:
      module: left as it is; its tensors are copied. Behind `torch.compile` and other wrappers of PyTorch's it is found.
      checkpoint: whose graph it computes; tensors are found by name, and cast to the graph's types.
      optimizer: that trains it; None leaves the state out.
      example_inputs: a tensor, a tuple of arguments, or a mapping of keyword arguments.
      dynamic_shapes: as for `torch.export`; None frees the batch (the first axis of the first input, and the axes
        of others that are as long: their first, or second as in recurrent states) where the exporter can.
      input_names, output_names: of the graph, in order; None takes the names of `forward`'s arguments.

    Raises:
      ArgumentError: neither or both of `checkpoint` and `example_inputs`; a tensor of the graph that the module does
        not have, or has in another shape; an optimizer of other parameters.
      GraphError: the module cannot be exported.
    """
    if (checkpoint is None) == (example_inputs is None):
        raise ArgumentError(
            "give either the checkpoint whose graph it is, or example_inputs to export it with"
        )
    if checkpoint is None:
        model = export(
            bare(module),
            example_inputs,
            dynamic_shapes=dynamic_shapes,
            input_names=input_names,
            output_names=output_names,
        )
        made = Checkpoint(_copied(model), infer(model))
    else:
        made = checkpoint.replace(model=_filled(module, checkpoint.model), optimizer=None, path=None)
    if optimizer is None:
        return made
    state = read_optimizer(optimizer, module, only=made.tensors)
    copied = {
        slot: {name: _copy(tensor) for name, tensor in members.items()}
        for slot, members in state.slots.items()
    }
    return made.replace(optimizer=state.replace(slots=copied))


def from_program(
    program: torch.export.ExportedProgram, *, input_names: Sequence[str] | None = None
) -> Checkpoint:
    """An exported program as a checkpoint, with its parameters' names and the axes that it has left free.

    Raises:
      GraphError: it holds operators that have no counterpart.
    """
    try:
        with quiet():
            made = torch.onnx.export(
                program, dynamo=True, optimize=False, opset_version=OPSET, verbose=False, input_names=input_names
            )  # fmt: skip
    except Exception as error:  # the exporter's errors have no common base but Exception
        raise GraphError(f"the program cannot be exported: {_reason(error)}") from error
    if made is None:
        raise GraphError("the exporter returned nothing for the program")
    model = _copied(_bare(made.model, ()))
    return Checkpoint(model, infer(model))


def _copy(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(
        tensor.numpy().copy(),
        dtype=tensor.dtype,
        name=tensor.name,
        metadata_props=dict(getattr(tensor, "metadata_props", {})),
    )


def _copied(model: ir.Model) -> ir.Model:
    """The exporter's tensors are the module's own memory: copy them, in place."""
    for value in initializers(model):
        if value.const_value is not None:
            value.const_value = _copy(value.const_value)
    return model


def _filled(module: nn.Module, model: ir.Model) -> ir.Model:
    """A clone of the graph with the module's tensors."""
    held = {plain_name(name): tensor for name, tensor in bare(module).state_dict(keep_vars=True).items()}
    clone, parameters = model.clone(), set(named(module))
    missing = []
    for value in initializers(clone):
        name, old = str(value.name), value.const_value
        if old is None or (name not in held and not (old.dtype.is_floating_point() and len(old.shape))):
            continue
        if name not in held:
            missing.append(name)
            continue
        if tuple(held[name].shape) != shape_of(old):
            raise ArgumentError(
                f"'{name}' is {list(held[name].shape)} in the module, and {list(shape_of(old))} in the graph",
                hint="apply the plan that changed the module to the checkpoint, or export the module anew",
            )
        array = to_numpy(held[name]).astype(old.dtype.numpy())
        new = ir.Tensor(array.copy(), dtype=old.dtype, name=name)
        new.metadata_props.update(getattr(old, "metadata_props", {}))
        value.const_value = new
    if missing and not parameters.issuperset(missing):
        raise ArgumentError(
            f"the module does not have {', '.join(missing[:5])}, which the graph has",
            hint="a module made by to_module has all; export any other one with example_inputs=…",
        )
    return clone


def export(
    module: nn.Module,
    example_inputs: Inputs | None,
    *,
    dynamic_shapes: Any = None,  # noqa: ANN401
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    training: bool = False,
    scopes: bool = False,
) -> ir.Model:
    """A module as a graph whose initializers have the names, and are the memory, of its parameters and buffers.

    Args:
      module: left as it is, its modes included.
      example_inputs: see `from_module`.
      dynamic_shapes: see `from_module`.
      input_names, output_names: of the graph.
      training: export what it computes in training mode.
      scopes: whether nodes keep the note `SCOPES`.

    Raises:
      ArgumentError: it does not run on the example inputs; a name that a parameter has.
      GraphError: it cannot be exported; the exporter's own words are in the message.
    """
    _check_forward(module)
    _check_projections(module)
    arguments, keywords = arguments_of(example_inputs)
    names = {"input_names": input_names, "output_names": output_names}
    _check_names(module, [*(input_names or ()), *(output_names or ())])
    kept = (SCOPES,) if scopes else ()

    def exported(shapes: Any) -> ir.Model:  # noqa: ANN401
        return _bare(_exported(module, arguments, keywords, shapes, names), kept)

    with quiet(), mode(module, training), uncompiled(module), torch.random.fork_rng(devices=[]):
        if dynamic_shapes is None and (found := _with_free_batch(exported, arguments, keywords)) is not None:
            return found
        try:
            return exported(dynamic_shapes)
        except Exception as error:  # the exporter's errors have no common base but Exception
            _check_runs(module, arguments, keywords)
            reason = _reason(error)
            raise GraphError(
                f"the module {type(module).__name__} cannot be exported: {reason}",
                hint=next(hint for cause, hint in _HINTS if cause in reason),
            ) from error


def _check_runs(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Inputs that the module does not take are no matter of the exporter's; a copy is run, as running may count."""
    try:
        twin = copy.deepcopy(module)
    except Exception:  # whatever the caller's classes raise: the exporter's words have to do
        return
    try:
        with torch.no_grad():
            twin(*arguments, **keywords)
    except Exception as error:
        raise ArgumentError(
            f"{type(module).__name__} does not run on the example inputs: {_reason(error)}",
            hint="give what it is given in training, of the same shapes, types and on the same device",
        ) from error


def _with_free_batch(
    exported: Callable[[Any], ir.Model], arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> ir.Model | None:
    """A graph whose batch varies, each input's by itself or all alike; None where it cannot vary.

    Where other axes are mixed with it in shapes that stay open, it is fixed, if that settles them.
    """
    found: list[ir.Model] = []
    for size in (torch.export.Dim.DYNAMIC, torch.export.Dim("batch"), None):
        shapes = _batched(arguments, keywords, size)
        if shapes is None:
            break
        with contextlib.suppress(Exception):  # the exporter's errors have no common base but Exception
            made = exported(shapes)
            if not walk(prepared(made), infer(made)).facts.unknown:
                return made
            found.append(made)
        if not found:
            break
    return found[0] if found else None


def _check_forward(module: nn.Module) -> None:
    """What is called by other methods only has nothing to export."""
    if type(module).forward is nn.Module.forward and "forward" not in vars(module):
        raise GraphError(
            f"{type(module).__name__} has no forward(), so nothing says what it computes",
            hint="give it one that returns what is to stay the same: def forward(self, x): "
            "return self.actor(x), self.critic(x)",
        )


def _check_names(module: nn.Module, given: Collection[str]) -> None:
    """No two values of a graph have one name, and parameters keep theirs."""
    held = {plain_name(name) for name in bare(module).state_dict(keep_vars=True)}
    if taken := sorted(held.intersection(given)):
        raise ArgumentError(
            f"{type(module).__name__} has a parameter '{taken[0]}', so no input or output can have that name",
            hint=f"name it otherwise, such as {taken[0]}_out",
        )


def _check_projections(module: nn.Module) -> None:
    """The exporter writes an LSTM with projections as one without."""
    for path, part in module.named_modules():
        if isinstance(part, nn.LSTM) and part.proj_size:
            raise GraphError(
                f"'{path or '(the model)'}' projects its state (proj_size={part.proj_size}), and no LSTM of ONNX does",
                where={"module": type(part).__name__},
                hint="a layer of its own behind an LSTM without proj_size; the state is then not projected",
            )


def _exported(
    module: nn.Module,
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
    shapes: Any,  # noqa: ANN401
    names: Mapping[str, Any],
) -> ir.Model:
    for recurrent in (torch.ops.aten.lstm.input, torch.ops.aten.gru.input):
        # The exporter swaps their decompositions but not this: a second export would fix the sequence length.
        recurrent._dispatch_cache.clear()
    if arguments and isinstance(arguments[-1], dict) and not keywords:
        arguments = (*arguments, {})  # it takes a last dictionary for keyword arguments
    arguments, keywords = torch.utils._pytree.tree_map(_whole, (arguments, keywords))
    program = torch.onnx.export(
        module, arguments, kwargs=keywords or None, dynamic_shapes=shapes, dynamo=True, optimize=False,
        opset_version=OPSET, verbose=False, **names,
    )  # fmt: skip
    if program is None:
        raise GraphError(f"the exporter returned nothing for {type(module).__name__}")
    return program.model


def _whole(x: Any) -> Any:  # noqa: ANN401
    """A tensor with memory of its own: strides of a view would become numbers of the graph."""
    return x.contiguous() if isinstance(x, Tensor) else x


def arguments_of(example_inputs: Inputs | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of `forward`."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    return tuple(example_inputs or ()), {}


def _batched(arguments: tuple[Any, ...], keywords: dict[str, Any], size: Any) -> Any:  # noqa: ANN401
    """The batch of every input, if there is one of at least two: an axis of this size."""
    leaves = torch.utils._pytree.tree_leaves((arguments, keywords))
    first = next((x for x in leaves if isinstance(x, Tensor) and x.dim()), None)
    if first is None or first.shape[0] < 2:
        return None

    def batch(x: Any) -> Any:  # noqa: ANN401
        sizes = x.shape[:2] if isinstance(x, Tensor) else ()
        axis = next((axis for axis, size in enumerate(sizes) if size == first.shape[0]), None)
        return None if axis is None else {axis: size}

    shapes = torch.utils._pytree.tree_map(batch, (arguments, keywords))
    return shapes[1] if keywords else shapes[0]


def _bare(model: ir.Model, kept: Sequence[str] = ()) -> ir.Model:
    """Without the exporter's notes on nodes, which hold paths of files, but those that are wanted.

    And no inner value has the name of an output, to which the exporter does not see.
    """
    NameFixPass()(model)
    for graph in model.graphs():
        for node in graph:
            for key in [k for k in node.metadata_props if k.rpartition(".")[2] in _NOTES and k not in kept]:
                del node.metadata_props[key]
    return model


def _reason(error: BaseException) -> str:
    """The innermost cause, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error, typed=True)[:300]


@contextlib.contextmanager
def mode(module: nn.Module, training: bool) -> Iterator[None]:
    """All modules in one mode, and back in theirs afterwards; nothing is dropped out: that is random."""
    before = {child: child.training for child in module.modules()}
    try:
        module.train(training)
        for child in module.modules():
            if isinstance(child, nn.modules.dropout._DropoutNd):
                child.eval()
        yield
    finally:
        for child, was in before.items():
            child.training = was


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter prints, warns and logs on success, and writes whole graphs to stderr when it fails."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            with _readable_precision():
                yield
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def _readable_precision() -> Iterator[None]:
    """The exporter asks by PyTorch's old name how cuDNN rounds, and where that was set by the new one
    (`torch.backends.cudnn.conv.fp32_precision`) the answer is an error, on a CPU, too (2.13)."""
    cudnn: Any = torch.backends.cudnn  # made at run time
    before = [(part, part.fp32_precision) for part in (cudnn.conv, cudnn.rnn)]
    try:
        _ = cudnn.allow_tf32
        before = []
    except RuntimeError:
        cudnn.allow_tf32 = True
    try:
        yield
    finally:
        for part, was in before:
            part.fp32_precision = was
