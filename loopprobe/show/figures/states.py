"""Figures of the states that the converge probe followed."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from loopprobe.probes.dataset import read_stamp
from loopprobe.show.arrange import by_name
from loopprobe.show.figures.style import BLACK, GREY, colours, curve, finish, trained_line


def states_figures(data: xr.Dataset) -> dict[str, go.Figure]:
    """Draw how states and predictions move over the loops, and where they go.

    Of answers that can be right there is one figure more. There is none of the others where no states were followed.

    Args:
        data: a dataset of the converge probe.
    """
    answers = {"converge-answers": _answers(data)} if "to_last" in data else {}
    if "relative_step" not in data:
        return answers
    return answers | {"converge-moves": _moves(data), "converge-limits": _limits(data)}


def _answers(data: xr.Dataset) -> go.Figure:
    """Draw the distance of the answers to those after the last loop, and the share of right ones, or perplexity."""
    text = "perplexity" in data
    titles = [
        "from the answer after the last loop, at the query",
        "perplexity, all tokens read" if text else "share of right answers",
    ]
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.12)
    before = data.isel(loop=slice(0, -1))  # after the last it is none, which no logarithm shows
    before = before.isel(loop=(before.to_last > 0).values)
    low = before.to_last_low.clip(min=float(before.to_last.min()) / 10 if before.sizes["loop"] else None)
    ends = low, before.to_last_high
    curve(figure, before.loop, before.to_last, ends, colour=BLACK, name="median", in_legend=False)
    values = data.perplexity if text else data.accuracy
    curve(figure, data.loop, values, colour=BLACK, name="all answers", col=2, in_legend=False)
    figure.update_xaxes(title="loops done", type="log" if data.sizes["loop"] > 50 else "linear")
    figure.update_yaxes(type="log", title=read_stamp(data).step_unit, col=1)
    if not text:
        figure.update_yaxes(range=[0, 1.02], tickformat=".0%", col=2)
    for col in (1, 2):
        trained_line(figure, int(data.attrs["trained_loops"]), col=col, log=data.sizes["loop"] > 50)
    return finish(figure, f"{data.model.item()}: when the answers are there")


def _moves(data: xr.Dataset) -> go.Figure:
    """Draw quantiles over prompts and tokens: the relative step, the distance to the end, and correct decimals."""
    titles = ["relative step of the state", "distance to the state far out", "correct decimals at the query"]
    figure = make_subplots(1, 3, subplot_titles=titles, horizontal_spacing=0.07)
    levels = [(0.9, "90 %"), (0.5, "median"), (0.1, "10 %")]
    for col, name in enumerate(("relative_step", "distance"), 1):
        values = data[name].quantile([level for level, _ in levels], ["followed", "position"]).clip(1e-9)
        for (level, words), colour in zip(levels, colours(3), strict=True):
            curve(figure, data.loop, values.sel(quantile=level), colour=colour, name=words, col=col, in_legend=col == 1)
        figure.update_yaxes(type="log", col=col)
    decimals = {
        "decimals_to_limit": ("against its limit", "solid"),
        "decimals_to_optimum": ("against the optimum", "dash"),
    }
    for name, (words, dash) in decimals.items():
        if data[name].isnull().all():  # the optimum is not known
            continue
        values = data[name].clip(max=9).quantile([0.25, 0.5, 0.75], "followed")
        ends = values.sel(quantile=0.25), values.sel(quantile=0.75)
        curve(figure, data.loop, values.sel(quantile=0.5), ends, colour=BLACK, dash=dash, name=words, col=3)
    figure.update_xaxes(title="loops done", type="log")
    for col in (1, 2, 3):
        trained_line(figure, int(data.attrs["trained_loops"]), col=col, log=True)
    title = f"{data.model.item()}: {data.sizes['followed']} prompts followed (bands on the right: quartiles of prompts)"
    return finish(figure, title)


def limits_models_figure(datasets: Sequence[xr.Dataset], title: str) -> go.Figure:
    """Draw the shares of the types of limit of states and predictions, one bar per model (the mean of its seeds).

    Args:
        datasets: datasets of the converge probe, with states, one per model.
        title: the title of the figure.
    """
    types = datasets[0].limit.attrs["types"].split(", ")
    models = by_name(datasets)
    figure = make_subplots(1, 2, subplot_titles=["states of tokens", "predictions at points"], horizontal_spacing=0.06)
    for col, name in enumerate(("limit", "prediction_limit"), 1):
        for i, (kind, colour) in enumerate(zip(types, colours(len(types)), strict=True)):
            shares = [float(np.mean([(data[name] == i).mean() for data in seeds])) for seeds in models.values()]
            figure.add_bar(
                x=list(models), y=shares, name=kind, marker={"color": colour}, legendgroup=kind, row=1, col=col,
                showlegend=col == 1 and any((data.limit == i).any() for data in datasets),
                hovertemplate="%{x}: %{y:.1%}",
            )  # fmt: skip
    figure.update_layout(barmode="stack", bargap=0.25)
    figure.update_yaxes(range=[0, 1], tickformat=".0%")
    figure.update_yaxes(title="share", col=1)
    finish(figure, f"{title}: where the loop goes in {datasets[0].attrs['far']:,} loops")
    return figure.update_layout(hovermode="closest", height=480)


def _limits(data: xr.Dataset) -> go.Figure:
    """Draw the shares of the types of limit by point, and the observed rates against the spectral radius."""
    types = data.limit.attrs["types"].split(", ")
    titles = ["states, by token", "predictions, by point", "rate against spectral radius"]
    figure = make_subplots(1, 3, subplot_titles=titles, horizontal_spacing=0.08)
    for col, (values, axis) in enumerate(((data.limit, "position"), (data.prediction_limit, "point")), 1):
        for i, (name, colour) in enumerate(zip(types, colours(len(types)), strict=True)):
            share = (values == i).mean("followed")
            if bool((values == i).any()) or col == 1:
                figure.add_bar(
                    x=values[axis].values, y=share.values, name=name, marker={"color": colour, "line": {"width": 0}},
                    showlegend=col == 1 and bool((values == i).any()), legendgroup=name, row=1, col=col,
                    hovertemplate=f"{axis} %{{x}}: %{{y:.0%}}",
                )  # fmt: skip
    figure.update_layout(barmode="stack", bargap=0)
    slowest = np.maximum.accumulate(data.spectral_radius.values, axis=data.spectral_radius.get_axis_num("position"))
    rate, radius = data.rate.values.ravel(), slowest.ravel()
    seen = np.isfinite(rate) & np.isfinite(radius)
    if not seen.any():
        missing = data.spectral_radius.attrs.get("missing", "no token has a rate and a radius")
        text = "<br>".join(textwrap.wrap(missing, 30))
        figure.add_annotation(text=text, showarrow=False, xref="x domain",
                              yref="y domain", x=0.5, y=0.5, row=1, col=3)  # fmt: skip
    else:
        figure.add_scatter(
            x=radius[seen], y=rate[seen], mode="markers", marker={"size": 3, "color": BLACK, "opacity": 0.35},
            showlegend=False, hovertemplate="radius %{x:.3f}, rate %{y:.3f}<extra></extra>", row=1, col=3,
        )  # fmt: skip
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": GREY, "dash": "dot", "width": 1}, showlegend=False,
        opacity=float(seen.any()), hoverinfo="skip", row=1, col=3,
    )  # fmt: skip
    figure.update_xaxes(title=f"token ({read_stamp(data).tokens})", col=1)
    figure.update_xaxes(title="examples before it", col=2)
    figure.update_xaxes(title="largest spectral radius up to the token", col=3)
    figure.update_yaxes(title="share of prompts", range=[0, 1], tickformat=".0%", col=1)
    figure.update_yaxes(range=[0, 1], tickformat=".0%", col=2)
    figure.update_yaxes(title="observed factor a loop", col=3)
    finish(figure, f"{data.model.item()}: where states and predictions go in {data.attrs['far']:,} loops")
    return figure.update_layout(hovermode="closest")


def limits_figures(datasets: Sequence[xr.Dataset], title: str = "models compared") -> dict[str, go.Figure]:
    """Draw where the states go, for the models whose states were followed."""
    followed = [data for data in datasets if "limit" in data]
    return {"limits": limits_models_figure(followed, title)} if followed else {}
