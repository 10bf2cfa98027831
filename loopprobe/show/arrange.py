"""Groups of datasets by model and by prompts, and the choice of what figures and tables show."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from loopprobe.config.schema import kind_of
from loopprobe.probes.dataset import read_stamp

T = TypeVar("T")


def model_config(data: xr.Dataset) -> dict[str, Any]:
    """Return the configuration (model, task, train) of the model that a dataset measures."""
    return {"task": {}, "train": None} | read_stamp(data).config


def without_seed(data: xr.Dataset) -> str:
    """Return the name of a model without its seed."""
    seed = (model_config(data)["train"] or {}).get("seed", 0)
    return data.model.item().removesuffix(f"-s{seed}")


def by_name(
    datasets: Sequence[xr.Dataset], name: Callable[[xr.Dataset], str] = without_seed
) -> dict[str, list[xr.Dataset]]:
    """Group datasets by name, by default the name of the model without its seed, so that seeds stand together.

    Models that share a name but differ in more than the seed are not seeds of one model: each gets its own label.
    """
    named: dict[str, list[xr.Dataset]] = {}
    for data in datasets:
        named.setdefault(name(data), []).append(data)
    groups: dict[str, list[xr.Dataset]] = {}
    for label, members in named.items():
        if len({_config_without_seed(data) for data in members}) == 1:
            groups[label] = members
        else:
            groups |= {str(data.model.item()): [data] for data in members}
    return groups


def _config_without_seed(data: xr.Dataset) -> str:
    """Return the configuration of a model without the seed of its training, as a key."""
    return json.dumps(kind_of(model_config(data)), sort_keys=True)


def task_of(data: xr.Dataset) -> str:
    """Describe the task of a model in words, with its depth and its kind of labels."""
    task = model_config(data)["task"]
    words = task.get("name", "").replace("_", " ").replace("relu", "ReLU").replace("noisy linear regression", "noisy")
    words += f" of depth {task['depth']}" if task.get("depth") else ""
    return words + (", signs" if task.get("labels") == "sign" else "")


def by_prompts(datasets: Sequence[xr.Dataset]) -> dict[str, list[xr.Dataset]]:
    """Group datasets that share their prompts, and so the optimum and the baselines.

    The key of a group tells its prompts from the others. It is empty where all datasets share them. Otherwise it names
    the task, and the size of the prompts where one task has several.
    """
    groups: dict[tuple[str, str, int, int], list[xr.Dataset]] = {}
    for data in datasets:
        key = (task_of(data), data.attrs["prompts"], data.sizes["point"], _count_dims(data))
        groups.setdefault(key, []).append(data)
    tasks = [key[0] for key in groups]
    named: dict[str, list[xr.Dataset]] = {}
    for (task, _, points, dims), members in groups.items():
        words = [task] if len(set(tasks)) > 1 else []
        words += [f"{points} points in {dims} dimensions"] if tasks.count(task) > 1 else []
        label = ", ".join(words)
        if label in named:  # the task and size are the same, but the prompts differ
            label = ", ".join([*words, *(str(data.model.item()) for data in members)])
        named[label] = members
    return named


def _count_dims(data: xr.Dataset) -> int:
    """Return the number of dimensions of the prompts that are not zero."""
    config = model_config(data)
    dims = (config["train"] or {}).get("dims", {}).get("end") or config["model"].get("n_dims", 0)
    return int(dims)


def ignoring(data: xr.Dataset) -> dict[str, float]:
    """Return the error of a predictor that ignores the prompt, by its name; empty where it is not known."""
    if "zero_predictor" not in data.attrs:
        return {}
    return {str(data.attrs.get("baseline", "predicting zero")): float(data.attrs["zero_predictor"])}


def few_of(values: list[int], most: int = 12) -> list[int]:
    """Return all values, or six of them from the first to the last where there are more than ``most``."""
    return values if len(values) <= most else evenly(values, 6)


def evenly(values: Sequence[T], most: int) -> list[T]:
    """Return some of the values, from the first to the last, where there are more than ``most``."""
    chosen = np.unique(np.linspace(0, len(values) - 1, min(most, len(values))).round().astype(int))
    return [values[i] for i in chosen]


def told_to_show(data: xr.Dataset) -> list[int]:
    """Return the loop counts that a verb was told to show (``--loops 10,20,50``); empty where it was told none."""
    return [int(loop) for loop in np.atleast_1d(data.attrs.get("shown_loops", []))]


def loops_to_show(data: xr.Dataset, wanted: Sequence[int] | None = None) -> list[int]:
    """Return a few loop counts: those in ``wanted``, those that a verb was told to show, or 1, 5, trained and last."""
    last = int(data.loop[-1])
    if wanted is None:
        wanted = told_to_show(data) or [1, 5, data.attrs["trained_loops"], last]
    return sorted({int(loop) for loop in wanted if loop in data.loop.values}) or [last]


def ends_to_show(data: xr.Dataset) -> list[int]:
    """Return the loop counts that a verb was told to show, or the trained one and the last."""
    return loops_to_show(data, told_to_show(data) or [int(data.attrs["trained_loops"]), int(data.loop[-1])])


def baselines_of(datasets: Sequence[xr.Dataset]) -> dict[str, xr.Dataset]:
    """Return every baseline by name, with its answers to the prompts, for models that share the prompts."""
    return {
        str(name): data.sel(baseline=name)
        for data in datasets
        if "baseline" in data.dims
        for name in data.baseline.values
    }


def answer_of(data: xr.Dataset) -> str:
    """Say in words what a dataset of the attribute probe splits; earlier ones did not, and split the prediction."""
    return str(data.attrs.get("answer", "the prediction"))


def largest_edges(data: xr.Dataset, most: int) -> list[dict[str, Any]]:
    """Return the edges with the largest direct effects, the largest first; see ``probes.edges``.

    Args:
        data: a dataset of the edges probe.
        most: the most edges.
    """
    sizes = np.abs(data.share.fillna(0)).values
    order = np.argsort(-sizes, axis=None, kind="stable")[:most]
    return [_edge(data, place) for place in zip(*np.unravel_index(order, sizes.shape), strict=True) if sizes[place]]


def circuit_edges(data: xr.Dataset, most: int) -> list[dict[str, Any]]:
    """Return the edges of a circuit, the largest first; see ``probes.circuit``."""
    return largest_edges(data.assign(share=data.share.where(data.circuit.astype(bool))), most)


def estimates_that_fail(data: xr.Dataset) -> list[dict[str, Any]]:
    """Return the edges whose estimate lies outside the interval of the exact effect, the worst first."""
    outside = (data.share < data.exact_low) | (data.share > data.exact_high)
    outside &= data.chosen.isin(["largest", "random"])
    off = [_edge(data, tuple(place)) for place in np.argwhere(outside.values)]
    return sorted(off, key=lambda edge: -abs(edge["share"] - edge["exact"]))


def edge_name(edge: dict[str, Any]) -> str:
    """Return an edge in words, such as ``head 0.1 (loop 3) → head 0.2 v (loop 4)``."""
    return f"{edge['sender']} (loop {edge['from_loop']}) → {edge['receiver']} (loop {edge['to_loop']})"


def _edge(data: xr.Dataset, place: tuple[Any, ...]) -> dict[str, Any]:
    one = data.isel(dict(zip(data.share.dims, map(int, place), strict=True)))
    names = ("share", "share_low", "share_high", "exact", "exact_low", "exact_high")
    numbers = {name: float(one[name]) for name in names}
    numbers["effect"] = numbers["share"] if np.isnan(numbers["exact"]) else numbers["exact"]  # the best that is known
    loops = {name: int(one[name]) for name in ("from_loop", "to_loop")}
    return loops | numbers | {name: str(one[name].item()) for name in ("sender", "receiver")}
