"""Figures of the compare probe."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
import xarray as xr

from loopprobe.figures.panels import by_window, look, window_panels
from loopprobe.figures.style import GREY, curve, finish, log_errors


def compare_figure(datasets: Sequence[xr.Dataset], title: str = "error against the number of examples") -> go.Figure:
    """Error against the in-context examples, one panel a window T, one curve a model, with the optimum.

    Args:
        datasets: of the compare probe, one a model.
        title: of the figure.
    """
    panels, looks = by_window(datasets), look(datasets)
    figure = window_panels(panels)
    shown: set[str] = set()
    for col, inside in enumerate(panels.values(), 1):
        for data in inside:
            name = data.model.item()
            curve(
                figure, data.point, data["mean"], (data.low, data.high), **looks[name], name=name, col=col,
                in_legend=name not in shown,
            )  # fmt: skip
            shown.add(name)
        for name, data in {data.attrs["optimum"]: data for data in inside}.items():
            above = data.where(data.optimum_mean > 1e-6, drop=True)  # least squares is exact from n_dims examples on
            curve(
                figure, above.point, above.optimum_mean, colour=GREY, dash="dot", name=name, col=col,
                in_legend=name not in shown,
            )  # fmt: skip
            shown.add(name)
    figure.update_xaxes(title="in-context examples before the query")
    log_errors(figure, "squared error / n_dims")
    return finish(figure, title)
