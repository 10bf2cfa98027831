"""Figures of the compare probe."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import plotly.graph_objects as go
import xarray as xr

from loopprobe.probes.dataset import read_stamp
from loopprobe.show.arrange import baselines_of, by_prompts
from loopprobe.show.figures.panels import By, Line, draw, panels
from loopprobe.show.figures.style import BASELINE_COLOURS, GREY, curve, finish, log_errors


def compare_figure(
    datasets: Sequence[xr.Dataset], title: str = "error against the number of examples", by: By = "window"
) -> go.Figure:
    """Error against the in-context examples, one curve a model, with the optimum and the baselines.

    Args:
        datasets: of the compare probe, one a model.
        title: of the figure.
        by: what makes a panel, see ``panels``.
    """
    figure = _figure(panels(datasets, by), ("mean", "low", "high"))
    log_errors(figure, read_stamp(datasets[0]).unit)
    return finish(figure, title)


def accuracy_figure(
    datasets: Sequence[xr.Dataset], title: str = "accuracy against the number of examples"
) -> go.Figure:
    """Share of right signs against the in-context examples, where labels are signs."""
    figure = _figure(panels(datasets), ("accuracy", "accuracy_low", "accuracy_high"))
    figure.update_yaxes(title="accuracy", col=1, tickformat=".0%")
    return finish(figure, title)


def _figure(found: dict[str, list[Line]], parts: tuple[str, str, str]) -> go.Figure:
    """A curve a model, then the optimum, then each baseline, with their intervals; ``parts`` names the variables."""
    mean, low, high = parts
    figure = draw(found, "point", lambda data: data[mean], lambda data: (data[low], data[high]))
    shown: set[str] = set()
    for col, lines in enumerate(found.values(), 1):
        for words, members in by_prompts([data for line in lines for data in line.datasets]).items():
            data, of = members[0], f" ({words})" if words else ""
            name = data.attrs["optimum"] + of
            above = data.where(data.optimum_mean > 1e-6, drop=True)  # exact optima reach zero, which no log axis shows
            new = name not in shown
            line = above[f"optimum_{mean}"]
            curve(figure, above.point, line, colour=GREY, dash="dot", name=name, col=col, in_legend=new)
            shown.add(name)
            for i, (baseline, at) in enumerate(baselines_of(members).items()):
                if baseline == data.attrs["optimum"]:
                    continue
                name = baseline + of
                look = BASELINE_COLOURS[i % len(BASELINE_COLOURS)]
                line = at[f"baseline_{mean}"].where(at.baseline_mean > 1e-6)
                curve(figure, at.point, line, colour=look, dash="dash", name=name, col=col, in_legend=name not in shown)
                shown.add(name)
    axis = "in-context examples before the query"
    figure.update_xaxes(title="<br>".join(textwrap.wrap(axis, max(16, 100 // len(found)))))
    return figure


def accuracy_figures(datasets: Sequence[xr.Dataset], title: str | None = None) -> dict[str, go.Figure]:
    """The accuracy of those models whose labels are signs."""
    signs = [data for data in datasets if "accuracy" in data]
    return {"accuracy": accuracy_figure(signs, *([title] if title else []))} if signs else {}
