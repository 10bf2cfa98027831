"""Figures of the edges probe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from loopprobe.probes.edge_runs import READ_OUT
from loopprobe.show.arrange import largest_edges
from loopprobe.show.figures.style import BASELINE_COLOURS, GREY, SYMBOLS, colours, curve, diverging, finish, heat

DRAWN, PAIRS, LAGS = 30, 14, 4  # edges in the graph; pairs in the heat map; curves of lags
BLUE, RED = "#2166ac", "#b2182b"
SIDES = {"q": -0.12, "k": 0.0, "v": 0.12}  # how far beside a head edges to its queries, keys and values end
KEY = "red: as the corrupted run, blue: against it; letters: as query, key or value"


def edges_figures(data: xr.Dataset) -> dict[str, go.Figure]:
    """Draw the largest edges as a graph whose rows are loops, and all edges by their lag; then how far estimates hold.

    Args:
        data: a dataset of the edges probe.
    """
    edges = largest_edges(data, DRAWN)
    name, n_edges = data.model.item(), int(data.share.notnull().sum())
    title = (
        f"{name}: the {len(edges)} largest estimates of {n_edges:,} direct effects on the {data.attrs['measure']}, as "
        f"wide as the exact effect where it is known ({KEY}; corrupted: {data.attrs['corruption']})"
    )
    lags = f"{name}: direct effects by lag (share of the change from the clean to the corrupted run)"
    made = {"edges": edge_graph(data, edges, title), "edges-lags": lag_figure(data, lags)}
    if bool(data.chosen.isin(["largest", "random"]).any()):
        made["edges-estimates"] = _estimates(data)
    return made


def edge_graph(data: xr.Dataset, edges: Sequence[dict[str, Any]], title: str) -> go.Figure:
    """Draw edges as a graph whose rows are loops: a line from a sender to a receiver, as wide as the edge is large.

    Args:
        data: the dataset that they are of.
        edges: as ``arrange.largest_edges`` returns them.
        title: of the figure.
    """
    columns = [str(name) for name in data.sender.values]
    n_loops = int(data.to_loop[-1])
    figure = go.Figure()
    most = max((abs(edge["effect"]) for edge in edges), default=0.0) or 1.0
    read: dict[tuple[float, float], str] = {}  # the letters of what heads read, where edges end
    for edge in reversed(edges):
        start = columns.index(edge["sender"]), edge["from_loop"]
        part, _, letter = edge["receiver"].rpartition(" ")
        if letter not in SIDES:
            part, letter = edge["receiver"], ""
        end = (len(columns) / 2, n_loops + 1) if part == READ_OUT else (columns.index(part), edge["to_loop"])
        across, down = abs(end[0] - start[0]), end[1] - start[1]
        sideways = 0.35 if across == 0 and down > 1 else 0.0
        upwards = 0.2 + 0.05 * across if down == 0 else 0.0  # so that edges within a loop do not cover one another
        if letter:
            end = end[0] + SIDES[letter], end[1]
            read[end] = letter
        middle = (start[0] + end[0]) / 2 + sideways, (start[1] + end[1]) / 2 - upwards
        figure.add_scatter(
            x=[start[0], middle[0], end[0]], y=[start[1], middle[1], end[1]], mode="lines", showlegend=False,
            line={"width": 0.6 + 6 * abs(edge["effect"]) / most, "shape": "spline",
                  "color": RED if edge["effect"] > 0 else BLUE},
            opacity=0.55, hoverinfo="skip",
        )  # fmt: skip
        figure.add_scatter(
            x=[middle[0]], y=[middle[1]], mode="markers", showlegend=False,
            marker={"size": 5, "color": "white", "opacity": 0.01},
            hovertemplate=f"{edge['sender']} of loop {edge['from_loop']} → {edge['receiver']} of loop "
                          f"{edge['to_loop']}: {edge['effect']:.3g}<extra></extra>",
        )  # fmt: skip
    figure.add_scatter(
        x=[x for x, _ in read], y=[y + 0.06 for _, y in read], mode="text", text=list(read.values()), showlegend=False,
        textposition="bottom center", textfont={"size": 11}, hoverinfo="skip",
    )  # fmt: skip
    loops = sorted({edge["from_loop"] for edge in edges} | {edge["to_loop"] for edge in edges}) or [n_loops]
    places = [(col, loop) for loop in range(loops[0], loops[-1] + 1) for col in range(len(columns))]
    figure.add_scatter(
        x=[col for col, _ in places], y=[loop for _, loop in places], mode="markers", showlegend=False,
        marker={"size": 9, "color": GREY, "opacity": 0.5}, hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(
        x=[len(columns) / 2], y=[n_loops + 1], mode="markers+text", text=[READ_OUT], textposition="middle right",
        marker={"size": 11, "color": "black", "symbol": "square"}, showlegend=False, hoverinfo="skip",
    )  # fmt: skip
    figure.update_xaxes(tickvals=list(range(len(columns))), ticktext=columns, title="component")
    rows = list(range(loops[0], loops[-1] + 1))
    figure.update_yaxes(autorange="reversed", title="loop", tickvals=rows)
    finish(figure, title)
    return figure.update_layout(hovermode="closest", height=max(560, 190 + 60 * (loops[-1] - loops[0] + 2)))


def lag_figure(data: xr.Dataset, title: str) -> go.Figure:
    """Draw the sum of edges by lag for the largest pairs, and how alike the edges of all loops are.

    Args:
        data: a dataset of the edges or the circuit probe.
        title: of the figure.
    """
    pairs = data.by_lag.stack(pair=("sender", "lag_receiver"))
    names = [f"{sender} → {receiver}" for sender, receiver in pairs.pair.values]
    pairs = pairs.drop_vars(("pair", "sender", "lag_receiver")).assign_coords(pair=names)
    sizes = abs(pairs).max("lag")
    largest = pairs.isel(pair=np.argsort(-sizes.values)[:PAIRS])
    titles = ["sum over all loops, the largest pairs", "how alike the loops are"]
    figure = make_subplots(1, 2, horizontal_spacing=0.22, column_widths=[0.55, 0.45], subplot_titles=titles)
    shown = largest.isel(lag=slice(0, 12))
    heat(figure, shown, "lag", "pair")
    figure.update_xaxes(title="lag: loops from sender to receiver", dtick=1, col=1)
    figure.update_yaxes(autorange="reversed", col=1)
    lags = [int(lag) for lag in data.lag.values if int(data.similarity.sel(lag=lag).notnull().sum()) > 1][:LAGS]
    for i, (lag, colour) in enumerate(zip(lags, colours(len(lags)), strict=True)):
        row = data.similarity.sel(lag=lag).dropna("from_loop")
        curve(figure, row.from_loop, row, colour=colour, name=f"lag {lag}", col=2, dash=("solid", "dash", "dot")[i % 3])
    figure.update_xaxes(title="loop of the senders", col=2)
    figure.update_yaxes(title="cosine with the last such loop", range=[-1.05, 1.05], col=2)
    finish(figure, title)
    return figure.update_layout(coloraxis=diverging(shown, "sum", x=0.44), hovermode="closest", height=560)


def _estimates(data: xr.Dataset) -> go.Figure:
    """Draw estimates against exact effects, with the intervals of the latter."""
    figure = go.Figure()
    ends: list[float] = []
    for i, why in enumerate(("largest", "random")):
        at = data.chosen.values == why
        exact, estimate = data.exact.values[at], data.share.values[at]
        ends += [*exact, *estimate]
        spread: Any = {
            "type": "data", "array": data.exact_high.values[at] - exact,
            "arrayminus": exact - data.exact_low.values[at], "thickness": 1, "width": 0,
        }  # fmt: skip
        figure.add_scatter(
            x=exact, y=estimate, mode="markers", name=f"{len(exact)} {'at random' if i else 'largest'}",
            error_x=spread, marker={"symbol": SYMBOLS[i], "color": BASELINE_COLOURS[i + 1], "size": 7},
            hovertemplate="exact %{x:.3g}, estimate %{y:.3g}",
        )  # fmt: skip
    if ends:
        line = [min(ends), max(ends)]
        figure.add_scatter(x=line, y=line, mode="lines", line={"color": GREY, "dash": "dot", "width": 1},
                           name="equal", hoverinfo="skip")  # fmt: skip
    figure.update_xaxes(title="exact direct effect, with 95 % intervals (two passes)")
    figure.update_yaxes(title="estimate (first pass × gradient)")
    finish(
        figure,
        f"{data.model.item()}: estimated against exact direct effects; correlation {data.attrs['correlation']:.2f} at "
        f"random, {data.attrs['correlation_largest']:.2f} among the largest",
    )
    return figure.update_layout(hovermode="closest", height=520)
