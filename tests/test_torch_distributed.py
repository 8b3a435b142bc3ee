"""Live surgery where training runs in several processes: two of them, on the CPU, with real gradients between them."""

from __future__ import annotations

import copy
import datetime
import functools
import importlib
import multiprocessing
import os

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from surgery.errors import Refused
from surgery.torch import follow, operate
from tests import conftest
from tests.live_models import wider

X = torch.randn(8, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
TIMEOUT = datetime.timedelta(seconds=120)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).double()


def adamw(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), lr=3e-3, eps=1e-3, weight_decay=0.05)


def update(net: nn.Module, optimizer: torch.optim.Optimizer, rank: int, seed: int, clip=None) -> None:
    """A step on this process's half of a batch."""
    batch = torch.randn(8, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    optimizer.zero_grad()
    net(batch[rank::2]).square().sum(1).mean().backward()
    if clip is not None:
        clip(0.05)
    optimizer.step()


def data_parallel(rank: int) -> None:
    """Unwrap, operate on every rank with the same seed, wrap again, and follow: the small network's trajectory."""
    small = DistributedDataParallel(mlp())
    optimizer = adamw(small)
    for seed in range(3):
        update(small, optimizer, rank, seed)
    with pytest.raises(Refused, match="wrapped in DistributedDataParallel"):
        operate(small, optimizer, X, wider(widths={"0": 9}))
    net = copy.deepcopy(small.module)
    grown = adamw(net)
    grown.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    done = operate(net, grown, X, wider(widths={"0": 9, "2": 7}, init="net2net", seed=1))
    wide = DistributedDataParallel(net)
    trajectory = follow(grown, wide, done.plan)
    shrink = functools.partial(nn.utils.clip_grad_norm_, list(small.parameters()))
    for seed in range(30):
        update(small, optimizer, rank, seed, shrink)
        update(wide, grown, rank, seed, trajectory.clip_grad_norm_)
    torch.testing.assert_close(net(X), small(X), rtol=1e-12, atol=1e-12)
    everywhere = [torch.empty_like(net[0].weight) for _ in range(2)]
    dist.all_gather(everywhere, net[0].weight.detach())
    assert torch.equal(*everywhere)


def fully_sharded(rank: int) -> None:
    """Sharded parameters are refused; gathered, operated on and sharded again they train on (docs/torch.md)."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh, whole = init_device_mesh("cpu", (2,)), StateDictOptions(full_state_dict=True)
    sharded = fully_shard(mlp(), mesh=mesh)
    optimizer = adamw(sharded)
    update(sharded, optimizer, rank, 0)
    with pytest.raises(Refused, match="sharded"):
        operate(sharded, optimizer, X, wider(widths={"0": 9}))

    net = mlp()
    net.load_state_dict(get_model_state_dict(sharded, options=whole))
    plain = adamw(net)
    state = get_optimizer_state_dict(sharded, optimizer, options=whole)
    set_optimizer_state_dict(net, plain, optim_state_dict=state)
    before = net(X)
    done = operate(net, plain, X, wider(widths={"0": 9}, seed=1))
    state = get_optimizer_state_dict(net, plain, options=whole)
    wide = fully_shard(net, mesh=mesh)
    optimizer = adamw(wide)
    set_optimizer_state_dict(wide, optimizer, optim_state_dict=state, options=whole)

    again = get_optimizer_state_dict(wide, optimizer, options=whole)
    torch.testing.assert_close(again["state"]["0.weight"], state["state"]["0.weight"])
    assert again["state"]["0.weight"]["exp_avg"].shape == (9, 5)
    torch.testing.assert_close(wide(X), before, rtol=1e-12, atol=1e-12)
    update(wide, optimizer, rank, 1)
    with pytest.raises(Refused, match=r"'0\.weight' is sharded") as caught:
        follow(optimizer, wide, done.plan)
    assert "follow_recipe" in (caught.value.hint or "")


def recipe_on_shards(rank: int) -> None:
    """Whole multiples: the groups that `follow_recipe` made continue the small network's trajectory on shards."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh, whole = init_device_mesh("cpu", (2,)), StateDictOptions(full_state_dict=True)
    small = DistributedDataParallel(mlp())
    optimizer = adamw(small)
    for seed in range(3):
        update(small, optimizer, rank, seed)
    net = copy.deepcopy(small.module)
    grown = adamw(net)
    grown.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    operate(net, grown, X, wider(factor=2, init="net2net"), follow_recipe=True)
    state = get_optimizer_state_dict(net, grown, options=whole)
    names = {id(p): name for name, p in net.named_parameters()}
    settings = [({k: v for k, v in g.items() if k != "params"}, [names[id(p)] for p in g["params"]])
                for g in grown.param_groups]  # fmt: skip
    wide = fully_shard(net, mesh=mesh)
    held = dict(wide.named_parameters())
    sharded = torch.optim.AdamW([{**how, "params": [held[name] for name in own]} for how, own in settings])
    set_optimizer_state_dict(wide, sharded, optim_state_dict=state, options=whole)
    for seed in range(30):
        update(small, optimizer, rank, seed)
        update(wide, sharded, rank, seed)
    torch.testing.assert_close(wide(X), small(X), rtol=1e-12, atol=1e-12)


def work(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=TIMEOUT)
    try:
        data_parallel(rank)
        fully_sharded(rank)
        recipe_on_shards(rank)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def other_rank(store: str) -> None:
    for module in (conftest.EXPORTER, conftest.COMPOSITES):
        importlib.import_module(module)
    conftest.pytest_runtest_setup()
    work(1, store)
    os._exit(0)  # threads of the process group that are still ending would abort an ordinary exit


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="PyTorch without gloo")
@pytest.mark.filterwarnings(
    "ignore::UserWarning:torch.distributed", "ignore::FutureWarning:torch.distributed"
)
def test_two_processes_operate_alike_and_train_on(tmp_path):
    other = multiprocessing.get_context("spawn").Process(target=other_rank, args=(str(tmp_path / "store"),))
    other.start()
    try:
        work(0, str(tmp_path / "store"))
        other.join(TIMEOUT.total_seconds())
        assert other.exitcode == 0
    finally:
        if other.is_alive():
            other.kill()
