"""What only a GPU can show: its graphs, streams, copies, random numbers and kernels. All of it is skipped without one.

pytest -q tests/test_cuda.py       # two to four minutes
"""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import surgery
from surgery import evaluate
from surgery.architectures import new
from surgery.distill import execute
from surgery.distill.actor import Actor
from surgery.distill.captured import WARM_UP, Arriving, Captured, CudaGraphs, Staging
from surgery.distill.learner import Learner, Objective
from surgery.errors import ArgumentError, RunFailed
from surgery.policy import load
from surgery.replay import Layout, Replay, Segment, Window, restore, write_segment
from surgery.torch import follow, from_module, operate, to_module
from surgery.torch.failures import explained
from surgery.torch.travel import moved
from tests.live_models import FRAMES, Agent, X, mlp, wider
from tests.small_runs import job_of, weights
from tests.test_captured import STEPS, STUDENTS, filled, learner_of, remembers
from tests.test_distill import leave_at
from tests.test_killed import check_chosen, killed

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),  # that not all waits are found
    pytest.mark.filterwarnings(
        "ignore:.torch.jit.script_method. is deprecated"
    ),  # torch.compiler, as it is imported
]
HALF = [("nature-fc32", "q", False), ("impala-fc32", "dueling", True), ("nature-lstm-16", "c51", False)]
Numbers = list[torch.Tensor]
Edit = Callable[[surgery.Checkpoint], surgery.Plan]


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """Convolutions in float32, not in TF32, and the same ones each time."""
    cudnn = torch.backends.cudnn
    before = cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, cudnn.deterministic
    cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, cudnn.deterministic = "ieee", "ieee", True
    yield
    cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, cudnn.deterministic = before
    torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def teacher(teachers: Path) -> surgery.Checkpoint:
    return surgery.load(teachers / "cartpole-dqn.onnx")


def shape_of(to: str) -> tuple[int, ...]:
    return (2, 36, 36) if to.startswith(("nature", "impala")) else (5,)


def learned(
    to: str,
    head: str,
    noisy: bool,
    device: str = "cuda",
    *,
    captured: bool = False,
    kind: str = "adam",
    precision: torch.dtype = torch.float32,
    host: bool = False,
    at_once: bool | None = None,
) -> Numbers:
    """Parameters, losses per example and means after some steps; the last of them must not wait for the device."""
    said: list[str] = []
    learner, _ = learner_of(
        to, head, noisy, shape_of(to), recorded=False, device=device, kind=kind, precision=precision,
        at_once=at_once,
    )  # fmt: skip
    learner._recorder, learner._note = CudaGraphs() if captured else None, said.append
    replay = filled(remembers(to), shape_of(to), device="cpu" if host else device)
    generator = np.random.default_rng(1)
    torch.manual_seed(5)
    for number in range(STEPS):
        if device == "cuda" and number > WARM_UP:
            torch.cuda.set_sync_debug_mode("error")
        batch, objective = replay.sample(8, generator), Objective(True, "imitate")
        given = learner.update(batch, objective, weight=3.0 / (number + 1), rate=1e-2 / (number + 1))
    torch.cuda.set_sync_debug_mode("default")
    assert not said
    parameters = [one.detach().cpu() for one in learner.student.module.parameters()]
    return [*parameters, given.cpu(), torch.tensor(list(learner.read().values()))]


def assert_close(one: Numbers, other: Numbers, rtol: float = 1e-3, atol: float = 1e-4) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("kind", ["adam", "rmsprop"])
@pytest.mark.parametrize(("to", "head", "noisy"), STUDENTS)
def test_a_graph_is_the_step_that_runs_and_waits_for_nothing(to: str, head: str, noisy: bool, kind: str):
    assert_close(learned(to, head, noisy, kind=kind, captured=True), learned(to, head, noisy, kind=kind))


@pytest.mark.parametrize(("to", "head", "noisy"), HALF)
def test_in_bfloat16_too(to: str, head: str, noisy: bool):
    run = partial(learned, to, head, noisy, precision=torch.bfloat16)
    assert_close(run(captured=True), run(), rtol=1e-2, atol=2e-3)
    assert_close(run(), run(at_once=False), rtol=1e-2, atol=2e-3)  # weights cast one by one


@pytest.mark.parametrize(("to", "head"), [(to, head) for to, head, noisy in STUDENTS if not noisy])
def test_a_step_there_is_the_step_on_the_cpu(to: str, head: str):
    """Noise is another there."""
    assert_close(learned(to, head, False), learned(to, head, False, "cpu"), rtol=1e-2, atol=1e-3)


def test_a_replay_in_the_memory_of_the_host_gives_the_same_steps():
    assert_close(learned(*STUDENTS[0], captured=True, host=True), learned(*STUDENTS[0], captured=True))


@pytest.mark.parametrize("window", [None, Window(3, 6, 4)], ids=["transitions", "stretches"])
def test_a_replay_there_is_the_one_on_the_host(window: Window | None, tmp_path: Path):
    layout, generator = Layout(2, (84, 84), "uint8", 4), np.random.default_rng(0)
    pair = [Replay(layout, 400, n_step=3, scores=3, window=window, device=d) for d in ("cpu", "cuda")]
    stack, never = np.zeros((2, 4, 84, 84), np.uint8), np.zeros(2, bool)
    for _ in range(300):
        after = np.concatenate([stack[:, 1:], generator.integers(0, 255, (2, 1, 84, 84), np.uint8)], 1)
        action, reward, over = (
            generator.integers(3, size=2),
            generator.normal(size=2),
            generator.random(2) < 0.1,
        )
        scores = generator.normal(size=(2, 3)).astype(np.float32)
        state = None if window is None else torch.from_numpy(generator.normal(size=(2, 4)).astype(np.float32))
        for replay in pair:
            replay.add(stack, action, reward, over, never, after, None, moved(scores, "cuda"), state)
        stack = np.where(over[:, None, None, None], np.zeros_like(after), after)
    segments: tuple[Segment, ...] = write_segment(pair[1], tmp_path, ())
    for replay in pair:
        replay.cut()
    again = Replay(layout, 400, n_step=3, scores=3, window=window, device="cuda")
    restore(again, tmp_path, segments)
    drawn = [replay.sample(32, np.random.default_rng(1)) for replay in (*pair, again)]
    for batch in drawn[1:]:
        for name in ("rows", "observation", "action", "returns", "discount", "next_observation", "scores"):
            wanted, found = (torch.as_tensor(getattr(one, name)).cpu() for one in (drawn[0], batch))
            assert torch.equal(wanted, found), name
        if window is not None:
            assert torch.equal(torch.as_tensor(drawn[0].stretch.state), batch.stretch.state.cpu())


def test_what_is_on_its_way_is_not_overwritten():
    """Copies queue behind a device that is busy, while the host goes on writing into the same buffers."""
    staging, generator = Staging("cuda", turns=2), np.random.default_rng(0)
    torch.cuda._sleep(200_000_000)  # cycles
    sent = [
        [generator.normal(size=5000).astype(np.float32), generator.integers(9, size=7)] for _ in range(30)
    ]
    arrived = [staging.send(columns) for columns in sent]
    pageable = [moved(columns[0] + 1, "cuda") for columns in sent]
    back = [Arriving(one * 2) for one in pageable]
    for columns, found, other, late in zip(sent, arrived, pageable, back, strict=True):
        for column, tensor in zip(columns, found, strict=True):
            np.testing.assert_array_equal(tensor.cpu().numpy(), column)
        np.testing.assert_array_equal(other.cpu().numpy(), columns[0] + 1)
        np.testing.assert_array_equal(late.read(), (columns[0] + 1) * 2)


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
@pytest.mark.parametrize("name", ["breakout-ppo", "cartpole-dqn", "minatar-breakout-dqn"])
def test_a_policy_there_says_what_it_says_on_the_cpu(name: str, device: str, teachers: Path):
    made = surgery.load(teachers / f"{name}.onnx")
    shape = {"breakout-ppo": (4, 84, 84), "cartpole-dqn": (4,), "minatar-breakout-dqn": (4, 10, 10)}[name]
    seen = np.random.default_rng(0).random((8, *shape))
    seen = (255 * seen).astype(np.uint8) if name == "breakout-ppo" else seen.astype(np.float32)
    policy, wanted = load(made, device=device), load(made).scores(seen)
    assert policy.backend == "torch"
    found = policy.scores(seen)
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-3, atol=1e-3)
    assert policy.act(seen, generator=np.random.default_rng(0)).shape == (8,)


def test_onnxruntime_takes_and_gives_tensors_where_they_lie(teachers: Path):
    runtime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in runtime.get_available_providers():
        pytest.skip("needs onnxruntime-gpu")
    made, said = surgery.load(teachers / "breakout-ppo.onnx"), []
    seen = np.random.default_rng(0).integers(0, 255, (8, 4, 84, 84), np.uint8)
    policy = load(made, device="cuda", backend="onnxruntime", note=said.append)
    assert not said
    found = [
        policy.scores(moved(seen[k : k + 4], "cuda")) for k in (0, 4)
    ]  # the first outlives the second run
    assert all(one.device.type == "cuda" for one in found)
    torch.testing.assert_close(torch.cat(found).cpu(), load(made).scores(seen), rtol=1e-2, atol=1e-2)


def test_a_device_that_is_not_there_is_refused(teachers: Path):
    with pytest.raises(ArgumentError, match="there is no device 'cuda:99'"):
        load(surgery.load(teachers / "cartpole-dqn.onnx"), device="cuda:99")


def test_games_there_are_the_games_on_the_cpu(teacher: surgery.Checkpoint):
    found = [evaluate.evaluate(teacher, episodes=8, device=device).score.mean for device in ("cpu", "cuda")]
    assert found[0] == found[1] == 500


@pytest.mark.parametrize("to", ["mlp-16", "lstm-8", "nature-fc16"])
def test_a_student_at_play_acts_as_on_the_cpu_captured_or_not(to: str):
    actions, said = [], []
    for device, recorder in (("cpu", None), ("cuda", None), ("cuda", CudaGraphs())):
        learner, _ = learner_of(to, "q", False, shape_of(to), recorded=False, device=device)
        actor = Actor(learner.student, recorder=recorder, failed=said.append)
        generator = np.random.default_rng(0)
        seen = [(255 * generator.random((6, *shape_of(to)))).astype(np.float32) for _ in range(8)]
        actions.append([actor.greedy(one).tolist() for one in seen])
    assert actions[0] == actions[1] == actions[2]
    assert not said


RUNS: dict[str, dict[str, object]] = {
    "dueling": {"head": "dueling", "method": "jsrl", "prioritised": True}, "c51": {"head": "c51", "double": True},
    "qr": {"head": "qr", "method": "rehearsal"}, "rainbow": {"head": "rainbow", "noisy": True},
    "lstm": {"to": "lstm-8", "burn_in": 2, "unroll": 4}, "dqfd": {"method": "dqfd"},
}  # fmt: skip
SHORT = {"evaluation_steps": 60, "evaluate_every": 1000, "update_period": 8}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_there_is_captured_ends_and_is_taken_up_on_the_cpu(
    name: str, teacher: surgery.Checkpoint, tmp_path: Path
):
    job, said = replace(job_of(teacher, tmp_path, **SHORT, **RUNS[name]), device="cuda"), list[str]()
    outcome = execute(job, note=said.append)
    assert not [text for text in said if "kernel by kernel" in text]
    assert outcome.frames == 1000
    assert all(np.isfinite(one).all() for one in weights(outcome.student).values())
    assert execute(replace(job, device="cpu")).resumed


@pytest.mark.parametrize("kind", [{"to": "mlp-8", "noisy": True}, {"to": "gru-8", "unroll": 6, "burn_in": 2}])
def test_a_phase_that_was_left_anywhere_ends_where_the_whole_one_does(
    kind: dict[str, object], teacher: surgery.Checkpoint, tmp_path: Path
):
    """Random numbers go on where they were, though steps are captured anew after others that ran as they are."""
    whole, parts = (
        replace(
            job_of(teacher, tmp_path / name, budget=1000, learn_after=10**6, **SHORT, **kind), device="cuda"
        )
        for name in ("whole", "parts")
    )
    execute(whole)
    for reached in (2, 26, 59):
        leave_at(parts, reached)
    execute(parts)
    one, other = (weights(tmp_path / name / "student.onnx") for name in ("whole", "parts"))
    for name, weight in one.items():
        np.testing.assert_allclose(other[name], weight, rtol=1e-3, atol=1e-4, err_msg=name)


def test_a_recurrent_module_there_is_exported_with_its_layer():
    """Though it takes its steps by the cell."""
    module = to_module(new("lstm-8", observation=(5,), actions=3, seed=0)).cuda()
    given = tuple(torch.zeros(3, size, device="cuda") for size in (5, 8, 8))
    assert "LSTM" in [node.op_type for node in from_module(module, example_inputs=given).model.graph]


class Memory(nn.Module):
    """A recurrent layer, attention over its steps, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.memory, self.attention = nn.LSTM(5, 8, 2, batch_first=True), nn.MultiheadAttention(8, 2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.memory(x)[0].transpose(0, 1)
        return self.head(self.attention(y, y, y, need_weights=False)[0][-1])


GROWING: dict[str, tuple[Callable[[], nn.Module], torch.Tensor, Edit]] = {
    "memory": (Memory, X.expand(4, 8, 5), wider(factor=2)),
    "deeper": (Agent, FRAMES, lambda c: surgery.deepen(c, "fc")),
    "deeper in time": (Memory, X.expand(4, 8, 5), lambda c: surgery.deepen(c, "memory", kind="recurrent")),
}


@pytest.mark.parametrize("name", GROWING)
def test_live_surgery_there_leaves_everything_there_and_training_goes_on(name: str):
    make, inputs, edit = GROWING[name]
    net, x = make().cuda(), inputs.cuda()
    target = copy.deepcopy(net)
    rate = torch.tensor(1e-3, device="cuda")
    optimizer = torch.optim.Adam(net.parameters(), lr=rate, fused=True, capturable=True)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = sum((y - 1).square().mean() for y in torch.utils._pytree.tree_leaves(net(x)))
        loss.backward()
        optimizer.step()
        return loss.detach()

    losses = [step() for _ in range(3)]
    operate(net, optimizer, x, edit, also=[target])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "RNN module weights")  # that cuDNN has to gather at every call
        losses += [step() for _ in range(20)]
    assert torch.stack(losses).isfinite().all()
    assert losses[-1] < losses[3]
    state = [one for kept in optimizer.state.values() for one in kept.values()]
    for one in (*net.parameters(), *net.buffers(), *target.parameters(), *target.buffers(), *state):
        assert one.device == x.device


def test_a_trajectory_there_is_that_of_the_small_network():
    net, x = mlp().double().cuda(), X.double().cuda()
    twin = copy.deepcopy(net)
    old, new = (torch.optim.AdamW(one.parameters(), lr=3e-3, eps=1e-3) for one in (net, twin))

    def step(one: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        (one(x) - 1).square().mean().backward()
        optimizer.step()

    for one, optimizer in ((net, old), (twin, new)):
        step(one, optimizer)
    done = operate(twin, new, x, wider(widths={"0": 11, "2": 9}, init="net2net"))
    follow(new, twin, done.plan)
    for _ in range(40):
        step(net, old)
        step(twin, new)
    torch.testing.assert_close(twin(x), net(x), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("init", ["zero", "net2net"])
def test_live_surgery_there_keeps_what_tf32_makes_of_a_network(init: str):
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cudnn.rnn.fp32_precision = "tf32"  # the default
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 20, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1280, 5)
    ).cuda()
    x = torch.randn(16, 3, 12, 12, device="cuda")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    losses = [step() for _ in range(3)]
    operate(model, optimizer, x, wider(widths={"0": 17, "2": 31}, init=init, seed=0))
    assert model[0].weight.shape[0] == 17
    losses += [step() for _ in range(20)]
    assert all(one.is_cuda for state in optimizer.state.values() for one in state.values())
    assert losses[-1] < losses[0]


def test_killed_wherever_it_writes_it_goes_on(teachers: Path, tmp_path: Path):
    told = killed(teachers, tmp_path, "cuda")
    check_chosen(told, tmp_path)
    assert told["random"]["frames"] == 1200


def test_too_much_memory_is_said_in_one_line_and_nothing_is_lost():
    with (
        pytest.raises(RunFailed, match=r"the GPU is out of memory: Tried to allocate") as error,
        explained("less"),
    ):
        torch.empty(1 << 44, dtype=torch.uint8, device="cuda")
    assert "\n" not in error.value.message
    assert float(torch.ones(3, device="cuda").sum()) == 3


FAILING = "from tests.test_cuda import fail; fail()"


def test_a_graph_that_fails_leaves_everything_as_it_was():
    """In a process of its own, should it not."""
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", FAILING], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr


def fail() -> None:
    noise, stream = torch.zeros(2, device="cuda"), torch.cuda.current_stream()
    said: list[str] = []

    def step(given: torch.Tensor) -> torch.Tensor:
        noise.normal_()
        return given * given.sum().item() + 0 * noise

    recorder = CudaGraphs()
    captured = Captured(step, recorder, failed=said.append)
    on_device = [torch.full((2,), float(x), device="cuda") for x in range(6)]
    early = Captured(lambda given: given + 1, recorder, failed=said.append)
    for one in on_device:
        early(one)
    torch.cuda.manual_seed(3)
    found = [float(captured(one)[0]) for one in on_device]
    drawn = noise.clone()
    torch.cuda.manual_seed(3)
    for _ in on_device:
        noise.normal_()
    assert found == [2.0 * n * n for n in range(6)]
    [text] = said
    assert "not permitted" in text, text  # the first reason, not that of what it has broken
    assert torch.equal(noise, drawn)
    assert torch.cuda.current_stream() == stream
    torch.cuda.empty_cache()
    assert [float(early(one)[0]) for one in on_device] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]  # recorded anew
    able = Captured(lambda given: given + noise.normal_(), recorder, failed=said.append)
    for one in on_device:
        able(one)
    assert len(said) == 1, said
    learner: Learner = learner_of("mlp-16", "q", True, (5,), recorded=False, device="cuda")[0]
    learner._recorder, learner._note = recorder, said.append
    replay, generator = filled(False, (5,), device="cuda"), np.random.default_rng(1)
    for _ in range(STEPS):
        learner.update(replay.sample(8, generator), Objective(True, "imitate"), weight=1.0, rate=1e-2)
    assert len(said) == 1, said
