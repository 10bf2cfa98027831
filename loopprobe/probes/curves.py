"""The course of a training: loss and error against the step, from its metrics.jsonl."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr

from loopprobe.config.strict import configuration
from loopprobe.errors import LoopprobeError
from loopprobe.probes.dataset import stamp
from loopprobe.probes.declaration import Probe, Shown
from loopprobe.store.checkpoint import METRICS, Checkpoint
from loopprobe.store.shipped import whole_file
from loopprobe.tasks import PromptBatch
from loopprobe.types import Progress


@configuration
class CurvesConfig:
    """No options: the whole training is shown."""


def run(
    checkpoint: Checkpoint, prompts: PromptBatch, config: CurvesConfig, progress: Progress | None = None
) -> xr.Dataset:
    """Read the rows of metrics.jsonl.

    Returns:
        A dataset over ``step``: ``loss`` (mean squared error over points and window, of the training prompts),
        ``error`` (at the query, divided by the active dimensions), ``dims``, ``points``, ``loops`` and ``seconds``; of
        a token task ``loss`` and ``error`` in nats, ``accuracy``, ``length``, ``loops`` and ``seconds``.
    """
    check(checkpoint, config, prompts)
    rows = _rows(checkpoint)
    columns: dict[str, Any] = {
        name: ("step", np.array([row[name] for row in rows])) for name in rows[0] if name != "step"
    }
    data = xr.Dataset(
        columns,
        coords={"step": [row["step"] for row in rows], "model": checkpoint.label},
    )
    return stamp(data, "curves", checkpoint, prompts, config)


def check(checkpoint: Checkpoint, config: CurvesConfig, prompts: PromptBatch) -> None:
    """Raise LoopprobeError where the training is not recorded."""
    _rows(checkpoint)


def _rows(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    path = checkpoint.folder and whole_file(checkpoint.folder / METRICS)
    lines = path.read_text(encoding="utf-8").splitlines() if path and path.exists() else []
    if not lines:
        raise LoopprobeError(f"{checkpoint.label} has no {METRICS}: its training is not known; give another checkpoint")
    return [json.loads(line) for line in lines]


PROBE = Probe(
    "curves",
    CurvesConfig,
    run,
    check,
    Shown(compare_figure="curves:curves_figure", compare_table="study:curves_table", panels=True, compared=True),
)
