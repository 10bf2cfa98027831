"""Freed memory kept for the next loop, against memory handed back after every operation, as glibc does by itself.

    python benchmarks/memory.py            # a minute on two cores

A forward pass of the default checkpoint, 20 loops, of so many prompts; each number is a process of its own, the two
ways in turn, medians. See ``loopprobe/support/memory.py``. On Linux with glibc only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch
from common import in_a_process, table, write

from loopprobe import load_checkpoint
from loopprobe.support.provenance import provenance

PROMPTS, LOOPS = (64, 256, 1280), 20
WAYS: dict[str, dict[str, str]] = {
    "kept": {},
    "handed back": {"GLIBC_TUNABLES": ""},
}  # a user's own setting of malloc is left alone


def one(n_prompts: int) -> float:
    """Seconds of a forward pass in this process, after one that warms it up."""
    checkpoint = load_checkpoint("lr-b20-T10")
    prompts = checkpoint.held_out(n_prompts)
    times = []
    with torch.no_grad():
        for _ in range(4):
            started = time.perf_counter()
            checkpoint.model(*prompts, LOOPS)
            times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def page(found: dict[str, Any]) -> str:
    """The measurements as a table in Markdown."""
    rows = []
    for n_prompts, times in found["seconds"].items():
        ratio = statistics.median(a / b for a, b in zip(times["handed back"], times["kept"], strict=True))
        rows.append([f"{int(n_prompts):,}", *(f"{statistics.median(times[way]):.2g}" for way in WAYS), f"{ratio:.2f}"])
    return table(["prompts", *(f"{way}, seconds" for way in WAYS), "ratio"], rows)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", type=int, help="measure so many prompts in this process and print the seconds as JSON")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(one(args.row)))
        return
    seconds: dict[str, dict[str, list[float]]] = {str(n): {way: [] for way in WAYS} for n in PROMPTS}
    for _ in range(args.repeats):
        for n_prompts, times in seconds.items():
            for way, environment in WAYS.items():
                times[way].append(in_a_process(__file__, "--row", n_prompts, **environment))
    found = {"machine": provenance("cpu", torch.float32), "seconds": seconds}
    print(page(found))
    write(__file__, found)


if __name__ == "__main__":
    main()
