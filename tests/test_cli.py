"""The command line: help, exit statuses, one clear line for every mistake, and JSON for scripts."""

from __future__ import annotations

import json
import logging
import os
import pickle
import pty
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from surgery.cli import VERBS, cli, main
from surgery.errors import ArgumentError
from surgery.optimizer import OptimizerState, ParamGroup
from surgery.storage import load, save

PROGRAM = Path(sysconfig.get_path("scripts")) / "surgery"


@pytest.fixture(autouse=True)
def _quiet_log() -> Iterator[None]:
    """The command line sends the log to a stream that lives as long as its test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture
def model(tmp_path: Path, teachers: Path) -> Path:
    """A copy of a small trained agent: spaces `network.0` (120 wide) and `network.2` (84 wide)."""
    path = tmp_path / "agent.onnx"
    path.write_bytes((teachers / "cartpole-dqn.onnx").read_bytes())
    return path


@pytest.fixture
def wide(model: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    path = model.with_name("wide.onnx")
    assert main(["widen", str(model), "--factor", "1.5", "-o", str(path)]) == 0
    capsys.readouterr()
    return path


def run(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    """The installed program, as a shell runs it."""
    return subprocess.run([PROGRAM, *map(str, words)], capture_output=True, text=True, **options)


# --- help ---


def test_it_runs_as_a_module_too():
    words = [sys.executable, "-m", "surgery", "list", "model"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.endswith("hint: surgery list --help\n")


@pytest.mark.parametrize("verb", VERBS)
def test_verb_has_help_an_example_and_the_common_options(verb, capsys):
    assert main([verb, "-h"]) == 0
    text = capsys.readouterr().out
    first = text.split("\n\n")[1].strip()
    assert first.endswith(".")
    assert first.split()[0][0].isupper()
    assert f"  surgery {verb} " in text.partition("Example:")[2]
    assert all(option in text for option in ("--json", "--quiet", "--verbose", "--debug"))


@pytest.mark.parametrize("verb", VERBS)
def test_examples_can_be_pasted(verb, capsys):
    assert main([verb, "-h"]) == 0
    examples = capsys.readouterr().out.partition("Example:\n")[2].partition("\n\n")[0]
    for line in examples.replace("\\\n", " ").splitlines():
        program, name, *words = shlex.split(line.partition(" > ")[0])
        assert program == "surgery"
        cli.get_command(click.Context(cli), name).make_context(name, words)


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_help(verb):
    command = cli.get_command(click.Context(cli), verb)
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert [option.name for option in options if not option.help] == []


def test_help_lists_every_verb_and_is_what_surgery_alone_prints(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert main(["help"]) == 0
    assert capsys.readouterr().out == text
    assert main(["help", "widen"]) == 0
    assert capsys.readouterr().out.startswith("Usage: surgery widen")
    assert all(f"  {verb} " in text for verb in VERBS)
    assert main([]) == 0
    assert capsys.readouterr().out == text


# --- exit statuses ---


def test_done_is_0(model, tmp_path):
    done = run("widen", model, "--factor", "1.5", "-o", tmp_path / "wide.onnx")
    assert (done.returncode, done.stderr) == (0, "")
    assert run("verify", model, tmp_path / "wide.onnx").returncode == 0


def test_the_answer_no_is_1(model, tmp_path):
    noisy = tmp_path / "noisy.onnx"
    words = ["--factor", "2", "--init", "net2net", "--noise", "0.5", "-o"]
    assert main(["widen", str(model), *words, str(noisy)]) == 0
    done = run("verify", model, noisy)
    assert (done.returncode, done.stderr) == (1, "")
    assert "FAILED" in done.stdout


def test_a_wrong_command_is_2():
    assert run("widen").returncode == 2
    assert run("frobnicate").returncode == 2


def test_a_bug_is_3_with_one_line_and_a_log(model, monkeypatch, capsys, tmp_path):
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of course")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("surgery.load", broken)
    assert main(["inspect", str(model)]) == 3
    error = capsys.readouterr().err
    assert error.startswith("error: internal error: ZeroDivisionError: of course\n")
    assert "Traceback" not in error
    log = Path(error.split()[-1])
    assert log.parent == tmp_path
    assert "ZeroDivisionError" in log.read_text()
    assert main(["inspect", str(model), "--debug"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_130(model, monkeypatch, capsys):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("surgery.load", interrupted)
    assert main(["inspect", str(model)]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_a_reader_that_goes_away_is_no_error(model):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([PROGRAM, "inspect", model], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


# --- how a failure looks ---


@pytest.mark.parametrize(("words", "status"), [(["inspect", "{model}"], 0), (["inspect", "none.onnx"], 2)])
def test_streams_may_be_closed(model, monkeypatch, words, status):
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stderr", None)
    assert main([word.format(model=model) for word in words]) == status
    sys.stdout.close()
    sys.stderr.close()


def test_a_full_disk_behind_stdout_is_an_error_on_stderr(model):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [PROGRAM, "inspect", model, "--json"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (2, "error: cannot use a file: No space left on device\n")


def test_an_error_says_what_where_and_what_next(model, monkeypatch, capsys):
    def refuse(*_: object, **__: object) -> None:
        where = {"checkpoint": "runs/best.onnx", "space": "fc = policy.fc.weight[0]"}
        raise ArgumentError(
            "cannot widen space 'fc' to 256: it is 512 wide", where=where, hint="surgery narrow"
        )

    monkeypatch.setattr("surgery.load", refuse)
    assert main(["inspect", str(model)]) == 2
    assert capsys.readouterr().err == (
        "error: cannot widen space 'fc' to 256: it is 512 wide\n"
        "  checkpoint  runs/best.onnx\n"
        "  space       fc = policy.fc.weight[0]\n"
        "hint: surgery narrow\n"
    )


def test_the_command_that_a_hint_names_can_be_pasted(model, tmp_path, capsys):
    spaced = tmp_path / "my agent.onnx"
    shutil.copy(model, spaced)
    assert main(["optimizer", str(spaced), "--to", "adam", "-o", str(tmp_path / "out.onnx")]) == 2
    assert f"hint: surgery attach '{spaced}' CHECKPOINT -o OUT\n" in capsys.readouterr().err


def test_a_model_whose_optimizer_state_is_gone_is_read_by_the_command_that_the_error_names(
    teachers, tmp_path, capsys
):
    source, agent = teachers / "minatar-breakout-dqn.onnx", tmp_path / "an agent.onnx"
    assert main(["attach", str(source), str(source.with_suffix(".pt")), "-o", str(agent)]) == 0
    (tmp_path / "an agent.optimizer.safetensors").unlink()
    capsys.readouterr()
    assert main(["widen", str(agent), "--factor", "2", "-o", str(tmp_path / "wide.onnx")]) == 2
    command = capsys.readouterr().err.partition("(optimizer=False): surgery ")[2]
    assert main(shlex.split(command.replace("OUT.onnx", str(tmp_path / "bare.onnx")))) == 0
    assert capsys.readouterr().out.startswith("observation → q_values · 6 tensors · wrote")


@pytest.mark.parametrize(
    ("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colour_is_for_terminals_and_can_be_refused(env, coloured):
    terminal, end = pty.openpty()
    subprocess.run([PROGRAM, "frobnicate"], stderr=end, env={**os.environ, "TERM": "xterm", **env})
    text = os.read(terminal, 4096)
    os.close(end)
    os.close(terminal)
    assert b"unknown command" in text
    assert (b"\x1b[" in text) is coloured


# --- wrong input ---


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


# --- what the verbs print ---


def test_text_is_plain_where_no_terminal_reads_it(model):
    done = run("inspect", model, env={**os.environ, "FORCE_COLOR": "1"})
    assert "\x1b" not in done.stdout + done.stderr


def test_widen_says_what_changed(model, tmp_path, capsys):
    target = tmp_path / "wide.onnx"
    assert main(["widen", str(model), "--width", "network.0=200", "-o", str(target)]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("network.0 120→200 · 3 tensors · outputs equal (max |Δ| ")
    assert line.endswith(f" · wrote {target}")


def test_widen_json_has_the_keys_of_an_edit(model, tmp_path, capsys):
    target = tmp_path / "wide.onnx"
    assert main(["widen", str(model), "--factor", "1.5", "-o", str(target), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    keys = {"schema", "output", "claim", "exact", "max_abs_error", "max_rel_error", "changes", "frozen"}
    assert keys <= set(report)
    assert report["claim"] == "equivalent"
    assert [(change["space"], change["from"], change["to"]) for change in report["changes"]] == [
        ("network.0", 120, 180),
        ("network.2", 84, 126),
    ]


def test_dry_run_writes_nothing_and_its_plan_makes_the_same_model(model, wide, tmp_path, capsys):
    plan, again = tmp_path / "plan.json", tmp_path / "again.onnx"
    assert main(["widen", str(model), "--factor", "1.5", "--dry-run", "--json"]) == 0
    assert not again.exists()
    plan.write_text(capsys.readouterr().out)
    assert main(["apply", str(plan), str(model), "-o", str(again)]) == 0
    capsys.readouterr()
    assert main(["diff", str(wide), str(again), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["differences"] == []


def test_apply_writes_many_models_to_a_folder(model, tmp_path, capsys):
    other, folder = tmp_path / "target.onnx", tmp_path / "wide"
    other.write_bytes(model.read_bytes())
    main(["widen", str(model), "--factor", "1.5", "--dry-run", "--json"])
    plan = capsys.readouterr().out
    done = run("apply", "-", model, other, "--output-dir", folder, "--json", input=plan)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert [Path(result["output"]).name for result in results] == ["agent.onnx", "target.onnx"]
    assert (folder / "agent.onnx").read_bytes() == (folder / "target.onnx").read_bytes()


def test_verify_tells_equal_from_unequal(model, wide, tmp_path, capsys):
    assert main(["verify", str(model), str(wide), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


def test_inspect_json_has_the_keys_of_the_contract(model, capsys):
    assert main(["inspect", str(model), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {"inputs", "outputs", "parameters", "architecture", "optimizer", "spaces"} <= set(report)
    assert all({"name", "size", "widenable", "reason", "axes"} <= set(space) for space in report["spaces"])
    assert {space["name"]: space["size"] for space in report["spaces"] if space["widenable"]} == {
        "network.0": 120,
        "network.2": 84,
    }


def test_inspect_shows_a_person_everything(model, capsys):
    assert main(["inspect", str(model)]) == 0
    text = capsys.readouterr().out
    words = ("observation", "q_values", "network.0.weight", "Gemm", "120", "frozen")
    assert all(word in text for word in words)


SHARED = """<ir_version: 10, opset_import: ["" : 20]>
g (float[n, 4] x) => (float[n, 2] q)
<float[3, 4] a, float[3, 3] b, float[2, 3] c, float[3] zero = {0, 0, 0}> {
  first = Gemm<transB = 1>(x, a, zero)
  second = Gemm<transB = 1>(first, b, zero)
  q = Gemm<transB = 1>(second, c)
}"""


def test_inspect_names_the_spaces_that_widen_takes(tmp_path, capsys):
    """Two layers that share a bias of zeros are apart, except where an optimizer holds it: then it has one history."""
    proto, path = parser.parse_model(SHARED), tmp_path / "agent.onnx"
    weights = {"a": (3, 4), "b": (3, 3), "c": (2, 3)}
    proto.graph.initializer.extend(numpy_helper.from_array(np.ones(s, "f4"), n) for n, s in weights.items())
    path.write_bytes(proto.SerializeToString())
    for state, spaces in (
        (None, {"a", "b"}),
        (OptimizerState("sgd", {}, {}, (ParamGroup(("a", "b", "zero", "c")),)), {"a"}),
    ):
        save(load(path).replace(optimizer=state), path, force=True)
        assert main(["inspect", str(path), "--json"]) == 0
        found = {s["name"] for s in json.loads(capsys.readouterr().out)["spaces"] if s["widenable"]}
        assert found == spaces
        for name in found:
            assert main(["widen", str(path), "--width", f"{name}=5", "--dry-run"]) == 0
        capsys.readouterr()


def test_attached_optimizer_state_follows_through_widen(model, teachers, tmp_path, capsys):
    trained, target = tmp_path / "trained.onnx", tmp_path / "wide.onnx"
    assert main(["attach", str(model), str(teachers / "cartpole-dqn.pt"), "-o", str(trained)]) == 0
    assert main(["widen", str(trained), "--factor", "1.5", "-o", str(target)]) == 0
    assert "slots" in capsys.readouterr().out
    assert main(["inspect", str(target), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["optimizer"]["kind"] == "adam"


def test_inspect_tells_the_lineage_and_the_scores_of_a_model(model, wide, capsys):
    assert main(["inspect", str(wide)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    digest = load(model).digest()[:12]
    assert f"lineage step of what widen {digest} network.0 120→180 · network.2 84→126" in said
    assert f"played return episodes by another model greedy 500 ± 0 30 {digest}" in said


def test_annotate_is_what_inspect_then_declares(model, tmp_path, capsys):
    target = tmp_path / "declared.onnx"
    words = ["--input", "observation:observation,low=[-4.8,?,-0.4,?],labels=[x,v,angle,spin]"]
    words += ["--output", "q_values:labels=[left,right]"]
    words += ["--env", "CartPole-v1", "--env-setting", "max_episode_steps=500"]
    assert main(["annotate", str(model), *words, "-o", str(target)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(target), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["environment"]["id"] == "CartPole-v1"
    assert report["environment"]["settings"]["max_episode_steps"] == 500
    assert report["inputs"][0]["labels"] == ["x", "v", "angle", "spin"]
    assert report["inputs"][0]["low"] == [-4.8, None, -0.4, None]
    assert report["outputs"][0]["declared"] is True


def test_no_file_names_a_module_to_import(model, tmp_path):
    """`--env MODULE:ID` is a person's word: what is recorded can be played again without it."""
    target = tmp_path / "declared.onnx"
    assert main(["annotate", str(model), "--env", "my_games:Game-v1", "-o", str(target)]) == 0
    assert load(target).environment.id == "Game-v1"


@pytest.mark.parametrize("shape", ["1,10,10", "1x10x10", "1×10×10"])
def test_a_shape_is_written_with_commas_or_as_it_is_shown(shape, tmp_path):
    target = tmp_path / "new.onnx"
    assert main(["new", "minatar", "--observation", shape, "--actions", "3", "-o", str(target)]) == 0
    assert tuple(load(target).model.graph.inputs[0].shape)[1:] == (1, 10, 10)


def test_list_adapters_says_which_can_be_used(capsys):
    assert main(["list", "adapters", "--json"]) == 0
    adapters = {row["name"]: row["status"] for row in json.loads(capsys.readouterr().out)["adapters"]}
    assert adapters["pytorch"] == "ready"


def test_list_operators_names_those_with_an_axis_rule(capsys):
    assert main(["list", "operators", "--json"]) == 0
    names = {row["name"] for row in json.loads(capsys.readouterr().out)["operators"]}
    assert {"Gemm", "Conv", "Relu", "Reshape", "BatchNormalization"} <= names


def test_main_takes_its_words_from_the_shell(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["surgery", "--version"])
    assert main() == 0
    assert capsys.readouterr().out.startswith("surgery ")
