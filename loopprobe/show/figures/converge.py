"""Figures of the converge probe."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
import xarray as xr

from loopprobe.probes.dataset import read_stamp
from loopprobe.show.arrange import by_prompts
from loopprobe.show.figures.panels import By, draw, draw_failures, interval_of, panels
from loopprobe.show.figures.states import limits_figures
from loopprobe.show.figures.style import BLACK, finish, level, log_errors

TICKS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000]


def converge_figure(
    datasets: Sequence[xr.Dataset], title: str = "error against the number of loops", by: By = "window"
) -> go.Figure:
    """Draw the median error against the loop, one curve per model, with the optimum where it is not zero.

    Args:
        datasets: datasets of the converge probe, one per model.
        title: the title of the figure.
        by: what makes a panel, see ``panels``.
    """
    lines_by_panel = panels(datasets, by)
    figure = draw(lines_by_panel, "loop", lambda data: data["median"], interval_of("median"))
    shown: set[str] = set()
    for col, lines in enumerate(lines_by_panel.values(), 1):
        for words, members in by_prompts([line.datasets[0] for line in lines]).items():
            data = members[0]
            best, name = float(data.optimum.median()), data.attrs["optimum"] + (f" ({words})" if words else "")
            if best > 1e-8:  # exact least squares is 0, which no logarithmic axis shows
                level(figure, data.loop, best, name, col=col, colour=BLACK, in_legend=name not in shown)
                shown.add(name)
    figure.update_xaxes(title="loops done", type="log", tickvals=TICKS)
    log_errors(figure, read_stamp(datasets[0]).query_unit)
    return finish(figure, title)


def further_figures(datasets: Sequence[xr.Dataset], title: str = "", by: By = "window") -> dict[str, go.Figure]:
    """Draw how often the loop fails, where it ever does, and where the states of the models go, where they are known.

    Args:
        datasets: datasets of the converge probe, one per model.
        title: the title of the figures.
        by: what makes a panel, see ``panels``.
    """
    limits = limits_figures(datasets, *([title] if title else []))
    if not any((data.failures > 0).any() for data in datasets):
        return limits
    figure = draw_failures(panels(datasets, by), "loop", datasets[0].attrs["failure_level"])
    figure.update_xaxes(title="loops done", type="log", tickvals=TICKS)
    return {"failures": finish(figure, title or "how often the loop fails")} | limits
