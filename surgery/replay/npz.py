"""Reading `.npz` files that may be damaged or hostile: plain arrays, or an error."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from surgery.arrays import Array
from surgery.errors import CorruptFile
from surgery.files import check_readable


def read_npz(path: Path, what: str) -> dict[str, Array]:
    """All arrays of a file; nothing is unpickled.

    Raises:
      FileError: it cannot be read.
      CorruptFile: no `.npz`, damaged, or with objects in it.
    """
    check_readable(path)
    try:
        with path.open("rb") as raw:
            if raw.read(4) != b"PK\x03\x04":
                raise CorruptFile(f"{path} is not a {what}: it is not an .npz file")
            raw.seek(0)
            with np.load(raw, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
    except (OSError, EOFError, ValueError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise CorruptFile(f"{path} is not a {what}: {error}") from error
