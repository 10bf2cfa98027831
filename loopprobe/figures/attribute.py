"""Figures of the attribute probe."""

from __future__ import annotations

import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from loopprobe.figures.style import DASHES, colours, curve, diverging, finish, heat


def attribute_figures(data: xr.Dataset) -> dict[str, go.Figure]:
    """The share of the prediction that each part wrote in each loop: as a heat map and, for the largest, as curves.

    Args:
        data: of the attribute probe.
    """
    figure = make_subplots(
        1, 2, subplot_titles=["all parts", "the six largest, with 95 % intervals"], horizontal_spacing=0.18
    )
    heat(figure, data.share, "component", "loop")
    largest = abs(data.share).max("loop").sortby(abs(data.share).max("loop"), ascending=False).component.values[:6]
    for i, (component, colour) in enumerate(zip(largest, colours(len(largest)), strict=True)):
        at = data.sel(component=component)
        curve(
            figure, data.loop, at.share, (at.low, at.high), colour=colour, name=str(component), col=2,
            dash=DASHES[i % len(DASHES)],
        )  # fmt: skip
    figure.update_yaxes(title="loop in which it was written", col=1)
    figure.update_yaxes(title="share of the prediction", zeroline=True, col=2)
    figure.update_xaxes(title="loop in which it was written", col=2)
    figure.update_layout(coloraxis=diverging(data.share, "share", x=0.415))
    finish(figure, f"{data.model.item()}: the prediction at the query, split along the direct path through the norms")
    return {"attribute": figure.update_layout(hovermode="closest", height=520)}
