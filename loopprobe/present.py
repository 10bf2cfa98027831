"""How the answer of each probe is shown: its table and its figure."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
import xarray as xr
from rich.table import Table

from loopprobe.figures.compare import compare_figure
from loopprobe.figures.converge import converge_figure
from loopprobe.figures.curves import curves_figure
from loopprobe.figures.mask import mask_models_figure
from loopprobe.figures.panels import By
from loopprobe.tables import compare_table, converge_table, curves_table, mask_models_table

_FIGURES = {
    "compare": compare_figure,
    "converge": converge_figure,
    "curves": curves_figure,
    "mask": mask_models_figure,
}
_TABLES = {
    "compare": compare_table,
    "converge": converge_table,
    "curves": curves_table,
    "mask": mask_models_table,
}


def figure_of(probe: str, datasets: Sequence[xr.Dataset], title: str, by: By = "window") -> go.Figure:
    """The figure of several models."""
    return _FIGURES[probe](datasets, title, by)


def table_of(probe: str, datasets: Sequence[xr.Dataset]) -> Table:
    """The table of several models."""
    return _TABLES[probe](datasets)
