"""Commands: seconds from the start of a command to its first sign of life and to its end, in a fresh process.

    python benchmarks/commands.py         # some minutes on two free cores

Each is run in an empty folder and a terminal of its own, in turn; what is shown are medians of its runs, and their
range. The first sign is a bar of progress or a line. Masks run 50 loops of 1,280 prompts.
"""

from __future__ import annotations

import argparse
import io
import os
import pty
import statistics
import subprocess
import tempfile
import time
from typing import Any

import torch
from common import table, write

from loopprobe.support.provenance import provenance

FIRST, EVERY = "loopprobe mask --mode first --n 10", "loopprobe mask --mode first --n 0:31"
COMMANDS = ("loopprobe --help", "loopprobe list", FIRST, EVERY)


def timed(command: str) -> tuple[float, float]:
    """Seconds to the first that a command shows in a terminal, and to its end."""
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = pty.openpty()
        started = time.perf_counter()
        process = subprocess.Popen(command.split(), cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        first = None
        with open(ours, "rb", buffering=0) as terminal:
            while _read(terminal):
                first = first or time.perf_counter() - started
        if process.wait() or first is None:
            raise RuntimeError(f"{command} ended with {process.returncode}")
        return first, time.perf_counter() - started


def _read(terminal: io.FileIO) -> bytes:
    """What is shown; nothing once the terminal is closed, which Linux tells as an error."""
    try:
        return terminal.read(1 << 16)
    except OSError:
        return b""


def page(found: dict[str, Any]) -> str:
    """The table of what was measured."""

    def cell(seconds: list[float]) -> str:
        return f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"

    rows = [(f"`{name}`", cell(row["first_s"]), cell(row["seconds"])) for name, row in found["rows"].items()]
    return table(("command", "s to its first sign", "s to its end"), rows)


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    rows: dict[str, dict[str, list[float]]] = {name: {"first_s": [], "seconds": []} for name in COMMANDS}
    for _ in range(repeats):
        for name, row in rows.items():
            first, whole = timed(name)
            row["first_s"].append(first)
            row["seconds"].append(whole)
    found = {"machine": provenance("cpu", torch.float32), "rows": rows}
    print(page(found))
    write(__file__, found)


if __name__ == "__main__":
    main()
