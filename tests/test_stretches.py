"""Students and teachers with a memory: what is drawn, what is remembered, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

import surgery
from surgery.architectures import new
from surgery.distill import Job, Options, execute, plan_distill, store
from surgery.distill.actor import Actor
from surgery.distill.session import Session
from surgery.distill.teacher import Teacher
from surgery.envs import make
from surgery.errors import ArgumentError, CorruptFile
from surgery.interface import Environment
from surgery.policy import load
from surgery.replay import Layout, Replay, Transitions, Window, fill, read_transitions, restore, write_segment

CARTPOLE = Environment("CartPole-v1", {"max_episode_steps": 23})
"""Episodes that end by falling, and many that are cut off."""


def job_of(teacher: surgery.Checkpoint | None, folder: Path, to: str, **given: object) -> Job:
    method = "qdagger" if teacher else "scratch"
    changes = {"evaluation_episodes": 2, "unroll": 10, "burn_in": 5, **given}
    options = Options(frames=1000, envs=3, device="cpu", changes=changes)
    return plan_distill(teacher, to, folder, environment=CARTPOLE, method=method, options=options)


def played(session: Session, steps: int) -> dict[bytes, np.ndarray]:
    """Play at random into the replay; what the student's values were at each observation, in the game."""
    said, network, observation, begins = {}, session.student, session.begin(), np.ones(3, bool)
    for _ in range(steps):
        before = session.actor.remembered(session.envs.num_envs)
        state = session.actor.state(session.envs.num_envs)
        values, _ = network.step(network.there(observation), state)
        session.actor.greedy(observation)
        said |= {row.tobytes(): q for row, q in zip(observation, values.detach().numpy(), strict=True)}
        step = session.envs.step(session.actions.integers(2, size=len(observation)))
        session.replay.add(
            observation, np.zeros(3, np.int64), step.reward, step.terminated, step.truncated,
            step.next_observation, state=before, begins=begins,
        )  # fmt: skip
        session.forget(step.begins)
        observation, begins = step.observation, step.begins
    return said


@pytest.mark.parametrize("to", ["lstm-12", "gru-8-8"])
@pytest.mark.parametrize("restored", [False, True])
def test_from_a_stored_state_the_student_says_what_it_said_in_the_game(
    to: str, restored: bool, tmp_path: Path
):
    session = Session(job_of(None, tmp_path, to, burn_in=0))
    said = played(session, 300)
    replay, network = session.replay, session.student
    if restored:
        replay = Replay(replay.layout, 4000, n_step=3, window=replay.window)
        restore(replay, tmp_path, write_segment(session.replay, tmp_path, ()))
    worst = {"stored": 0.0, "forgotten": 0.0}
    for name in worst:
        batch = replay.sample(64, np.random.default_rng(1))
        stretch, begins = batch.stretch, torch.from_numpy(batch.stretch.begins)
        rows = torch.as_tensor(stretch.state) * (name == "stored")
        state = network.unpacked(rows)
        for time, observation in enumerate(batch.observation):
            values, state = network.step(torch.from_numpy(observation), network.cleared(state, begins[time]))
            for row, value in zip(observation, values.detach().numpy(), strict=True):
                if row.tobytes() in said:
                    worst[name] = max(worst[name], float(np.abs(value - said[row.tobytes()]).max()))
    assert worst["stored"] < 1e-5
    assert worst["forgotten"] > 1e-3
    session.close()


@pytest.mark.parametrize("capacity", [4000, 200])
def test_every_stretch_is_the_game_as_it_was_played(capacity: int):
    """Observations count steps, and returns of three steps count rewards: an end is crossed by none of them."""
    layout, window = Layout(2, (2,), "float32"), Window(4, 6, 0)
    replay = Replay(layout, capacity, n_step=3, gamma=0.5, window=window)
    ages, episode = np.zeros(2), np.arange(2) * 1000.0
    lengths, generator = [7, 13], np.random.default_rng(0)
    for _ in range(300):
        now = np.stack([episode, ages], axis=1).astype(np.float32)
        ages = ages + 1
        over = ages == lengths
        after = np.stack([episode, ages], axis=1).astype(np.float32)
        cut = over & (episode % 2 == 0)
        replay.add(now, np.zeros(2, int), ages, over & ~cut, cut, after)
        episode, ages = episode + over, np.where(over, 0, ages)
    batch = replay.sample(40, generator)
    flat = np.asarray(batch.observation).reshape(-1, 2)
    here = flat[4 * 40 : 10 * 40]
    for b in np.flatnonzero(batch.weight):
        number, age = here[b]
        length = lengths[int(number >= 1000)]
        steps = int(min(3, length - age))
        ends = age + steps == length
        terminated = ends and number % 2 == 1
        assert batch.returns[b] == pytest.approx(sum(0.5**k * (age + 1 + k) for k in range(steps)))
        assert batch.discount[b] == pytest.approx(0 if terminated else 0.5**steps)
        if not terminated:
            assert tuple(flat[batch.stretch.after[b]]) == (number, age + steps)
    begins = batch.stretch.begins
    observed = np.asarray(batch.observation)
    assert (observed[begins][:, 1] == 0).all()
    assert batch.weight.mean() == pytest.approx(1)
    assert 0 < (batch.weight == 0).mean() < 0.5
    for time in range(1, len(observed)):
        same = observed[time, :, 0] == observed[time - 1, :, 0]
        assert (observed[time, same, 1] == observed[time - 1, same, 1] + 1).all()
        assert begins[time, ~same].all()


@pytest.mark.parametrize(
    ("held", "stack", "begins"),
    [
        (20, 1, [0, 3, 6]),  # 4 + 6 + 3 observations: from 7 on there are too few
        (17, 1, [3, 6]),  # the first three are overwritten
        (17, 2, [6]),  # and what is at 3 would be a stack with one of them
        (13, 1, []),
    ],
)
def test_stretches_overlap_by_half_and_are_whole_and_each_as_likely_as_the_other(
    held: int, stack: int, begins: list[int], rng: np.random.Generator
):
    window = Window(4, 6, 0)
    written, left = np.array([2, 20, 20]), np.array([2, held, held])
    streams, found = window.draw(written, left, stack=stack, n_step=3, size=600, generator=rng)
    assert set(zip(streams.tolist(), found.tolist(), strict=True)) == {(k, b) for k in (1, 2) for b in begins}
    counts = np.bincount(found[streams == 2], minlength=7)[begins]
    assert (counts > 0.7 * 300 / max(1, len(begins))).all()


class Round(gymnasium.Env):
    """Three places in a ring, seen one-hot: action 1 goes on, and an episode ends where it began."""

    observation_space = gymnasium.spaces.Discrete(3)
    action_space = gymnasium.spaces.Discrete(2)
    place = 0

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[int, dict]:
        super().reset(seed=seed)
        self.place = 0
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict]:
        self.place += int(action)
        return self.place % 3, 1.0, self.place == 3, False, {}


gymnasium.register("SurgeryRound-v0", Round, max_episode_steps=9)
ROUND = Environment("SurgeryRound-v0")


def test_an_episode_that_begins_with_what_the_last_one_ended_with_is_another_one(tmp_path: Path):
    changes = {"evaluation_episodes": 1, "unroll": 10, "burn_in": 2, "epsilon_end": 1.0}
    options = Options(frames=1000, envs=3, device="cpu", changes=changes)
    job = plan_distill(None, "gru-4", tmp_path / "run", environment=ROUND, method="scratch", options=options)
    execute(job)
    session, same = Session.open(job), 0  # from the run's own files
    batch = session.replay.sample(200, np.random.default_rng(0))
    begins, seen = batch.stretch.begins, np.asarray(batch.observation)
    action, played = batch.action.reshape(-1, 200), batch.weight.reshape(-1, 200) > 0
    for time in range(10):
        ended = played[time] & (seen[time + 2, :, 2] == 1) & (action[time] == 1)
        np.testing.assert_array_equal(begins[time + 3, played[time]], ended[played[time]])
        assert (seen[time + 3, ended, 0] == 1).all()
        same += int(ended.sum())
    assert same > 100
    known = np.asarray(batch.stretch.state).any(axis=1)
    assert not known[begins[0]].any()
    assert known[~begins[0]].mean() > 0.5  # the last observation of what was cut off has none
    session.close()


@pytest.mark.parametrize("flag", ["terminated", "truncated", "begins"])
def test_a_recording_says_where_an_episode_begins_that_looks_like_going_on(flag: str, tmp_path: Path):
    """The same ring, three steps an episode; what ends it is told by any of the flags."""
    place, last = np.arange(30) % 3, np.arange(30) % 3 == 2
    flags = {"terminated": last if flag == "terminated" else np.zeros(30, bool)}
    flags |= {"truncated": last} if flag == "truncated" else {}
    flags |= {"begins": place == 0} if flag == "begins" else {}
    seen = np.eye(3, dtype=np.float32)
    np.savez(
        tmp_path / "ring.npz", obs=seen[place], next_obs=seen[(place + 1) % 3], action=place,
        reward=np.ones(30), **flags,
    )  # fmt: skip
    replay, told = Replay(Layout(1, (3,), "float32"), 200, scores=3, window=Window(1, 6, 0)), []

    def label(observation: np.ndarray, begins: np.ndarray) -> np.ndarray:
        told.append(bool(begins[0]))
        return np.zeros((1, 3), np.float32)

    fill(replay, read_transitions(tmp_path / "ring.npz"), actions=3, label=label)
    assert told == (place == 0).tolist()
    assert replay._rows.first.sum() == 10
    batch = replay.sample(50, np.random.default_rng(0))
    assert batch.stretch.begins.any()
    assert (batch.discount[batch.weight > 0] == 0).any() == (flag == "terminated")  # else a value follows
    assert (np.asarray(batch.observation)[batch.stretch.begins][:, 0] == 1).all()


def test_a_run_of_an_older_schema_is_refused_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    session = Session.open(job_of(None, tmp_path, "gru-4"))
    with store.owning(tmp_path), monkeypatch.context() as older:
        older.setattr(store, "SCHEMA", 2)
        session.save()
    session.close()
    with pytest.raises(
        CorruptFile, match=f"has schema 2, this version continues only from schema {store.SCHEMA}"
    ):
        Session.open(session.job)


def recurrent_teacher(env: Environment = CARTPOLE) -> surgery.Checkpoint:
    return new("gru-8", observation=(4,), actions=2, seed=3).replace(environment=env)


def alone(teacher: surgery.Checkpoint, episode: list[np.ndarray]) -> np.ndarray:
    policy = load(teacher, backend="torch")
    return np.concatenate([policy.scores(one[None]).numpy() for one in episode])


def test_a_teacher_with_a_memory_is_asked_as_if_it_played_each_game():
    checkpoint = recurrent_teacher()
    teacher, envs = Teacher(checkpoint, CARTPOLE, device="cpu"), make(CARTPOLE, 3, seed=0, training=True)
    games: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(3)]
    observation, over, checked = envs.reset(), np.zeros(3, bool), 0
    for _ in range(60):
        scores = teacher.scores(observation).numpy()
        for k in range(3):
            games[k].append((observation[k], scores[k]))
        step = envs.step(np.arange(3) % 2)
        teacher.forget(step.begins)
        for k in np.flatnonzero(step.begins):
            seen, said = zip(*games[k], strict=True)
            np.testing.assert_allclose(said, alone(checkpoint, list(seen)), atol=1e-5)
            games[k], checked = [], checked + 1
        observation, over = step.observation, over | step.begins
    assert checked >= 3
    assert over.all()
    envs.close()


def test_recorded_transitions_are_labelled_in_the_order_of_the_game():
    checkpoint, lengths = recurrent_teacher(), (5, 9, 4, 12)
    generator = np.random.default_rng(0)
    games = [generator.normal(size=(n + 1, 4)).astype(np.float32) for n in lengths]
    ended = np.concatenate([np.arange(n) == n - 1 for n in lengths])
    ended[13] = False  # of the second game only the next observation shows that it is over
    recorded = Transitions(
        np.concatenate([game[:-1] for game in games]), np.zeros(30, np.int64), np.ones(30, np.float32), ended,
        np.concatenate([game[1:] for game in games]),
    )  # fmt: skip
    replay = Replay(Layout(1, (4,), "float32"), 100, scores=2)
    fill(replay, recorded, actions=2, label=Teacher(checkpoint, CARTPOLE, device="cpu").label)
    batch = replay.sample(200, generator)
    wanted = {
        row.tobytes(): q
        for game in games
        for row, q in zip(game, alone(checkpoint, list(game[:-1])), strict=False)
    }
    for row, said in zip(np.asarray(batch.observation), np.asarray(batch.scores), strict=True):
        np.testing.assert_allclose(said, wanted[row.tobytes()], atol=1e-5)


def test_a_student_with_a_memory_learns_and_teaches_the_next_one(teachers: Path, tmp_path: Path):
    teacher = surgery.load(teachers / "cartpole-dqn.onnx")
    changes = {
        "evaluation_episodes": 4, "evaluate_every": 500, "offline_updates": 120, "teacher_data": 1500,
        "rate": 5e-3, "batch": 16, "unroll": 12, "burn_in": 4,
    }  # fmt: skip
    options = Options(frames=1000, envs=4, device="cpu", changes=changes)
    first = plan_distill(teacher, "gru-24", tmp_path / "1", environment=teacher.environment, options=options)
    outcome = execute(first)
    assert outcome.mean_return > 3 * outcome.random
    student = surgery.load(outcome.student)
    assert [port.kind for port in student.interface.inputs] == ["observation", "state"]
    bare = student.replace(environment=Environment("CartPole-v1"))  # its own score is of few games
    short = {"evaluation_episodes": 4, "offline_updates": 30, "teacher_data": 400}
    for method in ("qdagger", "jsrl"):
        short = short if method == "qdagger" else {"evaluation_episodes": 4}
        again = plan_distill(
            bare, "mlp-16", tmp_path / method, environment=bare.environment, method=method,
            options=Options(frames=1000, envs=4, device="cpu", changes=short),
        )  # fmt: skip
        assert execute(again).frames == 1000


def test_an_actor_forgets_where_an_episode_begins(tmp_path: Path):
    session = Session(job_of(None, tmp_path, "lstm-8"))
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    actor = Actor(session.student)
    actor.greedy(x)
    once = actor.remembered(3)
    actor.forget(np.array([False, True, False]))
    actor.greedy(x)
    twice = actor.remembered(3)
    assert torch.equal(twice[1], once[1])
    assert not torch.equal(twice[0], once[0])
    session.close()


@pytest.mark.parametrize(
    ("make_job", "message"),
    [
        (lambda folder: job_of(None, folder, "lstm-8", prioritised=True), "have no priorities"),
        (lambda folder: job_of(recurrent_teacher(), folder, "gru-8", teacher_data=80), "need at least 100 transitions"),
        (lambda folder: job_of(None, folder, "mlp-8"), "are for students with a memory"),
        (lambda folder: job_of(None, folder, "lstm-8", unroll=0), "are for students with a memory"),
        (
            lambda folder: plan_distill(
                recurrent_teacher(), "gru-8", folder, environment=CARTPOLE, method="rehearsal",
                options=Options(frames=1000),
            ),
            "swaps single transitions",
        ),
    ],
)  # fmt: skip
def test_what_a_memory_cannot_do_is_refused_before_anything_starts(
    make_job: Callable[[Path], Job], message: str, tmp_path: Path
):
    with pytest.raises(ArgumentError, match=message):
        make_job(tmp_path / "run")
    assert not (tmp_path / "run").exists()
