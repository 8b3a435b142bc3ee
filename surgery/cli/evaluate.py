"""`surgery evaluate`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

import surgery
from surgery.cli import _environment, _files, _options
from surgery.cli._output import Output, section, table
from surgery.errors import ArgumentError, SurgeryError, number_text

if TYPE_CHECKING:
    from surgery.evaluate import Evaluation, Finding, Score
    from surgery.json_values import Json


@click.command("evaluate", short_help="Play a model and compare its score with the recorded one.")
@_options.file_argument("model")
@_environment.options
@click.option(
    "--episodes",
    metavar="N",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    help="Number of episodes.",
)
@click.option("--mode", metavar="MODE", help="greedy, sample or epsilon:0.05; by default as recorded.")
@_options.seed
@click.option(
    "--device", metavar="DEVICE", default="cpu", show_default=True, help="cpu, cuda, cuda:N or auto."
)
@click.option(
    "--teacher", metavar="FILE|RETURN", help="Also normalise by a teacher: its recorded score, or a number."
)
@click.option("--random", "measure", is_flag=True, help="Measure random play even if its score is known.")
@click.option(
    "--diagnose",
    is_flag=True,
    help="If the recorded score is not reached, search for settings that reach it.",
)
@click.option("--record", is_flag=True, help="Write the score into the model's contract.")
@_options.output_file()
@_options.force
@_options.reported
def command(
    *,
    model: Path,
    environment: str | None,
    settings: dict[str, Json],
    episodes: int,
    mode: str | None,
    seed: int,
    device: str,
    teacher: str | None,
    measure: bool,
    diagnose: bool,
    record: bool,
    target: Path | None,
    force: bool,
    output: Output,
) -> int:
    """Play a model in the environment of its contract, and compare its returns with the recorded score.

    The contract is the environment and its settings as recorded in the model (`surgery annotate`). Returns are
    undiscounted and unclipped. The exit status is 1 if the mean is significantly below the recorded one; the likely
    causes are then listed. --record writes the score into MODEL, or into OUT. Continuous actions are the mean of the
    policy; they are clipped to the environment's bounds, or mapped to them if the output declares a range.

    \b
    Example:
      surgery evaluate examples/teachers/minatar-breakout-dqn.onnx
      surgery evaluate agent.onnx --env ALE/Breakout-v5 --episodes 100 --mode epsilon:0.05
      surgery evaluate agent.zip --env Pendulum-v1
      surgery evaluate agent.onnx --diagnose
      surgery evaluate agent.onnx --env-setting sticky_actions=0.25 --record -o agent-scored.onnx
    """
    from surgery import evaluate

    if target is not None and not record:
        raise ArgumentError("-o is only for --record", hint=f"add --record, or leave out -o {target}")
    path = None
    if record:
        path = _files.check_target(target, [model], force=force) if target else model
    checkpoint = surgery.load(model, optimizer=record)
    if path == model and checkpoint.origin is not None:
        raise ArgumentError(f"{model} is a framework's own file, and is not changed in place", hint="-o OUT")
    contract = _environment.contract(checkpoint.environment, environment, settings)
    known = _teacher(teacher)
    try:
        with output.counting("episodes") as show:
            done = evaluate.evaluate(
                checkpoint,
                episodes=episodes,
                environment=contract,
                mode=mode,
                seed=seed,
                teacher=known,
                measure_random=measure,
                device=device,
                progress=lambda count: show(count, episodes),
            )
    except SurgeryError as error:
        raise error.within(model=model) from None
    written = None
    if path is not None and done.confirmed is not False:
        surgery.save(evaluate.record(checkpoint, done), path, force=force or target is None)
        written = str(path)
    findings: tuple[Finding, ...] = ()
    if diagnose and done.confirmed is False:
        with output.counting("changing one thing at a time") as show:
            findings = evaluate.diagnose(checkpoint, done, device=device, progress=show)
    report = {**done.to_json(), "diagnosis": [one.to_json() for one in findings], "output": written}
    own = evaluate.recorded(checkpoint, done.mode)
    output.show(report, lambda: _text(done, own, findings, written))
    return 1 if done.confirmed is False else 0


def _teacher(given: str | None) -> float | None:
    """A number, or the first score that a model file records for its own contract."""
    if given is None:
        return None
    try:
        return float(given)
    except ValueError:
        pass
    from surgery.evaluate import recorded_scores

    scores = recorded_scores(surgery.load(Path(given), optimizer=False).environment)
    played = [score for score in scores if score.mode != "random" and not score.settings]
    if not played:
        raise ArgumentError(
            f"{given} has no recorded score", hint=f"surgery evaluate {given} --record, or give a number"
        )
    return played[0].mean


def _text(done: Evaluation, own: Score | None, findings: tuple[Finding, ...], written: str | None) -> str:
    from surgery.evaluate.scores import interval

    played, bounds = done.episodes, interval(done.score)
    spread = f"{number_text(played.returns.min())} … {number_text(played.returns.max())}"
    sure = (
        ""
        if bounds is None
        else f"95% interval of the mean {number_text(bounds[0])} … {number_text(bounds[1])}; "
    )
    rows = [
        ("return", f"{_score(done.score)} ({sure}episodes {spread})"),
        ("recorded", _recorded(done, own, written)),
        ("random", f"{number_text(done.random.mean)} ({done.random.source})"),
    ]
    for label, mean in (("human", done.human), ("teacher", done.teacher)):
        if mean is not None:
            rows.append((label, _share(mean, done.normalised(mean))))
    head = [
        str(done.environment.id),
        done.mode,
        f"{done.score.episodes} episodes",
        f"{played.steps:,} steps in {done.seconds:.1f} s",
        *([done.cut_off] if done.cut_off else []),
        *([f"wrote {written}"] if written else []),
    ]
    lines = [" · ".join(head), *(f"  {label:<9} {text}" for label, text in rows)]
    if done.causes:
        lines.append(section("likely causes", "\n".join(done.causes)))
    if findings:
        rows_found = [
            (one.change, _score(one.score), "reaches it" if one.reaches else "") for one in findings
        ]
        lines.append(section("with one thing changed", table(("change", "return", ""), rows_found)))
    return "\n".join([*lines, *(f"note: {note}" for note in done.notes)])


def _score(score: Score) -> str:
    return f"{number_text(score.mean)} ± {number_text(score.std, 2)}"


def _recorded(done: Evaluation, own: Score | None, written: str | None) -> str:
    if done.known is None and own is not None:
        changed = ", ".join(done.score.settings)
        return f"{_score(own)} ({own.episodes} episodes), but with another {changed}: not compared"
    if done.known is None:
        now = "--record writes it" if written is None else "now this"
        return f"nothing for this action selection and environment; {now}"
    verdict = "confirmed" if done.confirmed else "NOT reached"
    return f"{_score(done.known)} ({done.known.episodes} episodes): {verdict}"


def _share(mean: float, share: float | None) -> str:
    return (
        number_text(mean)
        if share is None
        else f"{number_text(mean)}: the score is {share:.3g}, where random play is 0 and this is 1"
    )
