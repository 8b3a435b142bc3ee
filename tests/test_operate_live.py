"""Surgery on a module and its optimizer in mid-training: everything follows, or nothing has changed."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from torch import nn
from torch._dynamo.testing import CompileCounter

import surgery
from surgery.errors import ArgumentError, Refused
from surgery.torch import follow, from_module, grow_states, operate
from surgery.torch.live import groups as operate_groups
from surgery.torch.live import journal as operate_journal
from surgery.torch.live import outputs as operate_outputs
from tests import zoo
from tests.live_models import FRAMES, Agent, X, everything, loss_of, mlp, same, trained, wider


def agent(make=torch.optim.Adam, **settings) -> tuple[Agent, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = Agent()
    optimizer = make(net.parameters(), **{"lr": 1e-2, **settings})
    trained(net, optimizer)
    return net, optimizer


def test_a_module_its_target_and_its_optimizer_grow_together():
    net, optimizer = agent()
    target = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.mul_(0.9)
    net.eval(), target.eval()
    before, behind = net(FRAMES), target(FRAMES)
    identities = [id(p) for p in net.parameters()]
    operation = operate(
        net, optimizer, FRAMES, wider(widths={"conv2": 16, "fc": 20}), also=(each for each in [target])
    )
    assert (net.conv2.out_channels, net.norm.num_features, net.fc.in_features) == (16, 16, 144)
    assert (net.fc.out_features, net.policy.in_features, net.value.in_features) == (20, 20, 20)
    assert net.norm.running_var.shape == target.norm.running_var.shape == (16,)
    torch.testing.assert_close(net(FRAMES), before, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(target(FRAMES), behind, rtol=1e-5, atol=1e-6)
    assert [id(p) for p in net.parameters()] == identities
    assert all(p is q for p, q in zip(net.parameters(), optimizer.param_groups[0]["params"], strict=True))
    assert all(s["exp_avg"].shape == p.shape for p, s in optimizer.state.items())
    assert operation.proof is not None and operation.proof.ok
    assert operation.attributes["fc.in_features"] == (72, 144)
    assert operation.slots == 2 * 8
    trained(net, optimizer)


def test_what_lies_channels_last_goes_on_as_the_same_net_does_with_a_fused_optimizer():
    """Fused optimizers go through memory in order: moments must lie there as their parameter does."""
    found = []
    for fused in (False, True):
        torch.manual_seed(0)
        net = Agent().to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2, fused=fused, foreach=False)
        trained(net, optimizer)
        operate(net, optimizer, FRAMES, wider(widths={"conv2": 16}, seed=1))
        assert not net.conv2.weight.is_contiguous()
        trained(net, optimizer)
        found.append(net.conv2.weight)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_the_live_result_is_that_of_the_file():
    """The same plan on the exported checkpoint gives the same tensors and the same slots."""
    net, optimizer = agent()
    checkpoint = from_module(net, example_inputs=FRAMES, optimizer=optimizer)
    plan = surgery.widen(checkpoint, widths={"conv1": 9, "fc": 20}, seed=3)
    wanted = surgery.apply(plan, checkpoint).checkpoint
    operate(net, optimizer, FRAMES, surgery.Plan.from_json(plan.to_json()))
    found = from_module(net, example_inputs=FRAMES, optimizer=optimizer)
    for name in dict(net.named_parameters()):
        np.testing.assert_array_equal(found.tensors[name].numpy(), wanted.tensors[name].numpy(), err_msg=name)
    for slot, members in wanted.optimizer.slots.items():
        for name, tensor in members.items():
            np.testing.assert_array_equal(found.optimizer.slots[slot][name].numpy(), tensor.numpy())
    assert found.optimizer.steps == wanted.optimizer.steps


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.SGD])
def test_copies_and_the_recipe_continue_the_same_trajectory(make):
    settings = {"momentum": 0.9} if make is torch.optim.SGD else {"eps": 1e-3, "weight_decay": 1e-2}
    torch.manual_seed(0)
    net = mlp().double()
    optimizer = make(net.parameters(), lr=1e-2, **settings)
    trained(net, optimizer, X.double())
    small = copy.deepcopy(net)
    slow = make(small.parameters(), lr=1e-2, **settings)
    slow.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    schedules = [torch.optim.lr_scheduler.ExponentialLR(each, 0.97) for each in (optimizer, slow)]
    operation = operate(
        net,
        optimizer,
        X.double(),
        wider(factor=2, init="net2net"),
        follow_recipe=True,
        schedulers=schedules[:1],
    )
    assert operation.regrouped and len(optimizer.param_groups) > 1
    for seed in range(20):
        for each, opt, schedule in ((net, optimizer, schedules[0]), (small, slow, schedules[1])):
            opt.zero_grad()
            loss_of(each, X.double(), seed).backward()
            opt.step()
            schedule.step()
    torch.testing.assert_close(net(X.double()), small(X.double()), rtol=1e-11, atol=1e-12)


def test_hooks_references_and_live_graphs_survive():
    net = mlp()
    seen, accumulated = [], []
    weight = net[2].weight
    weight.register_hook(lambda grad: seen.append(grad.shape))
    weight.register_post_accumulate_grad_hook(lambda p: accumulated.append(p.grad.shape))
    held = [weight, net[0].weight]
    alive = loss_of(net, X)  # a graph of the old sizes that nobody has let go
    loss_of(net, X).backward()
    operate(net, None, X, wider(widths={"0": 9, "2": 8}))
    assert weight.grad is None
    loss_of(net, X).backward()
    assert seen[-1] == accumulated[-1] == weight.grad.shape == (8, 9)
    assert held[0] is net[2].weight and held[1] is net[0].weight
    del alive


def test_tied_parameters_and_shared_modules_stay_one():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.middle, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 2)
            self.again = self.middle

        def forward(self, x):
            return self.last(torch.relu(self.again(torch.relu(self.middle(torch.relu(self.first(x)))))))

    net = Twice()
    optimizer = torch.optim.Adam(net.parameters())
    trained(net, optimizer, X)
    before = net(X)
    operate(net, optimizer, X, wider(widths={"first": 9}))
    assert net.again is net.middle and net.middle.weight.shape == (9, 9)
    torch.testing.assert_close(net(X), before)
    trained(net, optimizer, X)


def test_what_companions_share_with_the_model_is_changed_once():
    trunk = nn.Linear(5, 6)
    actor, critic = (nn.Sequential(trunk, nn.ReLU(), nn.Linear(6, 3)) for _ in range(2))
    optimizer = torch.optim.Adam([*actor.parameters(), *critic[2].parameters()])
    trained(actor, optimizer, X)
    before = actor(X), critic(X)
    operate(actor, optimizer, X, wider(widths={"0": 10}, init="net2net"), also=[critic])
    assert trunk.weight.shape == (10, 5) and critic[2].weight.shape == (3, 10)
    torch.testing.assert_close((actor(X), critic(X)), before)


PARAMETRISED = {
    "weight norm": lambda layer: nn.utils.parametrizations.weight_norm(layer),
    "spectral norm": lambda layer: nn.utils.parametrizations.spectral_norm(layer),
}


@pytest.mark.parametrize("mode", [False, True])
@pytest.mark.parametrize("norm", PARAMETRISED)
def test_parametrised_layers_grow_by_their_originals(norm, mode):
    torch.manual_seed(0)
    net = nn.Sequential(
        PARAMETRISED[norm](nn.Conv2d(3, 6, 3, 2)),
        nn.ReLU(),
        nn.Flatten(),
        PARAMETRISED[norm](nn.Linear(150, 3, bias=False)),
    )
    optimizer = torch.optim.AdamW(net.parameters())
    trained(net, optimizer)
    net.eval()
    before = net(FRAMES)
    net.train(mode)
    operate(net, optimizer, FRAMES, wider(widths={"0": 9}), prove=False)
    net.eval()
    assert (net[0].out_channels, net[3].in_features, net[3].weight.shape) == (9, 225, (3, 225))
    torch.testing.assert_close(net(FRAMES), before, rtol=1e-5, atol=1e-6)
    trained(net.train(), optimizer)


class Root(nn.Module):
    """A normaliser written out, its ε in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(8)), 1e-3

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon) * self.weight


NORMS = {"layer": lambda: nn.LayerNorm(8, eps=1e-3), "root": lambda: nn.RMSNorm(8), "written out": Root}


@pytest.mark.parametrize("norm", NORMS)
def test_normalisers_that_are_padded_get_another_epsilon(norm):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(5, 8), NORMS[norm](), nn.Tanh(), nn.Linear(8, 3)).double(), X.double()
    before = net(x)
    operate(net, None, x, wider(widths={"0": 11}))
    torch.testing.assert_close(net(x), before, rtol=1e-13, atol=1e-14)


class Attending(nn.Module):
    def __init__(self, first: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, heads, 12, dropout=0.0, batch_first=True, norm_first=first)
            for heads in (2, 4)
        )

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


@pytest.mark.parametrize("first", [False, True])
def test_attention_grows_by_a_factor_in_heads_as_much_as_outside(first):
    torch.manual_seed(0)
    net, x = Attending(first).double(), torch.randn(4, 3, 5, dtype=torch.float64)
    optimizer = torch.optim.Adam(net.parameters())
    trained(net, optimizer, x)
    net.eval()
    before = net(x)
    done = operate(net, optimizer, x, wider(factor=1.4 if first else 2), prove=False)
    width = 12 if first else 16  # a multiple of both head sizes
    assert [layer.self_attn.num_heads for layer in net.layers] == [width // 4, width // 2]
    assert net.embed.out_features == net.layers[0].self_attn.embed_dim == width
    assert {layer.self_attn.head_dim for layer in net.layers} == {4, 2}
    assert any("keep their size" in reason for _, reason in done.plan.frozen)
    torch.testing.assert_close(net(x), before, rtol=1e-10, atol=1e-12)
    trained(net.train(), optimizer, x)


class Remembering(nn.Module):
    """Attention over embeddings that the caller keeps: their width cannot grow."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(5, 8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x, memory):
        x = self.embed(x)
        seen = torch.cat([memory, x.unsqueeze(1)], 1)
        keys, values = self.norm(seen), self.norm(seen)
        found = self.attention(self.norm(x).unsqueeze(1), keys, values, need_weights=False)[0]
        return self.head(torch.relu(self.body(x + found.squeeze(1)))), seen[:, 1:]


def test_attention_whose_width_is_the_callers_keeps_its_heads():
    torch.manual_seed(0)
    net, x = Remembering().double(), (X.double(), torch.randn(8, 3, 8, dtype=torch.float64))
    before = net(*x)
    done = operate(net, None, x, wider(factor=2))
    assert [str(change) for change in done.plan.changes] == ["body 16→32"]
    assert any("nn.MultiheadAttention" in reason for _, reason in done.plan.frozen)
    torch.testing.assert_close(net(*x), before, rtol=1e-10, atol=1e-12)


def test_recurrent_states_of_rollouts_grow():
    net = zoo.module("lstm_policy").requires_grad_(True)
    optimizer = torch.optim.Adam(net.parameters())
    inputs = tuple(
        torch.from_numpy(x) for x in zoo.sample("lstm_policy", 3, np.random.default_rng(0)).values()
    )
    with torch.no_grad():
        *_, h, c = net(*inputs)
        before = net(inputs[0], h, c)
    named = {"output_names": list(zoo.NETS["lstm_policy"].outputs)}
    operation = operate(net, optimizer, inputs, wider(widths={"lstm": 17}), export_options=named)
    assert net.lstm.hidden_size == 17
    states = grow_states(operation, {"h": h, "c": c})
    assert states["h"].shape == (1, 3, 17)
    with torch.no_grad():
        after = net(inputs[0], states["h"], states["c"])
    torch.testing.assert_close(after[:2], before[:2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(after[2][..., :13], before[2], rtol=1e-5, atol=1e-6)
    with pytest.raises(ArgumentError, match="'h' has 5 units"):
        grow_states(operation, {"h": h[..., :5]})


@pytest.mark.parametrize(("name", "factor"), [("efficientzero", 1.4), ("efficientzero", 2), ("cbam", 2)])
def test_what_a_maximum_is_taken_of_grows_as_a_function_and_no_trajectory_is_promised(name, factor):
    net = zoo.module(name).requires_grad_(True)
    optimizer = torch.optim.Adam(net.parameters())
    inputs = tuple(torch.from_numpy(x) for x in zoo.sample(name, 3, np.random.default_rng(0)).values())
    trained(net, optimizer, inputs)
    net.eval()
    before = net(*inputs)
    named = {"output_names": list(zoo.NETS[name].outputs)}
    operation = operate(
        net, optimizer, inputs, wider(factor=factor, init="net2net"), follow_recipe=True, export_options=named
    )
    assert operation.plan.inexact_slots == ("conv",) and not operation.regrouped
    assert "the trajectory of training is not" in str(operation) and "of a maximum" in operation.recipe.reason
    states = (
        grow_states(operation, {"hidden": inputs[-1]}).values() if name == "efficientzero" else inputs[-1:]
    )
    after = net(*inputs[:-1], *states)
    first, old = (results[0] if isinstance(results, tuple) else results for results in (after, before))
    torch.testing.assert_close(first, old, rtol=1e-4, atol=1e-5)
    trained(net, optimizer, (*inputs[:-1], *states), 1)


def test_an_output_may_have_the_name_that_the_exporter_gives_an_inner_value():
    """An RMSNorm is exported with a value called `mean`, as are the means of a policy."""
    net = nn.Sequential(nn.Linear(5, 8), nn.RMSNorm(8), nn.Linear(8, 3))
    before = net(X)
    operate(net, None, X, wider(widths={"0": 12}), export_options={"output_names": ["mean"]})
    assert net[0].out_features == 12
    torch.testing.assert_close(net(X), before, rtol=1e-5, atol=1e-6)


def test_observations_and_actions_are_extended_in_place():
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters())
    trained(net, optimizer, X)
    before = net(X)
    names = {"input_names": ["observation"], "output_names": ["logits"]}

    def longer(checkpoint):
        return surgery.extend(
            checkpoint, [surgery.NewObservation("observation", 2)], [surgery.NewAction("logits", 1)]
        )

    operate(net, optimizer, X, longer, export_options=names)
    assert net[0].in_features == 7 and net[4].out_features == 4
    after = net(torch.cat([X, torch.randn(8, 2)], 1))
    torch.testing.assert_close(after[:, :3], before)
    trained(net, optimizer, torch.cat([X, torch.randn(8, 2)], 1))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_module_is_compiled_once_more():
    torch._dynamo.reset()
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters())
    counter = CompileCounter()
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    before = compiled(X)
    compiled(X)
    operate(compiled, optimizer, X, wider(widths={"0": 9}))
    for _ in range(3):
        torch.testing.assert_close(compiled(X), before)
    assert counter.frame_count == 2


class Behind(nn.Module):
    """A module that calls what it holds `module`, as wrappers do, and is none."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.module = net

    def forward(self, x):
        return self.module(x)


class ByName(Behind):
    """Observations in a dictionary."""

    def forward(self, observation):
        return self.module(torch.cat([observation["image"].flatten(1), observation["vector"]], 1))


class Unrolled(nn.Module):
    """A cell over steps and processes that come as one axis, with a state per process, as in CleanRL."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.cell, self.actor = nn.Linear(5, 7), nn.RNNCell(7, 6), nn.Linear(6, 3)

    def forward(self, x, h):
        made = []
        for step in torch.relu(self.fc(x)).reshape((-1, h.shape[0], self.fc.out_features)):
            h = self.cell(step, h)
            made.append(h)
        return self.actor(torch.cat(made)), h


class Masked(nn.Module):
    """Logits of which some are -inf."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.actor = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x, allowed):
        return self.actor(torch.relu(self.fc(x))).masked_fill(~allowed, -torch.inf)


STATE = torch.zeros(4, 6)
ALLOWED = torch.tensor([[True, False, True]]).expand(8, 3).clone()
DICTIONARY = ({"image": X[:, :4].reshape(8, 2, 2), "vector": X[:, 4:]},)
FIXED = {"dynamic_shapes": ({"image": None, "vector": None},)}
UNUSUAL = {
    "a part called module": (lambda: Behind(mlp()), X, {"module.0": 9}, {}),
    "views in a dictionary": (lambda: ByName(mlp()), DICTIONARY, {"module.0": 9}, {}),
    "a batch that is fixed": (lambda: ByName(mlp()), DICTIONARY, {"module.0": 9}, FIXED),
    "actions that are masked": (Masked, (X, ALLOWED), {"fc": 9}, {}),
    "steps and processes on one axis": (Unrolled, (X, STATE), {"fc": 9}, {}),
}


@pytest.mark.parametrize("case", UNUSUAL)
def test_unusual_modules_grow_with_their_optimizer(case):
    make, inputs, widths, options = UNUSUAL[case]
    torch.manual_seed(0)
    net = make()
    optimizer = torch.optim.Adam(net.parameters())
    trained(net, optimizer, inputs, steps=1)
    operation = operate(net, optimizer, inputs, wider(widths=widths), export_options=options)
    assert len(operation.tensors[0]) == 3 and operation.slots == 6 and operation.difference < 1e-6
    trained(net, optimizer, inputs, steps=1)
    for parameter in net.parameters():
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape


def test_inputs_whose_batches_differ_by_an_unknown_factor_share_one():
    made = from_module(Unrolled(), example_inputs=(X[:4], STATE))
    frames, state = (value.shape for value in made.model.graph.inputs)
    assert str(frames[0]) == str(state[0]) == "batch"


def test_what_was_operated_on_in_inference_mode_trains_on():
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters())
    with torch.inference_mode():
        operation = operate(net, optimizer, X, wider(widths={"0": 9}))
        follow(optimizer, net, operation.plan)
    trained(net, optimizer, X)


@pytest.mark.parametrize("wrap", [lambda net: torch.compile(net, backend="eager"), nn.DataParallel])
def test_a_wrapped_module_is_exported_under_its_own_names(wrap):
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters())
    trained(net, optimizer, X)
    made = from_module(wrap(net), example_inputs=X, optimizer=optimizer)
    assert set(made.optimizer.parameters) == set(dict(net.named_parameters()))


RATES = torch.optim.lr_scheduler
SCHEDULES = {
    "sequential": lambda o: RATES.SequentialLR(
        o, [RATES.LinearLR(o, 0.5, 1.0, 3), RATES.CosineAnnealingLR(o, 9)], [4]
    ),
    "chained": lambda o: RATES.ChainedScheduler([RATES.ConstantLR(o, 0.5, 4), RATES.ExponentialLR(o, 0.9)]),
    "one cycle": lambda o: RATES.OneCycleLR(o, 0.1, 20),
    "cyclic": lambda o: RATES.CyclicLR(o, 1e-3, 0.1, 3, cycle_momentum=False),
    "plateau": lambda o: RATES.ReduceLROnPlateau(o, patience=0, min_lr=1e-3),
    "a function": lambda o: RATES.LambdaLR(o, [lambda step: 1 / (1 + step)]),
    "averaging": lambda o: torch.optim.swa_utils.SWALR(o, swa_lr=0.01, anneal_epochs=5),
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_schedules_go_on_when_groups_are_split(kind):
    """Every group has its share of the rate that the schedule gives without the operation."""
    both = []
    for _ in range(2):
        torch.manual_seed(0)
        net = mlp()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
        trained(net, optimizer, X)
        both.append((net, optimizer, SCHEDULES[kind](optimizer)))
    (net, optimizer, schedule), (_, plain, same_schedule) = both
    first = plain.param_groups[0]["lr"]
    copied = wider(factor=2, init="net2net")
    operate(net, optimizer, X, copied, follow_recipe=True, schedulers=[schedule], prove=False)
    ratios = [group["lr"] / first for group in optimizer.param_groups]
    assert sorted(set(np.round(ratios, 9))) == [0.5, 1.0]
    for at in range(8):
        trained(net, optimizer, X, steps=1)
        plain.step()
        for each in (schedule, same_schedule):
            each.step(*([1.0 + at] if kind == "plateau" else []))
        now = [group["lr"] for group in optimizer.param_groups]
        np.testing.assert_allclose(now, np.array(ratios) * plain.param_groups[0]["lr"])


def test_phases_of_a_schedule_are_none_of_its_groups():
    net = mlp()
    groups = [{"params": net[:2].parameters()}, {"params": net[2:].parameters()}]
    optimizer = torch.optim.Adam(groups, lr=0.1)
    schedule = RATES.OneCycleLR(optimizer, 0.1, 20)  # two phases, two groups
    copied = wider(factor=2, init="net2net")
    operate(net, optimizer, X, copied, follow_recipe=True, schedulers=[schedule], prove=False)
    assert len(schedule._schedule_phases) == 2 < len(schedule.base_lrs) == len(optimizer.param_groups)


@pytest.mark.parametrize("make", [RATES.CosineAnnealingLR, RATES.CosineAnnealingWarmRestarts])
def test_a_schedule_with_one_floor_for_all_groups_is_refused(make):
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    schedule = make(optimizer, 9, eta_min=1e-3)
    before = everything(net, optimizer, schedule)
    how = {"plan": wider(factor=2, init="net2net"), "schedulers": [schedule], "prove": False}
    with pytest.raises(ArgumentError, match="has a learning-rate schedule"):
        operate(net, optimizer, X, follow_recipe=True, **how | {"schedulers": []})
    with pytest.raises(Refused, match="eta_min"):
        operate(net, optimizer, X, follow_recipe=True, **how)
    assert same(everything(net, optimizer, schedule), before)
    operate(net, optimizer, X, **how)


FAULTS = {
    "while tensors are set": (operate_journal, "_set", 4),
    "while attributes are set": (operate_journal.Journal, "attribute", 2),
    "while state is set": (operate_journal.Journal, "item", 3),
    "while groups are split": (operate_groups, "_extend", 1),
    "while outputs are compared": (operate_outputs.Runner, "compare", 1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_after_a_failure_everything_is_as_it_was(fault, monkeypatch):
    torch.manual_seed(0)
    net, target = (nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3)) for _ in range(2))
    optimizer = torch.optim.Adam(net.parameters())
    trained(net, optimizer, X)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    loss_of(net, X).backward()
    owners = (net, target, optimizer, schedule)
    before = everything(*owners)
    holder, name, at = FAULTS[fault]
    calls, original = [], getattr(holder, name)

    def failing(*arguments, **keywords):
        calls.append(name)
        if len(calls) == at:
            raise RuntimeError("injected")
        return original(*arguments, **keywords)

    monkeypatch.setattr(holder, name, failing)
    how = {
        "plan": wider(factor=2, init="net2net"),
        "also": [target],
        "schedulers": [schedule],
        "follow_recipe": True,
    }
    with pytest.raises(RuntimeError, match="injected"):
        operate(net, optimizer, X, prove=False, **how)
    monkeypatch.undo()
    assert same(everything(*owners), before)
    trained(net, optimizer, X)


WIDE = ["mobilenet", "groupnorm_cnn", "twin_critics"]


@pytest.mark.parametrize("name", WIDE)
def test_networks_of_the_zoo_grow_in_place(name):
    net = zoo.module(name).requires_grad_(True)
    inputs = tuple(torch.from_numpy(x) for x in zoo.sample(name, 3, np.random.default_rng(0)).values())
    optimizer = torch.optim.RMSprop(net.parameters(), 1e-4, momentum=0.9)
    trained(net, optimizer, inputs, 2)
    net.eval()
    before = net(*inputs)
    operation = operate(net, optimizer, inputs, wider(factor=2))
    torch.testing.assert_close(net(*inputs), before, rtol=2e-4, atol=2e-5)
    for path, (_, value) in operation.attributes.items():
        owner, _, attribute = path.rpartition(".")
        assert getattr(net.get_submodule(owner), attribute) == value
    trained(net, optimizer, inputs, 1)
