"""Figures of the decode probe."""

from __future__ import annotations

import textwrap

import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from loopprobe.show.figures.style import BLACK, DASHES, GREY, colours, curve, finish, heat


def decode_figures(data: xr.Dataset) -> dict[str, go.Figure]:
    """Draw what ridge regression reads by iteration and token, what networks read, and the causal check."""
    if "accuracy" in data:
        return {"decode": _results(data)}
    figures = {"decode": _maps(data)}
    if "network_r2" in data:
        figures["decode-networks"] = _networks(data)
    if "slope" in data:
        figures["decode-causal"] = _causal(data)
    return figures


def _results(data: xr.Dataset) -> go.Figure:
    """Draw how well each result of a token task is read, one row per target: of the model, and of the controls."""
    names, controls = data.target.values, data.control.values
    words = {"none": "read", "shuffled": "of other prompts", "untrained": "untrained model"}
    looped = data.attrs["iteration"] == "loop"
    y = "loop" if looped else "layer"
    iterations = data.isel(layer=-1) if looped else data.isel(loop=-1)
    titles = [f"{name}: {words[control]}" for name in names for control in controls]
    figure = make_subplots(
        len(names), len(controls), subplot_titles=titles, shared_xaxes=True, shared_yaxes=True,
        horizontal_spacing=0.03, vertical_spacing=0.35 / (len(names) + 1),
    )  # fmt: skip
    for row, name in enumerate(names, 1):
        for col, control in enumerate(controls, 1):
            values = iterations.accuracy.sel(target=name, control=control)
            heat(figure, values, "position", y, row=row, col=col, template="%{z:.1%}")
    figure.update_xaxes(title="token", row=len(names))
    figure.update_yaxes(title=f"{y}s done" if looped else y, col=1)
    finish(figure, f"{data.model.item()}: intermediate results, read by a linear classifier at every {y} and token")
    bar = {"title": {"text": "share of prompts", "side": "right"}, "thickness": 14, "tickformat": ".0%"}
    return figure.update_layout(
        height=230 * len(names) + 160, hovermode="closest", margin={"t": 110},
        coloraxis={"colorscale": "Viridis", "cmin": 0.0, "cmax": 1.0, "colorbar": bar},
    )  # fmt: skip


def _maps(data: xr.Dataset) -> go.Figure:
    """Draw what ridge regression reads, one heat map per target."""
    looped = data.attrs["iteration"] == "loop"
    iterations = data.isel(layer=-1) if looped else data.isel(loop=-1)
    y = "loop" if looped else "layer"
    names = data.target.values
    columns = 3
    rows = -(-len(names) // columns)
    titles = ["<br>".join(textwrap.wrap(str(name), 26)) for name in names]
    figure = make_subplots(
        rows=rows, cols=columns, subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.04,
        vertical_spacing=0.22,
    )  # fmt: skip
    for i, name in enumerate(names):
        values = iterations.r2.sel(target=name, control="none").clip(0)
        heat(figure, values, "position", y, row=i // columns + 1, col=i % columns + 1)
    figure.update_xaxes(title="token", row=rows)
    figure.update_yaxes(title=y, col=1)
    finish(figure, f"{data.model.item()}: what ridge regression reads at every {y} and token")
    bar = {"title": {"text": "R² (below zero shown as zero)", "side": "right"}, "thickness": 14}
    figure.update_layout(
        height=300 * rows + 80, hovermode="closest", margin={"t": 120},
        coloraxis={"colorscale": "Viridis", "cmin": 0.0, "cmax": 1.0, "colorbar": bar},
    )  # fmt: skip
    return figure


def _networks(data: xr.Dataset) -> go.Figure:
    """Draw what small networks read over the iterations, one panel per kind of network."""
    kinds = data.network.values
    figure = make_subplots(rows=1, cols=len(kinds), subplot_titles=[f"network {kind}" for kind in kinds],
                           shared_yaxes=True, horizontal_spacing=0.05)  # fmt: skip
    palette = colours(data.sizes["of"])
    for col, kind in enumerate(kinds, 1):
        for name, colour in zip(data["of"].values, palette, strict=True):
            for control, dash in zip(data.control.values, DASHES, strict=False):
                decoded = data.sel(network=kind, of=name, control=control)
                band = (decoded.network_r2_low, decoded.network_r2_high) if control == "none" else None
                label = str(name) if control == "none" else f"{name}, control: {control}"
                curve(
                    figure, data.iteration, decoded.network_r2.clip(-0.25), band, colour=colour, dash=dash, name=label,
                    col=col, in_legend=col == 1,
                )  # fmt: skip
    figure.update_xaxes(title=f"{data.attrs['iteration']}s")
    figure.update_yaxes(title="R² (below −0.25 shown there)", col=1)
    return finish(figure, f"{data.model.item()}: what small networks read from all tokens")


def _causal(data: xr.Dataset) -> go.Figure:
    """Draw how far an edit of the state moves the prediction, by loops after the edit."""
    figure = make_subplots()
    for edit, colour in zip(data.edit.values, colours(data.sizes["edit"]), strict=True):
        edited = data.sel(edit=edit)
        curve(figure, data.after, edited.slope, (edited.slope_low, edited.slope_high), colour=colour, name=str(edit))
        curve(figure, data.after, edited.slope_random, colour=colour, dash="dot", name=f"{edit}: random direction")
    for value, colour in ((1, BLACK), (0, GREY)):
        figure.add_hline(y=value, line={"dash": "dot", "color": colour, "width": 1})
    figure.update_xaxes(title=f"loops after the edit (in loop {data.attrs['edited_loop']})")
    figure.update_yaxes(title="prediction moved / as the decoder says")
    return finish(figure, f"{data.model.item()}: is what is decoded what is used?")
