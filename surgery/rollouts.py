"""Recorded observations carried over to a changed model: `.npz` files of replay and rollouts, streaming and atomic."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from surgery.arrays import Array
from surgery.edits.axis_maps import units_along
from surgery.edits.parts import PortEdit
from surgery.edits.plan import Plan
from surgery.edits.ports import grow
from surgery.errors import ArgumentError, CorruptFile, UnknownFormat
from surgery.files import check_readable, check_target, replacing
from surgery.graph.layout import units

BLOCK = 1 << 22
"""Bytes that are worked on at once."""

_OBSERVATION = ("observation", "observations", "obs")
_ACTION = ("action", "actions")
_PREFIXES = ("", "next_", "final_")


@dataclass(frozen=True)
class Migrated:
    """What became of a file.

    Attributes:
      arrays: name -> number of observations carried over.
      lost: of these, how many did not hold the constant of a retired feature: the new model sees them otherwise.
      actions: arrays whose actions have new numbers.
    """

    arrays: Mapping[str, int]
    lost: int
    actions: tuple[str, ...] = ()


def migrate(plan: Plan, source: str | Path, target: str | Path, *, force: bool = False) -> Migrated:
    """Write a recording as the changed model would have seen it.

    New features are zero, retired ones are left out, and the order follows; numbers of actions follow too where actions
    stand elsewhere. Everything else is copied as it is. Arrays are called like the model's inputs, or `obs`,
    `observation(s)`, with `next_` or `final_` before it if need be; observations packed to bits (`packed`,
    `obs_shape`) stay packed.

    Args:
      plan: what is done to the model. source: an `.npz` of plain arrays, rows first.

    Returns:
      What was changed.

    Raises:
      ArgumentError: the plan changes no observation; no array that it could belong to, or one of another shape.
      UnknownFormat, CorruptFile: no `.npz`, or one with objects or damage in it.
      FileError: the target is there already, or cannot be written.
    """
    source, target = Path(source), Path(target)
    check_readable(source)
    check_target(target, force, [source])
    ports = {port.name: port for port in plan.ports if port.side == "input"}
    if not ports:
        raise ArgumentError(
            f"this plan ('{plan.operation}') changes no observation: the recording fits as it is"
        )
    try:
        with zipfile.ZipFile(source) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            job = _Job(plan, ports, archive, members)
            wanted = job.observations()
            with replacing([target], force=force, needed=0) as (temporary,):
                return job.write(temporary, wanted)
    except zipfile.BadZipFile as error:
        raise UnknownFormat(f"'{source}' is not an .npz file: {error}") from None
    except (ValueError, EOFError) as error:
        raise CorruptFile(f"'{source}' holds an array that cannot be read: {error}") from None


@dataclass
class _Job:
    plan: Plan
    ports: Mapping[str, PortEdit]
    archive: zipfile.ZipFile
    members: Mapping[str, str]
    lost: int = 0

    def observations(self) -> dict[str, PortEdit]:
        """Array -> the input that it was recorded from."""
        found: dict[str, PortEdit] = {}
        for name, port in self.ports.items():
            known = (name, *(_OBSERVATION if len(self.ports) == 1 else ()))
            own = [prefix + word for word in dict.fromkeys(known) for prefix in _PREFIXES]
            found |= {array: port for array in own if array in self.members}
        if not found:
            raise ArgumentError(
                f"no array of the recording belongs to {', '.join(self.ports)}",
                where={"arrays": ", ".join(self.members)},
                hint="name arrays like the model's inputs, or obs and next_obs",
            )
        return found

    def write(self, temporary: Path, wanted: Mapping[str, PortEdit]) -> Migrated:
        packed, counts = self._packed(), dict[str, int]()
        renumbered = {n: m for n in _ACTION if n in self.members and (m := self._renumbering()) is not None}
        with zipfile.ZipFile(temporary, "w", allowZip64=True) as out:
            for name, member in self.members.items():
                info = zipfile.ZipInfo(member, self.archive.getinfo(member).date_time)
                info.compress_type = self.archive.getinfo(member).compress_type
                with self.archive.open(member) as old, out.open(info, "w", force_zip64=True) as new:
                    if name in wanted:
                        counts[name] = self._carry(old, new, wanted[name], packed)
                    elif name == "obs_shape" and len(self.ports) == 1:
                        _put(new, self._shape(np.lib.format.read_array(old, allow_pickle=False)))
                    elif name in renumbered:
                        _put(new, renumbered[name][np.lib.format.read_array(old, allow_pickle=False)])
                    else:
                        shutil.copyfileobj(old, new, BLOCK)
        return Migrated(counts, self.lost, tuple(renumbered))

    def _packed(self) -> tuple[int, ...] | None:
        """The shape of observations that are packed to bits; None if they are not."""
        if "packed" not in self.members or not bool(self._small("packed")):
            return None
        if "obs_shape" not in self.members:
            raise CorruptFile("the observations are packed into bits, but no 'obs_shape' gives their shape")
        return tuple(int(n) for n in self._small("obs_shape"))

    def _small(self, name: str) -> Array:
        with self.archive.open(self.members[name]) as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    def _shape(self, old: Array) -> Array:
        """`obs_shape` with its sizes changed; it may count the rows too."""
        (port,) = self.ports.values()
        rank = len(port.axes)
        sizes = np.ones(rank, np.int64)
        tail = old[-(rank - 1) :]
        if tail.size != rank - 1:
            raise CorruptFile(f"'obs_shape' is {old.tolist()}, the input has {rank - 1} axes")
        sizes[1:] = tail
        new = grow(self.plan, {port.name: np.zeros(sizes, bool)})[port.name].shape[1:]
        return np.concatenate([old[: old.size - (rank - 1)], new]).astype(old.dtype)

    def _carry(self, old: IO[bytes], new: IO[bytes], port: PortEdit, packed: tuple[int, ...] | None) -> int:
        shape, dtype = _header(old)
        rows = packed if packed is not None else shape
        inner = rows[len(rows) - (len(port.axes) - 1) :]
        lead = rows[: len(rows) - (len(port.axes) - 1)]
        if len(rows) < len(port.axes):
            raise ArgumentError(f"a recording of shape {list(rows)} does not fit input '{port.name}'")
        kind = np.dtype(np.uint8 if packed is not None else dtype)
        after = grow(self.plan, {port.name: np.zeros((1, *inner), kind)})[port.name].shape[1:]
        count, size = int(np.prod(lead, dtype=np.int64)), int(np.prod(inner, dtype=np.int64))
        total = -(-count * int(np.prod(after, dtype=np.int64)) // 8)
        _start(new, (total,) if packed is not None else (*lead, *after), dtype)
        for block in _blocks(old, count, size, dtype, packed is not None):
            observed = block.reshape(-1, *inner)
            self.lost += self._differ(observed, port)
            carried = grow(self.plan, {port.name: observed})[port.name]
            carried = np.packbits(carried.reshape(-1) != 0) if packed is not None else carried
            new.write(np.ascontiguousarray(carried.astype(dtype, copy=False)).tobytes())
        return count

    def _differ(self, rows: Array, port: PortEdit) -> int:
        """Rows in which a retired feature does not hold its constant."""
        wrong = np.zeros(len(rows), bool)
        for edit in self.plan.spaces:
            for k, axis in enumerate(port.axes):
                if not any(part.space == edit.space for part in units(axis)):
                    continue
                unit, _ = units_along(axis, edit.space)
                for old, value in edit.folded:
                    if value is not None:
                        held = np.take(rows, np.flatnonzero(unit == old), axis=k)
                        wrong |= (held != held.dtype.type(value)).reshape(len(rows), -1).any(1)
        return int(wrong.sum())

    def _renumbering(self) -> Array | None:
        """The new number of every old action; None where all stay the same."""
        for edit in self.plan.spaces:
            if edit.start is not None and edit.start.kind != "zero":
                first = np.flatnonzero(~edit.added)
                order = np.zeros(edit.before, np.int64)
                order[np.array(edit.source)[first]] = first
                return None if np.array_equal(order, np.arange(edit.before)) else order
        return None


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise UnknownFormat("an array of Python objects, which are not read", hint="save plain arrays")
    if fortran and len(shape) > 1:
        raise UnknownFormat("an array in column order", hint="save it with numpy.ascontiguousarray")
    return tuple(int(n) for n in shape), dtype


def _blocks(file: IO[bytes], rows: int, size: int, dtype: np.dtype[Any], packed: bool) -> Iterator[Array]:
    """Rows by blocks; of packed ones a multiple of eight, so that every block begins with a byte."""
    width = size / 8 if packed else size * dtype.itemsize
    step = max(8, int(BLOCK / max(width, 1)) // 8 * 8)
    for start in range(0, rows, step):
        count = min(step, rows - start)
        length = -(-count * size // 8) if packed else count * size * dtype.itemsize
        data = file.read(length)
        if len(data) != length:
            raise CorruptFile(f"a recording of {rows} rows ends after {start}")
        array = np.frombuffer(data, dtype)
        yield np.unpackbits(array)[: count * size] if packed else array


def _start(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_2_0(file, {"descr": descr, "fortran_order": False, "shape": shape})


def _put(file: IO[bytes], array: Array) -> None:
    np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
