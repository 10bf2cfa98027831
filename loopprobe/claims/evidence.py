"""What claims are decided on: the datasets of the saved questions, by kind of model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float
from numpy import ndarray

from loopprobe.config import TrainConfig
from loopprobe.verdicts import Finding

Evidence = Mapping[str, Sequence[xr.Dataset]]
Claim = tuple[str, str, Callable[[Evidence], Iterator[Finding]]]  # section, words, and what decides
EQUAL = 1.25  # two errors are about equal within this factor
MORE = 0.01  # a share is larger when it is so by a hundredth at least


@dataclass(frozen=True, order=True)
class Kind:
    """A model without its seed."""

    task: str
    layers: int
    loops: int
    window: int
    grown: bool
    steps: int
    loss: str = TrainConfig.loss

    def __str__(self) -> str:
        parts = ["noisy"] if self.task.startswith("noisy") else []
        parts += [f"L {self.layers}"] if self.layers > 1 else []
        parts += ["b grown"] if self.grown else [f"b {self.loops}"]
        parts += [f"T {self.window}"]
        parts += [f"{self.steps} steps"] if self.steps != TrainConfig.steps else []
        parts += [f"{self.loss} loss"] if self.loss != TrainConfig.loss else []
        return ", ".join(parts)


def kinds(datasets: Sequence[xr.Dataset]) -> dict[Kind, list[xr.Dataset]]:
    """Datasets by kind, seeds together and in order."""
    found: dict[Kind, list[tuple[int, xr.Dataset]]] = {}
    for data in datasets:
        cfg = json.loads(data.attrs["checkpoint"])["config"]
        train: dict[str, Any] = cfg["train"] or {}
        kind = Kind(
            cfg["task"]["name"], cfg["model"]["n_layers"], cfg["model"]["n_loops"], train.get("loop_window", 0),
            train.get("loops", {}).get("kind", "constant") != "constant", train.get("steps", 0),
            train.get("loss", TrainConfig.loss),
        )  # fmt: skip
        found.setdefault(kind, []).append((train.get("seed", 0), data))
    return {
        kind: [data for _, data in sorted(pairs, key=lambda pair: pair[0])] for kind, pairs in sorted(found.items())
    }


def far(datasets: Sequence[xr.Dataset], loop: int | None = None) -> Float[ndarray, "seed example"]:
    """Query errors after ``loop`` loops; None: the last."""
    at = [data.error.isel(loop=-1) if loop is None else data.error.sel(loop=loop) for data in datasets]
    return np.stack([errors.values for errors in at])


def by_loops(found: Mapping[Kind, Any], window: int) -> dict[int, Kind]:
    """Kinds of one study window T, by b: a window above the loop count is the loop count."""
    return {k.loops: k for k in found if k.loops > 1 and not k.grown and k.window == min(window, k.loops)}
