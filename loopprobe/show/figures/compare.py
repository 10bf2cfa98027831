"""Figures of the compare probe."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import plotly.graph_objects as go
import xarray as xr

from loopprobe.probes.dataset import read_stamp
from loopprobe.show.arrange import baselines_of, by_prompts
from loopprobe.show.figures.panels import By, Line, draw, interval_of, panels
from loopprobe.show.figures.style import BASELINE_COLOURS, GREY, curve, finish, log_errors


def compare_figure(
    datasets: Sequence[xr.Dataset], title: str = "error against the number of examples", by: By = "window"
) -> go.Figure:
    """Draw the error against the in-context examples, one curve per model, with the optimum and the baselines.

    Args:
        datasets: datasets of the compare probe, one per model.
        title: the title of the figure.
        by: what makes a panel, see ``panels``.
    """
    figure = _figure(panels(datasets, by), "median")
    log_errors(figure, read_stamp(datasets[0]).unit)
    return finish(figure, title)


def accuracy_figures(
    datasets: Sequence[xr.Dataset], title: str = "accuracy against the number of examples", by: By = "window"
) -> dict[str, go.Figure]:
    """Draw the share of right signs against the in-context examples, of those models whose labels are signs."""
    if not (signs := [data for data in datasets if "accuracy" in data]):
        return {}
    figure = _figure(panels(signs, by), "accuracy")
    figure.update_yaxes(title="accuracy", col=1, tickformat=".0%")
    return {"accuracy": finish(figure, title)}


def _figure(lines_by_panel: dict[str, list[Line]], measure: str) -> go.Figure:
    """Draw one curve per model with its interval, then the optimum, then each baseline."""
    figure = draw(lines_by_panel, "point", lambda data: data[measure], interval_of(measure))
    shown: set[str] = set()
    for col, lines in enumerate(lines_by_panel.values(), 1):
        for words, members in by_prompts([data for line in lines for data in line.datasets]).items():
            data, suffix = members[0], f" ({words})" if words else ""
            name = data.attrs["optimum"] + suffix
            above = data.where(data.optimum_median > 1e-6, drop=True)  # zero has no place on a log axis
            new = name not in shown
            line = above[f"optimum_{measure}"]
            curve(figure, above.point, line, colour=GREY, dash="dot", name=name, col=col, in_legend=new)
            shown.add(name)
            for i, (baseline, answers) in enumerate(baselines_of(members).items()):
                if baseline == data.attrs["optimum"]:
                    continue
                name = baseline + suffix
                look = BASELINE_COLOURS[i % len(BASELINE_COLOURS)]
                line = answers[f"baseline_{measure}"].where(answers.baseline_median > 1e-6)
                curve(
                    figure,
                    answers.point,
                    line,
                    colour=look,
                    dash="dash",
                    name=name,
                    col=col,
                    in_legend=name not in shown,
                )
                shown.add(name)
    axis = "in-context examples before the query"
    figure.update_xaxes(title="<br>".join(textwrap.wrap(axis, max(16, 100 // len(lines_by_panel)))))
    return figure
