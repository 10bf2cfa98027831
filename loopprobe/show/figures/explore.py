"""Figures of the explore probe; the page of linked views is in ``show.explore``."""

from __future__ import annotations

import plotly.graph_objects as go
import xarray as xr

from loopprobe.probes.dataset import read_stamp
from loopprobe.show.figures.style import curve, finish, loop_colour, trained_line

CHANGED = "#c1440e"  # of the changed run, here and on the page


def explore_figures(data: xr.Dataset) -> dict[str, go.Figure]:
    """Draw the median error at the query over the loops, clean and changed, and that of the prompt that is seen whole.

    Args:
        data: a dataset of the explore probe.
    """
    figure = go.Figure().set_subplots(1, 1)
    prompt = int(read_stamp(data).options["prompt"])
    for name, colour in zip(data.run.values, (loop_colour(10), CHANGED), strict=False):
        row = data.sel(run=name)
        ends = row.median_low, row.median_high
        curve(figure, data.loop, row["median"], ends, colour=colour, name=f"{name}, median")
        curve(
            figure,
            data.loop,
            row.error.isel(example=prompt),
            colour=colour,
            name=f"{name}, prompt {prompt}",
            dash="dot",
        )
    positive = bool((data["median"] > 0).all())
    figure.update_yaxes(title=read_stamp(data).query_unit, type="log" if positive else "linear")
    figure.update_xaxes(title="loops done")
    trained_line(figure, int(data.attrs["trained_loops"]), 1)
    return {"explore": finish(figure, f"{data.model.item()}: {data.attrs['description']}")}
