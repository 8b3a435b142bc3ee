"""A target network that is asked in onnxruntime: the same values, and never those of older weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import surgery
from surgery.architectures import new
from surgery.distill import Options, frozen, plan_distill
from surgery.distill.network import Network
from surgery.distill.session import Session
from surgery.distill.values import values_of
from surgery.errors import GraphError
from surgery.policy.feeds import state_ports
from surgery.torch import to_module

IMAGE = (4, 40, 40)


def pair(to: str, head: str, shape: tuple[int, ...], **given: object) -> tuple[Network, Network]:
    """A student, and a target of other weights that is frozen."""
    scale = 1 / 255 if len(shape) == 3 else None
    noisy, precision = bool(given.get("noisy")), given.get("precision", torch.float32)
    made = [
        new(to, observation=shape, actions=3, head=head, scale=scale, seed=seed, noisy=noisy)
        for seed in (1, 2)
    ]
    networks = [
        Network(to_module(one), values_of(one), shape, precision=precision, states=state_ports(one))
        for one in made
    ]
    networks[1].module.requires_grad_(False)
    networks[1].freeze(made[0])
    return networks[0], networks[1]


def seen(shape: tuple[int, ...]) -> torch.Tensor:
    generator = np.random.default_rng(0)
    if len(shape) == 3:
        return torch.from_numpy(generator.integers(256, size=(5, *shape), dtype=np.uint8))
    return torch.from_numpy(generator.normal(size=(5, *shape)).astype(np.float32))


@pytest.mark.parametrize(
    ("to", "head", "shape"),
    [("mlp-16", "q", (6,)), ("mlp-16", "c51", (6,)), ("mlp-16", "dueling", (6,)), ("minatar", "qr", (4, 10, 10)),
     ("nature-fc32", "q", IMAGE), ("impala-fc32", "dueling", IMAGE)],
)  # fmt: skip
def test_it_gives_what_the_module_gives_whatever_has_changed_its_weights(
    to: str, head: str, shape: tuple[int, ...]
):
    student, target = pair(to, head, shape)
    x, answers = seen(shape), []
    weights = {name: tensor.clone() for name, tensor in target.module.state_dict().items()}
    for change in (None, lambda: target.copy_from(student), lambda: target.load(weights)):
        if change is not None:
            change()
        answers.append(target(x))
        torch.testing.assert_close(answers[-1], target.module(x.float()), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(answers[0], answers[1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(answers[0], answers[2], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("to", "given"),
    [("gru-8", {}), ("mlp-16", {"noisy": True}), ("mlp-16", {"precision": torch.bfloat16})],
    ids=["memory", "noise", "bfloat16"],
)
def test_what_a_copy_would_not_follow_stays_a_module(to: str, given: dict, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(frozen, "in_runtime", lambda *_: pytest.fail("asked in onnxruntime"))
    _, target = pair(to, "q", (6,), **given)
    found = target.step(seen((6,)), target.blank(5))[0] if target.states else target(seen((6,)))
    assert found.shape == (5, 3)


def test_a_graph_that_onnxruntime_cannot_run_stays_a_module(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise GraphError("no such operator")

    monkeypatch.setattr(frozen, "in_runtime", refuse)
    _, target = pair("mlp-16", "q", (6,))
    torch.testing.assert_close(target(seen((6,))), target.module(seen((6,))))


@pytest.mark.parametrize(("period", "copied"), [(4 * frozen.STEPS, True), (4, False)])
def test_a_target_that_follows_at_every_step_is_not_copied(period: int, copied: bool, tmp_path: Path):
    teacher = surgery.load(Path(__file__).parent.parent / "examples/teachers/cartpole-dqn.onnx")
    options = Options(frames=1000, device="cpu", envs=2, changes={"target_period": period})
    job = plan_distill(teacher, "mlp-8", tmp_path, environment=teacher.environment, options=options)
    session = Session(job)
    assert (session.learner.target._frozen is not None) == copied
    session.close()
