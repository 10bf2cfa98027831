"""Labels that tell datasets of one probe apart: by model, by options such as mode and measure, or by prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from loopprobe.errors import LoopprobeError
from loopprobe.probes.dataset import read_stamp, unique_labels

PLAIN = ("model", "mode", "measure", "direction")  # whose values say by themselves what they are
OF_PROMPTS = {"held_out_seed": "prompts of seed", "n_prompts": "number of prompts"}


def model_labels(datasets: Sequence[xr.Dataset]) -> list[str]:
    """Return what the model of each dataset is called, so that no two checkpoints share a name.

    Raises:
        LoopprobeError: a dataset is of no probe.
    """
    names = {data.attrs["checkpoint"]: read_stamp(data).checkpoint for data in datasets}
    labels = [str(data.model.item()) for data in datasets]
    owners: dict[str, set[str]] = {}
    for label, data in zip(labels, datasets, strict=True):
        owners.setdefault(label.casefold(), set()).add(data.attrs["checkpoint"])
    if any(len(checkpoints) > 1 for checkpoints in owners.values()):
        new = dict(zip(names, unique_labels([name or "model" for name in names.values()]), strict=True))
        labels = [new[data.attrs["checkpoint"]] for data in datasets]
    return labels


def labels_of(datasets: Sequence[xr.Dataset]) -> list[str]:
    """Return a label for each dataset, made of what differs between them and of nothing else; a single one's is empty.

    The lengths of their dimensions, as n and loops of the mask probe, are told only where nothing else differs.

    Args:
        datasets: of one probe.

    Raises:
        LoopprobeError: two datasets do not differ, or one is of no probe.
    """
    if len(datasets) == 1:
        return [""]
    told = [_fields(data, label) for data, label in zip(datasets, model_labels(datasets), strict=True)]
    differing = [key for key in dict.fromkeys(key for fields in told for key in fields) if _differs(told, key)]
    dims = {str(dim) for data in datasets for dim in data.dims}
    of_dims = [key for key in differing if key in dims or key.removesuffix("s") in dims]
    for keys in ([key for key in differing if key not in of_dims], differing):
        labels = [", ".join(_words(key, fields.get(key)) for key in keys) for fields in told]
        if len(set(labels)) == len(labels):
            return labels
    twice = next(label for i, label in enumerate(labels) if label in labels[:i]) or told[0]["model"]
    raise LoopprobeError(f"{twice} comes twice: give each dataset once, or a dict of them by labels of your own")


def differ_in_model_alone(datasets: Sequence[xr.Dataset]) -> bool:
    """Return whether nothing but the model, and what follows from its task, tells the datasets apart."""
    told = [_fields(data, label) for data, label in zip(datasets, model_labels(datasets), strict=True)]
    distinct = len({fields["model"] for fields in told}) == len(told)
    return distinct and not any(_differs(told, key) for fields in told for key in fields if key != "model")


def _fields(data: xr.Dataset, label: str) -> dict[str, Any]:
    """Return everything that may tell a dataset from others, by name, the model first.

    What prompts are by the task of the model is not told: the model tells it.
    """
    stamp = read_stamp(data)
    of_task = {"task", *stamp.config.get("task", {})}
    prompts = {key: value for key, value in stamp.prompts.items() if key not in of_task and not isinstance(value, list)}
    options = stamp.options | ({"measure": data.attrs["measure"]} if "measure" in data.attrs else {})
    between = {}
    if "pair" in data.attrs:  # of a paired difference, which says in what its two sides differ
        between, other = {"pair": data.attrs["pair"]}, json.loads(json.loads(data.attrs["subtracted"])["config"])
        options = {key: value for key, value in options.items() if other.get(key, value) == value}
    return {"model": label} | between | options | prompts | {"precision": stamp.provenance.get("dtype")}


def _differs(told: Sequence[Mapping[str, Any]], key: str) -> bool:
    return any(fields.get(key) != told[0].get(key) for fields in told[1:])


def _words(key: str, value: Any) -> str:
    """Say what a field of a dataset is: ``first``, ``fill zero``, ``once``, ``prompts of seed 1``."""
    name = OF_PROMPTS.get(key, key.replace("_", " "))
    if isinstance(value, bool):
        return name if value else f"not {name}"
    if value is None:
        return f"default {name}"
    words = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return words if key in PLAIN or key == "pair" else f"{name} {words}"
