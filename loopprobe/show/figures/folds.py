"""Figures of the folds probe."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from loopprobe.show.figures.style import BASELINE_COLOURS, SYMBOLS, colours, finish
from loopprobe.show.folds_rows import rows_of, tables_in


def folds_figure(
    datasets: Sequence[xr.Dataset], title: str = "tables of real data, left out and trained on"
) -> go.Figure:
    """Draw the accuracy at the query on every table, one marker per kind of model.

    A marker is filled where the models were not trained on the table.

    Args:
        datasets: datasets of the folds probe, one per model.
        title: the title of the figure.
    """
    figure = make_subplots()
    rows = rows_of(datasets)
    looks = colours(1 + max((row.kind for row in rows if row.trained_on is not None), default=0))
    for i, row in enumerate(rows):
        colour, symbol = BASELINE_COLOURS[row.kind % len(BASELINE_COLOURS)], "line-ns-open"
        if row.trained_on is not None:
            colour, symbol = looks[row.kind], SYMBOLS[row.kind % len(SYMBOLS)] + ("-open" if row.trained_on else "")
        tables = list(row.accuracy)
        means, lows, highs = zip(*row.accuracy.values(), strict=True)
        figure.add_scatter(
            x=means, y=[tables_in(datasets).index(t) + 0.36 * (2 * i / max(1, len(rows) - 1) - 1) for t in tables],
            mode="markers", name=row.name, marker={"size": 10, "color": colour, "symbol": symbol,
                                                   "line": {"width": 2, "color": colour}},
            error_x={"type": "data", "symmetric": False, "thickness": 1,
                     "array": [h - m for m, h in zip(means, highs, strict=True)],
                     "arrayminus": [m - low for m, low in zip(means, lows, strict=True)]},
            text=tables, hovertemplate="%{text}: %{x:.1%}",
        )  # fmt: skip
    tables = tables_in(datasets)
    figure.update_xaxes(title="share of right answers at the query", tickformat=".0%")
    figure.update_yaxes(tickvals=list(range(len(tables))), ticktext=tables, automargin=True, autorange="reversed")
    finish(figure, title)
    figure.update_layout(hovermode="closest", height=max(figure.layout.height, 18 * len(rows) * len(tables) + 150))
    return figure
