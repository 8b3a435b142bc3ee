"""The examples of growing in the middle of training, run at a small size."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"
GROWING = ("grow_dqn", "grow_recurrent_ppo", "widen_sb3_ppo")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Imports an example as a script finds its neighbours."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    torch.set_num_threads(1)

    def module(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
        return made

    return module


@pytest.mark.parametrize("name", [*GROWING, "maze"])
def test_an_example_is_short(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 100


def test_a_dqn_grows_in_mid_run(load, capsys: pytest.CaptureFixture[str]) -> None:
    network, returns = load("grow_dqn").train(steps=700, grow_at=600)
    assert network.head.in_features == network.body[2].out_features == 64
    assert network.head.weight.shape == (2, 64)
    assert len(returns) > 10
    assert "body.0 32→64 · body.2 32→64" in capsys.readouterr().out


def test_a_recurrent_agent_gets_observations_actions_and_memory(
    load, capsys: pytest.CaptureFixture[str]
) -> None:
    policy, rewards = load("grow_recurrent_ppo").train(iterations=8, games=8)
    assert (policy.encoder.in_features, policy.actor.out_features, policy.lstm.hidden_size) == (3, 4, 32)
    assert len(rewards) == 8
    text = capsys.readouterr().out
    assert all(change in text for change in ("observation[1] 2→3", "actor 3→4", "lstm 16→32"))


def test_ppo_of_stable_baselines_is_widened_between_two_learns(
    load, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load("widen_sb3_ppo").train(steps=256)
    assert model.policy.mlp_extractor.policy_net[2].weight.shape == (64, 64)
    assert model.num_timesteps >= 512
    assert "policy.mlp_extractor.value_net.2 32→64" in capsys.readouterr().out
