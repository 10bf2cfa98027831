"""Figures of the mask probe."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from loopprobe.probes.dataset import read_stamp
from loopprobe.show.arrange import ends_to_show, few_of, ignoring, loops_to_show
from loopprobe.show.figures.panels import By, Line, draw, draw_failures, interval_of, panels
from loopprobe.show.figures.style import (
    BLACK,
    DASHES,
    colours,
    curve,
    finish,
    level,
    measure_axes,
    trained_line,
)


def mask_figure(data: xr.Dataset) -> go.Figure:
    """Draw the error against what is kept of the state, and against the loop.

    With four or more values of n, the left panel shows the error against n, one curve per loop count. With fewer it
    shows the error against the number of in-context examples, where that was measured. The right panel shows
    the error against the loop, one curve per n.

    Args:
        data: a dataset of the mask probe.
    """
    n, last = data.n.values, data.isel(loop=-1)
    stamp = read_stamp(data)
    config = stamp.options
    verb = "masked" if config["invert"] else "kept"
    over_n = len(n) >= 4 or "median_by_point" not in data
    unmasked = 0 if config["invert"] else int(data.attrs["full"])  # this n is the clean run
    picked = few_of([int(value) for value in n if value != unmasked])
    notes = [f"n = {unmasked} is the clean run"] if unmasked in n else []
    masking = len(n) - len(notes)
    if len(picked) < masking:
        others = f"the other {masking}" if notes else f"{masking}"
        notes.append(f"{len(picked)} of {others} n are shown")
    titles = [
        f"by n, the {config['unit']}s {verb}" if over_n else f"after {int(last.loop)} loops, by examples",
        "over the loops" + (f" ({', '.join(notes)})" if notes else ""),
    ]
    figure = make_subplots(rows=1, cols=2, subplot_titles=titles, horizontal_spacing=0.2 if over_n else 0.1)
    if over_n:
        shown = loops_to_show(data)
        for loop, colour in zip(shown, colours(len(shown)), strict=True):
            errors = data.sel(loop=loop)
            name = f"{loop} loop{'s' * (loop > 1)}"
            curve(figure, n, errors["median"], interval_of("median")(errors), colour=colour, name=name)
        left, left_title = n, f"n: {config['mode']} {config['unit']}s of the state {verb}"
    else:
        left, left_title = data.point.values, "in-context examples before the query"
        for value, colour in zip(picked, colours(len(picked)), strict=True):
            medians = last.median_by_point.sel(n=value)
            curve(figure, left, medians, colour=colour, name=f"n = {value}", legend="legend2", in_legend=False)
        by_point = last.clean_median_by_point
        curve(figure, left, by_point, colour=BLACK, name="clean run", legend="legend2", in_legend=False)
    for value, colour in zip(picked, colours(len(picked)), strict=True):
        errors = data.sel(n=value)
        name = f"n = {value}"
        curve(
            figure,
            data.loop,
            errors["median"],
            interval_of("median")(errors),
            colour=colour,
            name=name,
            col=2,
            legend="legend2",
        )
    interval = interval_of("clean_median")(data)
    curve(figure, data.loop, data.clean_median, interval, colour=BLACK, name="clean run", col=2, legend="legend2")
    for name, error in ignoring(data).items():
        for col, x in ((1, left), (2, data.loop)):
            level(figure, x, error, name, col=col, legend="legend2", in_legend=col == 2)
    trained_line(figure, int(data.attrs["trained_loops"]), col=2)
    figure.update_xaxes(title=left_title, col=1)
    figure.update_xaxes(title="loops done", col=2)
    measure_axes(figure, data, stamp.query_unit if over_n else stamp.unit)
    figure.update_layout(legend2={"x": 1.005, "y": 1})
    finish(figure, f"{data.model.item()}: {data.attrs['description']}")
    return figure.update_layout(legend={"x": 0.405, "y": 1})


def mask_figures(data: xr.Dataset) -> dict[str, go.Figure]:
    """Return the figure of one model by its name."""
    return {"mask": mask_figure(data)}


def mask_models_figure(
    datasets: Sequence[xr.Dataset], title: str = "error by what is kept", by: By = "window"
) -> go.Figure:
    """Draw the error against n, one curve per model and loop count: as trained and, dotted, after the last loop.

    Args:
        datasets: datasets of the mask probe, one per model, with the same n.
        title: the title of the figure.
        by: what makes a panel, see ``panels``.
    """
    stamp = read_stamp(datasets[0])
    config = stamp.options
    lines_by_panel = _lines_by_loops(datasets, by)
    figure = draw(lines_by_panel, "n", lambda data: data["median"], interval_of("median"))
    for col, lines in enumerate(lines_by_panel.values(), 1):
        for name, error in ignoring(lines[0].datasets[0]).items():
            level(figure, datasets[0].n, error, name, col=col, in_legend=col == 1)
    figure.update_xaxes(title=f"n: {config['mode']} {config['unit']}s of the state kept")
    measure_axes(figure, datasets[0], stamp.query_unit)
    return finish(figure, title)


def failures_figures(datasets: Sequence[xr.Dataset], title: str = "", by: By = "window") -> dict[str, go.Figure]:
    """Draw the share of prompts that fail against n, one curve per model and loop count, where that is known."""
    if "failures" not in datasets[0]:
        return {}
    config = read_stamp(datasets[0]).options
    figure = draw_failures(_lines_by_loops(datasets, by), "n", datasets[0].attrs["failure_level"])
    figure.update_xaxes(title=f"n: {config['mode']} {config['unit']}s of the state kept")
    return {"failures": finish(figure, title or "how often the masked loop fails")}


def _lines_by_loops(datasets: Sequence[xr.Dataset], by: By) -> dict[str, list[Line]]:
    """Return the lines of every panel: one per model and loop count."""
    return {
        panel: [
            Line(f"{line.name}, {loop} loops", tuple(data.sel(loop=loop) for data in line.datasets), line.colour, dash)
            for line in lines
            for loop, dash in zip(ends_to_show(line.datasets[0]), itertools.cycle(DASHES), strict=False)
        ]
        for panel, lines in panels(datasets, by).items()
    }
