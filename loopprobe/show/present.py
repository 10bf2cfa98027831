"""How the answer of each probe is shown: its tables and its figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from rich.table import Table

from loopprobe.errors import LoopprobeError
from loopprobe.probes.dataset import read_stamp, unique_labels
from loopprobe.show import tables
from loopprobe.show.figures.align import align_figures
from loopprobe.show.figures.attention import attention_figures
from loopprobe.show.figures.attribute import attribute_figures
from loopprobe.show.figures.compare import accuracy_figure, compare_figure
from loopprobe.show.figures.converge import converge_figure
from loopprobe.show.figures.curves import curves_figure
from loopprobe.show.figures.decode import decode_figures
from loopprobe.show.figures.folds import folds_figure
from loopprobe.show.figures.lens import lens_figures
from loopprobe.show.figures.longrun import exit_figures, fixed_points_figures
from loopprobe.show.figures.mask import mask_figure, mask_models_figure
from loopprobe.show.figures.mask_modes import mask_difference_figure, mask_modes_figure
from loopprobe.show.figures.panels import By
from loopprobe.show.figures.patch import patch_figures
from loopprobe.show.figures.paths import paths_figures, recover_figures
from loopprobe.show.figures.shift import shift_curves_figure, shift_figure
from loopprobe.show.figures.states import limits_models_figure, states_figures

# Probes whose models stand together in one figure and table, and those whose models are shown one by one.
_TOGETHER: dict[str, tuple[Callable[..., go.Figure], Callable[..., Table]]] = {
    "compare": (compare_figure, tables.compare_table),
    "converge": (converge_figure, tables.converge_table),
    "curves": (curves_figure, tables.curves_table),
    "folds": (lambda datasets, *title_by: folds_figure(datasets, *title_by[:1]), tables.folds_table),
    "mask": (mask_models_figure, tables.mask_models_table),
    "shift": (lambda datasets, *title_by: shift_figure(datasets, *title_by[:1]), tables.shift_table),
}
_ONE_BY_ONE: dict[str, tuple[Callable[[xr.Dataset], dict[str, go.Figure]], Callable[[xr.Dataset], Table]]] = {
    "align": (align_figures, tables.align_table),
    "attention": (attention_figures, tables.attention_table),
    "attribute": (attribute_figures, tables.attribute_table),
    "decode": (decode_figures, tables.decode_table),
    "exit": (exit_figures, tables.exit_table),
    "fixed_points": (fixed_points_figures, tables.fixed_points_table),
    "lens": (lens_figures, tables.lens_table),
    "mask": (lambda data: {"mask": mask_figure(data)}, tables.mask_table),
    "mask_difference": (lambda data: {"mask-difference": mask_difference_figure(data)}, tables.mask_difference_table),
    "patch": (patch_figures, tables.patch_table),
    "paths": (paths_figures, tables.paths_table),
    "recover": (recover_figures, tables.recover_table),
}


def figures(datasets: Sequence[xr.Dataset]) -> dict[str, go.Figure]:
    """All figures of what a probe made, by name: model by model where the probe shows them so, else one of all.

    Args:
        datasets: of one probe, one a model; of the mask probe also one a model and mode, whose first and last then
            stand in one figure with their paired difference.

    Raises:
        LoopprobeError: no probe made them, or several did, or a model comes twice.
    """
    datasets = _labelled(datasets)
    probe = _probe(datasets[0])
    made = {} if probe in _ONE_BY_ONE else {probe: _TOGETHER[probe][0](datasets)}
    if probe == "shift":
        made["shift-curves"] = shift_curves_figure(datasets)
    if probe == "compare" and (signs := [data for data in datasets if "accuracy" in data]):
        made["compare-accuracy"] = accuracy_figure(signs)
    if len(datasets) > 1 and (followed := [data for data in datasets if "limit" in data]):
        made["converge-limits"] = limits_models_figure(followed, "models compared")
    models = _by_model(datasets)
    for label, members in models.items():
        own = {}
        if len(members) == 2:
            own = {"mask": mask_modes_figure(*members)}
        elif probe in _ONE_BY_ONE:
            own = _ONE_BY_ONE[probe][0](members[0])
        elif "relative_step" in members[0]:  # converge followed states
            own = states_figures(members[0])
        made |= {name if len(models) == 1 else f"{name}-{label}": figure for name, figure in own.items()}
    return made


def figure(data: xr.Dataset | Sequence[xr.Dataset]) -> go.Figure:
    """The first figure of what a probe made: what a notebook shows.

    Args:
        data: a dataset, or several of one probe as a list, or joined by ``xr.concat`` along ``model`` or ``mode``.

    Raises:
        LoopprobeError: no probe made it, or nothing of it can be drawn.
    """
    datasets = [part for one in ([data] if isinstance(data, xr.Dataset) else data) for part in _parts(one)]
    if not datasets:
        raise LoopprobeError("there is no dataset to draw: give what a probe of loopprobe returned")
    try:
        drawn = next(iter(figures(datasets).values()))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise LoopprobeError(
            f"this dataset cannot be drawn ({type(error).__name__}: {error}): give it as the probe returned it, or "
            "several of them as a list"
        ) from error
    if not any(_has_data(trace) for trace in drawn.data):
        raise LoopprobeError("this dataset holds no number that can be drawn: all are missing or infinite")
    return drawn


def _has_data(trace: Any) -> bool:
    """Whether a trace shows at least one number."""
    values = getattr(trace, "z", None) if trace.type == "heatmap" else getattr(trace, "y", None)
    return values is not None and any(not isinstance(v, float) or np.isfinite(v) for v in np.ravel(values).tolist())


def _parts(data: xr.Dataset) -> list[xr.Dataset]:
    """What was joined along ``model`` or ``mode``, one by one, each with the attributes that it had."""
    if not isinstance(data, xr.Dataset):
        raise LoopprobeError(f"a {type(data).__name__} is no dataset: give what a probe of loopprobe returned")
    joined = [dim for dim in ("mode", "model") if dim in data.dims]
    if not joined:
        return [data]
    if len(joined) > 1 or "source" not in data or data.source.dims != (joined[0],):
        raise LoopprobeError(
            f"the datasets joined along {' and '.join(joined)} have lost what tells them apart: give them as a list"
        )
    parts = []
    for i in range(data.sizes[joined[0]]):
        part = data.isel({joined[0]: i})
        part.attrs = json.loads(part.source.item())
        if joined == ["mode"]:
            part = part.drop_vars("mode", errors="ignore")
        parts.append(part)
    return parts


def _labelled(datasets: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    """The same datasets, in which two checkpoints never have one label.

    Raises:
        LoopprobeError: they are of several probes, or of one model and the same options.
    """
    if len(probes := {_probe(data) for data in datasets}) > 1:
        raise LoopprobeError(f"the datasets are of several probes ({', '.join(sorted(probes))}): draw them one by one")
    names = {data.attrs["checkpoint"]: read_stamp(data).checkpoint for data in datasets}
    labels = [str(data.model.item()) for data in datasets]
    owners: dict[str, set[str]] = {}
    for label, data in zip(labels, datasets, strict=True):
        owners.setdefault(label.casefold(), set()).add(data.attrs["checkpoint"])
    if any(len(checkpoints) > 1 for checkpoints in owners.values()):
        new = dict(zip(names, unique_labels([name or "model" for name in names.values()]), strict=True))
        labels = [new[data.attrs["checkpoint"]] for data in datasets]
    keys = [(label, _mode(data)) for label, data in zip(labels, datasets, strict=True)]
    if twice := [label for i, (label, mode) in enumerate(keys) if (label, mode) in keys[:i]]:
        raise LoopprobeError(f"{twice[0]} comes twice: give one dataset a model (of masks, one first and one last)")
    return [data.assign_coords(model=label) for label, data in zip(labels, datasets, strict=True)]


def _mode(data: xr.Dataset) -> str:
    """First or last, of a mask."""
    stamp = read_stamp(data)
    return str(stamp.options["mode"]) if stamp.probe == "mask" else ""


def _by_model(datasets: Sequence[xr.Dataset]) -> dict[str, list[xr.Dataset]]:
    """Datasets by the label of their model; the two modes of masks in their order."""
    models: dict[str, list[xr.Dataset]] = {}
    for data in sorted(datasets, key=_mode):
        models.setdefault(str(data.model.item()), []).append(data)
    return {str(data.model.item()): models[str(data.model.item())] for data in datasets}


def table(data: xr.Dataset) -> Table:
    """The table of one dataset."""
    probe = _probe(data)
    return _ONE_BY_ONE[probe][1](data) if probe in _ONE_BY_ONE else _TOGETHER[probe][1]([data])


def tables_for(datasets: Sequence[xr.Dataset], loops: Sequence[int] | None = None) -> list[Table]:
    """What a verb prints: as ``figures``, one table of all models where the probe compares them, else one a model.

    Args:
        datasets: as for ``figures``.
        loops: loop counts to show, where the table has columns for them; None: some.
    """
    datasets = _labelled(datasets)
    probe = _probe(datasets[0])
    if probe == "mask":
        return [_mask_table(members, loops) for members in _by_model(datasets).values()]
    if probe == "converge":
        followed = [tables.limits_table(data) for data in datasets if "limit" in data]
        return [tables.converge_table(datasets, loops), *followed]
    return [table(data) for data in datasets] if probe in _ONE_BY_ONE else [_TOGETHER[probe][1](datasets)]


def _mask_table(members: Sequence[xr.Dataset], loops: Sequence[int] | None) -> Table:
    """The table of a model's mask, or of its two modes."""
    if len(members) == 2:
        return tables.mask_modes_table(members[0], members[1], loops)
    return tables.mask_table(members[0], loops)


def findings(datasets: Sequence[xr.Dataset]) -> list[str]:
    """What a verb says below its tables, a sentence a model."""
    if _probe(datasets[0]) != "mask":
        return []
    return [
        tables.mask_modes_finding(*members) if len(members) == 2 else tables.mask_finding(members[0])
        for members in _by_model(_labelled(datasets)).values()
    ]


def figures_of(probe: str, datasets: Sequence[xr.Dataset], title: str, by: By = "window") -> dict[str, go.Figure]:
    """The figures of a saved question: one of all models where the probe compares them, else those of each."""
    if probe not in _TOGETHER:
        return {f"figure-{name}": made for name, made in figures(datasets).items()}
    made = {"figure": _TOGETHER[probe][0](datasets, title, by)}
    if followed := [data for data in datasets if "limit" in data]:
        made["figure-limits"] = limits_models_figure(followed, title)
    if probe == "shift":
        made["figure-curves"] = shift_curves_figure(datasets, title)
    if probe == "compare" and (signs := [data for data in datasets if "accuracy" in data]):
        made["figure-accuracy"] = accuracy_figure(signs, title)
    return made


def tables_of(probe: str, datasets: Sequence[xr.Dataset]) -> list[Table]:
    """The tables of a saved question: one of all models where the probe compares them, else that of each."""
    if probe not in _TOGETHER:
        return [table(data) for data in datasets]
    followed = [data for data in datasets if "limit" in data]
    return [_TOGETHER[probe][1](datasets), *([tables.limits_models_table(followed)] if followed else [])]


def _probe(data: xr.Dataset) -> str:
    probe = data.attrs.get("probe")
    if probe not in _ONE_BY_ONE and probe not in _TOGETHER:
        raise LoopprobeError(f"this dataset is of no probe ({probe!r}): give what a probe of loopprobe returned")
    return str(probe)
