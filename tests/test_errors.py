"""Errors speak in lines: their own, and those of other programs that they pass on."""

from __future__ import annotations

import pytest

from surgery.errors import first_line


@pytest.mark.parametrize(
    ("error", "line", "typed"),
    [
        (RuntimeError("not a size\n  at conv.cpp:3"), "not a size", "RuntimeError: not a size"),
        (
            RuntimeError("\n\n  below an empty line"),
            "below an empty line",
            "RuntimeError: below an empty line",
        ),
        (KeyError("x"), "'x'", "KeyError: 'x'"),
        (RuntimeError(), "RuntimeError", "RuntimeError"),
        (ValueError(" \n"), "ValueError", "ValueError"),
    ],
)
def test_first_lines_are_never_empty(error: Exception, line: str, typed: str):
    assert first_line(error) == line
    assert first_line(error, typed=True) == typed
