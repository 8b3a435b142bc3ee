"""What a run leaves: the student it ended with, the best one, and nothing of one that has diverged."""

from __future__ import annotations

import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

import surgery
from surgery.architectures import new
from surgery.distill import Options, execute, plan_finetune, store
from surgery.distill.actor import Actor
from surgery.distill.guarded import Guarded
from surgery.distill.interrupt import Interrupts, Stopped
from surgery.distill.loop import Loop
from surgery.distill.run import config
from surgery.distill.session import Session
from surgery.envs import make
from surgery.errors import RunFailed
from surgery.interface import Environment
from tests.small_runs import job_of, lines, weights

MASK = (True, True, False, False, False)


@pytest.fixture
def teacher(teachers: Path) -> surgery.Checkpoint:
    return surgery.load(teachers / "cartpole-dqn.onnx")


def test_the_best_student_is_kept_beside_the_last_one(teacher: surgery.Checkpoint, tmp_path: Path):
    """Its weights are those that had the score, also where the run was stopped in between."""
    given = {
        "evaluate_every": 200,
        "evaluation_epsilon": 0.0,
        "rate": 1e-3,
        "final_rate": 1e-3,
        "evaluation_steps": 60,
    }
    job = job_of(teacher, tmp_path / "run", **given)
    stops = iter([False] * 300 + [True])
    with store.owning(job.folder):
        store.agree_on(job.folder, config(job))
        begun = Session.open(job)
        with pytest.raises(Stopped):
            Loop(begun, stop=lambda: next(stops)).run()
        begun.close()
    outcome = execute(job)
    assert outcome.resumed
    returns = [line["return"] for line in lines(tmp_path / "run", "evaluation")]
    assert outcome.best_return == max(returns)
    assert outcome.mean_return == returns[-1]
    assert outcome.best_frames % 200 < 4
    due = 1 + max(number for number, mean in enumerate(returns) if mean == max(returns))
    session = Session(replace(job, folder=tmp_path / "other"))
    best = surgery.load(outcome.best)
    session.student.load({name: torch.from_numpy(array) for name, array in weights(outcome.best).items()})
    played = Loop(session)._play(Actor(session.student).greedy, 3 + due, 2)
    session.close()
    assert played.returns.mean() == outcome.best_return
    assert best.optimizer is None
    assert "scores" not in best.environment.settings  # the largest of several is no measurement


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_is_remembered_and_a_second_one_heeded_at_once(number: signal.Signals):
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with Interrupts() as interrupts:
        assert not interrupts.requested
        signal.raise_signal(number)
        assert interrupts.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_wish_to_stop_is_heeded_while_the_teacher_is_measured(teacher: surgery.Checkpoint, tmp_path: Path):
    with store.owning(tmp_path):
        session = Session.open(job_of(teacher, tmp_path))
        with pytest.raises(Stopped):
            Loop(session, stop=lambda: True).run()
    session.close()
    saved, _ = store.newest(tmp_path)
    assert saved is not None and saved.record["progress"]["phase"] == "measuring"


@pytest.mark.parametrize("prioritised", [False, True])
def test_a_run_that_diverges_leaves_what_was_good(
    prioritised: bool, teacher: surgery.Checkpoint, tmp_path: Path
):
    wild = {"rate": 1e30, "final_rate": 1e30, "prioritised": prioritised}
    job = job_of(teacher, tmp_path, method="scratch", **wild)
    for _ in range(2):  # and does so again, from the last good checkpoint
        with pytest.raises(RunFailed, match="no longer a number") as error:
            execute(job)
        assert "--set rate=2.5e+29 --set final_rate=2.5e+29" in str(error.value.hint)
        saved, problems = store.newest(tmp_path)
        assert saved is not None and not problems
        assert all(bool(torch.isfinite(one).all()) for one in saved.tensors["student"].values())
        for name in ("student.onnx", "best.onnx"):
            assert all(np.isfinite(array).all() for array in weights(tmp_path / name).values())


def test_a_student_that_is_no_number_is_written_nowhere(teacher: surgery.Checkpoint, tmp_path: Path):
    with store.owning(tmp_path):
        session = Session.open(job_of(teacher, tmp_path))
    session.export(), session.save()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    next(session.student.module.parameters()).data.view(-1)[0] = float("nan")
    for write in (session.export, session.save):
        with pytest.raises(RunFailed, match="no longer a number"):
            write()
    session.close()
    assert {path: path.read_bytes() for path in before} == before


def test_forbidden_actions_are_neither_taken_nor_learned_from(tmp_path: Path):
    """CartPole has two actions, the model five, of which its contract allows two."""
    model = new("mlp-8", observation=(4,), actions=5, seed=3)
    options = Options(
        frames=1000, envs=2, changes={"evaluation_episodes": 2, "epsilon_end": 0.3, "evaluation_steps": 50}
    )
    environment = Environment("CartPole-v1", {"action_mask": MASK})
    job = plan_finetune(model, tmp_path, environment=environment, options=options)
    session = Session(job)
    output = torch.tensor([[0.0, 1.0, 9.0, 9.0, 9.0]])
    assert session.student.best(output).item() == session.learner.target.best(output).item() == 1
    session.close()
    outcome = execute(job)
    done = Session.open(job)
    rows = done.replay._rows
    assert set(rows.action[rows.kind == 1]) == {0, 1}
    done.close()
    student = surgery.load(outcome.student)
    assert student.environment.settings["action_mask"] == MASK
    assert surgery.load(outcome.best).environment.settings["action_mask"] == MASK


class Broken(gymnasium.Env):
    """Episodes of five steps, somewhere in which something is no number."""

    observation_space = gymnasium.spaces.Box(-10, 10, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    where, when, moments = "", 0, 0

    def shown(self, where: str, number: float = 0.0) -> float:
        Broken.moments += where == Broken.where
        return np.nan if where == Broken.where and Broken.moments == Broken.when else number

    def reset(self, *, seed: int | None = None, options: object = None):
        self.age = 0
        return np.array([0, 0, self.shown("reset"), 0], np.float32), {}

    def step(self, action: int):
        self.age += 1
        seen = np.array([0, self.shown("step"), 0, 0], np.float32)
        return seen, self.shown("reward", float(action)), self.age == 5, False, {}


@pytest.mark.parametrize(
    ("where", "when", "what"),
    [("reset", 1, "an observation"), ("reset", 9, "an observation"), ("step", 8, "an observation"),
     ("reward", 8, "a reward"), ("", 1, "")],
)  # fmt: skip
def test_what_an_environment_gives_that_is_no_number_is_said_of_the_environment(
    where: str, when: int, what: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(
        gymnasium.registry, "Broken-v0", gymnasium.envs.registration.EnvSpec("Broken-v0", Broken)
    )
    for name, value in (("where", where), ("when", when), ("moments", 0)):
        monkeypatch.setattr(Broken, name, value)
    envs = Guarded(make(Environment("Broken-v0"), 2, seed=0, training=True))
    with (
        pytest.raises(RunFailed, match=f"Broken-v0 gave {what} that is not a number")
        if what
        else nullcontext()
    ):
        envs.reset()
        for _ in range(40):
            envs.step(np.zeros(2, np.int64))
