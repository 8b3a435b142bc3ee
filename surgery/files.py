"""Writing files so that a reader sees either the old one or the new one, whole."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from surgery.errors import FileError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REASONS = {
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ENOENT: "no such file or folder",
    errno.EISDIR: "it is a folder",
    errno.ENOTDIR: "a part of its path is not a folder",
}


@contextlib.contextmanager
def replacing(
    targets: Sequence[Path], *, force: bool = False, needed: int = 0, sources: Iterable[Path] = ()
) -> Iterator[list[Path]]:
    """Give one temporary path per target; on a clean exit, move them all into place.

    Each temporary file lies beside its target, is synced to the disk, and is then renamed over it, in the
    order given: the last target is the commit point. Any exception removes the temporary files and leaves the
    targets as they were. A killed process may leave a hidden `.surgery-*.part` file, never half a target.

    Args:
      targets: the files to write; a symbolic link is replaced, not followed.
      force: replace targets that exist.
      needed: bytes that will be written, in all; checked against the free space first.
      sources: files that must not be written to, even with `force`.

    Raises:
      FileError: a target exists, is a folder, is one of `sources`, lies in a folder that is missing or cannot
        be written to, or the disk is full.
    """
    temporary: list[Path] = []
    try:
        for target in targets:
            check_target(target, force, sources)
        _check_space(targets, needed)
        for target in targets:
            temporary.append(_create_beside(target))
        yield list(temporary)
        for path in temporary:
            _sync(path)
        for path, target in zip(temporary, targets, strict=True):
            path.replace(target)
        for folder in dict.fromkeys(target.parent for target in targets):
            _sync(folder)
    except OSError as error:
        raise write_error(error, targets[-1]) from error
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)


def write_error(error: OSError, path: Path) -> FileError:
    """The error that a user sees when writing `path` failed."""
    if error.errno in _FULL:
        return FileError(
            f"cannot write {path}: the disk is full", hint="free some space, or write to another folder"
        )
    return FileError(f"cannot write {path}: {_reason(error)}", hint="write to another folder")


def read_error(error: OSError, path: Path) -> FileError:
    """The error that a user sees when reading `path` failed."""
    return FileError(f"cannot read {path}: {_reason(error)}")


def check_readable(path: Path) -> None:
    """Refuse a path that is not a file that can be read.

    Raises:
      FileError: missing, a folder, a special file, or not readable.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise FileError(f"{path} is a folder, not a file", hint=_inside(path))
        if not stat.S_ISREG(mode):
            raise FileError(f"{path} is not a regular file")
        with path.open("rb"):
            pass
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist", hint=_near(path)) from error
    except OSError as error:
        raise read_error(error, path) from error


def check_target(target: Path, force: bool, sources: Iterable[Path]) -> None:
    """Raise FileError if no file can be put there: a folder, an input, an old file without `force`, no parent."""
    folder = target.parent
    if not folder.is_dir():
        reason = "is not a folder" if folder.exists() else "does not exist"
        raise FileError(f"cannot write {target}: {folder} {reason}", hint=f"mkdir -p {folder}")
    if target.is_dir():
        raise FileError(
            f"cannot write {target}: it is a folder", hint=f"give a file name: {target / 'model.onnx'}"
        )
    if not target.is_symlink() and target.exists() and not target.is_file():
        raise FileError(f"cannot write {target}: it is not a regular file")
    for source in sources:
        if target.exists() and source.exists() and target.samefile(source):
            raise FileError(f"cannot write {target}: it is the input", hint="give another output with -o")
    if not force and (target.exists() or target.is_symlink()):
        raise FileError(f"cannot write {target}: it exists", hint="pass --force (force=True) to replace it")


def _check_space(targets: Sequence[Path], needed: int) -> None:
    free = shutil.disk_usage(targets[-1].parent).free
    if needed > free:
        raise FileError(
            f"cannot write {targets[-1]}: {needed:,} bytes needed, {free:,} free on the disk",
            hint="free some space, or write to another folder",
        )


def _create_beside(target: Path) -> Path:
    # Short names, so that the longest name that the file system takes can still be written.
    for number in itertools.count():
        path = target.parent / f".surgery-{os.getpid()}-{number}.part"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            continue
        if target.is_file() and not target.is_symlink():
            os.fchmod(descriptor, stat.S_IMODE(target.stat().st_mode))
        os.close(descriptor)
        return path
    raise AssertionError("unreachable")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: OSError) -> str:
    return _REASONS.get(error.errno or 0, error.strerror or str(error))


def _inside(folder: Path) -> str | None:
    found = sorted(path.name for path in folder.glob("*.onnx"))[:3]
    return f"did you mean {', '.join(str(folder / name) for name in found)}?" if found else None


def _near(path: Path) -> str | None:
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist"
    found = sorted(other.name for other in path.parent.glob("*.onnx"))[:5]
    return f"{path.parent} holds: {', '.join(found)}" if found else None
