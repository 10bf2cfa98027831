"""Common parts of all figures: curves with bands, colours, axes, and the writing of files."""

from __future__ import annotations

import math
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.colors import qualitative, sample_colorscale
from plotly.offline import get_plotlyjs

from loopprobe.errors import LoopprobeError
from loopprobe.probes.dataset import writing
from loopprobe.support.extras import require_extra

BLACK, GREY = "#000000", "#777777"
BASELINE_COLOURS = qualitative.Safe  # for things without order; colour-blind readers can tell them apart
SYMBOLS = ("circle", "diamond", "square", "x", "triangle-up", "cross")
SHOWN_TEXTS = 24  # of tokens, which can be read beside one axis
NARROWEST = 900  # pixels of a page's figure, which is scrolled where a window is narrower
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


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
    figure.update_yaxes(type="log", dtick=1, exponentformat="power", matches="y")
    figure.update_yaxes(title=f"{title}, median", col=1)


def log_axis(values: Any) -> dict[str, Any]:
    """Return what makes an axis logarithmic; one too short for powers of ten has ticks at 1, 2, 3 and 5 times them."""
    logs = np.log10(np.asarray(values, float))
    logs = logs[np.isfinite(logs)]
    if logs.size == 0 or np.ptp(logs) > 1.5:
        return {"type": "log", "exponentformat": "power", "dtick": 1}
    powers = range(math.floor(logs.min()), math.ceil(logs.max()) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 3, 5)]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:.3g}" for tick in ticks]}


def measure_axes(figure: go.Figure, data: xr.Dataset, title: str) -> None:
    """Set logarithmic axes of median errors; linear ones where a dataset measures something else."""
    if "measure" in data.attrs:
        figure.update_yaxes(matches="y")
        figure.update_yaxes(title=f"{title}, median", col=1)
    else:
        log_errors(figure, title)


def finish(figure: go.Figure, title: str) -> go.Figure:
    """Apply the common look, with the height that the legend needs."""
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


def write_html(figure: go.Figure, path: Path, *, alone: bool = True) -> None:
    """Write an interactive page, whole or not at all; a slider does not play by itself.

    Args:
        figure: the figure to write.
        path: the path of the page.
        alone: whether the page holds plotly's script, so that it can be sent by itself; else plotly.min.js must lie
            beside it.

    Raises:
        LoopprobeError: the page cannot be written.
    """
    page = figure.to_html(include_plotlyjs=True if alone else "directory", full_html=True, auto_play=False)
    page = page.replace("<head>", f"<head><style>.plotly-graph-div {{min-width: {NARROWEST}px}}</style>", 1)
    with writing(path) as partial:
        partial.write_text(page, encoding="utf-8")


def write_figures(figures: Mapping[str, go.Figure], folder: Path, *, png: bool = False) -> list[Path]:
    """Write the figures of a folder.

    A single page holds plotly's script itself. Several pages share one file of it beside them.

    Args:
        figures: the figures by the stem of their files.
        folder: the folder to write to; it must exist.
        png: write pictures too.

    Returns:
        The paths that were written.

    Raises:
        LoopprobeError: a file cannot be written, or no PNG can be made.
    """
    alone = len(figures) == 1
    if not alone and figures:
        write_script(folder)
    paths = []
    for stem, figure in figures.items():
        write_html(figure, folder / f"{stem}.html", alone=alone)
        paths.append(folder / f"{stem}.html")
        if png:
            write_png(figure, folder / f"{stem}.png")
            paths.append(folder / f"{stem}.png")
    return paths


def write_script(folder: Path) -> None:
    """Write plotly's script into a folder, unless it is already there."""
    script, path = get_plotlyjs().encode(), folder / "plotly.min.js"
    if path.is_file() and path.read_bytes() == script:
        return
    with writing(path) as partial:
        partial.write_bytes(script)


def require_png() -> None:
    """Raise LoopprobeError if no PNG can be made because kaleido or a Chrome is not installed."""
    _png(go.Figure(), width=16, height=16)


def write_png(figure: go.Figure, path: Path) -> None:
    """Write a picture with kaleido and a Chrome.

    Raises:
        LoopprobeError: one of these is not installed, or the picture cannot be written.
    """
    picture = _png(figure, width=1100, height=max(520, figure.layout.height or 0), scale=2)
    with writing(path) as partial:
        partial.write_bytes(picture)


def _png(figure: go.Figure, **size: int) -> bytes:
    require_extra("kaleido", "png", "PNG")
    try:
        return figure.to_image("png", **size)
    except Exception as error:  # kaleido and choreographer raise many kinds
        if "chrome" not in str(error).lower():
            raise
        if named := os.environ.get("BROWSER_PATH"):
            reason = str((*error.args, "no reason given")[0]).strip().rstrip(".")
            raise LoopprobeError(
                f"{named}, which BROWSER_PATH names, draws no PNG ({reason}): see what it lacks with --version"
            ) from None
        raise LoopprobeError(
            "PNG needs a Chrome or Chromium: install one, or name it in the environment variable BROWSER_PATH"
        ) from None
