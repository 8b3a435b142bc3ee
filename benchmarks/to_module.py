"""Modules made from graphs against their sources: processor time of a training step, side by side.

And the time that live surgery takes. Ratios of medians over rounds in which the two take turns, with the interval of
the middle half of the ratios of single rounds.

    python benchmarks/to_module.py            steps
    python benchmarks/to_module.py --operate  live surgery on 1 M and 100 M parameters
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

import surgery
from surgery.torch import operate, to_module
from tests import zoo

NETS = {
    "nature_dqn": 32,
    "impala": 32,
    "mlp_tanh": 256,
    "batchnorm_resnet": 32,
    "lstm_policy": 32,
    "gru_policy": 32,
    "residual_layernorm": 256,
    "entity_attention": 64,
    "transformer": 64,
}


def step(net: nn.Module, optimizer: torch.optim.Optimizer, inputs: list[torch.Tensor]) -> float:
    """Seconds of the processor for one training step (other work on the machine does not count)."""
    start = time.process_time()
    results = net(*inputs)
    loss = sum(y.square().mean() for y in (results if isinstance(results, tuple) else (results,)))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return time.process_time() - start


def compare(name: str, batch: int, style: str, seconds: float) -> tuple[float, ...]:
    """Median ratio, its quartiles, and the source's milliseconds."""
    source, made = zoo.module(name).requires_grad_(True), to_module(zoo.load(name, style))
    pairs = [(net, torch.optim.SGD(net.parameters(), 1e-6)) for net in (source, made)]
    inputs = [torch.from_numpy(x) for x in zoo.sample(name, batch, np.random.default_rng(0)).values()]
    times: tuple[list[float], list[float]] = ([], [])
    end, turn = time.perf_counter() + seconds, 0
    while time.perf_counter() < end or len(times[0]) < 20:
        for at in (0, 1) if turn % 2 else (1, 0):  # whoever goes first has the colder cache
            times[at].append(step(*pairs[at], inputs))
        turn += 1
    ratios = [b / a for a, b in zip(*(part[5:] for part in times), strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return (
        statistics.median(times[1]) / statistics.median(times[0]),
        low,
        high,
        1e3 * statistics.median(times[0]),
    )


def stack(parameters: int) -> tuple[nn.Module, int]:
    """Three dense layers with about as many parameters, and their width."""
    width = int((parameters / 2) ** 0.5)
    return nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, 8),
    ), width  # fmt: skip


def live(parameters: int, prove: bool, everything: bool) -> tuple[float, float, float]:
    """Widen the middle of such a network, or all of it, by a quarter, Adam's state with it.

    Returns:
      Processor seconds; the same in steps of training; the largest memory in parameters and their state as they were.
    """
    torch.set_num_threads(1)
    if parameters > 10_000:
        live(10_000, True, False)  # the first export of a process loads the exporter
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    net, width = stack(parameters)
    optimizer = torch.optim.Adam(net.parameters())
    x = torch.randn(4, 64)
    step(net, optimizer, [x])
    one = min(step(net, optimizer, [x]) for _ in range(3))
    optimizer.zero_grad()
    start = time.process_time()
    how = {"factor": 1.25} if everything else {"widths": {"2": width + width // 4}}
    operate(net, optimizer, x, lambda c: surgery.widen(c, **how), prove=prove)
    seconds = time.process_time() - start
    peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base)
    return seconds, seconds / one, peak / (12 * parameters)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="per network")
    parser.add_argument("--style", choices=zoo.STYLES, default="dynamo")
    parser.add_argument("--operate", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.operate:
        print(
            "| parameters | widened | proved | CPU s | in training steps | peak memory |\n|---|---|---|---|---|---|"
        )
        rows = itertools.product((1_000_000, 100_000_000), (True, False), (False, True))
        for parameters, prove, everything in rows:
            with ProcessPoolExecutor(1, get_context("spawn")) as process:  # the peak is a process's own
                seconds, steps, memory = process.submit(live, parameters, prove, everything).result()
            what = f"{'all layers' if everything else 'one layer'} | {'yes' if prove else 'no'}"
            print(f"| {parameters:,} | {what} | {seconds:.2f} | {steps:.0f} | {memory:.1f} |", flush=True)
        return
    print(f"{'network':20} batch  source ms  ratio  middle half of rounds")
    for name, batch in NETS.items():
        ratio, low, high, milliseconds = compare(name, batch, options.style, options.seconds)
        print(f"{name:20} {batch:5}  {milliseconds:9.2f}  {ratio:5.3f}  {low:.3f} to {high:.3f}", flush=True)


if __name__ == "__main__":
    main()
