"""What the command line says: numbers that can be read, and commands that can be pasted."""

from __future__ import annotations

import shlex
import shutil

import pytest

from surgery.cli import main
from surgery.errors import number_text


def test_the_command_that_a_hint_names_can_be_pasted(teachers, tmp_path, capsys):
    spaced = tmp_path / "my agent.onnx"
    shutil.copy(teachers / "cartpole-dqn.onnx", spaced)
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
    ("value", "digits", "text"),
    [
        (411.25, 3, "411"),
        (143.2, 2, "143"),
        (2.13, 2, "2.1"),
        (-1234.5, 3, "-1,234"),
        (999.7, 3, "1,000"),
        (7e-5, 3, "7e-05"),
    ],
)
def test_returns_and_their_deviations_are_written_out(value, digits, text):
    assert number_text(value, digits) == text
