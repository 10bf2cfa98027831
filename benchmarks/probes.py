"""What the probes cost: operations, seconds and memory against one plain forward pass, and how operations grow.

    python benchmarks/probes.py            # some minutes on two cores

Each row is put to the default checkpoint and 16 prompts, in a process of its own: seconds against a forward pass of as
many loops in the same process, medians of the repeats; peak is what its memory grew by. Growth is counted, not timed:
the power with which the operations grow when loops, points, prompts or d_model double (4 to 8 loops, 8 to 16 points,
4 to 8 prompts, d_model 64 to 128), which does not depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from cache import memory
from common import in_a_process, table, write
from counts import counted

from loopprobe import load_checkpoint
from loopprobe.config.sources import load_config
from loopprobe.dynamics.maps import LoopMap
from loopprobe.dynamics.spectrum import position_spectra
from loopprobe.model.looped import LoopedTransformer
from loopprobe.probes import attention, attribute, converge, lens, mask, patch, recover
from loopprobe.probes.loops import LoopsConfig
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.support.provenance import provenance
from loopprobe.tasks import Prompts

Work = Callable[[Checkpoint, Prompts, int], Any]
LOOPS = 20


def forward(checkpoint: Checkpoint, prompts: Prompts, loops: int) -> None:
    """The unit: predictions after every loop."""
    with torch.no_grad():
        checkpoint.model(*prompts, loops)


def every_n(checkpoint: Checkpoint, prompts: Prompts, loops: int) -> None:
    n = tuple(range(checkpoint.config.model.n_points + 1))
    mask.run(checkpoint, prompts, mask.MaskConfig(n=n, loops=loops))


def spectra(checkpoint: Checkpoint, prompts: Prompts, loops: int) -> None:
    """The spectrum of every token's own Jacobian, at the state after the loops."""
    system = LoopMap.of(checkpoint.model, prompts)
    z = system.initial
    with torch.no_grad():
        for _ in range(loops):
            z = system.step(z)
    position_spectra(system, z)


ROWS: dict[str, Work] = {
    "forward": forward,
    "forward and backward": lambda c, p, n: c.model(*p, n).square().mean().backward(),
    "cache, resid_post and pattern": lambda c, p, n: c.model.run_with_cache(*p, n, names=["resid_post", "pattern"]),
    "cache, everything": lambda c, p, n: c.model.run_with_cache(*p, n),
    "converge": lambda c, p, n: converge.run(c, p, converge.ConvergeConfig(loops=n, states=0)),
    "mask, every n": every_n,
    "lens": lambda c, p, n: lens.run(c, p, lens.LensConfig(loops=n, train_prompts=len(p.ys))),
    "attribute": lambda c, p, n: attribute.run(c, p, attribute.AttributeConfig(loops=n)),
    "attention": lambda c, p, n: attention.run(c, p, LoopsConfig(loops=n)),
    "patch, state at every loop and token": lambda c, p, n: patch.run(c, p, patch.PatchConfig(loops=n, sites=("z",))),
    "attribution patching of the same": lambda c, p, n: patch.run(
        c, p, patch.PatchConfig(loops=n, sites=("z",), exact=False)
    ),
    "recover": lambda c, p, n: recover.run(c, p, recover.RecoverConfig(after=n, loops=n, positions=(2, 8))),
    "spectra of all tokens": spectra,
}
AXES = {"loops": (4, 8), "points": (8, 16), "prompts": (4, 8), "d_model": (64, 128)}


def operations(work: Work, loops: int, points: int, prompts: int, d_model: int) -> int:
    """Of a model of this size before its training."""
    sizes = {"n_loops": loops, "n_points": points, "n_dims": 4, "d_model": d_model}
    overrides = [f"model.{key}={value}" for key, value in sizes.items()]
    cfg = load_config(overrides=[*overrides, "train.loop_window=1", f"train.points={points}"])
    model = LoopedTransformer(cfg.model, torch.Generator().manual_seed(0))
    checkpoint = Checkpoint(cfg, model, name="untrained")
    drawn = checkpoint.held_out(prompts)
    return counted(lambda: work(checkpoint, drawn, loops))["flops"]


def growth(work: Work) -> dict[str, float]:
    """From an axis to the power with which operations grow along it."""
    base = {axis: ends[0] for axis, ends in AXES.items()}
    least = operations(work, **base)
    return {axis: math.log2(operations(work, **(base | {axis: ends[1]})) / least) for axis, ends in AXES.items()}


def one_row(name: str, n_prompts: int, repeats: int) -> dict[str, float]:
    """Seconds, memory and operations of one row, in this process."""
    checkpoint = load_checkpoint("lr-b20-T10")
    prompts, few = checkpoint.held_out(n_prompts), checkpoint.held_out(2)
    ROWS[name](checkpoint, few, 2)
    forward(checkpoint, prompts, LOOPS)
    before = memory("VmHWM")
    seconds, unit = [], []
    for _ in range(repeats):
        for work, times in ((ROWS[name], seconds), (forward, unit)):
            started = time.perf_counter()
            work(checkpoint, prompts, LOOPS)
            times.append(time.perf_counter() - started)
    peak = (memory("VmHWM") - before) / 1e6
    flops = [counted(lambda w=w: w(checkpoint, few, LOOPS))["flops"] for w in (ROWS[name], forward)]
    ratio = statistics.median(a / b for a, b in zip(seconds, unit, strict=True))
    return {
        "seconds": statistics.median(seconds),
        "forwards": ratio,
        "operations": flops[0] / flops[1],
        "peak_MB": peak,
    }


def page(found: dict[str, Any]) -> str:
    """The measurements as a table in Markdown."""
    head = ["probe", "seconds", "forward passes, by time", "by operations", "peak MB"]
    rows = [
        [
            name,
            f"{row['seconds']:.2g}",
            f"{row['forwards']:.1f}",
            f"{row['operations']:.1f}",
            f"{row['peak_MB']:.0f}",
            *(f"{row['growth'][axis]:.2f}" for axis in AXES),
        ]
        for name, row in found["rows"].items()
    ]
    return table([*head, *(f"power of {axis}" for axis in AXES)], rows)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=ROWS, help="measure one row in this process and print it as JSON")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(one_row(args.row, args.prompts, args.repeats)))
        return
    rows: dict[str, Any] = {}
    for name, work in ROWS.items():
        size = ("--prompts", str(args.prompts), "--repeats", str(args.repeats))
        row = in_a_process(__file__, "--row", name, *size)
        rows[name] = row | {"growth": growth(work)}
        grows = ", ".join(f"{axis} {power:.2f}" for axis, power in rows[name]["growth"].items())
        print(
            f"{name}: {row['forwards']:.1f} forward passes ({row['operations']:.1f} by operations), "
            f"peak {row['peak_MB']:.0f} MB; grows with {grows}", flush=True,
        )  # fmt: skip
    machine = provenance("cpu", torch.float32)
    write(__file__, {"machine": machine, "prompts": args.prompts, "rows": rows})


if __name__ == "__main__":
    main()
