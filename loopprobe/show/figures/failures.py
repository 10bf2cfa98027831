"""Figures of the failures probe."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from loopprobe.probes.dataset import read_stamp
from loopprobe.probes.failures import COURSES, RIGHT
from loopprobe.show.figures.style import BLACK, GREY, colours, curve, diverging, finish, loop_colour, trained_line

MOST_ROWS = 200  # prompts that are drawn


def failures_figures(data: xr.Dataset) -> dict[str, go.Figure]:
    """Draw which prompts fail in which loops, and what told so before.

    Args:
        data: a dataset of the failures probe.

    Returns:
        ``failures``: the share of failures by loop, and under it the error of every prompt that ever fails, one row
        each; ``failures-before``, where a prompt fails that was right after the trained loops: the motion around that
        loop, and how well each sign tells which prompts fail.
    """
    figures = {"failures": _when(data)}
    if int(data.onset.notnull().sum()):
        figures["failures-before"] = _before(data)
    return figures


def _when(data: xr.Dataset) -> go.Figure:
    level = float(data.attrs["failure_level"])
    figure = make_subplots(2, 1, shared_xaxes=True, row_heights=[0.3, 0.7], vertical_spacing=0.06)
    curve(
        figure, data.loop, data.failures, (data.failures_low, data.failures_high), colour=BLACK,
        name="share of prompts that fail", in_legend=False,
    )  # fmt: skip
    course = data.prompt_course.values
    failing = np.flatnonzero(course != RIGHT)
    order = failing[np.lexsort((np.nan_to_num(data.onset.values[failing], nan=0), course[failing]))][:MOST_ROWS]
    error = data.error.values[:, order]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log10(np.maximum(error, level * 1e-3) / level)
    logs = np.where(np.isfinite(error), logs, np.nan)
    names = [f"prompt {i}, {COURSES[course[i]]}" for i in order]
    figure.add_heatmap(
        x=data.loop.values, y=np.arange(len(order)), z=logs.T, coloraxis="coloraxis", row=2, col=1,
        customdata=np.repeat(np.array(names, object)[:, None], len(logs), axis=1),
        hovertemplate="%{customdata}<br>loop %{x}: error %{z:.2f}<extra></extra>",
    )  # fmt: skip
    ends = np.flatnonzero(np.diff(course[order])) + 0.5
    for end in ends:
        figure.add_hline(y=end, line={"color": BLACK, "width": 1}, row=2, col=1)
    for begin, end in zip([-0.5, *ends], [*ends, len(order) - 0.5], strict=True):
        if len(order):
            figure.add_annotation(
                x=1.005, xref="paper", y=(begin + end) / 2, text=COURSES[course[order[int(begin + 0.5)]]],
                showarrow=False, xanchor="left", font={"size": 11}, row=2, col=1,
            )  # fmt: skip
            figure.layout.annotations[-1].update(xref="paper", x=1.005)
    trained_line(figure, int(data.attrs["trained_loops"]), 1)
    figure.update_yaxes(title="fail", tickformat=".0%", row=1, rangemode="tozero")
    figure.update_yaxes(title=f"prompts ({len(order)} of {len(failing)} that ever fail)", row=2, showticklabels=False)
    figure.update_xaxes(title="loops", row=2)
    finish(
        figure,
        f"{data.model.item()}: {data.sizes['example']} prompts when the loop goes on; failing is above {level:.2g}",
    )
    bar = diverging(np.clip(logs, -3, 3), f"log10 of the error over {level:.2g}", len=0.3, y=0.85)
    return figure.update_layout(height=640, coloraxis=bar, hovermode="closest")


def _before(data: xr.Dataset) -> go.Figure:
    figure = make_subplots(
        1, 2, column_widths=[0.55, 0.45], horizontal_spacing=0.2,
        subplot_titles=["motion around the first failure", "what is seen after the trained loops"],
    )  # fmt: skip
    known = data.isel(lag=(data.lead_prompts > 0).values)
    interval = None if known.lead_low.isnull().any() else (known.lead_low, known.lead_high)
    curve(
        figure, known.lag, known.lead, interval, colour=colours(1)[0], name="step of the query's state", in_legend=False
    )
    figure.add_hline(y=1, line={"color": GREY, "dash": "dot", "width": 1}, row=1, col=1)
    figure.add_vline(x=0, line={"color": GREY, "dash": "dot", "width": 1}, row=1, col=1)
    figure.update_yaxes(title="over the median of prompts that stay right", type="log", row=1, col=1)
    figure.update_xaxes(title="loops since the first failure", row=1, col=1)
    told = data.isel(sign=data.auc.notnull().values)
    ends = [(told.auc_high - told.auc).fillna(0).values, (told.auc - told.auc_low).fillna(0).values]
    figure.add_scatter(
        x=told.auc.values, y=told.sign.values, mode="markers", marker={"color": BLACK, "size": 8}, showlegend=False,
        error_x={"type": "data", "array": ends[0], "arrayminus": ends[1], "color": BLACK}, row=1, col=2,
        hovertemplate="%{y}: %{x:.3f}<extra></extra>",
    )  # fmt: skip
    figure.add_vline(x=0.5, line={"color": GREY, "dash": "dot", "width": 1}, row=1, col=2)
    figure.update_xaxes(title="area under the ROC curve (0.5: tells nothing)", range=[0, 1.02], row=1, col=2)
    figure.update_yaxes(autorange="reversed", row=1, col=2)
    n = int(data.onset.notnull().sum())
    finish(
        figure,
        f"{data.model.item()}: {n} prompts that fail after more loops than in training, against those that stay right",
    )
    return figure.update_layout(height=460, hovermode="closest", margin={"r": 30})


def failures_compare_figure(datasets: Sequence[xr.Dataset], title: str) -> go.Figure:
    """Draw the share of failures by loop, one curve a model.

    Args:
        datasets: of the failures probe.
        title: of the figure.
    """
    figure = make_subplots(1, 1)
    for data in datasets:
        curve(
            figure, data.loop, data.failures, (data.failures_low, data.failures_high),
            colour=loop_colour(int(data.attrs["trained_loops"])), name=str(data.model.item()),
        )  # fmt: skip
    figure.update_xaxes(title="loops")
    figure.update_yaxes(title=f"share of prompts that fail ({read_stamp(datasets[0]).query_unit})", tickformat=".0%")
    return finish(figure, title)
