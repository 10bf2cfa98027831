"""Panels of a figure and the lines in them: one panel per window T, or one per loop count and window."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from loopprobe.show.arrange import by_name, model_config, task_of, without_seed
from loopprobe.show.figures.style import DASHES, colours, curve, loop_colour

By = Literal["window", "layers", "loss"]
WIDEST_TITLE = 80  # letters of the titles of all panels that stand beside one another, 900 pixels wide


@dataclass(frozen=True)
class Line:
    """One line of a panel, which joins the seeds of a model.

    Attributes:
        name: the name in the legend.
        datasets: one dataset per seed.
        colour, dash: the look of the line.
    """

    name: str
    datasets: tuple[xr.Dataset, ...]
    colour: str
    dash: str


def panels(datasets: Sequence[xr.Dataset], by: By = "window") -> dict[str, list[Line]]:
    """Return the lines of every panel, by the title of the panel.

    Every dataset stands in at least one panel, under a title that is true of it.

    With ``window`` there is one panel per task and window T. A window above the loop count equals the loop count, so
    a model may stand in several panels, titled T = min(…, b). Ordinary models stand in all of them. The colour is b,
    the same everywhere. With ``layers`` or ``loss`` there is one panel per loop count and window, and the colour is the
    number of layers or the loss.
    """
    if by != "window":
        return _by_loops(datasets, _layers if by == "layers" else _loss, "L" if by == "layers" else by)
    lines: dict[str, list[Line]] = {}
    tasks = list(dict.fromkeys(task_of(data) for data in datasets))
    for task in tasks:
        of_task = [data for data in datasets if task_of(data) == task]
        kind = "" if tasks == ["linear regression"] or not task else f"{task}, "
        for t, inside in _by_window(of_task).items():
            lines[kind + _window_title(t, inside)] = _lines(inside, lambda data: loop_colour(_loops(data)))
    return lines


def _by_window(datasets: Sequence[xr.Dataset]) -> dict[int, list[xr.Dataset]]:
    """Group datasets by the windows of the models with most loops; models left over keep their own windows."""
    most = max(_loops(data) for data in datasets)
    inside: dict[int, list[xr.Dataset]] = {}
    for t in sorted({_window(data) for data in datasets if _loops(data) == most}):
        inside[t] = [data for data in datasets if _window(data) == (min(t, _loops(data)) if t else 0)]
    for t in sorted({_window(data) for data in datasets} - inside.keys()):
        placed = [data for members in inside.values() for data in members]
        if any(_window(data) == t and not any(data is other for other in placed) for data in datasets):
            inside[t] = [data for data in datasets if _window(data) == (min(t, _loops(data)) if t else 0)]
    return dict(sorted(inside.items()))


def _window_title(t: int, inside: Sequence[xr.Dataset]) -> str:
    """Return a title that is true of every model in the panel."""
    if t == 0:
        return "ordinary, trained elsewhere" if all(_loops(data) == 1 for data in inside) else "trained elsewhere"
    if all(_loops(data) == 1 for data in inside):
        return "ordinary"
    return f"T = {t}" if all(_window(data) == t or _loops(data) == 1 for data in inside) else f"T = min({t}, b)"


def _by_loops(datasets: Sequence[xr.Dataset], kind: Callable[[xr.Dataset], Any], word: str) -> dict[str, list[Line]]:
    """Return one panel per loop count and window, with one colour per kind."""
    kinds = sorted({kind(data) for data in datasets})
    colour = dict(zip(kinds, colours(len(kinds)), strict=True))
    groups: dict[str, list[xr.Dataset]] = {}
    for data in sorted(datasets, key=lambda data: (_loops(data), _window(data), kind(data))):
        groups.setdefault(f"b = {_loops(data)}, T = {_window(data)}", []).append(data)
    return {
        title: _lines(inside, lambda data: colour[kind(data)], lambda data: f"{word} = {kind(data)}")
        for title, inside in groups.items()
    }


def _lines(
    datasets: Sequence[xr.Dataset],
    colour: Callable[[xr.Dataset], str],
    name: Callable[[xr.Dataset], str] = without_seed,
) -> list[Line]:
    """Return one line per name; lines of one colour have different dashes."""
    lines: list[Line] = []
    for label, seeds in by_name(datasets, name).items():
        look = colour(seeds[0])
        dash = DASHES[sum(line.colour == look for line in lines) % len(DASHES)]
        lines.append(Line(label, tuple(seeds), look, dash))
    return lines


def draw(
    lines_by_panel: dict[str, list[Line]],
    x: str,
    value: Callable[[xr.Dataset], Any],
    interval: Callable[[xr.Dataset], Any] | None = None,
) -> go.Figure:
    """Draw the panels side by side, with a shared y axis.

    Args:
        lines_by_panel: the result of ``panels``.
        x: the coordinate along x.
        value: returns the line of one dataset.
        interval: returns the ends of its interval. Several seeds are drawn as their mean, where all have a value, with
            their range as a band.
    """
    whole = (  # a line does not break there
        title.replace(" = ", "\u00a0=\u00a0").replace(", b)", ",\u00a0b)") for title in lines_by_panel
    )
    titles = ["<br>".join(textwrap.wrap(title, max(16, WIDEST_TITLE // len(lines_by_panel)))) for title in whole]
    figure = make_subplots(
        rows=1, cols=len(lines_by_panel), subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.03
    )
    figure.update_annotations(font={"size": 14})
    shown: set[str] = set()
    for col, lines in enumerate(lines_by_panel.values(), 1):
        for line in lines:
            seeds = xr.align(*line.datasets, join="inner", exclude=set(line.datasets[0].dims) - {x})
            rows = np.stack([np.asarray(value(data)) for data in seeds])
            band = (rows.min(0), rows.max(0)) if len(rows) > 1 else interval and interval(seeds[0])
            curve(
                figure, seeds[0][x], rows.mean(0), band, colour=line.colour, dash=line.dash, name=line.name,
                col=col, in_legend=line.name not in shown,
            )  # fmt: skip
            shown.add(line.name)
    return figure


def draw_failures(lines_by_panel: dict[str, list[Line]], x: str, level: float) -> go.Figure:
    """Draw the share of prompts that fail, in percent on a linear axis, in the same panels as the errors."""
    figure = draw(lines_by_panel, x, lambda data: data.failures, interval_of("failures"))
    figure.update_yaxes(title=f"share of prompts with an error above {level:.2g}", col=1)
    return figure.update_yaxes(tickformat=".2~%", rangemode="tozero")


def interval_of(name: str) -> Callable[[xr.Dataset], Any]:
    """Return a function that gives both ends of a variable's interval."""
    return lambda data: (data[f"{name}_low"], data[f"{name}_high"])


def _loops(data: xr.Dataset) -> int:
    return model_config(data)["model"]["n_loops"]


def _layers(data: xr.Dataset) -> int:
    return int(model_config(data)["model"].get("n_layers", 1))


def _loss(data: xr.Dataset) -> str:
    return str((model_config(data)["train"] or {}).get("loss", "mse"))


def _window(data: xr.Dataset) -> int:
    return (model_config(data)["train"] or {}).get("loop_window", 0)
