"""What lies in a folder that came from elsewhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from surgery.errors import CorruptFile


def files(folder: Path, *, linked: bool = False) -> list[str]:
    """Every file of a folder, relative to it.

    Args:
      linked: whether a link to a file is one, as caches of downloads have them: to be read, never to be copied.

    Raises:
      CorruptFile: there is something else than files and folders, such as a pipe, which nobody ever writes to.
    """
    found = []
    for inner, folders, names in os.walk(folder):
        for entry in (Path(inner, name) for name in (*folders, *names)):
            if (entry.is_symlink() and not linked) or not (entry.is_file() or entry.is_dir()):
                raise CorruptFile(f"'{entry.relative_to(folder)}' is neither a file nor a folder")
        found += [Path(inner, name).relative_to(folder).as_posix() for name in names]
    return sorted(found)


def copy_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copy files of a folder into another one, with the folders that they lie in."""
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
