"""Which model stands in which panel, as which line: one panel a window T, or one a loop count and window."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from loopprobe.config.schema import TrainConfig
from loopprobe.show.arrange import by_name, model_config, task_of, without_seed
from loopprobe.show.figures.style import DASHES, colours, curve, loop_colour

By = Literal["window", "layers", "loss"]


@dataclass(frozen=True)
class Line:
    """One line of a panel: the seeds of a model together.

    Attributes:
        name: in the legend.
        datasets: one a seed.
        colour, dash: the look.
    """

    name: str
    datasets: tuple[xr.Dataset, ...]
    colour: str
    dash: str


def panels(datasets: Sequence[xr.Dataset], by: By = "window") -> dict[str, list[Line]]:
    """Lines by panel; every dataset stands in at least one, under a title that is true of it.

    With ``window``: one panel a task and window T. A window above the loop count is the loop count, so a model
    may stand in several panels, titled T = min(…, b), and ordinary models stand in all; colour is b, the same
    everywhere. With ``layers`` or ``loss``: one panel a loop count and window, colour is the number of layers or
    the loss.
    """
    if by != "window":
        return _by_loops(datasets, _layers if by == "layers" else _loss, "L" if by == "layers" else by)
    lines: dict[str, list[Line]] = {}
    tasks = list(dict.fromkeys(task_of(data) for data in datasets))
    for task in tasks:
        of_task = [data for data in datasets if task_of(data) == task]
        kind = "" if tasks == ["linear regression"] else f"{task}, "
        for t, inside in _by_window(of_task).items():
            lines[kind + _window_title(t, inside)] = _lines(inside, lambda data: loop_colour(_loops(data)))
    return lines


def _by_window(datasets: Sequence[xr.Dataset]) -> dict[int, list[xr.Dataset]]:
    """The windows of the models with most loops and who shares them, then the windows of models that share none."""
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
    if t == 0:
        return "ordinary, trained elsewhere" if all(_loops(data) == 1 for data in inside) else "trained elsewhere"
    if all(_loops(data) == 1 for data in inside):
        return "ordinary"
    return f"T = {t}" if all(_window(data) == t or _loops(data) == 1 for data in inside) else f"T = min({t}, b)"


def _by_loops(datasets: Sequence[xr.Dataset], kind: Callable[[xr.Dataset], Any], word: str) -> dict[str, list[Line]]:
    found_kinds = sorted({kind(data) for data in datasets})
    colour = dict(zip(found_kinds, colours(len(found_kinds)), strict=True))
    found: dict[str, list[xr.Dataset]] = {}
    for data in sorted(datasets, key=lambda data: (_loops(data), _window(data), kind(data))):
        found.setdefault(f"b = {_loops(data)}, T = {_window(data)}", []).append(data)
    return {
        title: _lines(inside, lambda data: colour[kind(data)], lambda data: f"{word} = {kind(data)}")
        for title, inside in found.items()
    }


def _lines(
    datasets: Sequence[xr.Dataset],
    colour: Callable[[xr.Dataset], str],
    name: Callable[[xr.Dataset], str] = without_seed,
) -> list[Line]:
    lines: list[Line] = []
    for label, own in by_name(datasets, name).items():
        look = colour(own[0])
        dash = DASHES[sum(line.colour == look for line in lines) % len(DASHES)]
        lines.append(Line(label, tuple(own), look, dash))
    return lines


def draw(
    found: dict[str, list[Line]],
    x: str,
    value: Callable[[xr.Dataset], Any],
    interval: Callable[[xr.Dataset], Any] | None = None,
) -> go.Figure:
    """A figure with one panel each, side by side, that share the y axis.

    Args:
        found: from ``panels``.
        x: the coordinate along x.
        value: the line of one dataset.
        interval: its ends. Of several seeds the mean is drawn where all have a value, with their range as band.
    """
    whole = (title.replace(" = ", "\u00a0=\u00a0") for title in found)  # lines do not break there
    titles = ["<br>".join(textwrap.wrap(title, max(16, 100 // len(found)))) for title in whole]
    figure = make_subplots(rows=1, cols=len(found), subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.03)
    shown: set[str] = set()
    for col, lines in enumerate(found.values(), 1):
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


def _loops(data: xr.Dataset) -> int:
    return model_config(data)["model"]["n_loops"]


def _layers(data: xr.Dataset) -> int:
    return int(model_config(data)["model"].get("n_layers", 1))


def _loss(data: xr.Dataset) -> str:
    return (model_config(data)["train"] or {}).get("loss", TrainConfig.loss)


def _window(data: xr.Dataset) -> int:
    return (model_config(data)["train"] or {}).get("loop_window", 0)
