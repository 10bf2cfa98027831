"""Figures of the attention probe."""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from loopprobe.probes.dataset import read_stamp
from loopprobe.show.figures.style import BLACK, DASHES, colours, curve, finish, heat

HEADS = {  # the measures of single heads
    "mixing_score": "mixing score",
    "column_sum_concentration": "column-sum<br>concentration",
    "change": "change<br>per loop",
}
LAYERS = {"sink_rate": "sink rate", "matrix_entropy": "matrix entropy"}


def attention_figures(data: xr.Dataset) -> dict[str, go.Figure]:
    """Draw mean patterns with a slider over the loops, the query's attention, the measures, and loop distances.

    Args:
        data: a dataset of the attention probe.
    """
    return {
        "attention": _patterns(data),
        "attention-query": _query(data),
        "attention-measures": _measures(data),
        "attention-distance": _distance(data),
    }


def _patterns(data: xr.Dataset) -> go.Figure:
    figure, places = _grid(data)
    loops = data.loop.values
    start = min(int(data.attrs["trained_loops"]), len(loops)) - 1
    logs = np.log10(data.pattern.clip(1e-6).where(data.key <= data["query"]))  # a token does not see later tokens

    def maps(i: int) -> list[go.Heatmap]:
        return [
            go.Heatmap(
                x=data.key.values, y=data["query"].values, z=logs.isel(loop=i).sel(layer=layer, head=head).values,
                coloraxis="coloraxis", hovertemplate="token %{y} attends to %{x}: 10^%{z:.2f}<extra></extra>",
            )
            for layer, head in places
        ]  # fmt: skip

    for trace, (row, col) in zip(maps(start), places.values(), strict=True):
        figure.add_trace(trace, row=row, col=col)
    figure.frames = [go.Frame(name=str(loop), data=maps(i)) for i, loop in enumerate(loops)]
    steps = [
        {
            "method": "animate",
            "label": str(loop),
            "args": [[str(loop)], {"mode": "immediate", "frame": {"duration": 0}}],
        }
        for loop in loops
    ]
    figure.update_layout(
        sliders=[{"active": start, "currentvalue": {"prefix": "loops done: "}, "steps": steps, "pad": {"t": 45}}]
    )
    figure.update_yaxes(autorange="reversed")
    for row, col in places.values():
        figure.update_xaxes(title="token attended to", row=row, col=col)
        figure.update_yaxes(title="token that attends" if col == 1 else None, row=row, col=col)
    bar = {"title": {"text": "log10 of the mean attention", "side": "right"}, "thickness": 14}
    figure.update_layout(coloraxis={"colorscale": "Viridis", "cmin": -4, "cmax": 0, "colorbar": bar})
    return _look(figure, data, f"mean attention patterns (tokens: {read_stamp(data).tokens})", places, below=90)


def _query(data: xr.Dataset) -> go.Figure:
    figure, places = _grid(data)
    targets = data.target.values
    for (layer, head), (row, col) in places.items():
        for i, (target, colour) in enumerate(zip(targets, colours(len(targets)), strict=True)):
            attention = data.sel(layer=layer, head=head, target=target)
            first = (row, col) == (1, 1)
            interval = attention.mass_low, attention.mass_high
            curve(figure, data.loop, attention.mass, interval, colour=colour, name=str(target), row=row,
                  col=col, dash=DASHES[i % len(DASHES)], in_legend=first)  # fmt: skip
        figure.update_xaxes(title="loops done", row=row, col=col)
        figure.update_yaxes(title="attention of the query" if col == 1 else None, range=[0, 1.02], row=row, col=col)
    return _look(figure, data, "what the query's token attends to", places)


def _measures(data: xr.Dataset) -> go.Figure:
    every = HEADS | LAYERS
    # A single loop has no change.
    names = {name: words for name, words in every.items() if np.isfinite(data[name]).any()}
    last_of_heads = sum(name in HEADS for name in names)
    figure = make_subplots(1, len(names), subplot_titles=list(names.values()), horizontal_spacing=0.045)
    places = [(layer, head) for layer in data.layer.values for head in data["head"].values]
    for col, name in enumerate(names, 1):
        lines = places if name in HEADS else [(layer, None) for layer in data.layer.values]
        for (layer, head), colour in zip(
            lines, colours(len(lines)) if name in HEADS else [BLACK] * len(lines), strict=True
        ):
            where = {"layer": layer} | ({} if head is None else {"head": head})
            values = data.sel(where)
            interval = (values[f"{name}_low"], values[f"{name}_high"]) if f"{name}_low" in data else None
            label = f"layer {layer}" if head is None else f"head {layer}.{head}"
            in_legend = col in (1, last_of_heads + 1)
            curve(figure, data.loop, values[name], interval, colour=colour, name=label, col=col, in_legend=in_legend)
    figure.update_xaxes(title="loops done")
    finish(figure, f"{data.model.item()}: attention and residual stream over the loops")
    return figure.update_layout(hovermode="closest")


def _distance(data: xr.Dataset) -> go.Figure:
    figure, places = _grid(data)
    for (layer, head), (row, col) in places.items():
        heat(figure, data.distance.sel(layer=layer, head=head), "loop", "other_loop", row=row, col=col)
        figure.update_xaxes(title="loops done", row=row, col=col)
        figure.update_yaxes(title="loops done" if col == 1 else None, row=row, col=col)
    bar = {"title": {"text": "‖A − A′‖, mean over prompts", "side": "right"}, "thickness": 14}
    figure.update_layout(coloraxis={"colorscale": "Viridis", "colorbar": bar})
    return _look(figure, data, "how far the patterns of two loops are apart", places)


def _grid(data: xr.Dataset) -> tuple[go.Figure, dict[tuple[int, int], tuple[int, int]]]:
    """Return a figure with one panel per layer and head, at most four in a row, and the place of each panel."""
    heads = [(int(layer), int(head)) for layer in data.layer.values for head in data["head"].values]
    cols = min(4, len(heads))
    rows = math.ceil(len(heads) / cols)
    titles = [f"head {layer}.{head}" for layer, head in heads]
    figure = make_subplots(rows, cols, subplot_titles=titles, horizontal_spacing=0.05, vertical_spacing=0.3 / rows)
    return figure, {place: (i // cols + 1, i % cols + 1) for i, place in enumerate(heads)}


def _look(figure: go.Figure, data: xr.Dataset, title: str, places: dict, below: int = 0) -> go.Figure:
    """Apply the common look to a figure with one panel per head."""
    rows = max(row for row, _ in places.values())
    finish(figure, f"{data.model.item()}: {title}")
    return figure.update_layout(height=160 + 290 * rows + below, hovermode="closest", margin={"r": 130})
