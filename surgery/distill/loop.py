"""The one loop that every method runs in: measure, collect, learn offline, learn online.

Everything that a phase changes is in the session, so that it can be left and taken up again at any step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch

from surgery.arrays import Array
from surgery.distill.acting import Turns, epsilon, explore
from surgery.distill.captured import Arriving
from surgery.distill.checks import check_record, check_teacher, standard_error
from surgery.distill.guarded import alive
from surgery.distill.interrupt import Stopped
from surgery.distill.journal import Pace, Status
from surgery.distill.learner import Objective
from surgery.distill.replays import keep, mixed
from surgery.distill.session import Session
from surgery.distill.weaning import Weaning
from surgery.envs import Step
from surgery.errors import RunFailed, number_text
from surgery.evaluate import Episodes, Score, at_random, evaluate, play
from surgery.json_values import Json
from surgery.replay import Batch, Replay, fill

LINES = 200
"""Lines of metrics in the online phase."""
STATUS_SECONDS = 0.5


class Loop:
    """Runs a session to its end.

    Args:
      session: what to run.
      watch: called now and then with where the run is.
      note: called with what should be said once.
      stop: asked between steps; true saves and raises `Stopped`.
    """

    def __init__(
        self, session: Session, *, watch: Callable[[Status], None] = lambda _: None,
        note: Callable[[str], None] = lambda _: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self._session, self._watch, self._note, self._stop = session, watch, note, stop
        session.note = note
        self._progress, self._settings = session.progress, session.settings
        self._late: tuple[Array, Arriving] | None = None
        self._pace = Pace()

    def run(self) -> None:
        """Run the phases that are left; every evaluation writes the student.

        Raises:
          Stopped: asked to; saved.
          RunFailed: the loss is no number, or the environment is dead; the last checkpoint stands.
          Refused: the teacher plays no better than chance.
          FileError: the disk is full; the last checkpoint stands.
        """
        phases: Mapping[str, Callable[[], None]] = {
            "measuring": self._measure,
            "collecting": self._collect,
            "offline": self._offline,
            "online": self._online,
        }
        while self._progress.phase in phases:
            phases[self._progress.phase]()
            names = [*phases, "done"]
            self._progress.phase = names[names.index(self._progress.phase) + 1]
            self._session.save()

    def _measure(self) -> None:
        """What the teacher and random play are worth here, in whole games and true returns."""
        session, episodes = self._session, 2 * self._settings.evaluation_episodes
        if session.teacher is None:
            generator = np.random.default_rng([self._settings.seed, 1])
            games = self._play(at_random(session.allowed, generator), 1, episodes)
            chance = Score.of(games.returns.tolist(), "random", {}, None)
            self._progress.random = [chance.mean, standard_error(chance)]
            self._event("measured", random=chance.mean)
            return
        teacher = session.teacher
        with alive(session.job.environment.id):
            found = evaluate(
                teacher.checkpoint, environment=teacher.environment, episodes=episodes, measure_random=True,
                num_envs=self._settings.envs, seed=self._settings.seed, device=session.job.device,
                progress=lambda done: self._check_stop(),
            )  # fmt: skip
        check_record(found)
        assert found.random.score is not None
        score, chance = found.score, found.random.score
        self._progress.teacher = [score.mean, standard_error(score)]
        self._progress.teacher_length = float(found.episodes.lengths.mean())
        self._progress.random = [chance.mean, standard_error(chance)]
        self._event(
            "measured", random=chance.mean, teacher=score.mean, teacher_error=standard_error(score),
            teacher_episodes=score.episodes, teacher_mode=found.mode,
        )  # fmt: skip
        check_teacher(*self._progress.teacher, *self._progress.random)
        session.weaning = Weaning(chance.mean, score.mean, self._settings.cutoff, self._settings.floor)

    def _collect(self) -> None:
        """Fill the teacher's replay: from a recording, or by ε-greedy play with ε from 1 to its end.

        A black box brings no replay of its own training; play without exploration would leave most states unseen.
        """
        session, progress, settings = self._session, self._progress, self._settings
        replay, recorded = session.teacher_replay, session.job.recorded
        if recorded is not None:
            own = session.replay if replay is None else replay
            if not len(own):
                label = session.teacher.label if session.teacher and own.scores else None
                fill(own, recorded, actions=session.envs.actions, label=label)
            progress.collected = len(own)
            return
        if replay is None:
            return
        teacher = session.teacher
        assert teacher is not None
        observation, begins = session.begin(), np.ones(settings.envs, np.bool_)
        while progress.collected < settings.teacher_data:
            self._turn("collecting", progress.collected, settings.teacher_data, "steps")
            chance = epsilon(progress.collected, settings.teacher_data, settings.epsilon_end)
            scores = teacher.scores(observation)
            wanted = teacher.choose(scores, session.actions)
            actions = explore(wanted, chance, session.allowed, session.actions)
            step = session.envs.step(actions)
            keep(replay, observation, begins, actions, step, scores)
            session.forget(step.begins)
            progress.collected += len(step.reward)
            observation, begins = step.observation, step.begins
        replay.cut()
        session.renew_envs()

    def _offline(self) -> None:
        """Gradient steps on the teacher's data, λ = 1; then the target is synced and the student measured."""
        session, progress, settings = self._session, self._progress, self._settings
        objective = Objective(session.method.temporal, session.method.offline_loss)
        period = max(1, settings.target_period // settings.update_period)
        while progress.offline < settings.offline_updates:
            self._turn("offline", progress.offline, settings.offline_updates, "updates")
            assert session.teacher_replay is not None
            batch = session.teacher_replay.sample(settings.batch, session.draws)
            self._update(batch, objective, 1.0, None)
            progress.offline += 1
            if progress.offline % period == 0:
                session.learner.sync_target()
            if progress.offline % max(1, settings.offline_updates // 50) == 0:
                self._train_line("offline", 1.0)
        if settings.offline_updates:  # a model that is fine-tuned keeps the target that it brings
            session.learner.sync_target()
        if session.method.fresh_optimizer:
            session.forget_optimizer()
        if not session.method.rehearsal:
            session.free_teacher_replay()

    def _online(self) -> None:
        """Act and learn; λ moves with every evaluation."""
        session, progress, settings = self._session, self._progress, self._settings
        turns, roll_in = None, session.method.roll_in
        if roll_in is not None:
            assert progress.teacher_length is not None
            longest = roll_in.longest(progress.teacher_length)
            spent = progress.steps / settings.budget
            turns = Turns(roll_in, longest, settings.envs, session.actions, spent)
        observation, begins = session.begin(), np.ones(settings.envs, np.bool_)
        while True:
            self._evaluate_if_due()
            if progress.steps >= settings.budget:
                return
            self._turn("online", session.frames, settings.budget * settings.skip, "frames")
            state = session.actor.remembered(settings.envs)
            actions, scores = self._act(observation, turns)
            begun = session.envs.begin(actions)
            self._learn()  # while emulators run in threads of their own; queued on a device, while others do
            step = begun()
            keep(session.replay, observation, begins, actions, step, scores, state)
            session.forget(step.begins)
            self._count(step, turns)
            observation, begins = step.observation, step.begins

    def _act(self, observation: Array, turns: Turns | None) -> tuple[Array, torch.Tensor | None]:
        """What is done, and what the teacher says of the observation where that is needed."""
        session, settings, teacher = self._session, self._settings, self._session.teacher
        chance = epsilon(self._progress.steps, settings.epsilon_decay, settings.epsilon_end)
        actions = explore(session.actor.greedy(observation), chance, session.allowed, session.actions)
        if teacher is None:
            return actions, None
        if turns is None:
            return actions, teacher.scores(observation) if session.asks_teacher("online") else None
        fraction = self._progress.steps / settings.budget
        turns.progress(fraction)
        guided = turns.teacher_acts(fraction)
        if not (guided.any() or teacher.remembers):
            return actions, None
        scores = teacher.scores(observation)
        return np.where(guided, teacher.choose(scores, session.actions), actions), scores

    def _weight(self) -> float:
        """λ of the online phase now: 0 where nothing of the teacher is learned there."""
        session = self._session
        if session.method.online_loss == "none":
            return 0.0
        before, session.weaning = session.weaning, session.weaning.past_cutoff(self._progress.steps)
        self._say_when_silent(before)
        return session.weaning.value if session.method.weaned else 1.0

    def _learn(self) -> None:
        """The gradient steps that are due."""
        session, progress, settings = self._session, self._progress, self._settings
        weight = self._weight()
        objective = Objective(session.method.temporal, session.method.online_loss if weight > 0 else "none")
        while progress.owed >= 1:
            progress.owed -= 1
            batch = session.replay.sample(settings.batch, session.draws)
            if session.method.rehearsal and session.teacher_replay is not None:
                batch = mixed(batch, session.teacher_replay, session.method.rehearsal, session.draws)
            self._update(batch, objective, weight, session.replay)

    def _update(self, batch: Batch, objective: Objective, weight: float, replay: Replay | None) -> None:
        session, settings = self._session, self._settings
        loss = session.learner.update(
            batch, objective, weight=weight * settings.coefficient, rate=settings.rate_at(weight)
        )
        self._progress.updates += 1
        if replay is not None and replay.prioritised:
            self._prioritise(replay, batch, loss)

    def _prioritise(self, replay: Replay, batch: Batch, loss: torch.Tensor) -> None:
        """New priorities; on a device one step late, so that it is never waited for."""
        arriving = (batch.rows, Arriving(loss))
        if self._session.student.device == "cpu":
            self._late = arriving
        if self._late is not None:
            rows, losses = self._late[0], self._late[1].read()
            self._check_parts({"loss": float(losses.max())})
            replay.set_priorities(rows, losses)
        self._late = arriving

    def _count(self, step: Step, turns: Turns | None) -> None:
        session, progress, settings = self._session, self._progress, self._settings
        before, progress.steps = progress.steps, progress.steps + len(step.reward)
        if len(session.replay) >= max(settings.learn_after, settings.least):
            progress.owed += len(step.reward) / settings.update_period
        if before // settings.target_period != progress.steps // settings.target_period:
            session.learner.sync_target()
        progress.episodes += len(step.finished)
        progress.recent += [total for _, total, _ in step.finished]
        if turns is not None:
            turns.step(np.array([env for env, _, _ in step.finished], np.int64))
        every = max(1, settings.budget // LINES)
        if before // every != progress.steps // every:
            self._train_line("online", self._weight())

    def _evaluate_if_due(self) -> None:
        """Before the first step, after every `evaluate_every` and after the last; λ follows the score."""
        session, progress, settings = self._session, self._progress, self._settings
        last = progress.steps >= settings.budget and settings.budget % settings.evaluate_every != 0
        due = progress.steps // settings.evaluate_every + 1 + last
        if progress.evaluated >= due:
            return
        session.check_finite()
        generator = np.random.default_rng([settings.seed, 2, due])
        chance = settings.evaluation_epsilon
        actor = session.actor.silent()
        games = self._play(
            lambda x: explore(actor.greedy(x), chance, session.allowed, generator),
            3 + due, settings.evaluation_episodes, ended=actor.forget,
        )  # fmt: skip
        score = Score.of(games.returns.tolist(), f"epsilon:{chance:g}", {}, None)
        progress.evaluated = due
        progress.mean_return = score.mean
        if progress.best_return is None or score.mean >= progress.best_return:
            progress.best_return, progress.best_steps = score.mean, progress.steps
            session.keep_best()
        session.score = None if games.cut else score
        self._wean(games, score)
        session.export()  # before the checkpoint: a run killed between the two evaluates once more
        session.save()

    def _wean(self, games: Episodes, score: Score) -> None:
        session, progress = self._session, self._progress
        before = session.weaning
        line: dict[str, Json] = {
            "return": score.mean, "error": standard_error(score), "episodes": score.episodes,
            "returns": games.returns.tolist(), "cut": games.cut,
        }  # fmt: skip
        if progress.teacher is not None:
            error = math.hypot(standard_error(score), progress.teacher[1])
            session.weaning = before.step(score.mean, progress.steps, error=error)
            line |= {"score": session.weaning.score, "lambda": self._weight()}
        elif progress.random is not None:
            line["above_random"] = score.mean - progress.random[0]
        self._line("evaluation", "online", line)
        self._say_when_silent(before)

    def _say_when_silent(self, before: Weaning) -> None:
        """Say so where λ has become 0, why, and for how long."""
        session, teacher, student = self._session, self._progress.teacher, self._progress.mean_return
        now = session.weaning
        changed = (before.value > 0 and now.value == 0) or now.over != before.over
        if not (session.method.weaned and changed) or teacher is None or student is None:
            return
        name = now.silenced_by(self._progress.steps)
        until = (
            "from here on, and learning continues without the teacher"
            if now.over
            else "until the next evaluation"
        )
        self._event(name, score=now.score, student=student, teacher=teacher[0])
        self._note(
            f"{name} after {session.frames:,} frames (student {number_text(student, 4)}, "
            f"teacher {number_text(teacher[0], 4)}): λ is 0 {until}"
        )

    def _play(
        self, act: Callable[[Array], Array], salt: int, episodes: int,
        ended: Callable[[Array], None] = lambda _: None,
    ) -> Episodes:  # fmt: skip
        envs, limit = self._session.evaluation_envs(salt), self._settings.evaluation_steps
        try:
            return play(envs, self._patient(act), episodes, limit=limit, ended=ended)
        finally:
            envs.close()

    def _patient(self, act: Callable[[Array], Array]) -> Callable[[Array], Array]:
        """The same policy, heeding a wish to stop in the midst of an evaluation."""

        def patient(observation: Array) -> Array:
            self._check_stop()
            return act(observation)

        return patient

    def _turn(self, phase: str, done: int, total: int, unit: str) -> None:
        """What happens between any two steps: stop, save, show."""
        self._check_stop()
        session = self._session
        if session.due():
            session.save()
        if self._pace.due(STATUS_SECONDS):
            rate = self._pace.rate(phase, done)
            left = (total - done) / rate if rate else None
            weight = self._weight() if phase == "online" else 1.0
            self._watch(
                Status(phase, done, total, unit, rate or 0.0, self._progress.mean_return, weight, left)
            )

    def _check_stop(self) -> None:
        if self._stop():
            self._session.save()
            raise Stopped

    def _train_line(self, phase: str, weight: float) -> None:
        progress, settings = self._progress, self._settings
        read = self._session.learner.read()
        self._check_parts(read)
        parts: dict[str, Json] = dict(read)
        if not self._session.asks_teacher(phase):
            parts["agreement"] = None
        recent, progress.recent = progress.recent, []
        self._line(
            "train", phase,
            {
                "return": float(np.mean(recent)) if recent else None,
                "episodes": len(recent),
                "lambda": weight,
                "epsilon": epsilon(progress.steps, settings.epsilon_decay, settings.epsilon_end),
                "rate": settings.rate_at(weight),
                **parts,
            },
        )  # fmt: skip

    def _check_parts(self, parts: Mapping[str, float]) -> None:
        if all(math.isfinite(value) for value in parts.values()):
            return
        raise RunFailed(
            f"the loss is no longer a number after {self._progress.updates:,} gradient steps",
            where={"loss": ", ".join(f"{name} {value:.3g}" for name, value in parts.items())},
            hint=self._session.advice,
        )

    def _event(self, name: str, **values: Json) -> None:
        self._line("event", self._progress.phase, {"event": name, **values})

    def _line(self, kind: str, phase: str, values: Mapping[str, Json]) -> None:
        session, progress = self._session, self._progress
        assert session.journal is not None
        session.journal.write(
            {
                "kind": kind, "phase": phase, "step": progress.steps, "frames": session.frames,
                "updates": progress.updates, "seconds": round(session.tick(), 3), **values,
            }
        )  # fmt: skip
