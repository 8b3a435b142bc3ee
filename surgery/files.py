"""Writing files and folders so that a reader sees either the old one or the new one, whole."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import shlex
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from surgery.errors import FileError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""linux/fcntl.h, linux/fs.h"""
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


@contextlib.contextmanager
def replacing_folder(
    target: Path,
    *,
    owned: Callable[[Path], bool],
    force: bool = False,
    needed: int = 0,
    sources: Iterable[Path] = (),
) -> Iterator[Path]:
    """Give a temporary folder; on a clean exit, move it into place.

    It lies beside the target, is synced to the disk with all that it holds, and is renamed; an old folder is
    exchanged for it in one step where the system can (Linux), else moved aside first. Any exception removes the
    temporary folder and leaves the target as it was. A killed process may leave a hidden `.surgery-*.part` folder,
    never half a target.

    Args:
      target: the folder to write.
      owned: whether a folder that is there already may be replaced with `force`, for all that it holds goes: true of
        the kind of folder that is written, and of nothing else.
      force: replace a folder that exists.
      needed: bytes that will be written, in all; checked against the free space first.
      sources: files and folders that must not be written to, even with `force`.

    Raises:
      FileError: the target exists, is of another kind, is or lies in one of `sources` or holds one, its parent is
        missing or cannot be written to, or the disk is full.
    """
    temporary: Path | None = None
    sources = list(sources)
    try:
        check_target(target, force, sources, owned=owned)
        _check_apart(target, sources)
        _check_space([target], needed)
        temporary = _create_beside(target, folder=True)
        yield temporary
        for folder, _, names in os.walk(temporary, topdown=False):
            for name in (*names, ""):
                _sync(Path(folder, name))
        if target.is_dir():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
            _exchange(temporary, target)
        else:
            temporary.rename(target)
        _sync(target.parent)
    except OSError as error:
        raise write_error(error, target) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


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


def check_readable(path: Path, *, folder: bool = False) -> None:
    """Refuse a path that is not a file that can be read.

    Args:
      folder: whether it may be a folder, too.

    Raises:
      FileError: missing, a folder, a special file, or not readable.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            if folder:
                os.scandir(path).close()
                return
            raise FileError(f"{path} is a folder, not a file", hint=models_in(path))
        if not stat.S_ISREG(mode):
            raise FileError(f"{path} is not a regular file")
        with path.open("rb"):
            pass
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist", hint=_near(path)) from error
    except OSError as error:
        raise read_error(error, path) from error


def check_target(
    target: Path, force: bool, sources: Iterable[Path], *, owned: Callable[[Path], bool] | None = None
) -> None:
    """Raise FileError if nothing can be put there: a folder, an input, an old file without `force`, no parent.

    Args:
      owned: whether a folder that is there may be replaced; None where a file is to be written.
    """
    folder = target.parent
    if not folder.is_dir():
        reason = "is not a folder" if folder.exists() else "does not exist"
        hint = _unexpanded(target) or f"mkdir -p {shlex.quote(str(folder))}"
        raise FileError(f"cannot write {target}: {folder} {reason}", hint=hint)
    if target.is_dir() and (owned is None or target.is_symlink() or not owned(target)):
        raise FileError(
            f"cannot write {target}: it is a folder", hint=f"give a file name: {target / 'model.onnx'}"
        )
    if not target.is_symlink() and target.exists() and not (target.is_file() or target.is_dir()):
        raise FileError(f"cannot write {target}: it is not a regular file")
    for source in sources:
        if target.exists() and source.exists() and target.samefile(source):
            raise FileError(f"cannot write {target}: it is the input", hint="give another output")
    if not force and (target.exists() or target.is_symlink()):
        raise FileError(f"cannot write {target}: it exists", hint="pass --force (force=True) to replace it")


def _check_apart(target: Path, sources: Iterable[Path]) -> None:
    """Refuse a folder in an input, or around one."""
    if target.is_file():
        raise FileError(f"cannot write the folder {target}: a file of that name exists")
    place = target.resolve()
    for source in (source.resolve() for source in sources):
        if place.is_relative_to(source) or source.is_relative_to(place):
            raise FileError(
                f"cannot write {target}: it contains the input {source}, or lies inside it",
                hint="give another output",
            )


def _check_space(targets: Sequence[Path], needed: int) -> None:
    free = shutil.disk_usage(targets[-1].parent).free
    if needed > free:
        raise FileError(
            f"cannot write {targets[-1]}: {needed:,} bytes needed, {free:,} free on the disk",
            hint="free some space, or write to another folder",
        )


def _create_beside(target: Path, *, folder: bool = False) -> Path:
    # Short names, so that the longest name that the file system takes can still be written.
    for number in itertools.count():
        path = target.parent / f".surgery-{os.getpid()}-{number}.part"
        try:
            if folder:
                path.mkdir()
                return path
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            continue
        os.close(descriptor)
        if target.is_file() and not target.is_symlink():
            path.chmod(stat.S_IMODE(target.stat().st_mode))
        return path
    raise AssertionError("unreachable")


def _exchange(first: Path, second: Path) -> None:
    """Let two folders of one parent change names, at once where the system can."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if rename is not None:
        names = os.fsencode(first.absolute()), os.fsencode(second.absolute())
        if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
            return
        if ctypes.get_errno() not in (errno.ENOSYS, errno.EINVAL):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    aside = first.with_name(f"{first.name}.old")
    second.rename(aside)
    try:
        first.rename(second)
    except BaseException:
        aside.rename(second)
        raise
    aside.rename(first)


def _sync(path: Path) -> None:
    """Windows syncs what may be written to, and no folders."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: OSError) -> str:
    return _REASONS.get(error.errno or 0, error.strerror or str(error))


def models_in(folder: Path) -> str | None:
    """The hint that names the models in a folder."""
    found = sorted(path.name for path in folder.glob("*.onnx"))[:3]
    return f"did you mean {', '.join(str(folder / name) for name in found)}?" if found else None


def _unexpanded(path: Path) -> str | None:
    """The hint where a shell was kept from putting the home folder for ~: in quotes, or behind `--out=`."""
    expanded = os.path.expanduser(path)  # noqa: PTH111  pathlib raises where there is no such user
    return None if expanded == str(path) else f"the shell did not expand ~: write {shlex.quote(expanded)}"


def _near(path: Path) -> str | None:
    if not path.parent.is_dir():
        if hint := _unexpanded(path):
            return hint
        return f"the folder {path.parent} does not exist"
    index = path.with_name(f"{path.name}.index")
    if index.is_file():
        return f"name the TensorFlow checkpoint by its index: {index}"
    found = sorted(other.name for other in path.parent.glob("*.onnx"))[:5]
    return f"{path.parent} holds: {', '.join(found)}" if found else None
