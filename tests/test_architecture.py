"""The shape of the project itself: who imports whom, what is loaded when, how large a file may grow."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

import surgery

ROOT = Path(__file__).parent.parent
CORE = sorted((ROOT / "surgery").rglob("*.py"))
SOURCES = [
    *CORE,
    *(path for folder in ("adapters", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")),
]
NEEDS_FRAMEWORKS = {"torch", "envs", "policy", "replay", "distill"}
"""Packages of the core whose modules need one, and whose `__init__` does not."""

LOADED = """
import json, sys
before = set(sys.modules)
{statement}
print("\\n" + json.dumps(sorted(set(sys.modules) - before)))
"""


def packages_after(statement: str) -> set[str]:
    """The top-level packages that a statement loads into a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(statement=statement)], capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_importing_surgery_loads_only_the_standard_library():
    assert packages_after("import surgery") - sys.stdlib_module_names <= {"surgery"}


@pytest.mark.parametrize("words", [["-h"], ["widen", "-h"], ["list", "-h"], ["--version"]], ids=" ".join)
def test_help_loads_only_click(words):
    loaded = packages_after(f"from surgery.cli import main; main({words!r})")
    assert loaded - sys.stdlib_module_names <= {"surgery", "click"}


def test_importing_every_module_of_the_core_loads_no_framework():
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in CORE
        if path.relative_to(ROOT).parts[1] not in NEEDS_FRAMEWORKS
        or path.relative_to(ROOT).parts[2:] == ("__init__.py",)
    ]
    statement = "\n".join(f"import {name}" for name in names)
    assert not packages_after(statement) & {"torch", "tensorflow", "jax", "gymnasium", "surgery_adapters"}


def test_playing_on_a_cpu_loads_no_torch():
    words = ["evaluate", str(ROOT / "examples" / "teachers" / "cartpole-dqn.onnx"), "--episodes", "1"]
    loaded = packages_after(f"from surgery.cli import main; main({words!r})")
    assert "gymnasium" in loaded
    assert "torch" not in loaded


@pytest.mark.parametrize("name", surgery.__all__)
def test_facade_has_every_name_it_promises(name):
    assert getattr(surgery, name) is not None
    assert name in dir(surgery)


def test_facade_keeps_a_function_that_shares_its_name_with_a_module():
    import surgery.verify

    assert callable(surgery.verify)
    assert callable(surgery.attach)


def test_facade_is_sorted():
    assert surgery.__all__ == sorted(surgery.__all__)


def test_import_contracts_hold():
    lint_imports = Path(sysconfig.get_path("scripts")) / "lint-imports"
    done = subprocess.run([lint_imports, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_package_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {path.parent.relative_to(ROOT) for path in (*CORE, *(ROOT / "adapters").rglob("*.py"))}
    installed = set(settings["tool"]["setuptools"]["packages"])
    names = {".".join(folder.parts) for folder in folders}
    assert installed == {re.sub(r"^adapters\b", "surgery_adapters", name) for name in names}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_has_one_subject(path):
    assert path.stem not in {"utils", "util", "helpers", "common", "misc"}
    assert len(path.read_text().splitlines()) <= 600
