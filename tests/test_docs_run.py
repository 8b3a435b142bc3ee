"""The code of the documents runs, and every command in them is one that there is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import gymnasium
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import surgery
from surgery import NewAction
from surgery.cli import VERBS, cli
from surgery.torch import follow, operate
from tests.small_runs import QUICK

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path
    for pattern in ("README.md", "benchmarks/*.md", "docs/*.md", "examples/*/*.md")
    for path in ROOT.glob(pattern)
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ELSEWHERE = {"README.md", "adapters.md", "operators.md"}
"""Whose code test_docs.py, test_docs_adapters.py and test_operators.py run."""

Names = dict[str, Any]


def blocks(path: Path, *languages: str) -> list[str]:
    return [body for language, body in BLOCK.findall(path.read_text()) if language in languages]


# ---- What the text around a block has introduced --------------------------------------------------------------


def _anneal() -> Names:
    agent = surgery.load("examples/teachers/cartpole-dqn.onnx")
    plan = surgery.extend(agent, actions=[NewAction("q_values", 1)])
    return {
        "surgery": surgery,
        "checkpoint": surgery.apply(plan, agent).checkpoint,
        "env": gymnasium.make("Acrobot-v1"),
    }


class _Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(5, 16), nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.fc(x)))


def _adam(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=1e-3)


def _stepped(module: nn.Module) -> torch.optim.Optimizer:
    optimizer, x = _adam(module), torch.ones(3, 5)
    module(x).square().mean().backward()
    optimizer.step()
    return optimizer


def _following() -> Names:
    module, x = _Dense(), torch.ones(3, 5)
    module.fc, module.head = nn.Linear(5, 512), nn.Linear(512, 2)
    return {"module": module, "optimizer": _stepped(module), "example_inputs": x, "loss": None}


def _parallel() -> Names:
    ddp = DistributedDataParallel(_Dense())
    return {
        "ddp": ddp, "optimizer": _stepped(ddp), "x": torch.ones(3, 5), "operate": operate, "follow": follow,
        "DistributedDataParallel": DistributedDataParallel, "surgery": surgery,
    }  # fmt: skip


def _sharded() -> Names:
    sharded = fully_shard(_Dense())
    return {
        "sharded": sharded, "optimizer": _stepped(sharded), "x": torch.ones(3, 5), "operate": operate,
        "make_model": _Dense, "make_optimizer": _adam, "fully_shard": fully_shard,
        "surgery": surgery,
    }  # fmt: skip


GIVEN: dict[tuple[str, int], Callable[[], Names]] = {
    ("daily.md", 0): _anneal,
    ("optimizers.md", 0): _following,
    ("torch.md", 2): _parallel,
    ("torch.md", 3): _sharded,
}
SMALLER = {
    ("distill.md", 0): ("frames=51_587, seed=1", "frames=1000, seed=1, changes=QUICK"),
    ("optimizers.md", 0): ("\n...\n", "\nloss = module(example_inputs).square().mean()\n"),
}
"""A run of minutes is made one of seconds; dots become what they stand for."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def world(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


CODE = [
    (path, k)
    for path in DOCUMENTS
    if path.name not in ELSEWHERE
    for k, _ in enumerate(blocks(path, "python"))
]


@pytest.mark.parametrize(("path", "k"), CODE, ids=[f"{path.name}-{k}" for path, k in CODE])
def test_code_runs_as_it_stands(path: Path, k: int, folder: Path, world: None):
    code = blocks(path, "python")[k]
    if (path.name, k) in SMALLER:
        old, new = SMALLER[path.name, k]
        assert old in code
        code = code.replace(old, new)
    torch.manual_seed(0)
    names = {"QUICK": QUICK} | GIVEN.get((path.name, k), dict)()
    exec(compile(code, f"{path.name}, block {k}", "exec"), names)


# ---- Commands -------------------------------------------------------------------------------------------------


PROGRAMS = ("surgery", "python", "python3", "pip", "pytest")


def written(path: Path) -> Iterator[list[str]]:
    """The words of every command of the blocks: continued lines as one, without comments and prompts."""
    for block in blocks(path, "sh", "console"):
        prompted = "\n$ " in f"\n{block}"
        for line in block.replace("\\\n", " ").splitlines():
            for command in (
                line.removeprefix("$ ").split(" && ") if not prompted or line.startswith("$ ") else []
            ):
                if words := shlex.split(command, comments=True):
                    yield words


def parsed(words: list[str]) -> None:
    """Raises: click.ClickException: the command line is none of ours."""
    name, *rest = words
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, name
    command.make_context(name, rest, parent=click.Context(cli, **cli.context_settings))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_can_be_pasted(path: Path, folder: Path):
    for words in written(path):
        program, *rest = words[next(k for k, word in enumerate(words) if Path(word).name in PROGRAMS) :]
        if Path(program).name == "surgery":
            parsed(rest)
        elif rest[0].endswith(".py"):
            source = (ROOT / rest[0]).read_text()
            assert [word for word in rest if word.startswith("--") and f'"{word}"' not in source] == []


INLINE = re.compile(r"`surgery ([a-z]+)((?: [^`]*)?)`")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_the_text_have_the_options_that_they_name(path: Path):
    for name, rest in INLINE.findall(" ".join(path.read_text().split())):
        command = cli.get_command(click.Context(cli), name)
        assert name in VERBS and command is not None, name
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"(?<=\s)--?[a-z][\w-]*", rest)) <= known, (name, rest)
