"""Figures of the align probe."""

from __future__ import annotations

import textwrap

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from loopprobe.probes.dataset import read_stamp
from loopprobe.show.figures.style import BASELINE_COLOURS, BLACK, DASHES, GREY, curve, finish, heat


def align_figures(data: xr.Dataset) -> dict[str, go.Figure]:
    """Draw how similar the iterations are to the steps of every algorithm, and how similar to the best steps."""
    return {"align": _maps(data), "align-best": _best(data)}


def _maps(data: xr.Dataset) -> go.Figure:
    """Draw one heat map per algorithm: the similarity of every iteration with every step."""
    iteration = data.attrs["iteration"]
    columns = 4
    rows = -(-data.sizes["algorithm"] // columns)
    titles = ["<br>".join(textwrap.wrap(str(name), 20)) for name in data.algorithm.values]
    figure = make_subplots(
        rows=rows, cols=columns, subplot_titles=titles,
        shared_yaxes=True, horizontal_spacing=0.03, vertical_spacing=0.2,
    )  # fmt: skip
    for i, name in enumerate(data.algorithm.values):
        row, col = i // columns + 1, i % columns + 1
        algorithm = data.sel(algorithm=name)
        heat(figure, algorithm.error_similarity, "step", "loop", row=row, col=col)
        figure.add_scatter(
            x=algorithm.best_step, y=algorithm.loop, mode="lines+markers", line={"color": "white", "width": 1},
            marker={"size": 5, "color": "white", "line": {"color": BLACK, "width": 1}}, name="nearest step",
            row=row, col=col, hovertemplate="nearest: step %{x}",
        )  # fmt: skip
    figure.update_xaxes(title="step", row=rows)
    figure.update_yaxes(title=f"{iteration}s", col=1)
    finish(figure, f"{data.model.item()}: similarity of its errors with those of algorithms (dots: the nearest step)")
    low = float(np.nanquantile(data.error_similarity, 0.02))
    figure.update_layout(
        height=330 * rows + 60, hovermode="closest", margin={"t": 130},
        showlegend=False,
        coloraxis={
            "colorscale": "Viridis", "cmin": low, "cmax": 1.0,
            "colorbar": {"title": {"text": "cosine of the errors", "side": "right"}, "thickness": 14},
        },
    )  # fmt: skip
    return figure


def _best(data: xr.Dataset) -> go.Figure:
    """Draw each iteration beside the nearest step of each algorithm."""
    iteration = data.attrs["iteration"]
    panels = {
        "error_similarity": "cosine of the errors",
        "weight_similarity": "cosine of the induced weights",
        "distance": read_stamp(data).unit.replace("error", "difference"),
    }
    figure = make_subplots(rows=1, cols=3, subplot_titles=list(panels.values()), horizontal_spacing=0.07)
    for col, measure in enumerate(panels, 1):
        for i, name in enumerate(data.algorithm.values):
            algorithm = data.sel(algorithm=name)
            best = algorithm[f"best_{measure}"]
            value = best.where(best < 10)  # an algorithm that diverges leaves the figure
            look = {"colour": BASELINE_COLOURS[i % 10], "dash": DASHES[i % 2]}
            curve(figure, data.loop, value, **look, name=str(name), col=col, in_legend=col == 1)
        null = data[f"null_best_{measure}"].max("algorithm") if measure != "distance" else None
        if null is not None:
            curve(
                figure,
                data.loop,
                null,
                colour=GREY,
                dash="dot",
                name="never trained, best",
                col=col,
                in_legend=col == 1,
            )
    curve(figure, data.loop, data.model_error, colour=BLACK, dash="dash", name="error of the model", col=3)
    figure.update_yaxes(type="log", col=3)
    figure.update_xaxes(title=f"{iteration}s")
    return finish(figure, f"{data.model.item()}: each {iteration} beside the nearest step of each algorithm")
