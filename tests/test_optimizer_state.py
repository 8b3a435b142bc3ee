"""Optimizer state by name: rules for every slot, and a file that gives everything back."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from surgery.errors import ArgumentError, Refused
from surgery.optimizer import (
    POWERS,
    SCALARS,
    OptimizerState,
    ParamGroup,
    load_optimizer,
    power,
    save_optimizer,
)
from surgery.tensors import equal, shape_of

# What a rule claims is a fact about PyTorch: an optimizer that has only ever seen a * g holds a**power times
# the state of one that has seen g.
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.0, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.0, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.0, amsgrad=True, weight_decay=0.0),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.0),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.0),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.0, eps=0.0),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.0, momentum=0.9, centered=True, eps=1e-30),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.0),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.0, eps=1e-30),
    "muon": lambda p: torch.optim.Muon(p, lr=0.0),
}


def states_after(kind: str, scale: float) -> dict[str, np.ndarray]:
    parameter = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    optimizer = OPTIMIZERS[kind]([parameter])
    gradients = np.random.default_rng(0).normal(size=(20, 2, 3))
    for gradient in gradients:
        parameter.grad = torch.from_numpy(scale * gradient)
        optimizer.step()
    return {
        slot: np.asarray(value) for slot, value in optimizer.state[parameter].items() if slot not in SCALARS
    }


@pytest.mark.parametrize("scale", [0.5, 0.3])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_slot_follows_the_gradient_by_its_power(kind, scale):
    before, after = states_after(kind, 1.0), states_after(kind, scale)
    assert set(before) == set(POWERS[kind]) - {"step"}
    for slot, value in before.items():
        np.testing.assert_allclose(after[slot], scale ** power(kind, slot) * value, rtol=1e-12)


def test_every_kind_that_pytorch_has_is_compared_with_it():
    assert set(OPTIMIZERS) == set(POWERS) - {"lamb"}  # Sample Factory's, which has Adam's moments
    assert POWERS["lamb"].items() <= POWERS["adam"].items()


@pytest.mark.parametrize(
    ("kind", "slot", "says"), [("lion", "exp_avg", "optimizer 'lion'"), ("adam", "mystery", "slot 'mystery'")]
)
def test_a_slot_without_a_rule_is_refused(kind, slot, says):
    with pytest.raises(Refused, match=says) as caught:
        power(kind, slot)
    assert "rules exist for" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "state",
    [
        OptimizerState("sgd", {}, {}, (ParamGroup(("a", "b"), {"lr": 0.1}),)),
        OptimizerState("unknown", {"x": {}}, {"a": 3.5}, (ParamGroup(("a",)), ParamGroup((), {"lr": 1}))),
        OptimizerState(
            "adam",
            {
                "exp_avg": {"a/b.weight": ir.tensor(np.ones((2, 3), "f4")), "s": ir.tensor(np.float32(2))},
                "step": {"s": ir.tensor(np.float32(7))},
            },
            {"a/b.weight": 12.0, "s": 7.0},
            (
                ParamGroup(("a/b.weight",), {"betas": (0.9, 0.999), "lr": 1e-3, "note": "é", "fused": None}),
                ParamGroup(("s",), {"eps_inside_root": True}),
            ),
        ),
    ],
    ids=["no slots", "empty slot", "two groups"],
)
def test_a_state_comes_back_from_its_file(tmp_path, state):
    save_optimizer(state, tmp_path / "o.safetensors")
    found = load_optimizer(tmp_path / "o.safetensors")
    assert (found.kind, found.steps, found.groups) == (state.kind, state.steps, state.groups)
    assert {slot: set(tensors) for slot, tensors in found.slots.items()} == {
        slot: set(tensors) for slot, tensors in state.slots.items()
    }
    for slot, tensors in state.slots.items():
        for name, tensor in tensors.items():
            assert equal(tensor, found.slots[slot][name])
            assert shape_of(tensor) == shape_of(found.slots[slot][name])


def test_a_state_cannot_be_changed():
    hyper = {"betas": [0.9, 0.999]}
    state = OptimizerState(
        "adam", {"exp_avg": {"a": ir.tensor([1.0])}}, {"a": 1.0}, (ParamGroup(("a",), hyper),)
    )
    hyper["betas"][0] = 0.5
    assert state.group("a").hyper["betas"] == (0.9, 0.999)
    with pytest.raises(TypeError):
        state.slots["exp_avg"]["b"] = None
    with pytest.raises(TypeError):
        state.groups[0].hyper["lr"] = 1
    assert state.replace(kind="adamw").kind == "adamw"
    with pytest.raises(KeyError):
        state.group("b")


def test_inconsistent_states_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match="more than one group: a"):
        OptimizerState("adam", {}, {}, (ParamGroup(("a",)), ParamGroup(("a",))))
    with pytest.raises(ArgumentError, match="in no group: b"):
        OptimizerState("adam", {"exp_avg": {"b": ir.tensor([1.0])}}, {}, (ParamGroup(("a",)),))
    slashed = OptimizerState("adam", {"x/y": {"a": ir.tensor([1.0])}}, {}, (ParamGroup(("a",)),))
    with pytest.raises(ArgumentError, match="no slash"):
        save_optimizer(slashed, tmp_path / "o")
