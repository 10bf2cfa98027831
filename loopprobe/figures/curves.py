"""Figures of training curves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from loopprobe.figures.panels import by_window, look, window_panels
from loopprobe.figures.style import curve, finish

SMOOTHED = 100  # steps


def curves_figure(datasets: Sequence[xr.Dataset], title: str = "training loss") -> go.Figure:
    """Training loss against the step, smoothed over 100 steps, one panel a window T, one curve a model.

    Args:
        datasets: of the curves probe, one a model.
        title: of the figure.
    """
    panels, looks = by_window(datasets), look(datasets)
    figure = window_panels(panels)
    shown: set[str] = set()
    for col, inside in enumerate(panels.values(), 1):
        for data in inside:
            name = data.model.item()
            curve(
                figure, data.step, smoothed(data.loss.values, data.step.values), colour=looks[name]["colour"],
                dash=looks[name]["dash"], name=name, col=col,
                in_legend=name not in shown,
            )  # fmt: skip
            shown.add(name)
    figure.update_xaxes(title="training step")
    figure.update_yaxes(title="training loss (squared error)", col=1)
    return finish(figure, title)


def smoothed(values: np.ndarray, steps: np.ndarray, width: int = SMOOTHED) -> np.ndarray:
    """Mean over the rows of the last ``width`` steps."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.searchsorted(steps, steps - width, side="right")
    last = np.arange(1, len(values) + 1)
    return (sums[last] - sums[first]) / (last - first)
