"""Datasets to plotly figures; no input or output but ``write_html`` and ``write_png``."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from loopprobe.errors import LoopprobeError
from loopprobe.storage import atomic

CLEAN = "#000000"
ERROR_AXIS = "squared error at the query / n_dims"


def mask_figure(data: xr.Dataset) -> go.Figure:
    """Error against what is kept of the state, and against the loop.

    With four or more values of n, the left panel is error against n, one curve a loop count; with fewer it is
    error against the number of in-context examples. The right panel is error against the loop, one curve an n.

    Args:
        data: of the mask probe.
    """
    n = data.n.values
    config = json.loads(data.attrs["config"])
    verb = "masked" if config["invert"] else "kept"
    over_n = len(n) >= 4
    titles = [
        f"by n, the {config['unit']}s {verb}" if over_n else "after the last loop, by in-context examples",
        "over the loops",
    ]
    figure = make_subplots(rows=1, cols=2, subplot_titles=titles, horizontal_spacing=0.2 if over_n else 0.1)
    shown = loops_to_show(data)
    if over_n:
        for loop, colour in zip(shown, colours(len(shown)), strict=True):
            at = data.sel(loop=loop)
            _curve(figure, n, at["mean"], at.low, at.high, colour, f"{loop} loop{'s' * (loop > 1)}", "legend", 1)
        figure.update_xaxes(title=f"n: {config['mode']} {config['unit']}s of the state {verb}", col=1)
    else:
        last = data.isel(loop=-1)
        for i, colour in enumerate(colours(len(n))):
            _curve(
                figure,
                data.point.values,
                last.error_by_point.values[i],
                None,
                None,
                colour,
                None,
                "legend2",
                1,
            )
        _curve(figure, data.point.values, last.clean_error_by_point, None, None, CLEAN, None, "legend2", 1)
        figure.update_xaxes(title="in-context examples before the query", col=1)
    picked = n if len(n) <= 6 else n[np.unique(np.linspace(0, len(n) - 1, 6).round().astype(int))]
    for value, colour in zip(picked, colours(len(picked)), strict=True):
        at = data.sel(n=value)
        _curve(figure, data.loop.values, at["mean"], at.low, at.high, colour, f"n = {value}", "legend2", 2)
    _curve(
        figure, data.loop.values, data.clean_mean, data.clean_low, data.clean_high, CLEAN, "clean run", "legend2", 2
    )  # fmt: skip
    for col, x in ((1, figure.data[0].x), (2, data.loop.values)):
        figure.add_scatter(
            x=[min(x), max(x)], y=[data.attrs["zero_predictor"]] * 2, mode="lines", name="predicting zero",
            line={"dash": "dot", "color": "#777777", "width": 1}, legend="legend2", legendgroup="zero",
            showlegend=col == 2, hoverinfo="skip", row=1, col=col,
        )  # fmt: skip
    figure.add_vline(
        x=data.attrs["trained_loops"], line={"dash": "dot", "color": "#777777", "width": 1}, col=2,
        annotation={"text": "trained", "font": {"size": 11, "color": "#777777"}},
    )  # fmt: skip
    figure.update_xaxes(title="loops", col=2)
    figure.update_yaxes(type="log", dtick=1, exponentformat="power", matches="y")
    figure.update_yaxes(title=ERROR_AXIS, col=1)
    if not over_n:
        figure.update_yaxes(title="squared error / n_dims", col=1)
        figure.update_yaxes(title=ERROR_AXIS, col=2)
    description = "<br>".join(textwrap.wrap(data.attrs["description"], 120))
    return _style(figure, f"{data.model.item()}: {description}")


def loops_to_show(data: xr.Dataset, wanted: Sequence[int] | None = None) -> list[int]:
    """A handful of loop counts: those asked for, or 1, 2, 5, 10, … with the trained and the last."""
    last = int(data.loop[-1])
    if wanted is None:
        wanted = [1, 5, data.attrs["trained_loops"], last]
    return sorted({int(loop) for loop in wanted if loop <= last})


def colours(n: int) -> list[str]:
    """n colours in order, from one scale that colour-blind readers and black-and-white prints keep in order."""
    return sample_colorscale("Viridis", np.linspace(0.0, 0.85, n) if n > 1 else [0.3])


def write_html(figure: go.Figure, path: Path) -> None:
    """An interactive page; plotly's script lies once beside all pages of the folder."""
    figure.write_html(path, include_plotlyjs="directory", full_html=True)


def write_png(figure: go.Figure, path: Path) -> None:
    """A picture, through kaleido and a Chrome.

    Raises:
        LoopprobeError: kaleido or Chrome is not installed.
    """
    try:
        import kaleido  # noqa: F401
    except ImportError:
        raise LoopprobeError("PNG needs kaleido: pip install 'loopprobe[png]'") from None
    try:
        picture = figure.to_image("png", width=1100, height=520, scale=2)
    except Exception as error:  # kaleido and choreographer raise many kinds
        if "chrome" not in str(error).lower():
            raise
        raise LoopprobeError(
            "PNG needs a Chrome or Chromium: install one, or name it in the environment variable BROWSER_PATH"
        ) from None
    with atomic(path) as partial:
        partial.write_bytes(picture)


def _curve(
    figure: go.Figure,
    x: Any,
    mean: Any,
    low: Any,
    high: Any,
    colour: str,
    name: str | None,
    legend: str,
    col: int,
) -> None:
    """A line with its 95 % interval as a band; both answer to one legend entry."""
    x, mean = np.asarray(x), np.asarray(mean)
    group = f"{legend} {name}"
    if low is not None:
        figure.add_scatter(
            x=np.concatenate([x, x[::-1]]), y=np.concatenate([np.asarray(high), np.asarray(low)[::-1]]),
            fill="toself", fillcolor=colour, opacity=0.2, line={"width": 0}, hoverinfo="skip",
            showlegend=False, legendgroup=group, row=1, col=col,
        )  # fmt: skip
    figure.add_scatter(
        x=x, y=mean, mode="lines+markers" if len(x) <= 40 else "lines", name=name, line={"color": colour, "width": 2},
        marker={"size": 4}, showlegend=name is not None, legend=legend, legendgroup=group, row=1, col=col,
        customdata=None if low is None else np.stack([np.asarray(low), np.asarray(high)], -1),
        hovertemplate="%{y:.4g}" + ("" if low is None else " [%{customdata[0]:.4g}, %{customdata[1]:.4g}]"),
    )  # fmt: skip


def _style(figure: go.Figure, title: str) -> go.Figure:
    figure.update_layout(
        template="plotly_white", title={"text": title, "x": 0.01, "font": {"size": 15}}, margin={"t": 110, "r": 140},
        hovermode="x unified", font={"family": "system-ui, sans-serif"},
        legend={"x": 0.405, "y": 1}, legend2={"x": 1.005, "y": 1},
    )  # fmt: skip
    return figure
