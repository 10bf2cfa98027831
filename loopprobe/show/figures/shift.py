"""Figures of the shift probe."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from loopprobe.probes.dataset import read_stamp
from loopprobe.show.figures.panels import interval_of
from loopprobe.show.figures.style import SYMBOLS, colours, curve, finish, log_errors


def shift_figure(datasets: Sequence[xr.Dataset], title: str = "out of distribution") -> go.Figure:
    """Draw the error at the query under every shift, one marker per model.

    Args:
        datasets: datasets of the shift probe, one per model.
        title: the title of the figure.
    """
    shifts = _shifts(datasets)
    figure = make_subplots()
    for i, (data, colour) in enumerate(zip(datasets, colours(len(datasets)), strict=True)):
        errors = data.isel(loop=-1)
        x = errors["median"].values
        figure.add_scatter(
            x=x, y=errors["shift"].values, mode="markers", name=data.model.item(),
            marker={"size": 9, "color": colour, "symbol": SYMBOLS[i % len(SYMBOLS)]},
            error_x={"type": "data", "symmetric": False,
                     "array": errors.median_high.values - x, "arrayminus": x - errors.median_low.values},
            hovertemplate="%{y}: %{x:.4g}",
        )  # fmt: skip
    figure.update_xaxes(title=read_stamp(datasets[0]).query_unit, type="log")
    figure.update_yaxes(categoryorder="array", categoryarray=shifts[::-1], automargin=True)
    finish(figure, title)
    figure.update_layout(hovermode="closest", height=max(figure.layout.height, 30 * len(shifts) + 150))
    return figure


def shift_curves_figure(datasets: Sequence[xr.Dataset], title: str = "out of distribution") -> go.Figure:
    """Draw the error against the in-context examples, one panel per shift and one curve per model.

    Shifts of the query alone have no panel.
    """
    shown = [s for s in _shifts(datasets) if any(s in d["shift"] and _has_curve(d, s) for d in datasets)]
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = make_subplots(
        rows=rows, cols=columns, subplot_titles=shown, shared_yaxes=True,
        horizontal_spacing=0.04, vertical_spacing=0.4 / (rows + 1),
    )  # fmt: skip
    named: set[str] = set()
    for i, shift in enumerate(shown):
        row, col = i // columns + 1, i % columns + 1
        for data, colour in zip(datasets, colours(len(datasets)), strict=True):
            if shift not in data["shift"] or not _has_curve(data, shift):
                continue
            shifted, name = data.sel(shift=shift), data.model.item()
            band = interval_of("median_by_point")(shifted)
            curve(
                figure, shifted.point, shifted.median_by_point, band, colour=colour, name=name, row=row, col=col,
                in_legend=name not in named,
            )  # fmt: skip
            named.add(name)
    log_errors(figure, read_stamp(datasets[0]).unit)
    figure.update_xaxes(title="in-context examples")
    finish(figure, title)
    figure.update_layout(height=250 * rows + 130)
    return figure


def shift_curves_figures(datasets: Sequence[xr.Dataset], title: str = "out of distribution") -> dict[str, go.Figure]:
    """Draw the curves over the in-context examples."""
    return {"curves": shift_curves_figure(datasets, title)}


def _shifts(datasets: Sequence[xr.Dataset]) -> list[str]:
    return list(dict.fromkeys(str(shift) for data in datasets for shift in data["shift"].values))


def _has_curve(data: xr.Dataset, shift: str) -> bool:
    return bool(np.isfinite(data.median_by_point.sel(shift=shift)).any())
