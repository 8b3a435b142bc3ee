"""What a run will take, said before it starts: memory, disk, and time from a few steps of each kind."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass

import numpy as np
import torch

from surgery.arrays import Array
from surgery.distill.captured import WARM_UP
from surgery.distill.job import Job
from surgery.distill.learner import Objective
from surgery.distill.session import Session
from surgery.replay import Batch, Stretch, estimate
from surgery.torch.failures import ELSEWHERE, explained

STEPS = 4
ALONE = 25_000
"""Gradient steps after the cut-off, a tenth of the paper's. Of 2,500 Atari students lost nearly all that they had."""
COMPRESSED = 1 / 60
"""Size of frames on disk against memory, for Atari; flags and actions take a few bytes more. Of the weights there are
three checkpoints with moments, target and the best while one is written, the student with its moments, and the best."""


@dataclass(frozen=True)
class Forecast:
    """What a run takes.

    Attributes:
      memory: bytes of its replays when they are full.
      disk: bytes of its folder, roughly.
      seconds: from now to its end, measuring the teacher and evaluations left out.
      evaluation_seconds: of all evaluations at most: how long games are depends on who plays.
      update_seconds: of one gradient step.
      step_seconds: of one agent step, acting included.
      cautions: what should be thought of before it starts.
    """

    memory: int
    disk: int
    seconds: float
    evaluation_seconds: float
    update_seconds: float
    step_seconds: float
    cautions: tuple[str, ...]


def forecast(job: Job, *, threads: int = 1) -> Forecast:
    """Measure a few steps of a session that is then thrown away; writes nothing.

    Raises:
      As `execute`, for what can be known beforehand: teacher, student and environment do not fit, too little memory.
    """
    torch.set_num_threads(threads)
    with explained(ELSEWHERE):
        session = Session(job)
        try:
            return _measured(job, session)
        finally:
            session.close()
            del session
            gc.collect()  # its replay lies on the device, where that of the run is to lie


def _measured(job: Job, session: Session) -> Forecast:
    update, step = _update_seconds(session), _step_seconds(session)
    settings = job.settings
    updates = settings.offline_updates + settings.budget / settings.update_period
    shown = settings.teacher_data if job.method.collects else 0
    collected = 0 if job.recorded is not None else shown
    shape, kind = session.envs.observation_shape, session.envs.observation_dtype
    frame = shape[1:] if session.envs.stacked else shape
    rows = settings.replay + shown
    scores = max(replay.scores for replay in (session.replay, session.teacher_replay) if replay is not None)
    memory = estimate(
        rows, frame, kind, prioritised=settings.prioritised, scores=scores, window=session.replay.window
    )
    weights = sum(parameter.numel() * 4 for parameter in session.student.module.parameters())
    return Forecast(
        memory=memory,
        disk=round(memory * COMPRESSED) + 10 * rows + 19 * weights,
        seconds=updates * update + (settings.budget + collected) * step,
        evaluation_seconds=_evaluation_steps(session) * step,
        update_seconds=update,
        step_seconds=step,
        cautions=_cautions(job),
    )


def _cautions(job: Job) -> tuple[str, ...]:
    alone, cutoff = job.settings.alone, job.settings.cutoff
    if not job.method.weaned or alone is None or cutoff is None or not 0 < alone < ALONE:
        return ()
    frames = cutoff * job.settings.skip
    keeping = "--method qdagger-kept" if job.method.name == "qdagger" else "--set cutoff=null --set floor=0.1"
    return (
        f"after {frames:,} frames the teacher is off for the last {alone:,} gradient steps (the paper: 250,000): "
        f"in so few, a student can lose what it learned; {keeping} keeps part of the teacher",
    )


def _evaluation_steps(session: Session) -> int:
    """Agent steps of all evaluations, if every game takes as long as it may."""
    settings = session.settings
    longest, games = settings.evaluation_steps, -(-settings.evaluation_episodes // settings.envs)
    limit = session.envs.contract.settings.get("max_episode_steps")
    if isinstance(limit, int):
        longest = min(longest, games * limit)
    return (1 - -settings.budget // settings.evaluate_every) * longest * settings.envs


def _update_seconds(session: Session) -> float:
    settings, envs = session.settings, session.envs
    blank = np.zeros((settings.batch, *envs.observation_shape), envs.observation_dtype)
    ones = np.ones(settings.batch, np.float32)
    zeros, scores = np.zeros(settings.batch, np.int64), np.zeros((settings.batch, envs.actions), np.float32)
    batch = Batch(zeros, blank, zeros, ones, ones, blank, ones, scores)
    if settings.unroll:
        batch = _stretches(session)
    loss = session.method.offline_loss if settings.offline_updates else session.method.online_loss
    objective = Objective(session.method.temporal, loss)

    def update() -> None:
        session.learner.update(batch, objective, weight=1.0, rate=0.0)

    for _ in range(1 if session.student.device == "cpu" else WARM_UP + 1):
        update()  # on a GPU the step is captured, too
    session.learner.read()
    begun = time.perf_counter()
    for _ in range(STEPS):
        update()
    session.learner.read()  # waits for a device
    return (time.perf_counter() - begun) / STEPS


def _stretches(session: Session) -> Batch:
    """A batch of stretches in which nothing happens."""
    settings, envs = session.settings, session.envs
    size, time_steps = settings.batch * settings.unroll, settings.burn_in + settings.unroll + settings.n_step
    blank = np.zeros((time_steps, settings.batch, *envs.observation_shape), envs.observation_dtype)
    zeros, ones = np.zeros(size, np.int64), np.ones(size, np.float32)
    stretch = Stretch(
        np.zeros((time_steps, settings.batch), np.bool_), np.zeros((settings.batch, 0), np.float32), zeros
    )
    scores = np.zeros((size, envs.actions), np.float32)
    return Batch(zeros, blank, zeros, ones, ones, blank[0, :0], ones, scores, stretch)


def _step_seconds(session: Session) -> float:
    observation: Array = session.envs.reset()
    teacher = session.teacher if session.asks_teacher("online") else None

    def play(steps: int) -> None:
        nonlocal observation
        for _ in range(steps):
            if teacher is not None:
                teacher.scores(observation)
            observation = session.envs.step(session.actor.greedy(observation)).observation

    play(WARM_UP + 1)  # on a GPU a step is captured, too
    begun = time.perf_counter()
    play(STEPS * 4)
    return (time.perf_counter() - begun) / (STEPS * 4 * session.settings.envs)
