"""A replay on disk: append-only compressed segments, each a plain `.npz` that numpy reads without pickle.

A segment holds the rows written since the one before it. Frames are deflated together, so that what stays the same
from frame to frame costs nothing (Atari: 55 to 100 bytes a frame); boolean frames, and those that hold only 0 and 1,
are packed to bits first. A segment is never changed: what a crash leaves unfinished is simply not in the list that
the checkpoint keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from surgery.arrays import Array
from surgery.errors import CorruptFile
from surgery.files import replacing
from surgery.json_values import Fields, Json
from surgery.replay.buffer import Replay
from surgery.replay.npz import read_npz

_COLUMNS = ("frames", "kind", "action", "reward", "terminated", "first")


@dataclass(frozen=True)
class Segment:
    """One file of rows.

    Attributes:
      file: its name in the replay's folder.
      begin: for each environment, how many rows came before it.
      end: for each environment, how many rows there are with it.
    """

    file: str
    begin: tuple[int, ...]
    end: tuple[int, ...]

    def to_json(self) -> Json:
        return asdict(self)

    @staticmethod
    def from_json(record: Json) -> Segment:
        """Raises: CorruptFile."""
        fields = Fields(record, "replay segment")
        begin, end = (tuple(_whole(item) for item in fields.items(name)) for name in ("begin", "end"))
        segment = Segment(fields.text("file"), begin, end)
        fields.done()
        if Path(segment.file).name != segment.file:
            raise CorruptFile(f"the replay segment '{segment.file}' is not in the replay's own folder")
        return segment


def _whole(value: Json) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise CorruptFile(f"a row count of a replay segment is not a whole number: {value!r}")
    return value


def write_segment(replay: Replay, folder: Path, known: Sequence[Segment]) -> tuple[Segment, ...]:
    """Write the rows that no known segment holds; older files are not touched.

    Args:
      replay: only read.
      folder: where its segments lie; made if it is missing.
      known: the segments written so far, oldest first.

    Returns:
      the segments that the replay now consists of: those whose rows have all been overwritten are left out, and
      may be deleted once the caller has recorded the new list.

    Raises:
      FileError: the folder cannot be written to, or the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = np.array(known[-1].end if known else (0,) * replay.layout.envs)
    begin = np.maximum(done, replay.written - replay.length)
    counts = replay.written - begin
    number = int(known[-1].file.partition(".")[0]) + 1 if known else 0
    segment = Segment(f"{number:06d}.npz", tuple(begin.tolist()), tuple(replay.written.tolist()))
    streams = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    columns = replay.export(streams, np.repeat(begin, counts) + within)
    with replacing([folder / segment.file], force=True) as [temporary], temporary.open("wb") as file:
        # NumPy before 2.2 would keep an `allow_pickle` as one more array
        np.savez_compressed(file, **_packed(columns), **replay.pending())  # type: ignore[arg-type]
    alive = [old for old in known if (np.array(old.end) > replay.written - replay.length).any()]
    return (*alive, segment)


def restore(replay: Replay, folder: Path, segments: Sequence[Segment]) -> None:
    """Fill an empty replay with the rows of its segments; open episodes are cut off where the last one ends.

    Raises:
      FileError: a segment is missing.
      CorruptFile: a segment is damaged, or holds other experience than this replay.
    """
    for segment in segments:
        columns = _read(folder / segment.file, replay)
        sizes = np.array(segment.end) - np.array(segment.begin)
        ends = np.cumsum(sizes)
        if len(sizes) != replay.layout.envs or ends[-1] != len(columns["kind"]):
            raise CorruptFile(
                f"{folder / segment.file} does not hold the rows that the list of segments gives"
            )
        replay.written[:] = segment.begin
        states, taken = columns.pop("states", None), 0
        for stream, (size, end) in enumerate(zip(sizes, ends, strict=True)):
            part = {
                name: column[end - size : end]
                for name, column in columns.items()
                if name not in ("expected", "open")
            }
            if states is not None:
                count = replay.beginnings(segment.begin[stream], segment.end[stream])
                part["states"], taken = states[taken : taken + count], taken + count
            replay.append_rows(stream, part)
        replay.resume(columns["expected"], columns["open"])
    replay.cut()


def _packed(columns: Mapping[str, Array]) -> dict[str, Array]:
    frames = columns["frames"]
    record = {**columns, "shape": np.array(frames.shape, np.int64), "dtype": np.array(frames.dtype.name)}
    binary = bool(((frames == 0) | (frames == 1)).all())
    return {**record, "frames": np.packbits(frames != 0), "packed": np.array(True)} if binary else record


def _read(path: Path, replay: Replay) -> dict[str, Array]:
    columns = read_npz(path, "whole segment of a replay")
    try:
        return _unpacked(columns, replay)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFile(f"{path} is not a segment of this replay: {error}") from error


def _unpacked(columns: dict[str, Array], replay: Replay) -> dict[str, Array]:
    shape = tuple(columns.pop("shape").tolist())
    dtype: np.dtype[Any] = np.dtype(str(columns.pop("dtype")))
    layout = replay.layout
    if shape[1:] != layout.frame or dtype != np.dtype(layout.dtype):
        wanted = f"{list(layout.frame)} {layout.dtype}"
        raise ValueError(f"its frames are {list(shape[1:])} {dtype.name}, those of the replay {wanted}")
    if columns.pop("packed", None) is not None:
        size = int(np.prod(shape, dtype=np.int64))
        columns["frames"] = np.unpackbits(columns["frames"], count=size).astype(dtype).reshape(shape)
    if replay.scores and columns["scores"].shape[1:] != (replay.scores,):
        raise ValueError(
            f"its teacher's scores are {list(columns['scores'].shape[1:])}, not [{replay.scores}]"
        )
    if (
        replay.window is not None
        and replay.window.state
        and columns["states"].shape[1:] != (replay.window.state,)
    ):
        raise ValueError(f"its states hold {columns['states'].shape[1]} numbers, not {replay.window.state}")
    names = (*_COLUMNS, "scores") if replay.scores else _COLUMNS
    if any(len(columns[name]) != shape[0] for name in names):
        raise ValueError("its columns differ in length")
    return columns
