"""Metrics in wandb, offline: metrics.jsonl stays the truth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from loopprobe.support.storage import claim


def wandb_offline(folder: Path) -> Callable[[dict[str, Any]], None]:
    """A sink for rows of metrics that writes an offline wandb run into the folder; nothing is sent."""
    run: Any = None

    def log(row: dict[str, Any]) -> None:
        nonlocal run
        if run is None:  # at the first row: until then the folder must be empty
            import wandb

            claim(folder, "wandb")
            run = wandb.init(mode="offline", dir=folder, project="loopprobe", name=folder.name)
        run.log({key: value for key, value in row.items() if key != "step"}, step=row["step"])

    return log
