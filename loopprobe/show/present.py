"""Tables and figures of each probe, as its declaration names them.

Drawing imports plotly; making tables does not. Both modules are imported when they are needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr
from rich.table import Table

from loopprobe.errors import LoopprobeError
from loopprobe.probes.dataset import read_stamp, unique_labels
from loopprobe.probes.declaration import Shown
from loopprobe.probes.registry import PROBES

if TYPE_CHECKING:
    import plotly.graph_objects as go

# The difference is made from two datasets of the mask probe. It is not a probe.
DERIVED = {"mask_difference": Shown("mask_modes:mask_difference_figures", "study:mask_difference_table")}


def figures(datasets: Sequence[xr.Dataset]) -> dict[str, go.Figure]:
    """Return all figures of the datasets of a probe, by name.

    A probe that compares models has figures of all of them together. The other figures show one model each.

    Args:
        datasets: those of one probe, one per model. The mask probe may have one per model and mode: the first and the
            last then stand in one figure with their paired difference.

    Raises:
        LoopprobeError: no probe made the datasets, or several did, or a model comes twice.
    """
    datasets = _labelled(datasets)
    probe = _probe(datasets[0])
    shown = _shown(probe)
    made: dict[str, go.Figure] = {}
    if shown.compared:
        made[probe] = _drawing(shown.compare_figure)(datasets)
        made |= {f"{probe}-{end}": figure for end, figure in _further(shown, datasets).items()}
    models = _by_model(datasets)
    for label, members in models.items():
        drawn = _draw_model(shown, members)
        made |= {name if len(models) == 1 else f"{name}-{label}": figure for name, figure in drawn.items()}
    return made


def _shown(probe: str) -> Shown:
    """Return the declaration that says how the datasets of a probe are shown."""
    return DERIVED[probe] if probe in DERIVED else PROBES[probe].shown


def _function_of(room: str, place: str) -> Callable[..., Any]:
    """Import the function that a declaration names.

    Args:
        room: ``figures`` or ``tables``.
        place: ``module:function`` there.
    """
    module, _, name = place.partition(":")
    function: Callable[..., Any] = getattr(import_module(f"loopprobe.show.{room}.{module}"), name)
    return function


_drawing, _tabling = partial(_function_of, "figures"), partial(_function_of, "tables")


def _further(shown: Shown, datasets: Sequence[xr.Dataset], *how: str) -> dict[str, go.Figure]:
    """Draw the further figures of a probe, if it declares any."""
    return _drawing(shown.further_figures)(datasets, *how) if shown.further_figures else {}


def _draw_model(shown: Shown, members: Sequence[xr.Dataset]) -> dict[str, go.Figure]:
    """Draw the figures of one model: of its dataset, or of the two modes of its mask."""
    if len(members) == 2:
        return {"mask": _drawing("mask_modes:mask_modes_figure")(*members)}
    if not shown.figures:
        return {}
    from loopprobe.show.figures.style import name_tokens

    texts = read_stamp(members[0]).texts
    return {name: name_tokens(figure, texts) for name, figure in _drawing(shown.figures)(members[0]).items()}


def figure(data: xr.Dataset | Sequence[xr.Dataset]) -> go.Figure:
    """Return the first figure of a probe's datasets, which is what a notebook shows.

    Args:
        data: a dataset, or several of one probe as a list, or joined by ``xr.concat`` along ``model`` or ``mode``.

    Raises:
        LoopprobeError: no probe made the data, or nothing in it can be drawn.
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
    """Return whether a trace shows at least one number."""
    values = getattr(trace, "z", None) if trace.type == "heatmap" else getattr(trace, "y", None)
    return values is not None and any(not isinstance(v, float) or np.isfinite(v) for v in np.ravel(values).tolist())


def _parts(data: xr.Dataset) -> list[xr.Dataset]:
    """Split a dataset that was joined along ``model`` or ``mode``, and restore the attributes of each part."""
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
    """Label the datasets so that no two checkpoints share a label.

    Raises:
        LoopprobeError: the datasets come from several probes, or two come from one model and the same options.
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
    """Return the mode of a mask, first or last; empty for every other probe."""
    stamp = read_stamp(data)
    return str(stamp.options["mode"]) if stamp.probe == "mask" else ""


def _by_model(datasets: Sequence[xr.Dataset]) -> dict[str, list[xr.Dataset]]:
    """Group datasets by the label of their model, with the two modes of masks in order."""
    models: dict[str, list[xr.Dataset]] = {}
    for data in sorted(datasets, key=_mode):
        models.setdefault(str(data.model.item()), []).append(data)
    return {str(data.model.item()): models[str(data.model.item())] for data in datasets}


def table(data: xr.Dataset) -> Table:
    """Return the table of one dataset."""
    shown = _shown(_probe(data))
    made: Table = _tabling(shown.compare_table)([data]) if shown.compared else _tabling(shown.table)(data)
    return made


def tables_for(datasets: Sequence[xr.Dataset], loops: Sequence[int] | None = None) -> list[Table]:
    """Return the tables that a verb prints: one of all models where the probe compares them, else one per model.

    Args:
        datasets: the datasets of one probe, as for ``figures``.
        loops: the loop counts to show, for a probe whose table has columns for them; None: a few.
    """
    datasets = _labelled(datasets)
    shown, chosen = _shown(_probe(datasets[0])), [] if loops is None else [loops]
    if not shown.compared:
        return [
            _tabling("study:mask_modes_table")(*members, *chosen)
            if len(members) == 2
            else _tabling(shown.table)(members[0], *chosen)
            for members in _by_model(datasets).values()
        ]
    each = [_tabling(shown.table)(data) for data in datasets] if shown.table else []
    each += [_tabling(shown.further_table)(datasets)] if shown.further_table else []
    return [_tabling(shown.compare_table)(datasets, *chosen), *(one for one in each if one is not None)]


def findings(datasets: Sequence[xr.Dataset]) -> list[str]:
    """Return the sentences that a verb prints below its tables, one per model; none of what is made from datasets."""
    says = import_module("loopprobe.show.sentences")
    probe = _probe(datasets[0])
    if probe in DERIVED:
        return []
    return [
        says.mask_modes(*members) if len(members) == 2 else getattr(says, probe)(members[0])
        for members in _by_model(_labelled(datasets)).values()
    ]


def figures_of(
    probe: str, datasets: Sequence[xr.Dataset], title: str, by: Literal["window", "layers", "loss"] = "window"
) -> dict[str, go.Figure]:
    """Return the figures of a saved question: one of all models where the probe compares them, else those of each."""
    shown = _shown(probe)
    if not shown.compare_figure:
        return {f"figure-{name}": made for name, made in figures(datasets).items()}
    panels = [by] if shown.panels else []
    made = {"figure": _drawing(shown.compare_figure)(datasets, title, *panels)}
    return made | {f"figure-{end}": figure for end, figure in _further(shown, datasets, title, *panels).items()}


def tables_of(probe: str, datasets: Sequence[xr.Dataset]) -> list[Table]:
    """Return the tables of a saved question: one of all models where the probe compares them, else one of each."""
    shown = _shown(probe)
    if not shown.compare_table:
        return [table(data) for data in datasets]
    further = _tabling(shown.further_table)(datasets) if shown.further_table else None
    return [_tabling(shown.compare_table)(datasets), *([] if further is None else [further])]


def _probe(data: xr.Dataset) -> str:
    """Return the name of the probe that made a dataset."""
    probe = data.attrs.get("probe")
    if probe not in PROBES and probe not in DERIVED:
        raise LoopprobeError(f"this dataset is of no probe ({probe!r}): give what a probe of loopprobe returned")
    return str(probe)
