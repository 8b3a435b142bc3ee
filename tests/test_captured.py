"""The gradient step as it is recorded for a GPU, replayed kernel by kernel on the CPU: the same numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from surgery.architectures import new
from surgery.distill.actor import Actor
from surgery.distill.captured import WARM_UP, Captured, Staging
from surgery.distill.learner import Learner, Objective, make_optimizer
from surgery.distill.methods import METHODS
from surgery.distill.network import Network
from surgery.distill.settings import Settings
from surgery.distill.values import values_of
from surgery.interface import Environment
from surgery.policy.feeds import state_ports
from surgery.replay import Layout, Replay, Window
from surgery.torch import to_module
from tests.recording import Recording

STEPS = 9


def remembers(to: str) -> bool:
    return "gru" in to or "lstm" in to


def learner_of(
    to: str,
    head: str,
    noisy: bool,
    shape: tuple[int, ...],
    *,
    recorded: bool,
    failing: Sequence[int] = (),
    device: str = "cpu",
    kind: str = "adam",
    precision: torch.dtype = torch.float32,
    at_once: bool | None = None,
) -> tuple[Learner, Recording | None]:
    scale, recurrent = 1 / 255 if len(shape) == 3 else None, remembers(to)
    checkpoint = new(to, observation=shape, actions=3, head=head, noisy=noisy, scale=scale, seed=2)
    settings = Settings.scaled(
        METHODS["qdagger"], Environment("CartPole-v1"), frames=1000, seed=0, envs=2, recurrent=recurrent
    )
    settings = settings.changed(
        {"double": True, "batch": 8, **({"unroll": 6, "burn_in": 3} if recurrent else {})}
    )
    student, target = (
        Network(
            to_module(checkpoint),
            values_of(checkpoint),
            shape,
            states=state_ports(checkpoint),
            device=device,
            precision=precision,
            at_once=at_once,
        )
        for _ in range(2)
    )
    optimizer = make_optimizer(kind, student, 1e-3, recorded=recorded or None)
    recording = None

    def state() -> list[torch.Tensor]:
        moments = [one for kept in learner.optimizer.state.values() for one in kept.values()]
        tensors = [*student.module.parameters(), *target.module.parameters(), *moments, learner._sums]
        return [one for one in tensors if isinstance(one, torch.Tensor)]

    if recorded:
        recording = Recording(state, failing=failing)
    learner = Learner(
        student, target, optimizer, settings, actions=3, teacher_temperature=0.1, recorder=recording
    )
    return learner, recording


def filled(recurrent: bool, shape: tuple[int, ...], *, device: str = "cpu", n_step: int = 3) -> Replay:
    window, generator = Window(3, 6, 0) if recurrent else None, np.random.default_rng(0)
    kind = "uint8" if len(shape) == 3 else "float32"
    replay = Replay(Layout(2, shape, kind), 400, n_step=n_step, scores=3, window=window, device=device)

    def seen() -> np.ndarray:
        return (40 * generator.normal(size=(2, *shape)) % 256).astype(kind)

    observation = seen()
    for _ in range(150):
        after, over = seen(), generator.random(2) < 0.1
        action, reward = generator.integers(3, size=2), generator.normal(size=2)
        scores = generator.normal(size=(2, 3)).astype(np.float32)
        replay.add(observation, action, reward, over, np.zeros(2), after, None, scores)
        observation = np.where(over.reshape(2, *[1] * len(shape)), seen(), after)
    return replay


STUDENTS = [
    ("mlp-16", "q", False), ("mlp-16", "c51", False), ("mlp-16", "qr", False), ("mlp-16", "rainbow", True),
    ("gru-8", "dueling", False), ("gru-8", "q", True), ("nature-fc32", "q", False), ("impala-fc32", "dueling", False),
]  # fmt: skip


@pytest.mark.parametrize(("to", "head", "noisy"), STUDENTS)
def test_replayed_it_is_the_step_that_runs(to: str, head: str, noisy: bool):
    """λ, the learning rate and the batch change from step to step, the recorded kernels do not."""
    shape = (2, 36, 36) if to.startswith(("nature", "impala")) else (5,)
    found, losses = [], []
    for recorded in (False, True):
        learner, recording = learner_of(to, head, noisy, shape, recorded=recorded)
        replay, generator = filled(remembers(to), shape), np.random.default_rng(1)
        torch.manual_seed(5)
        told = []
        for number in range(STEPS):
            batch = replay.sample(8, generator)
            given = learner.update(
                batch, Objective(True, "imitate"), weight=3.0 / (number + 1), rate=1e-2 / (number + 1)
            )
            told.append(given.clone())
            if number == 6:
                learner.sync_target()
        assert recording is None or recording.replays == STEPS - WARM_UP
        found.append([one.detach().clone() for one in learner.student.module.parameters()])
        losses.append((told, learner.read()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    for one, other in zip(losses[0][0], losses[1][0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert losses[0][1] == pytest.approx(losses[1][1], rel=1e-5)


def test_an_optimizer_that_begins_anew_is_not_the_one_that_was_recorded():
    found = []
    for recorded in (False, True):
        learner, recording = learner_of("mlp-16", "q", False, (5,), recorded=recorded)
        replay, generator = filled(False, (5,)), np.random.default_rng(1)
        for number in range(2 * STEPS):
            if number == STEPS:
                learner.optimizer = make_optimizer("adam", learner.student, 1e-3, recorded=recorded or None)
                learner.forget_graphs()
            learner.update(replay.sample(8, generator), Objective(True, "imitate"), weight=1.0, rate=1e-2)
        assert recording is None or recording.replays == 2 * (STEPS - WARM_UP)
        found.append([one.detach().clone() for one in learner.student.module.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("failing", [(), (0,), (1,), (1, 2)], ids=["none", "first", "second", "two"])
def test_noise_is_drawn_once_whichever_of_two_objectives_can_be_recorded(failing: tuple[int, ...]):
    """The teacher falls silent in the middle, and is heard once more: every step draws what it would by itself."""
    drawn = []
    for recorded in (False, True):
        learner, recording = learner_of("mlp-16", "q", True, (5,), recorded=recorded, failing=failing)
        replay, generator = filled(False, (5,)), np.random.default_rng(1)
        torch.manual_seed(5)
        seen = []
        for number in range(36):
            kind = "none" if 8 <= number < 14 or number % 2 else "imitate"
            learner.update(replay.sample(8, generator), Objective(True, kind), weight=1.0, rate=1e-2)
            seen.append(learner.student.module.get_parameter("q.noise_in").clone())
        assert len({tuple(one.tolist()) for one in seen}) == len(seen)
        assert recording is None or recording.replays > (0 if len(failing) == 2 else 4)
        drawn.append(torch.stack(seen))
    torch.testing.assert_close(*drawn, rtol=0, atol=0)


def test_a_number_of_python_would_be_frozen_and_is_seen_to_be():
    """What the test above would show if λ were no tensor."""
    weight = [1.0]
    captured = Captured(lambda given: given * weight[0], Recording(list))
    given = []
    for number in range(6):
        weight[0] = float(number)
        given.append(float(captured(torch.ones(2))[0]))
    assert given == [0.0, 1.0, 2.0, 3.0, 3.0, 3.0]


def test_a_step_that_cannot_be_recorded_runs_as_it_is_and_says_so(caplog: pytest.LogCaptureFixture):
    said: list[str] = []
    captured = Captured(lambda given: given * given.sum().item(), Recording(list), failed=said.append)
    assert [float(captured(torch.full((2,), float(n)))[0]) for n in range(6)] == [
        2.0 * n * n for n in range(6)
    ]
    [text] = said
    assert "kernel by kernel: operation not permitted" in text
    assert not caplog.records  # warnings would be printed, the traceback behind them too


@pytest.mark.parametrize(("to", "head", "noisy"), STUDENTS)
def test_a_student_at_play_takes_the_actions_that_it_would_while_its_weights_change(
    to: str, head: str, noisy: bool
):
    shape = (2, 36, 36) if to.startswith(("nature", "impala")) else (5,)
    learner, _ = learner_of(to, head, noisy, shape, recorded=False)
    recording, generator = Recording(list), np.random.default_rng(0)
    pair = [Actor(learner.student, recorder=recorder) for recorder in (None, recording)]
    for number in range(6):
        seen = (200 * generator.random((3, *shape))).astype(np.float32)
        one, other = (actor.greedy(seen) for actor in pair)
        assert one.tolist() == other.tolist(), number
        with torch.no_grad():
            for weight in learner.student.module.parameters():
                weight.mul_(-1.1)
    assert recording.replays == (0 if remembers(to) else 6 - WARM_UP)


def test_a_student_at_play_is_recorded_anew_after_a_gradient_step_that_cannot_be():
    learner, recording = learner_of("mlp-16", "q", False, (5,), recorded=True, failing=(1,))
    actors = [Actor(learner.student, recorder=recorder) for recorder in (None, recording)]
    replay, generator = filled(False, (5,)), np.random.default_rng(1)
    for _ in range(STEPS):
        seen = (200 * generator.random((3, 5))).astype(np.float32)
        one, other, silent = (actor.greedy(seen).tolist() for actor in (*actors, actors[1].silent()))
        assert one == other == silent
        learner.update(replay.sample(8, generator), Objective(True, "imitate"), weight=1.0, rate=1e-2)
    assert recording.failures == 1
    assert recording.replays > STEPS


def test_a_step_of_play_that_cannot_be_recorded_is_said_and_played():
    learner, _ = learner_of("mlp-16", "q", False, (5,), recorded=False)
    said: list[str] = []
    actors = (
        Actor(learner.student),
        Actor(learner.student, recorder=Recording(list, failing=(0,)), failed=said.append),
    )
    for seen in (200 * np.random.default_rng(0).random((WARM_UP + 2, 3, 5))).astype(np.float32):
        one, other = (actor.greedy(seen).tolist() for actor in actors)
        assert one == other
    assert [text.partition(" cannot")[0] for text in said] == ["a step of play"]


def test_a_wish_to_stop_while_a_step_is_recorded_is_no_failure_of_the_step():
    """Which ending the recording hides behind an error of its own."""

    class Ended(Recording):
        def record(self, step):
            try:
                return super().record(step)
            finally:
                raise RuntimeError("operation failed due to a previous error during capture")

    wishes = iter([0, 0, 0, KeyboardInterrupt])

    def step(given: torch.Tensor) -> torch.Tensor:
        if wish := next(wishes):
            raise wish
        return given

    captured = Captured(step, Ended(list))
    for _ in range(WARM_UP):
        captured(torch.ones(2))
    with pytest.raises(KeyboardInterrupt):
        captured(torch.ones(2))


def test_columns_travel_in_one_piece_and_arrive_as_they_were():
    generator = np.random.default_rng(0)
    staging = Staging("cpu:0", turns=2)
    sent, arrived = [], []
    for size in (3, 7, 5, 6):
        columns = [
            generator.integers(9, size=size), generator.normal(size=size).astype(np.float32),
            generator.random((size, 2)) < 0.5, np.zeros((0, 0), np.float32),
            generator.integers(255, size=1, dtype=np.uint8),
        ]  # fmt: skip
        sent.append(columns)
        arrived.append(staging.send(columns))
    for columns, found in zip(sent, arrived, strict=True):
        for column, tensor in zip(columns, found, strict=True):
            assert tensor.dtype == torch.from_numpy(column).dtype
            np.testing.assert_array_equal(tensor.numpy(), column)
