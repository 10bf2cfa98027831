"""Figures of the compare probe."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
import xarray as xr

from loopprobe.figures.panels import By, draw, panels
from loopprobe.figures.style import GREY, curve, finish, log_errors


def compare_figure(
    datasets: Sequence[xr.Dataset], title: str = "error against the number of examples", by: By = "window"
) -> go.Figure:
    """Error against the in-context examples, one curve a model, with the optimum.

    Args:
        datasets: of the compare probe, one a model.
        title: of the figure.
        by: what makes a panel, see ``panels``.
    """
    found = panels(datasets, by)
    figure = draw(found, "point", lambda data: data["mean"], lambda data: (data.low, data.high))
    shown: set[str] = set()
    for col, lines in enumerate(found.values(), 1):
        for data in {line.datasets[0].attrs["optimum"]: line.datasets[0] for line in lines}.values():
            name = data.attrs["optimum"]
            above = data.where(data.optimum_mean > 1e-6, drop=True)  # least squares is exact from n_dims examples on
            new = name not in shown
            curve(figure, above.point, above.optimum_mean, colour=GREY, dash="dot", name=name, col=col, in_legend=new)
            shown.add(name)
    figure.update_xaxes(title="in-context examples before the query")
    log_errors(figure, "squared error / E[y²]")
    return finish(figure, title)
