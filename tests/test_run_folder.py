"""What the folder of a run holds: who may go on in it, what is kept, what is passed over."""

from __future__ import annotations

import functools
import itertools
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import surgery
from surgery.architectures import new
from surgery.cli._training import text_of
from surgery.distill import Outcome, execute, store
from surgery.distill.journal import Journal, Pace
from surgery.distill.run import config
from surgery.distill.store import owning
from surgery.errors import ArgumentError, CorruptFile, Refused
from surgery.interface import Environment
from tests.small_runs import job_of, lines, weights


@pytest.fixture
def teacher(teachers: Path) -> surgery.Checkpoint:
    return surgery.load(teachers / "cartpole-dqn.onnx")


@pytest.fixture(scope="module")
def first(teachers: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Of a run that has ended."""
    teacher = surgery.load(teachers / "cartpole-dqn.onnx")
    return execute(job_of(teacher, tmp_path_factory.mktemp("run")))


@pytest.fixture
def finished(first: Outcome, tmp_path: Path) -> Path:
    """Its folder, once more, to go on in."""
    return Path(shutil.copytree(first.folder, tmp_path / "run"))


def test_a_checkpoint_before_the_first_new_line_of_metrics_still_says_where_they_end(tmp_path: Path):
    """Else the lines of a process that was killed after it would be told twice."""
    sizes = []
    for step, kept in enumerate((0, 1, 1, 2)):
        journal = Journal(tmp_path, size=sizes[kept - 1] if kept else 0)
        assert journal.size == (sizes[kept - 1] if kept else 0)
        for more in range(2):
            journal.write({"kind": "train", "phase": "online", "frames": step, "more": more})
            sizes = [*sizes[: kept + more], journal.size]
        journal.close()
    assert [(line["frames"], line["more"]) for line in lines(tmp_path)] == [(0, 0), (2, 0), (3, 0), (3, 1)]


def test_a_line_of_metrics_is_there_at_once_and_is_strict_json(tmp_path: Path):
    journal = Journal(tmp_path)
    given = {
        "kind": "train",
        "phase": "online",
        "frames": 0,
        "loss": float("nan"),
        "q": -float("inf"),
        "all": 1.5,
    }
    journal.write(given)
    assert lines(tmp_path) == [{**given, "loss": None, "q": None}]
    journal.close()


def test_a_rate_is_of_what_this_process_has_done_in_this_phase(monkeypatch: pytest.MonkeyPatch):
    clock = iter([100.0, 102.0, 110.0, 120.0, 125.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    pace = Pace()  # of a run that goes on from 5,000
    told = [("offline", 5000), ("offline", 5040), ("offline", 5100), ("online", 8), ("online", 28)]
    assert [pace.rate(phase, done) for phase, done in told] == [None, 20.0, 10.0, None, 4.0]


def test_tensorboard_shows_what_metrics_hold_also_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Offline over gradient steps, online over frames."""
    seconds = itertools.count(10**9)  # by which its files are ordered
    monkeypatch.setattr(time, "time", lambda: float(next(seconds)))
    told = [("offline", step, 0) for step in (10, 20, 30, 40)] + [
        ("online", 40, step) for step in (0, 8, 16, 24)
    ]
    size, sizes = 0, {}
    for begin, end in (
        (0, 3),
        (2, 7),
        (5, 8),
    ):  # each process but the last one dies, and the next goes on from before
        journal = Journal(tmp_path, size=sizes.get(begin, size))
        for k, (phase, updates, frames) in enumerate(told[begin:end], begin):
            sizes[k] = journal.size
            journal.write(
                {"kind": "train", "phase": phase, "updates": updates, "frames": frames, "loss": k + end / 10}
            )
        journal.close()
    shown = []
    for folder, tag, unit in (("offline", "train_offline/loss", "updates"), (".", "train/loss", "frames")):
        events = EventAccumulator(str(tmp_path / "tensorboard" / folder)).Reload()
        assert events.Tags()["scalars"] == [tag]
        shown += [(unit, one.step, pytest.approx(one.value)) for one in events.Scalars(tag)]
    units = {"offline": "updates", "online": "frames"}
    assert [(units[one["phase"]], one[units[one["phase"]]], one["loss"]) for one in lines(tmp_path)] == shown
    assert len(shown) == 8


def test_a_finished_run_is_reported_and_not_repeated(
    teacher: surgery.Checkpoint, first: Outcome, finished: Path
):
    notes: list[str] = []
    second = execute(job_of(teacher, finished), note=notes.append)
    assert (second.frames, second.updates, second.mean_return) == (
        first.frames,
        first.updates,
        first.mean_return,
    )
    assert "continuing from 1,000 frames" in notes[0]
    assert lines(finished) == lines(first.folder)
    had, kept = weights(first.student), weights(second.student)
    assert all((kept[name] == had[name]).all() for name in had)


def test_what_became_of_a_run_names_a_better_student_than_its_last(first: Outcome):
    done = replace(first, mean_return=3.0, best_return=5.0, best_frames=800)
    assert "(teacher 500, random " in text_of(done)
    assert "best 5 after 800 frames: best.onnx)" in text_of(done)
    assert "best" not in text_of(replace(done, mean_return=5.0))


def test_a_run_of_another_configuration_is_refused(teacher: surgery.Checkpoint, finished: Path):
    with pytest.raises(ArgumentError, match=r"another configuration: settings\.n_step was 3, now 5") as error:
        execute(job_of(teacher, finished, n_step=5))
    assert "another folder" in str(error.value.hint)
    with pytest.raises(ArgumentError, match=r"configuration: settings\.seed was 0, now 1\n"):
        execute(job_of(teacher, finished, seed=1))
    with pytest.raises(ArgumentError, match=r'configuration: architecture was "\S+", now "mlp-16"\n'):
        execute(job_of(teacher, finished, to="mlp-16"))
    told = config(job_of(teacher, finished))
    store.agree_on(finished, told)
    with pytest.raises(ArgumentError, match=r"configuration: student was \w{12}, now 0{12}\n"):
        store.agree_on(finished, {**told, "student": 64 * "0"})  # of all that is said only that: another one


class Payload:
    """What a pickle runs as it is read."""

    def __reduce__(self) -> tuple:
        return Path.mkdir, (Path("executed"),)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    store.save(tmp_path, 1, {"student": Payload()}, {})
    with pytest.raises(CorruptFile, match="is damaged"):
        store.newest(tmp_path)
    assert not Path("executed").exists()


def test_what_killed_writers_have_left_is_swept_up(tmp_path: Path):
    places = [tmp_path, tmp_path / "checkpoints", tmp_path / "replay"]
    for place in places:
        place.mkdir(exist_ok=True)
        for name in (".surgery-x.part", "kept.npz", "other.txt"):
            (place / name).touch()
    store.sweep(tmp_path, {"replay": frozenset(["kept.npz"])})
    assert [sorted(one.name for one in place.glob("*.*")) for place in places] == [
        ["kept.npz", "other.txt"]
    ] * 3


def test_a_run_that_has_saved_nothing_may_begin_otherwise(teacher: surgery.Checkpoint, tmp_path: Path):
    untrained = new("mlp-8", observation=(4,), actions=2, seed=1).replace(
        environment=Environment("CartPole-v1")
    )
    with pytest.raises(Refused):
        execute(job_of(untrained, tmp_path))
    assert execute(job_of(teacher, tmp_path, method="kickstarting")).frames == 1000
    assert json.loads((tmp_path / "config.json").read_text())["settings"]["method"] == "kickstarting"


def test_two_processes_cannot_share_a_run(teacher: surgery.Checkpoint, tmp_path: Path):
    with owning(tmp_path), pytest.raises(ArgumentError, match="another process is running"):
        execute(job_of(teacher, tmp_path))


def test_every_kept_checkpoint_has_all_its_segments_at_any_time(teacher: surgery.Checkpoint, tmp_path: Path):
    missing: list[object] = []

    @functools.cache
    def listed(path: Path) -> list[Path]:
        segments = json.loads(torch.load(path, weights_only=True)["record"])["segments"]
        return [tmp_path / name / one["file"] for name, some in segments.items() for one in some]

    def check(_: object) -> None:
        for path in (tmp_path / "checkpoints").glob("*.pt"):  # none is ever written again
            missing.extend((path.name, segment) for segment in listed(path) if not segment.is_file())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("surgery.distill.loop.STATUS_SECONDS", 0.0)
        execute(job_of(teacher, tmp_path, replay=300, save_seconds=0.02), watch=check)
    assert not missing
    assert not list((tmp_path / "teacher_replay").glob("*"))
    kept = [torch.load(path, weights_only=True)["record"] for path in (tmp_path / "checkpoints").glob("*.pt")]
    needed = {one["file"] for record in kept for one in json.loads(record)["segments"]["replay"]}
    assert {path.name for path in (tmp_path / "replay").iterdir()} == needed


@pytest.mark.parametrize("how", ["truncated", "garbage"])
def test_a_damaged_checkpoint_is_passed_over(how: str, teacher: surgery.Checkpoint, finished: Path):
    older, newest = sorted((finished / "checkpoints").glob("*.pt"))
    data = newest.read_bytes()
    newest.write_bytes(
        {"truncated": data[: len(data) // 2], "garbage": np.random.default_rng(0).bytes(1000)}[how]
    )
    notes: list[str] = []
    outcome = execute(job_of(teacher, finished), note=notes.append)
    assert outcome.frames == 1000
    assert notes[0].startswith(f"skipped: {newest} is damaged")
    older.write_bytes(b"")
    for path in (finished / "checkpoints").glob("*.pt"):
        path.write_bytes(b"PK")
    with pytest.raises(CorruptFile, match=r"no checkpoint in .* can be read"):
        execute(job_of(teacher, finished))


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(0, id="UnpicklingError"),
        pytest.param(17, id="IndexError"),
        pytest.param(54, id="UnicodeDecodeError"),
        pytest.param(62, id="KeyError"),
        pytest.param(941, id="RuntimeError"),
    ],
)
def test_whatever_random_bytes_make_the_unpickler_raise(seed: int, tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "000001.pt"
    path.write_bytes(np.random.default_rng(seed).bytes(1000))
    with pytest.raises(CorruptFile, match=r"no checkpoint in .* can be read: .* is damaged"):
        store.newest(tmp_path)
