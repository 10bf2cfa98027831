"""Figures of the features probe."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import shorten

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from loopprobe.probes.feature_fits import COMPONENTS, GAUSSIAN, IN_EACH, IN_TOTAL, OTHER_SEED, SHARED
from loopprobe.show.figures.ablate import measure_words
from loopprobe.show.figures.style import BASELINE_COLOURS, BLACK, GREY, curve, finish
from loopprobe.show.tables.features import edited_words, lived

LOOKS = {
    SHARED: (BLACK, "solid"),
    OTHER_SEED: (BLACK, "dot"),
    IN_TOTAL: (BASELINE_COLOURS[1], "solid"),
    IN_EACH: (BASELINE_COLOURS[4], "solid"),
    COMPONENTS: (GREY, "dot"),
    GAUSSIAN: (GREY, "dash"),
}
COLUMNS = 3  # of maps in a row


def dictionaries_figure(
    datasets: Sequence[xr.Dataset], title: str = "variance of held-out states that sparse dictionaries explain"
) -> go.Figure:
    """Draw what every dictionary explains of held-out states, loop by loop, with one panel a model.

    Args:
        datasets: of the features probe, one a model.
        title: of the figure.
    """
    titles = [str(data.model.item()) for data in datasets]
    figure = make_subplots(1, len(datasets), subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.04)
    shown: set[str] = set()
    for col, data in enumerate(datasets, 1):
        for name in map(str, data.dictionary.values):
            row, (colour, dash) = data.sel(dictionary=name), LOOKS[name]
            ends = (row.explained_low, row.explained_high)
            curve(
                figure, data.loop, row.explained, ends, colour=colour, dash=dash, name=name, col=col,
                in_legend=name not in shown,
            )  # fmt: skip
            shown.add(name)
    figure.update_xaxes(title="loops that are done")
    figure.update_yaxes(title="explained variance", tickformat=".0%", col=1)
    return finish(figure, f"{title}; {datasets[0].attrs['k']} features active at most")


def features_figures(data: xr.Dataset) -> dict[str, go.Figure]:
    """Draw in which loops features live, where the shown ones are active, and what it does to ablate one.

    Args:
        data: a dataset of the features probe.
    """
    return {"features-lives": _lives(data), "features-where": _where(data), "features-ablated": _ablated(data)}


def _lives(data: xr.Dataset) -> go.Figure:
    """Draw the mean activation of every feature by loop, in order of the loops in which they live; and how long."""
    figure = make_subplots(
        1, 2, column_widths=[0.6, 0.4], horizontal_spacing=0.2,
        subplot_titles=["mean activation of each feature", "how many features live where"],
    )  # fmt: skip
    alive = data.lives.transpose("loop", "feature").values.astype(bool)
    first, last = alive.argmax(0), len(alive) - 1 - alive[::-1].argmax(0)
    peak = data.activation.transpose("loop", "feature").values.argmax(0)
    order = np.lexsort((peak, last, first))
    order = order[alive.any(0)[order]]
    values = data.activation.transpose("feature", "loop").values[order]
    names = np.repeat(data.feature.values[order][:, None], data.sizes["loop"], axis=1)
    figure.add_heatmap(
        x=data.loop.values, y=np.arange(len(order)), z=values / values.max(1, keepdims=True), customdata=names,
        coloraxis="coloraxis", row=1, col=1,
        hovertemplate="feature %{customdata}, loop %{x}: %{z:.0%} of its largest<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title="loops that are done", row=1, col=1)
    figure.update_yaxes(title="features, by the loops in which they live", autorange="reversed", row=1, col=1)
    shared = [str(name) for name in data.dictionary.values if bool(data.lifetimes.sel(dictionary=name).notnull().all())]
    for name in shared:
        counts = data.lifetimes.sel(dictionary=name)
        pattern = "/" if name == OTHER_SEED else ""
        figure.add_bar(
            x=data.kind.values, y=counts.values, name=name, marker={"color": LOOKS[name][0], "pattern_shape": pattern},
            text=counts.values, texttemplate="%{text:d}", textposition="outside", cliponaxis=False,
            textfont={"size": 10}, textangle=0, constraintext="none", row=1, col=2,
        )  # fmt: skip
    figure.update_yaxes(title="features", row=1, col=2)
    finish(figure, f"{data.model.item()}: features of the dictionary that all loops share, and where they live")
    bar = {"title": {"text": "share of its largest", "side": "right"}, "thickness": 12, "tickformat": ".0%", "x": 0.49}
    return figure.update_layout(
        height=620, hovermode="closest", legend={"x": 0.5, "y": -0.2, "orientation": "h"}, margin={"r": 30, "b": 110},
        coloraxis={"colorscale": "Viridis", "cmin": 0.0, "cmax": 1.0, "colorbar": bar},
    )  # fmt: skip


def _where(data: xr.Dataset) -> go.Figure:
    """Draw for each shown feature how often it is active by loop and token, and below it how much."""
    shown = data.shown.values
    columns = min(COLUMNS, len(shown))
    rows = 2 * -(-len(shown) // columns)
    titles = [""] * (rows * columns)
    figure = make_subplots(
        rows, columns, shared_xaxes=True, shared_yaxes=True, horizontal_spacing=0.03, vertical_spacing=0.3 / rows,
        subplot_titles=_titles(data, titles, columns),
    )  # fmt: skip
    for i, number in enumerate(shown):
        one, row, col = data.sel(shown=number), 2 * (i // columns) + 1, i % columns + 1
        often, much = (one[name].transpose("loop", "position").values for name in ("map_rate", "map_activation"))
        maps = ((often, "coloraxis"), (much / (much.max() or 1), "coloraxis2"))
        for offset, (values, axis) in enumerate(maps):
            figure.add_heatmap(
                x=data.position.values, y=data.loop.values, z=values, coloraxis=axis, row=row + offset, col=col,
                customdata=np.stack([often, much], -1), hovertemplate="loop %{y}, token %{x}: active on "
                "%{customdata[0]:.0%} of prompts, mean activation %{customdata[1]:.3g}<extra></extra>",
            )  # fmt: skip
    figure.update_xaxes(title="token", row=rows)
    figure.update_yaxes(title="loop", col=1)
    finish(
        figure, f"{data.model.item()}: where features are active; upper maps: how often, lower maps: mean activation"
    )
    bars = [
        {"title": {"text": words, "side": "right"}, "thickness": 12, "len": 0.48, "y": y, "tickformat": ".0%"}
        for words, y in (("share of prompts", 0.76), ("of its largest", 0.24))
    ]
    return figure.update_layout(
        height=150 + 175 * rows, hovermode="closest", margin={"r": 110},
        coloraxis={"colorscale": "Viridis", "cmin": 0.0, "colorbar": bars[0]},
        coloraxis2={"colorscale": "Magma", "cmin": 0.0, "cmax": 1.0, "colorbar": bars[1]},
    )  # fmt: skip


def _titles(data: xr.Dataset, titles: list[str], columns: int) -> list[str]:
    """The titles of the panels, row by row: each feature above its first map."""
    for i, number in enumerate(data.shown.values):
        loops = lived(data.sel(feature=number))
        words = "dead" if loops == "none" else f"loop{'s' * (not loops.isdecimal())} {loops}"
        titles[2 * (i // columns) * columns + i % columns] = f"feature {int(number)}: {shorten(words, 28)}"
    return titles


def _ablated(data: xr.Dataset) -> go.Figure:
    """Draw the effect of ablating each shown feature, and of taking as much in random directions."""
    figure = make_subplots(
        1, 2, shared_yaxes=True, horizontal_spacing=0.05, subplot_titles=["ablated, and random", "ablated minus random"]
    )
    for name, variable, colour, symbol, col in (
        ("the feature", "median", BLACK, "circle", 1),
        ("random directions", "control_median", GREY, "diamond-open", 1),
        ("the feature minus random directions", "against_control_median", BLACK, "circle", 2),
    ):
        value, low, high = (data[variable + end].values for end in ("", "_low", "_high"))
        figure.add_scatter(
            x=value, y=data.shown.values, mode="markers", name=name,
            marker={"color": colour, "size": 9, "symbol": symbol},
            error_x={"array": high - value, "arrayminus": value - low, "color": colour, "thickness": 1.5},
            showlegend=col == 1, hovertemplate="feature %{y}: %{x:.3g}<extra></extra>", row=1, col=col,
        )  # fmt: skip
        figure.add_vline(x=0, line={"dash": "dot", "color": GREY, "width": 1}, row=1, col=col)
    figure.update_xaxes(title=f"change of the {measure_words(data)}")
    figure.update_yaxes(type="category", autorange="reversed")
    figure.update_yaxes(title="feature", row=1, col=1)
    title = f"{data.model.item()}: features taken out of the state {edited_words(data)}; medians of the prompts"
    finish(figure, title)
    return figure.update_layout(hovermode="closest", height=max(450, 220 + 40 * data.sizes["shown"]))
