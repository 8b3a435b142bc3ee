"""A gradient step of QDagger, ours against a plain rendition of the textbook update, side by side in one process.

    OMP_NUM_THREADS=1 python benchmarks/distill_speed.py -o results.json
    python benchmarks/distill_speed.py --device cuda --profile -o results.json   # all there is to know of a GPU
    python benchmarks/distill_speed.py --device cuda --autotune -o tuned.json     # times only, cuDNN's algorithms timed
    python benchmarks/distill_speed.py --device cuda --compile -o compiled.json   # times only, torch.compile beside

Plain: eager float32, NCHW, a replay of stacked observations and their successors on the host, one optimizer call per
tensor list as PyTorch has it. Ours: what `surgery distill` runs. Same networks, batch, teacher and loss; what is timed
is drawing a batch, the teacher's and the target's forward passes, the student's forward and backward pass, and Adam.
The textbook asks the teacher about every example of every batch; ours once about every transition when it is made,
which are 4 per gradient step (counted in).
On the CPU the numbers are CPU milliseconds, so that other load on the machine counts little; rounds are interleaved.

On a GPU also: whether captured steps compute what steps do that run kernel by kernel, and those what the CPU does; and
a whole run, which the CPU then goes on with. The bound of a step is the larger of two times: its arithmetic at the rate
of a large matrix product (of TF32 where it is in float32), and what its kernels read and write, none of them fused, at
the rate of a large copy; the rates are measured first (of a CPU, whose caches hold a step, it is no bound). Every part
is written as soon as it is there, and one that fails with its reason.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from distill_checks import agreement, bound, ceilings, profile, whole_run
from distill_steps import SHAPE, Ours, Plain

import surgery
from surgery.distill.network import choose_precision
from surgery.torch import to_module

Steps = dict[str, Callable[[], None]]


def milliseconds(step: Callable[[], None], count: int, device: str) -> float:
    """Of one step: of the CPU, or of the clock with the device waited for."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    begun = clock()
    for _ in range(count):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (clock() - begun) / count


def variants(arch: str, batch: int, words: argparse.Namespace) -> Steps:
    teacher, device = surgery.load(words.teacher), words.device
    best = choose_precision(device, SHAPE)
    found: Steps = {
        "plain": Plain(arch, to_module(teacher), batch, device),
        "ours float32": Ours(arch, teacher, batch, device, torch.float32),
    }
    if best != torch.float32:
        found["ours bfloat16"] = Ours(arch, teacher, batch, device, best)
    if best != torch.float32 and words.compile:
        found["ours bfloat16, compiled"] = Ours(arch, teacher, batch, device, best, compiled=True)
    if device == "cuda" and words.all:
        found[f"{[*found][-1]}, not captured"] = Ours(arch, teacher, batch, device, best, captured=False)
    return found


def compare(arch: str, batch: int, words: argparse.Namespace) -> dict:
    """Times of a step in turns, what captured ones said, and the bound of each of ours."""
    steps = variants(arch, batch, words)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        milliseconds(step, 5, words.device)
    for _ in range(words.rounds):
        for name, step in steps.items():
            times[name].append(milliseconds(step, words.steps, words.device))
    plain = statistics.median(times["plain"])
    rows = {
        name: {"milliseconds": round(statistics.median(some), 3), "times": round(plain / statistics.median(some), 2),
               "spread": [round(min(some), 3), round(max(some), 3)]}
        for name, some in times.items()
    }  # fmt: skip
    for name, step in steps.items():
        if isinstance(step, Ours):
            rows[name] |= {"said": step.said} if step.said else {}
            if words.rates:
                least = bound(arch, batch, words.teacher, "bfloat16" in name, words.rates)
                share = least["milliseconds"] / rows[name]["milliseconds"]
                rows[name] |= {"bound": least, "share of bound": round(share, 3)}
    return rows


def profiled(arch: str, words: argparse.Namespace) -> str:
    teacher, best = surgery.load(words.teacher), choose_precision(words.device, SHAPE)
    step = Ours(arch, teacher, words.batch[0], words.device, best, compiled=words.compile)
    return profile(step, words.device)


def told(name: str, found: object) -> str:
    """A part as text."""
    if not isinstance(found, dict) or "error" in found:
        return f"{name}: {found}"
    if name == "profile":
        return "\n\n".join(f"{name} of {arch}\n{text}" for arch, text in found.items())
    lines = [name]
    for row, values in found.items():
        if isinstance(values, dict) and "milliseconds" in values:
            share = f"  {values['share of bound']:.0%} of bound" if "share of bound" in values else ""
            lines.append(
                f"  {row:28s} {values['milliseconds']:9.3f} ms  x{values['times']:.2f}  {values['spread']}{share}"
            )
        else:
            lines.append(f"  {row:28s} {values}")
    return "\n".join(lines)


def parts(words: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """What is measured, in order."""
    found: dict[str, Callable[[], object]] = {}
    if words.all:
        found["rates"] = lambda: words.rates.update(ceilings(words.device)) or words.rates
        found["agreement"] = lambda: agreement(words.device, words.teacher)
    for batch in words.batch:
        for arch in words.to:
            found[f"{arch}, batch {batch}"] = lambda arch=arch, batch=batch: compare(arch, batch, words)
    if words.profile:
        found["profile"] = lambda: {arch: profiled(arch, words) for arch in words.to}
    if words.all:
        found["a whole run"] = lambda: whole_run(words.device)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", nargs="+", default=["nature", "impala"])
    parser.add_argument("--teacher", type=Path, default=Path("examples/teachers/breakout-ppo.onnx"))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, nargs="+", help="32; on a GPU also 256")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, help="of a round: 6, on a GPU 100")
    parser.add_argument("--all", action="store_true", help="check and bound steps, too; else on a GPU only")
    parser.add_argument("--autotune", action="store_true", help="let cuDNN time its algorithms; only times")
    parser.add_argument("--compile", action="store_true", help="compile networks, too; only times")
    parser.add_argument("--profile", action="store_true", help="say which kernels take the time")
    parser.add_argument(
        "-o", "--out", type=Path, help="FILE.json; what is printed goes into FILE.txt beside it"
    )
    words = parser.parse_args()
    cuda = words.device == "cuda"
    if cuda and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here")
    words.batch, words.steps = (
        words.batch or ([32, 256] if cuda else [32]),
        words.steps or (100 if cuda else 6),
    )
    words.all, words.rates = words.all or (cuda and not (words.autotune or words.compile)), {}
    torch.backends.cudnn.benchmark = words.autotune
    torch.set_num_threads(1)
    found: dict[str, object] = {
        "unit": "ms per step" if cuda else "CPU ms per step",
        "hardware": torch.cuda.get_device_name() if cuda else torch.cpu.get_capabilities()["cpu_name"],
        "torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version(),
        "autotuned": words.autotune,
    }  # fmt: skip
    text = [json.dumps(found)]
    for name, part in parts(words).items():
        begun = time.perf_counter()
        try:
            found[name] = part()
        except Exception as error:  # the other parts are worth having
            found[name] = {"error": f"{type(error).__name__}: {error}", "where": traceback.format_exc()}
        text.append(f"{told(name, found[name])}\n  ({time.perf_counter() - begun:.0f} s)")
        print(text[-1], flush=True)
        if words.out:
            words.out.write_text(json.dumps(found, indent=1) + "\n")
            words.out.with_suffix(".txt").write_text("\n\n".join(text) + "\n")


if __name__ == "__main__":
    main()
