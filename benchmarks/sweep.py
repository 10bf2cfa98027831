"""Sweeps: what the driver does for many models, and what lies on the disk of each.

    python benchmarks/sweep.py            # a minute

A grid of models that differ in their seed, of the default size. What is timed is the driver's own work (processor
time), without any training: reading the grid, finding out what is there and grouping stacks (plan); the same with every
model trained (resume); and the table at the end (summary). The trained models are copies of a shipped one with their
own configurations. The goal is 10 s for 1,000 models.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import table, write
from rich.console import Console

from loopprobe.show.tables.models import checkpoint_table
from loopprobe.store.record import read_json
from loopprobe.store.shipped import find
from loopprobe.support.provenance import provenance
from loopprobe.training.sweep import Planned, plan, read_grid, stacks

COUNTS = (100, 1000, 10_000)
SHIPPED = "lr-b20-T10"


def seconds(act: Callable[[], Any]) -> tuple[float, Any]:
    """The processor time of a call, and what it returns."""
    started = time.process_time()
    made = act()
    return time.process_time() - started, made


def planned_of(grid: Path, out: Path) -> list[Planned]:
    """What a sweep plans, with its stacks."""
    configs, _ = read_grid(grid)
    planned = plan(configs, out)
    stacks([model for model in planned if model.todo], 16)
    return planned


def summary(planned: list[Planned]) -> None:
    """What a sweep prints at its end."""
    rows = [(model.name, *read_json(model.folder)) for model in planned]
    Console(file=io.StringIO(), width=200).print(checkpoint_table(rows))


def measure(n_models: int, folder: Path) -> dict[str, float]:
    """Seconds of the driver for so many models."""
    grid, out = folder / "grid.toml", folder / "models"
    grid.write_text(f'[[grid]]\n"train.seed" = {list(range(n_models))}\n', encoding="utf-8")
    first, planned = seconds(lambda: planned_of(grid, out))
    record = json.loads((find(SHIPPED) / "config.json").read_text(encoding="utf-8"))
    for model in planned:
        model.folder.mkdir(parents=True)
        own = json.dumps(record | {"config": model.config.to_dict()})
        (model.folder / "config.json").write_text(own, encoding="utf-8")
    again, planned = seconds(lambda: planned_of(grid, out))
    assert all(model.status == "done" for model in planned)
    last, _ = seconds(lambda: summary(planned))
    return {"plan_s": first, "resume_s": again, "summary_s": last}


def files() -> dict[str, int]:
    """The bytes of every file of a trained model."""
    return {path.name: path.stat().st_size for path in sorted(find(SHIPPED).iterdir())}


def page(found: dict[str, Any]) -> str:
    """The tables of what was measured."""
    rows = [(f"{int(n):,}", *(f"{row[name]:.2g}" for name in row)) for n, row in found["rows"].items()]
    of_driver = table(("models", "plan, s", "resume, s", "summary, s"), rows)
    of_files = table(("file of a model", "kB"), [(name, f"{size / 1e3:,.0f}") for name, size in found["files"].items()])
    return f"{of_driver}\n\n{of_files}"


def main() -> None:
    """Measure, show and write."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = {}
    for n_models in COUNTS:
        with tempfile.TemporaryDirectory() as folder:
            rows[str(n_models)] = measure(n_models, Path(folder))
    found = {"machine": provenance("cpu", torch.float32), "rows": rows, "files": files()}
    print(page(found))
    write(__file__, found)


if __name__ == "__main__":
    main()
