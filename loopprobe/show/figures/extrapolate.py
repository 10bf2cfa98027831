"""Figures of the extrapolate probe."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from loopprobe.show.figures.style import BASELINE_COLOURS, BLACK, DASHES, GREY, curve, finish, heat
from loopprobe.show.tables.tokens import Group, at_trained_loops, groups, in_theory, in_words


def extrapolate_figures(data: xr.Dataset) -> dict[str, go.Figure]:
    """Draw the map of length and loops with the trained line, and the share that is right by length.

    Args:
        data: a dataset of the extrapolate probe.
    """
    counts, trained = data.attrs["counts"], int(data.attrs["trained_length"])
    titles = ["prompts that are right as a whole", "with the loops of the training, and with the best"]
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.16, column_widths=[0.58, 0.42])
    heat(figure, data.exact.assign_coords(length=data.length), "length", "loop", template="%{z:.1%}")
    _trained_rule(figure, data)
    _enough_loops(figure, data)
    figure.add_scatter(
        x=data.length.values, y=data.needed_loops.values, mode="markers", name="fewest loops that do",
        marker={"size": 7, "symbol": "diamond-open", "color": BASELINE_COLOURS[1], "line": {"width": 2}}, row=1, col=1,
    )  # fmt: skip
    at_rule = at_trained_loops(data)
    at_best = data.isel(loop=data.exact.argmax("loop"))
    for part, name, colour, dash in (
        (at_rule, "right with those loops", BLACK, "solid"),
        (at_best, "right with the best number", BASELINE_COLOURS[1], "dash"),
    ):
        band = part.exact_low, part.exact_high
        curve(figure, part.length, part.exact, band, colour=colour, name=name, col=2, dash=dash)
    figure.add_hline(y=data.attrs["works"], line={"color": GREY, "width": 1, "dash": "dot"}, row=1, col=2)
    for col in (1, 2):
        figure.add_vline(x=trained, line={"color": GREY, "width": 1, "dash": "dot"}, row=1, col=col)
        figure.update_xaxes(title=f"length ({counts}; {trained}: longest of the training)", row=1, col=col)
    figure.update_yaxes(title="loops done", range=[0.5, int(data.loop[-1]) + 0.5], row=1, col=1)
    figure.update_yaxes(title="share of prompts", range=[0, 1.02], row=1, col=2)
    figure.update_layout(coloraxis={
        "colorscale": "Viridis", "cmin": 0, "cmax": 1,
        "colorbar": {"x": 0.5, "thickness": 12, "tickformat": ".0%", "len": 0.9},
    })  # fmt: skip
    finish(figure, f"{data.model.item()}: {in_words(data)}")
    figure.add_annotation(
        text="<br>".join(textwrap.wrap(in_theory(data), 150)), x=0, y=0, xref="paper", yref="paper", xanchor="left",
        yanchor="top", yshift=-62, align="left", showarrow=False, font={"size": 12, "color": GREY},
    )  # fmt: skip
    return {"extrapolate": figure.update_layout(hovermode="closest", margin_b=115)}


def extrapolate_models_figure(
    datasets: Sequence[xr.Dataset], title: str = "prompts that are right as a whole, by length"
) -> go.Figure:
    """Draw the share that is right with the loops of the training by length: a panel a task, a curve a kind of model.

    A curve is the mean over seeds, its band their range.

    Args:
        datasets: datasets of the extrapolate probe, one per model.
        title: the title of the figure.
    """
    by_task: dict[str, list[Group]] = {}
    for group in groups(datasets):
        by_task.setdefault(group.task, []).append(group)
    cols = min(2, len(by_task))
    rows = -(-len(by_task) // cols)
    figure = make_subplots(
        rows, cols, subplot_titles=list(by_task), shared_yaxes=True, horizontal_spacing=0.06,
        vertical_spacing=0.3 / rows,
    )  # fmt: skip
    looks = {form: i for i, form in enumerate(dict.fromkeys(group.form for group in groups(datasets)))}
    for i, (_, members) in enumerate(by_task.items()):
        row, col = i // cols + 1, i % cols + 1
        for group in members:
            shares = np.stack([at_trained_loops(data).exact.values for data in group.datasets])
            look = looks[group.form]
            curve(
                figure, group.datasets[0].length, shares.mean(0), (shares.min(0), shares.max(0)),
                colour=BLACK if look == 0 else BASELINE_COLOURS[look], dash=DASHES[look % len(DASHES)],
                name=group.form, row=row, col=col, in_legend=group.form not in _seen_forms(figure),
            )  # fmt: skip
        attrs = members[0].datasets[0].attrs
        figure.add_vline(x=attrs["trained_length"], line={"color": GREY, "width": 1, "dash": "dot"}, row=row, col=col)
        figure.update_xaxes(title=f"length ({attrs['counts']}; dotted: longest of the training)", row=row, col=col)
    figure.update_yaxes(range=[-0.02, 1.03], tickformat=".0%")
    figure.update_yaxes(title="share of prompts", col=1)
    finish(figure, title)
    return figure.update_layout(height=300 * rows + 150)


def maps_figures(
    datasets: Sequence[xr.Dataset], title: str = "prompts that are right as a whole"
) -> dict[str, go.Figure]:
    """Draw the maps of length and loops of all looped models, one panel each; none where no model is looped.

    Args:
        datasets: datasets of the extrapolate probe, one per model.
        title: the title of the figure.
    """
    looped = [data for data in datasets if data.sizes["loop"] > 1]
    if not looped:
        return {}
    cols = min(3, len(looped))
    rows = -(-len(looped) // cols)
    figure = make_subplots(
        rows, cols, subplot_titles=[data.model.item() for data in looped], horizontal_spacing=0.07,
        vertical_spacing=0.3 / rows,
    )  # fmt: skip
    for i, data in enumerate(looped):
        row, col = i // cols + 1, i % cols + 1
        heat(figure, data.exact, "length", "loop", row=row, col=col, template="%{z:.1%}")
        _trained_rule(figure, data, row=row, col=col, in_legend=i == 0)
        figure.update_xaxes(title=f"length ({data.attrs['counts']})", row=row, col=col)
    figure.update_yaxes(title="loops done", col=1)
    finish(figure, f"{title}: share of prompts, by length and loops")
    bar = {"thickness": 12, "tickformat": ".0%", "x": 1.02, "y": 0.35, "len": 0.6}
    return {"maps": figure.update_layout(
        height=290 * rows + 150, hovermode="closest",
        coloraxis={"colorscale": "Viridis", "cmin": 0, "cmax": 1, "colorbar": bar},
    )}  # fmt: skip


def _trained_rule(figure: go.Figure, data: xr.Dataset, *, row: int = 1, col: int = 1, in_legend: bool = True) -> None:
    """Draw the loops that the training gives a length, dotted where no training had such a length."""
    seen = data.length <= data.attrs["trained_length"]
    for name, part, dash in (
        ("loops of the training, by length", seen, "solid"),
        ("the same rule beyond", data.length >= data.length[seen].max() if seen.any() else ~seen, "dot"),
    ):
        there = data.sel(length=part)
        _cased(figure, there.length, there.trained_loops, name, BLACK, dash, row=row, col=col, in_legend=in_legend)


def _enough_loops(figure: go.Figure, data: xr.Dataset) -> None:
    """Draw the loops that theory says to be enough, where it gives a number and the model is looped."""
    if data.sizes["loop"] > 1 and np.isfinite(data.enough_loops).all():
        _cased(figure, data.length, data.enough_loops, "enough, in theory", BASELINE_COLOURS[3], "dash")


def _cased(
    figure: go.Figure, x: xr.DataArray, y: xr.DataArray, name: str, colour: str, dash: str,
    *, row: int = 1, col: int = 1, in_legend: bool = True,
) -> None:  # fmt: skip
    """Draw a line with a white rim, which tells it from the darkest and the lightest colour of a map."""
    rim = {"line": {"color": "white", "width": 5}, "showlegend": False, "hoverinfo": "skip"}
    for look in (rim, {"line": {"color": colour, "width": 2, "dash": dash}, "showlegend": in_legend}):
        figure.add_scatter(
            x=x.values, y=y.values, mode="lines", name=name, legendgroup=name, row=row, col=col, **look
        )  # fmt: skip


def _seen_forms(figure: go.Figure) -> set[str]:
    """Return the names that the legend has already."""
    return {trace.name for trace in figure.data if trace.showlegend}
