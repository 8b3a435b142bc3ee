"""Graphs that PyTorch wrote: TorchScript archives (`torch.jit.save`), and exported programs (`torch.export.save`).

Their parameters are data, and are read as such. Their graphs are programs, which PyTorch says to load from trusted
sources only: they are read by PyTorch's own loaders where a person says `--trust`; else the network has to be told as
that of a state dict. Files of other widths are exported anew, from the graph and under the same names.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
import onnx_ir as ir

from surgery.adapters import Reading, TrainingState
from surgery.checkpoint import Checkpoint
from surgery.errors import ArgumentError, CorruptFile, Refused, SurgeryError
from surgery.files import replacing
from surgery.formats import is_kind, sniff
from surgery.interface import Interface
from surgery.json_values import Json
from surgery.port_kinds import infer
from surgery.probes import probes
from surgery.tensors import MappedFile
from surgery_adapters import pytorch
from surgery_adapters.containers.module_tree import Reader
from surgery_adapters.containers.pickle_tree import Made, parse
from surgery_adapters.containers.torch_archive import StoredZip, TorchArchive
from surgery_adapters.containers.torch_patch import Content, changes, replace_members, rewrite
from surgery_adapters.networks.chains import Part
from surgery_adapters.networks.module import features_of, outputs_of, require
from surgery_adapters.torch_layout import parts_of
from surgery_adapters.writeback.contract import NAME, Notes, bare, notes_of
from surgery_adapters.writeback.matching import matched, resized

if TYPE_CHECKING:
    from torch import Tensor, nn

SCRIPT, PROGRAM = "torchscript", "torch-export"
_EXTRA = f"extra/{NAME}"
_WEIGHTS = "data/weights/"
_TYPES: Mapping[int, ir.DataType] = {
    1: ir.DataType.UINT8, 2: ir.DataType.INT8, 3: ir.DataType.INT16, 4: ir.DataType.INT32, 5: ir.DataType.INT64,
    6: ir.DataType.FLOAT16, 7: ir.DataType.FLOAT, 8: ir.DataType.DOUBLE, 12: ir.DataType.BOOL,
    13: ir.DataType.BFLOAT16,
}  # fmt: skip
"""The numbers of element types in an exported program (torch/_export/serde/schema.py, ScalarType)."""


def detect(path: Path) -> bool:
    """Whether a file is a TorchScript archive or an exported program."""
    return is_kind(path, SCRIPT, PROGRAM)


def training_state(path: Path) -> TrainingState:
    """The parameters and buffers, by name; these files hold no optimizer.

    Raises:
      CorruptFile: damaged or hostile; nothing was executed.
    """
    tensors = _script(_archive(path)) if is_kind(path, SCRIPT) else _weights(_zip(path))
    return TrainingState({"model": tensors})


def load(path: Path, reading: Reading) -> Checkpoint:
    """The network as a graph; see `surgery.adapters.Adapter`."""
    state, kind = training_state(path), sniff(path).name
    archive = _zip(path)
    name = next((name for name in archive.members if name.endswith(f"/{_EXTRA}")), None)
    notes = Notes.parse(None if name is None else archive.content(name))
    if reading.trust:
        return _trusted(path, kind, state, reading, notes)
    try:
        made: Checkpoint = pytorch.assemble(path, state, reading, activation=reading.activation, notes=notes)
    except (ArgumentError, Refused) as error:
        raise error.within(graph="is in the file, and was not read: --trust lets PyTorch load it") from None
    return made.replace(source={**made.source, "adapter": "torch_exported"})


def save(checkpoint: Checkpoint, path: Path, *, like: Path, force: bool) -> list[Path]:
    """Write a copy of a file with other numbers, or of other widths; see `surgery.adapters.Adapter`."""
    kind = sniff(like).name
    old, new = _fitted(checkpoint, like)
    notes, wide = notes_of(checkpoint, bare(checkpoint.interface)), resized(old, new)
    needed = like.stat().st_size + sum(tensor.nbytes for tensor in new.values())
    with replacing([path], force=force, needed=needed, sources=[like]) as [part], part.open("wb") as out:
        if wide:
            _exported(checkpoint, kind, cast(BinaryIO, out), notes)
        elif kind == SCRIPT:
            rewrite(_archive(like), changes(old, new), out, {} if notes is None else {_EXTRA: notes})
        else:
            _patched(_zip(like), old, new, out, notes)
    return [path]


def check(checkpoint: Checkpoint, *, like: Path) -> None:
    """Whether a copy of a file can hold other networks; see `surgery.adapters.Checking`."""
    _fitted(checkpoint, like)


def _fitted(
    checkpoint: Checkpoint, like: Path
) -> tuple[Mapping[str, ir.TensorProtocol], Mapping[str, ir.TensorProtocol]]:
    """The parameters of a file as they are and as they are to be.

    Raises:
      ArgumentError, Refused: it has not all of them, or was made for its own widths.
    """
    old = {name: tensor for part in parts_of(training_state(like)) for name, tensor in part.tensors.items()}
    new = matched(old, checkpoint, like)
    if resized(old, new) and not checkpoint.source.get("trust"):
        raise Refused(
            "the file's graph was made for its own widths, and has not been read",
            hint="read it with its graph: surgery convert FILE --trust -o OUT.onnx",
        )
    return old, new


# ---- parameters as data -----------------------------------------------------------------------------------------


def _zip(path: Path) -> StoredZip:
    return StoredZip.open(MappedFile(path).whole, packed=_code)


def _archive(path: Path) -> TorchArchive:
    return TorchArchive.open(MappedFile(path).whole, packed=_code)


def _code(name: str) -> bool:
    """Whether a member is source or a note on it, which PyTorch compresses."""
    return "/code/" in name or name.endswith(".debug_pkl")


def _script(archive: TorchArchive) -> dict[str, ir.TensorProtocol]:
    root = parse(archive.pickle()).root
    if not isinstance(root, Made) or not isinstance(root.state, dict):
        raise CorruptFile("the archive holds no TorchScript module")
    return dict(Reader(archive).scripted(root))


def _weights(archive: StoredZip) -> dict[str, ir.TensorProtocol]:
    """Of an exported program: a table of names, and a member of plain numbers for each."""
    return {
        name: archive.file.tensor(name, kind, shape, archive.members[member][0])
        for name, (member, kind, shape) in _table(archive).items()
    }


def _table(archive: StoredZip) -> dict[str, tuple[str, ir.DataType, tuple[int, ...]]]:
    """Name -> member, element type, shape.

    Raises:
      CorruptFile: damaged, or of a layout that PyTorch 2.9 and later do not write.
    """
    place = next((name for name in archive.members if name.endswith("/model_weights_config.json")), None)
    if place is None:
        raise CorruptFile(
            "the exported program has no table of its weights",
            hint="load it with torch.export.load, and save it with PyTorch 2.9 or newer",
        )
    folder = place.removesuffix("model_weights_config.json")
    try:
        entries = json.loads(archive.content(place))["config"]
        return {str(name): _entry(archive, folder, entry) for name, entry in entries.items()}
    except CorruptFile:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptFile(f"the table of weights is damaged: {type(error).__name__}: {error}") from error


def _entry(
    archive: StoredZip, folder: str, entry: Mapping[str, Any]
) -> tuple[str, ir.DataType, tuple[int, ...]]:
    meta, member = entry["tensor_meta"], f"{folder}{entry['path_name']}"
    shape, strides = (tuple(size["as_int"] for size in meta[key]) for key in ("sizes", "strides"))
    kind = _TYPES.get(meta["dtype"])
    whole = [int(np.prod(shape[k + 1 :])) for k in range(len(shape))]
    if kind is None or entry["use_pickle"] or meta["storage_offset"]["as_int"] or member not in archive:
        raise CorruptFile(f"the weight '{entry['path_name']}' is of a kind that is not supported")
    if any(size > 1 and step != wanted for size, step, wanted in zip(shape, strides, whole, strict=True)):
        raise CorruptFile(f"the weight '{entry['path_name']}' is not stored in one piece")
    if archive.members[member][1] != int(np.prod(shape)) * kind.itemsize or min(shape, default=0) < 0:
        raise CorruptFile(f"the weight '{entry['path_name']}' has another size than the table says")
    return member, kind, shape


def _patched(
    archive: StoredZip,
    old: Mapping[str, ir.TensorProtocol],
    new: Mapping[str, ir.TensorProtocol],
    out: BinaryIO,
    notes: bytes | None,
) -> None:
    table = _table(archive)
    members: dict[str, Content] = {table[name][0]: new[name] for name in new if new[name] is not old[name]}
    if notes is not None:
        prefix = next(iter(archive.members)).partition("/")[0]
        members[f"{prefix}/{_EXTRA}"] = notes
    replace_members(archive, members, out)


# ---- graphs by PyTorch's own loaders ----------------------------------------------------------------------------


def _trusted(path: Path, kind: str, state: TrainingState, reading: Reading, notes: Notes) -> Checkpoint:
    require()
    try:
        model = _of_script(path, reading) if kind == SCRIPT else _of_program(path)
    except SurgeryError:
        raise
    except Exception as error:  # PyTorch's loaders and exporters raise what they meet
        raise ArgumentError(
            f"PyTorch cannot load '{path}': {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error
    part = Part("", "model", state.networks["model"])
    for name, value in model.graph.initializers.items():
        if name in part.tensors:
            value.const_value = part.tensors[name]
    found = Interface(infer(model).inputs, tuple(outputs_of(model, part, copy=False)))
    source: dict[str, Json] = {"adapter": "torch_exported", "file": path.name, "trust": True}
    return Checkpoint(
        model, notes.meaning(found), environment=notes.environment, lineage=notes.lineage, source=source
    )


def _of_script(path: Path, reading: Reading) -> ir.Model:
    """By the exporter for TorchScript, which keeps names where it folds nothing."""
    import warnings

    import onnx
    import torch

    load: Any = torch.jit.load
    module, file = load(path, map_location="cpu").eval(), io.BytesIO()
    example = torch.zeros(2, *(reading.observation or features_of(module)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (example,), cast(Any, file), dynamo=False, opset_version=20, do_constant_folding=False,
            input_names=["observation"], dynamic_axes={"observation": {0: "batch"}},
        )  # fmt: skip
    return ir.from_proto(onnx.load_from_string(file.getvalue()))


def _of_program(path: Path) -> ir.Model:
    import torch

    from surgery.torch import from_program

    program = torch.export.load(path)
    names = [name for name in program.graph_signature.user_inputs if isinstance(name, str)]
    return from_program(program, input_names=["observation"] if len(names) == 1 else None).model


# ---- other widths -----------------------------------------------------------------------------------------------


def _exported(checkpoint: Checkpoint, kind: str, out: BinaryIO, notes: bytes | None) -> None:
    """The graph of a checkpoint as PyTorch's own, under the same names."""
    require()
    import torch

    from surgery.torch import to_module

    module, file = to_module(checkpoint), io.BytesIO()
    two, three = (
        tuple(torch.from_numpy(array) for array in probes(checkpoint, count, 0).values()) for count in (2, 3)
    )
    try:
        if kind == SCRIPT:
            trace: Any = torch.jit.trace
            made = trace(module, two, check_trace=False)
            torch.jit.save(made, file, _extra_files={} if notes is None else {NAME: notes})
        else:
            free = tuple({0: torch.export.Dim("batch")} for _ in two)
            program = torch.export.export(module, two, dynamic_shapes=free, strict=False)
            torch.export.save(program, file, extra_files={} if notes is None else {NAME: notes.decode()})
            made = program.module()
        alike = _alike(module, made, three)
    except Exception as error:  # PyTorch's exporters raise what they meet
        raise Refused(f"PyTorch cannot write this graph: {type(error).__name__}: {error!s:.300}") from error
    if not alike:  # a trace may have taken the batch for a constant
        raise Refused(
            "the graph computes something else once PyTorch has traced it", hint="write a .pt2 file"
        )
    out.write(file.getvalue())


def _alike(module: nn.Module, made: nn.Module, inputs: Sequence[Tensor]) -> bool:
    """Whether two modules compute the same."""
    import torch

    with torch.no_grad():
        pairs = zip(_tuple(module(*inputs)), _tuple(made(*inputs)), strict=True)
        return all(a.shape == b.shape and torch.allclose(a, b, atol=1e-5) for a, b in pairs)


def _tuple(value: Any) -> tuple[Any, ...]:  # noqa: ANN401
    return value if isinstance(value, tuple) else (value,)
