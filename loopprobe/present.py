"""How the answer of each probe is shown: its tables and its figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import plotly.graph_objects as go
import xarray as xr
from rich.table import Table

from loopprobe import tables
from loopprobe.errors import LoopprobeError
from loopprobe.figures.align import align_figures
from loopprobe.figures.attention import attention_figures
from loopprobe.figures.attribute import attribute_figures
from loopprobe.figures.compare import accuracy_figure, compare_figure
from loopprobe.figures.converge import converge_figure
from loopprobe.figures.curves import curves_figure
from loopprobe.figures.decode import decode_figures
from loopprobe.figures.folds import folds_figure
from loopprobe.figures.lens import lens_figures
from loopprobe.figures.longrun import exit_figures, fixed_points_figures
from loopprobe.figures.mask import mask_figure, mask_models_figure
from loopprobe.figures.panels import By
from loopprobe.figures.patch import patch_figures
from loopprobe.figures.paths import paths_figures, recover_figures
from loopprobe.figures.shift import shift_curves_figure, shift_figure
from loopprobe.figures.states import limits_models_figure, states_figures

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
    "patch": (patch_figures, tables.patch_table),
    "paths": (paths_figures, tables.paths_table),
    "recover": (recover_figures, tables.recover_table),
}


def figures(datasets: Sequence[xr.Dataset]) -> dict[str, go.Figure]:
    """All figures of what a probe made, by name: model by model where the probe shows them so, else one of all.

    Args:
        datasets: of one probe, one a model.

    Raises:
        LoopprobeError: no probe made them.
    """
    probe = _probe(datasets[0])
    found = {} if probe in _ONE_BY_ONE else {probe: _TOGETHER[probe][0](datasets)}
    if probe == "shift":
        found["shift-curves"] = shift_curves_figure(datasets)
    if probe == "compare" and all("accuracy" in data for data in datasets):
        found["compare-accuracy"] = accuracy_figure(datasets)
    if len(datasets) > 1 and all("limit" in data for data in datasets):
        found["converge-limits"] = limits_models_figure(datasets, "models compared")
    for data in datasets:
        own = _ONE_BY_ONE[probe][0](data) if probe in _ONE_BY_ONE else {}
        if "relative_step" in data:  # converge followed states
            own = states_figures(data)
        found |= {name if len(datasets) == 1 else f"{name}-{data.model.item()}": made for name, made in own.items()}
    return found


def figure(data: xr.Dataset) -> go.Figure:
    """The first figure of a dataset that a probe made: what a notebook shows.

    Raises:
        LoopprobeError: no probe made it.
    """
    return next(iter(figures([data]).values()))


def table(data: xr.Dataset) -> Table:
    """The table of one dataset."""
    probe = _probe(data)
    return _ONE_BY_ONE[probe][1](data) if probe in _ONE_BY_ONE else _TOGETHER[probe][1]([data])


def figures_of(probe: str, datasets: Sequence[xr.Dataset], title: str, by: By = "window") -> dict[str, go.Figure]:
    """The figures of a saved question: one of all models where the probe compares them, else those of each."""
    if probe in _TOGETHER:
        found = {"figure": _TOGETHER[probe][0](datasets, title, by)}
        if followed := [data for data in datasets if "limit" in data]:
            found["figure-limits"] = limits_models_figure(followed, title)
        if probe == "shift":
            found["figure-curves"] = shift_curves_figure(datasets, title)
        if probe == "compare" and (right := [data for data in datasets if "accuracy" in data]):
            found["figure-accuracy"] = accuracy_figure(right, title)
        return found
    return {f"figure-{name}": made for name, made in figures(datasets).items()}


def tables_of(probe: str, datasets: Sequence[xr.Dataset]) -> list[Table]:
    """The tables of several models: one of all where the probe compares them, else that of each."""
    if probe not in _TOGETHER:
        return [table(data) for data in datasets]
    followed = [data for data in datasets if "limit" in data]
    return [_TOGETHER[probe][1](datasets), *([tables.limits_models_table(followed)] if followed else [])]


def _probe(data: xr.Dataset) -> str:
    probe = data.attrs.get("probe")
    if probe not in _ONE_BY_ONE and probe not in _TOGETHER:
        raise LoopprobeError(f"this dataset is of no probe ({probe!r}): give what a probe of loopprobe returned")
    return str(probe)
