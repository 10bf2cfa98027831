"""Paired differences: what one dataset measures minus what another does, prompt by prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from loopprobe.errors import LoopprobeError
from loopprobe.probes.dataset import measure_words, read_stamp, with_ends
from loopprobe.probes.declaration import Quantity
from loopprobe.probes.labels import labels_of, model_labels
from loopprobe.probes.registry import PROBES
from loopprobe.support.statistics import bootstrap_ratio, median_interval, share_difference_interval

DIFFERENCE = "difference"  # in place of the name of a probe


def difference(first: xr.Dataset, second: xr.Dataset) -> xr.Dataset:
    """Subtract what the second dataset measures from what the first does, prompt by prompt.

    Both saw the same prompts, so what prompts have in common drops out, and the interval is that of the differences:
    order statistics around a median (``median_interval``), two shares that hold together
    (``share_difference_interval``), or a bootstrap that resamples the prompts of both alike (``bootstrap_ratio``).

    Args:
        first: a dataset of any probe that measures something of every prompt.
        second: of the same probe and prompts, in another mode, of another model, by another method or the like. What it
            measures must be the same, in the same unit.

    Returns:
        A dataset with the places that both have. The variable that the probe is compared by (``median`` of most,
        ``share`` of attribute and edges, the name of the site of patch) holds the estimate of the differences, and
        ``_low`` and ``_high`` after its name the ends of its 95 % interval. ``difference``, with the dim ``example``
        besides, holds the difference of every prompt; it is missing where the estimate is no summary of such. Numbers
        are in the unit of the datasets. ``attrs["pair"]`` says what was subtracted from what.

    Raises:
        LoopprobeError: the datasets are of different probes, prompts or measures, hold no number a prompt, or have no
            place in common.
    """
    labels = labels_of([first, second])
    quantity = quantity_of([first, second])
    if why := unpaired([first, second], quantity):
        raise LoopprobeError(f"{labels[0]} and {labels[1]} cannot be compared prompt by prompt: {why}")
    parts = [_samples(data, quantity) for data in without_single([first, second], quantity)]
    one, other = xr.align(*(part for part, _ in parts), join="inner")
    if not one.size:
        raise LoopprobeError(
            f"{labels[0]} and {labels[1]} have no {' and '.join(_apart(*(part for part, _ in parts)))} in common: run "
            "both with the same"
        )
    other = other.transpose(*one.dims)
    dims = tuple(str(dim) for dim in one.dims if dim != "example")
    variables: dict[str, Any] = {}
    if quantity.statistic == "ratio":
        (_, whole), (_, of_other) = parts
        estimate = bootstrap_ratio(one.values * whole, whole**2, minus=(other.values * of_other, of_other**2))
    else:
        variables[DIFFERENCE] = (one - other).transpose(*dims, "example")
        interval_of = median_interval if quantity.statistic == "median" else share_difference_interval
        estimate = interval_of(variables[DIFFERENCE].values)
    variables |= with_ends(quantity.name, dims, estimate)
    pair = f"{labels[0]} minus {labels[1]}"
    models = list(dict.fromkeys(model_labels([first, second])))
    coords = {name: one[name] for name in one.coords if "example" not in one[name].dims}
    data = xr.Dataset(variables, coords | {"model": " minus ".join(models)}, _attributes(first, second, pair))
    for name in data:
        data[name].attrs["units"] = unit_of(first, quantity)
    return data.assign_coords(source=json.dumps(data.attrs, default=str))


def pairs_of(datasets: Sequence[xr.Dataset]) -> list[tuple[int, int]]:
    """Return which of several datasets are compared: within each model where one has several, else with the first."""
    labels = model_labels(datasets)
    first = [labels.index(label) for label in labels] if len(set(labels)) < len(labels) else [0] * len(labels)
    return [(reference, i) for i, reference in enumerate(first) if i != reference]


def unpaired(datasets: Sequence[xr.Dataset], quantity: Quantity) -> str:
    """Return why datasets cannot be compared prompt by prompt; empty where they can."""
    first, *others = datasets
    probe = probe_of(first)
    if first.attrs["probe"] == DIFFERENCE:
        return "they are differences already"
    if not quantity.samples or not all(quantity.samples in data for data in datasets):
        return f"a dataset of {probe} holds no number for each prompt"
    measured = [(data.attrs.get("measure", "error"), unit_of(data, quantity)) for data in datasets]
    if other := next((one for one in measured[1:] if one != measured[0]), None):
        names = [name for name, _ in (measured[0], other)]
        if names[0] == names[1]:
            names = [unit for _, unit in (measured[0], other)]
        return f"one measures {names[0]} and the other {names[1]}"
    scales = [data.attrs.get("error_scale", first.attrs.get("error_scale")) for data in datasets]
    other = next((one for one in scales[1:] if one != scales[0]), None)
    if other and first.attrs.get("measure") != "answer":  # which is in the units of labels
        return f"errors are divided by {scales[0]:g} in one and by {other:g} in the other: give Prompts one scale"
    if not all(_share_prompts(first, other) for other in others):
        return "their prompts differ, so take the same number of them and one seed"
    return ""


def _share_prompts(first: xr.Dataset, second: xr.Dataset) -> bool:
    """Return whether two datasets are of the same prompts; files of earlier versions have no digest of theirs."""
    digests = [data.attrs.get("prompts_digest") for data in (first, second)]
    if None not in digests:
        return digests[0] == digests[1] and first.sizes.get("example") == second.sizes.get("example")
    one, other = (read_stamp(data) for data in (first, second))
    sizes = [[stamp.model.get(name) for name in ("n_dims", "n_points")] for stamp in (one, other)]
    return bool(one.prompts) and (one.prompts, sizes[0]) == (other.prompts, sizes[1])


def probe_of(data: xr.Dataset) -> str:
    """Return the probe whose numbers a dataset holds, or holds differences of."""
    return str(data.attrs["of"] if data.attrs["probe"] == DIFFERENCE else data.attrs["probe"])


def quantity_of(datasets: Sequence[xr.Dataset]) -> Quantity:
    """Return what datasets of one probe are compared by.

    Raises:
        LoopprobeError: the datasets are of several probes, of a probe that has nothing to compare by, or of options
            whose numbers cannot stand beside one another.
    """
    probes = sorted({probe_of(data) for data in datasets})
    if len(probes) > 1:
        raise LoopprobeError(f"the datasets are of several probes ({', '.join(probes)}): draw them one by one")
    stamps = [read_stamp(data) for data in datasets]
    sites = [stamp.options.get("sites", ()) for stamp in stamps]
    shared = [site for site in sites[0] if all(site in other for other in sites)]
    for quantity in PROBES[probes[0]].shown.quantities:
        if "{site}" in quantity.name:
            if not shared:
                raise LoopprobeError(f"the datasets of {probes[0]} share no site: give such of one site")
            names = {key: getattr(quantity, key).format(site=shared[0]) for key in ("name", "samples")}
            quantity = replace(quantity, **names)
        if all(quantity.name in data for data in datasets):
            break
    else:
        raise LoopprobeError(f"datasets of {probes[0]} cannot stand in one figure or table: show them one by one")
    for option in quantity.same:
        if len(values := list(dict.fromkeys(str(stamp.options[option]) for stamp in stamps))) > 1:
            raise LoopprobeError(
                f"{option} is {' and '.join(values)} in these datasets, whose numbers cannot stand beside one another: "
                f"run them with the same {option}"
            )
    first, *others = ({*data[quantity.name].dims} for data in datasets)
    for dims in others:
        if unlike := sorted(map(str, first ^ dims)):
            raise LoopprobeError(
                f"one dataset of {probes[0]} has the dim {unlike[0]!r} and another has not: run them with the same "
                "options"
            )
    return quantity


def without_single(datasets: Sequence[xr.Dataset], quantity: Quantity) -> list[xr.Dataset]:
    """Drop dims along which every dataset has one place and not the same one, as two methods of ablation: labels tell.

    Dims along an axis stay.
    """
    dims = [dim for dim in datasets[0][quantity.name].dims if dim not in (*quantity.along, quantity.across)]
    single = [dim for dim in dims if dim in datasets[0].coords and all(data.sizes[dim] == 1 for data in datasets)]
    unlike = [dim for dim in single if len({data[dim].item() for data in datasets}) > 1]
    return [data.squeeze(unlike, drop=True) for data in datasets]


def unit_of(data: xr.Dataset, quantity: Quantity) -> str:
    """Return what the numbers of a dataset count in."""
    stamp = read_stamp(data)
    units = data[quantity.name].attrs.get("units")
    if data.attrs["probe"] == DIFFERENCE:
        return str(units)
    unit = measure_words(data) if "measure" in data.attrs else units or stamp.query_unit
    return quantity.unit.format(unit=unit, step_unit=stamp.step_unit) or str(unit)


def ends_of(data: xr.Dataset, quantity: Quantity) -> tuple[str, str] | None:
    """Return the variables of an estimate's interval; None where a dataset has none."""
    names = f"{quantity.name}_low", f"{quantity.name}_high"
    if quantity.ends and data.attrs["probe"] != DIFFERENCE:
        names = quantity.ends[0], quantity.ends[1]
    return names if all(name in data for name in names) else None


def with_places(values: xr.DataArray) -> xr.DataArray:
    """Name the places along every dim but the prompts: a dim that only says in words what stands there is put in words.

    The rules of early exit, for example, become ``state 0.1``.
    """
    for dim in values.dims:
        if dim != "example" and dim not in values.indexes:
            said = [coord.values for coord in values.coords.values() if coord.dims == (dim,)]
            rows = zip(*said, strict=True) if said else ((i,) for i in range(values.sizes[dim]))
            words = [" ".join(f"{word:g}" if isinstance(word, float) else str(word) for word in row) for row in rows]
            values = values.reset_coords(drop=True).assign_coords({dim: words})
    return values.reset_coords(drop=True)


def _samples(data: xr.Dataset, quantity: Quantity) -> tuple[xr.DataArray, np.ndarray]:
    """Return the numbers of every prompt, and of a ratio what they are a part of, prompt by prompt."""
    samples = with_places(data[quantity.samples])
    if quantity.statistic == "share":
        samples = samples.astype(float)
    wholes = [data[name].values.astype(np.float64) for name in quantity.wholes] or [np.ones(data.sizes["example"])]
    return samples, wholes[0] - wholes[1] if len(wholes) == 2 else wholes[0]


def _apart(one: xr.DataArray, other: xr.DataArray) -> list[str]:
    """Return the dims along which two arrays have no place in common."""
    return [str(dim) for dim in one.dims if dim in one.coords and not set(one[dim].values) & set(other[dim].values)]


def _attributes(first: xr.Dataset, second: xr.Dataset, pair: str) -> dict[str, Any]:
    """Return the record of a difference: that of the first dataset, and the record of what was subtracted from it."""
    kept = ("checkpoint", "config", "prompts", "provenance", "trained_loops", "units", "measure", "measure_unit",
            "token_texts", "prompts_digest", "iteration")  # fmt: skip
    same = {key: first.attrs[key] for key in kept if key in first.attrs}
    subtracted = {key: second.attrs[key] for key in kept[:4]}
    words = f"{pair}, prompt by prompt"
    return same | {
        "probe": DIFFERENCE, "of": probe_of(first), "pair": pair, "description": words,
        "subtracted": json.dumps(subtracted, default=str),
    }  # fmt: skip
