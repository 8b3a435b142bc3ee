"""Learning on a device that is not there: every row learns there what it learns on the CPU, and waits for nothing.

    python -m tests.elsewhere_rows [ROW …]   # one JSON object: what went wrong, by row; empty where nothing did

A process of its own: PyTorch does not give back what `elsewhere.register` takes.
"""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args
from unittest import mock

import numpy as np
import torch

import surgery
from surgery.architectures import new
from surgery.distill import session
from surgery.distill.actor import Actor
from surgery.distill.captured import WARM_UP, Arriving
from surgery.distill.learner import Learner, Objective, make_optimizer
from surgery.distill.methods import METHODS, Auxiliary
from surgery.distill.network import Network
from surgery.distill.replays import mixed
from surgery.distill.run import execute
from surgery.distill.settings import Settings
from surgery.distill.values import values_of
from surgery.interface import Environment
from surgery.policy.feeds import state_ports
from surgery.torch import to_module
from tests import elsewhere
from tests.small_runs import job_of, weights
from tests.test_captured import STEPS, filled

TEACHERS = Path(__file__).parent.parent / "examples" / "teachers"
STUDENTS = {
    "dqn": ("mlp-16", "q", {}), "double": ("mlp-16", "q", {"double": True}), "n-step": ("mlp-16", "q", {"n_step": 5}),
    "dueling": ("mlp-16", "dueling", {}), "c51": ("mlp-16", "c51", {}), "qr": ("mlp-16", "qr", {"double": True}),
    "rainbow": ("mlp-16", "rainbow", {"double": True}),
    "nature": ("nature-fc16", "q", {}), "impala": ("impala-fc16", "dueling", {}),
    "gru": ("gru-8", "q", {}), "lstm": ("lstm-8", "c51", {"double": True}),
}  # fmt: skip
OBJECTIVES = [Objective(True, kind) for kind in get_args(Auxiliary)] + [Objective(False, "imitate")]
RUNS: dict[str, dict[str, object]] = {
    "rainbow": {"head": "rainbow", "noisy": True, "teacher_data": 100},
    "rehearsal": {"method": "rehearsal", "teacher_data": 100},
    "recurrent": {"to": "gru-8", "burn_in": 2, "unroll": 4},
    "jsrl": {"method": "jsrl", "prioritised": True},
}
SHORT = {"update_period": 64, "offline_updates": 8, "evaluation_steps": 60, "evaluate_every": 600}


TURNS = 5


class Watched:
    """A `Recorder` that runs every step as it is, after those of the warm-up as if it were captured."""

    def __init__(self, device: elsewhere.Elsewhere) -> None:
        self._device, self.failures = device, 0

    def warm_up(self, step: Callable[[], torch.Tensor]) -> torch.Tensor:
        return step()

    def record(self, step: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        output = torch.zeros(0)

        def replay() -> None:
            with self._device.captured():
                found = step()
            output.data = found.held if isinstance(found, elsewhere.There) else found

        return replay, output


def recorder_of(device: elsewhere.Elsewhere, _: str) -> Watched:
    return Watched(device)


def learned(
    name: str, kind: str, objective: Objective, device: elsewhere.Elsewhere | None
) -> list[np.ndarray]:
    """Parameters and losses after some steps, on a device or on the CPU."""
    to, head, changes = STUDENTS[name]
    recurrent, place = to.startswith(("gru", "lstm")), "cpu" if device is None else elsewhere.NAME
    shape = (2, 36, 36) if to.startswith(("nature", "impala")) else (5,)
    checkpoint = new(to, observation=shape, actions=3, head=head, scale=1 / 255 if len(shape) == 3 else None,
                     noisy=head == "rainbow", seed=2)  # fmt: skip
    settings = Settings.scaled(
        METHODS["qdagger"], Environment("CartPole-v1"), frames=1000, seed=0, envs=2, recurrent=recurrent
    ).changed({"batch": 8, **changes, **({"unroll": 6, "burn_in": 3} if recurrent else {})})
    student, target = (
        Network(
            to_module(checkpoint), values_of(checkpoint), shape, device=place, states=state_ports(checkpoint)
        )
        for _ in range(2)
    )
    learner = Learner(
        student, target, make_optimizer(kind, student, 1e-3), settings, actions=3, teacher_temperature=0.1,
        recorder=None if device is None else Watched(device),
    )  # fmt: skip
    replay, generator = (
        filled(recurrent, shape, device=place, n_step=settings.n_step),
        np.random.default_rng(1),
    )
    torch.manual_seed(5)
    if device is not None:
        device.waits.clear()
    told = []
    for number in range(STEPS):
        batch = replay.sample(8, generator)
        batch = batch if recurrent else mixed(batch, replay, 0.3, generator)
        told.append(
            learner.update(batch, objective, weight=3.0 / (number + 1), rate=1e-2 / (number + 1)).clone()
        )
        if number == 6:
            learner.sync_target()
    if device is not None and device.waits:
        raise AssertionError(f"waited for the device: {dict(device.waits)}")
    actor = Actor(student, noisy=True, recorder=None if device is None else Watched(device))
    for _ in range(TURNS):
        actor.greedy(np.zeros((2, *shape), np.float32))
    wanted = TURNS if recurrent else WARM_UP  # what `Watched` replays gives tensors of the host
    if device is not None and sum(device.waits.values()) != wanted:
        raise AssertionError(f"waited for more than the actions: {dict(device.waits)}")
    parameters = [one.detach().cpu().numpy() for one in student.module.parameters()]
    return [*parameters, *(Arriving(one).read() for one in told), np.array(list(learner.read().values()))]


def one_step(name: str, kind: str, objective: Objective) -> None:
    wanted = learned(name, kind, objective, None)
    with elsewhere.Elsewhere() as device:
        found = learned(name, kind, objective, device)
    for one, other in zip(wanted, found, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)


def whole_run(given: dict[str, object]) -> None:
    """A run there ends with the student that it ends with on the CPU; what it saves is taken up again on the CPU."""
    teacher, students = surgery.load(TEACHERS / "cartpole-dqn.onnx", optimizer=False), []
    with tempfile.TemporaryDirectory() as folder:
        for place in ("cpu", elsewhere.NAME):
            job = replace(job_of(teacher, Path(folder) / place, **SHORT, **given), device=place)
            if place == "cpu":
                execute(job)
            else:
                with (
                    elsewhere.Elsewhere() as device,
                    mock.patch.object(session, "recorder_of", lambda _: Watched(device)),
                ):
                    execute(job)
                assert execute(replace(job, device="cpu")).resumed
            students.append(weights(job.folder / "student.onnx"))
    for name, one in students[0].items():
        np.testing.assert_allclose(students[1][name], one, rtol=1e-2, atol=1e-3, err_msg=name)


def rows() -> dict[str, Callable[[], None]]:
    """What is compared, by name."""
    found: dict[str, Callable[[], None]] = {}
    for name in STUDENTS:
        for kind in ("adam", "rmsprop") if name in ("dqn", "nature") else ("adam",):
            for objective in OBJECTIVES if name in ("dqn", "rainbow") else [OBJECTIVES[1]]:
                words = [name, kind, objective.auxiliary, *([] if objective.temporal else ["alone"])]
                found[" ".join(words)] = partial(one_step, name, kind, objective)
    return found | {f"run {name}": partial(whole_run, given) for name, given in RUNS.items()}


def main() -> None:
    elsewhere.register()
    found = {}
    for name, row in rows().items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        try:
            row()
            found[name] = ""
        except Exception:  # whatever a row stumbles over is its result
            found[name] = traceback.format_exc()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
