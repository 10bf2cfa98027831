"""Which model stands in which panel: figures show one panel a window T, as the study does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from loopprobe.figures.style import DASHES, loop_colour


def model_config(data: xr.Dataset) -> dict[str, Any]:
    """The configuration (model, task, train) of the model that a dataset is of."""
    return json.loads(data.attrs["checkpoint"])["config"]


def by_window(datasets: Sequence[xr.Dataset]) -> dict[str, list[xr.Dataset]]:
    """Datasets by panel. A window above the loop count is the loop count, so a model may stand in several panels;
    ordinary models stand in all, and models that were trained elsewhere share one panel.
    """

    def loops(data: xr.Dataset) -> int:
        return model_config(data)["model"]["n_loops"]

    def window(data: xr.Dataset) -> int:
        return (model_config(data)["train"] or {}).get("loop_window", 0)

    most = max(loops(data) for data in datasets)
    windows = sorted({window(data) for data in datasets if loops(data) == most})
    return {
        f"T = {t}" if t else "": [data for data in datasets if window(data) == (min(t, loops(data)) if t else 0)]
        for t in windows
    }


def window_panels(panels: dict[str, list[xr.Dataset]]) -> go.Figure:
    """An empty figure with one panel each, side by side, that share the y axis."""
    return make_subplots(
        rows=1, cols=len(panels), subplot_titles=list(panels), shared_yaxes=True, horizontal_spacing=0.04
    )


def look(datasets: Sequence[xr.Dataset]) -> dict[str, dict[str, str]]:
    """Colour and dash by model: colour is b, the same everywhere; dash tells models of one b apart."""
    looks: dict[str, dict[str, str]] = {}
    for data in datasets:
        colour = loop_colour(model_config(data)["model"]["n_loops"])
        before = sum(look["colour"] == colour for look in looks.values())
        looks.setdefault(data.model.item(), {"colour": colour, "dash": DASHES[before % len(DASHES)]})
    return looks
