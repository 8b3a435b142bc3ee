"""`distill` and `finetune`: from a request to a student in a run directory."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch

from surgery import policy as policies
from surgery.architectures import new
from surgery.architectures.writer import NOISE
from surgery.checkpoint import Checkpoint
from surgery.distill import store
from surgery.distill.choices import check_environment, check_model
from surgery.distill.heap import keep_freed_memory
from surgery.distill.interrupt import Interrupts, Stopped
from surgery.distill.job import Job
from surgery.distill.journal import Status
from surgery.distill.learner import EPS
from surgery.distill.loop import Loop
from surgery.distill.methods import Method, method_named
from surgery.distill.network import choose_device
from surgery.distill.session import Session
from surgery.distill.settings import HEADS, Settings
from surgery.distill.values import KINDS, values_of
from surgery.distill.whole import check_native, cut_out, native_name
from surgery.envs import complete, make
from surgery.errors import ArgumentError
from surgery.evaluate import fits
from surgery.interface import Environment, Interface, LineageStep, PortPatch
from surgery.json_values import Json
from surgery.ops.swap_optimizer import swap_optimizer
from surgery.policy.feeds import observation_port
from surgery.replay import Transitions, read_transitions
from surgery.torch.failures import ELSEWHERE, explained

AGAIN = f"repeat the command to go on from the last checkpoint; {ELSEWHERE}"


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

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


@dataclass(frozen=True)
class Options:
    """How a run goes, besides what is learned from whom.

    Attributes:
      frames: online budget in emulator frames.
      seed: of all that is random.
      device: `auto`, `cpu` or `cuda`.
      envs: environments stepped together.
      head: of a new student: `q`, `dueling`, `c51`, `qr` or `rainbow` (dueling C51 of noisy layers, learned with
        `double` and `prioritised`).
      noisy: make the dense layers of a new student noisy ones, which explore by themselves: ε is 0.
      changes: settings given by hand.
      threads: of torch on the CPU: more than one per process only pays on an idle machine.
      save_seconds: time between checkpoints.
    """

    frames: int = 10_000_000
    seed: int = 0
    device: str = "auto"
    envs: int = 8
    head: str = "q"
    noisy: bool = False
    changes: Mapping[str, object] | None = None
    threads: int = 1
    save_seconds: float = 120.0


def plan_distill(
    teacher: Checkpoint | None,
    to: str,
    folder: Path,
    *,
    environment: Environment,
    method: str = "qdagger",
    options: Options = Options(),
    teacher_replay: Path | None = None,
) -> Job:
    """What `distill` would do; makes the environment once, writes nothing.

    Args:
      teacher: any policy with discrete actions; None for methods without one.
      to: name of the student's architecture.
      folder: the run directory.
      environment: the contract; what it leaves open is filled in.
      method: a name of `METHODS`.
      options: the rest.
      teacher_replay: the teacher's transitions as recorded; None: they are collected.

    Raises:
      UnknownName: no such method, architecture, environment or setting.
      ArgumentError: teacher, student and environment do not fit; too little memory.
    """
    chosen = method_named(method)
    if chosen.name == "finetune":
        raise ArgumentError(
            "fine-tuning has no student of another architecture", hint="surgery finetune MODEL …"
        )
    if options.head not in HEADS:
        raise ArgumentError(f"a student's head is one of {', '.join(HEADS)}, got '{options.head}'")
    if chosen.teacher and teacher is not None:
        check_model(teacher)
    contract, student = _student(to, environment, options)
    if teacher_replay is not None and not chosen.collects:
        raise ArgumentError(f"the method '{chosen.name}' learns from no transitions of the teacher")
    recorded = None if teacher_replay is None else read_transitions(teacher_replay)
    settings = _settings(chosen, contract, student, options)
    if recorded is not None:
        settings = replace(settings, teacher_data=len(recorded))
    job = _job(
        folder, student, teacher if chosen.teacher else None, contract, settings, options, recorded, chosen
    )
    return replace(job, made_as={"architecture": to, "head": options.head, "noisy": options.noisy})


def plan_finetune(
    model: Checkpoint,
    folder: Path,
    *,
    environment: Environment,
    optimizer: str = "adam",
    options: Options = Options(),
    replay: Path | None = None,
) -> Job:
    """What `finetune` would do: weights, target, optimizer state and, where given, the replay are carried on.

    A model may hold its target network and other outputs beside the one that learns (`Checkpoint.copies`); all of it is
    in the result, and one that came from a framework's own file is written in that form, too.

    State of another optimizer than the one asked for is swapped (`surgery.swap_optimizer`), at the lowered learning
    rate of fine-tuning, not at one that would go on as before.

    Raises:
      As `plan_distill`; ArgumentError: the model's output cannot learn by temporal differences; as `swap_optimizer`.
    """
    part = cut_out(model)
    _check_values(model, part)
    contract, mask = complete(environment), environment.settings.get("action_mask")
    if mask is not None:  # of the model, which the contract of an environment does not have
        contract = contract.with_settings(action_mask=mask)
    allowed = _check_fits(model, part, contract)
    chosen = method_named("finetune")
    settings = _settings(chosen, contract, part, options)
    student = part
    if part.optimizer is not None and part.optimizer.kind != optimizer:
        swapped = swap_optimizer(
            part, optimizer, match="none", seed=options.seed, lr=settings.final_rate, eps=EPS[optimizer]
        )
        student = swapped.checkpoint
    recorded = None if replay is None else read_transitions(replay)
    check_native(model.replace(optimizer=student.optimizer))
    job = _job(folder, student, None, contract, settings, options, recorded, chosen)
    whole = model if part is not model or model.origin is not None else None
    return replace(job, optimizer=optimizer, whole=whole, allowed=allowed)


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
                note(f"going on from {session.frames:,} frames, {session.progress.updates:,} updates")
            Loop(session, watch=watch, note=note, stop=lambda: interrupts.requested).run()
            return _outcome(session, resumed)
        except Stopped as stopped:
            note("saved: the same command goes on from here")
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


def _student(to: str, environment: Environment, options: Options) -> tuple[Environment, Checkpoint]:
    """The completed contract, and an untrained student that fits the environment."""
    contract = complete(environment)
    envs = make(contract, 1, seed=0, training=False)
    try:
        check_environment(envs)
        shape, actions, dtype = envs.observation_shape, envs.actions, envs.observation_dtype
        meanings, contract = envs.action_meanings, envs.contract
    finally:
        envs.close()
    scale = 1 / 255 if dtype.name == "uint8" and len(shape) == 3 else None
    made = new(to, observation=shape, actions=actions, head=options.head, scale=scale, seed=options.seed,
               noisy=options.noisy)  # fmt: skip
    bounds = (0.0, 255.0) if scale else (0.0, 1.0) if dtype.name == "bool" else (None, None)
    inputs = {"observation": PortPatch(low=bounds[0], high=bounds[1])}
    outputs = {made.interface.outputs[0].name: PortPatch(labels=meanings)}
    interface: Interface = made.interface.annotated(inputs, outputs)
    return contract, made.replace(interface=interface, environment=contract)


def _check_values(model: Checkpoint, part: Checkpoint) -> None:
    """Refuse a model that gives no values, or values that cannot be read."""
    outputs = part.interface.outputs
    if not any(port.kind in KINDS for port in outputs):
        check_model(model)
        found = ", ".join(f"{port.name} ({port.kind})" for port in outputs)
        raise ArgumentError(
            f"fine-tuning learns by temporal differences, and needs an output of values; this model has {found}",
            hint="or let it teach a network that has: surgery distill MODEL --to ARCH -o DIR",
        )
    values_of(part)


def _check_fits(model: Checkpoint, part: Checkpoint, contract: Environment) -> tuple[bool, ...] | None:
    """Refuse an environment of other observations or actions than those of a model that plays on there.

    Returns:
      which actions its contract allows; None: all.
    """
    observation_port(part)  # a student has one
    policy = policies.load(part, environment=contract)
    envs = make(contract, 1, seed=0, training=False)
    try:
        check_environment(envs)
        fits(model, policy, envs)
    finally:
        envs.close()
    return policy.head.allowed


def _settings(method: Method, contract: Environment, student: Checkpoint, options: Options) -> Settings:
    """All numbers, those of the student's kind included.

    Raises:
      ArgumentError, UnknownName: a setting that is wrong, or a combination that does not exist.
    """
    recurrent = any(port.kind == "state" for port in student.interface.inputs)
    settings = Settings.scaled(
        method, contract, frames=options.frames, seed=options.seed, envs=options.envs, recurrent=recurrent
    )
    if any(name.rpartition(".")[2] in NOISE for name in student.tensors):
        settings = replace(settings, epsilon_end=0.0, epsilon_decay=0)
    if options.head == "rainbow":
        settings = replace(settings, double=True, prioritised=not recurrent)
    settings = settings.changed(options.changes or {})
    if recurrent != (settings.unroll > 0) or (settings.burn_in and not recurrent):
        raise ArgumentError(
            f"the settings 'unroll' ({settings.unroll}) and 'burn_in' ({settings.burn_in}) are for students with a "
            "memory, and need at least one step to learn from there",
        )
    if method.collects and recurrent and settings.teacher_data < settings.least:
        if "teacher_data" in (options.changes or {}):
            raise ArgumentError(
                f"stretches of {settings.burn_in} + {settings.unroll} steps in {settings.envs} environments need at "
                f"least {settings.least:,} transitions of the teacher, got {settings.teacher_data:,}",
                hint=f"--set teacher_data={settings.least}, fewer --envs, or a shorter unroll",
            )
        settings = replace(settings, teacher_data=settings.least)
    if recurrent and settings.prioritised:
        raise ArgumentError(
            "students with a memory draw stretches of experience, which have no priorities",
            hint="--set prioritised=false, or a student without a memory",
        )
    if recurrent and method.rehearsal:
        raise ArgumentError(
            f"'{method.name}' swaps single transitions of a batch, a student with a memory learns from stretches",
            hint="another method: surgery list methods; or a student without a memory",
        )
    return settings


def _job(
    folder: Path,
    student: Checkpoint,
    teacher: Checkpoint | None,
    contract: Environment,
    settings: Settings,
    options: Options,
    recorded: Transitions | None,
    method: Method,
) -> Job:
    if method.teacher and teacher is None:
        raise ArgumentError(
            f"the method '{method.name}' needs a teacher", hint="or learn without: --method scratch"
        )
    parents = (teacher.digest(),) if teacher else (student.digest(),) if method.name == "finetune" else ()
    names = ("policy-surgery", "torch", "numpy")
    lineage = LineageStep(
        "distill" if method.name != "finetune" else "finetune",
        parents=parents,
        versions={**{name: version(name) for name in names}, "python": platform.python_version()},
        seed=settings.seed,
        summary=settings.to_json(),
    )
    return Job(
        folder,
        student,
        teacher,
        contract,
        settings,
        device=choose_device(options.device),
        recorded=recorded,
        lineage=lineage,
        save_seconds=options.save_seconds,
    )


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
