"""Checkpoints read from files and written to them: ONNX with what lies beside it, or a framework's own file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import onnx_ir as ir

from surgery.adapters import Adapter, Checking, Reading, detect, find
from surgery.checkpoint import Checkpoint
from surgery.errors import WITHOUT_OPTIMIZER, ArgumentError, CorruptFile, FileError, SurgeryError
from surgery.files import replacing
from surgery.formats import sniff
from surgery.interface import Interface
from surgery.metadata import METADATA_KEY, Record
from surgery.model_file import MAX_INLINE, all_tensors, read_model, replace_tensors, write_model
from surgery.optimizer import OptimizerState, load_optimizer, save_optimizer
from surgery.port_kinds import infer
from surgery.tensors import Layout, header_digest, read_safetensors, shape_of, storable, write_safetensors

NATIVE = frozenset(
    {".zip", ".pt", ".pth", ".ckpt", ".cleanrl_model", ".keras", ".d3", ".msgpack", ".safetensors"}
)
"""Suffixes that frameworks give their files: an ONNX model is not written under one of them."""


def load(path: str | Path, *, optimizer: bool = True, reading: Reading | None = None) -> Checkpoint:
    """Read a checkpoint; tensors are read when they are used, and nothing in the file is executed.

    Args:
      path: an `.onnx` file, beside which weights and optimizer state may lie, or a file or folder of a framework
        that an installed adapter reads.
      optimizer: false leaves the optimizer state out.
      reading: what a framework's file does not say of itself.

    Raises:
      FileError: a file is missing or cannot be read, or is of a schema that this version does not know.
      UnknownFormat: neither an ONNX model nor a file of an installed adapter; says what it is instead.
      CorruptFile: truncated, damaged or hostile, or files that do not belong together.
      GraphError: ONNX, but not valid, or newer than what is supported.
      ArgumentError, Refused: a framework's file that does not say enough, or holds what no graph can express.
    """
    path = Path(path)
    if sniff(path).name != "onnx" and (found := detect(path)) is not None:
        reading = dataclasses.replace(reading or Reading(), optimizer=optimizer)
        return _load_native(found[1], path, reading)
    model = read_model(path)
    try:
        text = model.metadata_props.pop(METADATA_KEY, None)
        record = Record(infer(model)) if text is None else Record.parse(text)
        _check_interface(record.interface, model)
        if (
            record.weights
            and read_safetensors(_file(record.weights, path)).digest != record.weights["digest"]
        ):
            raise CorruptFile(f"'{record.weights['file']}' does not hold the weights of this model")
        state = _load_state(record, path, text is None) if optimizer else None
        if state:
            _check_state(state, model)
    except FileError as error:
        raise error.within(file=path) from error
    return Checkpoint(
        model,
        record.interface,
        record.environment,
        record.lineage,
        state,
        path,
        record.source,
        record.copies,
    )


def _load_native(adapter: Adapter, path: Path, reading: Reading) -> Checkpoint:
    try:
        found = adapter.load(path, reading)
    except SurgeryError as error:
        raise error.within(file=path) from error
    return found.replace(path=path, origin=path.absolute())


def save(
    checkpoint: Checkpoint,
    path: str | Path,
    *,
    force: bool = False,
    external: bool | None = None,
    like: str | Path | None = None,
) -> list[Path]:
    """Write a checkpoint; a reader sees the old files or the new ones, whole.

    Args:
      checkpoint: left as it is, and still valid when its own files are replaced.
      path: the `.onnx` file; optimizer state goes beside it as `NAME.optimizer.safetensors`. With another suffix, a
        checkpoint of a framework is written as that framework's file.
      force: replace files that exist.
      external: true writes the weights beside the model as `NAME.safetensors`, false inside it; None decides
        by size (inside up to 1.8 GB).
      like: the framework's file to write a copy of, in which only what the checkpoint changed is another; None for
        the one that the checkpoint was read from.

    Returns:
      the files written, the `.onnx` last.

    Raises:
      FileError: a file exists, the folder cannot be written to, the disk is full, or the weights do not fit
        inside.
      ArgumentError, Refused: `like` has other parameters, or its framework could not load the result.
    """
    path = Path(path)
    original = _original(checkpoint, path, like)
    if original is not None:
        return _save_native(checkpoint, path, original, force=force)
    if path.suffix.lower() in NATIVE:
        raise ArgumentError(
            f"'{path.name}' does not name an ONNX file, and no {path.suffix} file to copy and change is given",
            hint="write an .onnx, or name that file: surgery convert MODEL.onnx --like ORIGINAL -o OUT",
        )
    total = sum(tensor.nbytes for tensor in all_tensors(checkpoint.model))
    outside = total > MAX_INLINE if external is None else external
    if total > MAX_INLINE and not outside:
        raise FileError(
            f"{total:,} bytes of weights do not fit inside an ONNX file", hint="leave out external=False"
        )
    state = checkpoint.optimizer
    beside, moments = _beside(path, ""), _beside(path, ".optimizer")
    targets = [*([beside] if outside else []), *([moments] if state else []), path]
    needed = total + sum(t.nbytes for slot in state.slots.values() for t in slot.values()) if state else total
    with replacing(targets, force=force, needed=needed) as temporary:
        parts = dict(zip(targets, temporary, strict=True))
        model = checkpoint.model.clone()
        replace_tensors(model, _inside)
        weights = _reference_to(beside, _write_weights(model, beside, parts[beside])) if outside else None
        optimizer = _reference_to(moments, save_optimizer(state, parts[moments])) if state else None
        model.metadata_props[METADATA_KEY] = Record(
            checkpoint.interface,
            checkpoint.environment,
            checkpoint.lineage,
            checkpoint.source,
            weights,
            optimizer,
            checkpoint.copies,
        ).text()
        with parts[path].open("wb") as file:
            write_model(model, file)
    return targets


def _original(checkpoint: Checkpoint, path: Path, like: str | Path | None) -> Path | None:
    """The framework's file that a copy is made of; None for an `.onnx`."""
    original = like if like is not None else checkpoint.origin if path.suffix.lower() != ".onnx" else None
    return None if original is None else Path(original)


def check_savable(
    make: Callable[[], Checkpoint],
    checkpoint: Checkpoint,
    path: str | Path,
    *,
    like: str | Path | None = None,
) -> None:
    """Refuse what `save` would refuse to write into a framework's file, before any tensor is computed.

    Args:
      make: what would be saved, its tensors computed when they are read; called only if it goes into such a file.
      checkpoint: what it is made of. path, like: as for `save`.

    Raises:
      ArgumentError, Refused: the framework has no place for it, with the reason.
    """
    original = _original(checkpoint, Path(path), like)
    if original is None:
        return
    adapter = find(original)[1]
    if isinstance(adapter, Checking):
        try:
            adapter.check(make(), like=original)
        except SurgeryError as error:
            raise error.within(file=original) from None


def _save_native(checkpoint: Checkpoint, path: Path, like: Path, *, force: bool) -> list[Path]:
    found = find(like)[1]
    if like.is_dir() and path.suffix.lower() in NATIVE:
        raise ArgumentError(
            f"'{path.name}' is the name of a file, and '{like}' is a folder", hint="give the name of a folder"
        )
    return found.save(checkpoint, path, like=like, force=force)


def _reference_to(target: Path, layout: Layout) -> Mapping[str, str]:
    return {"file": target.name, "digest": layout.digest}


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f"{path.name.removesuffix('.onnx')}{what}.safetensors")


def _file(reference: Mapping[str, str], path: Path) -> Path:
    return path.parent / reference["file"]


def _check_interface(interface: Interface, model: ir.Model) -> None:
    found = infer(model)
    for side, ports, wanted in (
        ("inputs", interface.inputs, found.inputs),
        ("outputs", interface.outputs, found.outputs),
    ):
        names, values = [port.name for port in ports], [port.name for port in wanted]
        if names != values:
            raise CorruptFile(
                f"the metadata describes the {side} {names}, the graph has {values}",
                hint=f"the graph was changed by another program: remove its metadata entry '{METADATA_KEY}'",
            )


def _load_state(record: Record, path: Path, foreign: bool) -> OptimizerState | None:
    own = _beside(path, ".optimizer")
    without = f"leave it out (optimizer=False): {WITHOUT_OPTIMIZER}"
    if record.optimizer is None:
        return load_optimizer(own) if foreign and own.is_file() else None
    named = _file(record.optimizer, path)
    present = [file for file in dict.fromkeys((named, own)) if file.is_file()]
    if not present:
        raise FileError(
            f"the optimizer state '{named}' is missing", hint=f"put it beside the model, or {without}"
        )
    for file in present:
        if header_digest(file) == record.optimizer["digest"]:
            return load_optimizer(file)
    raise CorruptFile(
        f"'{present[0]}' is not the optimizer state that was saved with this model", hint=without
    )


def _check_state(state: OptimizerState, model: ir.Model) -> None:
    initializers = model.graph.initializers
    for slot, tensors in state.slots.items():
        for name, tensor in tensors.items():
            value = initializers[name].const_value if name in initializers else None
            if value is None:
                raise CorruptFile(
                    f"the optimizer state has a {slot} for '{name}', which the model does not have"
                )
            if shape_of(value) != shape_of(tensor):
                raise CorruptFile(
                    f"the {slot} of '{name}' is {list(shape_of(tensor))}, "
                    f"the parameter is {list(shape_of(value))}"
                )


def _goes_outside(tensor: ir.TensorProtocol) -> bool:
    # Whole numbers that are small are shapes and axes, which readers want at hand.
    large = tensor.nbytes >= 1024 or (tensor.dtype.is_floating_point() and len(tensor.shape) > 0)
    return large and storable(tensor.dtype) and tensor.size > 0


def _write_weights(model: ir.Model, target: Path, temporary: Path) -> Layout:
    """Write the tensors of a clone to a file, and make the clone refer to it; small ones stay inside."""
    values: dict[str, ir.Value] = {}
    for value in _initialised(model):
        if value.const_value is not None and _goes_outside(value.const_value):
            name = str(value.name)
            values[name if name not in values else f"{name}#{len(values)}"] = value
    tensors = {key: value.const_value for key, value in values.items() if value.const_value is not None}
    layout = write_safetensors(temporary, tensors)
    for key, tensor in tensors.items():
        offset, length = layout.regions[key]
        values[key].const_value = ir.ExternalTensor(
            target.name,
            offset,
            length,
            tensor.dtype,
            shape=ir.Shape(shape_of(tensor)),
            name=str(values[key].name),
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
        )
    return layout


def _initialised(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.initializers.values()


def _inside(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    return ir.Tensor(
        tensor.numpy(),
        dtype=tensor.dtype,
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )
