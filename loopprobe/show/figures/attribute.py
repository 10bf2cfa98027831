"""Figures of the attribute probe."""

from __future__ import annotations

import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from loopprobe.show.arrange import answer_of
from loopprobe.show.figures.style import DASHES, colours, curve, diverging, finish, heat
from loopprobe.show.wording import head_name, largest_head


def attribute_figures(data: xr.Dataset) -> dict[str, go.Figure]:
    """Draw the share that each part wrote in each loop: a heat map, and curves of the largest.

    Args:
        data: a dataset of the attribute probe.
    """
    if data.sizes["loop"] == 1:
        return {"attribute": _ordinary(data.isel(loop=0))}
    figure = make_subplots(
        1, 2, subplot_titles=["all parts", "the six largest, with 95 % intervals"], horizontal_spacing=0.18
    )
    heat(figure, data.share, "component", "loop")
    largest = abs(data.share).max("loop").sortby(abs(data.share).max("loop"), ascending=False).component.values[:6]
    for i, (component, colour) in enumerate(zip(largest, colours(len(largest)), strict=True)):
        part = data.sel(component=component)
        curve(
            figure, data.loop, part.share, (part.low, part.high), colour=colour, name=str(component), col=2,
            dash=DASHES[i % len(DASHES)],
        )  # fmt: skip
    figure.update_yaxes(title="loops done once it was written", col=1)
    figure.update_yaxes(title=f"share of {answer_of(data).partition(' (')[0]}", zeroline=True, col=2)
    figure.update_xaxes(title="loops done once it was written", col=2)
    figure.update_layout(coloraxis=diverging(data.share, "share", x=0.415))
    title = f"{data.model.item()}: {answer_of(data)} at the query, split along the direct path through the norms"
    if (head := largest_head(data.share)) is not None:
        title += f"; of all heads {head_name(head)} in loop {int(head.loop)} wrote most ({float(head):.0%})"
    finish(figure, title)
    return {"attribute": figure.update_layout(hovermode="closest", height=520)}


def _ordinary(data: xr.Dataset) -> go.Figure:
    """Draw one bar per part with its 95 % interval, for a model with one loop."""
    figure = go.Figure()
    figure.add_bar(
        x=data.component.values, y=data.share.values, marker={"color": colours(1)[0]},
        error_y={"type": "data", "array": (data.high - data.share).values, "arrayminus": (data.share - data.low).values,
                 "thickness": 1, "width": 2},
        hovertemplate="%{x}: %{y:.3f}<extra></extra>",
    )  # fmt: skip
    figure.update_yaxes(title=f"share of {answer_of(data).partition(' (')[0]}")
    figure.update_xaxes(tickfont={"size": 10})
    finish(figure, f"{data.model.item()}: {answer_of(data)} at the query, split by what wrote it (95 % intervals)")
    return figure.update_layout(hovermode="closest", height=520)
