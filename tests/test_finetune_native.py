"""Fine-tuning what a framework saved: its target network and optimizer go on, and all of it goes back into its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sb3_contrib
import stable_baselines3 as sb3
import torch
from stable_baselines3.common.base_class import BaseAlgorithm

import surgery
import surgery.policy
from surgery.architectures import new
from surgery.distill import Options, execute, plan_finetune
from surgery.distill.session import Session
from surgery.errors import ArgumentError
from surgery.interface import Environment, Interface, PortPatch
from surgery.probes import probes

CARTPOLE = Environment("CartPole-v1")
KINDS = {"dqn": (sb3.DQN, {}), "qrdqn": (sb3_contrib.QRDQN, {"n_quantiles": 7})}
OPTIONS = Options(
    frames=1000, envs=4, device="cpu",
    changes={"evaluation_episodes": 2, "evaluate_every": 1000, "learn_after": 900, "final_rate": 1e-3},
)  # fmt: skip


@pytest.fixture(params=list(KINDS))
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[BaseAlgorithm, Path]:
    """An agent that has learned a little, its target behind it, and its file."""
    algorithm, more = KINDS[request.param]
    agent = algorithm(
        "MlpPolicy", "CartPole-v1", learning_starts=50, target_update_interval=10**6, device="cpu", seed=1,
        policy_kwargs={"net_arch": [16], **more},
    )  # fmt: skip
    agent.learn(200)
    agent.save(tmp_path / "agent.zip")
    return agent, tmp_path / "agent.zip"


def state_of(agent: BaseAlgorithm) -> dict[str, torch.Tensor]:
    return agent.policy.state_dict()


def test_it_goes_on_where_the_framework_stopped(saved: tuple[BaseAlgorithm, Path], tmp_path: Path):
    agent, path = saved
    job = plan_finetune(surgery.load(path), tmp_path / "run", environment=CARTPOLE, options=OPTIONS)
    learned = (
        "quantiles" if isinstance(agent, sb3_contrib.QRDQN) else "q_values"
    )  # not what is computed from it
    assert [port.kind for port in job.student.interface.outputs] == [learned]
    session, had = Session(job), state_of(agent)
    for network, part in ((session.student, ""), (session.learner.target, "_target")):
        for name, tensor in network.module.state_dict().items():
            kind, _, rest = name.partition(".")
            torch.testing.assert_close(tensor, had[f"{kind}{part}.{rest}"], rtol=0, atol=0)
    moments = agent.policy.optimizer.state_dict()["state"].values()
    found = session.learner.optimizer.state_dict()["state"].values()
    key = lambda state: float(state["exp_avg_sq"].double().sum())  # noqa: E731
    assert sorted(map(key, found)) == pytest.approx(sorted(map(key, moments)))
    assert {float(state["step"]) for state in found} == {float(state["step"]) for state in moments}
    session.close()


def test_what_it_has_become_goes_back_into_the_frameworks_own_file(
    saved: tuple[BaseAlgorithm, Path], tmp_path: Path
):
    agent, path = saved
    before, original = path.read_bytes(), surgery.load(path)
    outcome = execute(plan_finetune(original, tmp_path / "run", environment=CARTPOLE, options=OPTIONS))
    assert outcome.native == tmp_path / "run" / "student.zip"
    assert path.read_bytes() == before
    again = type(agent).load(outcome.native, device="cpu")
    written, whole = surgery.load(outcome.native), surgery.load(outcome.student)
    assert written.tensors.keys() == whole.tensors.keys() == original.tensors.keys()
    for name, tensor in written.tensors.items():
        np.testing.assert_array_equal(tensor.numpy(), whole.tensors[name].numpy())
        np.testing.assert_array_equal(tensor.numpy(), state_of(again)[name].numpy())
    had, now = state_of(agent), state_of(again)
    online = [name for name in had if "_target" not in name]
    assert any(not torch.equal(had[name], now[name]) for name in online)
    # the period of the target is 1,000 steps: it was copied at the very end
    assert all(torch.equal(now[name], now[name.replace(".", "_target.", 1)]) for name in online)
    moments = [surgery.load(one).optimizer.slots["exp_avg_sq"] for one in (outcome.student, outcome.native)]
    for name, tensor in moments[0].items():
        np.testing.assert_array_equal(tensor.numpy(), moments[1][name].numpy())
    assert any(
        (moments[0][name].numpy() != original.optimizer.slots["exp_avg_sq"][name].numpy()).any()
        for name in moments[0]
    )
    counts = [
        {float(state["step"]) for state in one.policy.optimizer.state_dict()["state"].values()}
        for one in (agent, again)
    ]
    assert counts[1] == {count + outcome.updates for count in counts[0]}
    [was], [group] = (one.policy.optimizer.state_dict()["param_groups"] for one in (agent, again))
    assert {name for name, value in group.items() if value != was[name]} == {
        "lr",
        "eps",
    }  # not how it ran here
    x = probes(whole, 8, seed=0)["observation"]
    policy, _ = again.predict(x, deterministic=True)
    assert (policy == surgery.policy.load(whole).act(x, generator=np.random.default_rng(0))).all()
    assert written.lineage[-1].operation == "finetune"


def test_with_another_optimizer_the_file_that_comes_out_has_that_one(
    saved: tuple[BaseAlgorithm, Path], tmp_path: Path
):
    agent, path = saved
    job = plan_finetune(
        surgery.load(path), tmp_path / "run", environment=CARTPOLE, options=OPTIONS, optimizer="rmsprop"
    )
    again = type(agent).load(execute(job).native, device="cpu")
    assert type(again.policy.optimizer) is torch.optim.RMSprop
    whole = surgery.load(tmp_path / "run" / "student.onnx")
    for name, parameter in again.policy.named_parameters():
        if name in whole.optimizer.parameters:
            held = again.policy.optimizer.state[parameter]["square_avg"]
            np.testing.assert_array_equal(held, whole.optimizer.slots["square_avg"][name].numpy())


def test_a_file_that_cannot_be_written_back_is_refused_before_anything_starts(
    saved: tuple[BaseAlgorithm, Path], tmp_path: Path
):
    broken = surgery.load(saved[1]).replace(origin=tmp_path / "gone.zip")
    with pytest.raises(ArgumentError, match=r"could not be written back into .*gone\.zip"):
        plan_finetune(broken, tmp_path / "run", environment=CARTPOLE, options=OPTIONS)
    assert not (tmp_path / "run").exists()


def test_an_onnx_with_its_target_beside_it_keeps_both(saved: tuple[BaseAlgorithm, Path], tmp_path: Path):
    surgery.save(surgery.load(saved[1]), tmp_path / "both.onnx")
    model = surgery.load(tmp_path / "both.onnx")
    options = replace(OPTIONS, changes={**OPTIONS.changes, "target_period": 10**6})
    outcome = execute(plan_finetune(model, tmp_path / "run", environment=CARTPOLE, options=options))
    assert outcome.native is None
    done = surgery.load(outcome.student)
    assert done.copies == model.copies
    for name, tensor in done.tensors.items():  # the target is as it was, since nothing was copied to it
        same = np.array_equal(tensor.numpy(), model.tensors[name].numpy())
        assert same == ("_target" in name), name
    assert [port.name for port in done.interface.outputs] == [port.name for port in model.interface.outputs]
    assert set(done.optimizer.parameters) == set(model.optimizer.parameters)


def test_an_actor_critic_has_no_values_to_go_on_with(tmp_path: Path):
    sb3.PPO("MlpPolicy", "CartPole-v1", device="cpu").save(tmp_path / "ppo.zip")
    with pytest.raises(ArgumentError, match="needs an output of values; this model has"):
        plan_finetune(
            surgery.load(tmp_path / "ppo.zip"), tmp_path / "run", environment=CARTPOLE, options=OPTIONS
        )


def test_the_order_of_inputs_and_outputs_does_not_matter(tmp_path: Path):
    made = new("lstm-8", observation=(4,), actions=2, seed=1).replace(environment=CARTPOLE)
    turned = made.model.clone()
    for values in (turned.graph.inputs, turned.graph.outputs):
        values[:] = [*values[1:], values[0]]
    interface = Interface(
        *((*ports[1:], ports[0]) for ports in (made.interface.inputs, made.interface.outputs))
    )
    model = made.replace(model=turned, interface=interface)
    changes = {"evaluation_episodes": 2, "evaluate_every": 1000, "unroll": 6, "burn_in": 2}
    outcome = execute(
        plan_finetune(
            model, tmp_path / "run", environment=CARTPOLE,
            options=Options(frames=1000, envs=2, device="cpu", changes=changes),
        )
    )  # fmt: skip
    done = surgery.load(outcome.student)
    assert [port.name for port in done.interface.outputs] == ["hidden_next", "cell_next", "q_values"]
    assert any((done.tensors[name].numpy() != made.tensors[name].numpy()).any() for name in made.tensors)


def test_inputs_that_no_environment_gives_are_refused_by_name(tmp_path: Path):
    model = new("mlp-8", observation=(4,), actions=2)
    masked = model.replace(interface=model.interface.annotated({"observation": PortPatch(kind="mask")}, {}))
    with pytest.raises(ArgumentError, match=r"not observation \(mask\)"):
        plan_finetune(masked, tmp_path / "run", environment=CARTPOLE, options=OPTIONS)
