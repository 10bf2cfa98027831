"""Figures of training curves."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
import xarray as xr

from loopprobe.show.figures.panels import By, draw, panels
from loopprobe.show.figures.style import finish
from loopprobe.show.tables.common import loss_unit
from loopprobe.support.statistics import moving_mean


def curves_figure(datasets: Sequence[xr.Dataset], title: str = "training loss", by: By = "window") -> go.Figure:
    """Draw the training loss against the step, smoothed over 100 steps, one curve per model.

    Args:
        datasets: datasets of the curves probe, one per model.
        title: the title of the figure.
        by: what makes a panel, see ``panels``.
    """
    figure = draw(panels(datasets, by), "step", lambda data: moving_mean(data.loss.values, data.step.values))
    figure.update_xaxes(title="training step")
    figure.update_yaxes(title=f"training loss ({loss_unit(datasets)})", col=1)
    return finish(figure, title)
