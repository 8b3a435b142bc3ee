"""How a failure looks: a message on stderr, or an object on stdout under `--json`, and its exit status."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from surgery.errors import FileError, SurgeryError

_MODEL = re.compile(r"(?<=surgery )([a-z]+) (?:MODEL|FILE)(?= )")


def name_model(error: SurgeryError, model: Path | None) -> None:
    """Put the file that a command is about where a hint of the library says MODEL or FILE: it can be pasted then."""
    named = error.where.get("file") or error.where.get("model") or model
    if named is None:
        return

    def pasteable(text: str) -> str:
        return _MODEL.sub(lambda verb: f"{verb[1]} {shlex.quote(str(named))}", text)

    error.hint = error.hint and pasteable(error.hint)
    if "without" in error.where:
        error.where["without"] = pasteable(error.where["without"])


def expected(error: SurgeryError, words: Sequence[str]) -> int:
    """An error that the library raised on purpose: its class owns the exit status."""
    _trace(error, words)
    _report(words, error.kind, error.message, where=error.where, hint=error.hint)
    return error.exit_code


def usage(error: click.ClickException, words: Sequence[str]) -> int:
    """A command line that click could not read."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "surgery"
    message = " ".join(error.format_message().split())
    hint = f"{command} --help"
    if isinstance(error, click.NoSuchOption) and command == "surgery":
        message, hint = (
            f"no such option '{error.option_name}' of surgery itself",
            f"surgery COMMAND … {error.option_name}",
        )
    _report(words, "UsageError", message[:1].lower() + message[1:].rstrip("."), hint=hint)
    return 2


def system(error: OSError, words: Sequence[str]) -> int:
    """A refusal of the operating system: disk full, no permission."""
    what = error.strerror or str(error)
    subject = f"'{error.filename}'" if error.filename else "a file"
    return expected(FileError(f"cannot use {subject}: {what}"), words)


def interrupted(words: Sequence[str]) -> int:
    """Ctrl-C."""
    _report(words, "Interrupted", "interrupted")
    return 130


def internal(error: Exception, words: Sequence[str]) -> int:
    """Anything else is a bug of ours: one line, and the details in a log."""
    _trace(error, words)
    log = _write_log(error, words)
    _report(
        words,
        "InternalError",
        f"internal error: {type(error).__name__}: {' '.join(str(error).split())}",
        hint=f"please report this, with the log at {log}",
    )
    return 3


def _report(
    words: Sequence[str],
    kind: str,
    message: str,
    *,
    where: Mapping[str, str] | None = None,
    hint: str | None = None,
) -> None:
    where = dict(where or {})
    if "--json" in words:
        failure = {"kind": kind, "message": message, "hint": hint, "where": where}
        with contextlib.suppress(OSError):  # it may be stdout that cannot be written
            click.echo(json.dumps({"schema": 1, "error": failure}, indent=2, ensure_ascii=False))
            return
    width = max(map(len, where), default=0)
    click.echo(f"{_styled('error:', 'red')} {message}", err=True)
    for label, text in where.items():
        click.echo(f"  {label:<{width}}  {text}", err=True)
    if hint:
        click.echo(f"{_styled('hint:', 'cyan')} {hint}", err=True)


def _styled(text: str, colour: str) -> str:
    plain = not sys.stderr.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain else click.style(text, fg=colour, bold=True)


def _trace(error: BaseException, words: Sequence[str]) -> None:
    if "--debug" in words:
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)


def _write_log(error: BaseException, words: Sequence[str]) -> str:
    import platform
    import tempfile
    from importlib.metadata import version

    with tempfile.NamedTemporaryFile(
        "w", prefix="surgery-", suffix=".log", delete=False, encoding="utf-8"
    ) as log:
        log.write(f"surgery {shlex.join(words)}\n")
        for name in ("policy-surgery", "numpy", "onnx", "onnx-ir", "onnxruntime"):
            log.write(f"{name} {version(name)}\n")
        log.write(f"Python {platform.python_version()} on {platform.platform()}\n\n")
        log.writelines(traceback.format_exception(error))
    return log.name
