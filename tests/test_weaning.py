"""λ: the paper's formula where it means something, and nothing silly where returns are negative, noisy or hopeless."""

from __future__ import annotations

import pytest

from surgery.distill.acting import epsilon
from surgery.distill.checks import check_teacher
from surgery.distill.methods import METHODS, RollIn
from surgery.distill.settings import PAPER, Settings
from surgery.distill.weaning import Weaning
from surgery.errors import ArgumentError, Refused, UnknownName
from surgery.interface import Environment

ATARI = Environment("ALE/Breakout-v5", {"frame_skip": 4, "reward_clip": True})


@pytest.mark.parametrize(
    ("random", "teacher", "score", "wanted"),
    [
        (0.0, 10.0, 0.0, 1.0),
        (0.0, 10.0, 4.0, 0.6),
        (1.7, 31.7, 16.7, 0.5),
        (0.0, 10.0, 10.0, 0.0),
        (0.0, 10.0, 25.0, 0.0),
        (-21.0, 19.0, -20.0, 0.975),  # Pong: without the random score λ would be 2
        (-200.0, -100.0, -200.0, 1.0),  # a ratio of raw returns would give λ = 0 at once
        (-200.0, -100.0, -150.0, 0.5),
        (0.0, 10.0, -5.0, 1.0),  # worse than chance: not above 1
    ],
)
def test_lambda_by_hand(random: float, teacher: float, score: float, wanted: float):
    assert Weaning(random, teacher, None).step(score, 0).value == pytest.approx(wanted)


def test_once_zero_it_stays_zero_however_the_returns_fall():
    weaning = Weaning(0.0, 10.0, None)
    values = []
    for score in (3.0, 8.0, 6.0, 11.0, 2.0, 0.0):
        weaning = weaning.step(score, 0)
        values.append(weaning.value)
    assert values == pytest.approx([0.7, 0.2, 0.4, 0.0, 0.0, 0.0])


def test_one_lucky_evaluation_does_not_send_the_teacher_away_for_good():
    """Returns of benchmarks/results/atari-breakout-impala.json, whose student forgot what it had learned."""
    weaning, values = Weaning(1.3, 32.8, None), []
    for score, error in ((25.8, 4.4), (39.8, 3.9), (35.4, 6.1), (27.3, 3.4), (2.4, 3.1)):
        weaning = weaning.step(score, 0, error=error)
        values.append(round(weaning.value, 2))
    assert values == [0.22, 0.0, 0.0, 0.17, 0.97]
    assert not weaning.over
    assert weaning.step(39.8, 0, error=3.5).over


def test_after_the_cut_off_the_teacher_is_silent():
    weaning = Weaning(0.0, 10.0, 600).step(1.0, 599)
    assert weaning.value == pytest.approx(0.9)
    assert weaning.past_cutoff(599).value == pytest.approx(0.9)
    assert weaning.past_cutoff(600).value == 0
    assert weaning.past_cutoff(600).over
    assert weaning.step(1.0, 600).value == 0
    assert weaning.step(1.0, 600).score == pytest.approx(0.1)


def test_with_a_floor_the_teacher_stays_until_the_cut_off():
    weaning, values = Weaning(0.0, 10.0, 600, floor=0.1), []
    for score, steps in ((3.0, 100), (12.0, 200), (25.0, 300), (2.0, 400), (25.0, 600), (2.0, 700)):
        weaning = weaning.step(score, steps, error=0.1)
        values.append(weaning.value)
    assert values == pytest.approx([0.7, 0.1, 0.1, 0.8, 0.0, 0.0])


@pytest.mark.parametrize(
    ("score", "steps", "why"),
    [
        (10.5, 599, "teacher reached"),
        (12.0, 599, "teacher beaten"),
        (10.5, 600, "cut-off"),  # not beaten, though the student had more
        (3.0, 600, "cut-off"),
    ],
)
def test_why_the_teacher_is_silent_is_said_truly(score: float, steps: int, why: str):
    weaning = Weaning(0.0, 10.0, 600).step(score, steps, error=1.0)
    assert weaning.value == 0
    assert weaning.silenced_by(steps) == why
    between = Weaning(0.0, 10.0, 600).step(score, 599, error=1.0).past_cutoff(steps)
    assert between.silenced_by(steps) == why


def test_the_latch_survives_being_written_down():
    latched = Weaning(0.0, 10.0, 600).step(12.0, 10)
    assert Weaning.from_json(latched.to_json()) == latched
    assert Weaning.from_json(latched.to_json()).step(0.0, 20).value == 0


@pytest.mark.parametrize(
    ("teacher", "teacher_error", "random", "random_error"),
    [(1.0, 0.0, 1.0, 0.0), (0.5, 0.1, 1.0, 0.1), (1.2, 0.2, 1.0, 0.2), (-120.0, 5.0, -100.0, 5.0)],
)
def test_a_teacher_no_better_than_chance_is_refused(
    teacher: float, teacher_error: float, random: float, random_error: float
):
    with pytest.raises(Refused, match="no better than chance"):
        check_teacher(teacher, teacher_error, random, random_error)


def test_a_teacher_better_than_chance_is_taken():
    check_teacher(2.0, 0.1, 1.0, 0.1)
    check_teacher(-100.0, 5.0, -200.0, 5.0)
    assert Weaning(-200.0, -100.0, None).step(-100.0, 0).score == 1


def test_at_the_papers_budget_the_numbers_are_the_papers():
    settings = Settings.scaled(METHODS["qdagger"], ATARI, frames=10_000_000, seed=0, envs=8)
    assert settings.budget == PAPER
    assert settings.offline_updates == 1_000_000
    assert settings.cutoff == 1_500_000
    assert settings.target_period == 8000
    assert settings.learn_after == 20_000
    assert settings.replay == settings.teacher_data == 1_000_000
    assert settings.evaluate_every == 250_000
    assert (settings.n_step, settings.gamma, settings.batch, settings.update_period) == (3, 0.99, 32, 4)
    assert (settings.coefficient, settings.temperature) == (3.0, 0.1)
    assert settings.clip == 1.0


DO, NO = "imitate", "none"
JSRL, RELEASED = RollIn(1000, 0.8, "first"), RollIn(100, 0.8, "after")
PAPERS = {
    # n · offline: gradient steps, loss · online: TD, loss · their coefficient · λ: follows, t₀, floor · rates at λ = 1
    # and 0 · steps in which ε falls · share of the teacher's data
    "qdagger": (3, 10**6, DO, True, DO, 3.0, True, 1_500_000, 0.0, 1e-4, 1e-5, 0, 0.0),
    "qdagger-kept": (3, 10**6, DO, True, DO, 3.0, True, None, 0.1, 1e-4, 1e-5, 0, 0.0),
    "constant": (3, 10**6, DO, True, DO, 3.0, False, None, 0.0, 1e-4, 1e-5, 0, 0.0),
    "dagger": (3, 10**6, DO, False, DO, 3.0, False, None, 0.0, 1e-4, 1e-5, 0, 0.0),
    "kickstarting": (3, 0, NO, True, DO, 3.0, True, 1_500_000, 0.0, 1e-4, 1e-5, 50_000, 0.0),
    "pretraining": (3, 10**6, "conservative", True, NO, 1.0, False, None, 0.0, 1e-4, 1e-5, 0, 0.0),
    "rehearsal": (3, 0, NO, True, NO, 1.0, False, None, 0.0, 1e-4, 1e-4, 50_000, 1 / 16),
    "dqfd": (3, 10**6, "margin", True, "margin", 1.0, True, 1_500_000, 0.0, 1e-4, 1e-4, 0, 0.0),
    "jsrl": (3, 0, NO, True, NO, 1.0, False, None, 0.0, 1e-4, 1e-4, 50_000, 0.0),
    "jsrl-released": (1, 0, NO, True, NO, 1.0, False, None, 0.0, 6.25e-5, 6.25e-5, 50_000, 0.0),
    "scratch": (3, 0, NO, True, NO, 1.0, False, None, 0.0, 1e-4, 1e-4, 50_000, 0.0),
    "finetune": (1, 0, NO, True, NO, 1.0, False, None, 0.0, 1e-5, 1e-5, 0, 0.0),
}
"""As published or released (arXiv:2206.01626 and its configurations), at 10 M frames; `qdagger-kept` is ours."""


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_what_was_published_or_released(name: str):
    method = METHODS[name]
    settings = Settings.scaled(method, ATARI, frames=10**7, seed=0, envs=8)
    found = (
        settings.n_step, settings.offline_updates, method.offline_loss, method.temporal, method.online_loss,
        settings.coefficient, method.weaned, settings.cutoff, settings.floor, settings.rate, settings.final_rate,
        settings.epsilon_decay, method.rehearsal,
    )  # fmt: skip
    assert found == PAPERS[name]
    assert (settings.margin, settings.temperature, settings.teacher_temperature) == (1.0, 0.1, None)
    assert settings.teacher_data == (10**6 if settings.offline_updates or method.rehearsal else 0)
    assert method.roll_in == {"jsrl": JSRL, "jsrl-released": RELEASED}.get(name)


@pytest.mark.parametrize("name", METHODS)
def test_a_tenth_of_the_budget_is_a_tenth_of_every_phase(name: str):
    whole, tenth = (
        Settings.scaled(METHODS[name], ATARI, frames=frames, seed=0, envs=8) for frames in (10**7, 10**6)
    )
    for field in ("budget", "offline_updates", "cutoff", "epsilon_decay", "evaluate_every"):
        assert (getattr(whole, field) or 0) == 10 * (getattr(tenth, field) or 0), field


MINATAR = Environment("MinAtar/Breakout-v1", {"reward_clip": 5})


@pytest.mark.parametrize(
    ("method", "frames", "envs", "recurrent", "wanted"),
    [
        (
            "qdagger", 500_000, 8, False,  # a fifth of the paper's
            {"skip": 1, "budget": 500_000, "target_period": 1600, "learn_after": 4000, "replay": 500_000,
             "teacher_data": 200_000, "offline_updates": 200_000, "cutoff": 300_000, "alone": 50_000,
             "evaluate_every": 50_000, "evaluation_steps": 3125, "epsilon_decay": 0, "clip": 5.0, "least": 32 + 8 * 3},
        ),
        (
            "kickstarting", 5001, 4, False,  # what shrinks no further
            {"budget": 5001, "target_period": 1000, "learn_after": 500, "replay": 10_000, "teacher_data": 0,
             "offline_updates": 0, "cutoff": 3001, "alone": 500, "evaluate_every": 501, "evaluation_steps": 2500,
             "epsilon_decay": 100, "burn_in": 0, "unroll": 0},
        ),
        (
            "qdagger", 10_000_000, 8, True,  # memories: a sixteenth of the steps, on stretches
            {"budget": 10_000_000, "target_period": 8000, "learn_after": 20_000, "replay": 1_000_000,
             "teacher_data": 1_000_000, "offline_updates": 1_000_000, "update_period": 16, "batch": 16, "burn_in": 20,
             "unroll": 40, "alone": 250_000, "evaluation_steps": 62_500, "least": 16 + 8 * (3 + 20 + 2 * 40)},
        ),
        ("rehearsal", 100_000, 8, False, {"teacher_data": 40_000, "offline_updates": 0, "cutoff": None, "alone": None}),
        ("scratch", 100_000, 8, False, {"teacher_data": 0, "double": False, "prioritised": False, "floor": 0.0}),
    ],
)  # fmt: skip
def test_at_other_budgets_the_numbers_are_the_same_fractions_within_bounds(
    method: str, frames: int, envs: int, recurrent: bool, wanted: dict[str, object]
):
    settings = Settings.scaled(
        METHODS[method], MINATAR, frames=frames, seed=0, envs=envs, recurrent=recurrent
    )
    assert {name: getattr(settings, name) for name in wanted} == wanted


def test_a_setting_may_have_any_value_up_to_its_bounds_and_none_where_that_means_something():
    given = {
        "n_step": 1, "gamma": 1, "floor": 1.0, "epsilon_end": 0, "learn_after": 0, "rate": 0, "unroll": 0,
        "cutoff": None, "clip": None, "teacher_temperature": 2, "evaluation_epsilon": 1,
    }  # fmt: skip
    settings = Settings.scaled(METHODS["qdagger"], ATARI, frames=10**6, seed=3, envs=8).changed(given)
    assert {name: getattr(settings, name) for name in given} == given
    assert settings.alone is None
    assert isinstance(settings.gamma, float)
    assert settings.changed({"cutoff": 10**9}).alone == 0
    assert settings.changed({"cutoff": 249_000}).alone == 250
    assert (settings.rate_at(1), settings.rate_at(0)) == (0, 1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_step": 0}, "at least 1"),
        ({"learn_after": -1}, "at least 0"),
        ({"cutoff": 0.5}, "is a whole number, got 0.5"),
        ({"batch": None}, "is a whole number, got None"),
        ({"gamma": True}, "is a number, got True"),
        ({"teacher_temperature": 0.0}, "above 0"),
        ({"evaluation_epsilon": -0.1}, "lies in 0 … 1"),
        ({"method": "dagger"}, "cannot be set by hand"),
        ({"gamma": 1.5}, "lies in 0 … 1"),
        ({"temperature": 0.0}, "above 0"),
        ({"clip": 0.0}, "'clip' is above 0"),
        ({"batch": "many"}, "is a whole number, got 'many'"),
        ({"double": 1}, "is true or false, got 1"),
        ({"batch": True}, "is a whole number, got True"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(changes: dict[str, object], message: str):
    settings = Settings.scaled(METHODS["qdagger"], ATARI, frames=10**6, seed=3, envs=8)
    with pytest.raises(ArgumentError, match=message):
        settings.changed(changes)


def test_an_unknown_setting_or_method_has_its_nearest_names():
    settings = Settings.scaled(METHODS["qdagger"], ATARI, frames=10**6, seed=3, envs=8)
    with pytest.raises(UnknownName, match="unknown setting 'n_steps'") as error:
        settings.changed({"n_steps": 3})
    assert "n_step" in str(error.value.hint)


def test_epsilon_is_linear():
    assert epsilon(0, 100, 0.01) == 1
    assert epsilon(50, 100, 0.01) == pytest.approx(0.505)
    assert epsilon(100, 100, 0.01) == epsilon(10**6, 100, 0.01) == epsilon(0, 0, 0.01) == 0.01
