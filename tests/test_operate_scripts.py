"""Live surgery as training scripts meet it: several optimizers, steps that are half done, parts that are compiled."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from surgery.errors import ClaimFailed, Refused
from surgery.torch import follow, from_module, operate
from tests.live_models import X, everything, loss_of, mlp, same, trained, wider


class Shared(nn.Module):
    """An actor-critic with a shared trunk, and a deviation that no observation changes."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, width), nn.Tanh())
        self.actor, self.critic = nn.Linear(width, 3), nn.Linear(width, 1)
        self.log_std = nn.Parameter(torch.zeros(1, 3))

    def forward(self, x):
        hidden = self.trunk(x)
        return self.actor(hidden), self.log_std.expand(len(x), -1), self.critic(hidden)


def apart(net: Shared) -> list[torch.optim.Optimizer]:
    """The trunk with the actor, and the critic by itself."""
    first = [*net.trunk.parameters(), *net.actor.parameters(), net.log_std]
    settings = {"lr": 1e-2, "eps": 1e-3}
    return [
        torch.optim.Adam(first, **settings),
        torch.optim.AdamW(net.critic.parameters(), **settings | {"lr": 0.03}),
    ]


def step(net: nn.Module, optimizers: list[torch.optim.Optimizer], seed: int, x: Any = None) -> None:
    net.zero_grad()
    loss_of(net, X.double() if x is None else x, seed).backward()
    for optimizer in optimizers:
        optimizer.step()


@pytest.mark.parametrize("recipe", [True, False])
def test_several_optimizers_go_on_and_all_of_their_settings_are_told(recipe):
    torch.manual_seed(0)
    net = Shared().double()
    optimizers = apart(net)
    for seed in range(3):
        step(net, optimizers, seed)
    small = copy.deepcopy(net)
    slow = apart(small)
    for old, new in zip(optimizers, slow, strict=True):
        new.load_state_dict(copy.deepcopy(old.state_dict()))
    done = operate(net, optimizers, X.double(), wider(factor=2, init="net2net"), follow_recipe=recipe)
    told = {name: group for group in done.recipe.groups for name in group.parameters}
    assert told.keys() == dict(net.named_parameters()).keys()
    assert (told["actor.weight"].hyper["lr"], told["critic.weight"].hyper["lr"]) == (0.005, 0.015)
    if not recipe:
        for optimizer in optimizers:
            follow(optimizer, net, done.plan)
    for seed in range(20):
        step(net, optimizers, seed)
        step(small, slow, seed)
    torch.testing.assert_close(net(X.double()), small(X.double()), rtol=1e-12, atol=1e-12)


def alternating(net: nn.Module) -> list[torch.optim.Optimizer]:
    """Two optimizers of the same parameters, as in phases of training."""
    first = torch.optim.Adam(net.parameters(), lr=1e-2, eps=1e-3)
    return [first, torch.optim.SGD(net.parameters(), lr=1e-2, momentum=0.9), first]


def test_optimizers_of_the_same_parameters_have_settings_of_their_own():
    torch.manual_seed(0)
    net = mlp().double()
    optimizers = alternating(net)
    step(net, optimizers, 0)
    small = copy.deepcopy(net)
    slow = alternating(small)
    for old, new in zip(optimizers, slow, strict=True):
        new.load_state_dict(copy.deepcopy(old.state_dict()))
    done = operate(net, optimizers, X.double(), wider(factor=2, init="net2net"), follow_recipe=True)
    assert done.slots == 15 and sum("4.weight" in group.parameters for group in done.recipe.groups) == 2
    for seed in range(10):
        step(net, optimizers, seed)
        step(small, slow, seed)
    torch.testing.assert_close(net(X.double()), small(X.double()), rtol=1e-12, atol=1e-12)


class Curious(nn.Module):
    """What other methods compute with: a head on the trunk, and a network that is its own."""

    def __init__(self, head: bool) -> None:
        super().__init__()
        self.trunk, self.actor = nn.Linear(5, 8), nn.Linear(8, 3)
        self.novelty = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.GRU(8, 8), nn.Linear(8, 1))
        if head:
            self.reward = nn.Linear(8, 1)

    def forward(self, x):
        return self.actor(torch.relu(self.trunk(x)))


def test_a_head_that_forward_does_not_use_is_not_left_behind():
    net = Curious(head=False)
    done = operate(net, None, X, wider(widths={"trunk": 11}))
    assert "does not use novelty.0.weight, novelty.1.weight, novelty.1.bias" in done.describe()
    assert len(done.unused) == 9 and net.novelty[1].in_features == 8
    net = Curious(head=True)
    del net.novelty
    before = everything(net)
    with pytest.raises(Refused, match=r"'reward\.weight' \(1×8\) may read units that change"):
        operate(net, None, X, wider(widths={"trunk": 11}))
    assert same(everything(net), before)


def muon(net: Shared, lr: float = 0.0) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside, AdamW for the rest."""
    inside = [net.trunk[0].weight, net.actor.weight, net.critic.weight]
    rest = [p for p in net.parameters() if not any(p is one for one in inside)]
    return [torch.optim.Muon(inside, lr=lr), torch.optim.AdamW(rest, lr=lr)]


def test_momenta_of_muon_are_those_of_the_wide_network():
    """With a learning rate of 0 both see the same gradients: the wide one is judged by its own."""
    torch.manual_seed(0)
    net = Shared().double()
    optimizers = muon(net)
    for seed in range(3):
        step(net, optimizers, seed)
    done = operate(net, optimizers, X.double(), wider(widths={"trunk.0": 13}, init="net2net"))
    assert "Muon moves a matrix as a whole" in done.describe()
    wide = Shared(13).double()
    wide.load_state_dict(net.state_dict())
    own = muon(wide)
    for seed in range(3):
        step(wide, own, seed)
    for ours, theirs in zip(optimizers, own, strict=True):
        torch.testing.assert_close(
            ours.state_dict()["state"], theirs.state_dict()["state"], rtol=1e-12, atol=1e-15
        )
    with pytest.raises(Refused, match="as a whole"):
        follow(optimizers[0], net, done.plan)
    follow(optimizers[1], net, done.plan)
    step(net, optimizers, 3)


def test_no_gradient_of_a_step_that_was_half_done_is_left():
    """Those of layers that the plan leaves alone would move them without the others."""
    net, scaler = mlp(), torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer = torch.optim.Adam(net.parameters())
    scaler.scale(loss_of(net, X)).backward()
    scaler.unscale_(optimizer)
    operate(net, optimizer, X, wider(widths={"0": 9}))
    before = everything(net)
    assert all(parameter.grad is None for parameter in net.parameters())
    scaler.step(optimizer)
    scaler.update()
    assert same(everything(net), before)
    optimizer.zero_grad()
    scaler.scale(loss_of(net, X)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 8.0


class Parts(nn.Module):
    """A part of it behind torch.compile, and a dropout that is on in training."""

    def __init__(self) -> None:
        super().__init__()
        body = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.Tanh())
        self.body = torch.compile(body, backend="eager")
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.drop(self.body(x)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("training", [False, True])
def test_what_a_module_compiles_of_itself_has_its_plain_names_and_stays_compiled(training):
    net = Parts()
    optimizer = torch.optim.Adam(net.parameters())
    trained(net, optimizer, X)
    compiled = net.body
    assert "body.0.weight" in from_module(net, example_inputs=X).tensors
    net.eval()
    before = net(X)
    done = operate(net.train(), optimizer, X, wider(widths={"body.0": 9}), training=training)
    assert net.body is compiled and net.drop.training and compiled._orig_mod[0].out_features == 9
    assert done.slots == 6 and "body.0.out_features" in done.attributes
    net.eval()
    torch.testing.assert_close(net(X), before)
    follow(optimizer, net, done.plan)
    trained(net.train(), optimizer, X)


class Blocks(nn.Module):
    """Blocks of attention as scripts write it: one matrix, cut in three, and the number of heads in an attribute."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads, self.norm, self.qkv, self.out = 2, nn.RMSNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

        def forward(self, x):
            shape = (*x.shape[:2], self.heads, x.shape[2] // self.heads)
            parts = (part.view(shape).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
            return x + self.out(
                scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).flatten(2)
            )

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Linear(5, 8), nn.Parameter(0.1 * torch.randn(1, 4, 8))
        self.blocks, self.head = nn.Sequential(self.Block(), self.Block()), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.blocks(self.embed(x) + self.position))


def test_attention_of_ones_own_grows_in_heads_whose_number_the_error_asks_for():
    torch.manual_seed(0)
    net, x = Blocks().double(), torch.randn(6, 4, 5, dtype=torch.float64)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2, eps=1e-3)
    trained(net, optimizer, x)
    small = copy.deepcopy(net)
    slow = torch.optim.Adam(small.parameters(), lr=1e-2, eps=1e-3)
    slow.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with pytest.raises(Refused, match=r"computes a number from a size .* stays 0\.707106781"):
        operate(net, optimizer, x, wider(widths={"blocks.0.qkv[1]": 6}, init="net2net"))
    with pytest.raises(ClaimFailed) as caught:
        operate(net, optimizer, x, wider(factor=2, init="net2net"))
    heads = {"blocks.0.heads": 4, "blocks.1.heads": 4}
    assert f"attributes={heads}" in str(caught.value.hint)
    done = operate(net, optimizer, x, wider(factor=2, init="net2net"), attributes=heads)
    assert [str(change) for change in done.plan.changes] == [
        "embed 8→16", "blocks.0.qkv[0] 2→4", "blocks.1.qkv[0] 2→4"
    ]  # fmt: skip
    follow(optimizer, net, done.plan)
    for seed in range(10):
        step(net, [optimizer], seed, x)
        step(small, [slow], seed, x)
    torch.testing.assert_close(net(x), small(x), rtol=1e-12, atol=1e-12)


class Heads(nn.Module):
    """What a policy of Stable-Baselines3 computes, without its distribution."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observation):
        actor, critic = self.policy.mlp_extractor(self.policy.extract_features(observation))
        return self.policy.action_net(actor), self.policy.value_net(critic)


class Widened(BaseCallback):
    """Wider after the first rollout, or not."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.left = width, 1

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        policy = self.model.policy
        if self.width and self.model.num_timesteps and self.left:
            self.left -= 1
            widths = {"policy.mlp_extractor.policy_net.0": self.width}
            done = operate(Heads(policy), policy.optimizer, X[:, :4], wider(widths=widths, init="net2net"))
            follow(policy.optimizer, Heads(policy), done.plan)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_framework_trains_on_from_inside_its_callback_and_loads_what_it_saves(tmp_path):
    kwargs = {"net_arch": {"pi": [8, 6], "vf": [8]}}
    old, new = (
        PPO("MlpPolicy", "CartPole-v1", n_steps=64, seed=0, device="cpu", policy_kwargs=kwargs) for _ in "12"
    )
    for model, width in ((old, 0), (new, 11)):
        model.set_random_seed(0)
        model.learn(256, callback=Widened(width))
    torch.testing.assert_close(Heads(new.policy)(X[:, :4]), Heads(old.policy)(X[:, :4]), rtol=1e-4, atol=1e-5)
    new.policy_kwargs["net_arch"] = {"pi": [11, 6], "vf": [8]}
    new.save(tmp_path / "wide.zip")
    again = PPO.load(tmp_path / "wide.zip", env=new.get_env())
    torch.testing.assert_close(Heads(again.policy)(X[:, :4]), Heads(new.policy)(X[:, :4]))
    again.learn(64)
