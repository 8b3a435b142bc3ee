"""Time of the command line on the Nature network: whole commands, and what they take beyond their imports.

    python benchmarks/start_up.py

Medians of fresh processes, in seconds of the clock and (in brackets) of one processor, which other work on the machine
disturbs less. `imports` is a process that imports the same modules and does nothing.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

TEACHER = Path(__file__).parent.parent / "examples" / "teachers" / "breakout-ppo.onnx"
MAIN = "import sys; from surgery.cli import main; status = main(sys.argv[1:])"
MODULES = "print(*(name for name in sys.modules if name not in before))"


def seconds(code: str, words: Sequence[str] = (), *, repeats: int) -> tuple[float, float]:
    """The median times of a Python process: by the clock, and of processors."""
    clock, used = [], []
    for _ in range(repeats):
        begin, before = time.perf_counter(), _used()
        subprocess.run([sys.executable, "-c", code, *words], check=True, stdout=subprocess.DEVNULL)
        clock.append(time.perf_counter() - begin)
        used.append(_used() - before)
    return statistics.median(clock), statistics.median(used)


def _used() -> float:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def imported(words: Sequence[str]) -> list[str]:
    """The modules that a command has loaded when it ends, in order."""
    code = f"import sys; before = set(sys.modules)\n{MAIN}\nprint()\n{MODULES}"
    done = subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()[-1].split()


IMPORT = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception:  # modules that only their package can import, or that exist under another name
        pass
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        wide = str(Path(folder) / "wide.onnx")
        commands = {
            "surgery --help": ["--help"],
            "surgery inspect": ["inspect", str(TEACHER)],
            "surgery widen --factor 2": ["widen", str(TEACHER), "--factor", "2", "-o", wide, "--force"],
            "surgery verify": ["verify", str(TEACHER), wide],
        }
        print(f"{'':<26}{'whole':>14}{'imports':>14}{'beyond':>14}")
        for label, words in commands.items():
            whole = seconds(MAIN, words, repeats=repeats)
            modules = imported(words)
            assert "torch" not in modules
            imports = seconds(IMPORT, modules, repeats=repeats)
            beyond = (whole[0] - imports[0], whole[1] - imports[1])
            print(f"{label:<26}{_shown(whole)}{_shown(imports)}{_shown(beyond)}")


def _shown(times: tuple[float, float]) -> str:
    return f"{times[0]:7.2f} ({times[1]:.2f})".rjust(14)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
