"""Models trained as one stack against one after another: time of a step of all, in units of a step of one.

    python benchmarks/stack.py            # about 3 minutes on two cores

Default models that differ in their seeds, at the full curriculum; the ways take turns. On a GPU the goal is 16 models
in less than three times the time of one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import synchronise, table, write

from loopprobe.config.sources import load_config
from loopprobe.support.device import pick_device
from loopprobe.support.provenance import provenance
from loopprobe.training.replay import Replay
from loopprobe.training.stack import Stack
from loopprobe.training.steps import stack_step, train_step
from loopprobe.training.train import draw, start

SIZES = (2, 4, 8, 16)


def measure(size: int, repeats: int, device: str) -> dict[str, float]:
    """Medians over steps of: the stack, all one after another, and one."""
    configs = [load_config(overrides=[f"train.seed={seed}", f"train.device={device}"]) for seed in range(size)]
    with tempfile.TemporaryDirectory() as folder:
        runs = [start(cfg, Path(folder) / str(i)) for i, cfg in enumerate(configs)]
        stack, step = Stack([run.model for run in runs]), runs[0].train.steps - 1
        replay, replays = Replay(runs[0].device), {run: Replay(run.device) for run in runs}
        prompts = [draw(run.cfg, run.sizes(step), run.generator, run.device) for run in runs]
        times: dict[str, list[float]] = {"stack": [], "alone": [], "one": [], "launched": []}

        def alone(count: int) -> None:
            for run, part in list(zip(runs, prompts, strict=True))[:count]:
                train_step(run.model, run.optimizers, part, step, run.train, replays[run])

        ways = {
            "stack": lambda: stack_step(stack, runs, prompts, step, replay),
            "alone": lambda: alone(size),
            "one": lambda: alone(1),
        }
        if runs[0].device.type == "cuda":
            run, off = runs[0], Replay(torch.device("cpu"))  # of no graph
            ways["launched"] = lambda: train_step(run.model, run.optimizers, prompts[0], step, run.train, off)
        for turn in range(repeats + 2):
            for name, way in ways.items():
                started = time.perf_counter()
                way()
                synchronise(runs[0].device)
                if turn >= 2:  # after warm-up
                    times[name].append(time.perf_counter() - started)
    one = statistics.median(times["one"])
    ratios = {name: statistics.median(seconds) / one for name, seconds in times.items() if seconds and name != "one"}
    return {"one_s": one} | ratios


def page(found: dict[str, Any]) -> str:
    """The measurements as a table in Markdown."""
    columns = {"stack": "as one stack, in steps of one", "alone": "one after another"}
    columns["launched"] = "one, launched kernel by kernel"
    shown = [key for key in columns if key in next(iter(found["rows"].values()))]
    rows = [[n, f"{1000 * r['one_s']:.3g}", *(f"{r[key]:.1f}" for key in shown)] for n, r in found["rows"].items()]
    return table(["models", "one, ms", *(columns[key] for key in shown)], rows)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    args = parser.parse_args()
    device = pick_device(args.device)
    found: dict[str, Any] = {"machine": provenance(device, torch.float32), "rows": {}}
    for size in args.sizes:
        found["rows"][str(size)] = measure(size, args.repeats, device.type)
    print(page(found))
    write(__file__, found, device)


if __name__ == "__main__":
    main()
