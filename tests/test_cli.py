"""The command line: help, exit statuses, how a failure looks, and JSON for scripts."""

from __future__ import annotations

import json
import os
import pty
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import click
import numpy as np
import pytest
from onnx import numpy_helper, parser

from surgery.cli import VERBS, cli, main
from surgery.errors import ArgumentError
from surgery.optimizer import OptimizerState, ParamGroup
from surgery.storage import load, save

pytestmark = pytest.mark.usefixtures("quiet_log")
PROGRAM = Path(sysconfig.get_path("scripts")) / "surgery"


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
        above = click.Context(cli, **cli.context_settings)
        cli.get_command(above, name).make_context(name, words, parent=above)


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


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_what_a_stream_cannot_encode_is_escaped(model, encoding):
    """As files and pipes on Windows, whose encoding has no arrow and no Δ."""
    for words in (["widen", model, "--factor", "2", "-o", "λ→.onnx", "--force"], ["inspect", "λ→.onnx"]):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        text, spoken = (
            subprocess.run([PROGRAM, *words, *more], capture_output=True, env=environment, cwd=model.parent)
            for more in ([], ["--json"])
        )
        assert (text.returncode, spoken.returncode) == (0, 0), text.stderr + spoken.stderr
        assert str(text.stdout, encoding if encoding != "ascii" else "utf-8")
        assert "λ→.onnx" in json.dumps(json.loads(spoken.stdout), ensure_ascii=False)


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
