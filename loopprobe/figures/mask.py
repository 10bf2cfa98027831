"""Figures of the mask probe."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from loopprobe.figures.style import BLACK, QUERY_ERROR, colours, curve, finish, level, log_errors, trained_line


def mask_figure(data: xr.Dataset) -> go.Figure:
    """Error against what is kept of the state, and against the loop.

    With four or more values of n, the left panel is error against n, one curve a loop count; with fewer it is
    error against the number of in-context examples. The right panel is error against the loop, one curve an n.

    Args:
        data: of the mask probe.
    """
    n, last = data.n.values, data.isel(loop=-1)
    config = json.loads(data.attrs["config"])
    verb = "masked" if config["invert"] else "kept"
    over_n = len(n) >= 4
    titles = [
        f"by n, the {config['unit']}s {verb}" if over_n else f"after {int(last.loop)} loops, by examples",
        "over the loops",
    ]
    figure = make_subplots(rows=1, cols=2, subplot_titles=titles, horizontal_spacing=0.2 if over_n else 0.1)
    picked = n if len(n) <= 6 else n[np.unique(np.linspace(0, len(n) - 1, 6).round().astype(int))]
    if over_n:
        shown = loops_to_show(data)
        for loop, colour in zip(shown, colours(len(shown)), strict=True):
            at = data.sel(loop=loop)
            name = f"{loop} loop{'s' * (loop > 1)}"
            curve(figure, n, at["mean"], (at.low, at.high), colour=colour, name=name)
        left, left_title = n, f"n: {config['mode']} {config['unit']}s of the state {verb}"
    else:
        left, left_title = data.point.values, "in-context examples before the query"
        for value, colour in zip(picked, colours(len(picked)), strict=True):
            means = last.error_by_point.sel(n=value)
            curve(figure, left, means, colour=colour, name=f"n = {value}", legend="legend2", in_legend=False)
        curve(
            figure, left, last.clean_error_by_point, colour=BLACK, name="clean run", legend="legend2", in_legend=False
        )
    for value, colour in zip(picked, colours(len(picked)), strict=True):
        at = data.sel(n=value)
        name = f"n = {value}"
        curve(figure, data.loop, at["mean"], (at.low, at.high), colour=colour, name=name, col=2, legend="legend2")
    interval = data.clean_low, data.clean_high
    curve(figure, data.loop, data.clean_mean, interval, colour=BLACK, name="clean run", col=2, legend="legend2")
    for col, x in ((1, left), (2, data.loop)):
        zero = data.attrs["zero_predictor"]
        level(figure, x, zero, "predicting zero", col=col, legend="legend2", in_legend=col == 2)
    trained_line(figure, int(data.attrs["trained_loops"]), col=2)
    figure.update_xaxes(title=left_title, col=1)
    figure.update_xaxes(title="loops", col=2)
    log_errors(figure, QUERY_ERROR if over_n else "squared error / n_dims")
    figure.update_layout(legend2={"x": 1.005, "y": 1})
    finish(figure, f"{data.model.item()}: {data.attrs['description']}")
    return figure.update_layout(legend={"x": 0.405, "y": 1})


def loops_to_show(data: xr.Dataset, wanted: Sequence[int] | None = None) -> list[int]:
    """A handful of loop counts: those asked for, or 1, 5, as trained, and the last."""
    last = int(data.loop[-1])
    if wanted is None:
        wanted = [1, 5, data.attrs["trained_loops"], last]
    return sorted({int(loop) for loop in wanted if loop <= last})
