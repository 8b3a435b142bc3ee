"""What a run is said to take, from a few of its steps."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import surgery
from surgery.distill import Options, plan_distill
from surgery.distill import forecast as forecasts
from surgery.distill import session as sessions
from surgery.distill.forecast import forecast
from surgery.interface import Environment
from surgery.replay import Transitions, estimate
from tests.recording import Recording
from tests.small_runs import job_of


@pytest.fixture
def teacher(teachers: Path) -> surgery.Checkpoint:
    return surgery.load(teachers / "cartpole-dqn.onnx")


UPDATE, STEP = 1 / 4, 1 / 16 / 4
"""Where four gradient steps take a second, and sixteen steps of four environments another one."""


@pytest.mark.parametrize(
    ("method", "recorded", "episodes", "seconds", "evaluation", "rows", "scores"),
    [
        ("qdagger", 0, 2, (60 + 250) * UPDATE + (400 + 1000) * STEP, 4 * 500 * 4 * STEP, 10_400, 2),
        ("qdagger", 300, 10, (60 + 250) * UPDATE + 1000 * STEP, 4 * 1500 * 4 * STEP, 10_300, 2),
        ("pretraining", 0, 30, (60 + 250) * UPDATE + (400 + 1000) * STEP, 4 * 2500 * 4 * STEP, 10_400, 0),
        ("kickstarting", 0, 2, 250 * UPDATE + 1000 * STEP, 4 * 500 * 4 * STEP, 10_000, 2),
    ],
)
def test_a_forecast_is_of_every_step_that_is_to_come(
    method: str, recorded: int, episodes: int, seconds: float, evaluation: float, rows: int, scores: int,
    teacher: surgery.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    seconds_of = itertools.count()
    monkeypatch.setattr(forecasts, "time", SimpleNamespace(perf_counter=lambda: float(next(seconds_of))))
    given = {"evaluation_episodes": episodes} | ({"teacher_data": rows - 10_000} if rows > 10_000 else {})
    job = job_of(teacher, tmp_path, method=method, **given)
    if recorded:
        seen, ones = np.zeros((recorded, 4), np.float32), np.ones(recorded)
        job = replace(job, recorded=Transitions(seen, ones.astype(int), ones, ones > 1, seen))
    found = forecast(job)
    assert (found.update_seconds, found.step_seconds) == (UPDATE, STEP)
    assert (found.seconds, found.evaluation_seconds) == pytest.approx((seconds, evaluation))
    assert found.memory == estimate(rows, (4,), "float32", scores=scores)


def test_a_replay_of_stacks_holds_every_frame_once(tmp_path: Path):
    breakout, options = Environment("ALE/Breakout-v5"), Options(frames=4000, envs=1, device="cpu")
    job = plan_distill(None, "nature-fc32", tmp_path, environment=breakout, method="scratch", options=options)
    assert forecast(job).memory == estimate(10_000, (84, 84), "uint8")


def test_a_forecast_leaves_out_what_is_recorded_once(
    teacher: surgery.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Slow(Recording):
        def record(self, step):
            time.sleep(1)
            return super().record(step)

    monkeypatch.setattr(sessions, "recorder_of", lambda _: Slow(list))
    assert forecast(job_of(teacher, tmp_path)).step_seconds < 0.01
