"""The documents are executed: commands give what is printed, code runs, and every test that is named exists."""

from __future__ import annotations

import ast
import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from surgery.cli import VERBS, main

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"(tests/\w+\.py)(?:::(\w+))?")
LINK = re.compile(r"\]\(([^)#:]+)\)")


def blocks(language: str) -> list[str]:
    return [body for found, body in BLOCK.findall(README.read_text()) if found == language]


def sessions() -> Iterator[tuple[str, list[str]]]:
    """Every command of the transcripts, in order, with the lines beneath it."""
    for block in blocks("console"):
        for session in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *lines = session.splitlines()
            yield command, lines


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the examples in it."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def alike(wanted: str, had: str) -> bool:
    """Whether two lines say the same: measured numbers may differ, names and sizes may not."""
    words, found = wanted.split(), had.split()
    return len(words) == len(found) and all(
        a == b or _both_numbers(a, b) for a, b in zip(words, found, strict=True)
    )


def _both_numbers(left: str, right: str) -> bool:
    try:
        float(left.strip("(),;").replace(",", "")), float(right.strip("(),;").replace(",", ""))
    except ValueError:
        return False
    return True


def test_transcripts_are_what_the_commands_print(folder: Path, capsys: pytest.CaptureFixture[str]):
    for command, wanted in sessions():
        program, *words = shlex.split(command)
        assert program == "surgery"
        refused = any(line.startswith("error:") for line in wanted)
        assert main(words) == refused, command
        out, err = capsys.readouterr()
        had = (err if refused else out).splitlines()
        while wanted and not wanted[-1]:
            wanted = wanted[:-1]
        for part in _parts(wanted):
            places = [k for k in range(len(had)) if _begins(part, had[k:])]
            assert places, (command, part, had)
            had = had[places[0] + len(part) :]
        assert wanted[-1] == "..." or not had, command


def _parts(lines: list[str]) -> list[list[str]]:
    """The runs of lines between the dots."""
    parts: list[list[str]] = [[]]
    for line in lines:
        if line == "...":
            parts.append([])
        else:
            parts[-1].append(line)
    return [part for part in parts if part]


def _begins(part: list[str], lines: list[str]) -> bool:
    return len(lines) >= len(part) and all(alike(a, b) for a, b in zip(part, lines, strict=False))


def test_python_blocks_run_and_are_short(folder: Path, capsys: pytest.CaptureFixture[str]):
    for block in blocks("python"):
        assert len(block.splitlines()) <= 10
        exec(compile(block, "README.md", "exec"), {})
    assert "outputs equal" in capsys.readouterr().out


def development() -> list[list[str]]:
    """The two commands for a fresh machine, step by step."""
    return [block.strip().split(" && ") for block in blocks("sh") if " && " in block]


def test_the_main_job_runs_as_printed(folder: Path):
    job, tests = development()
    assert job[0] == tests[0] == "python3 -m venv .venv"
    assert job[1] == ".venv/bin/pip install -c constraints.txt ."
    program, *words = shlex.split(job[2])
    assert program == ".venv/bin/surgery"
    assert main(words) == 0
    assert (folder / words[-1]).is_file()


def test_ci_runs_the_test_command_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    steps = [line.removeprefix("step ") for line in script.splitlines() if line.startswith("step ")]
    places = [steps.index(step) for step in development()[1]]
    assert places == sorted(places)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_that_is_named_exists(path: Path):
    homes = {file.name: _defined(file) for file in (ROOT / "tests").glob("*.py")}
    missing = [
        f"{file}::{name} (there is one in {[home for home in homes if name in homes[home]]})"
        for file, name in NAMED.findall(path.read_text())
        if Path(file).name not in homes or (name and name not in homes[Path(file).name])
    ]
    assert not missing


@functools.cache
def _defined(file: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path):
    for target in LINK.findall(path.read_text()):
        assert (path.parent / target).exists(), target


def test_the_tree_names_every_module_once():
    tree = next(block for block in blocks("text") if block.startswith("surgery/"))
    named = re.findall(r"\b(\w+(?:\.py|/))", tree)
    modules = {path.name for path in (ROOT / "surgery").glob("*.py")} - {"__init__.py", "__main__.py"}
    packages = {f"{path.parent.name}/" for path in (ROOT / "surgery").glob("*/__init__.py")}
    assert sorted(named) == sorted([*modules, *packages, "surgery/", "adapters/"])


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_is_in_the_readme(verb: str):
    assert f"`{verb}`" in README.read_text() or f"`surgery {verb}" in README.read_text()


def test_the_readme_stays_short():
    lines = README.read_text().splitlines()
    assert len(lines) <= 190
    assert lines.index("```console") <= 10
