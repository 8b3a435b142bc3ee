"""Peak memory and time of widening a model that is larger than what should be held: load, plan, prove, save.

    python benchmarks/widen_memory.py --gigabytes 2

A chain of dense layers with random weights, stored as external data. Memory is anonymous memory (RssAnon: pages of
mapped files belong to the system's cache and can be dropped), beyond what the imports take, in units of the model's
largest tensor before the edit; time is in units of copying the files by cp, measured before and after. Linux only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

PHASES = ("load", "plan", "prove", "save")
INTERVAL = 0.004


def build(folder: Path, gigabytes: float, width: int) -> Path:
    """A model of about that size whose dense layers are all `width` by `width`; returns its path."""
    layers = max(2, round(gigabytes * 1e9 / (4 * width * width)))
    rng = np.random.default_rng(0)
    nodes, tensors = [], []
    with (folder / "model.data").open("wb") as data:
        for layer in range(layers):
            names = [f"layers.{layer}.weight", f"layers.{layer}.bias"]
            weight = rng.standard_normal((width, width), dtype=np.float32)
            weight *= np.float32((2 / width) ** 0.5)
            for name, array in zip(names, (weight, np.zeros(width, np.float32)), strict=True):
                tensors.append(_external(name, array, data.tell()))
                data.write(array.tobytes())
            nodes.append(helper.make_node("Gemm", [f"x{layer}", *names], [f"h{layer}"], transB=1))
            nodes.append(helper.make_node("Relu", [f"h{layer}"], [f"x{layer + 1}"]))
    ports = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])]
        for name in ("x0", f"x{layers}")
    ]
    graph = helper.make_graph(nodes, "chain", *ports, tensors)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def _external(name: str, array: np.ndarray, offset: int) -> TensorProto:
    tensor = TensorProto(
        name=name, data_type=TensorProto.FLOAT, dims=array.shape, data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", "model.data"), ("offset", offset), ("length", array.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def work(source: Path, target: Path, layers: str, factor: float, init: str, verify: bool) -> None:
    """What is measured, in a process of its own: says on stdout when each phase begins."""
    import onnxruntime  # noqa: F401  the imports are not what is measured

    import surgery
    import surgery.operate
    import surgery.ops.widen

    _say("load")
    checkpoint = surgery.load(source)
    _say("plan")
    if layers == "all":
        plan = surgery.widen(checkpoint, factor=factor, init=init)
    else:
        space = surgery.analyse(checkpoint.model).space("layers.0")
        plan = surgery.widen(checkpoint, widths={space.name: int(factor * space.size)}, init=init)
    _say("prove")
    result = surgery.apply(plan, checkpoint, verify=verify)
    _say("save")
    result.save(target)
    _say("end")


def _say(phase: str) -> None:
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps([phase, time.monotonic(), resident]), flush=True)


def measure(command: Sequence[str]) -> tuple[dict[str, tuple[float, int]], int]:
    """Phase -> (seconds, peak anonymous bytes beyond the imports'); and the peak of all resident bytes."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    status = Path(f"/proc/{process.pid}/status")
    samples: list[tuple[float, int]] = []
    while process.poll() is None:
        samples.append((time.monotonic(), _anonymous(status)))
        time.sleep(INTERVAL)
    if process.returncode:
        raise SystemExit(process.returncode)
    marks = [json.loads(line) for line in process.stdout]
    start = max(size for when, size in samples if when <= marks[0][1])
    found = {}
    for (phase, begin, _), (_, end, _) in itertools.pairwise(marks):
        peak = max([size for when, size in samples if begin <= when <= end], default=start)
        found[phase] = (end - begin, peak - start)
    return found, marks[-1][2]


def _anonymous(status: Path) -> int:
    try:
        lines = status.read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def copied(folder: Path) -> float:
    """Seconds that cp takes for the model, its data on the disk at the end."""
    target = folder / "copy.data"
    begin = time.monotonic()
    subprocess.run(["cp", "--reflink=never", folder / "model.data", target], check=True)
    subprocess.run(["sync", target], check=True)
    seconds = time.monotonic() - begin
    target.unlink()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--width", type=int, default=4096, help="of every layer")
    parser.add_argument("--factor", type=float, default=1.25)
    parser.add_argument("--init", default="zero", choices=["zero", "net2net"])
    parser.add_argument("--layers", default="both", choices=["one", "all", "both"])
    parser.add_argument("--no-verify", action="store_true")
    parser.add_argument("--folder", type=Path, help="for the model; a temporary one by default")
    parser.add_argument("--work", nargs=2, type=Path, metavar=("SOURCE", "TARGET"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(*options.work, options.layers, options.factor, options.init, not options.no_verify)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        compare(Path(name), options)
    return None


def compare(folder: Path, options: argparse.Namespace) -> None:
    """Make the model, widen it, and print the ratios."""
    source = build(folder, options.gigabytes, options.width)
    largest = 4 * options.width**2
    total = (folder / "model.data").stat().st_size
    print(
        f"{total / 1e9:.2f} GB, largest tensor {largest / 1e6:.0f} MB, factor {options.factor:g}, init {options.init}"
    )
    for layers in ("one", "all") if options.layers == "both" else (options.layers,):
        target = folder / "wide.onnx"
        flags = [*(["--no-verify"] if options.no_verify else []), "--init", options.init]
        command = [sys.executable, __file__, "--work", source, target, "--layers", layers, *flags]
        before = copied(folder)
        found, resident = measure([*map(str, command), "--factor", str(options.factor)])
        cp = statistics.mean([before, copied(folder)])
        for path in folder.glob("wide.*"):
            path.unlink()
        seconds, peak = sum(s for s, _ in found.values()), max(p for _, p in found.values())
        print(f"\nwiden {layers}: peak {peak / largest:.1f} largest tensors ({peak / 1e6:.0f} MB), "
              f"{seconds / cp:.1f} × cp ({seconds:.1f} s against {cp:.1f} s), "
              f"ru_maxrss {resident / 1e6:.0f} MB")  # fmt: skip
        for phase in PHASES:
            seconds, peak = found[phase]
            print(f"  {phase:<6} {peak / largest:5.1f} tensors {seconds / cp:6.1f} × cp {seconds:8.2f} s")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
