"""Figures of the steer probe."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from loopprobe.probes.dataset import measure_words
from loopprobe.show.figures.style import BLACK, GREY, colours, curve, finish
from loopprobe.show.tables.steer import UNITS, pushed_words


def steer_figures(data: xr.Dataset) -> dict[str, go.Figure]:
    """Draw the response to every strength, and how far the state is from the run as it was, loop by loop.

    Args:
        data: a dataset of the steer probe.
    """
    figure = make_subplots(
        1, 2, horizontal_spacing=0.12,
        subplot_titles=[f"answer after loop {data.attrs['read_after']}", "distance from the state without a push"],
    )  # fmt: skip
    data = data.sortby("strength")
    for name, variable, colour, dash in (
        ("the direction", "median", BLACK, "solid"),
        ("random directions", "control_median", GREY, "dash"),
    ):
        ends = (data[f"{variable}_low"], data[f"{variable}_high"])
        curve(figure, data.strength, data[variable], ends, colour=colour, name=name, dash=dash)
    figure.update_xaxes(title=f"strength ({UNITS[data.attrs['strength_unit']]})", row=1, col=1)
    figure.update_yaxes(title=f"change of the {measure_words(data)}", row=1, col=1)
    pushes = [float(strength) for strength in data.strength.values if strength]
    for strength, colour in zip(pushes, colours(len(pushes)), strict=True):
        row = data.sel(strength=strength)
        for variable, dash in (("distance", "solid"), ("control_distance", "dot")):
            values = row[variable].where(row[variable] > 0)
            name = f"strength {strength:g}" + (", random" if dash == "dot" else "")
            if dash == "solid" or strength == max(pushes):
                curve(figure, data.loop, values, colour=colour, name=name, dash=dash, col=2)
    for loop in data.in_loop.values if data.sizes["in_loop"] <= 3 else ():
        figure.add_vline(x=int(loop), line={"dash": "dot", "color": GREY, "width": 1}, row=1, col=2)
    figure.update_xaxes(title="loops that are done", row=1, col=2)
    figure.update_yaxes(title="share of its norm", type="log", row=1, col=2)
    if np.ptp(data.loop.values) <= 12:
        figure.update_xaxes(dtick=1, row=1, col=2)
    title = (
        f"{data.model.item()}: steered by the {data.attrs['steered_by']}, {pushed_words(data)}; medians of the prompts"
    )
    return {"steer": finish(figure, title).update_layout(hovermode="closest")}
