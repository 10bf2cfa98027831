"""Figures of the extrapolate probe."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from loopprobe.show.figures.style import BASELINE_COLOURS, BLACK, GREY, curve, finish, heat


def extrapolate_figures(data: xr.Dataset) -> dict[str, go.Figure]:
    """Draw the map of length and loops with the trained line, and the share that is right by length.

    Args:
        data: a dataset of the extrapolate probe.
    """
    counts, trained = data.attrs["counts"], int(data.attrs["trained_length"])
    titles = ["prompts that are right as a whole", "with the loops of the training, and with the best"]
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.16, column_widths=[0.58, 0.42])
    heat(figure, data.exact.assign_coords(length=data.length), "length", "loop", template="%{z:.1%}")
    seen = data.sel(length=data.length <= trained)
    beyond = data.sel(length=data.length >= trained) if (data.length > trained).any() else None
    line = {"color": BLACK, "width": 2}
    figure.add_scatter(
        x=seen.length.values, y=seen.trained_loops.values, mode="lines+markers",
        name="loops of the training, by length", line=line, marker={"size": 4}, row=1, col=1,
    )  # fmt: skip
    if beyond is not None:
        figure.add_scatter(
            x=beyond.length.values, y=beyond.trained_loops.values, mode="lines", name="the same rule beyond",
            line=line | {"dash": "dot"}, row=1, col=1,
        )  # fmt: skip
    figure.add_scatter(
        x=data.length.values, y=data.needed_loops.values, mode="markers", name="fewest loops that do",
        marker={"size": 7, "symbol": "diamond-open", "color": BASELINE_COLOURS[1], "line": {"width": 2}}, row=1, col=1,
    )  # fmt: skip
    at_rule = data.sel(loop=data.trained_loops.clip(max=int(data.loop[-1])))
    at_best = data.isel(loop=data.exact.argmax("loop"))
    for part, name, colour, dash in (
        (at_rule, "right with those loops", BLACK, "solid"),
        (at_best, "right with the best number", BASELINE_COLOURS[1], "dash"),
    ):
        band = part.exact_low, part.exact_high
        curve(figure, part.length, part.exact, band, colour=colour, name=name, col=2, dash=dash)
    figure.add_hline(y=data.attrs["works"], line={"color": GREY, "width": 1, "dash": "dot"}, row=1, col=2)
    for col in (1, 2):
        figure.add_vline(x=trained, line={"color": GREY, "width": 1, "dash": "dot"}, row=1, col=col)
        figure.update_xaxes(title=f"length ({counts}; {trained}: longest of the training)", row=1, col=col)
    figure.update_yaxes(title="loops done", range=[0.5, int(data.loop[-1]) + 0.5], row=1, col=1)
    figure.update_yaxes(title="share of prompts", range=[0, 1.02], row=1, col=2)
    figure.update_layout(coloraxis={
        "colorscale": "Viridis", "cmin": 0, "cmax": 1,
        "colorbar": {"x": 0.5, "thickness": 12, "tickformat": ".0%", "len": 0.9},
    })  # fmt: skip
    fails = int(data.attrs["fails_at"])
    ends = f"no number of loops solves length {fails}" if fails else "all lengths are solved"
    slope = data.attrs["slope"]
    rise = f"; {slope:.2f} loops more for each one longer" if np.isfinite(slope) else ""
    finish(figure, f"{data.model.item()}: {ends}{rise}")
    return {"extrapolate": figure.update_layout(hovermode="closest")}
