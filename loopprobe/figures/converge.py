"""Figures of the converge probe."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
import xarray as xr

from loopprobe.figures.panels import by_window, look, window_panels
from loopprobe.figures.style import BLACK, QUERY_ERROR, curve, finish, level, log_errors


def converge_figure(datasets: Sequence[xr.Dataset], title: str = "error against the number of loops") -> go.Figure:
    """Error against the loop, one panel a window T, one curve a model.

    Args:
        datasets: of the converge probe, one a model.
        title: of the figure.
    """
    panels, looks = by_window(datasets), look(datasets)
    figure = window_panels(panels)
    shown: set[str] = set()
    for col, inside in enumerate(panels.values(), 1):
        for data in inside:
            name = data.model.item()
            curve(
                figure, data.loop, data["mean"], (data.low, data.high), **looks[name], name=name, col=col,
                in_legend=name not in shown,
            )  # fmt: skip
            shown.add(name)
        best = {data.attrs["optimum"]: data for data in inside if float(data.optimum.mean()) > 1e-8}
        for name, data in best.items():  # exact least squares is 0, which no logarithmic axis shows
            level(
                figure, data.loop, float(data.optimum.mean()), name, col=col, colour=BLACK, in_legend=name not in shown
            )
            shown.add(name)
    figure.update_xaxes(title="loops", type="log")
    log_errors(figure, QUERY_ERROR)
    return finish(figure, title)
