"""Figures of the ablate probe."""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from loopprobe.probes.dataset import measure_words, read_stamp
from loopprobe.show.figures.style import (
    BASELINE_COLOURS,
    DASHES,
    SYMBOLS,
    colours,
    curve,
    diverging,
    finish,
    heat,
)
from loopprobe.show.wording import head_name, largest_head

WORDS = {"zero": "zero", "mean": "its mean", "resample": "another prompt's", "optimal": "the best constant"}
MOST_CURVES, MOST_MAPS = 6, 6
NAMED = 8  # places that are named beside their marks


def ablate_figures(data: xr.Dataset) -> dict[str, go.Figure]:
    """Draw the effects of ablations, and how far ways to rank places agree.

    Args:
        data: a dataset of the ablate probe.
    """
    made = {"ablate": _by_token(data) if "position" in data.dims else _effects(data)}
    if data.sizes["way"] > 1 and bool(data.rank_correlation.notnull().any()):
        made["ablate-agreement"] = _agreement(data)
    return made


def _effects(data: xr.Dataset) -> go.Figure:
    """Draw heat maps of every method; below them curves of the largest components, and all loops together."""
    methods = [str(name) for name in data.replaced_by.values]
    has_all, n = "together" in data, len(methods)
    cols = 2 * n  # so that the two panels below are half as wide as the figure, whatever n is
    lower = [{"colspan": n}, *[None] * (n - 1)] * 2 if has_all else [{"colspan": cols}, *[None] * (cols - 1)]
    titles = [f"replaced by {WORDS[name]}" for name in methods]
    titles += [f"one loop, by {WORDS[methods[0]]}: the largest", *(["all these loops together"] if has_all else [])]
    figure = make_subplots(
        2, cols, specs=[[{"colspan": 2}, None] * n, lower], subplot_titles=titles, vertical_spacing=0.2,
        horizontal_spacing=0.08 / n,
    )  # fmt: skip
    for i, name in enumerate(methods):
        heat(figure, data["median"].sel(replaced_by=name), "loop", "component", row=1, col=2 * i + 1)
        figure.update_xaxes(title="loop in which it is ablated", row=1, col=2 * i + 1)
        figure.update_yaxes(autorange="reversed", showticklabels=i == 0, row=1, col=2 * i + 1)
    first = data.isel(replaced_by=0)
    sizes = abs(first["median"]).max("loop")
    largest = sizes.sortby(sizes, ascending=False).component.values[:MOST_CURVES]
    for i, (component, colour) in enumerate(zip(largest, colours(len(largest)), strict=True)):
        part = first.sel(component=component)
        ends = (part.median_low, part.median_high)
        curve(figure, data.loop, part["median"], ends, colour=colour, name=str(component), row=2,
              dash=DASHES[i % len(DASHES)])  # fmt: skip
    figure.update_xaxes(title="loop in which it is ablated", row=2, col=1)
    figure.update_yaxes(title=f"change of the {data.attrs['measure']}", row=2, col=1)
    if data.sizes["loop"] <= 12:
        figure.update_xaxes(dtick=1)
    for i, name in enumerate(methods if has_all else []):
        part = data.sel(replaced_by=name)
        figure.add_bar(
            x=data.component.values, y=part.together_median.values, name=f"by {WORDS[name]}", legend="legend2",
            marker={"color": BASELINE_COLOURS[i]},
            error_y={"type": "data", "array": (part.together_median_high - part.together_median).values,
                     "arrayminus": (part.together_median - part.together_median_low).values,
                     "thickness": 1, "width": 2},
            hovertemplate="%{x}: %{y:.3g}", row=2, col=n + 1,
        )  # fmt: skip
    bar = {"y": 0.79, "len": 0.45, "x": 1.02}
    title = f"{data.model.item()}: what an ablation adds to the {measure_words(data)}, median of the prompts"
    if (head := largest_head(data["median"])) is not None:
        by = f", replaced by {WORDS[str(head.replaced_by.item())]}," if data.sizes["replaced_by"] > 1 else ""
        title += f"; of all heads {head_name(head)} in loop {int(head.loop)}{by} does most ({float(head):.3g})"
    finish(figure, title)
    figure.update_layout(coloraxis=diverging(data["median"], "change", **bar), hovermode="closest", height=760)
    return figure.update_layout(legend={"x": 1.005, "y": 0.42}, legend2={"x": 1.005, "y": 0.12})


def _by_token(data: xr.Dataset) -> go.Figure:
    """Draw heat maps of loop and token of the components with the largest effects, by the first method."""
    first = data.isel(replaced_by=0)
    sizes = abs(first["median"]).max(("loop", "position"))
    largest = sizes.sortby(sizes, ascending=False).component.values[:MOST_MAPS]
    cols = min(3, len(largest))
    rows = math.ceil(len(largest) / cols)
    figure = make_subplots(rows, cols, subplot_titles=list(map(str, largest)), vertical_spacing=0.35 / rows)
    stamp = read_stamp(data)
    for i, component in enumerate(largest):
        row, col = i // cols + 1, i % cols + 1
        heat(figure, first["median"].sel(component=component), "position", "loop", row=row, col=col)
        figure.update_xaxes(title=f"token ({stamp.tokens})", row=row, col=col)
        figure.update_yaxes(title="loop" if col == 1 else None, row=row, col=col)
    title = f"{data.model.item()}: what ablating one token adds to the {measure_words(data)}, by "
    finish(figure, title + f"{WORDS[str(first.replaced_by.item())]}, median of the prompts")
    figure.update_layout(coloraxis=diverging(first["median"], "change", x=1.02), hovermode="closest")
    return figure.update_layout(height=130 + 300 * rows)


def _agreement(data: xr.Dataset) -> go.Figure:
    """Draw the rank correlations of all ways with their intervals, and the importances of all places."""
    ways = [str(way) for way in data.way.values]
    rows = math.ceil((len(ways) - 1) / 2)
    cols = min(2, len(ways) - 1)
    figure = make_subplots(
        rows, cols + 1, specs=[[{"rowspan": rows} if row == 0 else None, *[{}] * cols] for row in range(rows)],
        subplot_titles=["rank correlation [95 % interval]", *(f"{way} (vertical)" for way in ways[1:])],
        horizontal_spacing=0.07, vertical_spacing=0.32 / rows, column_widths=[0.5, *[0.5 / cols] * cols],
    )  # fmt: skip
    values, low, high = (data[f"rank_correlation{end}"].values for end in ("", "_low", "_high"))
    text = [
        ["" if i == j or np.isnan(v) else f"{v:.2f}<br>[{a:.2f}, {b:.2f}]" for j, (v, a, b) in enumerate(rows_of)]
        for i, rows_of in enumerate(np.stack([values, low, high], -1))
    ]
    short = [way.replace("attribution patching", "attr. patching").replace("direct attribution", "direct attr.")
             for way in ways]  # fmt: skip
    figure.add_heatmap(
        x=short, y=short, z=values, text=text, texttemplate="%{text}", textfont={"size": 9}, coloraxis="coloraxis",
        hovertemplate="%{y}, %{x}: %{z:.3f}<extra></extra>", row=1, col=1,
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed", row=1, col=1)
    base = data.importance.isel(way=0)
    loops = xr.broadcast(data.loop, base)[0].transpose(*base.dims).values.ravel()
    names = xr.broadcast(data.component, base)[0].transpose(*base.dims).values.ravel()
    for i in range(1, len(ways)):
        place = {"row": (i - 1) // cols + 1, "col": (i - 1) % cols + 2}
        other = data.importance.isel(way=i).transpose(*base.dims)
        x, y = _positive(base), _positive(other)
        figure.add_scatter(
            x=x, y=y, mode="markers+text" if len(x) <= NAMED else "markers", showlegend=False,
            text=names, textposition="top center", textfont={"size": 9}, cliponaxis=False,
            marker={"size": 5, "color": loops, "colorscale": "Viridis", "opacity": 0.75,
                    "symbol": [SYMBOLS[0 if str(name).startswith("head") else 1] for name in names]},
            customdata=np.stack([names, loops], -1),
            hovertemplate="%{customdata[0]}, loop %{customdata[1]}: %{x:.2g}, %{y:.2g}<extra></extra>", **place,
        )  # fmt: skip
        figure.update_xaxes(title=f"{ways[0]} ablation", type="log", **place)
        figure.update_yaxes(type="log", **place)
    note = f"; patched: {data.attrs['corruption']} differ" if data.attrs["corruption"] else ""
    units = str(data.importance.attrs.get("units", ""))
    units = f"in units {units}" if units.startswith("of ") else f"in {units}"
    finish(
        figure,
        f"{data.model.item()}: how far a place moves the answer, {units}, median of the prompts, by {len(ways)} ways; "
        f"one mark a place (circles: heads, diamonds: MLPs; dark: early loops){note}",
    )
    colour = {"colorscale": "RdBu_r", "cmin": -1, "cmax": 1, "showscale": False}
    return figure.update_layout(coloraxis=colour, hovermode="closest", height=max(560, 170 + 270 * rows))


def _positive(values: xr.DataArray) -> np.ndarray:
    """The values as logarithmic axes take them: zero is missing."""
    flat = values.values.ravel().astype(float)
    return np.where(flat > 0, flat, np.nan)
