"""Random graphs × random edits, judged in float64: what is not refused must not change a single output.

What was widened is inverted and narrowed, too, and must be the network that it was.

    python benchmarks/fuzz.py --seconds 3600 --seed 1
    python benchmarks/fuzz.py --seed 1 --case 4711          one case again, shrunk
    python benchmarks/fuzz.py --seconds 60 --operators LSTM,Einsum

Prints graphs, edits, refusals by reason, operators, and every failure as a small graph; exit status 1 if there is any.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

from surgery.graph.rules import RULES
from tests.fuzzing import Case
from tests.fuzzing_cases import draw
from tests.fuzzing_judge import judge
from tests.fuzzing_shrink import shrink, text
from tests.fuzzing_verdicts import Tally, Wrong


def main() -> int:
    """Run; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="only this case")
    parser.add_argument("--operators", default="", help="comma-separated: graphs that contain one of these")
    parser.add_argument("--edits", type=int, default=5, help="a graph")
    parser.add_argument("--failures", type=int, default=20, help="stop after so many")
    given = parser.parse_args()
    operators = frozenset(filter(None, given.operators.split(",")))
    tally, start = Tally(), time.monotonic()
    number = given.case or 0
    spent = 0.0
    while spent < given.seconds and len(tally.wrong) < given.failures:
        tally.drawn += 1
        case = draw(given.seed, number, operators)
        wrong = judge(case, tally, edits=given.edits, single=number % 4 == 0) if case else None
        spent = time.monotonic() - start
        if case and wrong:
            show(case, wrong)
            start += time.monotonic() - start - spent
        if given.case is not None:
            break
        number += 1
    report(tally, spent)
    return 1 if tally.wrong else 0


def show(case: Case, wrong: Wrong) -> None:
    """Print a failure, shrunk."""
    print(f"\nWRONG {wrong.kind}: {wrong.detail} (case {case.number})", flush=True)
    print(text(*shrink(case, wrong)), flush=True)


def report(tally: Tally, seconds: float) -> None:
    """Print the totals."""
    refused = sum(tally.refused.values())
    print(f"\n{tally.graphs} graphs of {tally.drawn} drawn, {tally.edits} edits, {refused} refused, "
          f"{tally.unstable} unstable, {len(tally.wrong)} wrong in {seconds:.0f} s")  # fmt: skip
    print(f"ways back: {dict(tally.back)}")
    print(f"right, but beyond the limits of surgery.verify: {dict(tally.loose)}")
    _table("spaces", tally.units)
    _table("refused", tally.refused)
    known = Counter({name: count for name, count in tally.operators.items() if name in RULES})
    print(f"operators: {len(known)} of {len(RULES)} with a rule; never drawn: "
          f"{', '.join(sorted(set(RULES) - set(known))) or 'none'}")  # fmt: skip
    print("  " + ", ".join(f"{name} {count}" for name, count in known.most_common()))
    for kind, count in Counter(wrong.kind for _, wrong in tally.wrong).most_common():
        cases = [case.number for case, wrong in tally.wrong if wrong.kind == kind]
        print(f"WRONG {kind}: {count} (cases {', '.join(map(str, cases[:12]))})")


def _table(title: str, rows: Counter[str]) -> None:
    print(f"{title}:")
    for name, count in rows.most_common(40):
        print(f"  {count:7d}  {name}")


if __name__ == "__main__":
    sys.exit(main())
