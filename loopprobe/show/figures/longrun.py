"""Figures of the exit and the fixed-points probe."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from loopprobe.probes.dataset import read_stamp
from loopprobe.show.figures.panels import interval_of
from loopprobe.show.figures.style import BLACK, GREY, colours, curve, finish, log_errors


def exit_figures(data: xr.Dataset) -> dict[str, go.Figure]:
    """Draw the error against the mean loops, one curve per rule, beside the same number of loops for all prompts.

    Args:
        data: a dataset of the exit probe.
    """
    figure = make_subplots(1, 1)
    curve(
        figure, data.loop, data.budget_median, interval_of("budget_median")(data), colour=BLACK,
        name="same for all prompts",
    )  # fmt: skip
    rules = list(dict.fromkeys(data.rule.values.tolist()))
    for rule, colour in zip(rules, colours(len(rules)), strict=True):
        points = data.isel(rule_setting=np.nonzero(data.rule.values == rule)[0]).sortby("mean_loops")
        settings = [f"{rule}: {setting:g}" for setting in points.setting.values]
        figure.add_scatter(
            x=points.mean_loops.values, y=points["median"].values, mode="lines+markers", name=rule, text=settings,
            line={"color": colour, "width": 2}, marker={"size": 7},
            error_y={"type": "data", "array": (points.median_high - points["median"]).values,
                     "arrayminus": (points["median"] - points.median_low).values, "thickness": 1, "width": 3},
            hovertemplate="%{text}: %{y:.4g} after %{x:.1f} loops<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title="loops, mean over prompts", type="log")
    log_errors(figure, read_stamp(data).query_unit)
    finish(figure, f"{data.model.item()}: early exit, loops saved against median error (95 % intervals)")
    return {"exit": figure.update_layout(hovermode="closest")}


def fixed_points_figures(data: xr.Dataset) -> dict[str, go.Figure]:
    """Draw the leading eigenvalues at the fixed points, and the error there against the error of the loop.

    Args:
        data: a dataset of the fixed-points probe.
    """
    titles = ["leading eigenvalues at the fixed point", "error at the fixed point and on the loop"]
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.12)
    angle = np.linspace(0, 2 * np.pi, 200)
    line = {"color": GREY, "width": 1, "dash": "dot"}
    figure.add_scatter(
        x=np.cos(angle), y=np.sin(angle), mode="lines", line=line, name="unit circle", hoverinfo="skip", row=1, col=1
    )
    errors = data.error.isel(start=0)
    for moves, name, colour in ((False, "loop at rest", colours(2)[0]), (True, "loop moves", colours(2)[1])):
        prompts = data.isel(example=np.nonzero(data.moves.values == moves)[0])
        if not np.isfinite(prompts.error.isel(start=0)).any():  # no prompt of this group has a fixed point
            continue
        figure.add_scatter(
            x=prompts.eigenvalue_real.values.ravel(), y=prompts.eigenvalue_imag.values.ravel(), mode="markers",
            name=name, legendgroup=name, marker={"size": 5, "color": colour, "opacity": 0.7},
            customdata=prompts.eigenvalue_position.values.ravel(),
            hovertemplate="%{x:.3f} + %{y:.3f}i, token %{customdata}<extra></extra>", row=1, col=1,
        )  # fmt: skip
        figure.add_scatter(
            x=prompts.loop_error.values, y=prompts.error.isel(start=0).values, mode="markers", name=name,
            legendgroup=name, showlegend=False, marker={"size": 7, "color": colour, "opacity": 0.8},
            hovertemplate="loop %{x:.3g}, fixed point %{y:.3g}<extra></extra>", row=1, col=2,
        )  # fmt: skip
    both = np.concatenate([data.loop_error.values, errors.values])
    ends = [np.nanmin(both), np.nanmax(both)]
    figure.add_scatter(x=ends, y=ends, mode="lines", line=line, showlegend=False, hoverinfo="skip", row=1, col=2)
    if not np.isfinite(errors).any():
        for col in (1, 2):
            figure.add_annotation(text="no fixed point was found", showarrow=False, xref="x domain", yref="y domain",
                                  x=0.5, y=0.5, row=1, col=col)  # fmt: skip
    figure.update_xaxes(title="real part", col=1)
    figure.update_yaxes(title="imaginary part", scaleanchor="x", col=1)
    figure.update_xaxes(title=f"{read_stamp(data).unit}, mean of the last 128 loops", type="log", col=2)
    figure.update_yaxes(title="at the fixed point", type="log", col=2)
    finish(figure, f"{data.model.item()}: fixed points found from the end of the loop, {data.sizes['example']} prompts")
    return {"fixed-points": figure.update_layout(hovermode="closest")}
