"""Files that a command is given, checked before any work is done."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import surgery
from surgery import files
from surgery.errors import ArgumentError, FileError, SurgeryError, UnknownFormat
from surgery.files import check_readable
from surgery.json_values import loads

if TYPE_CHECKING:
    import numpy as np

STDIN = Path("-")
PLAN_HINT = "write a plan with: surgery widen … --dry-run --json"


def check_target(target: Path | None, sources: Iterable[Path], *, force: bool) -> Path:
    """The path to write, if it can be written: a file, or the folder of a framework in place of an old one.

    Raises:
      ArgumentError: none is given.
      FileError: it is a folder, one of the sources, or there already and `force` is off; its folder is missing or
        read-only.
    """
    if target is None:
        raise ArgumentError("nothing to write to", hint="name a file with -o OUT, or use --dry-run")
    if str(target) == "-":
        raise ArgumentError(
            "nothing is written to stdout", hint="name a file with -o OUT; for a file called '-': -o ./-"
        )
    files.check_target(target, force, sources, owned=native_folder)
    if not os.access(target.parent, os.W_OK):
        raise FileError(f"cannot write '{target}': the folder is read-only")
    return target


def native_folder(path: Path) -> bool:
    """Whether a path is a folder that a framework takes for one checkpoint."""
    from surgery.adapters import detect

    return path.is_dir() and detect(path) is not None


def read_plan(path: Path) -> surgery.Plan:
    """A plan as `--dry-run --json` prints it, from a file or (`-`) from stdin."""
    if path == STDIN:
        return surgery.Plan.from_json(loads(sys.stdin.read(), "plan"))
    check_readable(path)
    try:
        return surgery.Plan.from_json(loads(path.read_text(encoding="utf-8"), "plan"))
    except UnicodeDecodeError as error:
        raise UnknownFormat(f"{path} is not a plan: it is not text", hint=PLAN_HINT) from error
    except SurgeryError as error:
        raise error.within(plan=path) from None


def read_observations(path: Path | None) -> dict[str, np.ndarray] | None:
    """Recorded inputs, each of shape (samples, *input shape), from an `.npz` of plain arrays."""
    if path is None:
        return None
    import zipfile

    import numpy as np

    check_readable(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UnknownFormat(f"'{path}' holds one nameless array", hint="save it with numpy.savez")
            return {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UnknownFormat(f"'{path}' is not an .npz file of plain arrays") from error
