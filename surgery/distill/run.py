"""Running a job: to a student in a run directory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from surgery.distill import store
from surgery.distill.heap import keep_freed_memory
from surgery.distill.interrupt import Interrupts, Stopped
from surgery.distill.job import Job
from surgery.distill.journal import Status
from surgery.distill.loop import Loop
from surgery.distill.session import Session
from surgery.distill.whole import native_name
from surgery.json_values import Json
from surgery.torch.failures import ELSEWHERE, explained

AGAIN = f"repeat the command to continue from the last checkpoint; {ELSEWHERE}"


@dataclass(frozen=True)
class Outcome:
    """Result of a run.

    Attributes:
      folder: the run directory.
      student: the student's file.
      native: the same in the form of the framework that it came from; None: it came from none.
      mean_return: of its last evaluation.
      best: the file of the student that was best in an evaluation.
      best_return: its mean return there: the largest of several, so that it will rather have less in the next one.
      best_frames: taken online before that evaluation.
      teacher: mean return of the teacher; None without one.
      random: mean return of random play.
      score: 0 random play, 1 the teacher; None without one.
      frames: taken online.
      updates: gradient steps.
      seconds: spent, over all processes.
      resumed: whether it went on from a checkpoint.
    """

    folder: Path
    student: Path
    native: Path | None
    mean_return: float
    best: Path
    best_return: float
    best_frames: int
    teacher: float | None
    random: float
    score: float | None
    frames: int
    updates: int
    seconds: float
    resumed: bool


def execute(
    job: Job,
    *,
    threads: int = 1,
    watch: Callable[[Status], None] = lambda _: None,
    note: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Run a job, or go on with it where its folder holds it; a finished one is only reported.

    Ctrl-C and SIGTERM save first, then raise KeyboardInterrupt.

    Args:
      job: what to do.
      threads: of torch on the CPU.
      watch: called about twice a second with where the run is.
      note: called with what should be said once.

    Raises:
      ArgumentError: the folder holds a run of another configuration, or another process runs in it.
      RunFailed: the loss is no number, the environment is dead, or the GPU failed or is out of memory.
      Refused: the teacher plays no better than chance.
      FileError: the disk is full, or the folder cannot be written to.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    with store.owning(job.folder), Interrupts() as interrupts, explained(AGAIN):
        store.agree_on(job.folder, config(job))
        session = Session.open(job)
        try:
            for text in session.notes:
                note(text)
            resumed = session.progress.saved > 0
            if resumed:
                note(f"continuing from {session.frames:,} frames, {session.progress.updates:,} updates")
            Loop(session, watch=watch, note=note, stop=lambda: interrupts.requested).run()
            return _outcome(session, resumed)
        except Stopped as stopped:
            note("saved: the same command continues from here")
            raise KeyboardInterrupt from stopped
        finally:
            session.close()


def config(job: Job) -> dict[str, Json]:
    """What `config.json` says, and what a later process must agree with."""
    return {
        "schema": 1,
        "teacher": job.teacher.digest() if job.teacher else None,
        "student": (job.whole or job.student).digest(),
        **job.made_as,
        "environment": job.environment.to_json(),
        "optimizer": job.optimizer,
        "recorded": len(job.recorded) if job.recorded is not None else None,
        "settings": job.settings.to_json(),
    }


def _outcome(session: Session, resumed: bool) -> Outcome:
    progress, weaning = session.progress, session.weaning
    native = native_name(session.job.whole) if session.job.whole else None
    return Outcome(
        folder=session.job.folder,
        student=session.job.folder / store.STUDENT,
        native=None if native is None else session.job.folder / native,
        mean_return=progress.mean_return if progress.mean_return is not None else float("nan"),
        best=session.job.folder / store.BEST,
        best_return=progress.best_return if progress.best_return is not None else float("nan"),
        best_frames=(progress.best_steps or 0) * session.settings.skip,
        teacher=progress.teacher[0] if progress.teacher else None,
        random=progress.random[0] if progress.random else float("nan"),
        score=weaning.score if progress.teacher else None,
        frames=session.frames,
        updates=progress.updates,
        seconds=progress.seconds,
        resumed=resumed,
    )
