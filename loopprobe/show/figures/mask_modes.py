"""Figures of both modes of the mask probe, first and last, and of their paired difference."""

from __future__ import annotations

import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from loopprobe.probes.dataset import read_stamp
from loopprobe.probes.paired import MODES, mask_difference
from loopprobe.show.arrange import few_of, ignoring, loops_to_show
from loopprobe.show.figures.panels import interval_of
from loopprobe.show.figures.style import BLACK, GREY, colours, curve, finish, level

DASH = dict(zip(MODES, ("solid", "dash"), strict=True))


def mask_modes_figure(first: xr.Dataset, last: xr.Dataset) -> go.Figure:
    """Draw the errors of both modes in one panel, and their difference, prompt by prompt, beside it.

    With four or more values of n, both are drawn against n, one colour per loop count. With fewer they are drawn
    against the loops, one colour per n.

    Args:
        first, last: datasets of the mask probe, see ``mask_difference``.
    """
    difference = mask_difference(first, last)
    over_n = difference.sizes["n"] >= 4
    ends = int(first.attrs["trained_loops"]), int(difference.loop[-1])
    wanted = loops_to_show(difference, ends) if over_n else few_of(difference.n.values.tolist())
    lines, along = ("loop", "n") if over_n else ("n", "loop")
    titles = ["error", "difference: first minus last, paired (above 0: keeping the last is better)"]
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.1)
    for value, colour in zip(wanted, colours(len(wanted)), strict=True):
        name = f"after {value} loop{'s' * (value > 1)}" if over_n else f"n = {value}"
        for data, mode in ((first, "first"), (last, "last")):
            errors = data.sel({lines: value})
            curve(
                figure,
                errors[along],
                errors["median"],
                interval_of("median")(errors),
                colour=colour,
                dash=DASH[mode],
                name=f"{mode}, {name}",
            )
        paired = difference.sel({lines: value})
        interval = interval_of("median")(paired)
        curve(figure, paired[along], paired["median"], interval, colour=colour, name=f"difference, {name}", col=2)
    x = difference[along]
    if over_n:
        end = wanted[-1]
        level(figure, x, float(first.clean_median.sel(loop=end)), f"clean run, after {end} loops", colour=BLACK)
    else:
        clean = interval_of("clean_median")(first)
        curve(figure, first.loop, first.clean_median, clean, colour=BLACK, name="clean run")
    for name, error in ignoring(first).items():
        level(figure, x, error, name)
    level(figure, x, 0.0, "no difference", col=2, colour=GREY, in_legend=False)
    unit = read_stamp(first).options["unit"]
    figure.update_xaxes(title=f"n: {unit}s of the state" if over_n else "loops done")
    log = {} if "measure" in first.attrs else {"type": "log", "dtick": 1, "exponentformat": "power"}
    figure.update_yaxes(title=read_stamp(first).query_unit, **log, col=1)
    figure.update_yaxes(title="first minus last", col=2)
    return finish(figure, f"{first.model.item()}: {first.attrs['description']} – against the last n")


def mask_difference_figure(data: xr.Dataset) -> go.Figure:
    """Draw the paired difference alone, as its dataset holds it.

    Args:
        data: the dataset that ``mask_difference`` returns.
    """
    figure = make_subplots()
    wanted = few_of(data.n.values.tolist())
    for n, colour in zip(wanted, colours(len(wanted)), strict=True):
        paired = data.sel(n=n)
        curve(figure, data.loop, paired["median"], interval_of("median")(paired), colour=colour, name=f"n = {n}")
    level(figure, data.loop, 0.0, "no difference")
    figure.update_xaxes(title="loops done")
    figure.update_yaxes(title=f"difference of {read_stamp(data).query_unit}")
    return finish(figure, f"{data.model.item()}: {data.attrs['description']}{shown_note(data, wanted)}")


def mask_difference_figures(data: xr.Dataset) -> dict[str, go.Figure]:
    """Return the figure of the difference by its name."""
    return {"mask-difference": mask_difference_figure(data)}


def shown_note(data: xr.Dataset, wanted: list[int]) -> str:
    """Return a note on which n are drawn, empty where all are."""
    return "" if len(wanted) == data.sizes["n"] else f" (n = {', '.join(map(str, wanted))} of {data.sizes['n']})"
