"""What `distill_speed.py` asks of a device beside time: its rates, whether steps agree, where the time goes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from distill_steps import Ours
from torch.autograd import DeviceType
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import surgery
from surgery.distill import Options, execute, plan_distill

TAKEN = 20
"""Steps that are compared: 3 of them warm up, the others are replays."""
TOLERANCE = 2e-3
"""Relative: two orders of summing float32, twenty steps of Adam on."""
STUDENTS = [
    ("nature", "q"),
    ("impala-fc64", "dueling"),
    *(("nature-fc64", head) for head in ("c51", "qr", "rainbow")),
]


def seconds(work: Callable[[], object], count: int, device: str) -> float:
    """Of one call, the device waited for."""
    for _ in range(3):
        work()
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    begun = time.perf_counter()
    for _ in range(count):
        work()
    wait()
    return (time.perf_counter() - begun) / count


def ceilings(device: str) -> dict[str, float]:
    """Rates of a large copy (bytes read and written) and of large matrix products, on random numbers; on a GPU also of
    float32 rounded to TF32, which convolutions are by default."""
    size, count = (8192, 10) if device == "cuda" else (512, 3)
    numbers = torch.randn(size * size * (4 if device == "cuda" else 16), device=device)
    there, found = torch.empty_like(numbers), {}
    found["bytes/s"] = 2 * numbers.nbytes / seconds(lambda: there.copy_(numbers), count, device)
    kinds = [("float32", torch.float32, "highest"), ("bfloat16", torch.bfloat16, "highest")]
    kinds += [("TF32", torch.float32, "high")] if device == "cuda" else []
    before = torch.get_float32_matmul_precision()
    for name, kind, how in kinds:
        torch.set_float32_matmul_precision(how)
        left, right = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
        found[f"{name} FLOP/s"] = 2 * size**3 / seconds(lambda a=left, b=right: a @ b, count, device)
    torch.set_float32_matmul_precision(before)
    return found


class Traffic(TorchDispatchMode):
    """Bytes that kernels are given and give, those of views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, kernel: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = kernel(*args, **(kwargs or {}))
        if not kernel.is_view:
            given = {
                id(one): one for one in tree_leaves((args, kwargs, out)) if isinstance(one, torch.Tensor)
            }
            self.bytes += sum(one.nbytes for one in given.values())
        return out


@cache
def work(arch: str, batch: int, teacher: Path, precision: torch.dtype) -> tuple[int, int]:
    """Floating-point operations and bytes of a step, counted of the one that runs on the CPU kernel by kernel."""
    step = Ours(arch, surgery.load(teacher), batch, "cpu", precision, frozen=False)
    step()
    with FlopCounterMode(display=False) as counted, Traffic() as traffic:
        step()
    return counted.get_total_flops(), traffic.bytes


def bound(arch: str, batch: int, teacher: Path, half: bool, rates: dict[str, float]) -> dict[str, Any]:
    """The least time of a step, and what bounds it."""
    flops, bytes_moved = work(arch, batch, teacher, torch.bfloat16 if half else torch.float32)
    rate = rates["bfloat16 FLOP/s"] if half else rates.get("TF32 FLOP/s", rates["float32 FLOP/s"])
    arithmetic, memory = 1e3 * flops / rate, 1e3 * bytes_moved / rates["bytes/s"]
    return {
        "milliseconds": round(max(arithmetic, memory), 4),
        "by": "arithmetic" if arithmetic > memory else "memory, unfused",
        "gigaflop": round(flops / 1e9, 2), "megabytes": round(bytes_moved / 1e6, 1),
    }  # fmt: skip


def agreement(device: str, teacher: Path) -> dict[str, object]:
    """Parameters after some steps: captured against eager on the device, and that against the CPU; float32."""
    made = surgery.load(teacher)
    cudnn, exact = torch.backends.cudnn, ("ieee", "ieee", True)
    before = (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, cudnn.deterministic)
    cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, cudnn.deterministic = exact
    try:
        return {f"{arch} {head}": _agree(arch, head, made, device) for arch, head in STUDENTS}
    finally:
        cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, cudnn.deterministic = before


def _agree(arch: str, head: str, teacher: surgery.Checkpoint, device: str) -> dict[str, object]:
    captured = Ours(arch, teacher, 32, device, torch.float32, head=head)
    eager = Ours(arch, teacher, 32, device, torch.float32, head=head, captured=False)
    host = Ours(arch, teacher, 32, "cpu", torch.float32, head=head)
    first, second, third = (_stepped(step) for step in (captured, eager, host))
    noisy = head == "rainbow"  # whose noise is another on each device
    found: dict[str, object] = {"captured to eager": _apart(first, second)}
    found |= {} if noisy else {"eager to CPU": _apart(second, third)}
    worst = max(value for value in found.values() if isinstance(value, float))
    said = {"said": captured.said} if captured.said else {}
    return found | said | {"agrees": worst < TOLERANCE and not captured.said}


def _stepped(step: Ours) -> torch.Tensor:
    torch.manual_seed(0)
    step.generator = type(step.generator)(type(step.generator.bit_generator)(0))
    for _ in range(TAKEN):
        step()
    return torch.cat(
        [one.detach().cpu().double().flatten() for one in step.learner.student.module.parameters()]
    )


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative; NaN never agrees."""
    found = float((one - other).norm() / other.norm())
    return found if found == found else float("inf")


def profile(step: Callable[[], None], device: str, *, count: int = 20) -> str:
    """Which kernels take the time of some steps."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    for _ in range(8):
        step()
    cuda = device == "cuda"
    with profiler(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as found:
        begun = time.perf_counter()
        for _ in range(count if cuda else 4):
            step()
        if cuda:
            torch.cuda.synchronize()
        wall = time.perf_counter() - begun
    events = found.key_averages()
    table = events.table(sort_by="self_device_time_total" if cuda else "self_cpu_time_total", row_limit=25)
    if not cuda:
        return str(table)
    there = [
        event for event in events  # else the time of a kernel counts once more for the operator that launched it
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    ]  # fmt: skip
    busy = sum(event.self_device_time_total for event in there) / 1e6
    kernels = sum(event.count for event in there) / count
    return f"{kernels:.0f} kernels a step, the device busy {busy / wall:.0%} of {1e3 * wall / count:.3f} ms\n{table}"


def whole_run(device: str) -> dict[str, object]:
    """QDagger from CartPole's teacher on the device, from its beginning to its end, then gone on with on the CPU."""
    teacher = surgery.load(Path("examples/teachers/cartpole-dqn.onnx"), optimizer=False)
    options = Options(frames=4000, device=device, head="rainbow", noisy=True)
    said: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        job = plan_distill(
            teacher, "mlp-64-64", Path(folder) / "run", environment=teacher.environment, options=options
        )
        begun = time.perf_counter()
        outcome = execute(job, note=said.append)
        wall = time.perf_counter() - begun
        again = execute(replace(job, device="cpu"))
    return {
        "seconds": round(wall, 1), "return": outcome.mean_return, "teacher": outcome.teacher, "said": said,
        "gone on with": again.resumed and again.mean_return == outcome.mean_return,
    }  # fmt: skip
