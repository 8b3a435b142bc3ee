"""Noisy students: the layer is the paper's, it explores by itself, and no noise leaves the training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import surgery
from surgery.architectures import new
from surgery.distill import Options, execute, plan_distill
from surgery.distill.actor import Actor
from surgery.distill.session import Session
from surgery.torch import to_module


def tensors_of(checkpoint: surgery.Checkpoint) -> dict[str, np.ndarray]:
    return {name: np.array(tensor.numpy()) for name, tensor in checkpoint.tensors.items()}


def test_a_noisy_layer_is_that_of_the_paper(rng: np.random.Generator):
    """w = μ + σ ∘ ε, ε_ij = f(ε_i) f(ε_j); b = μ + σ ∘ f(ε_out)  (arXiv:1706.10295, equations 9 to 11)."""
    checkpoint = new("mlp-6", observation=(4,), actions=3, noisy=True, seed=1)
    module, x = to_module(checkpoint), torch.from_numpy(rng.normal(size=(5, 4)).astype(np.float32))
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            if "noise" in name:
                tensor.normal_()
    y = x
    for layer in ("fc", "q"):
        part = {
            name.rpartition(".")[2]: t
            for name, t in module.named_parameters()
            if name.startswith(f"{layer}.")
        }
        noise = torch.outer(part["noise_out"], part["noise_in"])
        weight = part["weight_mu"] + part["weight_sigma"] * noise
        y = y @ weight.T + part["bias_mu"] + part["bias_sigma"] * part["noise_out"]
        y = torch.relu(y) if layer == "fc" else y
    torch.testing.assert_close(module(x), y)


def test_it_starts_as_in_the_paper_and_its_mean_is_the_plain_network(
    rng: np.random.Generator, tmp_path: Path
):
    noisy, plain = (new("mlp-64", observation=(16,), actions=3, noisy=one, seed=1) for one in (True, False))
    found, usual = tensors_of(noisy), tensors_of(plain)
    np.testing.assert_array_equal(found["fc.weight_mu"], usual["fc.weight"])
    assert np.abs(found["fc.weight_mu"]).max() <= 1 / 4  # ±1/√p
    np.testing.assert_allclose(found["fc.weight_sigma"], 0.5 / 4)
    np.testing.assert_allclose(found["q.bias_sigma"], 0.5 / 8)
    x, outputs = rng.normal(size=(5, 16)).astype(np.float32), []
    for name, one in (("noisy", noisy), ("plain", plain)):
        surgery.save(one, tmp_path / f"{name}.onnx")
        session = onnxruntime.InferenceSession(tmp_path / f"{name}.onnx")
        outputs.append(session.run(None, {"observation": x})[0])
    np.testing.assert_allclose(*outputs, atol=1e-6)


def test_noise_has_the_distribution_of_the_paper(tmp_path: Path):
    session = Session(job(tmp_path, "mlp-64"))
    torch.manual_seed(0)
    drawn = []
    for _ in range(300):
        session.student.draw_noise()
        drawn.append(session.student.module.get_parameter("q.noise_in").clone())
    values = torch.stack(drawn).flatten()
    assert float((values.sign() * values**2).std()) == pytest.approx(1, abs=0.03)  # f(ε) = sgn(ε)√|ε|
    assert abs(float(values.mean())) < 0.03
    session.close()


def job(folder: Path, to: str = "mlp-24", **given: object) -> surgery.distill.Job:
    teacher = surgery.load(Path(__file__).parent.parent / "examples/teachers/cartpole-dqn.onnx")
    changes = {"evaluation_episodes": 2, "offline_updates": 40, "teacher_data": 400, "evaluate_every": 1000}
    options = Options(frames=1000, envs=4, device="cpu", noisy=True, changes={**changes, **given})
    return plan_distill(teacher, to, folder, environment=teacher.environment, options=options)


def test_at_play_noise_is_drawn_at_every_step_and_never_while_it_is_evaluated(tmp_path: Path):
    session = Session(job(tmp_path))
    x = np.zeros((400, 4), np.float32)
    exploring = [tuple(session.actor.greedy(x)) for _ in range(40)]
    assert len(set(exploring)) > 1
    quiet = Actor(session.student)
    assert len({tuple(quiet.greedy(x)) for _ in range(20)}) == 1
    session.close()


def test_it_explores_without_random_actions_and_what_comes_out_is_quiet(tmp_path: Path):
    outcome = execute(job(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {line["epsilon"] for line in lines if line["kind"] == "train"} == {0.0}
    student = surgery.load(outcome.student)
    found = tensors_of(student)
    noise = {name for name in found if "noise" in name}
    assert noise == {f"{layer}.noise_{end}" for layer in ("fc", "q") for end in ("in", "out")}
    assert all((found[name] == 0).all() for name in noise)
    assert np.ptp(found["q.weight_sigma"]) > 0  # it has learned how much
    assert set(student.optimizer.parameters) == set(found) - noise
    surgery.apply(surgery.widen(student, factor=2), student)  # raises unless it is proved
    assert outcome.updates > 40


def test_random_actions_can_be_asked_for_beside(tmp_path: Path):
    assert job(tmp_path).settings.epsilon_end == 0
    assert job(tmp_path, epsilon_end=0.05).settings.epsilon_end == 0.05


def test_rainbow_is_all_of_it(teachers: Path, tmp_path: Path):
    teacher = surgery.load(teachers / "cartpole-dqn.onnx")
    changes = {"evaluation_episodes": 2, "offline_updates": 10, "teacher_data": 200, "learn_after": 900}
    rainbow = plan_distill(
        teacher, "mlp-16", tmp_path, environment=teacher.environment,
        options=Options(frames=1000, envs=4, device="cpu", head="rainbow", changes=changes),
    )  # fmt: skip
    settings = rainbow.settings
    assert (settings.double, settings.prioritised, settings.n_step, settings.epsilon_end) == (
        True,
        True,
        3,
        0.0,
    )
    student = surgery.load(execute(rainbow).student)
    [output] = student.interface.outputs
    assert (output.kind, output.low, output.high) == ("atom_logits", -10.0, 10.0)
    assert {"value.out.weight_mu", "advantage.out.weight_sigma", "advantage.fc.noise_in"} <= set(
        student.tensors
    )
