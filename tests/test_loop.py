"""What happens when in a run: copies to the target, optimizers begun anew, who acts, what a batch is made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import surgery
from surgery.architectures import new
from surgery.distill import Options, execute, plan_distill
from surgery.distill import session as sessions
from surgery.distill.actor import Actor
from surgery.distill.learner import Learner
from surgery.distill.loop import Loop
from surgery.distill.replays import mixed
from surgery.distill.session import Session
from surgery.distill.weaning import Weaning
from surgery.envs import Envs
from surgery.interface import Environment
from surgery.replay import NOWHERE, Batch, Layout, Replay
from tests.small_runs import QUICK, job_of

OFFLINE = QUICK["offline_updates"]
ONLINE = (1000 - 100) // 4
"""Gradient steps: one every 4 steps from the 100th on, `learn_after`."""
TRANSITION = 1


@pytest.fixture
def teacher(teachers: Path) -> surgery.Checkpoint:
    return surgery.load(teachers / "cartpole-dqn.onnx")


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Batch, np.ndarray]]:
    """Every batch of a run, and the losses of it."""
    found, update = [], Learner.update

    def watched(learner: Learner, batch: Batch, *words: object, **given: float) -> torch.Tensor:
        loss = update(learner, batch, *words, **given)
        found.append((batch, loss.numpy().copy()))
        return loss

    monkeypatch.setattr(Learner, "update", watched)
    return found


@pytest.mark.parametrize(("learn_after", "first"), [(100, 100), (0, 32 + 4 * 3)])  # a batch of 3 steps each
def test_the_target_becomes_the_student_once_every_period_and_where_the_offline_phase_ends(
    learn_after: int, first: int, teacher: surgery.Checkpoint, tmp_path: Path, learned: list,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    copied, sync = [], Learner.sync_target
    monkeypatch.setattr(Learner, "sync_target", lambda one: (copied.append(len(learned)), sync(one)))
    execute(job_of(teacher, tmp_path, target_period=40, learn_after=learn_after))
    offline = [10, 20, 30, 40, 50, 60, 60]  # 40 steps of play are 10 gradient steps
    assert copied == offline + [OFFLINE + max(0, step - first) // 4 for step in range(40, 1001, 40)]
    assert len(learned) == OFFLINE + (1000 - first) // 4


@pytest.mark.parametrize(("method", "remembered"), [("pretraining", ONLINE), ("constant", OFFLINE + ONLINE)])
def test_after_pretraining_the_optimizer_begins_anew(
    method: str, remembered: int, teacher: surgery.Checkpoint, tmp_path: Path
):
    job = job_of(teacher, tmp_path, method=method, learn_after=100)
    execute(job)
    session = Session.open(job)
    states = session.learner.optimizer.state.values()
    assert {int(one["step"]) for one in states} == {remembered}
    session.close()


@pytest.mark.parametrize(
    ("method", "own", "shown"),
    [
        ("qdagger", 2, 2),
        ("kickstarting", 2, None),
        ("pretraining", 0, 0),
        ("rehearsal", 0, 0),
        ("jsrl", 0, None),
    ],
)
def test_replays_are_of_the_runs_settings_and_keep_scores_for_whom_asks(
    method: str, own: int, shown: int | None, teacher: surgery.Checkpoint, tmp_path: Path
):
    given = {"n_step": 2, "gamma": 0.9, "clip": 0.5, "prioritised": True, "replay": 2000, "teacher_data": 600}
    session = Session(job_of(teacher, tmp_path, method=method, teacher_temperature=0.7, **given))
    made = [one for one in (session.replay, session.teacher_replay) if one is not None]
    found = [(one.scores, one.prioritised, one.length, one.n_step, one.gamma, one.clip) for one in made]
    # a twentieth more than transitions, in 4 environments
    wanted = [(own, True, 525, 2, 0.9, 0.5), (shown, False, 157, 2, 0.9, 0.5)]
    assert found == wanted[: 1 if shown is None else 2]
    assert session.learner._teacher_temperature == 0.7
    session.close()


def test_training_goes_on_in_new_games_and_every_evaluation_is_of_whole_games_of_its_own(
    teacher: surgery.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made, make = [], sessions.make

    def watched(contract: Environment, count: int, *, seed: int, training: bool) -> Envs:
        made.append((training, seed))
        return make(contract, count, seed=seed, training=training)

    monkeypatch.setattr(sessions, "make", watched)
    execute(job_of(teacher, tmp_path))
    # to show the teacher in, to learn in; before the first step, after each 400 and at the end
    assert [training for training, _ in made] == [True, True, False, False, False, False]
    assert len({seed for _, seed in made}) == 6
    execute(job_of(teacher, tmp_path / "again"))
    assert made[:6] == made[6:]


def test_a_teacher_is_measured_where_its_student_will_learn(teacher: surgery.Checkpoint, tmp_path: Path):
    short = Environment("CartPole-v1", {"max_episode_steps": 60})  # its own is of 500
    options = Options(frames=1000, envs=4, device="cpu", changes={"evaluation_episodes": 3})
    session = Session.open(plan_distill(teacher, "mlp-8", tmp_path, environment=short, options=options))
    Loop(session)._measure()
    random, _ = session.progress.random
    assert (session.progress.teacher, session.progress.teacher_length) == ([60.0, 0.0], 60.0)
    assert 10 < random < 40
    assert session.weaning == Weaning(random, 60.0, cutoff=600, floor=0.0)
    session.close()


def test_what_a_teacher_shows_goes_from_random_actions_to_its_own(
    teacher: surgery.Checkpoint, tmp_path: Path
):
    session = Session(job_of(teacher, tmp_path, teacher_data=4000))
    Loop(session)._collect()
    replay = session.teacher_replay
    rows = np.flatnonzero(replay._rows.kind == TRANSITION)
    assert len(replay) == len(rows) == 4000
    strange = replay._rows.action[rows] != replay._scores.read(rows).argmax(1)
    parts = strange.reshape(4, 4, 250).mean(axis=(0, 2))  # of each environment its quarters
    # half of the random actions are the teacher's, too; ε falls to 0.01
    wanted = [(1 - 0.99 * middle) / 2 for middle in (1 / 8, 3 / 8, 5 / 8, 7 / 8)]
    np.testing.assert_allclose(parts, wanted, atol=4 * 0.5 / 1000**0.5)
    session.close()


@pytest.mark.parametrize(
    ("method", "steps", "least"), [("jsrl", 0, 10), ("jsrl", 500, 4), ("jsrl-released", 0, 1)]
)
def test_in_a_run_the_teacher_opens_or_closes_every_episode(
    method: str, steps: int, least: int, teacher: surgery.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):  # fmt: skip
    """A student who always does what the teacher would not: every action says whose it was."""
    session = Session.open(
        job_of(teacher, tmp_path, method=method, epsilon_decay=0, epsilon_end=0.0, learn_after=10**6)
    )
    wanted = teacher_of(session)
    monkeypatch.setattr(Actor, "greedy", lambda _, seen: 1 - wanted(seen))
    session.progress.teacher_length, session.progress.evaluated = 30.0, 10**6
    session.progress.steps = steps  # of 1000: where the run goes on from
    Loop(session)._online()
    rows = np.flatnonzero(session.replay._rows.kind == TRANSITION)
    own = session.replay._rows.action[rows] == wanted(session.replay._frames.read(rows))
    begins = np.flatnonzero(session.replay._rows.first[rows])
    turns = [own[a:b] for a, b in zip(begins, [*begins[1:], len(own)], strict=True)]
    assert len(turns) > 15
    if method == "jsrl":  # 1 … α steps of the teacher, then the student alone
        lengths = [int(one.sum()) for one in turns]
        assert all(one[:n].all() for one, n in zip(turns, lengths, strict=True))
        assert min(lengths) >= 1
        assert (
            least < max(lengths) <= (9 if steps else 30)
        )  # α is 30, and after five tenths 24, 19, 15, 12, 9
    else:
        assert not any(one[0] for one in turns)
        assert any(one.any() for one in turns)
    session.close()


def test_a_teacher_with_a_memory_sees_what_others_do_before_it_acts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recurrent = new("gru-8", observation=(4,), actions=2).replace(environment=Environment("CartPole-v1"))
    session, asked = Session.open(job_of(recurrent, tmp_path, method="jsrl-released", learn_after=10**6)), []
    scores = session.teacher.scores
    monkeypatch.setattr(session.teacher, "scores", lambda seen: (asked.append(seen), scores(seen))[1])
    session.progress.teacher_length, session.progress.evaluated = 30.0, 10**6
    Loop(session)._online()
    assert len(asked) == 250  # every step in 4 environments
    session.close()


def teacher_of(session: Session):
    """Its best actions."""
    return lambda seen: session.teacher.scores(seen).numpy().argmax(1)


def test_of_a_mixed_batch_some_transitions_are_the_teachers_as_a_whole(rng: np.random.Generator):
    made = []
    for sign in (1, -1):
        replay = Replay(Layout(1, (1,), "float32"), 300, n_step=1, gamma=0.5, prioritised=sign > 0)
        for k in range(1, 201):
            k = sign * k
            never = np.zeros(1, bool)
            replay.add(
                np.full((1, 1), k), np.array([k]), np.array([k]), never, never, np.full((1, 1), k + sign),
                begins=np.array([abs(k) == 1]),
            )  # fmt: skip
        made.append(replay)
    made[0].set_priorities(np.arange(199), np.arange(199.0))
    batch = mixed(made[0].sample(8000, rng), made[1], 1 / 16, rng)
    theirs = batch.action < 0
    assert theirs.mean() == pytest.approx(1 / 16, abs=4 * (15 / 16**2 / 8000) ** 0.5)
    assert set(batch.rows[theirs]) == {NOWHERE}
    assert (batch.rows[~theirs] == batch.action[~theirs] - 1).all()
    np.testing.assert_array_equal(np.asarray(batch.observation)[:, 0], batch.action)
    np.testing.assert_array_equal(
        np.asarray(batch.next_observation)[:, 0], batch.action + np.sign(batch.action)
    )
    np.testing.assert_array_equal(batch.returns, batch.action)
    assert (batch.weight[theirs] == 1).all()
    assert (batch.weight[~theirs] < 1).mean() > 0.9
    assert len(set(batch.action[theirs])) > 100
    kept = made[0].sample(100, rng)
    assert mixed(kept, made[1], 0.0, rng) is kept


def test_rehearsal_takes_a_sixteenth_of_its_batches_from_the_teacher(
    teacher: surgery.Checkpoint, tmp_path: Path, learned: list
):
    execute(job_of(teacher, tmp_path, method="rehearsal", learn_after=100))
    rows = np.concatenate([batch.rows for batch, _ in learned])
    assert len(rows) == 32 * ONLINE
    assert (rows == NOWHERE).mean() == pytest.approx(1 / 16, abs=4 * (15 / 16**2 / len(rows)) ** 0.5)


def test_priorities_are_set_by_the_losses_of_what_was_drawn_from_that_replay_and_kept(
    teacher: surgery.Checkpoint, tmp_path: Path, learned: list, monkeypatch: pytest.MonkeyPatch
):
    given, put = [], Replay.set_priorities
    monkeypatch.setattr(
        Replay, "set_priorities", lambda one, rows, loss: (given.append((rows, loss)), put(one, rows, loss))
    )
    job, last = job_of(teacher, tmp_path, prioritised=True, learn_after=100), {}
    execute(job)
    assert len(given) == ONLINE
    for (batch, loss), (rows, priority) in zip(learned[OFFLINE:], given, strict=True):
        np.testing.assert_array_equal(rows, batch.rows)
        np.testing.assert_array_equal(priority, loss)
        last |= dict(zip(rows.tolist(), loss.tolist(), strict=True))
    again = Session.open(job)
    np.testing.assert_allclose(
        again.replay.priorities[list(last)] ** 2, list(last.values()), rtol=1e-5, atol=1e-9
    )
    again.close()
