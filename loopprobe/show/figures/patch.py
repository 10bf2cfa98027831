"""Figures of the patch probe."""

from __future__ import annotations

import math
from typing import Any

import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from loopprobe.probes.dataset import read_stamp
from loopprobe.show.figures.style import GREY, diverging, finish, heat
from loopprobe.show.wording import head_name, largest_head
from loopprobe.show.wording import loops as loops_done

WORDS = {"z": "state after the loop", "z_pre": "state that enters", "attn_z": "head outputs", "mlp_out": "MLP output"}


def patch_figures(data: xr.Dataset) -> dict[str, go.Figure]:
    """Draw one figure per site: heat maps of loop and token (or head), and the estimates against the effects.

    Args:
        data: a dataset of the patch probe.
    """
    return {f"patch-{site}": _site_figure(data, site) for site in read_stamp(data).options["sites"]}


def _site_figure(data: xr.Dataset, site: str) -> go.Figure:
    exact = site in data
    values = data[site] if exact else data[f"{site}_attribution"]
    panels: list[tuple[str, xr.DataArray]] = [("", values)]
    for axis in ("layer", "head"):
        if axis in values.dims:
            many = values.sizes[axis] > 1 or axis == "head"
            panels = [
                (f"{name} {axis} {i}".strip() if many else name, part.sel({axis: i}, drop=True))
                for name, part in panels
                for i in values[axis].values
            ]
    extra = (["by head, all tokens"] if "head" in values.dims else []) + (["estimate against effect"] if exact else [])
    titles = [name or WORDS.get(site, site) for name, _ in panels] + extra
    cols = min(len(titles), 3)
    rows = math.ceil(len(titles) / cols)
    figure = make_subplots(rows, cols, subplot_titles=titles, horizontal_spacing=0.09, vertical_spacing=0.35 / rows)
    places = iter((row, col) for row in range(1, rows + 1) for col in range(1, cols + 1))
    query, largest = int(data.attrs["query_token"]), float(abs(values).max())
    for _, part in panels:
        row, col = next(places)
        heat(figure, part, "position", "loop", row=row, col=col)
        figure.update_xaxes(title=f"token ({read_stamp(data).tokens}; {query}: query)", row=row, col=col)
        figure.update_yaxes(title="loops done" if col == 1 else None, row=row, col=col)
    if "head" in values.dims:
        row, col = next(places)
        over_tokens = values.sum("position")
        if "layer" in values.dims:
            over_tokens = over_tokens.stack(place=("layer", "head"))
            labels = [f"{layer}.{head}" for layer, head in over_tokens.place.values]
            over_tokens = over_tokens.drop_vars(("place", "layer", "head")).assign_coords(place=labels)
        heat(figure, over_tokens, "place", "loop", row=row, col=col)
        figure.update_xaxes(title="layer.head, sum over tokens", type="category", row=row, col=col)
        largest = max(largest, float(abs(over_tokens).max()))
    head = largest_head(values)
    most = "" if head is None else f"; {head_name(head)} does most, after {loops_done(head)} ({float(head):.0%})"
    finish(figure, f"{data.model.item()}: {_description(data, site)}{most}")
    if exact:
        _scatter(figure, data, site, *next(places))
    figure.update_layout(coloraxis=diverging(largest, "effect: 0 corrupted, 1 clean", x=1.02))
    return figure.update_layout(height=130 + 300 * rows, hovermode="closest", margin={"r": 110})


def _scatter(figure: go.Figure, data: xr.Dataset, site: str, row: int, col: int) -> None:
    """Draw attribution patching against patching, one point per place, coloured by the loop."""
    effect, estimate = data[site], data[f"{site}_attribution"]
    ends = [float(min(effect.min(), estimate.min())), float(max(effect.max(), estimate.max()))]
    line: dict[str, Any] = {"color": GREY, "dash": "dot", "width": 1}
    figure.add_scatter(x=ends, y=ends, mode="lines", line=line, showlegend=False, hoverinfo="skip", row=row, col=col)
    loops = xr.broadcast(effect.loop, effect)[0].transpose("loop", ...).values.ravel()
    figure.add_scatter(
        x=effect.transpose("loop", ...).values.ravel(), y=estimate.transpose("loop", ...).values.ravel(),
        mode="markers", marker={"size": 4, "color": loops, "colorscale": "Viridis", "opacity": 0.7}, customdata=loops,
        showlegend=False, hovertemplate="loop %{customdata}: effect %{x:.3g}, estimate %{y:.3g}<extra></extra>",
        row=row, col=col,
    )  # fmt: skip
    correlation = data.attrs[f"correlation_{site}"]
    figure.update_xaxes(title=f"effect (correlation {correlation:.2f}; dark: early loops)", row=row, col=col)
    figure.update_yaxes(title="gradient × difference", row=row, col=col)


def _description(data: xr.Dataset, site: str) -> str:
    """Describe the patches of a site as a title."""
    config = read_stamp(data).options
    what = {
        "label": f"another label for example {config['example'] or 0}",
        "weights": "labels of another task",
        "query": "another query",
        "noise": f"noise of {config['noise_std']:g} on the labels",
        "token": "one token is another",
        "prompt": "another prompt",
        "given": "prompts that were given",
    }[data.attrs["corruption"]]
    how = "patching" if config["exact"] else "attribution patching (an estimate) of"
    measure = f"; measured: {data.attrs['measure']}" if "measure" in data.attrs else ""
    where = f"{WORDS.get(site, site)}, one loop and token at a time, from the clean run"
    return f"{how} the {where}; corrupted: {what}{measure}"
