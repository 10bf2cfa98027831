"""Figures of the folds probe."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from loopprobe.config.schema import Config, TaskConfig
from loopprobe.config.strict import build
from loopprobe.show.figures.style import BASELINE_COLOURS, SYMBOLS, colours, finish
from loopprobe.support.statistics import bootstrap_mean

Interval = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Row:
    """Accuracy of one kind of model, or of a baseline, on every table that it can be put to.

    Attributes:
        name: of the kind, and whether its models were trained on the table.
        accuracy: at the query, its mean and the ends of its 95 % interval, by table.
        colour, symbol: the same for one kind.
    """

    name: str
    accuracy: dict[str, Interval]
    colour: str
    symbol: str


def kind_of(data: xr.Dataset) -> str:
    """What a model is besides the tables that it was trained on; models of one kind are folds of one another."""
    cfg = build(Config, json.loads(data.attrs["checkpoint"])["config"])
    if cfg.task.name != "tables":
        return str(data.model.item())
    short = TaskConfig().short
    return dataclasses.replace(cfg, task=TaskConfig()).name.removeprefix(short + "-")


def rows_of(datasets: Sequence[xr.Dataset]) -> list[Row]:
    """Left-out and trained-on tables of every kind, averaged over the models that had them so, then the baselines."""
    kinds: dict[str, list[xr.Dataset]] = {}
    for data in datasets:
        kinds.setdefault(kind_of(data), []).append(data)
    rows = []
    for i, (kind, own) in enumerate(kinds.items()):
        saw = any(bool(data.trained_on.any()) for data in own)
        for trained_on in (False, True):
            accuracy = {}
            for table in _tables(own):
                right = [
                    d.right.sel(table=table).isel(point=-1) for d in own if d.trained_on.sel(table=table) == trained_on
                ]
                if right:
                    mean, low, high = bootstrap_mean(xr.concat(right, "fold").mean("fold").values)
                    accuracy[table] = float(mean), float(low), float(high)
            if accuracy:
                words = "trained on it" if trained_on else "left out" if saw else "trained on no table"
                symbol = SYMBOLS[i % len(SYMBOLS)] + ("-open" if trained_on else "")
                rows.append(Row(f"{kind}, {words}", accuracy, colours(len(kinds))[i], symbol))
    first = datasets[0].isel(point=-1)
    for i, baseline in enumerate(first.baseline.values if "baseline" in first else []):
        at = first.sel(baseline=baseline)
        parts = (at.baseline_accuracy, at.baseline_accuracy_low, at.baseline_accuracy_high)
        found = zip(at.table.values, *(part.values for part in parts), strict=True)
        accuracy = {str(table): (float(mean), float(low), float(high)) for table, mean, low, high in found}
        rows.append(Row(str(baseline), accuracy, BASELINE_COLOURS[i], "line-ns-open"))
    return rows


def folds_figure(
    datasets: Sequence[xr.Dataset], title: str = "tables of real data, left out and trained on"
) -> go.Figure:
    """Accuracy at the query on every table: a marker a kind of model, filled where it was not trained on the table.

    Args:
        datasets: of the folds probe, one a model.
        title: of the figure.
    """
    figure = make_subplots()
    rows = rows_of(datasets)
    for i, row in enumerate(rows):
        tables = list(row.accuracy)
        means, lows, highs = zip(*row.accuracy.values(), strict=True)
        figure.add_scatter(
            x=means, y=[_tables(datasets).index(t) + 0.36 * (2 * i / max(1, len(rows) - 1) - 1) for t in tables],
            mode="markers", name=row.name, marker={"size": 10, "color": row.colour, "symbol": row.symbol,
                                                   "line": {"width": 2, "color": row.colour}},
            error_x={"type": "data", "symmetric": False, "thickness": 1,
                     "array": [h - m for m, h in zip(means, highs, strict=True)],
                     "arrayminus": [m - low for m, low in zip(means, lows, strict=True)]},
            text=tables, hovertemplate="%{text}: %{x:.1%}",
        )  # fmt: skip
    tables = _tables(datasets)
    figure.update_xaxes(title="share of right answers at the query", tickformat=".0%")
    figure.update_yaxes(tickvals=list(range(len(tables))), ticktext=tables, automargin=True, autorange="reversed")
    finish(figure, title)
    figure.update_layout(hovermode="closest", height=max(figure.layout.height, 18 * len(rows) * len(tables) + 150))
    return figure


def _tables(datasets: Sequence[xr.Dataset]) -> list[str]:
    return list(dict.fromkeys(str(table) for data in datasets for table in data.table.values))
