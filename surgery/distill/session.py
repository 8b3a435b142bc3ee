"""A run in memory: its networks, replays, random numbers and counts; built, saved, and built again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from surgery import torch as modules
from surgery.arrays import Array
from surgery.checkpoint import Checkpoint
from surgery.distill import store
from surgery.distill.actor import Actor
from surgery.distill.captured import recorder_of
from surgery.distill.frozen import STEPS
from surgery.distill.guarded import Guarded
from surgery.distill.job import Job
from surgery.distill.journal import Journal
from surgery.distill.learner import Learner, make_optimizer
from surgery.distill.network import Network, choose_precision
from surgery.distill.progress import Progress
from surgery.distill.replays import ASKING, make_replays
from surgery.distill.teacher import Teacher
from surgery.distill.values import values_of
from surgery.distill.weaning import Weaning
from surgery.distill.whole import native_name, put_back, target_of
from surgery.envs import Envs, make
from surgery.errors import CorruptFile, RunFailed
from surgery.evaluate import Score
from surgery.json_values import Fields, Json
from surgery.policy.feeds import observation_port, state_ports
from surgery.policy.tensors import TYPES
from surgery.replay import Replay, Segment, restore, write_segment
from surgery.storage import save
from surgery.torch.failures import is_of_device

REPLAYS = ("replay", "teacher_replay")


class Session:
    """The mutable state of a run. `open` continues from the newest checkpoint where there is one.

    Attributes:
      notes: messages from opening it.
      actor: the student at play in the training environments.
      note: told what should be said once while it runs.
      score: the student's newest, of these very weights and of whole games; None before the first evaluation.
      allowed: numbers of the actions that may be taken.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.settings, self.method = job, job.settings, job.method
        self.progress = Progress()
        torch.manual_seed(self.settings.seed)  # noisy layers draw from torch's own generators
        self.notes: list[str] = []
        self.note: Callable[[str], None] = self.notes.append
        self._metrics_size = 0
        self.envs = self._make_envs(training=True, salt=0)
        self.teacher = None
        if job.teacher is not None:
            self.teacher = Teacher(job.teacher, job.environment, device=job.device, note=self.notes.append)
            self.teacher.check(self.envs)
        self._recorder = recorder_of(job.device)
        self.learner = self._make_learner()
        self.actor = Actor(
            self.student, noisy=True, recorder=self._recorder, failed=lambda text: self.note(text)
        )
        self.weaning = Weaning(0.0, 1.0, self.settings.cutoff, self.settings.floor)
        self.draws, self.actions = (
            np.random.default_rng(sequence)
            for sequence in np.random.SeedSequence(self.settings.seed).spawn(2)
        )
        self.replay, self.teacher_replay = make_replays(
            self.settings, self.method, self.envs, self.student, recorded=job.recorded, device=job.device
        )
        self._segments: dict[str, tuple[Segment, ...]] = dict.fromkeys(REPLAYS, ())
        self._in_last: dict[str, tuple[Segment, ...]] = dict.fromkeys(REPLAYS, ())
        self._since = time.monotonic()
        self._saved_at = time.monotonic()
        self.journal: Journal | None = None
        self.score: Score | None = None
        self._best: Mapping[str, torch.Tensor] | None = None
        allowed = job.allowed or (True,) * self.envs.actions
        self.allowed: Array = np.flatnonzero(allowed)

    @classmethod
    def open(cls, job: Job) -> Session:
        """Build a session, and continue it where its folder holds checkpoints.

        Raises:
          CorruptFile: there are checkpoints, and none is whole.
          As `Session`'s parts: the teacher, the environment and the replay.
        """
        session = cls(job)
        saved, problems = store.newest(job.folder)
        session.notes += [f"skipped: {problem}" for problem in problems]
        if saved is not None:
            session._restore(saved)
        session.progress.starts += 1
        if saved is not None:
            session.renew_envs()
        session.journal = Journal(job.folder, size=session._metrics_size)
        return session

    @property
    def student(self) -> Network:
        return self.learner.student

    @property
    def frames(self) -> int:
        """Emulator frames taken online."""
        return self.progress.steps * self.settings.skip

    def asks_teacher(self, phase: str) -> bool:
        """Whether gradient steps of a phase ask the teacher, now or later: what is played meanwhile is labelled."""
        loss = self.method.offline_loss if phase == "offline" else self.method.online_loss
        silent = phase != "offline" and self.method.weaned and self.weaning.over
        return loss in ASKING and not silent

    def evaluation_envs(self, salt: int) -> Envs:
        """Environments of whole games and true returns; the same salt gives the same games."""
        return self._make_envs(training=False, salt=salt)

    def begin(self) -> Array:
        """Start episodes in all training environments; nobody remembers those before."""
        self.forget()
        return self.envs.reset()

    def forget(self, begins: Array | None = None) -> None:
        """What teacher and student remember of environments (n,) bool in which an episode begins; None: of all."""
        self.actor.forget(begins)
        if self.teacher is not None:
            self.teacher.forget(begins)

    def renew_envs(self) -> None:
        """Make the training environments anew, as after a restart: open episodes are cut off."""
        self.envs.close()
        self.envs = self._make_envs(training=True, salt=self.progress.starts)
        for replay in (self.replay, self.teacher_replay):
            if replay is not None:
                replay.cut()

    def forget_optimizer(self) -> None:
        """Begin the optimizer anew."""
        self.learner.optimizer = make_optimizer(self.job.optimizer, self.student, self.settings.rate)
        self.learner.forget_graphs()

    def _make_envs(self, *, training: bool, salt: int) -> Envs:
        seed = np.random.SeedSequence([self.settings.seed, int(training), salt]).generate_state(1)[0]
        job = self.job
        return Guarded(
            make(job.environment, self.settings.envs, seed=int(seed & 0x7FFFFFFF), training=training)
        )

    def _make_learner(self) -> Learner:
        job, settings, teacher = self.job, self.settings, self.teacher
        student, target = self._make_network(), self._make_network()
        target.module.requires_grad_(False)
        if job.whole is not None:
            target.load(target_of(job.whole), all_of_them=False)
        if settings.target_period // settings.update_period >= STEPS:
            target.freeze(job.student)
        temperature = settings.teacher_temperature or (teacher.temperature if teacher else 1.0)
        return Learner(
            student,
            target,
            self._make_optimizer(student),
            settings,
            actions=self.envs.actions,
            teacher_temperature=temperature,
            teacher_acts=teacher is not None and teacher.only_acts,
            recorder=self._recorder,
            note=lambda text: self.note(text),
        )

    def _make_network(self) -> Network:
        """The student as it is in the job."""
        job, shape = self.job, self.envs.observation_shape
        port = observation_port(job.student.replace(environment=job.environment))
        port = port.settled(self.envs.observation_dtype)
        return Network(
            modules.to_module(job.student),
            values_of(job.student),
            shape,
            dtype=TYPES[port.dtype],
            device=job.device,
            precision=job.precision or choose_precision(job.device, shape),
            states=state_ports(job.student),
            allowed=job.allowed,
            feed=None if port.plain(shape) else port,
        )

    def _make_optimizer(self, student: Network) -> torch.optim.Optimizer:
        """With the state that the student brings, if that is of this kind."""
        job, held = self.job, self.job.student.optimizer
        carried = held if held is not None and held.kind == job.optimizer else None
        centered = carried is None or "grad_avg" in carried.slots
        optimizer = make_optimizer(job.optimizer, student, self.settings.rate, centered=centered)
        if carried is not None:
            modules.load_optimizer(carried, optimizer, student.module)
        return optimizer

    def free_teacher_replay(self) -> None:
        """Let the teacher's transitions go: nothing draws from them any more."""
        self.teacher_replay = None
        self._segments = {**self._segments, "teacher_replay": ()}

    @property
    def advice(self) -> str:
        """What to do about a loss or a weight that is no number."""
        rate, final = self.settings.rate / 4, self.settings.final_rate / 4
        return (
            f"start again in another folder with lower rates: --set rate={rate:g} --set final_rate={final:g}"
        )

    def check_finite(self) -> None:
        """Nothing is played by, or written of, a student that has diverged.

        Raises:
          RunFailed: a weight is not a number; the last checkpoint and the files of the student stand.
        """
        if not self.student.finite():
            raise RunFailed(
                f"a weight of the student is no longer a number after {self.progress.updates:,} gradient steps; "
                "not saved",
                hint=self.advice,
            )

    def keep_best(self) -> None:
        """Remember the student as it is."""
        self.student.silence()
        self._best = {name: one.detach().clone() for name, one in self.student.module.state_dict().items()}

    def tick(self) -> float:
        """Count the time since the last tick; seconds spent in all."""
        now = time.monotonic()
        self.progress.seconds += now - self._since
        self._since = now
        return self.progress.seconds

    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.monotonic() - self._saved_at >= self.job.save_seconds

    def save(self) -> Path:
        """Write a checkpoint: everything that a new process needs to go on from here.

        Raises:
          RunFailed: a weight of the student is not a number; nothing is written.
          FileError: the disk is full; the checkpoint before stands.
        """
        self.check_finite()
        self.tick()
        folder, before = self.job.folder, self._segments
        listed = dict(before)
        for name, replay in self._replays().items():
            if replay.written.sum() > sum(before[name][-1].end if before[name] else (0,)):
                listed[name] = write_segment(replay, folder / name, before[name])
        self.progress.saved += 1
        path = store.save(folder, self.progress.saved, self._tensors(), self._record(listed))
        kept = {
            name: frozenset(one.file for one in (*self._in_last[name], *listed[name])) for name in REPLAYS
        }
        self._segments, self._in_last = listed, listed
        store.sweep(folder, kept)
        self._saved_at = time.monotonic()
        return path

    def _replays(self) -> dict[str, Replay]:
        pair = {"replay": self.replay, "teacher_replay": self.teacher_replay}
        return {name: replay for name, replay in pair.items() if replay is not None}

    def _tensors(self) -> dict[str, Any]:
        priorities = self.replay.priorities
        return {
            "student": self.student.module.state_dict(),
            "target": self.learner.target.module.state_dict(),
            "optimizer": self.learner.optimizer.state_dict()["state"],
            "best": self._best,
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if self.job.device == "cuda" else None,
            "priorities": None if priorities is None else torch.from_numpy(priorities),
        }

    def _record(self, segments: Mapping[str, tuple[Segment, ...]]) -> dict[str, Json]:
        return {
            "progress": self.progress.to_json(),
            "weaning": self.weaning.to_json(),
            "random": {"draws": _state(self.draws), "actions": _state(self.actions)},
            "segments": {name: [one.to_json() for one in some] for name, some in segments.items()},
            "metrics": self.journal.size if self.journal else 0,
        }

    def _restore(self, saved: store.Saved) -> None:
        fields = Fields(saved.record, f"record of {saved.path.name}")
        self.progress = Progress.from_json(fields.mapping("progress"))
        self.weaning = Weaning.from_json(fields.mapping("weaning"))
        random, listed = fields.mapping("random"), fields.mapping("segments")
        self._metrics_size = fields.optional_integer("metrics") or 0
        fields.done()
        try:
            self.draws.bit_generator.state = cast("dict[str, Any]", random["draws"])
            self.actions.bit_generator.state = cast("dict[str, Any]", random["actions"])
            self.student.load(saved.tensors["student"])
            self.learner.target.load(saved.tensors["target"])
            self._best = saved.tensors["best"]
            optimizer = self.learner.optimizer
            # Settings stay those of this process: a run may go on on another device.
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": saved.tensors["optimizer"], "param_groups": groups})
            torch.set_rng_state(saved.tensors["torch"])
            if self.job.device == "cuda" and saved.tensors["cuda"] is not None:
                torch.cuda.set_rng_state(saved.tensors["cuda"])
            self._restore_replays(listed, saved.tensors["priorities"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            if is_of_device(error):
                raise
            raise CorruptFile(f"{saved.path} does not fit this run: {error}") from error

    def _restore_replays(self, listed: Mapping[str, Json], priorities: torch.Tensor | None) -> None:
        self._in_last = {
            name: tuple(Segment.from_json(item) for item in cast("list[Json]", listed[name]))
            for name in REPLAYS
        }
        self._segments = dict(self._in_last)
        if self.progress.phase in ("online", "done") and not self.method.rehearsal:
            self.free_teacher_replay()
        for name, replay in self._replays().items():
            if self._segments[name]:
                restore(replay, self.job.folder / name, self._segments[name])
        if priorities is not None:
            self.replay.restore_priorities(priorities.numpy())

    def result(self) -> Checkpoint:
        """The student as a checkpoint: weights, optimizer state, environment and lineage."""
        self.student.silence()
        return self._checkpoint(self.learner.optimizer, self.score)

    def best(self) -> Checkpoint | None:
        """The student that was best, without optimizer state; None before the first evaluation.

        Without its score: the largest of several measured ones is larger than what is measured next.
        """
        if self._best is None:
            return None
        now = {name: one.detach().clone() for name, one in self.student.module.state_dict().items()}
        self.student.load(self._best)
        try:
            return self._checkpoint(None, None)
        finally:
            self.student.load(now)

    def _checkpoint(self, optimizer: torch.optim.Optimizer | None, measured: Score | None) -> Checkpoint:
        made = modules.from_module(self.student.module, self.job.student, optimizer=optimizer)
        lineage = (
            (*self.job.student.lineage, self.job.lineage) if self.job.lineage else self.job.student.lineage
        )
        done = made.replace(lineage=lineage, path=None)
        if self.job.whole is not None:
            done = put_back(self.job.whole, done, self.learner.target.module)
        contract = self.job.environment
        if measured is not None:
            score = replace(measured, model=done.digest()).to_json()
            contract = contract.with_settings(scores=[score])
        return done.replace(environment=contract)

    def export(self) -> Path:
        """Write `student.onnx` and its optimizer state, the same in the form of the framework that it came from, and
        `best.onnx`.

        Raises:
          RunFailed: the student has diverged.
          FileError: the disk is full; the files before stand.
        """
        self.check_finite()
        path = self.job.folder / store.STUDENT
        result = self.result()
        save(result, path, force=True)
        if (name := native_name(result)) is not None:
            save(result, path.with_name(name), force=True)
        if (best := self.best()) is not None:
            save(best, path.with_name(store.BEST), force=True)
        return path

    def close(self) -> None:
        self.envs.close()
        if self.journal:
            self.journal.close()


def _state(generator: np.random.Generator) -> Json:
    return cast(Json, generator.bit_generator.state)
