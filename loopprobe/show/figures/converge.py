"""Figures of the converge probe."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
import xarray as xr

from loopprobe.probes.dataset import read_stamp
from loopprobe.show.arrange import by_prompts
from loopprobe.show.figures.panels import By, draw, panels
from loopprobe.show.figures.style import BLACK, finish, level, log_errors


def converge_figure(
    datasets: Sequence[xr.Dataset], title: str = "error against the number of loops", by: By = "window"
) -> go.Figure:
    """Draw the error against the loop, one curve per model, with the optimum where it is not zero.

    Args:
        datasets: datasets of the converge probe, one per model.
        title: the title of the figure.
        by: what makes a panel, see ``panels``.
    """
    lines_by_panel = panels(datasets, by)
    figure = draw(lines_by_panel, "loop", lambda data: data["mean"], lambda data: (data.low, data.high))
    shown: set[str] = set()
    for col, lines in enumerate(lines_by_panel.values(), 1):
        for words, members in by_prompts([line.datasets[0] for line in lines]).items():
            data = members[0]
            best, name = float(data.optimum.mean()), data.attrs["optimum"] + (f" ({words})" if words else "")
            if best > 1e-8:  # exact least squares is 0, which no logarithmic axis shows
                level(figure, data.loop, best, name, col=col, colour=BLACK, in_legend=name not in shown)
                shown.add(name)
    ticks = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000]
    figure.update_xaxes(title="loops done", type="log", tickvals=ticks)
    log_errors(figure, read_stamp(datasets[0]).query_unit)
    return finish(figure, title)
