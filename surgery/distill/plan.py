"""From what `distill` and `finetune` are asked for to a job whose parts fit each other; writes nothing."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from surgery import policy as policies
from surgery.architectures import new
from surgery.architectures.writer import NOISE
from surgery.checkpoint import Checkpoint
from surgery.distill.checks import check_environment, check_model
from surgery.distill.job import Job
from surgery.distill.learner import EPS
from surgery.distill.methods import Method, method_named
from surgery.distill.network import choose_device
from surgery.distill.settings import HEADS, Settings
from surgery.distill.values import KINDS, values_of
from surgery.distill.whole import check_native, cut_out
from surgery.envs import complete, make
from surgery.errors import ArgumentError
from surgery.evaluate import fits
from surgery.interface import Environment, LineageStep, PortPatch
from surgery.ops.swap_optimizer import swap_optimizer
from surgery.policy.feeds import observation_port
from surgery.replay import read_transitions


@dataclass(frozen=True)
class Options:
    """Options of a run, beside its student and its teacher.

    Attributes:
      frames: online budget in emulator frames.
      seed: of all that is random.
      device: `auto`, `cpu` or `cuda`.
      envs: environments stepped together.
      head: of a new student: `q`, `dueling`, `c51`, `qr` or `rainbow` (dueling C51 of noisy layers, learned with
        `double` and `prioritised`).
      noisy: make the dense layers of a new student noisy ones, which explore by themselves: ε is 0.
      changes: settings given by hand.
      save_seconds: time between checkpoints.
    """

    frames: int = 10_000_000
    seed: int = 0
    device: str = "auto"
    envs: int = 8
    head: str = "q"
    noisy: bool = False
    changes: Mapping[str, object] | None = None
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
    if not chosen.teacher:
        teacher = None
    elif teacher is None:
        raise ArgumentError(
            f"the method '{chosen.name}' needs a teacher", hint="or learn without: --method scratch"
        )
    else:
        check_model(teacher)
    contract, student = _student(to, environment, options)
    if teacher_replay is not None and not chosen.collects:
        raise ArgumentError(f"the method '{chosen.name}' learns from no transitions of the teacher")
    recorded = None if teacher_replay is None else read_transitions(teacher_replay)
    settings = _settings(chosen, contract, student, options)
    if recorded is not None:
        settings = replace(settings, teacher_data=len(recorded))
    return Job(
        folder,
        student,
        teacher,
        contract,
        settings,
        device=choose_device(options.device),
        recorded=recorded,
        lineage=_lineage("distill", settings, teacher),
        save_seconds=options.save_seconds,
        made_as={"architecture": to, "head": options.head, "noisy": options.noisy},
    )


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
    settings = _settings(method_named("finetune"), contract, part, options)
    student = part
    if part.optimizer is not None and part.optimizer.kind != optimizer:
        swapped = swap_optimizer(
            part, optimizer, match="none", seed=options.seed, lr=settings.final_rate, eps=EPS[optimizer]
        )
        student = swapped.checkpoint
    recorded = None if replay is None else read_transitions(replay)
    check_native(model.replace(optimizer=student.optimizer))
    return Job(
        folder,
        student,
        None,
        contract,
        settings,
        device=choose_device(options.device),
        optimizer=optimizer,
        recorded=recorded,
        whole=model if part is not model or model.origin is not None else None,
        lineage=_lineage("finetune", settings, student),
        allowed=allowed,
        save_seconds=options.save_seconds,
    )


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
    return contract, made.replace(interface=made.interface.annotated(inputs, outputs), environment=contract)


def _check_values(model: Checkpoint, part: Checkpoint) -> None:
    """Refuse a model that gives no values, or values that cannot be read."""
    outputs = part.interface.outputs
    if not any(port.kind in KINDS for port in outputs):
        check_model(model)
        found = ", ".join(f"{port.name} ({port.kind})" for port in outputs)
        raise ArgumentError(
            f"fine-tuning learns by temporal differences, and needs an output of values; this model has {found}",
            hint="or distill it into a network that has one: surgery distill MODEL --to ARCH -o DIR",
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
            "memory only, which need an unroll of at least 1",
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
            f"'{method.name}' swaps single transitions of a batch, but a student with a memory learns from stretches",
            hint="another method: surgery list methods; or a student without a memory",
        )
    return settings


def _lineage(operation: str, settings: Settings, parent: Checkpoint | None) -> LineageStep:
    """What the student's file will say of how it was made."""
    versions = {name: version(name) for name in ("policy-surgery", "torch", "numpy")}
    return LineageStep(
        operation,
        parents=() if parent is None else (parent.digest(),),
        versions={**versions, "python": platform.python_version()},
        seed=settings.seed,
        summary=settings.to_json(),
    )
