"""Offline metrics in wandb, as a copy of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from loopprobe.support.storage import claim


def wandb_offline(folder: Path) -> Callable[[dict[str, Any]], None]:
    """Return a function that writes rows of metrics to an offline wandb run in the folder; nothing is sent."""
    run: Any = None

    def log(row: dict[str, Any]) -> None:
        nonlocal run
        if run is None:  # starts at the first row, because the folder must be empty until then
            import wandb

            claim(folder, "wandb")
            run = wandb.init(mode="offline", dir=folder, project="loopprobe", name=folder.name)
        run.log({key: value for key, value in row.items() if key != "step"}, step=row["step"])

    return log
