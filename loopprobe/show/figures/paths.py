"""Figures of the recover and the paths probe."""

from __future__ import annotations

import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from loopprobe.probes.dataset import read_stamp
from loopprobe.show.figures.style import BLACK, DASHES, colours, curve, finish


def recover_figures(data: xr.Dataset) -> dict[str, go.Figure]:
    """Draw what a push changes in the prediction and in the state, by loops since then.

    Each size has one panel and each token one curve.

    Args:
        data: a dataset of the recover probe.
    """
    titles = [f"pushed by {size:g} of its norm" for size in data["size"].values]
    moved = f"prediction moved ({read_stamp(data).step_unit})"
    rows = {"prediction_moved": moved, "distance": "distance of the whole state"}
    figure = make_subplots(
        2, len(titles), subplot_titles=[*titles, *[""] * len(titles)], shared_xaxes=True, shared_yaxes="rows",
        horizontal_spacing=0.03, vertical_spacing=0.06,
    )  # fmt: skip
    tokens = [int(token) for token in data.position.values if token != -1]
    names = {-1: "all tokens", max(tokens): f"token {max(tokens)}"} | {t: f"token {t}" for t in tokens}
    looks = dict(zip(tokens, colours(len(tokens)), strict=True)) | {-1: BLACK}
    for row, (name, words) in enumerate(rows.items(), 1):
        for col, size in enumerate(data["size"].values, 1):
            for i, token in enumerate(data.position.values):
                values = data[name].sel(size=size, position=token)
                # At first only the query's own state moves its prediction.
                values = values.isel(after=(values > 0).values)
                curve(
                    figure, values.after, values, colour=looks[int(token)], name=names[int(token)], row=row, col=col,
                    dash=DASHES[i % 3] if token != -1 else "solid", in_legend=(row, col) == (1, 1),
                )  # fmt: skip
        figure.update_yaxes(type="log", row=row)
        figure.update_yaxes(title=words, row=row, col=1)
    figure.update_xaxes(title="loops since the push", row=2)
    after = data.attrs["pushed_after"]
    finish(figure, f"{data.model.item()}: the state of a token is pushed after {after} loops; what is left of it")
    return {"recover": figure.update_layout(height=720, hovermode="closest")}


def paths_figures(data: xr.Dataset) -> dict[str, go.Figure]:
    """Draw paths in their principal components: in space, coloured by loop, and in the plane, coloured by token.

    Args:
        data: a dataset of the paths probe.
    """
    return {"paths": _in_space(data), "paths-plane": _in_plane(data)}


def _in_space(data: xr.Dataset) -> go.Figure:
    figure = go.Figure()
    tokens, told = data.position.values, read_stamp(data)
    for prompt in range(data.sizes["followed"]):
        for token in tokens:
            x, y, z = data.path.isel(followed=prompt).sel(position=token).transpose("component", "loop").values
            figure.add_scatter3d(
                x=x, y=y, z=z, mode="lines+markers", name=f"token {told.token(int(token))}", visible=prompt == 0,
                line={"color": "#999999", "width": 1},
                marker={"size": 2.5, "color": data.loop.values, "colorscale": "Viridis",
                        "showscale": bool(token == tokens[0]), "cmin": 1, "cmax": 60,
                        "colorbar": {"title": {"text": "loops done"}, "thickness": 14, "x": -0.06}},
                customdata=data.loop.values, hovertemplate=f"token {token}, loop %{{customdata}}<extra></extra>",
            )  # fmt: skip
    figure.update_layout(scene={f"{axis}axis": {"title": _axis(data, i)} for i, axis in enumerate("xyz")})
    finish(
        figure,
        f"{data.model.item()}: states in principal components (share of variance), a path a token, by loops done",
    )
    return figure.update_layout(height=680, updatemenus=[_menu(data, len(tokens))])


def _in_plane(data: xr.Dataset) -> go.Figure:
    figure = make_subplots(1, 2, horizontal_spacing=0.1)
    tokens, told = data.position.values, read_stamp(data)
    for prompt in range(data.sizes["followed"]):
        for token, colour in zip(tokens, colours(len(tokens)), strict=True):
            parts = data.path.isel(followed=prompt).sel(position=token).transpose("component", "loop").values
            for col, (i, j) in enumerate(((0, 1), (1, 2)), 1):
                figure.add_scatter(
                    x=parts[i], y=parts[j], mode="lines+markers", name=f"token {told.token(int(token))}",
                    legendgroup=f"token {token}",
                    showlegend=col == 1, visible=prompt == 0, line={"color": colour, "width": 1}, marker={"size": 3},
                    customdata=data.loop.values, row=1, col=col,
                    hovertemplate=f"token {token}, loop %{{customdata}}<extra></extra>",
                )  # fmt: skip
    for col, (i, j) in enumerate(((0, 1), (1, 2)), 1):
        figure.update_xaxes(title=_axis(data, i), col=col)
        figure.update_yaxes(title=_axis(data, j), col=col)
    finish(figure, f"{data.model.item()}: states in their principal components (share of variance), coloured by token")
    return figure.update_layout(height=560, hovermode="closest", updatemenus=[_menu(data, 2 * len(tokens))])


def _axis(data: xr.Dataset, i: int) -> str:
    return f"PC {i + 1} ({float(data.explained[i]):.0%})"


def _menu(data: xr.Dataset, traces: int) -> dict:
    """Return buttons that show one prompt at a time."""
    n_prompts = data.sizes["followed"]
    buttons = [
        {
            "label": f"prompt {prompt}",
            "method": "restyle",
            "args": [{"visible": [i // traces == prompt for i in range(traces * n_prompts)]}],
        }
        for prompt in range(n_prompts)
    ]
    return {"buttons": buttons, "x": 1.0, "xanchor": "right", "y": 1.12, "yanchor": "bottom"}
