"""A run's own checkpoints: whole or not there, the newest good one found again after any kind of death.

    config.json  student.onnx  best.onnx  metrics.jsonl  tensorboard/
    checkpoints/000012.pt      tensors and numbers; read with `weights_only`, executes nothing
    replay/  teacher_replay/   segments, which the checkpoints list

A segment is written before the checkpoint that lists it, and deleted only after one that does not.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from filelock import FileLock, Timeout

from surgery.errors import ArgumentError, CorruptFile, FileError, first_line
from surgery.files import check_readable, replacing, write_error
from surgery.json_values import Json, dumps, loads

SCHEMA = 6
"""Of a checkpoint's record; none of another schema is gone on with."""
KEPT = 2
"""Checkpoints that are kept: the newest, and one more should it be damaged."""
CONFIG, CHECKPOINTS, STUDENT, BEST = "config.json", "checkpoints", "student.onnx", "best.onnx"


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read back.

    Attributes:
      tensors: nested dictionaries of tensors, as state dicts are.
      record: everything else.
      path: its file.
    """

    tensors: Mapping[str, Any]
    record: Mapping[str, Json]
    path: Path


@contextlib.contextmanager
def owning(folder: Path) -> Iterator[None]:
    """Hold a run directory, made if it is missing, against a second process.

    Raises:
      FileError: it cannot be made.
      ArgumentError: another process holds it.
    """
    lock = FileLock(folder / ".lock")
    try:
        (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ArgumentError(
            f"another process is running in {folder}", hint="wait for it, or give another folder with -o"
        ) from error
    except OSError as error:
        raise write_error(error, folder) from error
    try:
        yield
    finally:
        lock.release()


def agree_on(folder: Path, config: Mapping[str, Json]) -> None:
    """Write `config.json`, or check that the one that is there says the same; one that has saved nothing binds nobody.

    Raises:
      ArgumentError: the run was started with another configuration; says what differs.
      CorruptFile: it is damaged.
    """
    path = folder / CONFIG
    begun = any((folder / CHECKPOINTS).glob("*.pt"))
    if begun and not path.exists():
        raise CorruptFile(f"{folder} holds checkpoints but no {CONFIG}", hint="start in another folder")
    if not begun:
        with replacing([path], force=True) as [temporary]:
            temporary.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return
    check_readable(path)
    old = loads(path.read_text(encoding="utf-8", errors="replace"), CONFIG)
    differing = dict(_differences(old, loads(dumps(config), CONFIG)))
    if len(differing) > 1:
        differing.pop("student", None)  # an untrained one follows from all the rest
    if differing:
        listed = list(differing.values())
        more = f"; and {len(listed) - 5} more" if len(listed) > 5 else ""
        raise ArgumentError(
            f"{folder} holds a run of another configuration: {'; '.join(listed[:5])}{more}",
            hint="repeat its command to continue it, or give another folder with -o",
        )


def _differences(old: Json, new: Json, name: str = "") -> Iterator[tuple[str, str]]:
    """What is called by which name, and in words how it was and is now."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield name, f"{name} was {_brief(old)}, now {_brief(new)}"


def _brief(value: Json) -> str:
    """Of a digest its beginning."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else json.dumps(value)


def save(folder: Path, number: int, tensors: Mapping[str, Any], record: Mapping[str, Json]) -> Path:
    """Write checkpoint `number`, then let older ones go.

    Raises:
      FileError: the disk is full, or the folder cannot be written to; older checkpoints stand.
    """
    path = folder / CHECKPOINTS / f"{number:06d}.pt"
    text = dumps({"schema": SCHEMA, **record})
    buffer = io.BytesIO()  # torch's own writer hides why a write failed
    torch.save({"tensors": _on_host(tensors), "record": text}, buffer)
    with replacing([path], force=True, needed=buffer.tell()) as [temporary]:
        temporary.write_bytes(buffer.getbuffer())
    for old in _numbered(folder)[KEPT:]:
        old.unlink(missing_ok=True)
    return path


def _on_host(tensors: Any) -> Any:  # noqa: ANN401
    """The same, so that a checkpoint does not say what it was written on."""
    if isinstance(tensors, Mapping):
        return {name: _on_host(one) for name, one in tensors.items()}
    return tensors.cpu() if isinstance(tensors, torch.Tensor) else tensors


def newest(folder: Path) -> tuple[Saved | None, tuple[str, ...]]:
    """The newest checkpoint that is whole, and what was wrong with those passed over.

    Raises:
      CorruptFile: there are checkpoints, and none is whole and of this schema.
    """
    problems: list[str] = []
    for path in _numbered(folder):
        try:
            return _read(path), tuple(problems)
        except FileError as error:
            problems.append(error.message)
    if problems:
        raise CorruptFile(
            f"no checkpoint in {folder} can be read: {problems[0]}",
            hint=f"start in another folder; {STUDENT} there is a model like any other: surgery finetune …",
        )
    return None, ()


def _numbered(folder: Path) -> list[Path]:
    """Checkpoints, newest first."""
    found = [path for path in (folder / CHECKPOINTS).glob("*.pt") if path.stem.isdecimal()]
    return sorted(found, key=lambda path: int(path.stem), reverse=True)


def _read(path: Path) -> Saved:
    check_readable(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        tensors, text = content["tensors"], content["record"]
    except Exception as error:  # on damaged bytes torch's unpickler raises whatever it stumbles over
        raise CorruptFile(f"{path} is damaged: {first_line(error)}") from error
    record = dict(loads(cast(str, text), f"record of {path.name}"))
    if (schema := record.pop("schema", None)) != SCHEMA:
        raise FileError(f"{path} has schema {schema}, this version continues only from schema {SCHEMA}")
    return Saved(tensors, record, path)


def sweep(folder: Path, listed: Mapping[str, frozenset[str]]) -> None:
    """Delete segments that no kept checkpoint lists, and what killed writers have left.

    Args:
      folder: the run's.
      listed: subfolder -> names of segments that are still needed.
    """
    for name, needed in listed.items():
        for path in (folder / name).glob("*.npz"):
            if path.name not in needed:
                path.unlink(missing_ok=True)
    for place in (folder, folder / CHECKPOINTS, *(folder / name for name in listed)):
        for path in place.glob(".surgery-*.part"):
            path.unlink(missing_ok=True)
