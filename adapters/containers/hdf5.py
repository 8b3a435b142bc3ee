"""HDF5 files as tensors that lie in them: plain data only, no link is followed out of the file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from surgery.errors import CorruptFile, MissingDependency, Refused, SurgeryError
from surgery.tensors import MappedFile, Region, blocks, shape_of
from surgery_adapters.containers.torch_archive import Window

if TYPE_CHECKING:
    import h5py

_DEPTH, _MEMBERS = 32, 100_000


def read(region: Region) -> dict[str, ir.TensorProtocol]:
    """Path of a dataset -> tensor; nothing of the data is read.

    Raises:
      MissingDependency: h5py is not installed.
      CorruptFile: damaged, or it holds what no framework writes: links out of the file, data in other files,
        compressed data, groups within themselves.
    """
    try:
        with _open(region) as file:
            return {path: _tensor(path, dataset, region) for path, dataset in _datasets(file, "", set(), 0)}
    except SurgeryError:
        raise
    except Exception as error:  # the library raises what it meets, of many types, in a damaged file
        raise CorruptFile(f"the HDF5 data cannot be read: {error}") from error


def rewritten(region: Region, replaced: Mapping[str, ir.TensorProtocol]) -> Region:
    """The file with other tensors, as a region of a temporary file that lives as long as the region does.

    Where no shape changes, only the bytes of these tensors do; else every other dataset and attribute is copied.

    Raises:
      Refused: a tensor of another element type.
    """
    old = read(region)
    for path, tensor in replaced.items():
        if tensor.dtype != old[path].dtype:
            raise Refused(
                f"'{path}' is {old[path].dtype.name} in the file, and would become {tensor.dtype.name}"
            )
    with tempfile.NamedTemporaryFile(prefix="surgery-", suffix=".part") as file:
        if all(shape_of(tensor) == shape_of(old[path]) for path, tensor in replaced.items()):
            for block in region.blocks(1 << 22):
                file.write(block)
            for path, tensor in replaced.items():
                file.seek(old[path].meta[_PLACE])
                for piece in blocks(tensor):
                    file.write(piece)
        else:
            _copy(region, replaced, Path(file.name))
        file.flush()
        return MappedFile(Path(file.name)).whole


def rearranged(
    region: Region,
    datasets: Mapping[str, ir.TensorProtocol],
    moved: Mapping[str, str],
    named: Mapping[str, str],
) -> Region:
    """A file of the same kind with other datasets, as a region of a temporary file that lives as long as the region.

    Args:
      datasets: path -> tensor, all that there will be.
      moved: group -> what it is called from now on, with the groups in it; others keep their names and attributes.
      named: new group -> its attribute `name`.
    """
    import h5py

    def follow(source: h5py.Group, path: str) -> None:
        target = new.require_group(f"/{moved_to(path, moved)}")
        for key, value in source.attrs.items():
            target.attrs[key] = value
        for name, member in source.items():
            if isinstance(member, h5py.Group):
                follow(member, f"{path}/{name}".lstrip("/"))

    with tempfile.NamedTemporaryFile(prefix="surgery-", suffix=".part") as file:
        with _open(region) as old, h5py.File(Path(file.name), "w") as new:
            follow(old, "")
            for path, name in named.items():
                new.require_group(path).attrs["name"] = name
            for path, tensor in datasets.items():
                new.create_dataset(path, data=tensor.numpy())
        return MappedFile(Path(file.name)).whole


def moved_to(path: str, moved: Mapping[str, str]) -> str:
    """A path in the group that it is in from now on."""
    group = max((g for g in moved if path == g or path.startswith(f"{g}/")), key=len, default=None)
    return path if group is None else f"{moved[group]}{path.removeprefix(group)}"


_PLACE = "surgery.hdf5.offset"


def _open(region: Region) -> h5py.File:
    try:
        import h5py
    except ImportError as error:
        raise MissingDependency(
            "h5py is not installed, and the weights of this file are HDF5",
            hint="pip install 'policy-surgery[keras]'",
        ) from error
    return h5py.File(Window(region), "r")


def _datasets(group: h5py.Group, prefix: str, seen: set[object], depth: int) -> Iterator[tuple[str, Any]]:
    """Every dataset under a group; only hard links are followed, and every object once."""
    import h5py

    address = h5py.h5o.get_info(group.id).addr
    if address in seen or depth > _DEPTH or len(seen) > _MEMBERS:
        raise CorruptFile(f"the group '{prefix or '/'}' lies within itself, or too deep")
    seen.add(address)
    for name in group:
        path = f"{prefix}{name}"
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise CorruptFile(f"'{path}' is a link to somewhere else, which is not followed")
        member = group[name]
        if isinstance(member, h5py.Group):
            yield from _datasets(member, f"{path}/", seen, depth + 1)
        elif isinstance(member, h5py.Dataset):
            yield path, member


def _tensor(path: str, dataset: Any, region: Region) -> ir.TensorProtocol:  # noqa: ANN401
    """A dataset as a region of the file."""
    if dataset.external or dataset.is_virtual:
        raise CorruptFile(f"the data of '{path}' lies in another file, which is not read")
    dtype, shape = dataset.dtype, dataset.shape
    if dtype.kind == "V" and dtype.itemsize == 2:
        raise Refused(
            f"'{path}' holds bfloat16, for which there is no rule",
            hint="save the model with a policy of float32",
        )
    if shape is None or dtype.kind not in "fiub" or dtype.byteorder == ">":
        raise CorruptFile(f"'{path}' holds {dtype}, which no framework writes")
    kind = ir.DataType.from_numpy(dtype)
    offset = dataset.id.get_offset()
    if offset is None and dataset.size:
        raise CorruptFile(
            f"the data of '{path}' is compressed or in pieces, which no framework does",
            hint="save it with Keras 3",
        )
    if (offset or 0) + dataset.size * dtype.itemsize > region.length:
        raise CorruptFile(f"the file is cut short: '{path}' ends behind it")
    if not dataset.size:
        return ir.Tensor(np.zeros(shape, dtype), name=path)
    tensor = region.file.tensor(path, kind, shape, region.offset + offset)
    tensor.meta[_PLACE] = offset
    return tensor


def _copy(region: Region, replaced: Mapping[str, ir.TensorProtocol], target: Path) -> None:
    import h5py

    def follow(source: h5py.Group, group: h5py.Group, prefix: str) -> None:
        for key, value in source.attrs.items():
            group.attrs[key] = value
        for name, member in source.items():
            path = f"{prefix}{name}"
            if isinstance(member, h5py.Group):
                follow(member, group.create_group(name), f"{path}/")
            elif path in replaced:
                dataset = group.create_dataset(name, data=replaced[path].numpy())
                for key, value in member.attrs.items():
                    dataset.attrs[key] = value
            else:
                source.copy(member, group, name)

    with _open(region) as old, h5py.File(target, "w") as new:
        follow(old, new, "")
