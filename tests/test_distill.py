"""Real runs in real environments, with small budgets: what comes out, what is refused, what is never lost."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch

import surgery
from surgery.architectures import new
from surgery.cli import _training, main
from surgery.distill import METHODS, Job, Options, Outcome, execute, plan_distill, plan_finetune
from surgery.distill.interrupt import Stopped
from surgery.distill.learner import Learner
from surgery.distill.loop import Loop
from surgery.distill.progress import Progress
from surgery.distill.run import config
from surgery.distill.session import Session
from surgery.distill.store import agree_on, owning
from surgery.envs import adjusted
from surgery.errors import ArgumentError, FileError, Refused, RunFailed, UnknownName
from surgery.evaluate import play, recorded_scores
from surgery.interface import Environment
from surgery.policy import Policy
from surgery.policy import load as load_policy
from surgery.torch.failures import is_of_device
from tests.small_runs import QUICK, job_of, lines, weights


@pytest.fixture
def teacher(teachers: Path) -> surgery.Checkpoint:
    return surgery.load(teachers / "cartpole-dqn.onnx")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run."""
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def outcome(teachers: Path, run: Path) -> Outcome:
    """What it ended with."""
    return execute(job_of(surgery.load(teachers / "cartpole-dqn.onnx"), run))


def test_a_student_is_a_checkpoint_like_any_other(
    teacher: surgery.Checkpoint, outcome: Outcome, tmp_path: Path
):
    student = surgery.load(outcome.student)
    [score] = recorded_scores(student.environment)
    assert (score.mean, score.mode, score.model) == (outcome.mean_return, "epsilon:0.001", student.digest())
    assert student.environment.id == "CartPole-v1"
    assert student.environment.settings["max_episode_steps"] == 500
    assert student.lineage[-1].operation == "distill"
    assert student.lineage[-1].parents == (teacher.digest(),)
    assert student.optimizer is not None
    assert student.optimizer.kind == "adam"
    assert set(student.optimizer.parameters) == set(student.tensors)
    assert set(student.optimizer.slots) == {"exp_avg", "exp_avg_sq"}
    plan = surgery.widen(student, factor=2)
    assert surgery.apply(plan, student).report is not None
    again = plan_distill(
        student, "mlp-16", tmp_path / "next", environment=student.environment, options=Options(frames=1000)
    )
    assert again.teacher is student
    assert load_policy(student).actions == 2


def test_a_run_says_what_it_did(outcome: Outcome, run: Path):
    measured = lines(run, "event")[0]
    assert measured["teacher"] == outcome.teacher == 500
    assert measured["random"] == outcome.random < 40
    evaluations = lines(run, "evaluation")
    assert [line["frames"] for line in evaluations] == [0, 400, 800, 1000]
    assert all(len(line["returns"]) == line["episodes"] == 2 for line in evaluations)
    for line in evaluations:
        score = (line["return"] - outcome.random) / (500 - outcome.random)
        assert line["score"] == pytest.approx(score)
        assert line["lambda"] == pytest.approx(min(1, 1 - score) if line["frames"] < 600 else 0)
    trained = lines(run, "train")
    assert Counter(line["phase"] for line in trained) == {"offline": 60, "online": 200}
    assert all(np.isfinite(line["loss"]) for line in trained if "loss" in line)
    assert [line["seconds"] for line in lines(run)] == sorted(line["seconds"] for line in lines(run))
    assert outcome.updates == pytest.approx(60 + (1000 - 500) / 4, abs=3)
    assert list((run / "tensorboard").iterdir())
    config = json.loads((run / "config.json").read_text())
    assert config["settings"]["n_step"] == 3
    assert len(list((run / "checkpoints").glob("*.pt"))) == 2


ONLINE_RATES = {
    "qdagger-kept": {1e-4, 1e-5}, "kickstarting": {1e-4, 1e-5}, "constant": {1e-4}, "dagger": {1e-4}, "dqfd": {1e-4},
    "pretraining": {1e-5}, "rehearsal": {1e-4}, "jsrl": {1e-4}, "jsrl-released": {6.25e-5}, "scratch": {1e-4},
}  # fmt: skip
"""At λ = 1 and at λ = 0: of the methods without λ one rate."""


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("finetune", "qdagger")])
def test_every_method_runs_and_learns_in_the_phases_that_it_has(
    method: str, teacher: surgery.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    given: list[tuple[float, float]] = []
    update = Learner.update

    def watched(learner: Learner, *words: object, weight: float, rate: float) -> torch.Tensor:
        given.append((weight, rate))
        return update(learner, *words, weight=weight, rate=rate)

    monkeypatch.setattr(Learner, "update", watched)
    outcome = execute(job_of(teacher, tmp_path, method=method))
    assert outcome.student.is_file()
    chosen = METHODS[method]
    trained = lines(tmp_path, "train")
    assert ("offline" in {line["phase"] for line in trained}) == bool(chosen.offline)
    assert outcome.teacher == (500 if chosen.teacher else None)
    online = [line for line in trained if line["phase"] == "online" and "loss" in line]
    assert all((line["temporal"] > 0) == chosen.temporal for line in online)
    imitated = any(line["auxiliary"] > 0 for line in online)
    assert imitated == (chosen.online_loss != "none")
    if chosen.explores:
        assert online[0]["epsilon"] <= 1.0
    before = QUICK["offline_updates"] if chosen.offline else 0
    assert set(given[:before]) == ({(chosen.coefficient, 1e-4)} if before else set())
    rates = ONLINE_RATES[method]
    for weight, rate in given[before:]:
        share = weight / chosen.coefficient
        assert rate == pytest.approx(share * max(rates) + (1 - share) * min(rates))
    if chosen.floor:
        assert min(weight for weight, _ in given[before:]) >= chosen.floor * chosen.coefficient
    else:
        last = 0.0 if chosen.weaned or chosen.online_loss == "none" else chosen.coefficient
        assert given[-1] == (last, pytest.approx(min(rates)))
    silent = [("cut-off", 600)] if chosen.cutoff else []
    assert [(line["event"], line["frames"]) for line in lines(tmp_path, "event")[1:]] == silent
    assert (tmp_path / "teacher_replay").exists() == chosen.collects


@pytest.mark.parametrize("head", ["dueling", "c51", "qr"])
def test_every_head_learns_with_double_and_prioritised_replay(
    head: str, teacher: surgery.Checkpoint, tmp_path: Path
):
    changes = {"offline_updates": 20, "learn_after": 850, "batch": 16}
    outcome = execute(job_of(teacher, tmp_path, head=head, double=True, prioritised=True, **changes))
    assert outcome.updates > 40
    kind = {"dueling": "q_values", "c51": "atom_logits", "qr": "quantiles"}[head]
    assert surgery.load(outcome.student).interface.outputs[0].kind == kind


def test_imitation_alone_reaches_many_times_the_random_score(teacher: surgery.Checkpoint, tmp_path: Path):
    changes = {"offline_updates": 800, "teacher_data": 3000, "rate": 1e-3, "evaluate_every": 1000}
    outcome = execute(job_of(teacher, tmp_path, to="mlp-64", budget=1000, **changes))
    first = lines(tmp_path, "evaluation")[0]
    assert first["frames"] == 0
    assert first["return"] > 5 * outcome.random


def test_on_pixels_of_bits_too(teachers: Path, tmp_path: Path):
    teacher = surgery.load(teachers / "minatar-breakout-dqn.onnx")
    changes = {"evaluation_episodes": 2, "evaluate_every": 1000, "offline_updates": 20, "teacher_data": 300}
    job = plan_distill(
        teacher, "mlp-32", tmp_path, environment=teacher.environment,
        options=Options(frames=1000, envs=4, changes=changes),
    )  # fmt: skip
    outcome = execute(job)
    assert outcome.teacher is not None
    assert outcome.teacher > 4
    student = surgery.load(outcome.student)
    assert student.interface.outputs[0].labels == ("noop", "left", "right")


@pytest.mark.parametrize(
    ("environment", "to", "high"),
    [
        ("CartPole-v1", "mlp-8", None),
        ("MinAtar/Breakout-v1", "minatar", 1.0),
        ("ALE/Breakout-v5", "nature", 255.0),
    ],
)
def test_a_student_declares_what_it_will_see(environment: str, to: str, high: float | None, tmp_path: Path):
    options = Options(frames=10_000, envs=2, device="cpu")
    job = plan_distill(
        None, to, tmp_path, environment=Environment(environment), method="scratch", options=options
    )
    [port] = job.student.interface.inputs
    assert (port.low, port.high) == (None if high is None else 0.0, high)


def has_reached(progress: Progress, updates: int) -> bool:
    return progress.offline >= updates


def leave_at(job: Job, updates: int) -> None:
    """Go on with a run, and stop it after some gradient steps of its offline phase."""
    with owning(job.folder):
        agree_on(job.folder, config(job))
    session = Session.open(job)
    with pytest.raises(Stopped):
        Loop(session, stop=partial(has_reached, session.progress, updates)).run()
    session.close()


@pytest.mark.parametrize(
    "kind", [{"to": "mlp-32"}, {"to": "mlp-8", "noisy": True}, {"to": "gru-8", "unroll": 6, "burn_in": 2}]
)
def test_an_offline_phase_that_was_left_anywhere_ends_in_the_same_bits(
    kind: dict[str, object], teacher: surgery.Checkpoint, tmp_path: Path
):
    whole, parts = (
        job_of(teacher, tmp_path / name, budget=1000, learn_after=10**6, target_period=40, **kind)
        for name in ("whole", "parts")
    )  # the target follows every 10 gradient steps
    execute(whole)
    for reached in (1, 26, 31, 59):
        leave_at(parts, reached)
    execute(parts)
    assert len({line["updates"] for line in lines(tmp_path / "parts", "train")}) == len(
        {line["updates"] for line in lines(tmp_path / "whole", "train")}
    )
    one, other = (weights(tmp_path / name / "student.onnx") for name in ("whole", "parts"))
    assert all((one[name] == other[name]).all() for name in one)


def test_ctrl_c_ends_with_130_and_saves_in_the_midst_of_a_phase(teachers: Path, tmp_path: Path):
    words = [
        sys.executable, "-c", "import sys; from surgery.cli import main; sys.exit(main())", "distill",
        str(teachers / "cartpole-dqn.onnx"), "--to", "mlp-32",
        "--frames", "200000", "--envs", "4", "--set", "teacher_data=400", "--set", "offline_updates=20000",
        "--set", "evaluation_episodes=2", "-o", str(tmp_path / "run"), "--json",
    ]  # fmt: skip
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while (
        not (tmp_path / "run" / "metrics.jsonl").exists()
        or "offline" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    ):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert json.loads(out)["error"]["kind"] == "Interrupted"
    [*_, newest] = sorted((tmp_path / "run" / "checkpoints").glob("*.pt"))
    progress = json.loads(torch.load(newest, weights_only=True)["record"])["progress"]
    assert progress["phase"] == "offline"
    assert progress["offline"] > 0


class Explosive(gymnasium.Env):
    """CartPole that breaks down in the middle of everything."""

    observation_space = gymnasium.spaces.Box(-10, 10, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    steps = 0
    reason: Exception = OSError("the simulator is gone")

    def reset(self, *, seed: int | None = None, options: object = None):
        self.age = 0
        return np.zeros(4, np.float32), {}

    def step(self, action: int):
        type(self).steps += 1
        self.age += 1
        if type(self).steps > 900:
            raise self.reason
        return np.full(4, action, np.float32), float(action), self.age == 10, False, {}


@pytest.fixture
def explosive() -> Environment:
    gymnasium.register("Explosive-v0", Explosive)
    Explosive.steps = 0
    yield Environment("Explosive-v0")
    del gymnasium.registry["Explosive-v0"]


FULL_GPU = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.80 GiB of which 1.10 GiB is "
    "free. Including non-PyTorch memory, this process has 138.65 GiB memory in use."
)


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (OSError("the simulator is gone"), "Explosive-v0 failed: OSError: the simulator is gone"),
        (torch.OutOfMemoryError(FULL_GPU), r"GPU is out of memory: Tried to allocate 2\.00 GiB, 1\.10 GiB is free"),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might …"),
         "GPU failed: CUDA error: an illegal memory access was encountered"),
    ],
    ids=["environment", "memory", "device"],
)  # fmt: skip
def test_a_dead_environment_or_gpu_stops_the_run_and_leaves_the_last_checkpoint(
    reason: Exception, said: str, explosive: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Explosive, "reason", reason)
    job = plan_distill(
        None, "mlp-16", tmp_path, environment=explosive, method="scratch",
        options=Options(frames=1000, envs=2, changes={"evaluation_episodes": 2}, save_seconds=0.05),
    )  # fmt: skip
    with pytest.raises(RunFailed, match=said) as error:
        execute(job)
    assert "last checkpoint" in str(error.value.hint)
    Explosive.steps = -10_000
    assert execute(job).frames == 1000


@pytest.mark.parametrize(
    ("text", "is_the_device"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("CUDA driver error: out of memory", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR", True),
        ("cuDNN Frontend error: [cudnn_frontend] Error: No valid engine configs", True),
        ("GET was unable to find an engine to execute this computation", True),
        ("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", False),
    ],
)
def test_what_a_gpu_says_is_told_from_what_a_network_says(text: str, is_the_device: bool):
    assert is_of_device(RuntimeError(text)) == is_the_device
    assert not is_of_device(OSError(text))


def test_a_gpu_that_fails_while_a_model_is_measured_is_said_in_one_line(
    teachers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError(FULL_GPU)

    monkeypatch.setattr(Policy, "act", full)
    assert main(["evaluate", str(teachers / "cartpole-dqn.onnx"), "--episodes", "1"]) == 1
    said = capsys.readouterr().err
    assert "error: the GPU is out of memory: Tried to allocate 2.00 GiB, 1.10 GiB is free" in said
    assert "--device cpu uses none" in said


class Endless:
    """Games that never end by themselves: each step is worth a point."""

    num_envs = 3
    contract = Environment("Endless-v0")

    def reset(self):
        return np.zeros((3, 1))

    def step(self, actions: np.ndarray):
        ones, over = np.ones(3), np.array([1])
        finished = ((1, 7.0, 7),) if actions[0] == 4 else ()
        begins = np.array([False, bool(finished), False])
        return SimpleNamespace(
            observation=np.zeros((3, 1)),
            reward=ones,
            finished=finished,
            terminated=over,
            truncated=np.zeros(3, bool),
            begins=begins,
        )


def test_games_without_end_are_cut_and_count_as_they_stand():
    ages, told = iter(range(100)), []
    games = play(Endless(), lambda x: np.full(3, next(ages)), 5, limit=10, ended=told.append)
    assert games.returns.tolist() == [10.0, 7.0, 5.0, 10.0]
    assert games.lengths.tolist() == [10, 7, 5, 10]
    assert games.cut == 3
    assert [np.flatnonzero(begins).tolist() for begins in told] == [[1]]


def test_a_loss_that_is_no_number_stops_the_run(teacher: surgery.Checkpoint, tmp_path: Path):
    with pytest.raises(RunFailed, match="no longer a number") as error:
        execute(job_of(teacher, tmp_path, rate=1e30))
    assert error.value.exit_code == 1
    kept = [torch.load(path, weights_only=True) for path in (tmp_path / "checkpoints").glob("*.pt")]
    assert kept
    assert all(torch.isfinite(t).all() for one in kept for t in one["tensors"]["student"].values())


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file grows beyond a size, as on a disk that is full: Python ignores the signal, and sees an error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_an_error_and_the_checkpoints_before_stand(
    teachers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = [
        "distill", str(teachers / "cartpole-dqn.onnx"), "--to", "mlp-256-256", "--frames", "1000",
        "--set", "offline_updates=10", "--set", "teacher_data=400", "--set", "evaluation_episodes=2",
        "-o", str(tmp_path / "run"), "--json",
    ]  # fmt: skip
    with largest_file(300_000):
        assert main(words) == 2
    assert "the disk is full" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert not list((tmp_path / "run").rglob("*.part"))


def test_a_teacher_no_better_than_chance_is_refused(teacher: surgery.Checkpoint, tmp_path: Path):
    unscored = Environment("CartPole-v1", {"max_episode_steps": 500})
    untrained = new("mlp-8", observation=(4,), actions=2, seed=1).replace(environment=unscored)
    with pytest.raises(Refused, match="no better than chance"):
        execute(job_of(untrained, tmp_path))


def test_a_teacher_who_falls_short_of_its_record_is_refused_with_the_causes(
    teacher: surgery.Checkpoint, tmp_path: Path
):
    weak = new("mlp-8", observation=(4,), actions=2, seed=1).replace(environment=teacher.environment)
    with pytest.raises(Refused, match=r"worse here than it is recorded to: .*, recorded 500") as error:
        execute(job_of(weak, tmp_path))
    assert "cause 1" in error.value.where


def test_what_does_not_fit_is_named_with_the_way_out(teacher: surgery.Checkpoint, tmp_path: Path):
    options = Options(frames=1000)
    wide = new("mlp-8", observation=(4,), actions=5)
    with pytest.raises(ArgumentError, match="has 5 actions, the environment only 2") as error:
        execute(plan_distill(wide, "mlp-8", tmp_path / "a", environment=teacher.environment, options=options))
    assert "surgery adapt" in str(error.value.hint)
    other = new("mlp-8", observation=(7,), actions=2)
    with pytest.raises(ArgumentError, match=r"CartPole-v1: input .observation. takes observations"):
        execute(
            plan_distill(other, "mlp-8", tmp_path / "b", environment=teacher.environment, options=options)
        )
    with pytest.raises(UnknownName, match="unknown method 'qdager'"):
        plan_distill(
            teacher, "mlp-8", tmp_path, environment=teacher.environment, method="qdager", options=options
        )
    with pytest.raises(ArgumentError, match="needs a teacher"):
        plan_distill(None, "mlp-8", tmp_path, environment=teacher.environment, options=options)
    with pytest.raises(ArgumentError, match="under 1,000"):
        plan_distill(teacher, "mlp-8", tmp_path, environment=teacher.environment, options=Options(frames=10))


def test_the_command_says_what_it_will_take_and_what_became_of_it(
    teachers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = [
        "distill", str(teachers / "cartpole-dqn.onnx"), "--to", "mlp-16", "--frames", "1000", "--envs", "4",
        "--set", "offline_updates=20", "--set", "teacher_data=200", "--set", "evaluation_episodes=2",
        "-o", str(tmp_path / "run"), "--json",
    ]  # fmt: skip
    assert main([*words, "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["settings"]["offline_updates"] == 20
    forecast = planned["forecast"]
    assert forecast["seconds"] > 0
    # 11 evaluations of 2 games in 4 environments, none longer than 500 steps
    assert forecast["evaluation_seconds"] == pytest.approx(11 * 500 * 4 * forecast["step_seconds"])
    [caution] = forecast["cautions"]
    assert caution.startswith("after 600 frames the teacher is off for the last 100 gradient steps")
    assert "--method qdagger-kept" in caution
    assert main([*words, "--dry-run", "--method", "qdagger-kept"]) == 0
    assert not json.loads(capsys.readouterr().out)["forecast"]["cautions"]
    assert not (tmp_path / "run").exists()
    assert main(words) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["frames"] == 1000
    assert done["teacher"] == 500
    assert Path(done["student"]).is_file()
    assert main([*words[:-1]]) == 0
    assert "return" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("n_steps=3", "unknown setting 'n_steps'"),
        ("n_step=x", "is not NAME=VALUE"),
        ("replay=1e3", "is a whole number"),
        ('method="dqfd"', "--method"),
        ("skip=2", "frame_skip"),
    ],
)
def test_a_setting_that_is_wrong_costs_nothing(
    change: str, message: str, teachers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = [
        "distill",
        str(teachers / "cartpole-dqn.onnx"),
        "--to",
        "mlp-16",
        "--set",
        change,
        "-o",
        str(tmp_path / "r"),
    ]
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_a_replay_that_does_not_fit_is_refused_before_anything_is_written(
    teacher: surgery.Checkpoint, tmp_path: Path
):
    with pytest.raises(ArgumentError, match="GB of memory"):
        execute(job_of(teacher, tmp_path / "run", replay=10**11))
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


def test_methods_are_listed_without_torch(capsys: pytest.CaptureFixture[str]):
    assert main(["list", "methods"]) == 0
    found = capsys.readouterr().out
    assert all(name in found for name in METHODS)


def test_a_run_directory_in_a_place_that_cannot_be_written_to(teacher: surgery.Checkpoint, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot write"):
        execute(job_of(teacher, tmp_path / "file" / "run"))


@pytest.mark.parametrize("verb", ["distill", "finetune"])
def test_what_the_command_is_told_is_what_is_planned_in_python(
    verb: str, teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    jobs: list[Job] = []
    monkeypatch.setattr(_training, "carry_out", lambda job, *_, **__: jobs.append(job))
    path, ring, folder = teachers / "cartpole-dqn.onnx", tmp_path / "ring.npz", tmp_path / "run"
    seen = np.random.default_rng(0).normal(size=(301, 4)).astype(np.float32)
    ends = np.arange(300) % 10 == 9
    np.savez(
        ring, obs=seen[:-1], next_obs=seen[1:], action=ends.astype(int), reward=np.ones(300), terminated=ends
    )
    told = ["--frames", "2000", "--seed", "4", "--envs", "3", "--device", "cpu", "--set", "n_step=2",
            "--env-setting", "max_episode_steps=99", "-o", str(folder)]  # fmt: skip
    own = [
        "--to",
        "mlp-8",
        "--method",
        "rehearsal",
        "--head",
        "dueling",
        "--noisy",
        "--teacher-replay",
        str(ring),
    ]
    own = own if verb == "distill" else ["--optimizer", "rmsprop", "--replay", str(ring)]
    assert main([verb, str(path), *own, *told]) == 0
    model, options = (
        surgery.load(path),
        Options(frames=2000, seed=4, device="cpu", envs=3, changes={"n_step": 2}),
    )
    contract = adjusted(model.environment, None, {"max_episode_steps": 99})
    if verb == "distill":
        options = replace(options, head="dueling", noisy=True)
        wanted = plan_distill(
            model,
            "mlp-8",
            folder,
            environment=contract,
            method="rehearsal",
            options=options,
            teacher_replay=ring,
        )
    else:
        wanted = plan_finetune(
            model, folder, environment=contract, optimizer="rmsprop", options=options, replay=ring
        )
    [job] = jobs
    assert config(job) == config(wanted)
    assert (job.folder, job.device) == (folder, "cpu")
    assert job.settings.envs == 3 and job.recorded is not None and job.optimizer == wanted.optimizer
