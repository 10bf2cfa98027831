"""How datasets are put together for figures and tables: which are of one model, of the same prompts, what is shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from loopprobe.probes.dataset import read_stamp


def model_config(data: xr.Dataset) -> dict[str, Any]:
    """The configuration (model, task, train) of the model that a dataset is of."""
    return {"task": {}, "train": None} | read_stamp(data).config


def without_seed(data: xr.Dataset) -> str:
    seed = (model_config(data)["train"] or {}).get("seed", 0)
    return data.model.item().removesuffix(f"-s{seed}")


def by_name(
    datasets: Sequence[xr.Dataset], name: Callable[[xr.Dataset], str] = without_seed
) -> dict[str, list[xr.Dataset]]:
    """Datasets of the same name, by default that of the model without its seed: the seeds together.

    Models of one name that differ in more than the seed are no seeds of one another: each has its own label.
    """
    named: dict[str, list[xr.Dataset]] = {}
    for data in datasets:
        named.setdefault(name(data), []).append(data)
    groups: dict[str, list[xr.Dataset]] = {}
    for label, members in named.items():
        if len({_but_seed(data) for data in members}) == 1:
            groups[label] = members
        else:
            groups |= {str(data.model.item()): [data] for data in members}
    return groups


def _but_seed(data: xr.Dataset) -> str:
    """The configuration of a model without the seed of its training, as a key."""
    config = model_config(data)
    return json.dumps(config | {"train": (config["train"] or {}) | {"seed": None}}, sort_keys=True)


def task_of(data: xr.Dataset) -> str:
    """In words, with what is special."""
    task = model_config(data)["task"]
    words = task.get("name", "").replace("_", " ").replace("relu", "ReLU").replace("noisy linear regression", "noisy")
    words += f" of depth {task['depth']}" if task.get("depth") else ""
    return words + (", signs" if task.get("labels") == "sign" else "")


def by_prompts(datasets: Sequence[xr.Dataset]) -> dict[str, list[xr.Dataset]]:
    """Datasets that share their prompts, and so the optimum and baselines, by what tells these prompts from the others.

    The words are empty where all share them, else the task, and their size where one task has several.
    """
    groups: dict[tuple[str, str, int, int], list[xr.Dataset]] = {}
    for data in datasets:
        key = (task_of(data), data.attrs["prompts"], data.sizes["point"], _dims(data))
        groups.setdefault(key, []).append(data)
    tasks = [key[0] for key in groups]
    named: dict[str, list[xr.Dataset]] = {}
    for (task, _, points, dims), members in groups.items():
        words = [task] if len(set(tasks)) > 1 else []
        words += [f"{points} points in {dims} dimensions"] if tasks.count(task) > 1 else []
        label = ", ".join(words)
        if label in named:  # the same task and size, drawn otherwise
            label = ", ".join([*words, *(str(data.model.item()) for data in members)])
        named[label] = members
    return named


def _dims(data: xr.Dataset) -> int:
    """Dimensions of the prompts that are not zero."""
    config = model_config(data)
    dims = (config["train"] or {}).get("dims", {}).get("end") or config["model"].get("n_dims", 0)
    return int(dims)


def ignoring(data: xr.Dataset) -> dict[str, float]:
    """The error of who ignores the prompt, by what that is called; empty where that is not known."""
    if "zero_predictor" not in data.attrs:
        return {}
    return {str(data.attrs.get("baseline", "predicting zero")): float(data.attrs["zero_predictor"])}


def few_of(values: list[int], most: int = 12) -> list[int]:
    """All values, or where there are more than ``most``, six of them from the first to the last."""
    if len(values) <= most:
        return values
    return [values[i] for i in np.linspace(0, len(values) - 1, 6).round().astype(int)]


def loops_to_show(data: xr.Dataset, wanted: Sequence[int] | None = None) -> list[int]:
    """A handful of loop counts: those asked for, or 1, 5, as trained, and the last."""
    last = int(data.loop[-1])
    if wanted is None:
        wanted = [1, 5, data.attrs["trained_loops"], last]
    return sorted({int(loop) for loop in wanted if loop in data.loop.values}) or [last]


def baselines_of(datasets: Sequence[xr.Dataset]) -> dict[str, xr.Dataset]:
    """Every baseline by name, with what it answered to the prompts; for models that share them."""
    return {
        str(name): data.sel(baseline=name)
        for data in datasets
        if "baseline" in data.dims
        for name in data.baseline.values
    }
