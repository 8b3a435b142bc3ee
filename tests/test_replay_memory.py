"""What a replay takes of memory, and what of it is available, are said before it is made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from surgery.errors import ArgumentError
from surgery.replay import Layout, Replay, Window, check_memory, estimate, memory


def test_memory_is_said_before_it_is_taken():
    assert estimate(1_000_000, (84, 84), "uint8") == pytest.approx(7.07e9, rel=0.01)
    needed = estimate(10**9, (84, 84), "uint8")
    with pytest.raises(ArgumentError, match=r"takes 7072\.\d GB of memory, [\d.]+ GB is available") as error:
        check_memory(10**9, needed)
    assert error.value.hint.startswith("keep fewer frames: --set replay=")
    check_memory(1000, estimate(1000, (84, 84), "uint8"))


def test_nine_tenths_of_what_is_available_may_be_taken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "available", lambda: 1000)
    check_memory(30, 900)
    with pytest.raises(ArgumentError) as error:
        check_memory(30, 910)
    assert error.value.hint == "keep fewer frames: --set replay=29"


@pytest.mark.parametrize(
    ("frames", "beside", "setting", "hint"),
    [(30, 0, "teacher_data", "keep fewer frames: --set teacher_data=29"),
     (30, 0, None, "at most 29 recorded frames fit"),
     (30, 445, "replay", "keep fewer frames: --set replay=15")],
)  # fmt: skip
def test_what_fits_is_said_of_the_setting_that_decides_it(
    frames: int, beside: int, setting: str | None, hint: str, monkeypatch: pytest.MonkeyPatch
):
    """And it does fit, beside what else is there."""
    monkeypatch.setattr(memory, "available", lambda: 1000)
    with pytest.raises(ArgumentError) as error:
        check_memory(frames, 910, beside=beside, setting=setting)
    assert error.value.hint == hint
    fits = int("".join(c for c in hint.partition("=")[2] or hint if c.isdigit()))
    check_memory(fits, 910 * fits // frames, beside=beside, setting=setting)


def arrays_of(held: object) -> Iterator[np.ndarray]:
    for value in vars(held).values():
        if isinstance(value, np.ndarray):
            yield value
        elif type(value).__module__.startswith("surgery.replay"):
            yield from arrays_of(value)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"scores": 3},
        {"prioritised": True},
        {"window": Window(2, 8, 5)},
        {"window": Window(2, 1, 5), "scores": 2},
    ],
)
def test_a_replay_takes_what_was_said(given: dict):
    replay = Replay(Layout(4, (3,), "uint8"), 4096, **given)
    taken = sum(array.nbytes for array in arrays_of(replay) if array.size > 100)
    said = estimate(4096, (3,), "uint8", **given)
    assert said - taken == (16 * 4096 if given.get("prioritised") else 0)  # a tree may be twice as large


@pytest.mark.parametrize(
    ("machine", "limit", "wanted"),
    [(9 << 20, str(8 << 30), 5 << 30), (3 << 20, str(8 << 30), 3 << 30), (3 << 20, "max", 3 << 30),
     (None, str(8 << 30), 5 << 30), (None, "max", None), (3 << 20, None, 3 << 30)],
)  # fmt: skip
def test_what_files_take_of_a_containers_memory_is_available(
    machine: int | None,
    limit: str | None,
    wanted: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(memory, "MACHINE", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "GROUP", tmp_path)
    if machine is not None:
        (tmp_path / "meminfo").write_text(f"MemTotal: 99 kB\nMemFree: 1 kB\nMemAvailable: {machine} kB\n")
    if limit is not None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text(f"{6 << 30}\n")
        (tmp_path / "memory.stat").write_text(
            f"anon {3 << 30}\nfile {3 << 30}\nactive_file {1 << 30}\ninactive_file {2 << 30}\n"
        )
    assert memory.available() == wanted
