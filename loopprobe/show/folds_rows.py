"""Rows of the folds probe: the accuracy of every kind of model and baseline, table by table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import xarray as xr

from loopprobe.config.schema import TaskConfig, read_config
from loopprobe.probes.dataset import read_stamp
from loopprobe.support.statistics import share_interval

Interval = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Row:
    """The accuracy of one kind of model, or of one baseline, on every table that it can be run on.

    Attributes:
        name: the kind, and whether its models were trained on the table.
        accuracy: the mean at the query and both ends of its 95 % interval, by table.
        kind: the index of the kind, or of the baseline among the baselines; it sets colour and symbol.
        trained_on: whether its models were trained on the tables; None for a baseline.
    """

    name: str
    accuracy: dict[str, Interval]
    kind: int
    trained_on: bool | None


def kind_of(data: xr.Dataset) -> str:
    """Return the name of a model without its training tables.

    Models of one kind are folds of one another.
    """
    cfg = read_config(read_stamp(data).config)
    if cfg.task.name != "tables":
        return str(data.model.item())
    short = TaskConfig().short
    return dataclasses.replace(cfg, task=TaskConfig()).name.removeprefix(short + "-")


def rows_of(datasets: Sequence[xr.Dataset]) -> list[Row]:
    """Return the rows of every kind of model, for left-out and for trained-on tables, then those of the baselines.

    The accuracy on a table is averaged over the models of the kind.
    """
    kinds: dict[str, list[xr.Dataset]] = {}
    for data in datasets:
        kinds.setdefault(kind_of(data), []).append(data)
    rows = []
    for i, (kind, members) in enumerate(kinds.items()):
        saw = any(bool(data.trained_on.any()) for data in members)
        for trained_on in (False, True):
            accuracy = {}
            for table in tables_in(members):
                right = [
                    d.right.sel(table=table).isel(point=-1)
                    for d in members
                    if d.trained_on.sel(table=table) == trained_on
                ]
                if right:
                    mean, low, high = share_interval(xr.concat(right, "fold").mean("fold").values)
                    accuracy[table] = float(mean), float(low), float(high)
            if accuracy:
                words = "trained on it" if trained_on else "left out" if saw else "trained on no table"
                rows.append(Row(f"{kind}, {words}", accuracy, i, trained_on))
    first = datasets[0].isel(point=-1)
    for i, baseline in enumerate(first.baseline.values if "baseline" in first else []):
        answers = first.sel(baseline=baseline)
        parts = (answers.baseline_accuracy, answers.baseline_accuracy_low, answers.baseline_accuracy_high)
        intervals = zip(answers.table.values, *(part.values for part in parts), strict=True)
        accuracy = {str(table): (float(mean), float(low), float(high)) for table, mean, low, high in intervals}
        rows.append(Row(str(baseline), accuracy, i, None))
    return rows


def tables_in(datasets: Sequence[xr.Dataset]) -> list[str]:
    """Return the names of all tables in order of appearance."""
    return list(dict.fromkeys(str(table) for data in datasets for table in data.table.values))
