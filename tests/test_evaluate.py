"""Evaluation: no bias by length, true returns, and records that are confirmed or not, with reasons."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import surgery
from surgery.architectures import new
from surgery.cli import main
from surgery.envs import adjusted, make
from surgery.errors import ArgumentError, Refused, RunFailed
from surgery.evaluate import Score, below, evaluate, play, record, recorded, recorded_scores
from surgery.evaluate.baselines import RANDOM_AND_HUMAN, normalised, random_and_human
from surgery.evaluate.scores import LEVEL, _student, interval
from surgery.interface import Environment

gymnasium = pytest.importorskip("gymnasium")
pytest.importorskip("torch")

TEACHERS = Path(__file__).parent.parent / "examples" / "teachers"
CARTPOLE, MINATAR, BREAKOUT = (
    str(TEACHERS / f"{name}.onnx") for name in ("cartpole-dqn", "minatar-breakout-dqn", "breakout-ppo")
)


class Coin(gymnasium.Env):
    """Half of the episodes last one step and give 0, the others last 60 and give 1."""

    observation_space = gymnasium.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 60 if self.np_random.random() < 0.5 else 1
        self.reward = float(self.left > 1)
        return np.zeros(4, np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.zeros(4, np.float32), self.reward * (self.left == 0), self.left == 0, False, {}


gymnasium.register("Coin-v0", Coin)


def zeros(observation):
    return np.zeros(len(observation), np.int64)


def test_short_episodes_are_not_preferred():
    played = play(make(Environment("Coin-v0"), 64, seed=0, training=False), zeros, 128)
    assert played.returns.mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(128))
    assert {*played.lengths} == {1, 60}
    assert np.array_equal(played.returns, played.lengths == 60)
    first_to_end = list(_first(make(Environment("Coin-v0"), 64, seed=0, training=False), 32))
    assert np.mean(first_to_end) < 0.1  # what counting the first to end would have reported


def _first(envs, count):
    envs.reset()
    while count > 0:
        for _, total, _ in envs.step(np.zeros(64, np.int64)).finished[:count]:
            count -= 1
            yield total


@pytest.mark.parametrize(("episodes", "num_envs"), [(1, 1), (5, 3), (3, 5), (16, 4)])
def test_exactly_as_many_episodes_are_played_as_asked_for(episodes, num_envs):
    envs = make(Environment("CartPole-v1"), num_envs, seed=0, training=False)
    counted, starts = [], []
    played = play(
        envs, zeros, episodes, ended=lambda over: starts.append(over.copy()), progress=counted.append
    )
    assert len(played.returns) == len(played.lengths) == episodes
    assert counted[-1] == episodes
    assert all(over.any() and over.shape == (num_envs,) for over in starts)
    assert np.array_equal(played.returns, played.lengths)  # CartPole gives 1 a step
    assert played.truncated == 0


def test_an_evaluation_is_repeated_by_its_seed():
    teacher = surgery.load(MINATAR)
    first, again, other = (
        evaluate(teacher, episodes=6, mode="sample", seed=seed).episodes.returns for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("path", "mode", "episodes"),
    [
        (CARTPOLE, None, 10),
        (CARTPOLE, "epsilon:0.05", 10),
        (MINATAR, None, 60),
        (MINATAR, "epsilon:0.05", 60),
    ],
)
def test_a_teacher_confirms_its_recorded_score(path, mode, episodes):
    done = evaluate(surgery.load(path), episodes=episodes, mode=mode, seed=3)
    assert done.mode == (mode or "greedy")
    assert done.known is not None
    assert done.confirmed is True
    assert done.causes == ()
    assert done.random.source == "recorded"
    assert done.normalised(done.known.mean) == pytest.approx(1, abs=0.35)


def test_random_play_takes_no_forbidden_action():
    made = new("mlp-8", observation=(4,), actions=2)
    done = evaluate(made, episodes=8, environment=Environment("CartPole-v1", {"action_mask": [True, False]}))
    assert done.random.source == "measured"
    assert done.random.mean < 11  # pushed to one side a pole falls in 8 to 10 steps, pushed at random in 22


def test_the_atari_teacher_plays_far_above_people_at_random_and_is_not_below_its_record():
    done = evaluate(surgery.load(BREAKOUT), episodes=2, seed=1)
    assert (done.mode, done.known.mean, done.confirmed) == ("sample", 35.0, True)
    assert (done.random.mean, done.human) == (1.7, 30.5)
    assert done.mean > 10
    assert done.normalised(done.human) == pytest.approx((done.mean - 1.7) / 28.8)


WRONG = {
    "actions swapped": ({"action_set": [0, 3, 1]}, "action set"),
    "observations scaled": ({"preprocessing": {"layout": "CHW", "scale": 0.02}}, "preprocessing"),
    "sticky": ({"sticky_actions": 0.8}, "sticky"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_contract_is_noticed_and_named(case, tmp_path, capsys):
    settings, named = WRONG[case]
    wrong = tmp_path / "wrong.onnx"
    surgery.save(surgery.annotate(surgery.load(MINATAR), settings=settings), wrong)
    assert main(["evaluate", str(wrong), "--episodes", "20", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["confirmed"] is False
    assert report["recorded"]["mean"] == pytest.approx(7.93, abs=0.01)
    assert report["mean_return"] < 5
    assert any(named in cause for cause in report["causes"])


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"action_set": [0, 3, 1]}, "outputs 1 and 2 exchanged: action_set [0, 1, 3]"),
        ({"preprocessing": {"layout": "CHW", "scale": 0.02}}, "without the scale"),
        ({"sticky_actions": 0.8}, "sticky actions 0"),
    ],
)
def test_what_is_wrong_is_found_by_changing_one_thing_at_a_time(settings, found, tmp_path, capsys):
    wrong = tmp_path / "wrong.onnx"
    surgery.save(surgery.annotate(surgery.load(MINATAR), settings=settings), wrong)
    assert main(["evaluate", str(wrong), "--episodes", "20", "--diagnose", "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)["diagnosis"]
    reached = [one["change"] for one in findings if one["reaches"]]
    assert found in reached
    assert len(reached) <= 3 < len(findings)
    assert main(["evaluate", str(wrong), "--episodes", "20", "--diagnose"]) == 1
    assert "reaches it" in capsys.readouterr().out


def test_a_stack_that_was_trained_the_other_way_round_is_found():
    from surgery.evaluate import diagnose

    teacher = surgery.load(CARTPOLE)
    scores = [{"mode": "greedy", "mean": 500.0, "std": 0.0, "episodes": 30}]
    stacked = _stacked(teacher).replace(
        environment=Environment("CartPole-v1", {"frame_stack": 12, "scores": scores})
    )
    done = evaluate(stacked, episodes=5)
    assert done.confirmed is False
    best = diagnose(stacked, done, episodes=5)[0]
    assert best.reaches
    assert "stack order" in best.change


def _stacked(teacher):
    """The teacher behind a stack of twelve, of which it reads what it takes for the newest: the first."""
    import onnx_ir as ir

    model = teacher.model.clone()
    graph, old = model.graph, model.graph.inputs[0]
    new = ir.Value(
        name="observation", shape=ir.Shape(["batch", 12, 4]), type=ir.TensorType(ir.DataType.FLOAT)
    )
    first = ir.node("Constant", [], {"value": ir.tensor(np.array(0))})
    taken = ir.node("Gather", [new, first.outputs[0]], {"axis": 1})
    old.name = "one"
    old.replace_all_uses_with(taken.outputs[0])
    graph.inputs[0] = new
    graph.insert_before(graph[0], [first, taken])
    return teacher.replace(model=model)


def test_a_recurrent_graph_with_a_fixed_batch_is_played_in_as_many_environments():
    import onnx_ir as ir

    from tests.test_policy import recurrent

    made, _ = recurrent("GRU")
    for value in (*made.model.graph.inputs, *made.model.graph.outputs):
        value.shape = ir.Shape([size if isinstance(size, int) else 1 for size in value.shape])
    done = evaluate(
        made, episodes=3, environment=Environment("CartPole-v1", {"action_mask": [True, True, False]})
    )
    assert done.score.episodes == 3


def test_an_edited_model_that_plays_worse_is_said_to_be_edited():
    import onnx_ir as ir

    teacher = surgery.load(CARTPOLE)
    weight = teacher.model.graph.initializers["network.4.weight"]
    weight.const_value = ir.Tensor(-weight.const_value.numpy(), name="network.4.weight")
    done = evaluate(teacher, episodes=5)
    assert done.confirmed is False
    assert "edited since" in done.causes[0]


def test_what_a_contract_leaves_open_is_named_with_what_was_assumed():
    teacher = surgery.load(MINATAR)
    bare = Environment(
        teacher.environment.id, {"scores": [{"mode": "greedy", "mean": 90, "std": 1, "episodes": 9}]}
    )
    done = evaluate(teacher.replace(environment=bare), episodes=4)
    assert done.confirmed is False
    assert any("does not say" in cause and "sticky_actions=0.1" in cause for cause in done.causes)


def test_other_settings_are_compared_with_a_record_of_their_own():
    teacher = surgery.load(MINATAR)
    played = adjusted(teacher.environment, None, {"sticky_actions": 0.8})
    done = evaluate(teacher, episodes=6, environment=played)
    assert done.known is None
    assert done.score.settings == {"sticky_actions": 0.8}
    again = evaluate(record(teacher, done), episodes=6, environment=played)
    assert again.known is not None
    assert again.confirmed
    breakout = surgery.load(BREAKOUT)
    assert recorded(breakout, "sample", {"sticky_actions": 0.25}).mean == pytest.approx(20.85)
    assert recorded(breakout, "greedy") is None


def test_a_teacher_below_its_record_teaches_nobody(tmp_path):
    from surgery.distill import Options, execute, plan_distill

    teacher = surgery.load(MINATAR)
    wrong = surgery.annotate(teacher, settings={"action_set": [0, 3, 1]})
    job = plan_distill(
        wrong,
        "mlp-16",
        tmp_path / "run",
        environment=wrong.environment,
        options=Options(frames=2000, device="cpu"),
    )
    with pytest.raises(Refused, match="worse here than it is recorded to") as caught:
        execute(job)
    assert any("action set" in cause for cause in caught.value.where.values())


def test_recording_replaces_a_score_of_the_same_kind_and_keeps_the_rest(tmp_path):
    teacher = surgery.load(CARTPOLE)
    done = evaluate(teacher, episodes=4, measure_random=True, mode="epsilon:0.05")
    surgery.save(record(teacher, done), tmp_path / "scored.onnx")
    after = surgery.load(tmp_path / "scored.onnx")
    scores = {score.mode: score for score in recorded_scores(after.environment)}
    assert set(scores) == {"greedy", "epsilon:0.05", "random"}
    assert scores["epsilon:0.05"].episodes == scores["random"].episodes == 4
    assert scores["greedy"].episodes == 30
    assert after.digest() == teacher.digest() == scores["epsilon:0.05"].model


def test_an_exact_edit_plays_the_same_games_and_keeps_the_record():
    teacher = surgery.load(MINATAR)
    wide = surgery.apply(surgery.widen(teacher, factor=2), teacher).checkpoint
    before, after = evaluate(teacher, episodes=8), evaluate(wide, episodes=8)
    assert np.array_equal(before.episodes.returns, after.episodes.returns)
    assert after.known == before.known
    assert after.score.model != before.score.model


def test_a_contract_without_environment_takes_over_what_was_played():
    bare = surgery.load(CARTPOLE).replace(environment=Environment())
    done = evaluate(bare, episodes=2, environment=Environment("CartPole-v1"))
    after = record(bare, done).environment
    assert after.id == "CartPole-v1"
    assert after.settings["max_episode_steps"] == 500
    assert [score.settings for score in recorded_scores(after)] == [{}, {}]


def test_welchs_test_is_wrong_as_rarely_as_it_says_and_sees_what_it_should():
    rng = np.random.default_rng(0)

    def alarms(mean, trials=4000):
        known, now = rng.normal(35, 9, (trials, 20)), rng.normal(mean, 7, (trials, 30))
        return np.mean(
            [
                below(Score.of(a, "greedy", {}, None), Score.of(b, "greedy", {}, None))
                for a, b in zip(now, known, strict=True)
            ]
        )

    assert alarms(35) == pytest.approx(LEVEL, abs=4 * np.sqrt(LEVEL / 4000))
    assert alarms(21) > 0.99


@pytest.mark.parametrize(
    ("now", "known", "verdict"),
    [
        ([500.0] * 10, [500.0] * 30, False),
        ([499.0] * 10, [500.0] * 30, True),
        ([500.0] * 9 + [490.0], [500.0] * 30, False),  # one episode of ten proves nothing
        ([9.0], [500.0] * 30, True),
        ([29.0], [26.0, 44.0] * 10, False),  # one episode is one of those
        ([2.0], [26.0, 44.0] * 10, True),
        ([26.0, 44.0] * 10, [53.0], False),
        ([29.0], [35.0], False),
        ([19.9, 20.1] * 50, [30.0, 40.0, 50.0], False),  # 3.46 standard errors, but of two degrees of freedom
    ],
)
def test_scores_without_a_spread_of_their_own_are_compared_too(now, known, verdict):
    assert below(Score.of(now, "greedy", {}, None), Score.of(known, "greedy", {}, None)) is verdict


def test_the_points_of_students_t_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for tail in (0.01, 0.025):
        for freedom in (3, 4, 7.5, 20, 60, 1000):  # what is left out is of the fifth order
            assert _student(tail, freedom) == pytest.approx(
                stats.t.isf(tail, freedom), rel=2 * freedom**-5 + 1e-12
            )
    low, high = interval(Score("greedy", 10.0, 2.0, 25, {}))
    half = stats.t.isf(0.025, 24) * 2.0 / np.sqrt(24)
    assert (low, high) == (pytest.approx(10 - half, abs=1e-3), pytest.approx(10 + half, abs=1e-3))


def test_normalised_scores():
    assert len(RANDOM_AND_HUMAN) == 57
    assert normalised(30.5, *RANDOM_AND_HUMAN["breakout"]) == 1
    assert normalised(-20.7, *RANDOM_AND_HUMAN["pong"]) == 0
    assert normalised(5.0, 1.0, 1.0) is None


def test_every_game_of_the_table_is_found_by_its_id():
    roms = pytest.importorskip("ale_py.roms").get_all_rom_ids()
    assert set(RANDOM_AND_HUMAN) <= set(roms)
    for rom, pair in RANDOM_AND_HUMAN.items():
        title = rom.title().replace("_", "")
        assert random_and_human(f"ALE/{title}-v5") == random_and_human(f"{title}NoFrameskip-v4") == pair
    assert random_and_human("CartPole-v1") is None
    assert random_and_human("MinAtar/Breakout-v1") is None


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        ([MINATAR, "--env", "ALE/Breakout-v5"], 2, f"surgery adapt {MINATAR} --env ALE/Breakout-v5"),
        ([CARTPOLE, "--env", "CartPol-v1"], 2, "CartPole-v1"),
        ([CARTPOLE, "--env", "Pendulum-v1"], 2, "takes 1 number"),
        ([CARTPOLE, "--env", "nosuchmodule:Thing-v0"], 2, "cannot import nosuchmodule"),
        ([CARTPOLE, "--env", "Acrobot-v1"], 2, "takes observations of shape 4, got 6"),
        ([MINATAR, "--env-setting", "action_set=[0,1,3,4]"], 2, "surgery extend"),
        ([MINATAR, "--env-setting", "action_set=[0,1]"], 2, "action_set"),
        ([CARTPOLE, "--mode", "epsilon:2"], 2, "epsilon:E"),
        ([CARTPOLE, "--mode", "best"], 2, "not a way to choose"),
        ([CARTPOLE, "--env-setting", "frame_skip=4"], 2, "frame_skip"),
        ([CARTPOLE, "-o", "x.onnx"], 2, "--record"),
        (["missing.onnx"], 2, "does not exist"),
    ],
)
def test_what_cannot_be_played_says_what_to_do(words, status, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *words]) == status
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error


def test_a_teacher_that_is_not_there_is_said_of_the_teacher_alone(capsys, tmp_path):
    assert main(["evaluate", CARTPOLE, "--teacher", str(tmp_path / "none.onnx")]) == 2
    error = capsys.readouterr().err
    assert "none.onnx does not exist" in error and CARTPOLE not in error


def test_the_verb_plays_records_and_normalises(tmp_path, capsys):
    scored = tmp_path / "scored.onnx"
    words = ["evaluate", MINATAR, "--episodes", "8", "--teacher", MINATAR, "--record", "-o", str(scored)]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "MinAtar/Breakout-v1 · greedy · 8 episodes" in text
    assert "confirmed" in text
    assert f"wrote {scored}" in text
    assert "teacher" in text
    assert recorded_scores(surgery.load(scored).environment)[0].episodes == 8
    assert main(words) == 2  # nothing is overwritten
    assert main(["evaluate", str(scored), "--episodes", "4", "--seed", "1", "--record", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["output"] == str(scored)
    assert set(report) >= {
        "mean_return",
        "std",
        "episodes",
        "returns",
        "interval",
        "frames",
        "random",
        "recorded",
    }
    assert len(report["returns"]) == report["episodes"] == 4
    assert recorded(surgery.load(scored), "greedy").episodes == 4


def test_what_the_verb_is_told_reaches_what_is_measured(tmp_path, capsys):
    scores = [
        {"mode": mode, "mean": mean, "std": 1.0, "episodes": 9}
        for mode, mean in (("random", 7.0), ("greedy", 5.0))
    ]
    scores.insert(0, {**scores[-1], "mode": "epsilon:0.9", "mean": 3.0, "settings": {"max_episode_steps": 4}})
    contract = Environment("CartPole-v1", {"scores": scores})
    made = new("mlp-8", observation=(4,), actions=2, seed=1).replace(environment=contract)
    surgery.save(made, tmp_path / "agent.onnx")

    def told(*words):
        assert main(["evaluate", str(tmp_path / "agent.onnx"), "--episodes", "5", "--json", *words]) == 0
        return json.loads(capsys.readouterr().out)

    plain = told("--diagnose", "--teacher", str(tmp_path / "agent.onnx"))
    assert plain["confirmed"] and plain["diagnosis"] == []  # there is nothing to find out
    assert plain["mode"] == "greedy"  # as in the first score under the contract's own settings
    assert (plain["teacher"], plain["random"]) == (5.0, {"mean": 7.0, "source": "recorded"})
    other = told("--seed", "3", "--random")
    assert (
        other["returns"] == evaluate(made, episodes=5, seed=3).episodes.returns.tolist() != plain["returns"]
    )
    assert other["random"]["source"] == "measured"


def test_playing_needs_no_optimizer_state_and_recording_loses_none(tmp_path, capsys):
    path = tmp_path / "agent.onnx"
    surgery.save(surgery.attach(surgery.load(MINATAR), Path(MINATAR).with_suffix(".pt")), path)
    state = path.with_suffix(".optimizer.safetensors")
    kept = state.read_bytes()
    assert main(["evaluate", str(path), "--episodes", "2", "--seed", "1", "--record", "--force"]) == 0
    assert surgery.load(path).optimizer is not None
    assert state.read_bytes() == kept
    state.unlink()
    assert main(["evaluate", str(path), "--episodes", "2", "--seed", "1", "--teacher", str(path)]) == 0
    assert main(["evaluate", str(path), "--episodes", "2", "--seed", "1", "--record", "--force"]) == 2
    assert "is missing" in capsys.readouterr().err


def test_a_score_under_other_settings_is_shown_beside_the_record_and_not_compared(capsys):
    words = ["evaluate", MINATAR, "--episodes", "4", "--env-setting", "sticky_actions=0.9"]
    assert main(words) == 0
    assert (
        "7.93 ± 2.1 (30 episodes), but with another sticky_actions: not compared" in capsys.readouterr().out
    )


NEVER_SERVES = {"max_episode_steps": 60, "fire_reset": False, "noop_max": 1, "action_set": [0, 2, 3, 4]}


def test_an_agent_that_never_serves_plays_to_the_limit_and_the_report_says_so(tmp_path, capsys):
    agent = new("nature", observation=(4, 84, 84), actions=4, dtype="uint8", scale=1 / 255, seed=0)
    surgery.save(
        agent.replace(environment=Environment("ALE/Breakout-v5", NEVER_SERVES)), tmp_path / "idle.onnx"
    )
    words = ["evaluate", str(tmp_path / "idle.onnx"), "--episodes", "3", "--mode", "greedy"]
    assert main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["truncated"], report["limit"], report["returns"]) == (3, 60, [0.0] * 3)
    assert report["frames"] == 4 * report["steps"] >= 4 * sum(report["lengths"])
    assert main(words) == 0
    assert "3 cut off after 60 steps (240 frames)" in capsys.readouterr().out


def test_an_error_where_no_gpu_is_in_use_is_itself_and_loads_no_pytorch():
    code = (
        "import sys\n"
        "from surgery.evaluate.measure import on_device\n"
        "try:\n"
        "    with on_device():\n"
        "        raise RuntimeError('the simulator is gone')\n"
        "except RuntimeError as error:\n"
        "    print(error, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "the simulator is gone False\n"


def test_an_environment_that_goes_on_beyond_its_limit_is_an_error():
    envs = make(Environment("CartPole-v1", {"max_episode_steps": 500}), 2, seed=0, training=False)
    envs.contract = Environment("CartPole-v1", {"max_episode_steps": 12})
    with pytest.raises(RunFailed, match="taken 13 steps"):  # in one: the other's pole falls in 10
        play(envs, lambda x: np.array([0, x[1, 2] > 0], np.int64), 20)


def test_a_score_that_is_not_reached_is_not_recorded(tmp_path):
    wrong = tmp_path / "wrong.onnx"
    surgery.save(surgery.annotate(surgery.load(CARTPOLE), settings={"action_set": [1, 0]}), wrong)
    before = wrong.read_bytes()
    assert main(["evaluate", str(wrong), "--episodes", "4", "--record", "-q"]) == 1
    assert wrong.read_bytes() == before


def test_actions_that_the_contract_forbids_need_no_counterpart():
    teacher = surgery.load(CARTPOLE)
    plan = surgery.extend(teacher, actions=[surgery.NewAction("q_values", 2)])
    wide = surgery.apply(plan, teacher).checkpoint
    done = evaluate(wide, episodes=4)
    assert done.confirmed
    with pytest.raises(ArgumentError, match="has 4 actions, the environment only 2"):
        free = Environment("CartPole-v1")
        evaluate(wide, episodes=4, environment=free)


@pytest.mark.parametrize(
    "scores", [[{"mode": "greedy"}], "7.9", [{"mode": 1, "mean": 0, "std": 0, "episodes": 1}]]
)
def test_scores_that_are_none_are_refused_where_they_are_declared(scores):
    with pytest.raises(ArgumentError, match="scores"):
        Environment("CartPole-v1", {"scores": scores})


class Broken(Coin):
    """Shows channels last, and fails in its first step."""

    observation_space = gymnasium.spaces.Box(0, 255, (12, 12, 3), np.uint8)

    def reset(self, *, seed=None, options=None):
        return np.zeros((12, 12, 3), np.uint8), {}

    def step(self, action):
        raise KeyError("of the environment")


gymnasium.register("Broken-v0", Broken)


def test_channels_that_stand_elsewhere_and_a_dead_environment_are_told(tmp_path, capsys):
    path, channels = str(tmp_path / "image.onnx"), 'preprocessing={"layout":"CHW"}'
    surgery.save(new("minatar", observation=(3, 12, 12), actions=2), path)
    assert main(["evaluate", path, "--env", "Broken-v0"]) == 2
    said = capsys.readouterr().err
    assert "takes observations of shape 3×12×12, got 12×12×3" in said
    assert f"--env-setting '{channels}'" in said
    assert main(["evaluate", path, "--env", "Broken-v0", "--env-setting", channels]) == 1
    assert "the environment Broken-v0 failed: KeyError: 'of the environment'" in capsys.readouterr().err
