"""The swap of an optimizer: what its state says of the gradients is carried over, and PyTorch is the judge."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

import surgery
from surgery.cli import main
from surgery.errors import ArgumentError, Refused, SurgeryError, UnknownName
from surgery.ops.optimizer_moments import MOST_CENTRED, gain, read, window_matched, write
from surgery.ops.optimizer_updates import update
from surgery.ops.swap_optimizer import swap_state
from surgery.optimizer import OptimizerState, ParamGroup

TF = {"eps_inside_root": True, "starts_at_one": True}
Make = Callable[[list[torch.Tensor]], torch.optim.Optimizer]

KINDS: Mapping[str, tuple[str, Make, Mapping[str, Any]]] = {
    "adam": ("adam", lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.95), eps=1e-3), {}),
    "amsgrad": ("adam", lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True), {}),
    "adamw": ("adamw", lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0), {}),
    "rmsprop": ("rmsprop", lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.9, eps=1e-3), {}),
    "rmsprop centered": ("rmsprop", lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True), {}),
    "rmsprop momentum": ("rmsprop", lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.7, centered=True), {}),
    "rmsprop like TensorFlow's": ("rmsprop", lambda p: RMSpropTFLike(p, lr=0.01, alpha=0.9, eps=1e-4), TF),
    "the same, centered, momentum": (
        "rmsprop", lambda p: RMSpropTFLike(p, lr=0.01, alpha=0.9, eps=1e-4, centered=True, momentum=0.5), TF,
    ),
    "sgd": ("sgd", lambda p: torch.optim.SGD(p, lr=0.01), {}),
    "sgd momentum": ("sgd", lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, dampening=0.2), {}),
    "sgd nesterov": ("sgd", lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True), {}),
}  # fmt: skip


def stream(steps: int, size: int = 400, seed: int = 0, mean: float = 0.3) -> np.ndarray:
    """Gradients from one distribution, whose scale differs by orders of magnitude from weight to weight."""
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.uniform(-3, 1, size)
    return scale * (mean + rng.standard_normal((steps, size)))


def run(make: Make, gradients: np.ndarray) -> tuple[torch.optim.Optimizer, torch.Tensor]:
    weight = torch.zeros(gradients.shape[1], dtype=torch.float64)
    optimizer = make([weight])
    for gradient in gradients:
        weight.grad = torch.tensor(gradient)
        optimizer.step()
    return optimizer, weight


def state_of(optimizer: torch.optim.Optimizer, weight: torch.Tensor) -> tuple[dict[str, np.ndarray], float]:
    state = optimizer.state[weight]
    slots = {
        slot: value.numpy().copy()
        for slot, value in state.items()
        if slot != "step" and isinstance(value, torch.Tensor)
    }
    return slots, float(state.get("step", math.inf if state else 0.0))


def settings(optimizer: torch.optim.Optimizer, more: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in optimizer.param_groups[0].items() if k != "params"} | dict(more)


def optimizer_state(name: str, steps: int = 60, **more: Any) -> OptimizerState:
    kind, make, conventions = KINDS[name]
    optimizer, weight = run(make, stream(steps))
    slots, count = state_of(optimizer, weight)
    tensors = {slot: {"w": ir.tensor(array)} for slot, array in slots.items()}
    steps_of = {} if math.isinf(count) else {"w": count}
    return OptimizerState(
        kind, tensors, steps_of, (ParamGroup(("w",), {**settings(optimizer, conventions), **more}),)
    )


def swapped(name: str, to: str, steps: int = 60, **options: Any) -> tuple[dict[str, np.ndarray], float, Any]:
    how = {key: options.pop(key) for key in ("match", "was", "gradients", "seed") if key in options}
    new, report = swap_state(optimizer_state(name, steps), to, weights={}, options=options, **how)
    slots = {slot: members["w"].numpy() for slot, members in new.slots.items()}
    return slots, new.steps.get("w", math.inf), (new.groups[0].hyper, report)


# --- the arithmetic, against PyTorch ---


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("steps", [0, 1, 30])
def test_an_update_is_the_one_that_pytorch_makes(name: str, steps: int) -> None:
    kind, make, conventions = KINDS[name]
    gradients = stream(steps + 1)
    optimizer, weight = run(make, gradients[:-1])
    slots, count = state_of(optimizer, weight)
    found = update(kind, settings(optimizer, conventions), slots, count, gradients[-1])
    before = weight.clone()
    weight.grad = torch.tensor(gradients[-1])
    optimizer.step()
    np.testing.assert_allclose(found, (weight - before).numpy(), rtol=1e-9)


@pytest.mark.parametrize("name", KINDS)
def test_the_reach_of_a_gradient_is_the_sum_of_what_it_does(name: str) -> None:
    """One small gradient is added to a long stream: the weights end up elsewhere by reach times that gradient."""
    kind, make, conventions = KINDS[name]
    gradients = stream(900, size=40)
    optimizer, weight = run(make, gradients[:600])
    slots, count = state_of(optimizer, weight)
    wanted = gain(kind, settings(optimizer, conventions), slots, count)
    bump = gradients.copy()
    bump[600] += 1e-6 * np.abs(gradients).mean(axis=0)
    moved = (run(make, bump)[1] - run(make, gradients)[1]).numpy() / (bump - gradients)[600]
    # the bump also changes the squares; on average over weights that is small beside what it does directly
    ratio = np.median(moved / -np.broadcast_to(wanted, moved.shape))
    assert ratio == pytest.approx(1, abs=0.5 if "adam" not in kind else 0.25)


def test_windows_are_matched_as_they_should_be() -> None:
    assert window_matched((1 - 0.95), 0.999, math.inf) == 19
    assert window_matched((1 - 0.99), 0.999, math.inf) == 104
    for t in (1.0, 7.0, 300.0, 20_000.0):  # equal decays: the very count
        assert window_matched((1 - 0.99) / (1 - 0.99 ** (t + 1)), 0.99, t) == t
    assert window_matched(1 - 0.9999, 0.999, 50_000.0) == 50_000  # the old memory is the longer one
    assert window_matched(0.5, 0.999, 1.0) == 1


@pytest.mark.parametrize("steps", [1, 5, 100, 3000])
def test_with_equal_decays_adam_goes_on_as_if_it_had_always_been_there(steps: int) -> None:
    gradients = stream(steps)
    rms, weight = run(lambda p: torch.optim.RMSprop(p, alpha=0.99, centered=True), gradients)
    adam, other = run(lambda p: torch.optim.Adam(p, betas=(0.99, 0.99)), gradients)
    slots, count = state_of(rms, weight)
    new, s = write("adam", {"betas": (0.99, 0.99)}, read("rmsprop", settings(rms, {}), slots, count))
    wanted, t = state_of(adam, other)
    assert s == t == steps
    for slot in ("exp_avg", "exp_avg_sq"):
        np.testing.assert_allclose(new[slot], wanted[slot], rtol=1e-10, atol=1e-300)


@pytest.mark.parametrize("name", ["rmsprop", "rmsprop centered", "rmsprop like TensorFlow's"])
def test_the_squares_are_known_at_the_first_step_where_a_fresh_adam_guesses(name: str) -> None:
    slots, count, _ = swapped(name, "adam", 200)
    rng = np.random.default_rng(0)
    truth = (10.0 ** rng.uniform(-3, 1, 400)) ** 2 * (1 + 0.3**2)
    first = stream(201, seed=0)[-1]  # the same scales
    known = 0.999 * slots["exp_avg_sq"] + 0.001 * first**2
    carried = np.abs(np.log(np.sqrt(known / (1 - 0.999 ** (count + 1)) / truth))).mean()
    fresh = np.abs(np.log(np.sqrt(first**2 / truth))).mean()
    assert carried < 0.2
    assert fresh > 0.5


PATHS = [
    ("adam", "adamw", "adam", {}, {}),
    ("amsgrad", "adamw", "adam", {}, {}),
    ("adam", "rmsprop", "adam", {"alpha": 0.95, "momentum": 0.8}, {"betas": (0.8, 0.95)}),
    ("adam", "rmsprop", "adam", {"alpha": 0.95, "centered": True, "momentum": 0.0}, {"betas": (0.8, 0.95)}),
    ("rmsprop", "adam", "rmsprop", {"betas": (0.9, 0.9)}, {"alpha": 0.9, "momentum": 0.0}),
    ("rmsprop centered", "adam", "rmsprop", {"betas": (0.99, 0.99)},
     {"alpha": 0.99, "momentum": 0.0, "centered": True}),
    ("sgd momentum", "sgd", "sgd", {"dampening": 0.0}, {"dampening": 0.2}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "there", "back", "options", "again"), PATHS)
def test_there_and_back_is_the_same_state(
    name: str, there: str, back: str, options: dict[str, Any], again: dict[str, Any]
) -> None:
    before = optimizer_state(name, 400)
    middle, _ = swap_state(before, there, weights={}, options=options)
    after, _ = swap_state(middle, back, weights={}, options=again)
    assert after.steps == before.steps
    largest = math.sqrt(0.9 * MOST_CENTRED) if options.get("centered") else math.inf
    for slot, members in before.slots.items():
        old, new = members["w"].numpy(), after.slots[slot]["w"].numpy()
        kept = np.ones(old.shape, bool)
        if slot == "exp_avg":  # where centring would leave nothing under the root, the mean is cut off
            kept = np.abs(old) < largest * np.sqrt(before.slots["exp_avg_sq"]["w"].numpy())
        assert kept.mean() > 0.9
        np.testing.assert_allclose(new[kept], old[kept], rtol=1e-6)
    assert after.groups[0].hyper["lr"] == pytest.approx(0.01, rel=1e-6)


def test_adam_and_adamw_without_decay_are_one_optimizer() -> None:
    slots, count, (hyper, report) = swapped("adam", "adamw")
    before = optimizer_state("adam")
    assert count == 60
    assert hyper["lr"] == pytest.approx(0.01, rel=1e-12)
    assert (hyper["betas"], hyper["eps"], hyper["decoupled_weight_decay"]) == ((0.8, 0.95), 1e-3, True)
    for slot in ("exp_avg", "exp_avg_sq"):
        np.testing.assert_allclose(slots[slot], before.slots[slot]["w"].numpy(), rtol=1e-14)
    assert report.tensors[0].cosine == pytest.approx(1)
    assert report.tensors[0].step == pytest.approx(1)


@pytest.mark.parametrize("to", ["adam", "adamw", "rmsprop", "sgd"])
@pytest.mark.parametrize("name", [name for name in KINDS if name != "sgd" and "sgd" not in name])
def test_the_learning_rate_is_matched_for_every_pair(name: str, to: str) -> None:
    options = {"eps": 1e-5} if to == KINDS[name][0] else {}
    slots, _, (hyper, report) = swapped(name, to, 300, **options)
    (row,) = report.tensors
    assert row.gain == pytest.approx(1, rel=1e-9)
    assert row.lr == hyper["lr"]
    assert all(np.isfinite(array).all() for array in slots.values())
    if to != "sgd":
        assert row.direction > 0.95
        assert row.carried


def test_nominal_settings_are_orders_of_magnitude_apart_and_the_report_says_so() -> None:
    """Gradients of 1e-5: TensorFlow's RMSProp at its usual settings against Adam at its usual ones."""
    gradients = stream(300, size=50) * 0 + 1e-5 * np.random.default_rng(1).standard_normal((300, 50))
    rows = {}
    for label, make, conventions in (
        ("tf", lambda p: RMSpropTFLike(p, lr=2.5e-4, alpha=0.95, eps=1e-5), TF),
        ("torch", lambda p: torch.optim.RMSprop(p, lr=2.5e-4, alpha=0.95, eps=1e-5), {}),
    ):
        optimizer, weight = run(make, gradients)
        slots, count = state_of(optimizer, weight)
        state = OptimizerState(
            "rmsprop", {slot: {"w": ir.tensor(a)} for slot, a in slots.items()}, {"w": count},
            (ParamGroup(("w",), settings(optimizer, conventions)),),
        )  # fmt: skip
        _, nominal = swap_state(state, "adam", weights={}, options={"lr": 2.5e-4, "eps": 1e-8})
        _, matched = swap_state(state, "adam", weights={}, options={"eps": 1e-8})
        rows[label] = nominal.tensors[0].gain
        assert matched.tensors[0].gain == pytest.approx(1)
        assert matched.tensors[0].lr == pytest.approx(2.5e-4 / nominal.tensors[0].gain)
    assert rows["tf"] > 100 * rows["torch"]


def test_the_first_step_of_what_was_never_updated_is_adams_first() -> None:
    """As long as its learning rate; the moments of a long run would make it 3.2 times that."""
    state = OptimizerState("adam", {}, {}, (ParamGroup(("w",), {"lr": 0.01, "eps": 0.0}),))
    gradients = {"w": np.full((1, 4), 0.5)}
    weights = {"w": ir.tensor(np.zeros(4, np.float32), name="w")}
    options = {"lr": 0.01, "momentum": 0.0}
    _, report = swap_state(state, "sgd", weights=weights, options=options, gradients=gradients)
    assert report.tensors[0].step == pytest.approx(0.5)


def test_epsilon_keeps_its_place() -> None:
    assert swapped("rmsprop like TensorFlow's", "adam")[2][0]["eps"] == pytest.approx(1e-2)
    assert swapped("rmsprop", "adam")[2][0]["eps"] == 1e-3
    assert swapped("adam", "rmsprop", eps_inside_root=True)[2][0]["eps"] == pytest.approx(1e-6)
    inside = swapped("rmsprop", "adam", was={"eps_inside_root": True})
    assert inside[2][0]["eps"] == pytest.approx(math.sqrt(1e-3))


def test_a_centered_state_made_of_other_windows_keeps_its_variance_positive() -> None:
    """Every mean is as large as its root mean square: nothing would be left under the root."""
    gradients = np.full((50, 3), [[1.0, -2.0, 0.0]])
    adam, weight = run(lambda p: torch.optim.Adam(p), gradients)
    slots, count = state_of(adam, weight)
    moments = read("adam", settings(adam, {}), slots, count)
    new, _ = write("rmsprop", {"alpha": 0.95, "centered": True, "eps": 1e-8}, moments)
    left = new["square_avg"] - new["grad_avg"] ** 2
    assert (left >= 0).all()
    assert (left[:2] >= 0.2 * new["square_avg"][:2]).all()
    assert (np.sign(new["grad_avg"]) == [1, -1, 0]).all()


def test_steps_per_element_are_followed_one_by_one() -> None:
    state = optimizer_state("adam")
    counts = np.where(np.arange(400) < 100, 0.0, 60.0)
    state = state.replace(slots={**state.slots, "step": {"w": ir.tensor(counts)}}, steps={})
    new, _ = swap_state(state, "adamw", weights={}, options={})
    np.testing.assert_array_equal(new.slots["step"]["w"].numpy(), counts)
    assert not new.steps
    slots = new.slots["exp_avg"]["w"].numpy()
    np.testing.assert_allclose(slots[100:], state.slots["exp_avg"]["w"].numpy()[100:], rtol=1e-13)


def test_squares_that_sgd_never_kept_come_from_gradients() -> None:
    gradients = stream(64, seed=3)
    with pytest.raises(ArgumentError, match="does not say how large"):
        swap_state(optimizer_state("sgd momentum"), "adam", weights={}, options={})
    weights = {"w": ir.tensor(np.zeros(400))}
    new, report = swap_state(
        optimizer_state("sgd momentum"), "adam", weights=weights, options={}, gradients={"w": gradients}
    )
    corrected = new.slots["exp_avg_sq"]["w"].numpy() / (1 - 0.999 ** new.steps["w"])
    np.testing.assert_allclose(corrected, np.square(gradients).mean(axis=0))
    assert report.measured == "gradients"
    assert report.tensors[0].gain == pytest.approx(1)
    fresh, without = swap_state(optimizer_state("sgd"), "adam", weights={}, options={"lr": 1e-3})
    assert (dict(fresh.slots), dict(fresh.steps)) == ({}, {})
    assert not without.tensors[0].carried
    assert any("afresh" in line for line in without.lost)


def test_l2_decay_is_part_of_the_first_step_on_real_gradients() -> None:
    state, rng = optimizer_state("rmsprop", weight_decay=0.5), np.random.default_rng(0)
    weights, gradients = {"w": ir.tensor(rng.standard_normal(400))}, {"w": stream(1, seed=5)}
    _, kept = swap_state(state, "adam", weights=weights, options={}, gradients=gradients)
    _, off = swap_state(state, "adam", weights=weights, options={"weight_decay": 0.0}, gradients=gradients)
    assert kept.tensors[0].cosine > off.tensors[0].cosine


def test_decoupled_decay_shrinks_weights_as_fast_as_before() -> None:
    state = optimizer_state("adamw", weight_decay=0.1)
    new, _ = swap_state(state, "adamw", weights={}, options={"betas": (0.9, 0.9), "eps": 1e-2})
    hyper = new.groups[0].hyper
    assert hyper["lr"] != 0.01
    assert hyper["lr"] * hyper["weight_decay"] == pytest.approx(0.01 * 0.1)


@pytest.mark.parametrize("to", ["rmsprop", "adamw"])
def test_a_schedule_that_has_ended_keeps_its_rate_and_matches_no_other(to: str) -> None:
    state = optimizer_state("adamw", lr=0.0)
    with pytest.raises(ArgumentError, match="rate is 0") as caught:
        swap_state(state, to, weights={}, options={"eps": 1e-2})
    assert "--match none" in (caught.value.hint or "")
    new, report = swap_state(state, to, weights={}, match="none", options={"eps": 1e-2})
    assert new.groups[0].hyper["lr"] == 0.0 and report.tensors[0].carried


REFUSALS: Mapping[str, tuple[OptimizerState, str, dict[str, Any], type[SurgeryError], str]] = {
    "nadam": (OptimizerState("nadam", {}, {}, (ParamGroup(("w",), {"lr": 0.1}),)), "adam", {}, Refused, "schedule"),
    "to nadam": (optimizer_state("adam"), "nadam", {}, Refused, "schedule of products"),
    "adagrad": (OptimizerState("adagrad", {}, {}, (ParamGroup(("w",), {"lr": 0.1}),)), "adam", {}, Refused, "sums"),
    "lion": (OptimizerState("lion", {}, {}, (ParamGroup(("w",), {"lr": 0.1}),)), "adam", {}, Refused, "'lion'"),
    "to lion": (optimizer_state("adam"), "lion", {}, UnknownName, "lion"),
    "the same": (optimizer_state("adam"), "adam", {}, ArgumentError, "'adam' already"),
    "decay": (optimizer_state("adam", weight_decay=0.1), "adamw", {}, Refused, "something else"),
    "decay back": (optimizer_state("adamw", weight_decay=0.1), "sgd", {}, Refused, "something else"),
    "setting": (optimizer_state("adam"), "rmsprop", {"betas": (0.9, 0.9)}, UnknownName, "betas"),
    "range": (optimizer_state("adam"), "rmsprop", {"alpha": 1.0}, ArgumentError, "alpha"),
    "beta": (optimizer_state("rmsprop"), "adam", {"betas": (0.9,)}, ArgumentError, "betas"),
    "rate": (optimizer_state("rmsprop"), "adam", {"lr": 0}, ArgumentError, "lr"),
    "flag": (optimizer_state("rmsprop"), "adam", {"amsgrad": 3}, ArgumentError, "amsgrad"),
    "slot": (
        optimizer_state("rmsprop centered").replace(slots={"square_avg": {"w": ir.tensor(np.ones(400))}}),
        "adam", {}, Refused, "no 'grad_avg'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSALS)
def test_what_cannot_be_carried_is_refused_with_the_reason(what: str) -> None:
    state, to, options, error, says = REFUSALS[what]
    with pytest.raises(error, match=says) as caught:
        swap_state(state, to, weights={}, options=options)
    assert caught.value.hint


# --- a real agent, and its file ---


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The MinAtar agent with the state of its centered RMSProp."""
    path = tmp_path_factory.mktemp("agent") / "agent.onnx"
    teachers = Path(__file__).parent.parent / "examples" / "teachers"
    graph = surgery.load(teachers / "minatar-breakout-dqn.onnx")
    surgery.save(surgery.attach(graph, teachers / "minatar-breakout-dqn.pt"), path)
    return path


def test_a_real_agent_is_swapped_and_its_weights_stay(agent: Path, tmp_path: Path) -> None:
    before = surgery.load(agent)
    swap = surgery.swap_optimizer(before, to="adam")
    swap.save(tmp_path / "adam.onnx")
    after = surgery.load(tmp_path / "adam.onnx")
    assert after.digest() == before.digest()
    assert after.optimizer.kind == "adam"
    assert set(after.optimizer.steps.values()) == {19}
    old, new = before.optimizer.slots, after.optimizer.slots
    for name in before.optimizer.parameters:
        squares = new["exp_avg_sq"][name].numpy() / (1 - 0.999**19)
        np.testing.assert_allclose(squares, old["square_avg"][name].numpy(), 1e-5, 1e-40)
        means = new["exp_avg"][name].numpy() / (1 - 0.9**19)
        np.testing.assert_allclose(means, old["grad_avg"][name].numpy(), 1e-5, 1e-40)
    step = after.lineage[-1]
    assert step.operation == "swap_optimizer"
    assert step.summary["to"] == "adam"
    assert step.parents == (before.digest(),)
    assert all(row.direction > 0.999 for row in swap.report.tensors)
    difference = surgery.diff(before, after).describe()
    assert "~ optimizer kind: rmsprop → adam" in difference
    assert "127,718 → 19" in difference


def test_the_command_swaps_and_says_what_it_did(
    agent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "adam.onnx"
    assert main(["optimizer", str(agent), "--to", "adam", "-o", str(out)]) == 0
    text = capsys.readouterr().out
    assert "rmsprop → adam · 6 of 6 tensors carried" in text
    assert "grad_avg → exp_avg" in text
    words = [
        "optimizer",
        str(agent),
        "--to",
        "adamw",
        "--set",
        "betas=0.9,0.95",
        "--set",
        "lr=1e-4",
        "-n",
        "--json",
    ]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["schema"], report["claim"], report["output"]) == (1, "identical", None)
    assert report["groups"][0]["hyper"]["betas"] == [0.9, 0.95]
    assert {row["lr"] for row in report["tensors"]} == {1e-4}
    assert main(["optimizer", str(agent), "--to", "adam", "-o", str(out)]) == 2  # it exists
    assert main(["optimizer", str(agent), "--to", "nadam", "-n"]) == 1
    assert main(["optimizer", str(agent), "--to", "adam", "--set", "lr", "-n"]) == 2
    assert main(["optimizer", str(agent), "--to", "adam", "--set", "rho=1", "-n"]) == 2
    assert main(["optimizer", str(agent), "--to", "adam", "--set", "lr=NaN", "-n"]) == 2
    assert main(["optimizer", str(agent), "--to", "adam", "--was", "starts_at_one=3", "-n"]) == 2
    assert main(["optimizer", str(agent), "--to", "adam", "--was", "ones=true", "-n"]) == 2
    assert main(["optimizer", str(agent), "--to", "adam"]) == 2  # nothing to write to
    assert (
        main(["optimizer", str(agent), "--to", "adam", "-o", str(agent), "--force"]) == 2
    )  # the source itself
    errors = capsys.readouterr().err
    assert "'lr' is not NAME=VALUE" in errors
    assert "unknown setting of 'adam' 'rho'" in errors


def test_real_gradients_come_from_a_file(
    agent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = {name: tensor.shape.numpy() for name, tensor in surgery.load(agent).tensors.items()}
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "g.npz",
        **{name: 1e-3 * rng.standard_normal((2, *shape)) for name, shape in shapes.items()},
    )
    words = ["optimizer", str(agent), "--to", "adam", "--gradients", str(tmp_path / "g.npz"), "-n", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["measured_on"] == "gradients"
    np.savez(tmp_path / "bad.npz", **{"network.0.bias": np.zeros((2, 5))})
    words[words.index(str(tmp_path / "g.npz"))] = str(tmp_path / "bad.npz")
    assert main(words) == 2
    assert "[batches, 16]" in capsys.readouterr().out


def test_a_model_without_state_is_told_how_to_get_one(teachers: Path) -> None:
    with pytest.raises(ArgumentError, match="no optimizer state") as caught:
        surgery.swap_optimizer(surgery.load(teachers / "cartpole-dqn.onnx"), to="adam")
    assert "attach" in (caught.value.hint or "")
