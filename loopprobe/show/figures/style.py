"""Common parts of all figures: curves with bands, colours, and axes."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.colors import qualitative, sample_colorscale

BLACK, GREY = "#000000", "#777777"
BASELINE_COLOURS = qualitative.Safe  # for things without order; colour-blind readers can tell them apart
SYMBOLS = ("circle", "diamond", "square", "x", "triangle-up", "cross")
SHOWN_TEXTS = 24  # of tokens, which can be read beside one axis
FEWEST_POWERS, MOST_POWERS = 3, 10  # with a tick each
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "10px,4px,2px,4px,2px,4px")
DASHES_OF_DIFFERENCES = ("longdashdot", "2px,3px,8px,3px", "12px,3px", "2px,2px,2px,6px", "1px,5px", "18px,3px,4px,3px")


def colours(n: int) -> list[str]:
    """Return n colours in order, which colour-blind readers and black-and-white prints keep in order."""
    return sample_colorscale("Viridis", [0.3] if n == 1 else np.linspace(0.0, 0.85, n)) if n else []


def loop_colour(n_loops: int) -> str:
    """Return the colour of a model trained with b loops, the same in every figure.

    Ordinary transformers are black.
    """
    if n_loops == 1:
        return BLACK
    return sample_colorscale("Viridis", [min(0.9, max(0.0, (n_loops - 5) / 25))])[0]


def curve(
    figure: go.Figure,
    x: Any,
    mean: Any,
    interval: tuple[Any, Any] | None = None,
    *,
    colour: str,
    name: str,
    row: int = 1,
    col: int = 1,
    dash: str = "solid",
    legend: str = "legend",
    in_legend: bool = True,
) -> None:
    """Draw a line with its 95 % interval as a band; both share one legend entry.

    Args:
        figure: a figure made by ``make_subplots``.
        x, mean: the coordinates of the line.
        interval: the lower and upper ends.
        colour, dash: the look of the line.
        name: the name in the legend; curves with the same name and legend are toggled together.
        row, col: the panel.
        legend: the legend of the figure that the curve belongs to.
        in_legend: whether this curve makes the legend's entry.
    """
    x, mean = np.asarray(x), np.asarray(mean)
    group = f"{legend} {name}"
    if interval is not None:
        low, high = (np.asarray(end) for end in interval)
        figure.add_scatter(
            x=np.concatenate([x, x[::-1]]), y=np.concatenate([high, low[::-1]]),
            fill="toself", fillcolor=colour, opacity=0.18, line={"width": 0}, mode="lines", hoverinfo="skip",
            showlegend=False, legendgroup=group, row=row, col=col,
        )  # fmt: skip
    figure.add_scatter(
        x=x, y=mean, mode="lines+markers" if len(x) <= 40 else "lines", name=name,
        line={"color": colour, "width": 2, "dash": dash}, marker={"size": 4},
        showlegend=in_legend, legend=legend, legendgroup=group, row=row, col=col,
        customdata=None if interval is None else np.stack([low, high], -1),
        hovertemplate="%{y:.4g}" + ("" if interval is None else " [%{customdata[0]:.4g}, %{customdata[1]:.4g}]"),
    )  # fmt: skip


def heat(
    figure: go.Figure,
    values: xr.DataArray,
    x: str,
    y: str,
    *,
    row: int = 1,
    col: int = 1,
    template: str = "%{z:.3g}",
    coloraxis: str = "coloraxis",
) -> None:
    """Draw a heat map of a matrix with labelled axes; all heat maps of a figure share their colours.

    Args:
        figure: a figure made by ``make_subplots``.
        values: an array with the dimensions ``x`` and ``y``.
        x, y: the dimension along each axis.
        row, col: the panel.
        template: the format of a value on hover.
        coloraxis: the colour scale of the figure, for maps of another kind.
    """
    for dim, axes in ((x, figure.update_xaxes), (y, figure.update_yaxes)):
        if values.sizes[dim] == 1:  # no numbers between the halves of a single cell
            axes(tickmode="array", tickvals=values[dim].values, row=row, col=col)
    figure.add_heatmap(
        x=values[x].values, y=values[y].values, z=values.transpose(y, x).values, coloraxis=coloraxis,
        row=row, col=col, hovertemplate=f"{y} %{{y}}, {x} %{{x}}: {template}<extra></extra>",
    )  # fmt: skip


def name_tokens(figure: go.Figure, texts: Sequence[str]) -> go.Figure:
    """Write the texts of tokens beside the axes that count them, which have a title that begins with "token".

    Of several panels in a grid only those at the left and at the bottom have room for words.
    """
    if all(text == str(place) for place, text in enumerate(texts)):  # prompts that share no token
        return figure
    most = max(1, -(-len(texts) // SHOWN_TEXTS))
    places = list(range(0, len(texts), most))
    words = [texts[place].replace("<", "&lt;") for place in places]
    across = [axis for axis in figure.select_xaxes() if (axis.title.text or "").startswith("token")]
    down = [axis for axis in figure.select_yaxes() if (axis.title.text or "").startswith("token")]
    for axis in (*across, *down):
        axis.update(tickmode="array", tickvals=places, ticktext=words, title=axis.title.text.partition(" (")[0])
    bottoms = {axis.plotly_name: _side(figure, axis) for axis in across}
    for axis in across:
        axis.update(tickangle=-60)
        if bottoms[axis.plotly_name] > min(bottoms.values()):
            axis.update(showticklabels=False, title=None)
    if down:
        for axis in figure.select_yaxes():
            if not axis.title.text and any(axis.domain == named.domain for named in down):
                axis.update(showticklabels=False)
    for slider in figure.layout.sliders:
        slider.update(pad={"t": 110})
        figure.update_layout(margin={"b": 150}, height=(figure.layout.height or 500) + 90)
    title = figure.layout.title.text or ""
    return figure.update_layout(title={"text": re.sub(r" \(tokens:.*\)", "", title, flags=re.S)})


def _side(figure: go.Figure, axis: Any) -> float:
    """The height at which a horizontal axis stands, between 0 and 1."""
    number = (axis.anchor or "y").removeprefix("y")
    domain = figure.layout[f"yaxis{number}"].domain
    return float(domain[0]) if domain else 0.0


def diverging(values: Any, title: str, **colorbar: Any) -> dict[str, Any]:
    """Return a colour axis around zero, blue below and red above, which colour-blind readers can tell apart."""
    sizes = np.abs(np.asarray(values, float))
    most = float(sizes[np.isfinite(sizes)].max(initial=0)) or 1.0
    bar = {"title": {"text": title, "side": "right"}, "thickness": 14, **colorbar}
    return {"colorscale": "RdBu_r", "cmin": -most, "cmax": most, "colorbar": bar}


def level(figure: go.Figure, x: Any, value: float, name: str, *, col: int = 1, legend: str = "legend",
          in_legend: bool = True, colour: str = GREY, dash: str = "dot") -> None:  # fmt: skip
    """Draw a horizontal line from one end of x to the other, with a legend entry."""
    x = np.asarray(x)
    figure.add_scatter(
        x=[x.min(), x.max()], y=[value] * 2, mode="lines", name=name,
        line={"dash": dash, "color": colour, "width": 1.5},
        legend=legend, legendgroup=f"{legend} {name}", showlegend=in_legend, row=1, col=col,
        hovertemplate="%{y:.4g}",
    )  # fmt: skip


def trained_line(figure: go.Figure, n_loops: int, col: int, *, log: bool = False) -> None:
    """Draw a vertical line at the loop count of the training; ``log`` is for a logarithmic axis."""
    figure.add_vline(x=n_loops, line={"dash": "dot", "color": GREY, "width": 1}, col=col)
    figure.add_annotation(
        x=math.log10(n_loops) if log else n_loops, y=1, yref="y domain", text="trained", showarrow=False,
        xanchor="left", yanchor="top", font={"size": 11, "color": GREY}, row=1, col=col,
    )  # fmt: skip


def log_errors(figure: go.Figure, title: str) -> None:
    """Set logarithmic axes of median errors, the same in all panels; the title says what is measured."""
    figure.update_yaxes(type="log", matches="y")
    figure.update_yaxes(title=f"{title}, median", col=1)


def measure_axes(figure: go.Figure, data: xr.Dataset, title: str) -> None:
    """Set logarithmic axes of median errors; linear ones where a dataset measures something else."""
    if "measure" in data.attrs:
        figure.update_yaxes(matches="y")
        figure.update_yaxes(title=f"{title}, median", col=1)
    else:
        log_errors(figure, title)


def finish(figure: go.Figure, title: str) -> go.Figure:
    """Apply the common look, with the height that the legend needs, and give logarithmic axes their ticks."""
    _tick_logs(figure)
    entries = sum(trace.showlegend is not False and trace.legend in (None, "legend") for trace in figure.data)
    wrapped = "<br>".join(textwrap.wrap(title, 120))
    of_panels = max(((one.text or "").count("<br>") for one in figure.layout.annotations if one.y == 1), default=0)
    further = 20 * (wrapped.count("<br>") + max(0, of_panels - 1))  # pixels of the further lines of titles
    figure.update_layout(
        template="plotly_white",
        title={"text": wrapped, "x": 0.01, "y": 1, "yanchor": "top", "pad": {"t": 24}, "font": {"size": 15}},
        margin={"t": 95 + further, "r": 160}, hovermode="x unified", font={"family": "system-ui, sans-serif"},
        legend={"x": 1.005, "y": 1, "tracegroupgap": 3}, height=max(450, 23 * entries + 175) + further,
    )  # fmt: skip
    figure.update_coloraxes(colorbar={"exponentformat": "power"})
    if len({axis.domain for axis in figure.select_xaxes()}) > 2:
        figure.update_xaxes(title={"font": {"size": 11}})
    return figure


def _tick_logs(figure: go.Figure) -> None:
    """Set ticks at powers of ten; at 1, 2, 3 and 5 times them where too few powers lie within what is drawn.

    Axes that match one another have the ticks of all that is drawn along them. Where a single tick would lie within,
    plotly sets them.
    """
    axes = [axis for axis in (*figure.select_xaxes(), *figure.select_yaxes()) if axis.type == "log"]
    names = {axis.plotly_name.replace("axis", ""): axis for axis in axes}
    drawn: dict[str, list[np.ndarray]] = {}
    for part in (*figure.data, *figure.layout.shapes):
        for letter in "xy":
            place = "ref" if isinstance(part, go.layout.Shape) else "axis"
            name = getattr(part, f"{letter}{place}", None) or letter
            if name in names:
                drawn.setdefault(names[name].matches or name, []).append(_extent(part, letter))
    for name, axis in names.items():
        if axis.tickvals is None and axis.tickformat is None:
            axis.update(_log_ticks(np.concatenate([*drawn.get(axis.matches or name, []), []])))


def _extent(part: Any, letter: str) -> np.ndarray:
    """Return what a trace or shape draws along an axis, with the ends of its error bars; NaN where it has a gap."""
    if isinstance(part, go.layout.Shape):
        return np.array([part[f"{letter}0"], part[f"{letter}1"]], float)
    drawn, bars = getattr(part, letter, None), getattr(part, f"error_{letter}", None)
    values = np.asarray([] if drawn is None else drawn, float)
    if bars is None or bars.array is None:
        return values
    above = np.asarray(bars.array, float)
    below = above if bars.arrayminus is None else np.asarray(bars.arrayminus, float)
    return np.concatenate([values, values + above, values - below])


def _log_ticks(values: np.ndarray) -> dict[str, Any]:
    logs = np.log10(values[np.isfinite(values) & (values > 0)]).clip(-300, 300)  # powers that float64 holds
    if not logs.size:
        return {"exponentformat": "power", "dtick": 1}
    low, high = math.floor(logs.min()), math.ceil(logs.max())
    ticks = [digit * 10.0**power for power in range(low, high + 1) for digit in (1, 2, 3, 5)]
    inside = [tick for tick in ticks if logs.min() - 1e-9 <= math.log10(tick) <= logs.max() + 1e-9]
    if sum(tick in ticks[::4] for tick in inside) >= FEWEST_POWERS:
        return {"exponentformat": "power", "dtick": math.ceil((high - low) / MOST_POWERS)}
    if len(inside) > 1:
        return {"tickvals": ticks, "ticktext": [f"{tick:.3g}" for tick in ticks]}
    return {"exponentformat": "power"}  # where plotly sets linear ticks
