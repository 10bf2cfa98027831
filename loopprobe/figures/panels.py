"""Which model stands in which panel, as which line: one panel a window T, or one a loop count and window."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from loopprobe.config import TrainConfig
from loopprobe.figures.style import DASHES, colours, curve, loop_colour

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


def model_config(data: xr.Dataset) -> dict[str, Any]:
    """The configuration (model, task, train) of the model that a dataset is of."""
    return json.loads(data.attrs["checkpoint"])["config"]


def panels(datasets: Sequence[xr.Dataset], by: By = "window") -> dict[str, list[Line]]:
    """Lines by panel.

    With ``window``: one panel a task and window T. A window above the loop count is the loop count, so a model
    may stand in several panels, and ordinary models stand in all; colour is b, the same everywhere. With
    ``layers`` or ``loss``: one panel a loop count and window, colour is the number of layers or the loss.
    """
    if by != "window":
        return _by_loops(datasets, _layers if by == "layers" else _loss, "L" if by == "layers" else by)
    found: dict[str, list[Line]] = {}
    tasks = list(dict.fromkeys(task_of(data) for data in datasets))
    for task in tasks:
        of_task = [data for data in datasets if task_of(data) == task]
        most = max(_loops(data) for data in of_task)
        for t in sorted({_window(data) for data in of_task if _loops(data) == most}):
            inside = [data for data in of_task if _window(data) == (min(t, _loops(data)) if t else 0)]
            kind = "" if tasks == ["linear regression"] else f"{task}, "
            title = f"{kind}T = {t}" if t else f"{kind}ordinary" if most == 1 else f"{kind}trained elsewhere"
            found[title] = _lines(inside, lambda data: loop_colour(_loops(data)))
    return found


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


def _without_seed(data: xr.Dataset) -> str:
    seed = (model_config(data)["train"] or {}).get("seed", 0)
    return data.model.item().removesuffix(f"-s{seed}")


def by_name(
    datasets: Sequence[xr.Dataset], name: Callable[[xr.Dataset], str] = _without_seed
) -> dict[str, list[xr.Dataset]]:
    """Datasets of the same name, by default that of the model without its seed: the seeds together."""
    found: dict[str, list[xr.Dataset]] = {}
    for data in datasets:
        found.setdefault(name(data), []).append(data)
    return found


def _lines(
    datasets: Sequence[xr.Dataset],
    colour: Callable[[xr.Dataset], str],
    name: Callable[[xr.Dataset], str] = _without_seed,
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


def task_of(data: xr.Dataset) -> str:
    """In words, with what is special."""
    task = model_config(data)["task"]
    words = task["name"].replace("_", " ").replace("relu", "ReLU").replace("noisy linear regression", "noisy")
    words += f" of depth {task['depth']}" if task.get("depth") else ""
    return words + (", signs" if task.get("labels") == "sign" else "")


def _loops(data: xr.Dataset) -> int:
    return model_config(data)["model"]["n_loops"]


def _layers(data: xr.Dataset) -> int:
    return model_config(data)["model"]["n_layers"]


def _loss(data: xr.Dataset) -> str:
    return (model_config(data)["train"] or {}).get("loss", TrainConfig.loss)


def _window(data: xr.Dataset) -> int:
    return (model_config(data)["train"] or {}).get("loop_window", 0)
