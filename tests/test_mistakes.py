"""Mistakes on the command line: one clear line for each, in JSON for scripts, and nothing is written."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from surgery.cli import main

pytestmark = pytest.mark.usefixtures("quiet_log")


@dataclass(frozen=True)
class Wrong:
    """A command line that cannot be honoured; `{model}`, `{folder}` and `{out}` are filled in."""

    name: str
    words: str
    says: str
    prepare: Callable[[Path], object] = lambda folder: None

    def __str__(self) -> str:
        return self.name


class Executed:
    """Leaves a mark when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("executed",)


def _truncate(folder: Path) -> None:
    data = (folder / "agent.onnx").read_bytes()
    (folder / "bad.onnx").write_bytes(data[: len(data) // 2])


def _graph(folder: Path, shape: list[int | str], weight: np.ndarray) -> None:
    """A dense network written with onnx's own helpers."""
    units = len(weight)
    nodes = [
        helper.make_node("Gemm", ["observation", "fc.weight"], ["fc"], transB=1),
        helper.make_node("Relu", ["fc"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "out.weight"], ["q_values"], transB=1),
    ]
    weights = {"fc.weight": weight, "out.weight": np.ones((2, units), np.float32)}
    graph = helper.make_graph(
        nodes,
        "policy",
        [helper.make_tensor_value_info("observation", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("q_values", TensorProto.FLOAT, [shape[0], 2])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (folder / "bad.onnx").write_bytes(model.SerializeToString())


def _nan(folder: Path) -> None:
    weight = np.ones((5, 4), np.float32)
    weight[2, 1] = np.nan
    _graph(folder, ["batch", 4], weight)


WRONG = [
    Wrong("no target", "widen {model} -o {out}", "nothing to widen to"),
    Wrong("two targets", "widen {model} --factor 2 --width network.0=200 -o {out}", "different things"),
    Wrong("architecture", "widen {model} --to natur-x2 -o {out}", "nature"),
    Wrong("architecture and widths", "widen {model} --to mlp-256-256 --factor 2 -o {out}", "one of them"),
    Wrong("no output", "widen {model} --factor 2", "-o"),
    Wrong("factor 1", "widen {model} --factor 1 -o {out}", "factor"),
    Wrong("factor 0.5", "widen {model} --factor 0.5 -o {out}", "factor"),
    Wrong("factor 0", "widen {model} --factor 0 -o {out}", "factor"),
    Wrong("factor -2", "widen {model} --factor -2 -o {out}", "factor"),
    Wrong("factor NaN", "widen {model} --factor nan -o {out}", "factor"),
    Wrong("factor inf", "widen {model} --factor inf -o {out}", "factor"),
    Wrong("factor 1e30", "widen {model} --factor 1e30 -o {out}", "factor"),
    Wrong("width 1e12", "widen {model} --width network.0=1000000000000 -o {out}", "limit"),
    Wrong("NaN weights", "widen {folder}/bad.onnx --factor 2 -o {out}", "fc.weight", _nan),
    Wrong("axis of size 0", "widen {folder}/bad.onnx --factor 2 -o {out}", "size 0",
          lambda folder: _graph(folder, ["batch", 0], np.ones((5, 0), np.float32))),
    Wrong("nothing to extend", "extend {model} -o {out}", "nothing to extend"),
    Wrong("observation without a count", "extend {model} --observation observation -o {out}", "INPUT+K"),
    Wrong("unknown input", "extend {model} --observation obs+1 -o {out}", "obs"),
    Wrong("no such place", "extend {model} --observation observation+1@99 -o {out}", "99"),
    Wrong("unknown start", "extend {model} --action q_values+1 --new-action always -o {out}", "always"),
    Wrong("logit without a number", "extend {model} --action q_values+1 --new-action logit -o {out}", "logit"),
    Wrong("order twice", "reorder {model} --observation x=0,1 --observation x=1,0 -o {out}", "twice"),
    Wrong("retired at NaN", "retire {model} --observation observation.0=nan -o {out}", "retired at nan"),
    Wrong("retired too large", "retire {model} --observation observation.0=1e39 -o {out}", "float32"),
    Wrong("retired twice", "retire {model} --observation a.b=0 --observation a.b=1 -o {out}", "'a.b' is given twice"),
    Wrong("constant of no feature", "adapt {model} --env X --retire x=0 -o {out}", "INPUT.FEATURE=VALUE"),
    Wrong("constant twice", "adapt {model} --env X --retire x.a=0 --retire x.a=1 -o {out}", "twice"),
    Wrong("hyper-parameter twice", "optimizer {model} --to adam --set lr=1 --set lr=2 -o {out}", "twice"),
    Wrong("setting twice", "distill {model} --to nature --set n_step=1 --set n_step=2 -o {out}", "twice"),
    Wrong("factor word", "widen {model} --factor twice -o {out}", "twice"),
    Wrong("noise NaN", "widen {model} --factor 2 --noise nan -o {out}", "noise"),
    Wrong("noise below 0", "widen {model} --factor 2 --noise -1 -o {out}", "noise"),
    Wrong("unknown space", "widen {model} --width netwrk.0=200 -o {out}", "netwrk.0"),
    Wrong("width below", "widen {model} --width network.0=64 -o {out}", "120"),
    Wrong("width unchanged", "widen {model} --width network.0=120 -o {out}", "120"),
    Wrong("width no number", "widen {model} --width network.0=many -o {out}", "SPACE=N"),
    Wrong("width no space", "widen {model} --width 200 -o {out}", "SPACE=N"),
    Wrong("width twice", "widen {model} --width network.0=200 --width network.0=300 -o {out}", "twice"),
    Wrong("init", "widen {model} --factor 2 --init random -o {out}", "random"),
    Wrong("folder as model", "widen {folder} --factor 2 -o {out}", "folder"),
    Wrong("missing model", "widen {folder}/none.onnx --factor 2 -o {out}", "none.onnx"),
    Wrong("output is input", "widen {model} --factor 2 -o {model}", "input"),
    Wrong("output is input, forced", "widen {model} --factor 2 --force -o {model}", "input"),
    Wrong("output is linked", "widen {model} --factor 2 --force -o {folder}/link.onnx", "input",
          lambda folder: (folder / "link.onnx").hardlink_to(folder / "agent.onnx")),
    Wrong("output exists", "widen {model} --factor 2 -o {folder}/old.onnx", "--force",
          lambda folder: (folder / "old.onnx").write_text("old")),
    Wrong("output is a folder", "widen {model} --factor 2 -o {folder}", "folder"),
    Wrong("output in no folder", "widen {model} --factor 2 -o {folder}/none/wide.onnx", "none"),
    Wrong("not ONNX", "inspect {folder}/bad.onnx", "not an ONNX model",
          lambda folder: (folder / "bad.onnx").write_text("hello\n")),
    Wrong("empty", "inspect {folder}/bad.onnx", "empty", lambda folder: (folder / "bad.onnx").touch()),
    Wrong("pickle", "inspect {folder}/bad.onnx", "pickle",
          lambda folder: (folder / "bad.onnx").write_bytes(pickle.dumps(Executed()))),
    Wrong("truncated", "inspect {folder}/bad.onnx", "bad.onnx", _truncate),
    Wrong("observations missing", "verify {model} {model} --observations {folder}/none.npz", "none.npz"),
    Wrong("observations no npz", "verify {model} {model} --observations {model}", ".npz"),
    Wrong("plan missing", "apply {folder}/none.json {model} -o {out}", "none.json"),
    Wrong("plan no JSON", "apply {model} {model} -o {out}", "plan"),
    Wrong("plan of nothing", "apply {folder}/plan.json {model} -o {out}", "plan",
          lambda folder: (folder / "plan.json").write_text("{}")),
    Wrong("many to one", "apply {model} {model} {model} -o {out}", "plan"),
    Wrong("checkpoint is no checkpoint", "attach {model} {model} -o {out}", "agent.onnx"),
    Wrong("nothing to declare", "annotate {model} -o {out}", "nothing to declare"),
    Wrong("declared input", "annotate {model} --input pixels:observation -o {out}", "pixels"),
    Wrong("declared kind", "annotate {model} --output q_values:quality -o {out}", "quality"),
    Wrong("declared word", "annotate {model} --input observation:size=3 -o {out}", "size"),
    Wrong("declared bounds", "annotate {model} --input observation:low=2,high=1 -o {out}", "low"),
    Wrong("setting", "annotate {model} --env-setting sticky_actions=2 -o {out}", "sticky_actions"),
    Wrong("no such setting", "annotate {model} --env-setting sticky=0.1 -o {out}", "sticky_actions"),
    Wrong("unknown list", "list teachers", "teachers"),
    Wrong("unknown option", "inspect {model} --frobnicate", "--frobnicate"),
    Wrong("option before the verb", "--quiet inspect {model}", "surgery itself"),
    Wrong("output to stdout", "widen {model} --factor 2 -o -", "./-"),
    Wrong("a class without a name", "code {model} --name class", "name of a class"),
]  # fmt: skip


@pytest.mark.parametrize("json_wanted", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("case", WRONG, ids=str)
def test_a_mistake_is_one_clear_line_and_writes_nothing(
    case, json_wanted, model, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    case.prepare(tmp_path)
    before = snapshot(tmp_path)
    words = case.words.format(model=model, folder=tmp_path, out=tmp_path / "out.onnx").split()
    assert main([*words, *["--json"] * json_wanted]) == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    if json_wanted:
        assert printed.err == ""
        message = error_of(printed.out)
    else:
        assert printed.out == ""
        assert sum(line.startswith("error: ") for line in printed.err.splitlines()) == 1
        assert printed.err.startswith("error: ")
        message = printed.err
    assert case.says in message
    assert snapshot(tmp_path) == before


def error_of(text: str) -> str:
    """Checks the shape of a failure under `--json`; returns its words."""
    report = json.loads(text)
    assert report["schema"] == 1
    error = report["error"]
    assert set(error) == {"kind", "message", "hint", "where"}
    assert "\n" not in error["message"]
    return f"{error['message']} {error['hint']} {error['where']}"


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@contextmanager
def _as_nobody() -> Iterator[None]:
    """Without root's right to write anywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="users are POSIX")
def test_a_read_only_folder_is_refused(model, tmp_path, capsys):
    assert main(["widen", str(model), "--factor", "2", "-o", str(tmp_path / "once.onnx")]) == 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        agent, locked = folder / "agent.onnx", folder / "locked"
        shutil.copy(model, agent)
        locked.mkdir()
        for path, mode in ((folder, 0o755), (agent, 0o644), (locked, 0o555)):
            path.chmod(mode)
        with _as_nobody():
            assert main(["widen", str(agent), "--factor", "2", "-o", str(locked / "wide.onnx")]) == 2
        assert list(locked.iterdir()) == []
    # os.access() asks for the real user, so that root meets the error of the system call itself
    assert re.search("read-only|permission denied", capsys.readouterr().err)


def test_a_folder_that_may_not_be_written_to_is_refused_before_any_work(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    assert main(["widen", str(model), "--factor", "2", "-o", str(tmp_path / "wide.onnx")]) == 2
    assert "read-only" in capsys.readouterr().err
